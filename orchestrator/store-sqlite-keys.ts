/**
 * The cluster's own row and the generations of its key, in SQLite: who needs which, and which volume has which revision.
 */

import type { DistroError } from '../core/errors.ts';
import type { ClusterId, WorkerId } from '../core/ids.ts';
import type { WrappedClusterKey } from '../core/model/keys-record.ts';
import type { ClusterRow, KeyUse, Lease, OldTrailers, RewrappedObject, WrappedDataKeyRow } from './store.ts';
import { generationDropped, generationNeeded, keysChanged, parsePlace, UNUSED_MARGIN_MS } from './store-rules.ts';
import { checkLease } from './store-sqlite-leases.ts';
import { storedSegment } from './store-sqlite-redundancy.ts';
import { bufferOf, type Sql } from './store-sqlite-sql.ts';

export function initCluster(sql: Sql, initial: ClusterRow): ClusterRow {
	const { changes } = sql.run(
		'INSERT INTO cluster (one, cluster_id, created_at_ms, revision) VALUES (1, ?, ?, ?) ON CONFLICT DO NOTHING',
		initial.clusterId,
		initial.createdAtMs,
		initial.revision,
	);
	if (changes > 0) for (const key of initial.keys) saveKey(sql, key);
	return cluster(sql) as ClusterRow;
}

export function cluster(sql: Sql): ClusterRow | null {
	const row = sql.get<{ clusterId: ClusterId; createdAtMs: number; revision: number }>(
		'SELECT cluster_id AS clusterId, created_at_ms AS createdAtMs, revision FROM cluster',
	);
	if (row === undefined) return null;
	const keys = sql.all<Omit<WrappedClusterKey, 'wrapped'> & { wrapped: Uint8Array }>(
		`SELECT generation, created_at_ms AS createdAtMs, master_key_id AS masterKeyId, wrapped
			FROM cluster_keys ORDER BY generation`,
	);
	return { ...row, keys: keys.map((key) => ({ ...key, wrapped: bufferOf(key.wrapped) })) };
}

function saveKey(sql: Sql, { generation, createdAtMs, masterKeyId, wrapped }: WrappedClusterKey): void {
	sql.run(
		`INSERT INTO cluster_keys (generation, created_at_ms, master_key_id, wrapped) VALUES (?, ?, ?, ?)
			ON CONFLICT (generation) DO UPDATE SET master_key_id = excluded.master_key_id, wrapped = excluded.wrapped`,
		generation,
		createdAtMs,
		masterKeyId,
		wrapped,
	);
}

function raiseRevision(sql: Sql, expected: number): void {
	const { changes } = sql.run('UPDATE cluster SET revision = revision + 1 WHERE revision = ?', expected);
	if (changes === 0) throw keysChanged();
}

export function changeClusterKeys(sql: Sql, keys: readonly WrappedClusterKey[], revision: number): ClusterRow {
	raiseRevision(sql, revision);
	for (const key of keys) saveKey(sql, key);
	return cluster(sql) as ClusterRow;
}

const HAS_OBJECTS = 'EXISTS (SELECT 1 FROM objects o WHERE o.key_generation = k.generation)';
const HAS_SHARDS = 'EXISTS (SELECT 1 FROM placements p WHERE p.key_generation = k.generation)';
const IS_NEWEST = 'k.generation = (SELECT max(generation) FROM cluster_keys)';
/** Of uploads that began before nothing needed it any more, and shards that were to be deleted by then. */
const HAS_LEFTOVERS = `(k.unused_since_ms IS NULL
	OR EXISTS (SELECT 1 FROM intents i WHERE i.began_at_ms < k.unused_since_ms + ${UNUSED_MARGIN_MS})
	OR EXISTS (SELECT 1 FROM deletions d WHERE d.queued_at_ms < k.unused_since_ms + ${UNUSED_MARGIN_MS}))`;

export function dropClusterKey(sql: Sql, generation: number, revision: number): ClusterRow {
	raiseRevision(sql, revision);
	const key = sql.get<{ isNeeded: number }>(
		`SELECT (${IS_NEWEST} OR ${HAS_OBJECTS} OR ${HAS_SHARDS} OR ${HAS_LEFTOVERS} OR EXISTS (
				SELECT 1 FROM workers LEFT JOIN keys_on_volumes v USING (worker_id) WHERE v.revision IS NOT ?2
			)) AS isNeeded FROM cluster_keys k WHERE generation = ?1`,
		generation,
		revision,
	);
	if (key === undefined) throw keysChanged();
	if (key.isNeeded !== 0) throw generationNeeded(generation);
	sql.run('DELETE FROM cluster_keys WHERE generation = ?', generation);
	return cluster(sql) as ClusterRow;
}

export function keyUse(sql: Sql, limit: number): readonly KeyUse[] {
	const uses = sql.all<Omit<KeyUse, 'leftovers'> & { leftovers: number }>(
		`SELECT generation, ${HAS_LEFTOVERS} AS leftovers,
				(SELECT count(*) FROM (SELECT 1 FROM objects WHERE key_generation = k.generation LIMIT ?1)) AS objects,
				(SELECT count(*) FROM (SELECT 1 FROM placements WHERE key_generation = k.generation LIMIT ?1)) AS shards
			FROM cluster_keys k ORDER BY generation`,
		limit,
	);
	return uses.map((use) => ({ ...use, leftovers: use.leftovers !== 0 }));
}

export function noteUnusedKeys(sql: Sql): void {
	const isUnused = `NOT (${IS_NEWEST} OR ${HAS_OBJECTS} OR ${HAS_SHARDS})`;
	sql.run(
		`UPDATE cluster_keys AS k SET unused_since_ms = CASE WHEN unused_since_ms IS NULL THEN ? END
			WHERE (unused_since_ms IS NOT NULL) <> (${isUnused})`,
		Date.now(),
	);
}

export function sawKeys(sql: Sql, workerIds: readonly WorkerId[], revision: number): void {
	for (const workerId of workerIds) {
		sql.run(
			`INSERT INTO keys_on_volumes (worker_id, revision) SELECT worker_id, ? FROM workers WHERE worker_id = ?
				ON CONFLICT DO UPDATE SET revision = max(revision, excluded.revision)`,
			revision,
			workerId,
		);
	}
}

export function keysOnVolumes(sql: Sql): ReadonlyMap<WorkerId, number> {
	const rows = sql.all<{ workerId: WorkerId; revision: number }>(
		'SELECT worker_id AS workerId, revision FROM keys_on_volumes',
	);
	return new Map(rows.map(({ workerId, revision }) => [workerId, revision]));
}

export function oldKeyObjects(sql: Sql, options: { below: number; limit: number }): readonly WrappedDataKeyRow[] {
	const rows = sql.all<Omit<WrappedDataKeyRow, 'wrappedKey'> & { wrappedKey: Uint8Array }>(
		`SELECT version_id AS versionId, key_generation AS keyGeneration, wrapped_key AS wrappedKey
			FROM objects WHERE key_generation < ? ORDER BY key_generation LIMIT ?`,
		options.below,
		options.limit,
	);
	return rows.map((row) => ({ ...row, wrappedKey: bufferOf(row.wrappedKey) }));
}

export function oldTrailers(
	sql: Sql,
	generation: number,
	options: { after: string | null; limit: number },
): { trailers: readonly OldTrailers[]; next: string | null } {
	const after = parsePlace(options.after ?? '0.0');
	// One more than asked for tells whether there is another page.
	const places = sql.all<{ objectNo: number; segment: number; indexes: string }>(
		`SELECT object_no AS objectNo, segment, group_concat(shard_index ORDER BY shard_index) AS indexes
			FROM placements INDEXED BY placements_generation
			WHERE key_generation = ? AND (object_no, segment) > (?, ?)
			GROUP BY object_no, segment ORDER BY object_no, segment LIMIT ?`,
		generation,
		after.objectNo,
		after.segment,
		options.limit + 1,
	);
	const page = places.slice(0, options.limit);
	const last = page.at(-1);
	return {
		trailers: page.map(({ indexes, ...place }) => ({
			stored: storedSegment(sql, place),
			shardIndexes: indexes.split(',').map(Number),
		})),
		next: last === undefined || places.length <= options.limit ? null : `${last.objectNo}.${last.segment}`,
	};
}

export function rewrapObjects(sql: Sql, objects: readonly RewrappedObject[], lease?: Lease): number {
	checkLease(sql, lease);
	let changed = 0;
	for (const { versionId, before, keyGeneration, wrappedKey } of objects) {
		const dropped = checkGeneration(sql, keyGeneration);
		if (dropped !== null) throw dropped;
		changed += sql.run(
			'UPDATE objects SET key_generation = ?, wrapped_key = ? WHERE version_id = ? AND wrapped_key = ?',
			keyGeneration,
			wrappedKey,
			versionId,
			before,
		).changes;
	}
	return changed;
}

/** Nothing new needs a generation that was dropped. */
export function checkGeneration(sql: Sql, generation: number): DistroError | null {
	const later = sql.get<{ isThere: number | null }>(
		'SELECT max(generation = ?1) AS isThere FROM cluster_keys WHERE generation >= ?1',
		generation,
	);
	return later?.isThere === 0 ? generationDropped(generation) : null;
}
