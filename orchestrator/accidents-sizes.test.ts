/**
 * An accident of others (HDDS-10681): shards that exist only sometimes, at the edges of cells, stripes and segments, were
 * not rebuilt as they had been, and that showed at the second loss. All of them: docs/testing.md.
 */

import { describe, expect, test } from 'vitest';
import { SEGMENT_CELLS, SMALL_CELL_BYTES, TAG_BYTES } from '../core/limits.ts';
import type { Segment } from '../core/model/segment.ts';
import { seededRandom } from '../test/support/clock.ts';
import { expectTrue } from '../test/support/inventory.ts';
import { downloadFrom, type MemoryCluster, memoryCluster } from '../test/support/memory-cluster.ts';
import { finish, mendJobs } from '../test/support/work-off.ts';
import { Findings } from './findings.ts';
import { ObjectService } from './objects.ts';
import type { ObjectInfo } from './objects.types.ts';

const random = seededRandom('accidents of sizes');
const C = SMALL_CELL_BYTES;
/** Plaintext of a full cell. */
const P = C - TAG_BYTES;
const K = 4;

/** All choices of 1 to `most` of `n`. */
function choices(n: number, most: number): number[][] {
	const all = Array.from({ length: 2 ** n }, (_, bits) =>
		Array.from({ length: n }, (_, index) => index).filter((index) => bits & (1 << index)),
	);
	return all.filter(({ length }) => length >= 1 && length <= most);
}

/** Two more workers than an object needs, so that a rotten shard can always go elsewhere. */
async function stored(sizeBytes: number) {
	const cluster = await memoryCluster({ workers: 8, poolBytes: 16 * 1024 * 1024 });
	const bytes = random.bytes(sizeBytes);
	const info = await cluster.uploadInCells(bytes, C);
	return { cluster, bytes, info };
}

async function segmentsOf({ store }: MemoryCluster, { objectId }: ObjectInfo): Promise<readonly Segment[]> {
	return (await store.objectWithSegments(objectId, { fromSegment: 0, limit: 10 }))?.segments ?? [];
}

/** Reads with these shards of each segment gone, and tells nobody. */
async function readWithout(cluster: MemoryCluster, info: ObjectInfo, lost: readonly number[]): Promise<Buffer> {
	const { transport, deps } = cluster;
	const gone = (await segmentsOf(cluster, info)).flatMap(({ placements }) =>
		placements.filter(({ shardIndex }) => lost.includes(shardIndex)),
	);
	const kept = gone.map(({ workerId, shardId }) => ({
		workerId,
		shardId,
		shard: transport.shardsOf(workerId).get(shardId),
	}));
	for (const { workerId, shardId } of kept) transport.shardsOf(workerId).delete(shardId);
	const findings = new Findings({
		store: Object.assign(Object.create(cluster.store), { addFindings: async () => [] }),
		clock: deps.clock,
		onReport: () => {},
	});
	try {
		return await downloadFrom(new ObjectService({ ...deps, findings }), info);
	} finally {
		for (const { workerId, shardId, shard } of kept) {
			if (shard !== undefined) transport.shardsOf(workerId).set(shardId, shard);
		}
	}
}

/** These shards of each segment are lost, found out, and repaired. */
async function loseAndRepair(cluster: MemoryCluster, info: ObjectInfo, lost: readonly number[]): Promise<void> {
	const { store, transport } = cluster;
	for (const { placements } of await segmentsOf(cluster, info)) {
		for (const { shardIndex, workerId, shardId } of placements) {
			if (!lost.includes(shardIndex)) continue;
			transport.shardsOf(workerId).delete(shardId);
			await store.addFindings([{ workerId, shardId, kind: 'missing', detail: 'test', foundAtMs: 0 }]);
		}
	}
	await finish(cluster, mendJobs(cluster).repair);
	expect((await expectTrue(cluster)).byHealth.healthy).toBe(1);
}

describe('HDDS-10681: sizes at every edge, every loss, repair, and every second loss', () => {
	test.each([
		['0', 0],
		['1', 1],
		['C - 17', C - 17],
		['C - 16, a full cell', C - 16],
		['C - 15', C - 15],
		['k cells - 1', K * P - 1],
		['k cells', K * P],
		['k cells + 1', K * P + 1],
		['k · C - 1', K * C - 1],
		['k · C + 1', K * C + 1],
	])('%s bytes', async (_, sizeBytes) => {
		const { cluster, bytes, info } = await stored(sizeBytes);
		const [segment] = await segmentsOf(cluster, info);
		const { n, k } = segment as Segment;
		expect(k).toBe(Math.min(K, Math.max(1, Math.ceil(sizeBytes / P))));
		const patterns = choices(n, n - k);
		for (const lost of patterns) {
			expect((await readWithout(cluster, info, lost)).equals(bytes)).toBe(true);
			await loseAndRepair(cluster, info, lost);
			// Only the largest: who reads without two reads without one of them.
			for (const second of patterns.filter(({ length }) => length === n - k)) {
				expect((await readWithout(cluster, info, second)).equals(bytes)).toBe(true);
			}
		}
	});

	test.each([
		['a segment - 1', SEGMENT_CELLS * P - 1, [0, 4]],
		['a segment', SEGMENT_CELLS * P, [3, 5]],
		['a segment + 1', SEGMENT_CELLS * P + 1, [0, 1]],
	])('%s bytes', async (_, sizeBytes, lost) => {
		const { cluster, bytes, info } = await stored(sizeBytes);
		const segments = await segmentsOf(cluster, info);
		expect(segments.length).toBe(sizeBytes > SEGMENT_CELLS * P ? 2 : 1);
		await loseAndRepair(cluster, info, lost);
		expect((await readWithout(cluster, info, [lost[0] === 0 ? 2 : 0, lost[1] as number])).equals(bytes)).toBe(true);
	});
});
