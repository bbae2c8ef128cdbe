-- The trash: deleted objects keep their rows until their time is over, and are on no spread meanwhile; their segments stay on
-- their worker sets. And the log of deletions, a hash chain (core/crypto/deletion-log.ts).

alter table distro.objects
	add column deleted_at_ms bigint,
	-- Of what is in the trash, and nothing else.
	add column purge_at_ms bigint;
drop index distro.objects_newest;
create index objects_newest on distro.objects (created_at_ms, object_id) where purge_at_ms is null;
create index objects_trash on distro.objects (purge_at_ms, object_id) where purge_at_ms is not null;
alter table distro.deletions add column for_good boolean not null default false;
alter table distro.totals
	add column trash_objects bigint not null default 0,
	add column trash_bytes numeric not null default 0;

create or replace function distro.count_objects() returns trigger language plpgsql as $$
declare
	sign constant integer := case tg_op when 'INSERT' then 1 else -1 end;
	counted record;
begin
	select count(*) filter (where purge_at_ms is null) as rows,
			coalesce(sum(size_bytes) filter (where purge_at_ms is null), 0) as bytes,
			count(*) filter (where purge_at_ms is not null) as trash_rows,
			coalesce(sum(size_bytes) filter (where purge_at_ms is not null), 0) as trash_bytes
		into counted from changed;
	if counted.rows + counted.trash_rows > 0 then
		update distro.totals t set objects = t.objects + sign * counted.rows, bytes = t.bytes + sign * counted.bytes,
				trash_objects = t.trash_objects + sign * counted.trash_rows,
				trash_bytes = t.trash_bytes + sign * counted.trash_bytes
			where slot = distro.slot();
	end if;
	return null;
end $$;

create function distro.count_trash() returns trigger language plpgsql as $$
declare
	change constant integer := (new.purge_at_ms is not null)::integer - (old.purge_at_ms is not null)::integer;
begin
	update distro.totals t set objects = t.objects - change, bytes = t.bytes - change * new.size_bytes,
			trash_objects = t.trash_objects + change, trash_bytes = t.trash_bytes + change * new.size_bytes
		where slot = distro.slot();
	return null;
end $$;
create trigger counted_trash after update of purge_at_ms on distro.objects
	for each row execute function distro.count_trash();

create table distro.deletion_log (
	entry_no bigint primary key,
	object_id uuid not null,
	action text not null,
	at_ms bigint not null,
	by_key text not null,
	hash bytea not null
);
-- No row until the first entry.
create table distro.deletion_head (
	one boolean primary key default true check (one),
	entries bigint not null,
	hash bytea not null
);
-- What a transaction is to add to the log. It does so when it commits: there is one last hash, and whoever takes it makes all
-- others wait, so nothing may be done after that.
create table distro.deletion_notes (
	note_no bigint generated always as identity primary key,
	object_id uuid not null,
	action text not null,
	at_ms bigint not null,
	by_key text not null
);
alter table distro.deletion_log enable row level security;
alter table distro.deletion_head enable row level security;
alter table distro.deletion_notes enable row level security;

-- Little-endian, of the last `count` bytes.
create function distro.little_endian(value bigint, count integer) returns bytea language sql immutable parallel safe
return (
	select string_agg(substr(int8send(value), 9 - place, 1), ''::bytea order by place) from generate_series(1, count) place
);

create function distro.log_deletion() returns trigger language plpgsql as $$
declare
	head distro.deletion_head;
	by_bytes constant bytea := convert_to(new.by_key, 'UTF8');
begin
	insert into distro.deletion_head (entries, hash) values (0, decode(repeat('00', 32), 'hex')) on conflict do nothing;
	select * into head from distro.deletion_head where one for update;
	head.entries := head.entries + 1;
	head.hash := sha256(convert_to('distro deletion v1', 'UTF8') || decode('00', 'hex') || head.hash
		|| distro.little_endian(head.entries, 8) || distro.little_endian(new.at_ms, 8)
		|| distro.little_endian(case new.action when 'trashed' then 1 when 'undeleted' then 2 when 'purged' then 3 end, 1)
		|| uuid_send(new.object_id) || distro.little_endian(length(by_bytes), 4) || by_bytes);
	insert into distro.deletion_log (entry_no, object_id, action, at_ms, by_key, hash)
		values (head.entries, new.object_id, new.action, new.at_ms, new.by_key, head.hash);
	update distro.deletion_head set entries = head.entries, hash = head.hash;
	delete from distro.deletion_notes where note_no = new.note_no;
	return null;
end $$;
create constraint trigger logged after insert on distro.deletion_notes deferrable initially deferred
	for each row execute function distro.log_deletion();

create function distro.note_deletion(object uuid, action text, args jsonb) returns void language sql volatile
begin atomic
	insert into distro.deletion_notes (object_id, action, at_ms, by_key)
		values (object, action, (args->>'nowMs')::bigint, coalesce(args->>'by', ''));
end;

-- The object is locked, and on no spread any more.
create function distro.purge_rows(gone bigint, args jsonb) returns void language plpgsql as $$
declare
	part record;
	gone_id uuid;
begin
	insert into distro.deletions (worker_id, shard_id, queued_at_ms, for_good)
		select worker_id, shard_id, (args->>'nowMs')::bigint, true from distro.placements where object_no = gone
			order by segment, shard_index
		on conflict do nothing;
	delete from distro.findings where object_no = gone;
	delete from distro.repairs where object_no = gone;
	delete from distro.placements where object_no = gone;
	for part in
		select set_id, count(*) as segments, sum(distro.segment_bytes(cells, cell_bytes, last_cell_bytes))::bigint as bytes
			from distro.segments where object_no = gone group by set_id
	loop
		perform distro.add_to_set(part.set_id, -part.segments, -part.bytes, 0, 0);
	end loop;
	delete from distro.segments where object_no = gone;
	delete from distro.objects where object_no = gone returning object_id into gone_id;
	perform distro.note_deletion(gone_id, 'purged', args);
end $$;

-- args: {objectId, nowMs, purgeAtMs, by, callId}; of the release before without purgeAtMs: at once.
create or replace function distro.delete_object(args jsonb) returns jsonb language plpgsql as $$
declare
	found_object distro.objects;
	now_ms constant bigint := args->>'nowMs';
	purge_at constant bigint := coalesce((args->>'purgeAtMs')::bigint, now_ms);
begin
	-- Waits for findings and repairs of this object that are being written.
	select * into found_object from distro.objects
		where object_id = (args->>'objectId')::uuid and purge_at_ms is null for update;
	if not found then return distro.answer_once(false, (args->>'callId')::uuid); end if;
	if found_object.spread_id is not null then
		perform distro.leave_spread(found_object.spread_id, found_object.size_bytes);
	end if;
	if purge_at <= now_ms then
		perform distro.purge_rows(found_object.object_no, args);
	else
		update distro.objects set deleted_at_ms = now_ms, purge_at_ms = purge_at, spread_id = null
			where object_no = found_object.object_no;
		perform distro.note_deletion(found_object.object_id, 'trashed', args);
	end if;
	return distro.answer_once(true, (args->>'callId')::uuid);
end $$;

-- Its segments may be on other sets than before.
create function distro.write_undelete_object(args jsonb) returns jsonb language plpgsql as $$
declare
	found_object distro.objects;
	on_sets uuid[];
	on_spread uuid;
begin
	select * into found_object from distro.objects
		where object_id = (args->>'objectId')::uuid and purge_at_ms is not null for update;
	if not found then return distro.answer_once(false, (args->>'callId')::uuid); end if;
	on_sets := array(
		select distinct set_id from distro.segments where object_no = found_object.object_no order by set_id
	);
	if on_sets <> '{}' then
		on_spread := distro.spread_id(on_sets);
		perform distro.enter_spread(on_spread, on_sets, found_object.size_bytes);
	end if;
	update distro.objects set deleted_at_ms = null, purge_at_ms = null, spread_id = on_spread
		where object_no = found_object.object_no;
	perform distro.note_deletion(found_object.object_id, 'undeleted', args);
	return distro.answer_once(true, (args->>'callId')::uuid);
end $$;

create function distro.write_purge_object(args jsonb) returns jsonb language plpgsql as $$
declare
	gone bigint;
begin
	select object_no into gone from distro.objects
		where object_id = (args->>'objectId')::uuid and purge_at_ms is not null for update;
	if not found then return distro.answer_once(false, (args->>'callId')::uuid); end if;
	perform distro.purge_rows(gone, args);
	return distro.answer_once(true, (args->>'callId')::uuid);
end $$;

-- args: {nowMs, limit}
create function distro.write_purge_trash(args jsonb) returns jsonb language plpgsql as $$
declare
	due bigint[];
	gone bigint;
begin
	select array_agg(object_no order by purge_at_ms, object_id) into due from (
		select object_no, purge_at_ms, object_id from distro.objects
			where purge_at_ms is not null and purge_at_ms <= (args->>'nowMs')::bigint
			order by purge_at_ms, object_id limit (args->>'limit')::integer for update skip locked
	) oldest;
	foreach gone in array coalesce(due, '{}') loop
		perform distro.purge_rows(gone, args);
	end loop;
	return to_jsonb(coalesce(cardinality(due), 0));
end $$;

create or replace function distro.read_object(args jsonb) returns jsonb language sql stable
return (
	select distro.object_json(o) from distro.objects o
		where o.object_id = (args->>'objectId')::uuid and o.purge_at_ms is null
);

create or replace function distro.read_object_with_segments(args jsonb) returns jsonb language sql stable
return (
	select jsonb_build_object('object', distro.object_json(o), 'segments', distro.segments_json(o.object_no, args))
		from distro.objects o where o.object_id = (args->>'objectId')::uuid and o.purge_at_ms is null
);

create or replace function distro.read_list(args jsonb) returns jsonb language plpgsql stable as $$
declare
	most constant integer := args->>'limit';
begin
	if args->'after' = 'null' then
		return (
			select coalesce(jsonb_agg(distro.object_json(o)), '[]') from (
				select o from distro.objects o where purge_at_ms is null order by created_at_ms desc, object_id desc limit most
			) page
		);
	end if;
	return (
		select coalesce(jsonb_agg(distro.object_json(o)), '[]') from (
			select o from distro.objects o
				where purge_at_ms is null
					and (created_at_ms, object_id) < ((args->'after'->>0)::bigint, (args->'after'->>1)::uuid)
				order by created_at_ms desc, object_id desc limit most
		) page
	);
end $$;

create function distro.trashed_json(o distro.objects) returns jsonb language sql stable
return distro.object_json(o)
	|| jsonb_build_object('deletedAtMs', o.deleted_at_ms::text, 'purgeAtMs', o.purge_at_ms::text);

create function distro.read_trashed(args jsonb) returns jsonb language sql stable
return (
	select distro.trashed_json(o) from distro.objects o
		where o.object_id = (args->>'objectId')::uuid and o.purge_at_ms is not null
);

-- after: [purged at, object id] or null
create function distro.read_trash(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(distro.trashed_json(o) order by (o).purge_at_ms desc, (o).object_id desc), '[]') from (
		select o from distro.objects o
			where purge_at_ms is not null
				and (purge_at_ms, object_id) < (coalesce((args->'after'->>0)::bigint, 9223372036854775807),
					coalesce((args->'after'->>1)::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
			order by purge_at_ms desc, object_id desc limit (args->>'limit')::integer
	) page
);

-- after: a number
create function distro.read_deletion_log(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_object('number', entry_no::text, 'objectId', distro.hex(object_id), 'action', action,
			'atMs', at_ms::text, 'by', by_key, 'hash', encode(hash, 'base64')) order by entry_no), '[]')
		from (
			select * from distro.deletion_log where entry_no > (args->>'after')::bigint
				order by entry_no limit (args->>'limit')::integer
		) page
);

create function distro.read_deletion_head(args jsonb) returns jsonb language sql stable
return (select jsonb_build_object('entries', entries::text, 'hash', encode(hash, 'base64')) from distro.deletion_head);

create or replace function distro.read_deletions(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_array(item_no::text, distro.hex(shard_id), for_good) order by item_no), '[]')
		from (
			select item_no, shard_id, for_good from distro.deletions
				where worker_id = (args->>'workerId')::uuid and item_no > coalesce((args->>'after')::bigint, -1)
				order by item_no limit (args->>'limit')::integer
		) page
);

-- The sum of sizes may pass 2^53: a figure for people, so rounding is fine.
create or replace function distro.read_counts(args jsonb) returns jsonb language sql stable
return (
	select jsonb_build_object('objects', sum(objects)::text, 'bytes', sum(bytes)::text,
			'trashObjects', sum(trash_objects)::text, 'trashBytes', sum(trash_bytes)::text,
			'deletions', sum(deletions)::text, 'repairs', sum(repairs)::text,
			'intents', (select count(*) from distro.intents)::text)
		from distro.totals
);

-- After placements or findings of an object's segments changed. The object is locked.
create or replace function distro.move_segments(object bigint, touched bigint[]) returns void language plpgsql as $$
declare
	one record;
	good uuid[];
	now_on uuid;
	entered uuid[] := '{}';
	left_sets uuid[] := '{}';
	stored distro.objects;
	old_sets uuid[];
	new_sets uuid[];
	new_spread uuid;
begin
	for one in
		select s.segment, s.k, s.n, s.set_id, distro.segment_bytes(s.cells, s.cell_bytes, s.last_cell_bytes) as bytes
			from distro.segments s where s.object_no = object and s.segment = any (touched)
	loop
		good := distro.good_workers(object, one.segment);
		now_on := distro.set_id(one.k, one.n, good);
		continue when now_on = one.set_id;
		insert into distro.worker_sets as known (set_id, slot, k, n, workers, segments, bytes, objects, object_bytes)
			values (now_on, distro.slot(), one.k, one.n, good, 1, one.bytes, 0, 0)
			on conflict (set_id, slot) do update
				set segments = known.segments + excluded.segments, bytes = known.bytes + excluded.bytes;
		perform distro.add_to_set(one.set_id, -1, -one.bytes, 0, 0);
		update distro.segments set set_id = now_on where object_no = object and segment = one.segment;
		entered := array_append(entered, now_on);
		left_sets := array_append(left_sets, one.set_id);
	end loop;
	if entered = '{}' then return; end if;

	-- Only sets that a segment left are looked at again: an object may have thousands of segments.
	select * into stored from distro.objects where object_no = object;
	-- In the trash, on no spread.
	if stored.purge_at_ms is not null then return; end if;
	select sets into old_sets from distro.spreads where spread_id = stored.spread_id limit 1;
	if not found then old_sets := array[stored.spread_id]; end if;
	new_sets := array(
		select distinct candidate from unnest(old_sets || entered) candidate
			where candidate <> all (left_sets)
				or exists (select from distro.segments s where s.set_id = candidate and s.object_no = object)
			order by candidate
	);
	new_spread := distro.spread_id(new_sets);
	if new_spread = stored.spread_id then return; end if;
	perform distro.enter_spread(new_spread, new_sets, stored.size_bytes);
	perform distro.leave_spread(stored.spread_id, stored.size_bytes);
	update distro.objects set spread_id = new_spread where object_no = object;
end $$;

-- Worker sets and spreads of objects whose rows are all there, as many at once as are given.
-- args: {moveId, objects: [number, …], from: place or null, place}
create or replace function distro.move_derive(args jsonb) returns jsonb language plpgsql as $$
declare
	objects constant bigint[] := array(select o::bigint from jsonb_array_elements_text(args->'objects') o);
begin
	if not distro.move_on(args) then return null; end if;
	with cut as materialized (
		select s.object_no, s.segment, s.k, s.n, distro.segment_bytes(s.cells, s.cell_bytes, s.last_cell_bytes) as bytes,
				distro.good_workers(s.object_no, s.segment) as workers
			from distro.segments s where s.object_no = any (objects)
	), found as materialized (
		select *, distro.set_id(k, n, workers) as set_id from cut
	), spread as materialized (
		select object_no, array_agg(distinct set_id order by set_id) as sets from found group by object_no
	), segments_done as (
		update distro.segments s set set_id = found.set_id
			from found where s.object_no = found.object_no and s.segment = found.segment
	), objects_done as (
		update distro.objects o set spread_id = distro.spread_id(spread.sets)
			from spread where o.object_no = spread.object_no and o.purge_at_ms is null
	), whole as materialized (
		select sets[1] as set_id, count(*) as objects, sum(o.size_bytes) as bytes
			from spread join distro.objects o using (object_no)
			where cardinality(sets) = 1 and o.purge_at_ms is null group by sets[1]
	), sets_done as (
		insert into distro.worker_sets as known (set_id, slot, k, n, workers, segments, bytes, objects, object_bytes)
			select found.set_id, distro.slot(), k, n, workers, count(*), sum(found.bytes),
					coalesce(min(whole.objects), 0), coalesce(min(whole.bytes), 0)
				from found left join whole using (set_id) group by found.set_id, k, n, workers
			on conflict (set_id, slot) do update
				set segments = known.segments + excluded.segments, bytes = known.bytes + excluded.bytes,
					objects = known.objects + excluded.objects, object_bytes = known.object_bytes + excluded.object_bytes
	)
	insert into distro.spreads as known (spread_id, slot, sets, objects, object_bytes)
		select distro.spread_id(sets), distro.slot(), sets, count(*), sum(o.size_bytes)
			from spread join distro.objects o using (object_no)
			where cardinality(sets) > 1 and o.purge_at_ms is null group by sets
		on conflict (spread_id, slot) do update
			set objects = known.objects + excluded.objects, object_bytes = known.object_bytes + excluded.object_bytes;
	return null;
end $$;

create or replace function distro.move_totals() returns jsonb language plpgsql stable as $$
begin
	return (
		select jsonb_build_object('objects', (sum(objects) + sum(trash_objects))::text,
				'bytes', (sum(bytes) + sum(trash_bytes))::text, 'deletions', sum(deletions)::text,
				'repairs', sum(repairs)::text,
				'onSets', (select coalesce(sum(segments), 0)::text from distro.worker_sets),
				'onSpreads', ((select coalesce(sum(objects), 0) from distro.worker_sets)
					+ (select coalesce(sum(objects), 0) from distro.spreads))::text)
			from distro.totals
	);
end $$;

create or replace function public.distro_schema() returns integer language sql stable set search_path = ''
return 10;

revoke all on all functions in schema distro from public, anon, authenticated;
grant execute on all functions in schema distro to service_role;
grant select, insert, update, delete on all tables in schema distro to service_role;
grant usage, update on all sequences in schema distro to service_role;

notify pgrst, 'reload schema';
