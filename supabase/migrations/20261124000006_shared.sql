-- What several orchestrators need of one another: whom each of them hears, names of workers that nobody hears, API keys, and
-- one clock.

-- seen: [{"workerId", "lastSeenMs", "bytesTotal", "bytesUsed", "shards"}, …]. Whoever is being written by another just now
-- is seen by that one.
create function distro.saw_workers(args jsonb) returns jsonb language plpgsql as $$
begin
	update distro.workers known set last_seen_ms = seen."lastSeenMs", bytes_total = seen."bytesTotal",
			bytes_used = seen."bytesUsed", shards = seen.shards
		from jsonb_to_recordset(args->'seen') as seen("workerId" uuid, "lastSeenMs" bigint, "bytesTotal" bigint,
				"bytesUsed" bigint, shards bigint)
		where known.worker_id = seen."workerId" and known.worker_id in (
			select worker_id from distro.workers
				where worker_id in (select (s->>'workerId')::uuid from jsonb_array_elements(args->'seen') s)
				for no key update skip locked
		);
	return null;
end $$;

create function distro.rename_worker(args jsonb) returns jsonb language plpgsql as $$
declare
	id constant uuid := args->>'workerId';
begin
	update distro.workers set name = args->>'name'
		where worker_id = id and last_seen_ms = (args->>'lastSeenMs')::bigint;
	return to_jsonb(exists (select from distro.workers where worker_id = id and name = args->>'name'));
exception when unique_violation then
	perform distro.refuse('name_taken');
end $$;

-- Secrets are kept as their SHA-256 only.
create table distro.api_keys (
	key_id text primary key,
	secret_hash bytea not null,
	scope text not null check (scope in ('read', 'write', 'admin')),
	label text not null,
	created_at_ms bigint not null
);
alter table distro.api_keys enable row level security;

-- Repeated after a lost answer both say the same as before: the caller's number of the call is kept for a while.
create function distro.add_api_key(args jsonb) returns jsonb language plpgsql as $$
begin
	insert into distro.api_keys (key_id, secret_hash, scope, label, created_at_ms)
		values (args->>'keyId', decode(args->>'secretHash', 'base64'), args->>'scope', args->>'label',
			(args->>'createdAtMs')::bigint)
		on conflict do nothing;
	return distro.answer_once(found, (args->>'callId')::uuid);
end $$;

create function distro.remove_api_key(args jsonb) returns jsonb language plpgsql as $$
begin
	delete from distro.api_keys where key_id = args->>'keyId';
	return distro.answer_once(found, (args->>'callId')::uuid);
end $$;

create function distro.answer_once(done boolean, call uuid) returns jsonb language plpgsql as $$
begin
	if done then
		insert into distro.removals (call_id) values (call);
		return 'true';
	end if;
	return to_jsonb(exists (select from distro.removals where call_id = call));
end $$;

create function distro.read_api_keys(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_object('keyId', key_id, 'secretHash', encode(secret_hash, 'base64'),
			'scope', scope, 'label', label, 'createdAtMs', created_at_ms::text) order by created_at_ms, key_id collate "C"), '[]')
		from distro.api_keys
);

create function distro.read_clock() returns jsonb language sql volatile
return to_jsonb((extract(epoch from clock_timestamp()) * 1000)::bigint);

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
		when 'intents' then distro.read_intents(args)
		when 'apiKeys' then distro.read_api_keys(args)
		when 'clock' then distro.read_clock()
		else distro.no_such_call(method)
	end;
end $$;

create or replace function public.distro_schema() returns integer language sql stable set search_path = ''
return 6;

revoke all on all functions in schema distro from public, anon, authenticated;
grant execute on all functions in schema distro to service_role;
grant select, insert, update, delete on distro.api_keys to service_role;

notify pgrst, 'reload schema';
