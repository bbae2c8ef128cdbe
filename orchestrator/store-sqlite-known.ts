/** What a worker is known to have, in SQLite, and the way into its delete queue for what nothing knows. */

import type { ShardId, WorkerId } from '../core/ids.ts';
import type { KnownShard, Lease } from './store.ts';
import { checkLease } from './store-sqlite-leases.ts';
import type { Sql } from './store-sqlite-sql.ts';

/** Each source is cut to the page's length before they are merged. */
export function knownShards(
	sql: Sql,
	workerId: WorkerId,
	options: { after: ShardId | null; limit: number },
): readonly KnownShard[] {
	const rows = sql.all<{ shardId: ShardId; placed: number; intended: number; deleting: number }>(
		`SELECT shard_id AS shardId, max(source = 1) AS placed, max(source = 2) AS intended, max(source = 3) AS deleting
			FROM (
				SELECT * FROM (SELECT shard_id, 1 AS source FROM placements
					WHERE worker_id = ?1 AND shard_id > ?2 ORDER BY shard_id LIMIT ?3)
				UNION ALL
				SELECT * FROM (SELECT shard_id, 2 FROM intent_shards
					WHERE worker_id = ?1 AND shard_id > ?2 ORDER BY shard_id LIMIT ?3)
				UNION ALL
				SELECT * FROM (SELECT shard_id, 3 FROM deletions
					WHERE worker_id = ?1 AND shard_id > ?2 ORDER BY shard_id LIMIT ?3)
			)
			GROUP BY shard_id ORDER BY shard_id LIMIT ?3`,
		workerId,
		options.after ?? '',
		options.limit,
	);
	return rows.map(({ shardId, placed, intended, deleting }) => ({
		shardId,
		placed: placed !== 0,
		intended: intended !== 0,
		deleting: deleting !== 0,
	}));
}

export function queueUnknown(
	sql: Sql,
	workerId: WorkerId,
	shardIds: readonly ShardId[],
	nowMs: number,
	lease?: Lease,
): number {
	checkLease(sql, lease);
	let queued = 0;
	for (const shardId of shardIds) {
		sql.run(
			`INSERT INTO deletions (worker_id, shard_id, queued_at_ms) SELECT ?1, ?2, ?3
				WHERE NOT EXISTS (SELECT 1 FROM placements WHERE shard_id = ?2)
					AND NOT EXISTS (SELECT 1 FROM intent_shards WHERE worker_id = ?1 AND shard_id = ?2)
				ON CONFLICT DO NOTHING`,
			workerId,
			shardId,
			nowMs,
		);
		if (sql.get('SELECT 1 FROM deletions WHERE worker_id = ? AND shard_id = ?', workerId, shardId) !== undefined) {
			queued++;
		}
	}
	return queued;
}
