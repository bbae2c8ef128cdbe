-- From intent to object. Each function is one call's part of a batch (20261124000005_calls.sql): what it raises undoes it
-- alone. PT409 is for refusals, with a word that the caller knows; never 40001, which PostgREST repeats for ever.

create function distro.hex(id uuid) returns text language sql immutable parallel safe
return replace(id::text, '-', '');

create function distro.refuse(word text, about text default '') returns void language plpgsql as $$
begin
	raise exception using errcode = 'PT409', message = word, detail = about;
end $$;

create function distro.object_json(o distro.objects) returns jsonb language sql stable
return jsonb_build_object(
	'objectId', distro.hex(o.object_id), 'versionId', distro.hex(o.version_id), 'uploadId', distro.hex(o.upload_id),
	'sizeBytes', o.size_bytes::text, 'segments', o.segments::text, 'createdAtMs', o.created_at_ms::text, 'etag', o.etag,
	'keyGeneration', o.key_generation::text, 'wrappedKey', encode(o.wrapped_key, 'base64'),
	'manifest', encode(o.manifest, 'base64'), 'inline', encode(o.inline, 'base64')
);

-- shards: [[shard, worker], …]
create function distro.name_shards(upload uuid, shards jsonb) returns void language sql volatile
begin atomic
	insert into distro.intent_shards (upload_id, shard_id, worker_id)
		select upload, (s->>0)::uuid, (s->>1)::uuid from jsonb_array_elements(shards) s
		on conflict do nothing;
end;

-- What is placed stays, whatever the caller believes: the last guard of what was acknowledged.
create function distro.queue_deletion(shard uuid, worker uuid, now_ms bigint) returns void language sql volatile
begin atomic
	insert into distro.deletions (worker_id, shard_id, queued_at_ms)
		select worker, shard, now_ms where not exists (select from distro.placements where shard_id = shard)
		on conflict do nothing;
end;

create function distro.begin_upload(args jsonb) returns jsonb language plpgsql as $$
declare
	upload constant uuid := args->>'uploadId';
begin
	insert into distro.intents (upload_id, object_id, expires_at_ms)
		values (upload, (args->>'objectId')::uuid, (args->>'expiresAtMs')::bigint) on conflict do nothing;
	if not found then
		-- Repeated. It must not be closed while its shards are named.
		perform from distro.intents where upload_id = upload for share;
		if not found then perform distro.refuse('not_open'); end if;
	end if;
	-- After the insert: a commit that was under way has ended by now.
	perform from distro.objects where upload_id = upload;
	if found then perform distro.refuse('already_committed'); end if;
	perform distro.name_shards(upload, args->'shards');
	return null;
end $$;

create function distro.extend_upload(args jsonb) returns jsonb language plpgsql as $$
declare
	upload constant uuid := args->>'uploadId';
begin
	perform from distro.intents where upload_id = upload for share;
	if not found then perform distro.refuse('not_open'); end if;
	perform distro.name_shards(upload, args->'shards');
	return null;
end $$;

create function distro.renew_upload(args jsonb) returns jsonb language plpgsql as $$
declare
	upload constant uuid := args->>'uploadId';
	until_ms constant bigint := args->>'expiresAtMs';
begin
	update distro.intents set expires_at_ms = until_ms where upload_id = upload;
	if not found then perform distro.refuse('not_open'); end if;
	update distro.idempotency set expires_at_ms = greatest(expires_at_ms, until_ms)
		where upload_id = upload and object_id is null;
	return null;
end $$;

-- Whether a claim binds nobody any more. One without an intent belonged to a request that ended with its process, or
-- whose answer was lost: it is free after ten minutes.
create function distro.claim_is_free(claim distro.idempotency, now_ms bigint) returns boolean language sql stable
return claim.expires_at_ms <= now_ms or (
	claim.object_id is null and claim.claimed_at_ms <= now_ms - 600000
	and not exists (select from distro.intents where upload_id = claim.upload_id)
);

create function distro.claim_idempotency(args jsonb) returns jsonb language plpgsql as $$
declare
	now_ms constant bigint := args->>'nowMs';
	held distro.idempotency;
begin
	loop
		insert into distro.idempotency (owner, key, fingerprint, upload_id, claimed_at_ms, expires_at_ms)
			values (args->>'owner', args->>'key', args->>'fingerprint', (args->>'uploadId')::uuid, now_ms,
				(args->>'expiresAtMs')::bigint)
			on conflict do nothing;
		if found then return '{"state": "claimed"}'; end if;
		select * into held from distro.idempotency where owner = args->>'owner' and key = args->>'key' for update;
		-- Gone meanwhile: once more.
		exit when found;
	end loop;
	if distro.claim_is_free(held, now_ms) then
		update distro.idempotency set fingerprint = args->>'fingerprint', upload_id = (args->>'uploadId')::uuid,
				claimed_at_ms = now_ms, expires_at_ms = (args->>'expiresAtMs')::bigint, object_id = null
			where owner = held.owner and key = held.key;
		return '{"state": "claimed"}';
	end if;
	if held.fingerprint <> args->>'fingerprint' then return '{"state": "mismatch"}'; end if;
	if held.object_id is not null then
		return jsonb_build_object('state', 'done', 'objectId', distro.hex(held.object_id));
	end if;
	return jsonb_build_object('state', case when held.upload_id = (args->>'uploadId')::uuid then 'claimed' else 'running' end);
end $$;

create function distro.finish_claim(claim jsonb, by_upload uuid, by_object uuid, now_ms bigint) returns void
language plpgsql as $$
declare
	held distro.idempotency;
begin
	loop
		insert into distro.idempotency (owner, key, fingerprint, upload_id, claimed_at_ms, expires_at_ms, object_id)
			values (claim->>'owner', claim->>'key', claim->>'fingerprint', by_upload, now_ms,
				(claim->>'expiresAtMs')::bigint, by_object)
			on conflict do nothing;
		if found then return; end if;
		select * into held from distro.idempotency where owner = claim->>'owner' and key = claim->>'key' for update;
		exit when found;
	end loop;
	if held.upload_id <> by_upload and not distro.claim_is_free(held, now_ms) then
		perform distro.refuse('key_taken');
	end if;
	update distro.idempotency set fingerprint = claim->>'fingerprint', upload_id = by_upload,
			expires_at_ms = (claim->>'expiresAtMs')::bigint, object_id = by_object
		where owner = held.owner and key = held.key;
end $$;

-- Null when it is stored now as it was given; the stored object when this upload was committed before.
-- placements: [[segment, index, shard, worker], …]; missing: [[segment, index, spares], …]; abandoned: [[shard, worker], …]
create function distro.commit_upload(args jsonb) returns jsonb language plpgsql as $$
declare
	given constant jsonb := args->'object';
	upload constant uuid := given->>'uploadId';
	now_ms constant bigint := args->>'nowMs';
	known distro.objects;
	new_no bigint;
	placed bigint;
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

	insert into distro.objects (object_id, version_id, upload_id, size_bytes, segments, created_at_ms, etag,
			key_generation, wrapped_key, manifest, inline)
		values ((given->>'objectId')::uuid, (given->>'versionId')::uuid, upload, (given->>'sizeBytes')::bigint,
			(given->>'segments')::bigint, (given->>'createdAtMs')::bigint, given->>'etag',
			(given->>'keyGeneration')::bigint, decode(given->>'wrappedKey', 'base64'),
			decode(given->>'manifest', 'base64'), decode(given->>'inline', 'base64'))
		on conflict do nothing returning object_no into new_no;
	if new_no is null then
		select * into known from distro.objects where upload_id = upload;
		if found then return distro.object_json(known); end if;
		perform distro.refuse('object_taken');
	end if;
	insert into distro.segments (object_no, segment, codec, k, n, cell_bytes, cells, last_cell_bytes, seal_id,
			encoding_id, end_record, roots, because)
		select new_no, s."index", s.codec, s.k, s.n, s."cellBytes", s.cells, s."lastCellBytes", s."sealId",
				s."encodingId", decode(s."endRecord", 'base64'), decode(s.roots, 'base64'), s.because
			from jsonb_to_recordset(args->'segments') as s("index" bigint, codec text, k integer, n integer,
				"cellBytes" integer, cells integer, "lastCellBytes" integer, "sealId" uuid, "encodingId" uuid,
				"endRecord" text, roots text, because text);
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
	if args->'missing' <> '[]' then
		insert into distro.repairs (object_no, segment, shard_index, spares, attempts, due_at_ms)
			select new_no, (m->>0)::bigint, (m->>1)::integer, (m->>2)::integer, 0, now_ms
				from jsonb_array_elements(args->'missing') m;
	end if;
	perform distro.queue_deletion((a->>0)::uuid, (a->>1)::uuid, now_ms) from jsonb_array_elements(args->'abandoned') a;
	perform distro.discard_named(upload, now_ms);
	return null;
end $$;

-- Everything that an upload named is forgotten; what is not placed is to be deleted.
create function distro.discard_named(upload uuid, now_ms bigint) returns void language plpgsql as $$
declare
	named record;
begin
	for named in
		with gone as (delete from distro.intent_shards where upload_id = upload returning shard_id, worker_id)
		-- Counted one by one: as an anti-join it would be planned as a scan of all placements while there are few of them.
		select gone.shard_id, gone.worker_id from gone
			where (select count(*) from distro.placements p where p.shard_id = gone.shard_id) = 0
			order by gone.shard_id
	loop
		perform distro.queue_deletion(named.shard_id, named.worker_id, now_ms);
	end loop;
end $$;

create function distro.abort_one(upload uuid, now_ms bigint) returns void language plpgsql as $$
begin
	delete from distro.intents where upload_id = upload;
	if found then perform distro.discard_named(upload, now_ms); end if;
	delete from distro.idempotency where upload_id = upload and object_id is null;
end $$;

create function distro.abort_upload(args jsonb) returns jsonb language plpgsql as $$
begin
	perform distro.abort_one((args->>'uploadId')::uuid, (args->>'nowMs')::bigint);
	return null;
end $$;

create function distro.expire_intents(args jsonb) returns jsonb language plpgsql as $$
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
	return to_jsonb(coalesce(cardinality(expired), 0));
end $$;

create function distro.read_intents(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_object('uploadId', distro.hex(upload_id), 'objectId', distro.hex(object_id),
			'expiresAtMs', expires_at_ms::text) order by expires_at_ms, upload_id), '[]')
		from (
			select * from distro.intents
				where args->'after' = 'null'
					or (expires_at_ms, upload_id) > ((args->'after'->>0)::bigint, (args->'after'->>1)::uuid)
				order by expires_at_ms, upload_id limit (args->>'limit')::integer
		) page
);
