-- Moving metadata into this database, or out of it (orchestrator/move.ts). While distro.move has its one row, no batch of
-- writes is taken: not those of an orchestrator that starts, and not those of one that was forgotten.

create table distro.move (
	one boolean primary key default true check (one),
	move_id uuid not null,
	cluster_id uuid not null,
	phase text not null,
	other text not null,
	began_at_ms bigint not null,
	place text
);
alter table distro.move enable row level security;

create function distro.refuse_moved() returns void language plpgsql as $$
begin
	perform from distro.move;
	if found then perform distro.refuse('moved'); end if;
end $$;

-- A row of the counts that no other transaction has, for as long as this one lasts. Every batch of writes begins with it.
create or replace function distro.take_slot() returns void language plpgsql as $$
declare
	mine integer;
begin
	select slot into mine from distro.totals where slot > 0 order by slot limit 1 for update skip locked;
	if not found then insert into distro.totals default values returning slot into mine; end if;
	perform set_config('distro.slot', mine::text, true);
	-- After the row is taken: who sets the mark waits for all who have one.
	perform distro.refuse_moved();
end $$;

create function distro.move_mark() returns jsonb language sql stable
return (
	select jsonb_build_object('moveId', distro.hex(move_id), 'clusterId', distro.hex(cluster_id), 'phase', phase,
			'other', other, 'beganAtMs', began_at_ms::text, 'place', place)
		from distro.move
);

create function distro.move_holders() returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(name order by name), '[]') from distro.leases where expires_at > clock_timestamp()
);

create function distro.move_filled(tables jsonb) returns jsonb language plpgsql stable as $$
declare
	name text;
	has_rows boolean;
	filled text[] := '{}';
begin
	for name in select jsonb_array_elements_text(tables) loop
		execute format('select exists (select from distro.%I)', name) into has_rows;
		if has_rows then filled := array_append(filled, name); end if;
	end loop;
	return to_jsonb(filled);
end $$;

create function distro.move_state(args jsonb) returns jsonb language plpgsql stable as $$
begin
	return jsonb_build_object('clusterId', (select distro.hex(cluster_id) from distro.cluster),
		'mark', distro.move_mark(), 'usedBy', distro.move_holders(), 'filled', distro.move_filled(args->'tables'));
end $$;

-- args: {mark or null, expected: move or null, unused, tables: those that must be empty}
create function distro.move_set_mark(args jsonb) returns jsonb language plpgsql as $$
declare
	mark constant jsonb := nullif(args->'mark', 'null');
	known jsonb;
	word jsonb;
begin
	-- Everyone who writes has a row of this table.
	lock table distro.totals in exclusive mode;
	known := distro.move_mark();
	-- The same call, once more.
	if known is not distinct from mark then return null; end if;
	if known->>'moveId' is distinct from args->>'expected' then perform distro.refuse('other_move'); end if;
	if (args->>'unused')::boolean then
		word := distro.move_holders();
		if word <> '[]' then perform distro.refuse('in_use', word::text); end if;
	end if;
	word := distro.move_filled(args->'tables');
	if word <> '[]' then perform distro.refuse('not_empty', word::text); end if;
	delete from distro.move where one;
	if mark is not null then
		insert into distro.move (move_id, cluster_id, phase, other, began_at_ms, place)
			values ((mark->>'moveId')::uuid, (mark->>'clusterId')::uuid, mark->>'phase', mark->>'other',
				(mark->>'beganAtMs')::bigint, mark->>'place');
	end if;
	return null;
end $$;

-- A column's type, for a cast.
create function distro.move_type(of_table text, of_column text) returns text language plpgsql stable as $$
declare
	found_type text;
begin
	select pg_catalog.format_type(atttypid, null) into found_type from pg_catalog.pg_attribute
		where attrelid = format('distro.%I', of_table)::regclass and attname = of_column and attnum > 0 and not attisdropped;
	if found_type is null then perform distro.refuse('no_such_column', of_table || '.' || of_column); end if;
	return found_type;
end $$;

-- An array of the columns' values, each as text.
create function distro.move_values(of_table text, columns jsonb) returns text language sql stable
return (
	select format('jsonb_build_array(%s)', string_agg(case distro.move_type(of_table, c)
			when 'uuid' then format('distro.hex(t.%I)', c)
			when 'bytea' then format('encode(t.%I, ''hex'')', c)
			else format('t.%I::text', c)
		end, ', ' order by place))
		from jsonb_array_elements_text(columns) with ordinality as given(c, place)
);

-- The columns' values out of such an array.
create function distro.move_casts(of_table text, columns jsonb, given text) returns text language sql stable
return (
	select string_agg(case distro.move_type(of_table, c)
			when 'bytea' then format('decode(%s->>%s, ''hex'')', given, place - 1)
			else format('(%s->>%s)::%s', given, place - 1, distro.move_type(of_table, c))
		end, ', ' order by place)
		from jsonb_array_elements_text(columns) with ordinality as listed(c, place)
);

create function distro.move_names(columns jsonb) returns text language sql stable
return (
	select string_agg(format('t.%I', c), ', ' order by place)
		from jsonb_array_elements_text(columns) with ordinality as given(c, place)
);

-- args: {table, key, columns, after: key or null, limit}. By the key's index, in the index's own order.
create function distro.move_page(args jsonb) returns jsonb language plpgsql stable as $$
declare
	name constant text := args->>'table';
	page jsonb;
begin
	execute format('select coalesce(jsonb_agg(given), ''[]'') from (select %s as given from distro.%I t %s order by %s limit $2) page',
		distro.move_values(name, args->'columns'), name,
		case when args->'after' = 'null' then '' else format('where (%s) > (%s)', distro.move_names(args->'key'),
			distro.move_casts(name, args->'key', '$1')) end,
		distro.move_names(args->'key')) into page using args->'after', (args->>'limit')::integer;
	return page;
end $$;

-- args: {table, key, columns, keys: [key, …]}. Row by row through the key's index, whatever the planner guesses.
create function distro.move_find(args jsonb) returns jsonb language plpgsql stable
set enable_hashjoin = off set enable_mergejoin = off set enable_seqscan = off as $$
declare
	name constant text := args->>'table';
	rows jsonb;
begin
	execute format('select coalesce(jsonb_agg(%s), ''[]'') from jsonb_array_elements($1) as batch (item) join distro.%I t on (%s) = (%s)',
		distro.move_values(name, args->'columns'), name, distro.move_names(args->'key'),
		distro.move_casts(name, args->'key', 'batch.item')) into rows using args->'keys';
	return rows;
end $$;

-- The mark, if it is that move's and in that phase.
create function distro.move_held(args jsonb, in_phase text) returns distro.move language plpgsql as $$
declare
	held distro.move;
begin
	select * into held from distro.move where one for update;
	if not found or distro.hex(held.move_id) <> args->>'moveId' or held.phase <> in_phase then
		perform distro.refuse('other_move');
	end if;
	return held;
end $$;

-- Moves the mark's place from args.from to args.place; false when this was done before, by the same call.
create function distro.move_on(args jsonb) returns boolean language plpgsql as $$
declare
	held constant distro.move := distro.move_held(args, 'copying');
begin
	if held.place = args->>'place' then return false; end if;
	if held.place is distinct from args->>'from' then perform distro.refuse('other_move'); end if;
	update distro.move set place = args->>'place' where one;
	return true;
end $$;

-- args: {moveId, table, columns, rows, from: place or null, place}
create function distro.move_write(args jsonb) returns jsonb language plpgsql as $$
declare
	name constant text := args->>'table';
begin
	if not distro.move_on(args) then return null; end if;
	execute format('insert into distro.%I (%s) overriding system value select %s from jsonb_array_elements($1) as batch (item)', name,
		(select string_agg(quote_ident(c), ', ' order by place)
			from jsonb_array_elements_text(args->'columns') with ordinality as given(c, place)),
		distro.move_casts(name, args->'columns', 'batch.item')) using args->'rows';
	return null;
end $$;

-- Worker sets and spreads (20261124000008_sets.sql) of objects whose rows are all there, as many at once as are given.
-- args: {moveId, objects: [number, …], from: place or null, place}
create function distro.move_derive(args jsonb) returns jsonb language plpgsql as $$
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
			from spread where o.object_no = spread.object_no
	), whole as materialized (
		select sets[1] as set_id, count(*) as objects, sum(o.size_bytes) as bytes
			from spread join distro.objects o using (object_no) where cardinality(sets) = 1 group by sets[1]
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
			from spread join distro.objects o using (object_no) where cardinality(sets) > 1 group by sets
		on conflict (spread_id, slot) do update
			set objects = known.objects + excluded.objects, object_bytes = known.object_bytes + excluded.object_bytes;
	return null;
end $$;

-- args: {moveId, tables}
create function distro.move_clear_derived(args jsonb) returns jsonb language plpgsql as $$
declare
	name text;
begin
	perform distro.move_held(args, 'clearing');
	for name in select jsonb_array_elements_text(args->'tables') loop
		execute format('delete from distro.%I where true', name);
	end loop;
	return null;
end $$;

create function distro.move_totals() returns jsonb language plpgsql stable as $$
begin
	return (
		select jsonb_build_object('objects', sum(objects)::text, 'bytes', sum(bytes)::text, 'deletions', sum(deletions)::text,
				'repairs', sum(repairs)::text,
				'onSets', (select coalesce(sum(segments), 0)::text from distro.worker_sets),
				'onSpreads', ((select coalesce(sum(objects), 0) from distro.worker_sets)
					+ (select coalesce(sum(objects), 0) from distro.spreads))::text)
			from distro.totals
	);
end $$;

-- args: {moveId, table, limit}
create function distro.move_clear(args jsonb) returns jsonb language plpgsql as $$
declare
	removed bigint;
begin
	perform distro.move_held(args, 'clearing');
	execute format('delete from distro.%1$I where ctid = any (array(select ctid from distro.%1$I limit $1))', args->>'table')
		using (args->>'limit')::integer;
	get diagnostics removed = row_count;
	return to_jsonb(removed);
end $$;

-- args: {numbered: [[table, column], …]}
create function distro.move_renumber(args jsonb) returns jsonb language plpgsql as $$
declare
	given jsonb;
begin
	for given in select jsonb_array_elements(args->'numbered') loop
		execute format('select setval(pg_get_serial_sequence(%L, %L), coalesce(max(%I), 1), count(*) > 0) from distro.%I',
			format('distro.%I', given->>0), given->>1, given->>1, given->>0);
	end loop;
	return null;
end $$;

-- call: {"action", …}. As long as one page or batch may take, and shorter than its caller waits.
create function public.distro_move(call jsonb) returns jsonb language plpgsql
set search_path = '' set lock_timeout = '10s' set statement_timeout = '50s' as $$
begin
	return jsonb_build_object('ok', case call->>'action'
		when 'state' then distro.move_state(call)
		when 'setMark' then distro.move_set_mark(call)
		when 'page' then distro.move_page(call)
		when 'find' then distro.move_find(call)
		when 'write' then distro.move_write(call)
		when 'derive' then distro.move_derive(call)
		when 'clear' then distro.move_clear(call)
		when 'clearDerived' then distro.move_clear_derived(call)
		when 'renumber' then distro.move_renumber(call)
		when 'totals' then distro.move_totals()
		else distro.no_such_call(call->>'action')
	end);
end $$;

create or replace function public.distro_schema() returns integer language sql stable set search_path = ''
return 7;

revoke all on all functions in schema distro from public, anon, authenticated;
revoke all on function public.distro_move(jsonb) from public, anon, authenticated;
grant execute on function public.distro_move(jsonb) to service_role;
grant execute on all functions in schema distro to service_role;
grant select, insert, update, delete on all tables in schema distro to service_role;
grant usage, update on all sequences in schema distro to service_role;

notify pgrst, 'reload schema';
