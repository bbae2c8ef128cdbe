-- Worker sets and spreads: which segments are cut alike and have their good shards (placed, without finding) on the same
-- workers, which objects are on the same sets, and how many of both. Every call that changes placements or findings moves
-- what it touched in its own sub-transaction, so the counts are those of the rows at any moment. Also what operators ask of
-- workers and jobs.
--
-- A set's id is a digest of what it is, and so is a spread's: two transactions that come to the same new set need not
-- wait for each other, and an id never names anything else. Counts are spread over slots like those of distro.totals: a
-- transaction writes rows of its own slot only, so nobody waits here at all. A row may be negative, the sum over slots never.

alter table distro.workers
	add column duty text not null default 'active',
	add column history text not null default '';
create table distro.jobs (
	name text primary key,
	paused boolean not null default false,
	runs bigint not null default 0,
	state text not null default '',
	updated_at_ms bigint not null
);

create table distro.worker_sets (
	set_id uuid not null,
	slot integer not null,
	k integer not null,
	n integer not null,
	workers uuid[] not null,
	segments bigint not null,
	bytes bigint not null,
	-- Objects of which every segment is on this set: nearly all, so their spread needs no row of its own.
	objects bigint not null,
	object_bytes numeric not null,
	primary key (set_id, slot)
) with (fillfactor = 50);
-- Of objects on more than one set. Inline ones are on none: they are what distro.totals has beyond both.
create table distro.spreads (
	spread_id uuid not null,
	slot integer not null,
	sets uuid[] not null,
	objects bigint not null,
	object_bytes numeric not null,
	primary key (spread_id, slot)
) with (fillfactor = 50);
alter table distro.worker_sets enable row level security;
alter table distro.spreads enable row level security;
alter table distro.jobs enable row level security;

create function distro.digest_id(content text) returns uuid language sql immutable parallel safe
return encode(substr(sha256(content::bytea), 1, 16), 'hex')::uuid;

-- workers in order.
create function distro.set_id(k integer, n integer, workers uuid[]) returns uuid language sql stable parallel safe
return distro.digest_id(k || ' of ' || n || ': ' || workers::text);

-- sets in order. That of an object on one set is the set.
create function distro.spread_id(sets uuid[]) returns uuid language sql stable parallel safe
return case when cardinality(sets) > 1 then distro.digest_id(sets::text) else sets[1] end;

-- Counted one by one, as in distro.discard_named: findings may be few when this is planned.
create function distro.good_workers(object bigint, of_segment bigint) returns uuid[] language sql stable
return (
	select coalesce(array_agg(p.worker_id order by p.worker_id), '{}') from distro.placements p
		where p.object_no = object and p.segment = of_segment
			and (select count(*) from distro.findings f where f.shard_id = p.shard_id) = 0
);

create function distro.segment_bytes(cells integer, cell_bytes integer, last_cell_bytes integer) returns bigint
language sql immutable parallel safe
return (cells - 1)::bigint * cell_bytes + last_cell_bytes;

-- What is there already, into slot 0.
alter table distro.segments add column set_id uuid;
alter table distro.objects add column spread_id uuid;
update distro.segments set set_id = distro.set_id(k, n, distro.good_workers(object_no, segment));
alter table distro.segments alter column set_id set not null;
create index segments_set on distro.segments (set_id, object_no, segment);
update distro.objects o set spread_id = distro.spread_id(found.sets)
	from (
		select object_no, array_agg(distinct set_id order by set_id) as sets from distro.segments group by object_no
	) found where o.object_no = found.object_no;
insert into distro.worker_sets (set_id, slot, k, n, workers, segments, bytes, objects, object_bytes)
	select counted.set_id, 0, s.k, s.n, distro.good_workers(s.object_no, s.segment), counted.segments, counted.bytes,
			coalesce(whole.objects, 0), coalesce(whole.bytes, 0)
		from (
			select set_id, count(*) as segments, sum(distro.segment_bytes(cells, cell_bytes, last_cell_bytes)) as bytes,
					min(object_no) as object_no
				from distro.segments group by set_id
		) counted
		cross join lateral (
			select * from distro.segments one
				where one.set_id = counted.set_id and one.object_no = counted.object_no order by one.segment limit 1
		) s
		left join (
			select spread_id, count(*) as objects, sum(size_bytes) as bytes from distro.objects group by spread_id
		) whole on whole.spread_id = counted.set_id;
insert into distro.spreads (spread_id, slot, sets, objects, object_bytes)
	select counted.spread_id, 0, found.sets, counted.objects, counted.bytes
		from (
			select spread_id, count(*) as objects, sum(size_bytes) as bytes, min(object_no) as object_no
				from distro.objects group by spread_id
		) counted
		cross join lateral (
			select array_agg(distinct set_id order by set_id) as sets from distro.segments where object_no = counted.object_no
		) found
		where cardinality(found.sets) > 1;

-- To a set that some slot has a row of. May be negative.
create function distro.add_to_set(known_set uuid, more_segments bigint, more_bytes bigint, more_objects bigint,
	more_object_bytes numeric) returns void language plpgsql as $$
declare
	counts_nothing boolean;
begin
	insert into distro.worker_sets as known (set_id, slot, k, n, workers, segments, bytes, objects, object_bytes)
		select w.set_id, distro.slot(), w.k, w.n, w.workers, more_segments, more_bytes, more_objects, more_object_bytes
			from distro.worker_sets w where w.set_id = known_set limit 1
		on conflict (set_id, slot) do update
			set segments = known.segments + excluded.segments, bytes = known.bytes + excluded.bytes,
				objects = known.objects + excluded.objects, object_bytes = known.object_bytes + excluded.object_bytes
		returning segments = 0 and bytes = 0 and objects = 0 and object_bytes = 0 into counts_nothing;
	if counts_nothing then delete from distro.worker_sets where set_id = known_set and slot = distro.slot(); end if;
end $$;

create function distro.enter_spread(given uuid, on_sets uuid[], size_bytes bigint) returns void language plpgsql as $$
begin
	if cardinality(on_sets) = 1 then
		perform distro.add_to_set(given, 0, 0, 1, size_bytes);
		return;
	end if;
	insert into distro.spreads as known (spread_id, slot, sets, objects, object_bytes)
		values (given, distro.slot(), on_sets, 1, size_bytes)
		on conflict (spread_id, slot) do update
			set objects = known.objects + excluded.objects, object_bytes = known.object_bytes + excluded.object_bytes;
end $$;

create function distro.leave_spread(given uuid, size_bytes bigint) returns void language plpgsql as $$
begin
	insert into distro.spreads as known (spread_id, slot, sets, objects, object_bytes)
		select s.spread_id, distro.slot(), s.sets, -1, -size_bytes from distro.spreads s where s.spread_id = given limit 1
		on conflict (spread_id, slot) do update
			set objects = known.objects + excluded.objects, object_bytes = known.object_bytes + excluded.object_bytes;
	if not found then
		perform distro.add_to_set(given, 0, 0, -1, -size_bytes);
		return;
	end if;
	delete from distro.spreads where spread_id = given and slot = distro.slot() and objects = 0 and object_bytes = 0;
end $$;

-- After placements or findings of an object's segments changed. The object is locked.
create function distro.move_segments(object bigint, touched bigint[]) returns void language plpgsql as $$
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

-- Rows may cancel each other in two slots: where one is not positive, those of another slot, which nobody uses just now, are
-- taken into this one. One slot at a time: whoever finds none free makes a new one.
create function distro.fold_counts() returns void language plpgsql as $$
declare
	mine constant integer := distro.slot();
	other integer;
begin
	select slot into other from distro.totals where slot <> mine order by random() limit 1 for update skip locked;
	if not found then return; end if;
	with taken as (
		delete from distro.worker_sets where slot = other
			and set_id in (select set_id from distro.worker_sets where segments <= 0)
			returning *
	)
	insert into distro.worker_sets as known (set_id, slot, k, n, workers, segments, bytes, objects, object_bytes)
		select set_id, mine, k, n, workers, segments, bytes, objects, object_bytes from taken
		on conflict (set_id, slot) do update
			set segments = known.segments + excluded.segments, bytes = known.bytes + excluded.bytes,
				objects = known.objects + excluded.objects, object_bytes = known.object_bytes + excluded.object_bytes;
	delete from distro.worker_sets
		where slot = mine and segments = 0 and bytes = 0 and objects = 0 and object_bytes = 0;
	with taken as (
		delete from distro.spreads where slot = other
			and spread_id in (select spread_id from distro.spreads where objects <= 0)
			returning *
	)
	insert into distro.spreads as known (spread_id, slot, sets, objects, object_bytes)
		select spread_id, mine, sets, objects, object_bytes from taken
		on conflict (spread_id, slot) do update
			set objects = known.objects + excluded.objects, object_bytes = known.object_bytes + excluded.object_bytes;
	delete from distro.spreads where slot = mine and objects = 0 and object_bytes = 0;
end $$;

-- What a commit of the release before lacks: the sets of its segments, and which segment is on which.
create function distro.with_sets(args jsonb) returns jsonb language sql stable
begin atomic
	with cut as (
		select s."index", s.k, s.n, coalesce(p.workers, '{}') as workers,
				distro.segment_bytes(s.cells, s."cellBytes", s."lastCellBytes") as bytes
			from jsonb_to_recordset(args->'segments') as s("index" bigint, k integer, n integer, cells integer,
					"cellBytes" integer, "lastCellBytes" integer)
				left join (
					select (p->>0)::bigint as segment, array_agg((p->>3)::uuid order by (p->>3)::uuid) as workers
						from jsonb_array_elements(args->'placements') p group by 1
				) p on p.segment = s."index"
	), sets as (
		select k, n, workers, count(*) as segments, sum(bytes) as bytes, row_number() over (order by k, n, workers) - 1 as place
			from cut group by k, n, workers
	)
	select args || jsonb_build_object(
		'sets', (
			select coalesce(jsonb_agg(jsonb_build_array(k, n, workers::text, segments, bytes) order by place), '[]') from sets
		),
		'segments', (
			select coalesce(jsonb_agg(given || jsonb_build_object('set', (
					select place from cut join sets using (k, n, workers) where cut."index" = (given->>'index')::bigint
				))), '[]') from jsonb_array_elements(args->'segments') given
		)
	);
end;

-- Null when it is stored now as it was given; the stored object when this upload was committed before.
-- placements: [[segment, index, shard, worker], …]; missing: [[segment, index, spares], …]; abandoned: [[shard, worker], …]
create or replace function distro.commit_upload(args jsonb) returns jsonb language plpgsql as $$
declare
	given constant jsonb := args->'object';
	upload constant uuid := given->>'uploadId';
	now_ms constant bigint := args->>'nowMs';
	known distro.objects;
	new_no bigint;
	placed bigint;
	of_set jsonb;
	-- In the order of args->'sets'.
	set_ids uuid[] := '{}';
	on_sets uuid[];
	on_spread uuid;
	whole integer;
	named_by_sets bigint := 0;
begin
	select * into known from distro.objects where upload_id = upload;
	if found then return distro.object_json(known); end if;
	-- The compare-and-set on which everything hangs: only one of commit and abort finds the row.
	delete from distro.intents where upload_id = upload;
	if not found then
		-- The same commit may have ended while this one waited.
		select * into known from distro.objects where upload_id = upload;
		if found then return distro.object_json(known); end if;
		if jsonb_array_length(args->'segments') > 0 then perform distro.refuse('not_open'); end if;
	end if;
	if args->'idempotency' <> 'null' then
		perform distro.finish_claim(args->'idempotency', upload, (given->>'objectId')::uuid, now_ms);
	end if;
	if not args ? 'sets' then args := distro.with_sets(args); end if;
	for at in 0 .. jsonb_array_length(args->'sets') - 1 loop
		of_set := args->'sets'->at;
		set_ids := set_ids || distro.set_id((of_set->>0)::integer, (of_set->>1)::integer, (of_set->>2)::uuid[]);
	end loop;
	on_sets := set_ids;
	if cardinality(on_sets) > 1 then on_sets := array(select set_id from unnest(on_sets) set_id order by set_id); end if;
	on_spread := distro.spread_id(on_sets);
	insert into distro.objects (object_id, version_id, upload_id, size_bytes, segments, created_at_ms, etag,
			key_generation, wrapped_key, manifest, inline, spread_id)
		values ((given->>'objectId')::uuid, (given->>'versionId')::uuid, upload, (given->>'sizeBytes')::bigint,
			(given->>'segments')::bigint, (given->>'createdAtMs')::bigint, given->>'etag',
			(given->>'keyGeneration')::bigint, decode(given->>'wrappedKey', 'base64'),
			decode(given->>'manifest', 'base64'), decode(given->>'inline', 'base64'), on_spread)
		on conflict do nothing returning object_no into new_no;
	if new_no is null then
		select * into known from distro.objects where upload_id = upload;
		if found then return distro.object_json(known); end if;
		perform distro.refuse('object_taken');
	end if;
	insert into distro.segments (object_no, segment, codec, k, n, cell_bytes, cells, last_cell_bytes, seal_id,
			encoding_id, end_record, roots, because, set_id)
		select new_no, s."index", s.codec, s.k, s.n, s."cellBytes", s.cells, s."lastCellBytes", s."sealId",
				s."encodingId", decode(s."endRecord", 'base64'), decode(s.roots, 'base64'), s.because,
				set_ids[s."set" + 1]
			from jsonb_to_recordset(args->'segments') as s("index" bigint, codec text, k integer, n integer,
				"cellBytes" integer, cells integer, "lastCellBytes" integer, "sealId" uuid, "encodingId" uuid,
				"endRecord" text, roots text, because text, "set" integer);
	whole := (cardinality(set_ids) = 1)::integer;
	for at in 1 .. cardinality(set_ids) loop
		of_set := args->'sets'->(at - 1);
		named_by_sets := named_by_sets + cardinality((of_set->>2)::uuid[]) * (of_set->>3)::bigint;
		insert into distro.worker_sets as counted (set_id, slot, k, n, workers, segments, bytes, objects, object_bytes)
			values (set_ids[at], distro.slot(), (of_set->>0)::integer, (of_set->>1)::integer, (of_set->>2)::uuid[],
				(of_set->>3)::bigint, (of_set->>4)::bigint, whole, whole * (given->>'sizeBytes')::bigint)
			on conflict (set_id, slot) do update
				set segments = counted.segments + excluded.segments, bytes = counted.bytes + excluded.bytes,
					objects = counted.objects + excluded.objects, object_bytes = counted.object_bytes + excluded.object_bytes;
	end loop;
	if cardinality(set_ids) > 1 then
		perform distro.enter_spread(on_spread, on_sets, (given->>'sizeBytes')::bigint);
	end if;
	insert into distro.placements (object_no, segment, shard_index, shard_id, worker_id)
		select new_no, (p->>0)::bigint, (p->>1)::integer, named.shard_id, named.worker_id
			from jsonb_array_elements(args->'placements') p join distro.intent_shards named
				on named.upload_id = upload and named.shard_id = (p->>2)::uuid and named.worker_id = (p->>3)::uuid;
	get diagnostics placed = row_count;
	if placed < jsonb_array_length(args->'placements') then
		perform distro.refuse('never_named', (
			select p->>2 from jsonb_array_elements(args->'placements') p where not exists (
				select from distro.intent_shards named
					where named.upload_id = upload and named.shard_id = (p->>2)::uuid and named.worker_id = (p->>3)::uuid
			) limit 1
		));
	end if;
	if placed <> named_by_sets then perform distro.refuse('wrong_sets'); end if;
	if args->'missing' <> '[]' then
		insert into distro.repairs (object_no, segment, shard_index, spares, attempts, due_at_ms)
			select new_no, (m->>0)::bigint, (m->>1)::integer, (m->>2)::integer, 0, now_ms
				from jsonb_array_elements(args->'missing') m;
	end if;
	perform distro.queue_deletion((a->>0)::uuid, (a->>1)::uuid, now_ms) from jsonb_array_elements(args->'abandoned') a;
	perform distro.discard_named(upload, now_ms);
	return null;
end $$;

create or replace function distro.expire_intents(args jsonb) returns jsonb language plpgsql as $$
declare
	now_ms constant bigint := args->>'nowMs';
	most constant integer := args->>'limit';
	expired uuid[];
begin
	select array_agg(upload_id) into expired from (
		select upload_id from distro.intents where expires_at_ms <= now_ms
			order by expires_at_ms, upload_id limit most for update skip locked
	) old;
	perform distro.abort_one(upload, now_ms) from unnest(expired) upload;
	delete from distro.idempotency where (owner, key) in (
		select owner, key from distro.idempotency where expires_at_ms <= now_ms
			order by expires_at_ms limit most for update skip locked
	);
	delete from distro.removals where removed_at < clock_timestamp() - interval '10 minutes';
	perform distro.fold_counts();
	return to_jsonb(coalesce(cardinality(expired), 0));
end $$;

create or replace function distro.delete_object(args jsonb) returns jsonb language plpgsql as $$
declare
	gone bigint;
	gone_spread uuid;
	gone_bytes bigint;
	part record;
begin
	-- Waits for findings and repairs of this object that are being written.
	select object_no, spread_id, size_bytes into gone, gone_spread, gone_bytes from distro.objects where object_id = (args->>'objectId')::uuid
		for update;
	if not found then
		return to_jsonb(exists (select from distro.removals where call_id = (args->>'callId')::uuid));
	end if;
	insert into distro.deletions (worker_id, shard_id, queued_at_ms)
		select worker_id, shard_id, (args->>'nowMs')::bigint from distro.placements where object_no = gone
			order by segment, shard_index
		on conflict do nothing;
	delete from distro.findings where object_no = gone;
	delete from distro.repairs where object_no = gone;
	delete from distro.placements where object_no = gone;
	for part in
		select set_id, count(*) as segments, sum(distro.segment_bytes(cells, cell_bytes, last_cell_bytes))::bigint as bytes,
				(set_id = gone_spread)::integer as whole
			from distro.segments where object_no = gone group by set_id
	loop
		perform distro.add_to_set(part.set_id, -part.segments, -part.bytes, -part.whole, -part.whole * gone_bytes);
		if part.whole = 1 then gone_spread := null; end if;
	end loop;
	if gone_spread is not null then perform distro.leave_spread(gone_spread, gone_bytes); end if;
	delete from distro.segments where object_no = gone;
	delete from distro.objects where object_no = gone;
	insert into distro.removals (call_id) values ((args->>'callId')::uuid);
	return 'true';
end $$;

-- findings: [[shard, worker, kind, detail, found at], …]
create or replace function distro.add_findings(args jsonb) returns jsonb language plpgsql as $$
declare
	found_shards constant uuid[] := array(select (f->>0)::uuid from jsonb_array_elements(args->'findings') f);
	finding jsonb;
	placed distro.placements;
begin
	perform from distro.objects where object_no in (
		select object_no from distro.placements where shard_id = any (found_shards)
	) order by object_no for no key update;
	for finding in select f from jsonb_array_elements(args->'findings') with ordinality as given(f, place) order by place loop
		select * into placed from distro.placements
			where shard_id = (finding->>0)::uuid and worker_id = (finding->>1)::uuid;
		continue when not found;
		insert into distro.findings (shard_id, object_no, worker_id, kind, detail, found_at_ms)
			values (placed.shard_id, placed.object_no, placed.worker_id, finding->>2, finding->>3, (finding->>4)::bigint)
			on conflict (shard_id) do update set object_no = excluded.object_no, worker_id = excluded.worker_id,
				kind = excluded.kind, detail = excluded.detail, found_at_ms = excluded.found_at_ms;
		insert into distro.repairs (object_no, segment, shard_index, spares, attempts, due_at_ms)
			values (placed.object_no, placed.segment, placed.shard_index, 0, 0, (finding->>4)::bigint) on conflict do nothing;
		if found then perform distro.count_spares(placed.object_no, placed.segment); end if;
	end loop;
	perform distro.move_segments(touched.object_no, touched.segments) from (
		select object_no, array_agg(distinct segment) as segments from distro.placements
			where shard_id = any (found_shards) group by object_no order by object_no
	) touched;
	return null;
end $$;

-- That the segment is gone, or another shard of it on that worker, is answered and not raised: that the new shard is to be
-- deleted must stay.
create or replace function distro.repair_done(args jsonb) returns jsonb language plpgsql as $$
declare
	item constant jsonb := args->'item';
	upload constant uuid := args->>'uploadId';
	new_shard constant uuid := args->>'shardId';
	new_worker constant uuid := args->>'workerId';
	now_ms constant bigint := args->>'nowMs';
	of_segment constant bigint := item->>'segment';
	of_index constant integer := item->>'shardIndex';
	object bigint;
	old distro.placements;
begin
	perform from distro.placements where shard_id = new_shard;
	if found then return null; end if;
	delete from distro.intents where upload_id = upload;
	if not found then
		-- The same call may have ended while this one waited.
		perform from distro.placements where shard_id = new_shard;
		if found then return null; end if;
		perform distro.refuse('not_open');
	end if;
	perform from distro.intent_shards where upload_id = upload and shard_id = new_shard and worker_id = new_worker;
	if not found then perform distro.refuse('never_named', distro.hex(new_shard)); end if;
	object := distro.encoded_as(item);
	if object is null then
		perform distro.discard_named(upload, now_ms);
		return '{"refused": "segment_gone"}';
	end if;
	perform from distro.placements
		where object_no = object and segment = of_segment and worker_id = new_worker and shard_index <> of_index;
	if found then
		perform distro.discard_named(upload, now_ms);
		return '{"refused": "worker_taken"}';
	end if;
	delete from distro.placements where object_no = object and segment = of_segment and shard_index = of_index
		returning * into old;
	if found then
		delete from distro.findings where shard_id = old.shard_id;
		perform distro.queue_deletion(old.shard_id, old.worker_id, now_ms);
	end if;
	insert into distro.placements (object_no, segment, shard_index, shard_id, worker_id)
		values (object, of_segment, of_index, new_shard, new_worker);
	delete from distro.repairs where object_no = object and segment = of_segment and shard_index = of_index;
	if found then perform distro.count_spares(object, of_segment); end if;
	perform distro.move_segments(object, array[of_segment]);
	perform distro.discard_named(upload, now_ms);
	return null;
end $$;

-- A page: all sets, and of the spreads those of objects on one set or none with the first page, the others by and by. after:
-- a spread or null. Each page is from one moment. Ids as '{…}' without dashes, and sums as text.
create function distro.read_redundancy(args jsonb) returns jsonb language sql stable
begin atomic
	with sets as materialized (
		select set_id, k, n, workers, sum(segments) as segments, sum(bytes) as bytes, sum(objects) as objects,
				sum(object_bytes) as object_bytes
			from distro.worker_sets group by set_id, k, n, workers
	), whole as (
		select array[set_id] as sets, objects, object_bytes as bytes from sets where objects > 0
	), next_mixed as materialized (
		-- An object of very many segments may be on very many sets.
		select *, sum(cardinality(sets)) over (order by spread_id) - cardinality(sets) as sets_before
			from (
				select spread_id, objects, bytes,
						(select s.sets from distro.spreads s where s.spread_id = counted.spread_id limit 1) as sets
					from (
						select spread_id, sum(objects) as objects, sum(object_bytes) as bytes from distro.spreads
							where spread_id > coalesce((args->>'after')::uuid, '00000000-0000-0000-0000-000000000000')
							group by spread_id having sum(objects) > 0 order by spread_id limit 5000
					) counted
			) page
	), mixed as (
		select * from next_mixed where sets_before < 50000
	), inline as (
		select total.objects - on_one.objects - on_many.objects as objects, total.bytes - on_one.bytes - on_many.bytes as bytes
			from (select sum(objects) as objects, sum(bytes) as bytes from distro.totals) total,
				(select coalesce(sum(objects), 0) as objects, coalesce(sum(bytes), 0) as bytes from whole) on_one,
				(
					select coalesce(sum(objects), 0) as objects, coalesce(sum(object_bytes), 0) as bytes from distro.spreads
				) on_many
	), page as (
		select sets, objects, bytes from mixed
		union all select sets, objects, bytes from whole where args->'after' = 'null'
		union all select '{}', objects, bytes from inline where args->'after' = 'null' and objects > 0
	)
	select jsonb_build_object(
		'sets', (
			select coalesce(jsonb_agg(jsonb_build_array(distro.hex(set_id), k, n, replace(workers::text, '-', ''),
					segments::text, bytes::text)), '[]') from sets where segments > 0
		),
		'spreads', (
			select coalesce(jsonb_agg(jsonb_build_array(replace(sets::text, '-', ''), objects::text, bytes::text)), '[]')
				from page
		),
		'next', (
			select case when (select count(*) from mixed) < count(*) or count(*) = 5000
				then (select spread_id from mixed order by spread_id desc limit 1) end from next_mixed
		)
	);
end;

create function distro.stored_segment(object bigint, of_segment bigint) returns jsonb language sql stable
return (
	select jsonb_build_object('place', jsonb_build_array(object, of_segment), 'objectId', distro.hex(o.object_id),
			'versionId', distro.hex(o.version_id), 'segment',
			distro.segments_json(object, jsonb_build_object('fromSegment', of_segment, 'limit', 1))->0)
		from distro.objects o where o.object_no = object
);

-- after: [object, segment] or null
create function distro.read_segments_on_set(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(distro.stored_segment(object_no, segment) order by object_no, segment), '[]')
		from (
			select object_no, segment from distro.segments
				where set_id = (args->>'setId')::uuid and (object_no, segment) >
					(coalesce((args->'after'->>0)::bigint, -1), coalesce((args->'after'->>1)::bigint, -1))
				order by object_no, segment limit (args->>'limit')::integer
		) page
);

-- The object that is near `at` by number, and of its segments the one near the rest of `at`.
create function distro.read_sample(args jsonb) returns jsonb language plpgsql stable as $$
declare
	of_set constant uuid := args->>'setId';
	at double precision := least(greatest((args->>'at')::double precision, 0), 1);
	lowest bigint;
	highest bigint;
	place double precision;
	object bigint;
	of_segment bigint;
begin
	select min(object_no), max(object_no) into lowest, highest from distro.segments where set_id = of_set;
	if lowest is null then return null; end if;
	place := at * (highest - lowest + 1);
	select object_no into object from distro.segments
		where set_id = of_set and object_no >= least(lowest + floor(place)::bigint, highest) order by object_no limit 1;
	at := place - floor(place);
	select min(segment), max(segment) into lowest, highest from distro.segments where set_id = of_set and object_no = object;
	select segment into of_segment from distro.segments
		where set_id = of_set and object_no = object and segment >= lowest + floor(at * (highest - lowest + 1))::bigint
		order by segment limit 1;
	return distro.stored_segment(object, of_segment);
end $$;

-- From object to object: one of thousands of segments is one step as well.
create function distro.read_objects_on_sets(args jsonb) returns jsonb language plpgsql stable as $$
declare
	most constant integer := args->>'limit';
	of_set uuid;
	object bigint;
	found_objects bigint[] := '{}';
begin
	for of_set in select s::uuid from jsonb_array_elements_text(args->'setIds') s loop
		object := -1;
		while cardinality(found_objects) < most loop
			select object_no into object from distro.segments
				where set_id = of_set and object_no > object order by object_no limit 1;
			exit when not found;
			if object <> all (found_objects) then found_objects := array_append(found_objects, object); end if;
		end loop;
	end loop;
	return (
		select coalesce(jsonb_agg(distro.hex(object_id)), '[]') from distro.objects where object_no = any (found_objects)
	);
end $$;

create or replace function distro.read_workers(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_object('workerId', distro.hex(worker_id), 'name', name, 'address', address,
			'zone', zone, 'receiptKey', encode(receipt_key, 'base64'), 'registeredAtMs', registered_at_ms::text,
			'lastSeenMs', last_seen_ms::text, 'bytesTotal', bytes_total::text, 'bytesUsed', bytes_used::text,
			'shards', shards::text, 'duty', duty, 'history', history) order by name collate "C"), '[]')
		from (
			select * from distro.workers where args->'after' = 'null' or name collate "C" > args->>'after'
				order by name collate "C" limit (args->>'limit')::integer
		) page
);

create function distro.set_duty(args jsonb) returns jsonb language plpgsql as $$
begin
	update distro.workers set duty = args->>'duty' where worker_id = (args->>'workerId')::uuid;
	return to_jsonb(found);
end $$;

create function distro.save_history(args jsonb) returns jsonb language plpgsql as $$
begin
	update distro.workers set history = args->>'history' where worker_id = (args->>'workerId')::uuid;
	return null;
end $$;

-- A placement is either good, so its worker is in the segment's set, or marked, so it is in the finding.
create function distro.forget_worker(args jsonb) returns jsonb language plpgsql as $$
declare
	id constant uuid := args->>'workerId';
	known_as text;
begin
	select name into known_as from distro.workers where worker_id = id for update;
	if not found then return distro.answer_once(false, (args->>'callId')::uuid); end if;
	if exists (select from distro.worker_sets where id = any (workers) group by set_id having sum(segments) > 0)
		or exists (select from distro.findings where worker_id = id)
		-- What becomes of it would be placed on nobody, or be deleted by nobody.
		or exists (select from distro.intent_shards where worker_id = id)
	then
		perform distro.refuse('still_placed', known_as);
	end if;
	delete from distro.deletions where worker_id = id;
	delete from distro.workers where worker_id = id;
	return distro.answer_once(true, (args->>'callId')::uuid);
end $$;

create function distro.read_jobs(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_object('name', name, 'paused', paused, 'runs', runs::text, 'state', state,
			'updatedAtMs', updated_at_ms::text) order by name collate "C"), '[]')
		from (
			select * from distro.jobs where args->'after' = 'null' or name collate "C" > args->>'after'
				order by name collate "C" limit (args->>'limit')::integer
		) page
);

create function distro.pause_job(args jsonb) returns jsonb language plpgsql as $$
begin
	insert into distro.jobs (name, paused, updated_at_ms)
		values (args->>'name', (args->>'paused')::boolean, (args->>'nowMs')::bigint)
		on conflict (name) do update set paused = excluded.paused, updated_at_ms = excluded.updated_at_ms;
	return null;
end $$;

-- A call that is repeated because its answer was lost counts once.
create function distro.request_run(args jsonb) returns jsonb language plpgsql as $$
begin
	insert into distro.removals (call_id) values ((args->>'callId')::uuid) on conflict do nothing;
	if not found then return null; end if;
	insert into distro.jobs as known (name, runs, updated_at_ms) values (args->>'name', 1, (args->>'nowMs')::bigint)
		on conflict (name) do update set runs = known.runs + 1, updated_at_ms = excluded.updated_at_ms;
	return null;
end $$;

create function distro.save_job_state(args jsonb) returns jsonb language plpgsql as $$
begin
	insert into distro.jobs (name, state, updated_at_ms) values (args->>'name', args->>'state', (args->>'nowMs')::bigint)
		on conflict (name) do update set state = excluded.state, updated_at_ms = excluded.updated_at_ms;
	return null;
end $$;

-- The object's number first: in the condition it would be asked for anew for every row of the queue.
create or replace function distro.defer_repair(args jsonb) returns jsonb language plpgsql as $$
declare
	item constant jsonb := args->'item';
	object bigint;
begin
	object := distro.encoded_as(item);
	update distro.repairs set attempts = (item->>'attempts')::integer + 1, due_at_ms = (args->>'dueAtMs')::bigint
		where object_no = object and segment = (item->>'segment')::bigint
			and shard_index = (item->>'shardIndex')::integer;
	return null;
end $$;

create or replace function distro.write_one(method text, args jsonb) returns jsonb language plpgsql as $$
begin
	return case method
		when 'begin' then distro.begin_upload(args)
		when 'commit' then distro.commit_upload(args)
		when 'extend' then distro.extend_upload(args)
		when 'renew' then distro.renew_upload(args)
		when 'abort' then distro.abort_upload(args)
		when 'claimIdempotency' then distro.claim_idempotency(args)
		when 'deleteObject' then distro.delete_object(args)
		when 'deletionsDone' then distro.deletions_done(args)
		when 'addFindings' then distro.add_findings(args)
		when 'deferRepair' then distro.defer_repair(args)
		when 'repairDone' then distro.repair_done(args)
		when 'saveWorker' then distro.save_worker(args)
		when 'sawWorkers' then distro.saw_workers(args)
		when 'renameWorker' then distro.rename_worker(args)
		when 'setDuty' then distro.set_duty(args)
		when 'saveHistory' then distro.save_history(args)
		when 'forgetWorker' then distro.forget_worker(args)
		when 'pauseJob' then distro.pause_job(args)
		when 'requestRun' then distro.request_run(args)
		when 'saveJobState' then distro.save_job_state(args)
		when 'expireIntents' then distro.expire_intents(args)
		when 'acquireLease' then distro.acquire_lease(args)
		when 'releaseLease' then distro.release_lease(args)
		when 'initCluster' then distro.init_cluster(args)
		when 'addApiKey' then distro.add_api_key(args)
		when 'removeApiKey' then distro.remove_api_key(args)
		else distro.no_such_call(method)
	end;
end $$;

create or replace function distro.read_one(method text, args jsonb) returns jsonb language plpgsql stable as $$
begin
	return case method
		when 'object' then distro.read_object(args)
		when 'objectWithSegments' then distro.read_object_with_segments(args)
		when 'segments' then distro.read_segments(args)
		when 'list' then distro.read_list(args)
		when 'deletions' then distro.read_deletions(args)
		when 'counts' then distro.read_counts(args)
		when 'findings' then distro.read_findings(args)
		when 'repairs' then distro.read_repairs(args)
		when 'workers' then distro.read_workers(args)
		when 'redundancyRows' then distro.read_redundancy(args)
		when 'segmentsOnSet' then distro.read_segments_on_set(args)
		when 'sampleSet' then distro.read_sample(args)
		when 'objectsOnSets' then distro.read_objects_on_sets(args)
		when 'jobs' then distro.read_jobs(args)
		when 'intents' then distro.read_intents(args)
		when 'apiKeys' then distro.read_api_keys(args)
		when 'clock' then distro.read_clock()
		else distro.no_such_call(method)
	end;
end $$;

create or replace function public.distro_schema() returns integer language sql stable set search_path = ''
return 8;

revoke all on all functions in schema distro from public, anon, authenticated;
grant execute on all functions in schema distro to service_role;
grant select, insert, update, delete on all tables in schema distro to service_role;

notify pgrst, 'reload schema';
