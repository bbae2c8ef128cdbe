-- What reconcile needs: the shards that a worker is known to have, in order of their ids; a way into the delete queue for what
-- nothing knows; and which workers were forgotten, with what they had.

create index placements_worker on distro.placements (worker_id, shard_id);
create index intent_shards_worker on distro.intent_shards (worker_id, shard_id);
create index deletions_shard on distro.deletions (worker_id, shard_id);

-- Whatever they had by then no placement and no write named: it is nobody's if they come back.
create table distro.forgotten_workers (
	worker_id uuid primary key,
	forgotten_at_ms bigint not null
);
alter table distro.forgotten_workers enable row level security;

-- [[shard, placed, intended, deleting], …]. Each source is cut to the page's length before they are merged.
create function distro.read_known_shards(args jsonb) returns jsonb language plpgsql stable as $$
declare
	worker constant uuid := args->>'workerId';
	from_id constant uuid := coalesce((args->>'after')::uuid, '00000000-0000-0000-0000-000000000000');
	most constant integer := args->>'limit';
begin
	return (
		select coalesce(jsonb_agg(jsonb_build_array(distro.hex(shard_id), placed, intended, deleting) order by shard_id), '[]')
			from (
				select shard_id, bool_or(source = 1) as placed, bool_or(source = 2) as intended, bool_or(source = 3) as deleting
					from (
						(select shard_id, 1 as source from distro.placements
							where worker_id = worker and shard_id > from_id order by shard_id limit most)
						union all
						(select shard_id, 2 from distro.intent_shards
							where worker_id = worker and shard_id > from_id order by shard_id limit most)
						union all
						(select shard_id, 3 from distro.deletions
							where worker_id = worker and shard_id > from_id order by shard_id limit most)
					) named
					group by shard_id order by shard_id limit most
			) page
	);
end $$;

-- How many of them are in the queue now: the same when it is said twice. One statement, so that a shard which is just being
-- placed is seen with its intent or with its placement.
create function distro.write_queue_unknown(args jsonb) returns jsonb language plpgsql as $$
declare
	worker constant uuid := args->>'workerId';
	ids constant uuid[] := array(select s::uuid from jsonb_array_elements_text(args->'shardIds') s);
begin
	insert into distro.deletions (worker_id, shard_id, queued_at_ms)
		select worker, id, (args->>'nowMs')::bigint from unnest(ids) id
			where (select count(*) from distro.placements p where p.shard_id = id) = 0
				and (select count(*) from distro.intent_shards s where s.worker_id = worker and s.shard_id = id) = 0
			order by id
		on conflict do nothing;
	return to_jsonb((select count(*)::integer from distro.deletions where worker_id = worker and shard_id = any (ids)));
end $$;

create function distro.read_forgotten_at(args jsonb) returns jsonb language sql stable
return (select to_jsonb(forgotten_at_ms::text) from distro.forgotten_workers where worker_id = (args->>'workerId')::uuid);

-- Nobody may name a shard on a worker that was forgotten: it would be placed on nobody, or be deleted by nobody. After the
-- shards were named: whoever forgets a worker has by then waited for this write, or this one for them.
create function distro.check_not_forgotten(shards jsonb) returns void language plpgsql as $$
begin
	perform from distro.forgotten_workers f
		where f.worker_id in (select (s->>1)::uuid from jsonb_array_elements(shards) s)
			and not exists (select from distro.workers w where w.worker_id = f.worker_id);
	if found then perform distro.refuse('worker_forgotten'); end if;
end $$;

create function distro.write_begin(args jsonb) returns jsonb language plpgsql as $$
begin
	perform distro.begin_upload(args);
	perform distro.check_not_forgotten(args->'shards');
	return null;
end $$;

create function distro.write_extend(args jsonb) returns jsonb language plpgsql as $$
begin
	perform distro.extend_upload(args);
	perform distro.check_not_forgotten(args->'shards');
	return null;
end $$;

create function distro.write_forget_worker(args jsonb) returns jsonb language plpgsql as $$
declare
	id constant uuid := args->>'workerId';
	known_as text;
begin
	select name into known_as from distro.workers where worker_id = id for update;
	if not found then return distro.answer_once(false, (args->>'callId')::uuid); end if;
	-- Shards are being named: what those writes name is seen below, and those that come later see that the worker is gone.
	lock table distro.intent_shards in share mode;
	if exists (select from distro.placements where worker_id = id)
		or exists (select from distro.intent_shards where worker_id = id)
	then
		perform distro.refuse('still_placed', known_as);
	end if;
	delete from distro.deletions where worker_id = id;
	delete from distro.workers where worker_id = id;
	-- Orchestrators of the release before don't say when.
	insert into distro.forgotten_workers (worker_id, forgotten_at_ms)
		values (id, coalesce((args->>'nowMs')::bigint, (extract(epoch from clock_timestamp()) * 1000)::bigint))
		on conflict (worker_id) do update set forgotten_at_ms = excluded.forgotten_at_ms;
	return distro.answer_once(true, (args->>'callId')::uuid);
end $$;

-- Answers which of the shards are placed there.
create function distro.write_add_findings(args jsonb) returns jsonb language plpgsql as $$
begin
	perform distro.add_findings(args);
	return (
		select coalesce(jsonb_agg(distro.hex(p.shard_id) order by f.place), '[]')
			from jsonb_array_elements(args->'findings') with ordinality as f(given, place)
				join distro.placements p on p.shard_id = (f.given->>0)::uuid and p.worker_id = (f.given->>1)::uuid
	);
end $$;

create or replace function public.distro_schema() returns integer language sql stable set search_path = ''
return 11;

revoke all on all functions in schema distro from public, anon, authenticated;
grant execute on all functions in schema distro to service_role;
grant select, insert, update, delete on all tables in schema distro to service_role;

notify pgrst, 'reload schema';
