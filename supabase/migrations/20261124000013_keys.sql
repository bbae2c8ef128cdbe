-- Rotation of keys: a revision of the wrapped cluster keys, which volume has which revision, and by which generation the data
-- key in each shard's trailer is wrapped. A trailer can't be rewritten: while a placement has one of a generation, that stays.

alter table distro.cluster add column revision bigint not null default 1;
-- unused_since_ms: by this database's clock, since when no object and no placement needs it; null while one does.
alter table distro.cluster_keys add column created_at_ms bigint, add column unused_since_ms bigint;
update distro.cluster_keys set created_at_ms = (select created_at_ms from distro.cluster);
alter table distro.cluster_keys alter column created_at_ms set not null;

create function distro.now_ms() returns bigint language sql volatile
return (extract(epoch from clock_timestamp()) * 1000)::bigint;

-- The revision that a worker's volume was last seen to have.
create table distro.keys_on_volumes (
	worker_id uuid primary key references distro.workers on delete cascade,
	revision bigint not null
);
alter table distro.keys_on_volumes enable row level security;

alter table distro.intents add column began_at_ms bigint not null default distro.now_ms();

-- Until now there was one generation.
alter table distro.placements add column key_generation bigint not null default 1;
alter table distro.placements alter column key_generation drop default;
create index placements_generation on distro.placements (key_generation, object_no, segment, shard_index);
create index objects_generation on distro.objects (key_generation);

-- A trailer has the data key as its object had it when the shard was made: at a commit that is the object's own, and a shard
-- that was made later says so by a setting (distro.with_generation).
create function distro.trailer_generation() returns trigger language plpgsql as $$
begin
	if new.key_generation is null then
		new.key_generation := nullif(current_setting('distro.key_generation', true), '')::bigint;
	end if;
	if new.key_generation is null then
		select key_generation into new.key_generation from distro.objects where object_no = new.object_no;
	end if;
	return new;
end $$;
create trigger trailer_generation before insert on distro.placements
	for each row execute function distro.trailer_generation();

-- Nothing new needs a generation that was dropped. Holds the generation as it is until the transaction ends.
create function distro.check_generation(given bigint) returns void language plpgsql as $$
begin
	perform from distro.cluster_keys where generation = given for key share;
	if not found and exists (select from distro.cluster_keys where generation > given) then
		perform distro.refuse('generation_dropped', given::text);
	end if;
end $$;
create function distro.object_generation() returns trigger language plpgsql as $$
begin
	perform distro.check_generation(new.key_generation);
	return new;
end $$;
create trigger object_generation before insert on distro.objects
	for each row execute function distro.object_generation();

create function distro.write_repair_done(args jsonb) returns jsonb language plpgsql as $$
declare
	answer jsonb;
begin
	perform distro.check_generation((args->>'keyGeneration')::bigint);
	perform set_config('distro.key_generation', args->>'keyGeneration', true);
	answer := distro.repair_done(args);
	perform set_config('distro.key_generation', '', true);
	return answer;
end $$;

-- And whoever cut a segment anew.
alter function distro.write_reencoded(jsonb) rename to reencoded;
create function distro.write_reencoded(args jsonb) returns jsonb language plpgsql as $$
declare
	answer jsonb;
begin
	perform distro.check_generation((args->>'keyGeneration')::bigint);
	perform set_config('distro.key_generation', args->>'keyGeneration', true);
	answer := distro.reencoded(args);
	perform set_config('distro.key_generation', '', true);
	return answer;
end $$;

create function distro.cluster_json() returns jsonb language sql stable
return (
	select jsonb_build_object('clusterId', distro.hex(cluster_id), 'createdAtMs', created_at_ms::text,
			'revision', revision::text, 'keys', (
			select coalesce(jsonb_agg(jsonb_build_object('generation', generation::text, 'createdAtMs', created_at_ms::text,
				'masterKeyId', master_key_id, 'wrapped', encode(wrapped, 'base64')) order by generation), '[]')
				from distro.cluster_keys
		)) from distro.cluster
);

create or replace function distro.init_cluster(args jsonb) returns jsonb language plpgsql as $$
begin
	insert into distro.cluster (cluster_id, created_at_ms, revision)
		values ((args->>'clusterId')::uuid, (args->>'createdAtMs')::bigint, coalesce((args->>'revision')::bigint, 1))
		on conflict do nothing;
	if found then
		insert into distro.cluster_keys (generation, created_at_ms, master_key_id, wrapped)
			select (key->>'generation')::bigint, coalesce(key->>'createdAtMs', args->>'createdAtMs')::bigint,
					key->>'masterKeyId', decode(key->>'wrapped', 'base64')
				from jsonb_array_elements(args->'keys') key;
	end if;
	return distro.cluster_json();
end $$;

create function distro.read_cluster(args jsonb) returns jsonb language sql stable
return distro.cluster_json();

-- Locks the cluster's row at that revision, and raises it.
create function distro.raise_revision(expected bigint) returns void language plpgsql as $$
begin
	update distro.cluster set revision = revision + 1 where revision = expected;
	if not found then perform distro.refuse('keys_changed'); end if;
end $$;

-- keys: [{generation, createdAtMs, masterKeyId, wrapped}, …]: wrapped anew, or new.
create function distro.write_change_cluster_keys(args jsonb) returns jsonb language plpgsql as $$
begin
	perform distro.raise_revision((args->>'revision')::bigint);
	insert into distro.cluster_keys (generation, created_at_ms, master_key_id, wrapped)
		select (key->>'generation')::bigint, (key->>'createdAtMs')::bigint, key->>'masterKeyId',
				decode(key->>'wrapped', 'base64')
			from jsonb_array_elements(args->'keys') key
		on conflict (generation) do update set master_key_id = excluded.master_key_id, wrapped = excluded.wrapped;
	return distro.cluster_json();
end $$;

-- What may still have a shard whose trailer is of a generation that nothing needs since then: uploads that began before, and
-- shards that were to be deleted by then. Their times are the orchestrators', so a minute more.
create function distro.has_leftovers(since_ms bigint) returns boolean language sql stable
return since_ms is null
	or exists (select from distro.intents where began_at_ms < since_ms + 60000)
	or exists (select from distro.deletions where queued_at_ms < since_ms + 60000);

-- Counts up to `limit`: a million would take long. Nothing else counts by generation.
create function distro.read_key_use(args jsonb) returns jsonb language plpgsql stable as $$
declare
	most constant integer := args->>'limit';
	one distro.cluster_keys;
	uses jsonb := '[]';
begin
	for one in select * from distro.cluster_keys order by generation loop
		uses := uses || jsonb_build_array(jsonb_build_object('generation', one.generation::text,
			'objects', (select count(*) from (
				select from distro.objects where key_generation = one.generation limit most) counted),
			'shards', (select count(*) from (
				select from distro.placements where key_generation = one.generation limit most) counted),
			'leftovers', distro.has_leftovers(one.unused_since_ms)));
	end loop;
	return uses;
end $$;

-- Notes since when each generation but the newest is not needed.
create function distro.write_note_unused_keys(args jsonb) returns jsonb language plpgsql as $$
declare
	one record;
begin
	for one in
		select k.generation, k.unused_since_ms,
				k.generation < (select max(generation) from distro.cluster_keys)
				and not exists (select from distro.objects where key_generation = k.generation)
				and not exists (select from distro.placements where key_generation = k.generation) as is_unused
			from distro.cluster_keys k
	loop
		continue when one.is_unused = (one.unused_since_ms is not null);
		update distro.cluster_keys set unused_since_ms = case when one.is_unused then distro.now_ms() end
			where generation = one.generation;
	end loop;
	return null;
end $$;

create function distro.write_drop_cluster_key(args jsonb) returns jsonb language plpgsql as $$
declare
	dropped constant bigint := args->>'generation';
	expected constant bigint := args->>'revision';
	since_ms bigint;
begin
	perform distro.raise_revision(expected);
	-- Whoever commits with it just now ends first, and is seen by what follows.
	select unused_since_ms into since_ms from distro.cluster_keys where generation = dropped for update;
	if not found then perform distro.refuse('keys_changed'); end if;
	if dropped = (select max(generation) from distro.cluster_keys)
		or exists (select from distro.objects where key_generation = dropped)
		or exists (select from distro.placements where key_generation = dropped)
		or distro.has_leftovers(since_ms)
		or exists (
			select from distro.workers w left join distro.keys_on_volumes v using (worker_id)
				where v.revision is distinct from expected
		)
	then
		perform distro.refuse('generation_needed', dropped::text);
	end if;
	delete from distro.cluster_keys where generation = dropped;
	return distro.cluster_json();
end $$;

-- workers: [worker, …]. Those that are not there any more are left out.
create function distro.write_saw_keys(args jsonb) returns jsonb language plpgsql as $$
begin
	insert into distro.keys_on_volumes as known (worker_id, revision)
		select worker_id, (args->>'revision')::bigint from distro.workers
			where worker_id in (select w::uuid from jsonb_array_elements_text(args->'workers') w)
			order by worker_id for key share
		on conflict (worker_id) do update set revision = greatest(known.revision, excluded.revision);
	return null;
end $$;

create function distro.read_keys_on_volumes(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_array(distro.hex(worker_id), revision::text) order by worker_id), '[]') from (
		select * from distro.keys_on_volumes where args->'after' = 'null' or worker_id > (args->>'after')::uuid
			order by worker_id limit (args->>'limit')::integer
	) page
);

-- Those whose data key is wrapped by a generation before `below`, whatever became of them.
create function distro.read_old_key_objects(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_array(distro.hex(version_id), key_generation::text,
			encode(wrapped_key, 'base64'))), '[]') from (
		select version_id, key_generation, wrapped_key from distro.objects
			where key_generation < (args->>'below')::bigint order by key_generation limit (args->>'limit')::integer
	) page
);

-- objects: [[version, wrapped key as it must be now, generation, wrapped key], …]; how many were.
create function distro.write_rewrap_objects(args jsonb) returns jsonb language plpgsql as $$
declare
	changed bigint;
begin
	perform distro.check_generation(g) from (
		select distinct (o->>2)::bigint as g from jsonb_array_elements(args->'objects') o order by 1
	) given;
	-- In the order in which everyone locks objects.
	perform from distro.objects
		where version_id in (select (o->>0)::uuid from jsonb_array_elements(args->'objects') o)
		order by object_no for no key update;
	update distro.objects known set key_generation = (o->>2)::bigint, wrapped_key = decode(o->>3, 'base64')
		from jsonb_array_elements(args->'objects') o
		where known.version_id = (o->>0)::uuid and known.wrapped_key = decode(o->>1, 'base64');
	get diagnostics changed = row_count;
	return to_jsonb(changed);
end $$;

-- Segments with a shard whose trailer is of that generation: [[segment, [index, …]], …]. after: [object, segment] or null.
create function distro.read_old_trailers(args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_array(distro.stored_segment(object_no, segment), indexes)
			order by object_no, segment), '[]')
		from (
			select object_no, segment, jsonb_agg(shard_index order by shard_index) as indexes from distro.placements
				where key_generation = (args->>'generation')::bigint and (object_no, segment) >
					(coalesce((args->'after'->>0)::bigint, -1), coalesce((args->'after'->>1)::bigint, -1))
				group by object_no, segment order by object_no, segment limit (args->>'limit')::integer
		) page
);

create or replace function public.distro_schema() returns integer language sql stable set search_path = ''
return 13;

revoke all on all functions in schema distro from public, anon, authenticated;
grant execute on all functions in schema distro to service_role;
grant select, insert, update, delete on all tables in schema distro to service_role;

notify pgrst, 'reload schema';
