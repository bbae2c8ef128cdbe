-- The kind of an object: people's, or the cluster's own (snapshots), which are in no list, count or spread.

alter table distro.objects add column kind text not null default 'user';
drop index distro.objects_newest;
create index objects_newest on distro.objects (kind, created_at_ms, object_id) where purge_at_ms is null;

create or replace function distro.count_objects() returns trigger language plpgsql as $$
declare
	sign constant integer := case tg_op when 'INSERT' then 1 else -1 end;
	counted record;
begin
	select count(*) filter (where purge_at_ms is null) as rows,
			coalesce(sum(size_bytes) filter (where purge_at_ms is null), 0) as bytes,
			count(*) filter (where purge_at_ms is not null) as trash_rows,
			coalesce(sum(size_bytes) filter (where purge_at_ms is not null), 0) as trash_bytes
		into counted from changed where kind = 'user';
	if counted.rows + counted.trash_rows > 0 then
		update distro.totals t set objects = t.objects + sign * counted.rows, bytes = t.bytes + sign * counted.bytes,
				trash_objects = t.trash_objects + sign * counted.trash_rows,
				trash_bytes = t.trash_bytes + sign * counted.trash_bytes
			where slot = distro.slot();
	end if;
	return null;
end $$;

-- Once, in the transaction that wrote it as an object of people.
create function distro.uncount_object() returns trigger language plpgsql as $$
begin
	update distro.totals t set objects = t.objects - 1, bytes = t.bytes - new.size_bytes where slot = distro.slot();
	return null;
end $$;
create trigger uncounted after update of kind on distro.objects
	for each row when (old.kind = 'user' and new.kind <> 'user') execute function distro.uncount_object();

create function distro.write_commit(args jsonb) returns jsonb language plpgsql as $$
declare
	kind_given constant text := coalesce(args->'object'->>'kind', 'user');
	known jsonb;
	stored distro.objects;
begin
	known := distro.commit_upload(args);
	if known is not null or kind_given = 'user' then return known; end if;
	select * into stored from distro.objects where upload_id = (args->'object'->>'uploadId')::uuid;
	if stored.spread_id is not null then perform distro.leave_spread(stored.spread_id, stored.size_bytes); end if;
	update distro.objects set kind = kind_given, spread_id = null where object_no = stored.object_no;
	return null;
end $$;

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
	-- In the trash, or the cluster's own: on no spread.
	if stored.purge_at_ms is not null or stored.kind <> 'user' then return; end if;
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
			from spread where o.object_no = spread.object_no and o.purge_at_ms is null and o.kind = 'user'
	), whole as materialized (
		select sets[1] as set_id, count(*) as objects, sum(o.size_bytes) as bytes
			from spread join distro.objects o using (object_no)
			where cardinality(sets) = 1 and o.purge_at_ms is null and o.kind = 'user' group by sets[1]
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
			where cardinality(sets) > 1 and o.purge_at_ms is null and o.kind = 'user' group by sets
		on conflict (spread_id, slot) do update
			set objects = known.objects + excluded.objects, object_bytes = known.object_bytes + excluded.object_bytes;
	return null;
end $$;

create or replace function distro.object_json(o distro.objects) returns jsonb language sql stable
return jsonb_build_object('objectId', distro.hex(o.object_id), 'versionId', distro.hex(o.version_id),
	'uploadId', distro.hex(o.upload_id), 'sizeBytes', o.size_bytes::text, 'segments', o.segments::text,
	'createdAtMs', o.created_at_ms::text, 'etag', o.etag, 'keyGeneration', o.key_generation::text,
	'wrappedKey', encode(o.wrapped_key, 'base64'), 'manifest', encode(o.manifest, 'base64'),
	'inline', encode(o.inline, 'base64'), 'kind', o.kind);

-- after: [created at, object id] or null; kind: of the release before without it.
create or replace function distro.read_list(args jsonb) returns jsonb language plpgsql stable as $$
declare
	most constant integer := args->>'limit';
	kind_asked constant text := coalesce(args->>'kind', 'user');
begin
	if args->'after' = 'null' then
		return (
			select coalesce(jsonb_agg(distro.object_json(o)), '[]') from (
				select o from distro.objects o where purge_at_ms is null and kind = kind_asked
					order by created_at_ms desc, object_id desc limit most
			) page
		);
	end if;
	return (
		select coalesce(jsonb_agg(distro.object_json(o)), '[]') from (
			select o from distro.objects o
				where purge_at_ms is null and kind = kind_asked
					and (created_at_ms, object_id) < ((args->'after'->>0)::bigint, (args->'after'->>1)::uuid)
				order by created_at_ms desc, object_id desc limit most
		) page
	);
end $$;

-- after: a number. Objects until they have so many segments.
create function distro.read_whole_objects(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_object('place', (o).object_no::text, 'object', distro.object_json(o),
			'trash', case when (o).purge_at_ms is not null
				then jsonb_build_array((o).deleted_at_ms::text, (o).purge_at_ms::text) end,
			'segments', distro.segments_json((o).object_no, jsonb_build_object('fromSegment', 0, 'limit', (o).segments)))
			order by (o).object_no), '[]')
		from (
			select o, sum((o).segments) over (order by (o).object_no) - (o).segments as segments_before
				from (
					select o from distro.objects o where object_no > (args->>'after')::bigint
						order by object_no limit (args->>'limit')::integer
				) page
		) counted
		where segments_before < (args->>'limit')::bigint
);

create or replace function public.distro_schema() returns integer language sql stable set search_path = ''
return 14;

revoke all on all functions in schema distro from public, anon, authenticated;
grant execute on all functions in schema distro to service_role;

notify pgrst, 'reload schema';
