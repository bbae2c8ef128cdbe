-- Distro's metadata: tables. They live in a schema that the REST interface does not expose, with row-level security on
-- and no policies: only the service role (which bypasses it) reaches them, and only through the functions in `public`.
--
-- Ids are 128 bits as uuid; times are milliseconds since 1970 as callers say them, but for leases, where only this
-- database's clock counts. A released migration is never edited: add another one.

create schema distro;

create table distro.cluster (
	one boolean primary key default true check (one),
	cluster_id uuid not null,
	created_at_ms bigint not null
);
create table distro.cluster_keys (
	generation bigint primary key,
	master_key_id text not null,
	wrapped bytea not null
);
create table distro.workers (
	worker_id uuid primary key,
	name text not null unique,
	address text not null,
	zone text not null,
	receipt_key bytea not null,
	registered_at_ms bigint not null,
	last_seen_ms bigint not null,
	bytes_total bigint not null,
	bytes_used bigint not null,
	shards bigint not null
);

-- object_no is ours alone: it keeps an object's segments and shards together and their keys short.
create table distro.objects (
	object_no bigint generated always as identity primary key,
	object_id uuid not null unique,
	version_id uuid not null unique,
	upload_id uuid not null unique,
	size_bytes bigint not null check (size_bytes between 0 and 9007199254740991),
	segments bigint not null,
	created_at_ms bigint not null,
	etag text not null,
	key_generation bigint not null,
	wrapped_key bytea not null,
	manifest bytea not null,
	inline bytea
);
create index objects_newest on distro.objects (created_at_ms, object_id);
create table distro.segments (
	object_no bigint not null references distro.objects,
	segment bigint not null,
	codec text not null,
	k integer not null,
	n integer not null,
	cell_bytes integer not null,
	cells integer not null,
	last_cell_bytes integer not null,
	seal_id uuid not null,
	encoding_id uuid not null,
	end_record bytea not null,
	roots bytea not null,
	because text not null,
	primary key (object_no, segment)
);
-- No foreign key: checking one would cost more than writing the row. Who changes an object's rows locks the object first.
create table distro.placements (
	object_no bigint not null,
	segment bigint not null,
	shard_index integer not null,
	shard_id uuid not null unique,
	worker_id uuid not null,
	primary key (object_no, segment, shard_index)
);

-- Open intents only: to give one up is to remove it, in the transaction that fills the delete queue.
create table distro.intents (
	upload_id uuid primary key,
	object_id uuid not null,
	expires_at_ms bigint not null
);
create index intents_expiry on distro.intents (expires_at_ms, upload_id);
create table distro.intent_shards (
	upload_id uuid not null,
	shard_id uuid not null,
	worker_id uuid not null,
	primary key (upload_id, shard_id)
);
create table distro.idempotency (
	owner text not null,
	key text not null,
	fingerprint text not null,
	upload_id uuid not null,
	claimed_at_ms bigint not null,
	expires_at_ms bigint not null,
	object_id uuid,
	primary key (owner, key)
);
create index idempotency_upload on distro.idempotency (upload_id);
create index idempotency_expiry on distro.idempotency (expires_at_ms);

create table distro.deletions (
	item_no bigint generated always as identity primary key,
	worker_id uuid not null,
	shard_id uuid not null unique,
	queued_at_ms bigint not null
);
create index deletions_worker on distro.deletions (worker_id, item_no);
create table distro.findings (
	shard_id uuid primary key,
	object_no bigint not null,
	worker_id uuid not null,
	kind text not null,
	detail text not null,
	found_at_ms bigint not null
);
create index findings_object on distro.findings (object_no, shard_id);
create table distro.repairs (
	item_no bigint generated always as identity primary key,
	object_no bigint not null,
	segment bigint not null,
	shard_index integer not null,
	spares integer not null,
	attempts integer not null,
	due_at_ms bigint not null,
	unique (object_no, segment, shard_index),
	foreign key (object_no, segment) references distro.segments
);
create index repairs_order on distro.repairs (spares, item_no);

-- A fencing number only ever grows: the row stays when its lease ends.
create table distro.leases (
	name text primary key,
	holder text not null,
	fencing bigint not null,
	expires_at timestamptz not null
);

-- Deletions of objects that were answered lately, by the caller's number of the call: a call that is repeated because
-- its answer was lost must hear the same.
create table distro.removals (
	call_id uuid primary key,
	removed_at timestamptz not null default clock_timestamp()
);
create index removals_age on distro.removals (removed_at);

-- Counts, kept in the transactions that change them, so that they cost the same for any number of objects. Spread over
-- rows, one for each transaction under way, because one row would make all writers wait for one another.
create table distro.totals (
	slot integer generated by default as identity primary key,
	objects bigint not null default 0,
	bytes numeric not null default 0,
	deletions bigint not null default 0,
	repairs bigint not null default 0
) with (fillfactor = 20);
insert into distro.totals (slot) values (0);

create function distro.slot() returns integer language sql stable
return coalesce(nullif(current_setting('distro.slot', true), '')::integer, 0);

create function distro.count_objects() returns trigger language plpgsql as $$
declare
	sign constant integer := case tg_op when 'INSERT' then 1 else -1 end;
	counted record;
begin
	select count(*) as rows, coalesce(sum(size_bytes), 0) as bytes into counted from changed;
	if counted.rows > 0 then
		update distro.totals set objects = objects + sign * counted.rows, bytes = bytes + sign * counted.bytes
			where slot = distro.slot();
	end if;
	return null;
end $$;

create function distro.count_queue() returns trigger language plpgsql as $$
declare
	change bigint;
begin
	select case tg_op when 'INSERT' then count(*) else -count(*) end into change from changed;
	if change = 0 then return null; end if;
	if tg_table_name = 'deletions' then
		update distro.totals set deletions = deletions + change where slot = distro.slot();
	else
		update distro.totals set repairs = repairs + change where slot = distro.slot();
	end if;
	return null;
end $$;

create trigger counted_in after insert on distro.objects referencing new table as changed
	for each statement execute function distro.count_objects();
create trigger counted_out after delete on distro.objects referencing old table as changed
	for each statement execute function distro.count_objects();
create trigger counted_in after insert on distro.deletions referencing new table as changed
	for each statement execute function distro.count_queue();
create trigger counted_out after delete on distro.deletions referencing old table as changed
	for each statement execute function distro.count_queue();
create trigger counted_in after insert on distro.repairs referencing new table as changed
	for each statement execute function distro.count_queue();
create trigger counted_out after delete on distro.repairs referencing old table as changed
	for each statement execute function distro.count_queue();

do $$
declare
	name text;
begin
	for name in select tablename from pg_tables where schemaname = 'distro' loop
		execute format('alter table distro.%I enable row level security', name);
	end loop;
end $$;
