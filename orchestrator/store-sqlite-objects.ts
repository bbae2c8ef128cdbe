/**
 * Objects and segments, in SQLite; what is deleted is in store-sqlite-trash.ts, the cluster's own row in store-sqlite-keys.ts.
 * Columns get the names of the port's fields in the query, so that a record needs only its blobs wrapped.
 */

import type { ObjectId, VersionId } from '../core/ids.ts';
import type { ObjectKind } from '../core/model/manifest.ts';
import type { FormerCode, Placement, Segment } from '../core/model/segment.ts';
import type { ObjectPage, ObjectRow, StoreCounts, WholeObject, WholePage } from './store.ts';
import { cursorOf, notAPlace, parseCursor } from './store-rules.ts';
import { bufferOf, type Sql } from './store-sqlite-sql.ts';

export const OBJECT_COLUMNS = `object_no AS objectNo, object_id AS objectId, version_id AS versionId,
	upload_id AS uploadId, size_bytes AS sizeBytes, segments, created_at_ms AS createdAtMs, etag,
	key_generation AS keyGeneration, wrapped_key AS wrappedKey, manifest, inline, kind`;

export type ObjectRecord = Omit<ObjectRow, 'wrappedKey' | 'manifest' | 'inline'> & {
	readonly objectNo: number;
	readonly wrappedKey: Uint8Array;
	readonly manifest: Uint8Array;
	readonly inline: Uint8Array | null;
};

export function toObject({ objectNo: _, ...record }: ObjectRecord): ObjectRow {
	return {
		...record,
		wrappedKey: bufferOf(record.wrappedKey),
		manifest: bufferOf(record.manifest),
		inline: record.inline === null ? null : bufferOf(record.inline),
	};
}

export function object(sql: Sql, objectId: ObjectId): ObjectRow | null {
	const record = liveObject(sql, objectId);
	return record === undefined ? null : toObject(record);
}

function liveObject(sql: Sql, objectId: ObjectId): ObjectRecord | undefined {
	return sql.get<ObjectRecord>(
		`SELECT ${OBJECT_COLUMNS} FROM objects WHERE object_id = ? AND purge_at_ms IS NULL`,
		objectId,
	);
}

export function objectWithSegments(
	sql: Sql,
	objectId: ObjectId,
	options: { fromSegment: number; limit: number },
): { object: ObjectRow; segments: readonly Segment[] } | null {
	const record = liveObject(sql, objectId);
	if (record === undefined) return null;
	return { object: toObject(record), segments: segmentsOf(sql, record.objectNo, options) };
}

export function segments(
	sql: Sql,
	versionId: VersionId,
	options: { fromSegment: number; limit: number },
): readonly Segment[] {
	const objectNo = objectNoOf(sql, versionId);
	return objectNo === null ? [] : segmentsOf(sql, objectNo, options);
}

export function objectNoOf(sql: Sql, versionId: VersionId): number | null {
	const row = sql.get<{ objectNo: number }>(
		'SELECT object_no AS objectNo FROM objects WHERE version_id = ?',
		versionId,
	);
	return row?.objectNo ?? null;
}

type SegmentRecord = Omit<Segment, 'endRecord' | 'roots' | 'placements' | 'was'> & {
	readonly endRecord: Uint8Array;
	readonly roots: Uint8Array;
	/** JSON. */
	readonly was: string | null;
};

/** Of one object. Ranges, because SQLite prepares a statement with `LIMIT ?` anew for each value: 13 of 18 µs. */
export function segmentsOf(sql: Sql, objectNo: number, options: { fromSegment: number; limit: number }): Segment[] {
	const lastSegment = options.fromSegment + options.limit - 1;
	const records = sql.all<SegmentRecord>(
		`SELECT segment AS "index", codec, k, n, cell_bytes AS cellBytes, cells, last_cell_bytes AS lastCellBytes,
				seal_id AS sealId, encoding_id AS encodingId, end_record AS endRecord, roots, because, was
			FROM segments WHERE object_no = ? AND segment BETWEEN ? AND ? ORDER BY segment`,
		objectNo,
		options.fromSegment,
		lastSegment,
	);
	if (records.length === 0) return [];
	const placements = sql.all<Placement & { segment: number }>(
		`SELECT segment, shard_index AS shardIndex, worker_id AS workerId, shard_id AS shardId FROM placements
			WHERE object_no = ? AND segment BETWEEN ? AND ? ORDER BY segment, shard_index`,
		objectNo,
		options.fromSegment,
		lastSegment,
	);
	const bySegment = new Map<number, Placement[]>(records.map(({ index }) => [index, []]));
	for (const { segment, shardIndex, workerId, shardId } of placements) {
		bySegment.get(segment)?.push({ shardIndex, workerId, shardId });
	}
	return records.map(({ was, ...record }) => ({
		...record,
		endRecord: bufferOf(record.endRecord),
		roots: bufferOf(record.roots),
		placements: bySegment.get(record.index) ?? [],
		...(was === null ? {} : { was: JSON.parse(was) as FormerCode }),
	}));
}

export function list(sql: Sql, options: { limit: number; after: string | null; kind?: ObjectKind }): ObjectPage {
	const { kind = 'user' } = options;
	// One more than asked for tells whether there is another page.
	const limit = options.limit + 1;
	const order = 'ORDER BY created_at_ms DESC, object_id DESC LIMIT ?';
	let records: ObjectRecord[];
	if (options.after === null) {
		records = sql.all<ObjectRecord>(
			`SELECT ${OBJECT_COLUMNS} FROM objects WHERE purge_at_ms IS NULL AND kind = ? ${order}`,
			kind,
			limit,
		);
	} else {
		const after = parseCursor(options.after);
		records = sql.all<ObjectRecord>(
			`SELECT ${OBJECT_COLUMNS} FROM objects
				WHERE purge_at_ms IS NULL AND kind = ? AND (created_at_ms, object_id) < (?, ?) ${order}`,
			kind,
			after.atMs,
			after.objectId,
			limit,
		);
	}
	const objects = records.slice(0, options.limit).map(toObject);
	const last = objects.at(-1);
	return { objects, next: last === undefined || records.length < limit ? null : cursorOf(last) };
}

type WholeRecord = ObjectRecord & { readonly deletedAtMs: number | null; readonly purgeAtMs: number | null };

/** In order of their numbers. */
export function wholeObjects(sql: Sql, options: { after: string | null; limit: number }): WholePage {
	const { after, limit } = options;
	if (after !== null && !/^\d{1,15}$/.test(after)) throw notAPlace();
	const records = sql.all<WholeRecord>(
		`SELECT ${OBJECT_COLUMNS}, deleted_at_ms AS deletedAtMs, purge_at_ms AS purgeAtMs FROM objects
			WHERE object_no > ? ORDER BY object_no LIMIT ?`,
		after === null ? 0 : Number(after),
		limit + 1,
	);
	const objects: WholeObject[] = [];
	let segments = 0;
	for (const { deletedAtMs, purgeAtMs, ...record } of records.slice(0, limit)) {
		if (segments >= limit) break;
		segments += record.segments;
		objects.push({
			object: toObject(record),
			trash: deletedAtMs === null || purgeAtMs === null ? null : { deletedAtMs, purgeAtMs },
			segments:
				record.segments === 0 ? [] : segmentsOf(sql, record.objectNo, { fromSegment: 0, limit: record.segments }),
		});
	}
	const last = records[objects.length - 1];
	return { objects, next: last === undefined || objects.length === records.length ? null : String(last.objectNo) };
}

/** Kept by triggers in the same transactions: the cost is the same for any number of objects. */
export function counts(sql: Sql): StoreCounts {
	// The sum of sizes may pass 2^53: a figure for people, so rounding is fine.
	return sql.get<StoreCounts>(
		`SELECT objects, CAST(bytes AS REAL) AS bytes, trash_objects AS trashObjects,
				CAST(trash_bytes AS REAL) AS trashBytes, intents, deletions, repairs FROM totals`,
	) as StoreCounts;
}
