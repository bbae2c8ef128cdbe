-- What the REST interface shows: one function for changes, one for reads, each taking many calls in one transaction, and
-- one that tells the schema's number. For the service role only.
--
-- A batch never fails as a whole: each call has a sub-transaction of its own and an answer of its own. The caller sorts
-- calls by key, so that two batches that want the same rows wait for each other in the same order. The time limits are
-- shorter than the caller's, so that nothing goes on here that it has given up.

create function distro.no_such_call(method text) returns jsonb language plpgsql as $$
begin
	perform distro.refuse('no_such_call', method);
end $$;

create function distro.write_one(method text, args jsonb) returns jsonb language plpgsql as $$
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
		when 'expireIntents' then distro.expire_intents(args)
		when 'acquireLease' then distro.acquire_lease(args)
		when 'releaseLease' then distro.release_lease(args)
		when 'initCluster' then distro.init_cluster(args)
		else distro.no_such_call(method)
	end;
end $$;

create function distro.read_one(method text, args jsonb) returns jsonb language plpgsql stable as $$
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
		else distro.no_such_call(method)
	end;
end $$;

-- A row of the counts that no other transaction has, for as long as this one lasts.
create function distro.take_slot() returns void language plpgsql as $$
declare
	mine integer;
begin
	select slot into mine from distro.totals where slot > 0 order by slot limit 1 for update skip locked;
	if not found then insert into distro.totals default values returning slot into mine; end if;
	perform set_config('distro.slot', mine::text, true);
end $$;

-- calls: [{"method", "args", "fence"?}, …]; answers: [{"ok": …} | {"error": {"code", "message", "detail"}}, …] in that order.
create function public.distro_write(calls jsonb) returns jsonb language plpgsql
set search_path = '' set lock_timeout = '400ms' set statement_timeout = '4s' as $$
declare
	call jsonb;
	answers jsonb[] := '{}';
	about text;
begin
	perform distro.take_slot();
	for call in select c from jsonb_array_elements(calls) with ordinality as given(c, place) order by place loop
		begin
			if call ? 'fence' then perform distro.check_fence(call->'fence'); end if;
			answers := array_append(answers, jsonb_build_object('ok', distro.write_one(call->>'method', call->'args')));
		exception when others then
			get stacked diagnostics about = pg_exception_detail;
			answers := array_append(answers, jsonb_build_object('error',
				jsonb_build_object('code', sqlstate, 'message', sqlerrm, 'detail', about)));
			-- Others hold what this batch wants, and wait for what it holds: the rest must not wait as long again. The
			-- caller sends whatever was given up alone.
			if sqlstate in ('55P03', '40P01') then perform set_config('lock_timeout', '20ms', true); end if;
		end;
	end loop;
	return to_jsonb(answers);
end $$;

-- For what takes longer: an object of very many segments.
create function public.distro_write_long(calls jsonb) returns jsonb language plpgsql
set search_path = '' set statement_timeout = '110s' as $$
begin
	return public.distro_write(calls);
end $$;

create function public.distro_read(calls jsonb) returns jsonb language plpgsql stable
set search_path = '' set statement_timeout = '2s' as $$
declare
	call jsonb;
	answers jsonb[] := '{}';
	about text;
begin
	for call in select c from jsonb_array_elements(calls) with ordinality as given(c, place) order by place loop
		begin
			answers := array_append(answers, jsonb_build_object('ok', distro.read_one(call->>'method', call->'args')));
		exception when others then
			get stacked diagnostics about = pg_exception_detail;
			answers := array_append(answers, jsonb_build_object('error',
				jsonb_build_object('code', sqlstate, 'message', sqlerrm, 'detail', about)));
		end;
	end loop;
	return to_jsonb(answers);
end $$;

-- The number of this schema. Every migration raises it. Not immutable: its value would be folded into a cached plan, which
-- PostgREST then runs for other roles without asking whether they may.
create function public.distro_schema() returns integer language sql stable set search_path = ''
return 1;

-- Supabase's default privileges open every new function in public to everyone.
revoke all on all functions in schema distro from public, anon, authenticated;
revoke all on function public.distro_write(jsonb), public.distro_write_long(jsonb), public.distro_read(jsonb),
	public.distro_schema() from public, anon, authenticated;
grant execute on function public.distro_write(jsonb), public.distro_write_long(jsonb), public.distro_read(jsonb),
	public.distro_schema() to service_role;
grant usage on schema distro to service_role;
grant execute on all functions in schema distro to service_role;
grant select, insert, update, delete on all tables in schema distro to service_role;
grant usage on all sequences in schema distro to service_role;

-- PostgREST reads its picture of the database again.
notify pgrst, 'reload schema';
