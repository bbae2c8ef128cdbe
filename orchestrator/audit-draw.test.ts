/** Every shard of a worker is drawn about as often as every other, and no other worker's. */

import { expect, test } from 'vitest';
import { newId, type ObjectId, type ShardId, type VersionId, type WorkerId } from '../core/ids.ts';
import type { Segment } from '../core/model/segment.ts';
import { ManualClock, seededRandom } from '../test/support/clock.ts';
import { memoryCluster } from '../test/support/memory-cluster.ts';
import { type SampledStore, shardDrawer } from './audit-draw.ts';

const random = seededRandom('draw');
const [one, two, three] = Array.from({ length: 3 }, () => newId<WorkerId>(random)) as [WorkerId, WorkerId, WorkerId];

function setOf(setId: string, workers: WorkerId[], segments: number) {
	const stored = Array.from({ length: segments }, (_, index) => ({
		objectId: newId<ObjectId>(random),
		versionId: newId<VersionId>(random),
		segment: {
			index,
			placements: workers.map((workerId, shardIndex) => ({ workerId, shardIndex, shardId: newId<ShardId>(random) })),
		} as unknown as Segment,
	}));
	return { setId, workers, segments, stored, k: 1, n: workers.length, bytes: segments };
}

function storeOf(sets: ReturnType<typeof setOf>[]): SampledStore & { reads: number } {
	return {
		reads: 0,
		async redundancyRows() {
			this.reads++;
			return { sets, spreads: [] };
		},
		async sampleSet(setId, at) {
			const { stored } = sets.find((set) => set.setId === setId) ?? { stored: [] };
			return stored[Math.floor(at * stored.length)] ?? null;
		},
	};
}

test('by how many segments a set has, and within it by chance', async () => {
	const sets = [setOf('a', [one, two], 30), setOf('b', [two, three], 10), setOf('c', [one, three], 10)];
	const store = storeOf(sets);
	const draw = shardDrawer({ store, clock: new ManualClock(), random });
	const drawn = new Map<ShardId, number>();
	for (let i = 0; i < 8_000; i++) {
		const shard = await draw(one);
		expect(shard?.segment.placements[shard.shardIndex]).toMatchObject({ workerId: one, shardId: shard?.shardId });
		if (shard !== null) drawn.set(shard.shardId, (drawn.get(shard.shardId) ?? 0) + 1);
	}
	expect(drawn.size).toBe(40);
	// 200 each, if chance were even.
	for (const count of drawn.values()) {
		expect(count).toBeGreaterThan(130);
		expect(count).toBeLessThan(280);
	}
	expect(store.reads).toBe(1);
});

test('sets are read anew after a while', async () => {
	const clock = new ManualClock();
	const sets = [setOf('a', [one], 3)];
	const draw = shardDrawer({ store: storeOf(sets), clock, random });
	expect(await draw(two)).toBeNull();
	sets.push(setOf('b', [two], 3));
	clock.advance(60_001);
	expect(await draw(two)).not.toBeNull();
});

test('nothing where there is nothing, or where it has just gone', async () => {
	const empty = shardDrawer({ store: storeOf([]), clock: new ManualClock(), random });
	expect(await empty(one)).toBeNull();
	const [set] = [setOf('a', [one], 3)];
	const store = storeOf([set]);
	const draw = shardDrawer({ store, clock: new ManualClock(), random });
	expect(await draw(one)).not.toBeNull();
	set.stored.splice(0);
	expect(await draw(one)).toBeNull();
	// What turned out to be stale is read again at once.
	const { reads } = store;
	await draw(one);
	expect(store.reads).toBe(reads + 1);
	set.stored.push(...setOf('a', [two], 1).stored);
	expect(await draw(one)).toBeNull();
});

test('from a real store: all shards of the worker, and no other worker’s', async () => {
	const cluster = await memoryCluster({ workers: 6 });
	const draw = shardDrawer({ store: cluster.store, clock: new ManualClock(), random });
	const worker = cluster.workerIds[2] as WorkerId;
	for (let i = 0; i < 5; i++) await cluster.upload(random.bytes(100_000));
	const drawn = new Set<ShardId>();
	for (let i = 0; i < 200; i++) {
		const shard = await draw(worker);
		if (shard !== null) drawn.add(shard.shardId);
	}
	expect([...drawn].sort()).toEqual([...cluster.transport.shardsOf(worker).keys()].sort());
	expect(drawn.size).toBeGreaterThan(0);
});
