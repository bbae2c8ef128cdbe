/**
 * The embedded database: how its file is opened and owned, and its tables, as steps that are applied in order.
 *
 * One process owns the file: SQLite's own exclusive lock on it, which no copy or rename of a lock file can lose, and which
 * the kernel drops when the process dies. So nothing else can read it while an orchestrator runs.
 * Ids are hexadecimal text. A released step is never edited: append another one.
 */

import { DatabaseSync } from 'node:sqlite';
import { DistroError } from '../core/errors.ts';
import { closedByMove, type MoveMark } from './move-side.ts';
import { sqliteError } from './store-sqlite-sql.ts';

const MIGRATIONS: readonly string[] = [
	`
	CREATE TABLE cluster (
		one INTEGER PRIMARY KEY CHECK (one = 1),
		cluster_id TEXT NOT NULL,
		created_at_ms INTEGER NOT NULL
	) STRICT;
	CREATE TABLE cluster_keys (
		generation INTEGER PRIMARY KEY,
		master_key_id TEXT NOT NULL,
		wrapped BLOB NOT NULL
	) STRICT;
	CREATE TABLE workers (
		worker_id TEXT PRIMARY KEY,
		name TEXT NOT NULL UNIQUE,
		address TEXT NOT NULL,
		zone TEXT NOT NULL,
		receipt_key BLOB NOT NULL,
		registered_at_ms INTEGER NOT NULL,
		last_seen_ms INTEGER NOT NULL,
		bytes_total INTEGER NOT NULL,
		bytes_used INTEGER NOT NULL,
		shards INTEGER NOT NULL
	) STRICT, WITHOUT ROWID;

	-- object_no is ours alone: it keeps an object's segments and shards together and their keys short.
	CREATE TABLE objects (
		object_no INTEGER PRIMARY KEY,
		object_id TEXT NOT NULL UNIQUE,
		version_id TEXT NOT NULL UNIQUE,
		upload_id TEXT NOT NULL UNIQUE,
		size_bytes INTEGER NOT NULL CHECK (size_bytes BETWEEN 0 AND 9007199254740991),
		segments INTEGER NOT NULL,
		created_at_ms INTEGER NOT NULL,
		etag TEXT NOT NULL,
		key_generation INTEGER NOT NULL,
		wrapped_key BLOB NOT NULL,
		manifest BLOB NOT NULL,
		inline BLOB
	) STRICT;
	CREATE INDEX objects_newest ON objects (created_at_ms, object_id);
	CREATE TABLE segments (
		object_no INTEGER NOT NULL REFERENCES objects,
		segment INTEGER NOT NULL,
		codec TEXT NOT NULL,
		k INTEGER NOT NULL,
		n INTEGER NOT NULL,
		cell_bytes INTEGER NOT NULL,
		cells INTEGER NOT NULL,
		last_cell_bytes INTEGER NOT NULL,
		seal_id TEXT NOT NULL,
		encoding_id TEXT NOT NULL,
		end_record BLOB NOT NULL,
		roots BLOB NOT NULL,
		because TEXT NOT NULL,
		PRIMARY KEY (object_no, segment)
	) STRICT, WITHOUT ROWID;
	CREATE TABLE placements (
		object_no INTEGER NOT NULL,
		segment INTEGER NOT NULL,
		shard_index INTEGER NOT NULL,
		shard_id TEXT NOT NULL UNIQUE,
		worker_id TEXT NOT NULL,
		PRIMARY KEY (object_no, segment, shard_index),
		FOREIGN KEY (object_no, segment) REFERENCES segments
	) STRICT, WITHOUT ROWID;

	-- Open intents only: to give one up is to remove it, in the transaction that fills the delete queue.
	CREATE TABLE intents (
		upload_id TEXT PRIMARY KEY,
		object_id TEXT NOT NULL,
		expires_at_ms INTEGER NOT NULL
	) STRICT, WITHOUT ROWID;
	CREATE INDEX intents_expiry ON intents (expires_at_ms, upload_id);
	CREATE TABLE intent_shards (
		upload_id TEXT NOT NULL,
		shard_id TEXT NOT NULL,
		worker_id TEXT NOT NULL,
		PRIMARY KEY (upload_id, shard_id)
	) STRICT, WITHOUT ROWID;
	CREATE TABLE idempotency (
		owner TEXT NOT NULL,
		key TEXT NOT NULL,
		fingerprint TEXT NOT NULL,
		upload_id TEXT NOT NULL,
		expires_at_ms INTEGER NOT NULL,
		object_id TEXT,
		PRIMARY KEY (owner, key)
	) STRICT, WITHOUT ROWID;
	CREATE INDEX idempotency_upload ON idempotency (upload_id);
	CREATE INDEX idempotency_expiry ON idempotency (expires_at_ms);

	CREATE TABLE deletions (
		item_no INTEGER PRIMARY KEY,
		worker_id TEXT NOT NULL,
		shard_id TEXT NOT NULL UNIQUE,
		queued_at_ms INTEGER NOT NULL
	) STRICT;
	CREATE INDEX deletions_worker ON deletions (worker_id, item_no);
	CREATE TABLE findings (
		shard_id TEXT PRIMARY KEY,
		object_no INTEGER NOT NULL,
		worker_id TEXT NOT NULL,
		kind TEXT NOT NULL,
		detail TEXT NOT NULL,
		found_at_ms INTEGER NOT NULL
	) STRICT, WITHOUT ROWID;
	CREATE INDEX findings_object ON findings (object_no, shard_id);
	CREATE TABLE repairs (
		item_no INTEGER PRIMARY KEY,
		object_no INTEGER NOT NULL,
		segment INTEGER NOT NULL,
		shard_index INTEGER NOT NULL,
		spares INTEGER NOT NULL,
		attempts INTEGER NOT NULL,
		due_at_ms INTEGER NOT NULL,
		UNIQUE (object_no, segment, shard_index),
		FOREIGN KEY (object_no, segment) REFERENCES segments
	) STRICT;
	CREATE INDEX repairs_order ON repairs (spares, item_no);

	CREATE TABLE totals (
		one INTEGER PRIMARY KEY CHECK (one = 1),
		objects INTEGER NOT NULL DEFAULT 0,
		bytes INTEGER NOT NULL DEFAULT 0,
		intents INTEGER NOT NULL DEFAULT 0,
		deletions INTEGER NOT NULL DEFAULT 0,
		repairs INTEGER NOT NULL DEFAULT 0
	) STRICT;
	INSERT INTO totals (one) VALUES (1);
	CREATE TRIGGER objects_in AFTER INSERT ON objects BEGIN
		UPDATE totals SET objects = objects + 1, bytes = bytes + new.size_bytes;
	END;
	CREATE TRIGGER objects_out AFTER DELETE ON objects BEGIN
		UPDATE totals SET objects = objects - 1, bytes = bytes - old.size_bytes;
	END;
	CREATE TRIGGER intents_in AFTER INSERT ON intents BEGIN UPDATE totals SET intents = intents + 1; END;
	CREATE TRIGGER intents_out AFTER DELETE ON intents BEGIN UPDATE totals SET intents = intents - 1; END;
	CREATE TRIGGER deletions_in AFTER INSERT ON deletions BEGIN UPDATE totals SET deletions = deletions + 1; END;
	CREATE TRIGGER deletions_out AFTER DELETE ON deletions BEGIN UPDATE totals SET deletions = deletions - 1; END;
	CREATE TRIGGER repairs_in AFTER INSERT ON repairs BEGIN UPDATE totals SET repairs = repairs + 1; END;
	CREATE TRIGGER repairs_out AFTER DELETE ON repairs BEGIN UPDATE totals SET repairs = repairs - 1; END;
	`,
	`
	-- A fencing number only ever grows: the row stays when its lease ends.
	CREATE TABLE leases (
		name TEXT PRIMARY KEY,
		holder TEXT NOT NULL,
		fencing INTEGER NOT NULL,
		ends_at_ms INTEGER NOT NULL
	) STRICT, WITHOUT ROWID;
	`,
	`
	ALTER TABLE workers ADD COLUMN duty TEXT NOT NULL DEFAULT 'active';
	ALTER TABLE workers ADD COLUMN history TEXT NOT NULL DEFAULT '';
	CREATE TABLE jobs (
		name TEXT PRIMARY KEY,
		paused INTEGER NOT NULL DEFAULT 0,
		runs INTEGER NOT NULL DEFAULT 0,
		state TEXT NOT NULL DEFAULT '',
		updated_at_ms INTEGER NOT NULL
	) STRICT, WITHOUT ROWID;

	-- Which segments are on which good shards, and how many: store-sqlite-sets.ts. A number is never given out again, so that
	-- whoever asks for a set that is gone finds nothing.
	CREATE TABLE worker_sets (
		set_no INTEGER PRIMARY KEY AUTOINCREMENT,
		k INTEGER NOT NULL,
		n INTEGER NOT NULL,
		workers TEXT NOT NULL,
		segments INTEGER NOT NULL CHECK (segments >= 0),
		bytes INTEGER NOT NULL CHECK (bytes >= 0),
		UNIQUE (workers, k, n)
	) STRICT;
	CREATE TABLE spreads (
		spread_no INTEGER PRIMARY KEY AUTOINCREMENT,
		sets TEXT NOT NULL UNIQUE,
		objects INTEGER NOT NULL CHECK (objects >= 0),
		bytes INTEGER NOT NULL CHECK (bytes >= 0)
	) STRICT;
	ALTER TABLE segments ADD COLUMN set_no INTEGER NOT NULL DEFAULT 0;
	-- Inline objects are on none.
	ALTER TABLE objects ADD COLUMN spread_no INTEGER;

	-- Row by row, because temporary tables and sorters of a million objects would be in memory.
	CREATE TEMP VIEW good AS
		SELECT object_no, segment, k, n, (cells - 1) * cell_bytes + last_cell_bytes AS bytes,
				coalesce((
					SELECT group_concat(worker_id, ',' ORDER BY worker_id) FROM placements p
						WHERE p.object_no = s.object_no AND p.segment = s.segment
							AND NOT EXISTS (SELECT 1 FROM findings f WHERE f.shard_id = p.shard_id)
				), '') AS workers
			FROM segments s;
	INSERT INTO worker_sets (k, n, workers, segments, bytes)
		SELECT k, n, workers, 1, bytes FROM good WHERE true
			ON CONFLICT DO UPDATE SET segments = segments + 1, bytes = bytes + excluded.bytes;
	UPDATE segments SET set_no = (
		SELECT w.set_no FROM good g JOIN worker_sets w USING (workers, k, n)
			WHERE g.object_no = segments.object_no AND g.segment = segments.segment);
	DROP VIEW good;
	CREATE INDEX segments_set ON segments (set_no, object_no, segment);
	CREATE TEMP VIEW spread AS
		SELECT object_no, size_bytes, (
				SELECT group_concat(set_no, ',' ORDER BY set_no)
					FROM (SELECT DISTINCT set_no FROM segments s WHERE s.object_no = o.object_no)
			) AS sets
			FROM objects o WHERE segments > 0;
	INSERT INTO spreads (sets, objects, bytes)
		SELECT sets, 1, size_bytes FROM spread WHERE true
			ON CONFLICT DO UPDATE SET objects = objects + 1, bytes = bytes + excluded.bytes;
	UPDATE objects SET spread_no = (
		SELECT s.spread_no FROM spread JOIN spreads s USING (sets) WHERE spread.object_no = objects.object_no);
	DROP VIEW spread;
	`,
	`
	-- While it has its one row the metadata are being moved, or were moved away (move.ts): no orchestrator starts on them.
	CREATE TABLE move (
		one INTEGER PRIMARY KEY CHECK (one = 1),
		move_id TEXT NOT NULL,
		cluster_id TEXT NOT NULL,
		phase TEXT NOT NULL,
		other TEXT NOT NULL,
		began_at_ms INTEGER NOT NULL,
		place TEXT
	) STRICT;
	`,
	`
	-- An object is in the trash while it has a time to be purged at. Lists of the others must not wade through it.
	ALTER TABLE objects ADD COLUMN deleted_at_ms INTEGER;
	ALTER TABLE objects ADD COLUMN purge_at_ms INTEGER;
	DROP INDEX objects_newest;
	CREATE INDEX objects_newest ON objects (created_at_ms, object_id) WHERE purge_at_ms IS NULL;
	CREATE INDEX objects_trash ON objects (purge_at_ms, object_id) WHERE purge_at_ms IS NOT NULL;
	ALTER TABLE deletions ADD COLUMN for_good INTEGER NOT NULL DEFAULT 0;

	-- A hash chain: core/crypto/deletion-log.ts.
	CREATE TABLE deletion_log (
		entry_no INTEGER PRIMARY KEY,
		object_id TEXT NOT NULL,
		action TEXT NOT NULL,
		at_ms INTEGER NOT NULL,
		by_key TEXT NOT NULL,
		hash BLOB NOT NULL
	) STRICT;
	-- No row until the first entry.
	CREATE TABLE deletion_head (
		one INTEGER PRIMARY KEY CHECK (one = 1) DEFAULT 1,
		entries INTEGER NOT NULL,
		hash BLOB NOT NULL
	) STRICT;

	ALTER TABLE totals ADD COLUMN trash_objects INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE totals ADD COLUMN trash_bytes INTEGER NOT NULL DEFAULT 0;
	DROP TRIGGER objects_in;
	DROP TRIGGER objects_out;
	CREATE TRIGGER objects_in AFTER INSERT ON objects WHEN new.purge_at_ms IS NULL BEGIN
		UPDATE totals SET objects = objects + 1, bytes = bytes + new.size_bytes;
	END;
	CREATE TRIGGER objects_out AFTER DELETE ON objects WHEN old.purge_at_ms IS NULL BEGIN
		UPDATE totals SET objects = objects - 1, bytes = bytes - old.size_bytes;
	END;
	CREATE TRIGGER trash_in AFTER INSERT ON objects WHEN new.purge_at_ms IS NOT NULL BEGIN
		UPDATE totals SET trash_objects = trash_objects + 1, trash_bytes = trash_bytes + new.size_bytes;
	END;
	CREATE TRIGGER trash_out AFTER DELETE ON objects WHEN old.purge_at_ms IS NOT NULL BEGIN
		UPDATE totals SET trash_objects = trash_objects - 1, trash_bytes = trash_bytes - old.size_bytes;
	END;
	CREATE TRIGGER trashed AFTER UPDATE OF purge_at_ms ON objects
		WHEN old.purge_at_ms IS NULL AND new.purge_at_ms IS NOT NULL BEGIN
		UPDATE totals SET objects = objects - 1, bytes = bytes - new.size_bytes,
			trash_objects = trash_objects + 1, trash_bytes = trash_bytes + new.size_bytes;
	END;
	CREATE TRIGGER undeleted AFTER UPDATE OF purge_at_ms ON objects
		WHEN old.purge_at_ms IS NOT NULL AND new.purge_at_ms IS NULL BEGIN
		UPDATE totals SET objects = objects + 1, bytes = bytes + new.size_bytes,
			trash_objects = trash_objects - 1, trash_bytes = trash_bytes - new.size_bytes;
	END;
	`,
	`
	-- How a segment was cut before it was encoded anew, for people: JSON.
	ALTER TABLE segments ADD COLUMN was TEXT;
	`,
	`
	-- What a worker is known to have, in order of ids: reconcile compares it with what the worker says.
	CREATE INDEX placements_worker ON placements (worker_id, shard_id);
	CREATE INDEX intent_shards_worker ON intent_shards (worker_id, shard_id);
	CREATE INDEX deletions_shard ON deletions (worker_id, shard_id);
	-- Whatever they had by then no placement and no write named: it is nobody's if they come back.
	CREATE TABLE forgotten_workers (
		worker_id TEXT PRIMARY KEY,
		forgotten_at_ms INTEGER NOT NULL
	) STRICT, WITHOUT ROWID;
	`,
	`
	ALTER TABLE cluster ADD COLUMN revision INTEGER NOT NULL DEFAULT 1;
	-- unused_since_ms: since when no object and no placement needs it; NULL while one does.
	ALTER TABLE cluster_keys ADD COLUMN created_at_ms INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE cluster_keys ADD COLUMN unused_since_ms INTEGER;
	UPDATE cluster_keys SET created_at_ms = (SELECT created_at_ms FROM cluster);
	-- The revision that a worker's volume was last seen to have.
	CREATE TABLE keys_on_volumes (
		worker_id TEXT PRIMARY KEY REFERENCES workers ON DELETE CASCADE,
		revision INTEGER NOT NULL
	) STRICT, WITHOUT ROWID;
	ALTER TABLE intents ADD COLUMN began_at_ms INTEGER NOT NULL DEFAULT 0;
	-- Of the data key in the shard's trailer, which can't be rewritten. Until now there was one generation.
	ALTER TABLE placements ADD COLUMN key_generation INTEGER NOT NULL DEFAULT 1;
	CREATE INDEX placements_generation ON placements (key_generation);
	CREATE INDEX objects_generation ON objects (key_generation);
	`,
	`
	-- Whose an object is: people's, or the cluster's own, which are in no list, count or spread.
	ALTER TABLE objects ADD COLUMN kind TEXT NOT NULL DEFAULT 'user';
	DROP INDEX objects_newest;
	CREATE INDEX objects_newest ON objects (kind, created_at_ms, object_id) WHERE purge_at_ms IS NULL;
	DROP TRIGGER objects_in;
	DROP TRIGGER objects_out;
	CREATE TRIGGER objects_in AFTER INSERT ON objects WHEN new.purge_at_ms IS NULL AND new.kind = 'user' BEGIN
		UPDATE totals SET objects = objects + 1, bytes = bytes + new.size_bytes;
	END;
	CREATE TRIGGER objects_out AFTER DELETE ON objects WHEN old.purge_at_ms IS NULL AND old.kind = 'user' BEGIN
		UPDATE totals SET objects = objects - 1, bytes = bytes - old.size_bytes;
	END;
	`,
];

/** A process that is just stopping may still hold the file for a moment. */
const LOCK_WAIT_MS = 1_000;
/** Pages in memory: enough for the inner pages of some million objects. */
const CACHE_KIB = 8 * 1024;

/**
 * Opens, owns and migrates, for an orchestrator. Throws `conflict` when another process has the file, or a move of the
 * metadata forbids to use it, `unsupported` when a newer release wrote it, `corrupt` when it is no database.
 */
export function openMetadataDatabase(path: string): DatabaseSync {
	return openDatabase(path, (db) => {
		const mark = readMark(db);
		if (mark !== null) throw closedByMove(mark, path);
		freeClaims(db);
		endLeases(db);
		endIntents(db);
	});
}

/** The same for a move: what is there stays as it is, whatever its mark. */
export function openDatabaseToMove(path: string): DatabaseSync {
	return openDatabase(path, () => {});
}

function openDatabase(path: string, begin: (db: DatabaseSync) => void): DatabaseSync {
	let db: DatabaseSync | null = null;
	try {
		db = new DatabaseSync(path, { timeout: LOCK_WAIT_MS });
		// Exclusive before the first access: the WAL's index then lives in this process's memory, not in a shared file.
		// Temporary files would go outside the data folder, where a container can write nothing: a savepoint that changes
		// more than 64 KiB, or a large sort, would fail with an I/O error.
		db.exec(`
			PRAGMA locking_mode = EXCLUSIVE;
			PRAGMA journal_mode = WAL;
			PRAGMA synchronous = FULL;
			PRAGMA fullfsync = ON;
			PRAGMA foreign_keys = ON;
			PRAGMA temp_store = MEMORY;
			PRAGMA cache_size = -${CACHE_KIB};
		`);
		migrate(db, path);
		begin(db);
		return db;
	} catch (thrown) {
		db?.close();
		const error = sqliteError(thrown);
		if (error instanceof DistroError && error.kind === 'unavailable' && isLocked(thrown)) {
			throw new DistroError(
				'conflict',
				`another orchestrator uses ${path}, or a move of the metadata: stop it first, or use another DATA_DIR`,
				{
					cause: thrown,
				},
			);
		}
		throw error;
	}
}

function isLocked(thrown: unknown): boolean {
	return thrown instanceof Error && 'errcode' in thrown && ((thrown.errcode as number) & 0xff) === 5;
}

function migrate(db: DatabaseSync, path: string): void {
	const version = storedVersion(db);
	// Nothing is written then, so that what is stored can be read on a full disk as well.
	if (version === MIGRATIONS.length) return;
	if (version > MIGRATIONS.length) {
		throw new DistroError(
			'unsupported',
			`${path} was written by a newer release (schema ${version}, this one knows ${MIGRATIONS.length}): run that release`,
		);
	}
	db.exec('BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL) STRICT');
	for (const step of MIGRATIONS.slice(version)) db.exec(step);
	db.exec('DELETE FROM schema_version');
	db.prepare('INSERT INTO schema_version VALUES (?)').run(MIGRATIONS.length);
	db.exec('COMMIT');
}

function storedVersion(db: DatabaseSync): number {
	const table = db.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'schema_version'").get();
	if (table === undefined) return 0;
	const stored = db.prepare('SELECT version FROM schema_version').get() as { version: number } | undefined;
	return stored?.version ?? 0;
}

/** Which forbids orchestrators to use these metadata, or null. */
export function readMark(db: DatabaseSync): MoveMark | null {
	const row = db
		.prepare(
			`SELECT move_id AS moveId, cluster_id AS clusterId, phase, other, began_at_ms AS beganAtMs, place FROM move`,
		)
		.get();
	return row === undefined ? null : ({ ...row } as unknown as MoveMark);
}

/** Nobody else writes here, so a claim without an intent belonged to a request that ended with its process. */
function freeClaims(db: DatabaseSync): void {
	db.exec('DELETE FROM idempotency WHERE object_id IS NULL AND upload_id NOT IN (SELECT upload_id FROM intents)');
}

/** In the same way: whoever held them is gone. */
function endLeases(db: DatabaseSync): void {
	db.exec('UPDATE leases SET ends_at_ms = 0');
}

/** And nobody will finish what was being written: it goes at once, not when its time is over, which may be ten minutes. */
function endIntents(db: DatabaseSync): void {
	db.exec('UPDATE intents SET expires_at_ms = 0 WHERE expires_at_ms > 0');
}
