/**
 * What becomes of deleted objects, in SQLite: trash, purge, the delete queues of workers, and the log of deletions. An
 * object in the trash keeps its rows and is on no spread; its segments stay on their worker sets.
 */

import {
	type Deletion,
	type DeletionAction,
	type DeletionEntry,
	type DeletionHead,
	NO_DELETIONS,
	nextDeletion,
} from '../core/crypto/deletion-log.ts';
import type { ObjectId, ShardId, WorkerId } from '../core/ids.ts';
import type { DeletedBy, Lease, QueuedDeletion, TrashedObject, TrashPage } from './store.ts';
import { parseCursor, trashCursorOf } from './store-rules.ts';
import { checkLease } from './store-sqlite-leases.ts';
import { OBJECT_COLUMNS, type ObjectRecord, toObject } from './store-sqlite-objects.ts';
import { enterSpreadAgain, leaveObjectSpread, leaveSets } from './store-sqlite-sets.ts';
import { bufferOf, type Sql } from './store-sqlite-sql.ts';

/** Of objects that are purged at once: at least one, and no more once there are so many. */
const PURGE_SEGMENTS = 1_000;

export function deleteObject(sql: Sql, objectId: ObjectId, options: DeletedBy & { purgeAtMs: number }): boolean {
	const { nowMs, purgeAtMs, by } = options;
	const row = sql.get<{ objectNo: number }>(
		'SELECT object_no AS objectNo FROM objects WHERE object_id = ? AND purge_at_ms IS NULL',
		objectId,
	);
	if (row === undefined) return false;
	leaveObjectSpread(sql, row.objectNo);
	if (purgeAtMs <= nowMs) {
		purge(sql, { ...row, objectId }, { nowMs, by });
		return true;
	}
	sql.run(
		'UPDATE objects SET deleted_at_ms = ?, purge_at_ms = ?, spread_no = NULL WHERE object_no = ?',
		nowMs,
		purgeAtMs,
		row.objectNo,
	);
	log(sql, { objectId, action: 'trashed', atMs: nowMs, by });
	return true;
}

function trashedNo(sql: Sql, objectId: ObjectId): number | null {
	const row = sql.get<{ objectNo: number }>(
		'SELECT object_no AS objectNo FROM objects WHERE object_id = ? AND purge_at_ms IS NOT NULL',
		objectId,
	);
	return row?.objectNo ?? null;
}

export function undeleteObject(sql: Sql, objectId: ObjectId, { nowMs, by }: DeletedBy): boolean {
	const objectNo = trashedNo(sql, objectId);
	if (objectNo === null) return false;
	sql.run('UPDATE objects SET deleted_at_ms = NULL, purge_at_ms = NULL WHERE object_no = ?', objectNo);
	enterSpreadAgain(sql, objectNo);
	log(sql, { objectId, action: 'undeleted', atMs: nowMs, by });
	return true;
}

export function purgeObject(sql: Sql, objectId: ObjectId, options: DeletedBy): boolean {
	const objectNo = trashedNo(sql, objectId);
	if (objectNo === null) return false;
	purge(sql, { objectNo, objectId }, options);
	return true;
}

export function purgeTrash(sql: Sql, nowMs: number, limit: number, lease?: Lease): number {
	checkLease(sql, lease);
	const due = sql.all<{ objectNo: number; objectId: ObjectId; segments: number }>(
		`SELECT object_no AS objectNo, object_id AS objectId, segments FROM objects
			WHERE purge_at_ms IS NOT NULL AND purge_at_ms <= ? ORDER BY purge_at_ms, object_id LIMIT ?`,
		nowMs,
		limit,
	);
	let purged = 0;
	// Whoever else wants the database waits meanwhile.
	for (let segments = 0; purged < due.length && segments < PURGE_SEGMENTS; purged++) {
		const object = due[purged] as (typeof due)[number];
		purge(sql, object, { nowMs, by: '' });
		segments += object.segments;
	}
	return purged;
}

/** Of an object that is on no spread any more. */
function purge(sql: Sql, object: { objectNo: number; objectId: ObjectId }, { nowMs, by }: DeletedBy): void {
	const { objectNo, objectId } = object;
	leaveSets(sql, objectNo);
	sql.run(
		`INSERT INTO deletions (worker_id, shard_id, queued_at_ms, for_good)
			SELECT worker_id, shard_id, ?, 1 FROM placements WHERE object_no = ? ORDER BY segment, shard_index
			ON CONFLICT DO NOTHING`,
		nowMs,
		objectNo,
	);
	sql.run('DELETE FROM findings WHERE object_no = ?', objectNo);
	sql.run('DELETE FROM repairs WHERE object_no = ?', objectNo);
	sql.run('DELETE FROM placements WHERE object_no = ?', objectNo);
	sql.run('DELETE FROM segments WHERE object_no = ?', objectNo);
	sql.run('DELETE FROM objects WHERE object_no = ?', objectNo);
	log(sql, { objectId, action: 'purged', atMs: nowMs, by });
}

type TrashRecord = ObjectRecord & Omit<TrashedObject, 'object'>;

const TRASH_COLUMNS = `${OBJECT_COLUMNS}, deleted_at_ms AS deletedAtMs, purge_at_ms AS purgeAtMs`;

function toTrashed({ deletedAtMs, purgeAtMs, ...record }: TrashRecord): TrashedObject {
	return { object: toObject(record), deletedAtMs, purgeAtMs };
}

export function trashed(sql: Sql, objectId: ObjectId): TrashedObject | null {
	const record = sql.get<TrashRecord>(
		`SELECT ${TRASH_COLUMNS} FROM objects WHERE object_id = ? AND purge_at_ms IS NOT NULL`,
		objectId,
	);
	return record === undefined ? null : toTrashed(record);
}

export function trash(sql: Sql, options: { limit: number; after: string | null }): TrashPage {
	const after = options.after === null ? null : parseCursor(options.after);
	// One more than asked for tells whether there is another page.
	const records = sql.all<TrashRecord>(
		`SELECT ${TRASH_COLUMNS} FROM objects
			WHERE purge_at_ms IS NOT NULL AND (purge_at_ms, object_id) < (?, ?)
			ORDER BY purge_at_ms DESC, object_id DESC LIMIT ?`,
		after?.atMs ?? Number.MAX_SAFE_INTEGER,
		after?.objectId ?? 'g',
		options.limit + 1,
	);
	const objects = records.slice(0, options.limit).map(toTrashed);
	const last = objects.at(-1);
	return { objects, next: last === undefined || records.length <= options.limit ? null : trashCursorOf(last) };
}

function log(sql: Sql, deletion: Deletion): void {
	const { number, objectId, action, atMs, by, hash } = nextDeletion(deletionHead(sql), deletion);
	sql.run(
		'INSERT INTO deletion_log (entry_no, object_id, action, at_ms, by_key, hash) VALUES (?, ?, ?, ?, ?, ?)',
		number,
		objectId,
		action,
		atMs,
		by,
		hash,
	);
	sql.run('INSERT OR REPLACE INTO deletion_head (one, entries, hash) VALUES (1, ?, ?)', number, hash);
}

export function deletionHead(sql: Sql): DeletionHead {
	const head = sql.get<{ entries: number; hash: Uint8Array }>('SELECT entries, hash FROM deletion_head');
	return head === undefined ? NO_DELETIONS : { entries: head.entries, hash: bufferOf(head.hash) };
}

export function deletionLog(sql: Sql, options: { limit: number; after: number }): readonly DeletionEntry[] {
	const entries = sql.all<Omit<DeletionEntry, 'action' | 'hash'> & { action: DeletionAction; hash: Uint8Array }>(
		`SELECT entry_no AS number, object_id AS objectId, action, at_ms AS atMs, by_key AS by, hash
			FROM deletion_log WHERE entry_no > ? ORDER BY entry_no LIMIT ?`,
		options.after,
		options.limit,
	);
	return entries.map((entry) => ({ ...entry, hash: bufferOf(entry.hash) }));
}

export function deletions(sql: Sql, workerId: WorkerId, limit: number): readonly QueuedDeletion[] {
	const rows = sql.all<{ shardId: ShardId; forGood: number }>(
		'SELECT shard_id AS shardId, for_good AS forGood FROM deletions WHERE worker_id = ? ORDER BY item_no LIMIT ?',
		workerId,
		limit,
	);
	return rows.map(({ shardId, forGood }) => ({ shardId, forGood: forGood === 1 }));
}

export function deletionsDone(sql: Sql, workerId: WorkerId, shardIds: readonly ShardId[], lease?: Lease): void {
	checkLease(sql, lease);
	for (const shardId of shardIds) {
		sql.run('DELETE FROM deletions WHERE shard_id = ? AND worker_id = ?', shardId, workerId);
	}
}
