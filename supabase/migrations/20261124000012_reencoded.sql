-- Encoding anew: a segment's new encoding takes the place of the one that it was made from, in one call.

-- How a segment was cut before, for people: JSON.
alter table distro.segments add column was text;

create or replace function distro.segments_json(object bigint, args jsonb) returns jsonb language sql stable
return (
	select coalesce(jsonb_agg(jsonb_build_object(
			'index', s.segment::text, 'codec', s.codec, 'k', s.k, 'n', s.n, 'cellBytes', s.cell_bytes, 'cells', s.cells,
			'lastCellBytes', s.last_cell_bytes, 'sealId', distro.hex(s.seal_id), 'encodingId', distro.hex(s.encoding_id),
			'endRecord', encode(s.end_record, 'base64'), 'roots', encode(s.roots, 'base64'), 'because', s.because,
			'was', s.was::jsonb,
			'placements', (
				select coalesce(jsonb_agg(jsonb_build_array(p.shard_index, distro.hex(p.worker_id), distro.hex(p.shard_id))
						order by p.shard_index), '[]')
					from distro.placements p where p.object_no = s.object_no and p.segment = s.segment
			)) order by s.segment), '[]')
		from distro.segments s
		where s.object_no = object and s.segment >= (args->>'fromSegment')::bigint
			and s.segment < (args->>'fromSegment')::bigint + (args->>'limit')::bigint
);

-- That the segment is gone is answered and not raised: that the new shards are to be deleted must stay.
-- placements: [[index, shard, worker], …]
create function distro.write_reencoded(args jsonb) returns jsonb language plpgsql as $$
declare
	given constant jsonb := args->'segment';
	upload constant uuid := args->>'uploadId';
	of_segment constant bigint := given->>'index';
	now_ms constant bigint := args->>'nowMs';
	new_shards constant uuid[] := array(select (p->>1)::uuid from jsonb_array_elements(args->'placements') p);
	object bigint;
	unnamed text;
	old distro.placements[];
begin
	perform from distro.placements where shard_id = any (new_shards);
	if found then return null; end if;
	delete from distro.intents where upload_id = upload;
	if not found then
		-- The same call may have ended while this one waited.
		perform from distro.placements where shard_id = any (new_shards);
		if found then return null; end if;
		perform distro.refuse('not_open');
	end if;
	select p->>1 into unnamed from jsonb_array_elements(args->'placements') p where not exists (
		select from distro.intent_shards named
			where named.upload_id = upload and named.shard_id = (p->>1)::uuid and named.worker_id = (p->>2)::uuid
	) limit 1;
	if found then perform distro.refuse('never_named', unnamed); end if;
	object := distro.encoded_as(jsonb_build_object('objectId', args->'objectId', 'versionId', args->'versionId',
		'segment', of_segment, 'encodingId', args->'fromEncodingId'));
	if object is null then
		perform distro.discard_named(upload, now_ms);
		return '{"refused": "segment_gone"}';
	end if;
	old := array(select p from distro.placements p where object_no = object and segment = of_segment order by shard_index);
	delete from distro.findings where shard_id in (select o.shard_id from unnest(old) o);
	delete from distro.repairs where object_no = object and segment = of_segment;
	delete from distro.placements where object_no = object and segment = of_segment;
	update distro.segments set
			was = jsonb_build_object('k', k, 'n', n, 'because', because, 'untilMs', now_ms)::text,
			codec = given->>'codec', k = (given->>'k')::integer, n = (given->>'n')::integer,
			encoding_id = (given->>'encodingId')::uuid, roots = decode(given->>'roots', 'base64'), because = given->>'because'
		where object_no = object and segment = of_segment;
	insert into distro.placements (object_no, segment, shard_index, shard_id, worker_id)
		select object, of_segment, (p->>0)::integer, (p->>1)::uuid, (p->>2)::uuid
			from jsonb_array_elements(args->'placements') p;
	perform distro.move_segments(object, array[of_segment]);
	perform distro.queue_deletion(o.shard_id, o.worker_id, now_ms) from unnest(old) o;
	perform distro.discard_named(upload, now_ms);
	return null;
end $$;

create or replace function public.distro_schema() returns integer language sql stable set search_path = ''
return 12;

revoke all on all functions in schema distro from public, anon, authenticated;
grant execute on all functions in schema distro to service_role;

notify pgrst, 'reload schema';
