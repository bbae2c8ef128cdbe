-- Findings and the repair queue, and leases. Every shard index that is missing or marked has exactly one queue item, so a
-- segment's spare shards are m minus its items; each item carries that number, and the queue's order is an index. Whoever
-- changes an object's items locks the object, or two of them would count past each other.

create function distro.count_spares(object bigint, of_segment bigint) returns void language sql volatile
begin atomic
	update distro.repairs set spares =
			(select n - k from distro.segments where object_no = object and segment = of_segment) -
			(select count(*) from distro.repairs where object_no = object and segment = of_segment)
		where object_no = object and segment = of_segment;
end;

-- findings: [[shard, worker, kind, detail, found at], …]
create function distro.add_findings(args jsonb) returns jsonb language plpgsql as $$
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
	return null;
end $$;

create function distro.read_findings(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_object('shardId', distro.hex(shard_id), 'workerId', distro.hex(worker_id),
			'kind', kind, 'detail', detail, 'foundAtMs', found_at_ms::text) order by shard_id), '[]')
		from (
			select f.* from distro.findings f join distro.objects o using (object_no)
				where o.version_id = (args->>'versionId')::uuid
					and (args->'after' = 'null' or f.shard_id > (args->>'after')::uuid)
				order by f.shard_id limit (args->>'limit')::integer
		) page
);

-- after: [spares, item] or null
create function distro.read_repairs(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_object('place', jsonb_build_array(spares, item_no::text),
			'objectId', distro.hex(object_id), 'versionId', distro.hex(version_id), 'segment', segment::text,
			'encodingId', distro.hex(encoding_id), 'shardIndex', shard_index, 'attempts', attempts,
			'dueAtMs', due_at_ms::text) order by spares, item_no), '[]')
		from (
			select r.spares, r.item_no, o.object_id, o.version_id, r.segment, s.encoding_id, r.shard_index, r.attempts,
					r.due_at_ms
				from distro.repairs r
					join distro.objects o using (object_no)
					join distro.segments s using (object_no, segment)
				where r.due_at_ms <= (args->>'nowMs')::bigint
					and (r.spares, r.item_no) > (coalesce((args->'after'->>0)::integer, -2147483648),
						coalesce((args->'after'->>1)::bigint, -1))
				order by r.spares, r.item_no limit (args->>'limit')::integer
		) page
);

-- The object's number, while the segment still has the encoding that the item was queued for; the object is locked.
create function distro.encoded_as(item jsonb) returns bigint language plpgsql as $$
declare
	locked bigint;
begin
	select object_no into locked from distro.objects
		where object_id = (item->>'objectId')::uuid and version_id = (item->>'versionId')::uuid for no key update;
	return (
		select object_no from distro.segments where object_no = locked and segment = (item->>'segment')::bigint
			and encoding_id = (item->>'encodingId')::uuid
	);
end $$;

create function distro.defer_repair(args jsonb) returns jsonb language plpgsql as $$
declare
	item constant jsonb := args->'item';
begin
	update distro.repairs set attempts = (item->>'attempts')::integer + 1, due_at_ms = (args->>'dueAtMs')::bigint
		where object_no = distro.encoded_as(item) and segment = (item->>'segment')::bigint
			and shard_index = (item->>'shardIndex')::integer;
	return null;
end $$;

-- That the segment is gone is answered and not raised: that the new shard is to be deleted must stay.
create function distro.repair_done(args jsonb) returns jsonb language plpgsql as $$
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
	perform distro.discard_named(upload, now_ms);
	return null;
end $$;

-- Null while another holder has it. Its own holder keeps its number; everyone else gets a higher one.
create function distro.acquire_lease(args jsonb) returns jsonb language sql volatile
begin atomic
	insert into distro.leases as lease (name, holder, fencing, expires_at)
		values (args->>'name', args->>'holder', 1, clock_timestamp() + (args->>'ttlMs')::bigint * interval '1 ms')
		on conflict (name) do update set
				fencing = lease.fencing + case
					when lease.holder = excluded.holder and lease.expires_at > clock_timestamp() then 0 else 1 end,
				holder = excluded.holder,
				expires_at = clock_timestamp() + (args->>'ttlMs')::bigint * interval '1 ms'
			where lease.holder = excluded.holder or lease.expires_at <= clock_timestamp()
		returning to_jsonb(lease.fencing::text);
end;

create function distro.release_lease(args jsonb) returns jsonb language plpgsql as $$
begin
	update distro.leases set expires_at = '-infinity'
		where name = args->>'name' and fencing = (args->>'fencing')::bigint;
	return null;
end $$;

-- Holds the lease as it is until the transaction ends: nobody else can take it between this check and the write.
create function distro.check_fence(fence jsonb) returns void language plpgsql as $$
begin
	perform from distro.leases
		where name = fence->>'name' and fencing = (fence->>'fencing')::bigint and expires_at > clock_timestamp() for share;
	if not found then perform distro.refuse('lease_lost', fence->>'name'); end if;
end $$;
