/**
 * From intent to object, in SQLite: what a writer needs. Each function is part of one transaction that its caller holds
 * (store-sqlite-batch.ts); what it throws undoes it alone.
 */

import type { ObjectId, ShardId, UploadId } from '../core/ids.ts';
import type { Segment } from '../core/model/segment.ts';
import type { Commit, Idempotency, IdempotencyClaim, IntendedShard, IntentRow, Lease, ObjectRow } from './store.ts';
import {
	alreadyCommitted,
	checkCommit,
	keyTaken,
	missingIndexes,
	neverNamed,
	notOpen,
	objectTaken,
	workerForgotten,
} from './store-rules.ts';
import { checkGeneration } from './store-sqlite-keys.ts';
import { checkLease } from './store-sqlite-leases.ts';
import { OBJECT_COLUMNS, type ObjectRecord, toObject } from './store-sqlite-objects.ts';
import { enterSets } from './store-sqlite-sets.ts';
import type { Sql } from './store-sqlite-sql.ts';

export function begin(
	sql: Sql,
	intent: { uploadId: UploadId; objectId: ObjectId; shards: readonly IntendedShard[]; expiresAtMs: number },
): void {
	const { uploadId, objectId, expiresAtMs } = intent;
	if (sql.get('SELECT 1 FROM objects WHERE upload_id = ?', uploadId) !== undefined) throw alreadyCommitted(uploadId);
	sql.run(
		`INSERT INTO intents (upload_id, object_id, expires_at_ms, began_at_ms) VALUES (?, ?, ?, ?)
			ON CONFLICT DO NOTHING`,
		uploadId,
		objectId,
		expiresAtMs,
		Date.now(),
	);
	nameShards(sql, uploadId, intent.shards);
}

export function extend(sql: Sql, uploadId: UploadId, shards: readonly IntendedShard[]): void {
	if (sql.get('SELECT 1 FROM intents WHERE upload_id = ?', uploadId) === undefined) throw notOpen(uploadId);
	nameShards(sql, uploadId, shards);
}

function nameShards(sql: Sql, uploadId: UploadId, shards: readonly IntendedShard[]): void {
	for (const { shardId, workerId } of shards) {
		// It would be placed on nobody, or be deleted by nobody.
		const gone = sql.get(
			`SELECT 1 FROM forgotten_workers WHERE worker_id = ?1
				AND NOT EXISTS (SELECT 1 FROM workers WHERE worker_id = ?1)`,
			workerId,
		);
		if (gone !== undefined) throw workerForgotten();
		sql.run(
			'INSERT INTO intent_shards (upload_id, shard_id, worker_id) VALUES (?, ?, ?) ON CONFLICT DO NOTHING',
			uploadId,
			shardId,
			workerId,
		);
	}
}

export function renew(sql: Sql, uploadId: UploadId, expiresAtMs: number): void {
	const { changes } = sql.run('UPDATE intents SET expires_at_ms = ? WHERE upload_id = ?', expiresAtMs, uploadId);
	if (changes === 0) throw notOpen(uploadId);
	sql.run(
		`UPDATE idempotency SET expires_at_ms = max(expires_at_ms, ?) WHERE upload_id = ? AND object_id IS NULL`,
		expiresAtMs,
		uploadId,
	);
}

/** The shards that an intent named, once the intent is closed; null when it was not open. */
export function closeIntent(sql: Sql, uploadId: UploadId): IntendedShard[] | null {
	// The compare-and-set on which everything hangs: only one of commit and abort finds the row.
	if (sql.run('DELETE FROM intents WHERE upload_id = ?', uploadId).changes === 0) return null;
	const shards = sql.all<IntendedShard>(
		'SELECT shard_id AS shardId, worker_id AS workerId FROM intent_shards WHERE upload_id = ?',
		uploadId,
	);
	sql.run('DELETE FROM intent_shards WHERE upload_id = ?', uploadId);
	return shards;
}

/** What is placed stays, whatever the caller believes: the last guard of what was acknowledged. */
export function queueDeletions(sql: Sql, shards: Iterable<IntendedShard>, nowMs: number): void {
	for (const { shardId, workerId } of shards) {
		sql.run(
			`INSERT INTO deletions (worker_id, shard_id, queued_at_ms)
				SELECT ?1, ?2, ?3 WHERE NOT EXISTS (SELECT 1 FROM placements WHERE shard_id = ?2) ON CONFLICT DO NOTHING`,
			workerId,
			shardId,
			nowMs,
		);
	}
}

/** The stored row when this upload was committed before; null when it is committed now, just as it was given. */
export function commit(sql: Sql, commit: Commit): ObjectRow | null {
	const { object, segments, idempotency, nowMs } = commit;
	const known = sql.get<ObjectRecord>(`SELECT ${OBJECT_COLUMNS} FROM objects WHERE upload_id = ?`, object.uploadId);
	if (known !== undefined) return toObject(known);
	checkCommit(commit);
	const dropped = checkGeneration(sql, object.keyGeneration);
	if (dropped !== null) throw dropped;
	const intended = closeIntent(sql, object.uploadId);
	if (intended === null && segments.length > 0) throw notOpen(object.uploadId);
	if (idempotency !== null) finishIdempotency(sql, idempotency, { object, nowMs });

	// Everything that was named and is not placed is to be deleted.
	const leftOver = new Map<ShardId, IntendedShard>((intended ?? []).map((shard) => [shard.shardId, shard]));
	for (const { placements } of segments) {
		for (const { shardId, workerId } of placements) {
			if (leftOver.get(shardId)?.workerId !== workerId) throw neverNamed(shardId);
			leftOver.delete(shardId);
		}
	}
	const placed = new Set(segments.flatMap(({ placements }) => placements.map(({ shardId }) => shardId)));
	for (const shard of commit.abandoned) if (!placed.has(shard.shardId)) leftOver.set(shard.shardId, shard);

	insertObject(sql, commit);
	queueDeletions(sql, leftOver.values(), nowMs);
	return null;
}

function insertObject(sql: Sql, { object, segments, nowMs }: Commit): void {
	const { spreadNo, setNos } = enterSets(sql, { ...object, isUncounted: object.kind !== 'user' }, segments);
	const inserted = sql.run(
		`INSERT INTO objects (object_id, version_id, upload_id, size_bytes, segments, created_at_ms, etag, key_generation,
			wrapped_key, manifest, inline, spread_no, kind) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (object_id) DO NOTHING`,
		object.objectId,
		object.versionId,
		object.uploadId,
		object.sizeBytes,
		object.segments,
		object.createdAtMs,
		object.etag,
		object.keyGeneration,
		object.wrappedKey,
		object.manifest,
		object.inline,
		spreadNo,
		object.kind,
	);
	if (inserted.changes === 0) throw objectTaken(object.objectId);
	const objectNo = inserted.lastRowId;
	for (const segment of segments) {
		sql.run(
			`INSERT INTO segments (object_no, segment, codec, k, n, cell_bytes, cells, last_cell_bytes, seal_id, encoding_id,
				end_record, roots, because, set_no) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			objectNo,
			segment.index,
			segment.codec,
			segment.k,
			segment.n,
			segment.cellBytes,
			segment.cells,
			segment.lastCellBytes,
			segment.sealId,
			segment.encodingId,
			segment.endRecord,
			segment.roots,
			segment.because,
			setNos[segment.index] as number,
		);
		insertPlacements(sql, { objectNo, segment, keyGeneration: object.keyGeneration });
		const missing = missingIndexes(segment);
		for (const shardIndex of missing) {
			sql.run(
				`INSERT INTO repairs (object_no, segment, shard_index, spares, attempts, due_at_ms) VALUES (?, ?, ?, ?, 0, ?)`,
				objectNo,
				segment.index,
				shardIndex,
				segment.n - segment.k - missing.length,
				nowMs,
			);
		}
	}
}

/** `keyGeneration`: of the data key in their trailers. */
export function insertPlacements(sql: Sql, of: { objectNo: number; segment: Segment; keyGeneration: number }): void {
	const { index, placements } = of.segment;
	for (const { shardIndex, shardId, workerId } of placements) {
		sql.run(
			`INSERT INTO placements (object_no, segment, shard_index, shard_id, worker_id, key_generation)
				VALUES (?, ?, ?, ?, ?, ?)`,
			of.objectNo,
			index,
			shardIndex,
			shardId,
			workerId,
			of.keyGeneration,
		);
	}
}

export function abort(sql: Sql, uploadId: UploadId, nowMs: number): void {
	queueDeletions(sql, closeIntent(sql, uploadId) ?? [], nowMs);
	sql.run('DELETE FROM idempotency WHERE upload_id = ? AND object_id IS NULL', uploadId);
}

export function expireIntents(sql: Sql, nowMs: number, limit: number, lease?: Lease): number {
	checkLease(sql, lease);
	const expired = sql.all<{ uploadId: UploadId }>(
		`SELECT upload_id AS uploadId FROM intents WHERE expires_at_ms <= ? ORDER BY expires_at_ms, upload_id LIMIT ?`,
		nowMs,
		limit,
	);
	for (const { uploadId } of expired) abort(sql, uploadId, nowMs);
	sql.run(
		`DELETE FROM idempotency WHERE (owner, key) IN
			(SELECT owner, key FROM idempotency WHERE expires_at_ms <= ? ORDER BY expires_at_ms LIMIT ?)`,
		nowMs,
		limit,
	);
	return expired.length;
}

export function intents(sql: Sql, limit: number): readonly IntentRow[] {
	const rows = sql.all<Omit<IntentRow, 'state'>>(
		`SELECT upload_id AS uploadId, object_id AS objectId, expires_at_ms AS expiresAtMs
			FROM intents ORDER BY expires_at_ms, upload_id LIMIT ?`,
		limit,
	);
	return rows.map((row) => ({ ...row, state: 'open' }));
}

interface Claim {
	readonly fingerprint: string;
	readonly uploadId: UploadId;
	readonly objectId: ObjectId | null;
}

/** Null when the key is free. */
function heldClaim(sql: Sql, { owner, key }: Idempotency, nowMs: number): Claim | null {
	const claim = sql.get<Claim>(
		`SELECT fingerprint, upload_id AS uploadId, object_id AS objectId
			FROM idempotency WHERE owner = ? AND key = ? AND expires_at_ms > ?`,
		owner,
		key,
		nowMs,
	);
	return claim ?? null;
}

function saveClaim(sql: Sql, claim: Idempotency, objectId: ObjectId | null): void {
	sql.run(
		`INSERT OR REPLACE INTO idempotency (owner, key, fingerprint, upload_id, expires_at_ms, object_id)
			VALUES (?, ?, ?, ?, ?, ?)`,
		claim.owner,
		claim.key,
		claim.fingerprint,
		claim.uploadId,
		claim.expiresAtMs,
		objectId,
	);
}

function finishIdempotency(sql: Sql, claim: Idempotency, by: { object: ObjectRow; nowMs: number }): void {
	const { uploadId, objectId } = by.object;
	const held = heldClaim(sql, claim, by.nowMs);
	if (held !== null && held.uploadId !== uploadId) throw keyTaken();
	saveClaim(sql, { ...claim, uploadId }, objectId);
}

export function claimIdempotency(sql: Sql, claim: Idempotency, nowMs: number): IdempotencyClaim {
	const held = heldClaim(sql, claim, nowMs);
	if (held === null) {
		saveClaim(sql, claim, null);
		return { state: 'claimed' };
	}
	if (held.fingerprint !== claim.fingerprint) return { state: 'mismatch' };
	if (held.objectId !== null) return { state: 'done', objectId: held.objectId };
	return { state: held.uploadId === claim.uploadId ? 'claimed' : 'running' };
}
