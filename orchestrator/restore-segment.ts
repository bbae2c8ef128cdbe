/**
 * What of a recovered segment no trailer says: the roots of shards that are not there, and the leaves that the object's
 * ETag is made of. The missing shards are rebuilt row by row, from cells that are checked against their leaves, and only
 * hashed: nothing is stored here.
 */

import { codecFor } from '../core/codec/erasure-codec.ts';
import { cellPlace, rows, shardCellLength, shardRows } from '../core/codec/layout.ts';
import { EtagHasher, LEAF_BYTES, leafHash, rootOf } from '../core/crypto/digest.ts';
import type { VersionId } from '../core/ids.ts';
import { BUDGET_WAIT_MS, DOWNLOAD_ROW_SLOTS } from '../core/limits.ts';
import type { RecoveredSegment } from '../core/model/recover.ts';
import type { Segment } from '../core/model/segment.ts';
import { Gather } from '../core/transfer/gather.ts';
import { type ReadDeps, sourcesOf } from './download.ts';

export interface SegmentTrees {
	readonly segment: Segment;
	/** Leaves of the shards with data that were rebuilt, by index. */
	readonly rebuilt: ReadonlyMap<number, Buffer>;
}

/** The segment with the roots of all its shards. Throws `unrecoverable` when too few of those that were found are good. */
export async function withAllRoots(
	deps: ReadDeps,
	recovered: RecoveredSegment,
	signal: AbortSignal,
): Promise<SegmentTrees> {
	const { missing, ...segment } = recovered;
	if (missing.length === 0) return { segment, rebuilt: new Map() };
	const leaves = await rebuiltLeaves(deps, segment, { missing, signal });
	const roots = Buffer.from(segment.roots);
	for (const [index, each] of leaves) rootOf(each).copy(roots, index * LEAF_BYTES);
	return { segment: { ...segment, roots }, rebuilt: leaves };
}

async function rebuiltLeaves(
	deps: ReadDeps,
	segment: Segment,
	{ missing, signal }: { missing: readonly number[]; signal: AbortSignal },
): Promise<ReadonlyMap<number, Buffer>> {
	const lastRow = rows(segment) - 1;
	const leaves = new Map(
		missing.map((index) => [index, Buffer.alloc(shardRows(segment, index) * LEAF_BYTES)] as const),
	);
	const slots = new Array(Math.min(DOWNLOAD_ROW_SLOTS, lastRow + 1)).fill(segment.n * segment.cellBytes);
	const lease = await deps.pool.acquire(slots, { timeoutMs: BUDGET_WAIT_MS, signal });
	let gather: Gather | null = null;
	try {
		await new Promise<void>((resolve, reject) => {
			gather = new Gather({
				transport: deps.transport,
				clock: deps.clock,
				codec: codecFor(segment.codec),
				shape: segment,
				roots: segment.roots,
				sources: sourcesOf(deps, segment),
				firstRow: 0,
				lastRow,
				wanted: () => missing,
				proved: true,
				slots: lease.slots,
				hedgeMs: deps.workers.hedgeMs,
				mayHedge: (worker) => deps.workers.mayHedge(worker.workerId),
				takes: () => true,
				onRow: (row) => {
					for (const [index, each] of leaves) {
						const bytes = shardCellLength(segment, index, row.index);
						if (bytes === 0) continue;
						leafHash((row.cells[index] as Buffer).subarray(0, bytes)).copy(each, row.index * LEAF_BYTES);
					}
					row.release();
					return -1;
				},
				onEnd: resolve,
				onFailed: reject,
				onFinding: () => {},
				onWorker: (worker, outcome) => deps.workers.observe(worker.workerId, outcome),
			});
			gather.start();
		});
		return leaves;
	} finally {
		await (gather as Gather | null)?.quiet();
		lease.release();
	}
}

/** As the upload made it. `leavesOf` knows the leaves under the root of any shard that was found. Null when one is not known. */
export function etagOf(
	versionId: VersionId,
	segments: readonly SegmentTrees[],
	leavesOf: (root: Buffer) => Buffer | null,
): string | null {
	const etag = new EtagHasher();
	for (const { segment, rebuilt } of segments) {
		const byIndex = Array.from({ length: segment.k }, (_, index) => {
			const root = segment.roots.subarray(index * LEAF_BYTES, (index + 1) * LEAF_BYTES);
			return rebuilt.get(index) ?? leavesOf(root);
		});
		for (let cell = 0; cell < segment.cells; cell++) {
			const { shardIndex, row } = cellPlace(segment, cell);
			const leaves = byIndex[shardIndex] ?? null;
			if (leaves === null) return null;
			etag.add(leaves.subarray(row * LEAF_BYTES, (row + 1) * LEAF_BYTES));
		}
	}
	return etag.digest(versionId);
}
