/** A segment's new encoding in place of the old one, in SQLite. */

import type { DistroError } from '../core/errors.ts';
import type { ShardId, UploadId } from '../core/ids.ts';
import type { IntendedShard, Lease, Reencoded } from './store.ts';
import { checkReencoded, neverNamed, notOpen, segmentGone } from './store-rules.ts';
import { checkGeneration } from './store-sqlite-keys.ts';
import { checkLease } from './store-sqlite-leases.ts';
import { encodedAs } from './store-sqlite-repairs.ts';
import { moveSegments } from './store-sqlite-sets.ts';
import type { Sql } from './store-sqlite-sql.ts';
import { closeIntent, insertPlacements, queueDeletions } from './store-sqlite-uploads.ts';

/** A `conflict` is returned and not thrown: that the new shards are to be deleted must stay. */
export function reencoded(sql: Sql, done: Reencoded, uploadId: UploadId, lease?: Lease): DistroError | undefined {
	checkLease(sql, lease);
	checkReencoded(done);
	const { objectId, versionId, fromEncodingId, segment, keyGeneration, nowMs } = done;
	const { index, placements } = segment;
	const isPlaced = ({ shardId }: { shardId: ShardId }) =>
		sql.get('SELECT 1 FROM placements WHERE shard_id = ?', shardId) !== undefined;
	if (placements.some(isPlaced)) return undefined;
	const dropped = checkGeneration(sql, keyGeneration);
	if (dropped !== null) throw dropped;
	const intended = closeIntent(sql, uploadId);
	if (intended === null) throw notOpen(uploadId);
	const named = new Map(intended.map(({ shardId, workerId }) => [shardId, workerId]));
	for (const { shardId, workerId } of placements) {
		if (named.get(shardId) !== workerId) throw neverNamed(shardId);
	}
	const objectNo = encodedAs(sql, { objectId, versionId, segment: index, encodingId: fromEncodingId });
	if (objectNo === null) {
		queueDeletions(sql, intended, nowMs);
		return segmentGone();
	}
	const old = sql.all<IntendedShard>(
		`SELECT shard_id AS shardId, worker_id AS workerId FROM placements
			WHERE object_no = ? AND segment = ? ORDER BY shard_index`,
		objectNo,
		index,
	);
	for (const { shardId } of old) sql.run('DELETE FROM findings WHERE shard_id = ?', shardId);
	sql.run('DELETE FROM repairs WHERE object_no = ? AND segment = ?', objectNo, index);
	sql.run('DELETE FROM placements WHERE object_no = ? AND segment = ?', objectNo, index);
	sql.run(
		`UPDATE segments SET was = json_object('k', k, 'n', n, 'because', because, 'untilMs', ?),
				codec = ?, k = ?, n = ?, encoding_id = ?, roots = ?, because = ?
			WHERE object_no = ? AND segment = ?`,
		nowMs,
		segment.codec,
		segment.k,
		segment.n,
		segment.encodingId,
		segment.roots,
		segment.because,
		objectNo,
		index,
	);
	insertPlacements(sql, { objectNo, segment, keyGeneration });
	moveSegments(sql, objectNo, [index]);
	queueDeletions(sql, [...old, ...intended], nowMs);
	return undefined;
}
