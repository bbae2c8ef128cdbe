-- Calls find their functions by name from here on, so that a migration that adds one need not repeat the list: the call
-- undeleteObject runs distro.write_undelete_object, or as a read distro.read_undelete_object. Those of the releases before keep
-- the names that they have.

alter function distro.write_one(text, jsonb) rename to write_one_8;
alter function distro.read_one(text, jsonb) rename to read_one_8;

-- Null when no function has that name.
create function distro.call_named(method text, prefix text) returns regprocedure language sql stable
return to_regprocedure(format('distro.%I(jsonb)', prefix || lower(regexp_replace(method, '([A-Z])', '_\1', 'g'))));

create function distro.write_one(method text, args jsonb) returns jsonb language plpgsql as $$
declare
	called constant regprocedure := distro.call_named(method, 'write_');
	answer jsonb;
begin
	if called is null then return distro.write_one_8(method, args); end if;
	execute format('select %s($1)', called::regproc) into answer using args;
	return answer;
end $$;

create function distro.read_one(method text, args jsonb) returns jsonb language plpgsql stable as $$
declare
	called constant regprocedure := distro.call_named(method, 'read_');
	answer jsonb;
begin
	if called is null then return distro.read_one_8(method, args); end if;
	execute format('select %s($1)', called::regproc) into answer using args;
	return answer;
end $$;

create or replace function public.distro_schema() returns integer language sql stable set search_path = ''
return 9;

revoke all on all functions in schema distro from public, anon, authenticated;
grant execute on all functions in schema distro to service_role;

notify pgrst, 'reload schema';
