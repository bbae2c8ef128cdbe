-- Objects, segments, the delete queue, workers and the cluster's own row. What may pass 2^53 or is counted in 64 bits goes
-- out as text: JSON numbers lose bits.

create function distro.init_cluster(args jsonb) returns jsonb language plpgsql as $$
begin
	insert into distro.cluster (cluster_id, created_at_ms)
		values ((args->>'clusterId')::uuid, (args->>'createdAtMs')::bigint) on conflict do nothing;
	if found then
		insert into distro.cluster_keys (generation, master_key_id, wrapped)
			select (key->>'generation')::bigint, key->>'masterKeyId', decode(key->>'wrapped', 'base64')
				from jsonb_array_elements(args->'keys') key;
	end if;
	return (
		select jsonb_build_object('clusterId', distro.hex(cluster_id), 'createdAtMs', created_at_ms::text, 'keys', (
			select coalesce(jsonb_agg(jsonb_build_object('generation', generation::text, 'masterKeyId', master_key_id,
				'wrapped', encode(wrapped, 'base64')) order by generation), '[]') from distro.cluster_keys
		)) from distro.cluster
	);
end $$;

create function distro.segments_json(object bigint, args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_object(
			'index', s.segment::text, 'codec', s.codec, 'k', s.k, 'n', s.n, 'cellBytes', s.cell_bytes, 'cells', s.cells,
			'lastCellBytes', s.last_cell_bytes, 'sealId', distro.hex(s.seal_id), 'encodingId', distro.hex(s.encoding_id),
			'endRecord', encode(s.end_record, 'base64'), 'roots', encode(s.roots, 'base64'), 'because', s.because,
			'placements', (
				select coalesce(jsonb_agg(jsonb_build_array(p.shard_index, distro.hex(p.worker_id), distro.hex(p.shard_id))
						order by p.shard_index), '[]')
					from distro.placements p where p.object_no = s.object_no and p.segment = s.segment
			)) order by s.segment), '[]')
		from distro.segments s
		where s.object_no = object and s.segment >= (args->>'fromSegment')::bigint
			and s.segment < (args->>'fromSegment')::bigint + (args->>'limit')::bigint
);

create function distro.read_object(args jsonb) returns jsonb language sql stable
return (select distro.object_json(o) from distro.objects o where o.object_id = (args->>'objectId')::uuid);

create function distro.read_object_with_segments(args jsonb) returns jsonb language sql stable
return (
	select jsonb_build_object('object', distro.object_json(o), 'segments', distro.segments_json(o.object_no, args))
		from distro.objects o where o.object_id = (args->>'objectId')::uuid
);

create function distro.read_segments(args jsonb) returns jsonb language sql stable
return coalesce((
	select distro.segments_json(o.object_no, args) from distro.objects o where o.version_id = (args->>'versionId')::uuid
), '[]');

-- after: [created at, object id] or null. Two queries: with one the index would not be used.
create function distro.read_list(args jsonb) returns jsonb language plpgsql stable as $$
declare
	most constant integer := args->>'limit';
begin
	if args->'after' = 'null' then
		return (
			select coalesce(jsonb_agg(distro.object_json(o)), '[]') from (
				select o from distro.objects o order by created_at_ms desc, object_id desc limit most
			) page
		);
	end if;
	return (
		select coalesce(jsonb_agg(distro.object_json(o)), '[]') from (
			select o from distro.objects o
				where (created_at_ms, object_id) < ((args->'after'->>0)::bigint, (args->'after'->>1)::uuid)
				order by created_at_ms desc, object_id desc limit most
		) page
	);
end $$;

create function distro.delete_object(args jsonb) returns jsonb language plpgsql as $$
declare
	gone bigint;
begin
	-- Waits for findings and repairs of this object that are being written.
	select object_no into gone from distro.objects where object_id = (args->>'objectId')::uuid for update;
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
	delete from distro.segments where object_no = gone;
	delete from distro.objects where object_no = gone;
	insert into distro.removals (call_id) values ((args->>'callId')::uuid);
	return 'true';
end $$;

create function distro.read_deletions(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_array(item_no::text, distro.hex(shard_id)) order by item_no), '[]')
		from (
			select item_no, shard_id from distro.deletions
				where worker_id = (args->>'workerId')::uuid and item_no > coalesce((args->>'after')::bigint, -1)
				order by item_no limit (args->>'limit')::integer
		) page
);

create function distro.deletions_done(args jsonb) returns jsonb language plpgsql as $$
begin
	delete from distro.deletions
		where worker_id = (args->>'workerId')::uuid
			and shard_id = any (array(select shard::uuid from jsonb_array_elements_text(args->'shardIds') shard));
	return null;
end $$;

-- The sum of sizes may pass 2^53: a figure for people, so rounding is fine.
create function distro.read_counts(args jsonb) returns jsonb language sql stable
return (
	select jsonb_build_object('objects', sum(objects)::text, 'bytes', sum(bytes)::text, 'deletions', sum(deletions)::text,
			'repairs', sum(repairs)::text, 'intents', (select count(*) from distro.intents)::text)
		from distro.totals
);

create function distro.save_worker(args jsonb) returns jsonb language plpgsql as $$
declare
	id constant uuid := args->>'workerId';
	receipts constant bytea := decode(args->>'receiptKey', 'base64');
begin
	insert into distro.workers as known (worker_id, name, address, zone, receipt_key, registered_at_ms, last_seen_ms,
			bytes_total, bytes_used, shards)
		values (id, args->>'name', args->>'address', args->>'zone', receipts, (args->>'registeredAtMs')::bigint,
			(args->>'lastSeenMs')::bigint, (args->>'bytesTotal')::bigint, (args->>'bytesUsed')::bigint,
			(args->>'shards')::bigint)
		on conflict (worker_id) do update set name = excluded.name, address = excluded.address, zone = excluded.zone,
				last_seen_ms = excluded.last_seen_ms, bytes_total = excluded.bytes_total,
				bytes_used = excluded.bytes_used, shards = excluded.shards
			where known.receipt_key = excluded.receipt_key;
	if not found then perform distro.refuse('other_receipt_key'); end if;
	return null;
exception when unique_violation then
	perform from distro.workers where worker_id = id and receipt_key <> receipts;
	if found then perform distro.refuse('other_receipt_key'); end if;
	perform distro.refuse('name_taken');
end $$;

create function distro.read_workers(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_object('workerId', distro.hex(worker_id), 'name', name, 'address', address,
			'zone', zone, 'receiptKey', encode(receipt_key, 'base64'), 'registeredAtMs', registered_at_ms::text,
			'lastSeenMs', last_seen_ms::text, 'bytesTotal', bytes_total::text, 'bytesUsed', bytes_used::text,
			'shards', shards::text) order by name collate "C"), '[]')
		from (
			select * from distro.workers where args->'after' = 'null' or name collate "C" > args->>'after'
				order by name collate "C" limit (args->>'limit')::integer
		) page
);
