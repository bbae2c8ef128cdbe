/**
 * What a scan of all workers found, in a temporary SQLite file: millions of trailers don't fit into memory. Some 300 bytes
 * a shard, 32 a cell and what the sealed manifests have; removed when the restore ends.
 */

import { existsSync, rmSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import type { Trailer } from '../core/codec/trailer.ts';
import { checksum } from '../core/crypto/digest.ts';
import { idBytes, idFromBytes, type ObjectId, type VersionId, type WorkerId } from '../core/ids.ts';
import type { FoundShard, FoundVersion, KnownVersion } from '../core/model/recover.ts';
import { decodeRecovery, type RecoveryRecord } from '../core/model/recovery.ts';
import { CODECS } from '../core/model/segment.ts';
import { decodeRecord, encodeRecord, type SnapshotObject, type SnapshotRecord } from '../core/model/snapshot.ts';
import { bufferOf, CachedSql } from './store-sqlite-sql.ts';

/** Pages in memory. */
const CACHE_KIB = 32 * 1024;
const VERSIONS_PAGE = 256;

const SCHEMA = `
	CREATE TABLE shards (
		version BLOB NOT NULL,
		segment INTEGER NOT NULL,
		encoding BLOB NOT NULL,
		shard_index INTEGER NOT NULL,
		shard BLOB NOT NULL,
		worker BLOB NOT NULL,
		seal BLOB NOT NULL,
		codec INTEGER NOT NULL,
		k INTEGER NOT NULL,
		n INTEGER NOT NULL,
		cell_bytes INTEGER NOT NULL,
		cells INTEGER NOT NULL,
		last_cell_bytes INTEGER NOT NULL,
		root BLOB NOT NULL,
		end_record BLOB NOT NULL,
		written_at_ms INTEGER NOT NULL,
		PRIMARY KEY (version, segment, encoding, shard_index, shard, worker)
	) STRICT, WITHOUT ROWID;
	CREATE TABLE recoveries (
		version BLOB NOT NULL, digest BLOB NOT NULL, record BLOB NOT NULL, PRIMARY KEY (version, digest)
	) STRICT, WITHOUT ROWID;
	CREATE TABLE trees (root BLOB PRIMARY KEY, leaves BLOB NOT NULL) STRICT, WITHOUT ROWID;
	CREATE TABLE known (
		version BLOB PRIMARY KEY, record BLOB NOT NULL, is_seen INTEGER NOT NULL DEFAULT 0
	) STRICT, WITHOUT ROWID;
	CREATE TABLE known_segments (
		version BLOB NOT NULL, segment INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY (version, segment)
	) STRICT, WITHOUT ROWID;
	CREATE TABLE under_way (object BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
	CREATE TABLE taken (object BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
`;

type ShardRow = { readonly [column: string]: Uint8Array | number };

export class ScanIndex {
	readonly #path: string;
	readonly #db: DatabaseSync;
	readonly #sql: CachedSql;

	/** `path` is made; what is there is not kept. */
	constructor(path: string) {
		this.#path = path;
		removeFiles(path);
		this.#db = new DatabaseSync(path);
		// A restore that was killed begins with a new one: nothing here need survive.
		this.#db.exec(`PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
			PRAGMA cache_size = -${CACHE_KIB}; PRAGMA temp_store = MEMORY; ${SCHEMA}`);
		this.#sql = new CachedSql(this.#db);
	}

	/** Many at once cost much less than one by one. */
	together(write: () => void): void {
		this.#db.exec('BEGIN');
		try {
			write();
		} finally {
			// Whatever it threw: there is no rollback without a journal, and the next one must be able to begin.
			this.#db.exec('COMMIT');
		}
	}

	addShard(trailer: Trailer, at: { workerId: WorkerId; writtenAtMs: number }): void {
		const { description: d, root, leaves, endRecord, recovery } = trailer;
		const version = idBytes(d.versionId);
		this.#sql.run(
			`INSERT INTO shards (version, segment, encoding, shard_index, shard, worker, seal, codec, k, n, cell_bytes, cells,
				last_cell_bytes, root, end_record, written_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
				ON CONFLICT DO NOTHING`,
			version,
			d.segment,
			idBytes(d.encodingId),
			d.shardIndex,
			idBytes(d.shardId),
			idBytes(at.workerId),
			idBytes(d.sealId),
			CODECS.indexOf(d.codec),
			d.k,
			d.n,
			d.cellBytes,
			d.cells,
			d.lastCellBytes,
			root,
			endRecord,
			at.writtenAtMs,
		);
		this.#sql.run(
			'INSERT INTO recoveries (version, digest, record) VALUES (?, ?, ?) ON CONFLICT DO NOTHING',
			version,
			checksum(recovery),
			recovery,
		);
		// Leaves of parity are in nobody's ETag.
		if (d.k > 1 && d.shardIndex >= d.k) return;
		this.#sql.run('INSERT INTO trees (root, leaves) VALUES (?, ?) ON CONFLICT DO NOTHING', root, leaves);
	}

	leaves(root: Buffer): Buffer | null {
		const row = this.#sql.get<{ leaves: Uint8Array }>('SELECT leaves FROM trees WHERE root = ?', root);
		return row === undefined ? null : bufferOf(row.leaves);
	}

	addKnown(object: SnapshotObject): void {
		const record = encodeRecord({ is: 'object', object });
		this.#sql.run('INSERT INTO known (version, record) VALUES (?, ?)', idBytes(object.versionId), record);
	}

	addKnownSegment(versionId: VersionId, record: Extract<SnapshotRecord, { is: 'segment' }>): void {
		this.#sql.run(
			'INSERT INTO known_segments (version, segment, record) VALUES (?, ?, ?)',
			idBytes(versionId),
			record.segment.index,
			encodeRecord(record),
		);
	}

	addUnderWay(objectId: ObjectId): void {
		this.#sql.run('INSERT INTO under_way (object) VALUES (?) ON CONFLICT DO NOTHING', idBytes(objectId));
	}

	isUnderWay(objectId: ObjectId): boolean {
		return this.#sql.get('SELECT 1 FROM under_way WHERE object = ?', idBytes(objectId)) !== undefined;
	}

	/** False when it was taken before: two versions say that they are the same object. */
	take(objectId: ObjectId): boolean {
		const { changes } = this.#sql.run(
			'INSERT INTO taken (object) VALUES (?) ON CONFLICT DO NOTHING',
			idBytes(objectId),
		);
		return changes > 0;
	}

	/** Another snapshot is tried. */
	forgetKnown(): void {
		for (const table of ['known', 'known_segments', 'under_way']) this.#db.exec(`DELETE FROM ${table}`);
	}

	counts(): { shards: number; versions: number; known: number } {
		return this.#sql.get(
			`SELECT (SELECT count(*) FROM shards) AS shards, (SELECT count(DISTINCT version) FROM shards) AS versions,
				(SELECT count(*) FROM known) AS known`,
		) as { shards: number; versions: number; known: number };
	}

	/** All that have a shard, in order of id. */
	*versions(): Generator<VersionId> {
		for (let after: Uint8Array = Buffer.alloc(0); ; ) {
			const page = this.#sql.all<{ version: Uint8Array }>(
				`SELECT DISTINCT version FROM shards WHERE version > ? ORDER BY version LIMIT ${VERSIONS_PAGE}`,
				after,
			);
			for (const { version } of page) yield idFromBytes<VersionId>(version);
			const last = page.at(-1);
			if (last === undefined) return;
			after = last.version;
		}
	}

	found(versionId: VersionId): FoundVersion {
		const shards = this.#sql.all<ShardRow>('SELECT * FROM shards WHERE version = ?', idBytes(versionId)).map(toShard);
		return { versionId, shards, recoveries: this.recoveries(versionId) };
	}

	/** One that is damaged: as if it were not there. */
	recoveries(versionId: VersionId): RecoveryRecord[] {
		const rows = this.#sql.all<{ record: Uint8Array }>(
			'SELECT record FROM recoveries WHERE version = ?',
			idBytes(versionId),
		);
		return rows.flatMap(({ record }) => {
			try {
				return decodeRecovery(bufferOf(record));
			} catch {
				return [];
			}
		});
	}

	known(versionId: VersionId): KnownVersion | null {
		const version = idBytes(versionId);
		const row = this.#sql.get<{ record: Uint8Array }>('SELECT record FROM known WHERE version = ?', version);
		if (row === undefined) return null;
		const segments = this.#sql.all<{ record: Uint8Array }>(
			'SELECT record FROM known_segments WHERE version = ? ORDER BY segment',
			version,
		);
		return {
			object: objectOf(row.record),
			segments: segments.map(({ record }) => {
				const decoded = decodeRecord(bufferOf(record));
				if (decoded.is !== 'segment') throw new TypeError('not a segment');
				return decoded.segment;
			}),
		};
	}

	markSeen(versionId: VersionId): void {
		this.#sql.run('UPDATE known SET is_seen = 1 WHERE version = ?', idBytes(versionId));
	}

	/** Those of the snapshot that have no shard anywhere, and those that have none because they are inline. */
	*unseen(): Generator<SnapshotObject> {
		for (let after: Uint8Array = Buffer.alloc(0); ; ) {
			const page = this.#sql.all<{ version: Uint8Array; record: Uint8Array }>(
				`SELECT version, record FROM known WHERE is_seen = 0 AND version > ? ORDER BY version LIMIT ${VERSIONS_PAGE}`,
				after,
			);
			for (const { record } of page) yield objectOf(record);
			const last = page.at(-1);
			if (last === undefined) return;
			after = last.version;
		}
	}

	close(): void {
		this.#db.close();
		removeFiles(this.#path);
	}
}

function objectOf(record: Uint8Array): SnapshotObject {
	const decoded = decodeRecord(bufferOf(record));
	if (decoded.is !== 'object') throw new TypeError('not an object');
	return decoded.object;
}

function removeFiles(path: string): void {
	for (const file of [path, `${path}-journal`, `${path}-wal`]) if (existsSync(file)) rmSync(file);
}

function toShard(row: ShardRow): FoundShard {
	const id = (column: string) => idFromBytes<never>(row[column] as Uint8Array);
	const bytes = (column: string) => bufferOf(row[column] as Uint8Array);
	return {
		segment: row.segment as number,
		shardIndex: row.shard_index as number,
		codec: CODECS[row.codec as number] as FoundShard['codec'],
		k: row.k as number,
		n: row.n as number,
		cellBytes: row.cell_bytes as number,
		cells: row.cells as number,
		lastCellBytes: row.last_cell_bytes as number,
		writtenAtMs: row.written_at_ms as number,
		sealId: id('seal'),
		encodingId: id('encoding'),
		shardId: id('shard'),
		workerId: id('worker'),
		root: bytes('root'),
		endRecord: bytes('end_record'),
	};
}
