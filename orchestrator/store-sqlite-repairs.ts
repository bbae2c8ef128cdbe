/**
 * Findings and the repair queue, in SQLite. Every shard index that is missing or marked has exactly one queue item, so a
 * segment's spare shards are m minus its items; each item carries that number, and the queue's order is an index.
 */

import type { DistroError } from '../core/errors.ts';
import type { ShardId, UploadId, VersionId } from '../core/ids.ts';
import type { Finding, IntendedShard, Lease, RepairDone, RepairItem } from './store.ts';
import { neverNamed, notOpen, segmentGone, workerTaken } from './store-rules.ts';
import { checkGeneration } from './store-sqlite-keys.ts';
import { checkLease } from './store-sqlite-leases.ts';
import { objectNoOf } from './store-sqlite-objects.ts';
import { moveSegments } from './store-sqlite-sets.ts';
import type { Sql } from './store-sqlite-sql.ts';
import { closeIntent, queueDeletions } from './store-sqlite-uploads.ts';

export function addFindings(sql: Sql, findings: readonly Finding[]): readonly ShardId[] {
	const added: ShardId[] = [];
	const marked = new Map<number, Set<number>>();
	for (const { shardId, workerId, kind, detail, foundAtMs } of findings) {
		const placed = sql.get<{ objectNo: number; segment: number; shardIndex: number }>(
			`SELECT object_no AS objectNo, segment, shard_index AS shardIndex
				FROM placements WHERE shard_id = ? AND worker_id = ?`,
			shardId,
			workerId,
		);
		if (placed === undefined) continue;
		const { objectNo, segment, shardIndex } = placed;
		sql.run(
			`INSERT OR REPLACE INTO findings (shard_id, object_no, worker_id, kind, detail, found_at_ms)
				VALUES (?, ?, ?, ?, ?, ?)`,
			shardId,
			objectNo,
			workerId,
			kind,
			detail,
			foundAtMs,
		);
		const { changes } = sql.run(
			`INSERT INTO repairs (object_no, segment, shard_index, spares, attempts, due_at_ms) VALUES (?, ?, ?, 0, 0, ?)
				ON CONFLICT DO NOTHING`,
			objectNo,
			segment,
			shardIndex,
			foundAtMs,
		);
		if (changes > 0) countSpares(sql, objectNo, segment);
		marked.set(objectNo, (marked.get(objectNo) ?? new Set()).add(segment));
		added.push(shardId);
	}
	for (const [objectNo, segments] of marked) moveSegments(sql, objectNo, segments);
	return added;
}

function countSpares(sql: Sql, objectNo: number, segment: number): void {
	sql.run(
		`UPDATE repairs SET spares =
				(SELECT n - k FROM segments WHERE object_no = ?1 AND segment = ?2) -
				(SELECT count(*) FROM repairs WHERE object_no = ?1 AND segment = ?2)
			WHERE object_no = ?1 AND segment = ?2`,
		objectNo,
		segment,
	);
}

export function findings(sql: Sql, versionId: VersionId): readonly Finding[] {
	const objectNo = objectNoOf(sql, versionId);
	if (objectNo === null) return [];
	return sql.all<Finding>(
		`SELECT shard_id AS shardId, worker_id AS workerId, kind, detail, found_at_ms AS foundAtMs
			FROM findings WHERE object_no = ? ORDER BY shard_id`,
		objectNo,
	);
}

export function repairs(sql: Sql, options: { nowMs: number; limit: number }): readonly RepairItem[] {
	return sql.all<RepairItem>(
		`SELECT object_id AS objectId, version_id AS versionId, segment, encoding_id AS encodingId,
				shard_index AS shardIndex, attempts, due_at_ms AS dueAtMs
			FROM repairs INDEXED BY repairs_order
				JOIN objects USING (object_no)
				JOIN segments USING (object_no, segment)
			WHERE due_at_ms <= ? ORDER BY spares, item_no LIMIT ?`,
		options.nowMs,
		options.limit,
	);
}

/** The object's number, while the segment still has that encoding. */
export function encodedAs(
	sql: Sql,
	{ objectId, versionId, segment, encodingId }: Pick<RepairItem, 'objectId' | 'versionId' | 'segment' | 'encodingId'>,
): number | null {
	const row = sql.get<{ objectNo: number }>(
		`SELECT object_no AS objectNo FROM objects JOIN segments USING (object_no)
			WHERE object_id = ? AND version_id = ? AND segment = ? AND encoding_id = ?`,
		objectId,
		versionId,
		segment,
		encodingId,
	);
	return row?.objectNo ?? null;
}

export function deferRepair(sql: Sql, item: RepairItem, dueAtMs: number, lease?: Lease): void {
	checkLease(sql, lease);
	const objectNo = encodedAs(sql, item);
	if (objectNo === null) return;
	sql.run(
		'UPDATE repairs SET attempts = ?, due_at_ms = ? WHERE object_no = ? AND segment = ? AND shard_index = ?',
		item.attempts + 1,
		dueAtMs,
		objectNo,
		item.segment,
		item.shardIndex,
	);
}

/** A `conflict` is returned and not thrown: that the new shard is to be deleted must stay. */
export function repairDone(sql: Sql, done: RepairDone, uploadId: UploadId, lease?: Lease): DistroError | undefined {
	checkLease(sql, lease);
	const { item, placement, keyGeneration, nowMs } = done;
	const { shardIndex, segment } = item;
	if (sql.get('SELECT 1 FROM placements WHERE shard_id = ?', placement.shardId) !== undefined) return undefined;
	const dropped = checkGeneration(sql, keyGeneration);
	if (dropped !== null) throw dropped;
	const intended = closeIntent(sql, uploadId);
	if (intended === null) throw notOpen(uploadId);
	const isNew = ({ shardId }: { shardId: ShardId }) => shardId === placement.shardId;
	if (intended.find(isNew)?.workerId !== placement.workerId) throw neverNamed(placement.shardId);
	const objectNo = encodedAs(sql, item);
	if (objectNo === null) {
		queueDeletions(sql, intended, nowMs);
		return segmentGone();
	}
	const taken = sql.get(
		'SELECT 1 FROM placements WHERE object_no = ? AND segment = ? AND worker_id = ? AND shard_index <> ?',
		objectNo,
		segment,
		placement.workerId,
		shardIndex,
	);
	if (taken !== undefined) {
		queueDeletions(sql, intended, nowMs);
		return workerTaken();
	}
	const old = sql.get<IntendedShard>(
		`SELECT shard_id AS shardId, worker_id AS workerId FROM placements
			WHERE object_no = ? AND segment = ? AND shard_index = ?`,
		objectNo,
		segment,
		shardIndex,
	);
	if (old !== undefined) sql.run('DELETE FROM findings WHERE shard_id = ?', old.shardId);
	sql.run(
		`INSERT OR REPLACE INTO placements (object_no, segment, shard_index, shard_id, worker_id, key_generation)
			VALUES (?, ?, ?, ?, ?, ?)`,
		objectNo,
		segment,
		shardIndex,
		placement.shardId,
		placement.workerId,
		keyGeneration,
	);
	const { changes } = sql.run(
		'DELETE FROM repairs WHERE object_no = ? AND segment = ? AND shard_index = ?',
		objectNo,
		segment,
		shardIndex,
	);
	if (changes > 0) countSpares(sql, objectNo, segment);
	moveSegments(sql, objectNo, [segment]);
	const others = intended.filter((shard) => !isNew(shard));
	queueDeletions(sql, old === undefined ? others : [old, ...others], nowMs);
	return undefined;
}
