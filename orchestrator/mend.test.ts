/** Repair, drain and rebalance against workers in memory: nothing is let go before it is elsewhere, and all of it ends. */

import { describe, expect, test } from 'vitest';
import { DistroError } from '../core/errors.ts';
import type { WorkerId } from '../core/ids.ts';
import { LARGE_CELL_BYTES } from '../core/limits.ts';
import { DEFAULT_POLICY } from '../core/model/redundancy.ts';
import { redundancyReport } from '../core/model/redundancy-report.ts';
import { realClock, seededRandom } from '../test/support/clock.ts';
import { type MemoryCluster, memoryCluster } from '../test/support/memory-cluster.ts';
import type { JobName } from './job-names.ts';
import type { ExclusiveJob } from './leases.ts';
import { drainJob, type MendDeps, type MendOutcome, type MendState, rebalanceJob, repairJob } from './mend.ts';
import type { ObjectInfo } from './objects.types.ts';

const random = seededRandom('mend');

interface Mending {
	readonly cluster: MemoryCluster;
	readonly outcomes: MendOutcome[];
	readonly jobs: Readonly<Record<'repair' | 'drain' | 'rebalance', ExclusiveJob>>;
	readonly contents: Map<ObjectInfo, Buffer>;
}

async function mending(
	workers: number,
	options: { objects?: number; change?: (cluster: MemoryCluster) => Partial<MendDeps> } = {},
): Promise<Mending> {
	const cluster = await memoryCluster({ workers, lostAfterMs: 0 });
	const outcomes: MendOutcome[] = [];
	const deps: MendDeps = {
		...cluster.deps,
		transport: cluster.transport,
		policy: DEFAULT_POLICY,
		lanes: 3,
		share: 1,
		isBusy: () => false,
		onOutcome: (outcome) => outcomes.push(outcome),
		...options.change?.(cluster),
	};
	const contents = new Map<ObjectInfo, Buffer>();
	for (let i = 0; i < (options.objects ?? 12); i++) {
		const bytes = random.bytes(i % 3 === 0 ? 5_000 : (i % 12) * LARGE_CELL_BYTES);
		contents.set(await cluster.upload(bytes), bytes);
	}
	return {
		cluster,
		outcomes,
		contents,
		jobs: { repair: repairJob(deps), drain: drainJob(deps), rebalance: rebalanceJob(deps) },
	};
}

async function step({ cluster, jobs }: Mending, name: JobName & keyof Mending['jobs']): Promise<number> {
	const lease = await cluster.store.acquireLease(name, { holder: 'test', ttlMs: 600_000 });
	if (lease === null) throw new Error('no lease');
	cluster.beat();
	return jobs[name].step(new AbortController().signal, lease, true);
}

/** Steps until one finds nothing to do. */
async function finish(mending: Mending, name: keyof Mending['jobs']): Promise<void> {
	for (let steps = 0; (await step(mending, name)) === 0; steps++) {
		if (steps > 100) throw new Error('it does not end');
	}
}

async function reportOf({ store, workers }: MemoryCluster) {
	return redundancyReport(await store.redundancyRows(), (workerId) => workers.isReachable(workerId));
}

async function readAll({ cluster, contents }: Mending): Promise<void> {
	for (const [info, bytes] of contents) expect((await cluster.download(info)).equals(bytes)).toBe(true);
}

async function holders(cluster: MemoryCluster): Promise<Set<WorkerId>> {
	const { sets } = await cluster.store.redundancyRows();
	return new Set(sets.flatMap(({ workers }) => workers));
}

describe('lost workers', () => {
	test('two of nine gone for good: everything is whole again without them', async () => {
		const it = await mending(9);
		it.cluster.die(0);
		it.cluster.die(4);
		expect((await reportOf(it.cluster)).byHealth.healthy).toBeLessThan(it.contents.size);
		await finish(it, 'repair');
		const report = await reportOf(it.cluster);
		expect(report.byHealth).toEqual({ healthy: it.contents.size, degraded: 0, at_risk: 0, unrecoverable: 0 });
		const left = await holders(it.cluster);
		expect(left.has(it.cluster.workerIds[0] as WorkerId)).toBe(false);
		await readAll(it);
		expect(it.cluster.pool.usedBytes).toBe(0);
		// Their old shards are to be deleted should they come back.
		expect((await it.cluster.store.counts()).deletions).toBe(it.outcomes.length);
	});

	test('nobody to take the shards: nothing is tried, the state says why, and a new worker ends it', async () => {
		const it = await mending(6);
		it.cluster.die(0);
		await finish(it, 'repair');
		// Only those of fewer shards than there are workers.
		expect(it.outcomes.every(({ stored }) => stored.segment.n < 6)).toBe(true);
		const state = it.jobs.repair.state?.() as MendState;
		expect(state.stuck).toEqual([expect.objectContaining({ worker: 'worker-1', why: 'no_worker' })]);
		await it.cluster.join();
		await finish(it, 'repair');
		expect((await reportOf(it.cluster)).byHealth.healthy).toBe(it.contents.size);
	});

	test('one whose lease is over puts off nothing that waits in the queue', async () => {
		const it = await mending(3, { objects: 2 });
		const { sets } = await it.cluster.store.redundancyRows();
		const [one] = sets.filter(({ k }) => k > 1);
		const { segments } = await it.cluster.store.segmentsOnSet(one?.setId ?? '', { after: null, limit: 1 });
		const [first] = segments[0]?.segment.placements ?? [];
		if (first === undefined) throw new Error('no segment');
		await it.cluster.store.addFindings([{ ...first, kind: 'corrupt', detail: 'test', foundAtMs: 0 }]);
		for (let i = 0; i < 3; i++) it.cluster.leave(i);
		const step = it.jobs.repair.step(new AbortController().signal, { name: 'repair', fencing: 7 });
		await expect(step).rejects.toMatchObject({ reason: 'lease_lost' });
		expect(await it.cluster.store.repairs({ nowMs: 0, limit: 10 })).toHaveLength(1);
	});

	test('a step that fails half-way ends when all of its lanes have ended', async () => {
		let [stats, underWay] = [0, 0];
		const it = await mending(9, {
			objects: 12,
			change: (cluster) => ({
				transport: Object.assign(Object.create(cluster.transport), {
					stat: async (...args: Parameters<typeof cluster.transport.stat>) => {
						if (stats++ === 0) throw new DistroError('unavailable', 'test');
						underWay++;
						await new Promise((resolve) => setTimeout(resolve, 20));
						underWay--;
						return cluster.transport.stat(...args);
					},
				}),
			}),
		});
		const { sets } = await it.cluster.store.redundancyRows();
		for (const { setId } of sets) {
			const { segments } = await it.cluster.store.segmentsOnSet(setId, { after: null, limit: 1 });
			const [first] = segments[0]?.segment.placements ?? [];
			if (first === undefined) throw new Error('no segment');
			await it.cluster.store.addFindings([{ ...first, kind: 'corrupt', detail: 'test', foundAtMs: 0 }]);
		}
		it.cluster.store.deferRepair = () => Promise.reject(new DistroError('unavailable', 'the metadata are away'));
		await expect(step(it, 'repair')).rejects.toThrow('the metadata are away');
		expect([underWay, it.cluster.pool.usedBytes]).toEqual([0, 0]);
		expect(stats).toBeGreaterThan(1);
		// Nor is anything begun after it failed.
		expect(stats).toBeLessThanOrEqual(3);
	});

	test('a worker that is back keeps its shards, also those that were just rebuilt', async () => {
		const it = await mending(7, {
			objects: 6,
			change: (cluster) => ({
				transport: Object.assign(Object.create(cluster.transport), {
					stat: async (...args: Parameters<typeof cluster.transport.stat>) => {
						if (!cluster.workers.isReachable(cluster.workerIds[0] as WorkerId)) cluster.comeBack(0);
						return cluster.transport.stat(...args);
					},
				}),
			}),
		});
		const before = await it.cluster.store.redundancyRows();
		it.cluster.die(0);
		await finish(it, 'repair');
		expect(it.outcomes.length).toBeGreaterThan(0);
		expect(it.outcomes.every(({ error }) => error?.kind === 'canceled')).toBe(true);
		expect(await it.cluster.store.redundancyRows()).toEqual(before);
		// Some were given up before anything was sent.
		const { intents, deletions } = await it.cluster.store.counts();
		expect(intents).toBe(0);
		expect(deletions).toBeGreaterThan(0);
		expect(deletions).toBeLessThanOrEqual(it.outcomes.length);
	});

	test('a worker that was forgotten just before an upload named it: refused, nothing is left, and the next goes elsewhere', async () => {
		const it = await mending(8, { objects: 3 });
		await it.cluster.join();
		const [gone] = it.cluster.workerIds.slice(-1) as [WorkerId];
		const begin = it.cluster.store.begin.bind(it.cluster.store);
		it.cluster.store.begin = async (intent) => {
			if (it.cluster.workers.state(gone) !== 'unknown' && intent.shards.some(({ workerId }) => workerId === gone)) {
				it.cluster.leave(8);
				await it.cluster.workers.forget(gone);
			}
			return begin(intent);
		};
		const upload = async () => {
			const bytes = random.bytes(3 * LARGE_CELL_BYTES);
			it.contents.set(await it.cluster.upload(bytes), bytes);
		};
		let refusal: DistroError | null = null;
		while (refusal === null) await upload().catch((error) => (refusal = error));
		expect(refusal).toMatchObject({ kind: 'unavailable' });
		expect(it.cluster.workers.state(gone)).toBe('unknown');
		await upload();
		expect((await holders(it.cluster)).has(gone)).toBe(false);
		expect(it.cluster.transport.shardsOf(gone).size).toBe(0);
		expect(await it.cluster.store.counts()).toMatchObject({ intents: 0, deletions: 0 });
		expect((await reportOf(it.cluster)).byHealth.healthy).toBe(it.contents.size);
		await readAll(it);
	});

	test('the most endangered segments come first, whatever found them', async () => {
		const it = await mending(9, { objects: 20, change: () => ({ lanes: 1 }) });
		const { sets } = await it.cluster.store.redundancyRows();
		const [one] = sets.filter(({ k }) => k === 4);
		const stored = (await it.cluster.store.segmentsOnSet(one?.setId ?? '', { after: null, limit: 1 })).segments[0];
		const [first, second] = stored?.segment.placements ?? [];
		if (stored === undefined || first === undefined || second === undefined) throw new Error('no segment');
		const finding = { kind: 'corrupt' as const, detail: 'test', foundAtMs: 0 };
		await it.cluster.store.addFindings([
			{ ...first, ...finding },
			{ ...second, ...finding },
		]);
		const other = it.cluster.workerIds.findIndex((id) => id !== first.workerId && id !== second.workerId);
		it.cluster.die(other);
		await step(it, 'repair');
		expect(it.outcomes[0]?.stored.objectId).toBe(stored.objectId);
	});
});

describe('drain', () => {
	test('the worker is emptied, nothing was ever short of a shard, and the copy came from it alone', async () => {
		const it = await mending(8);
		const [leaving] = it.cluster.workerIds as [WorkerId];
		await it.cluster.workers.setDuty(leaving, 'draining');
		const getsBefore = it.cluster.transport.gets;
		await finish(it, 'drain');
		expect(it.outcomes.every(({ error }) => error === null)).toBe(true);
		expect(it.cluster.transport.gets - getsBefore).toBe(it.outcomes.length);
		expect((await holders(it.cluster)).has(leaving)).toBe(false);
		expect((await reportOf(it.cluster)).byHealth.healthy).toBe(it.contents.size);
		await it.cluster.workers.setDuty(leaving, 'active');
		await readAll(it);
	});

	test('a shard that proves rotten on the way is rebuilt from the others, and the rotten one is told', async () => {
		const it = await mending(8, { objects: 5 });
		const [leaving] = it.cluster.workerIds as [WorkerId];
		for (const shard of it.cluster.transport.shardsOf(leaving).values()) {
			shard.bytes[0] = (shard.bytes[0] as number) ^ 1;
		}
		await it.cluster.workers.setDuty(leaving, 'draining');
		await finish(it, 'drain');
		await finish(it, 'repair');
		expect((await holders(it.cluster)).has(leaving)).toBe(false);
		expect((await reportOf(it.cluster)).byHealth.healthy).toBe(it.contents.size);
		await readAll(it);
	});

	test('cancelled half-way, what was moved stays moved and the rest stays', async () => {
		const it = await mending(8, { objects: 80 });
		const [leaving] = it.cluster.workerIds as [WorkerId];
		await it.cluster.workers.setDuty(leaving, 'draining');
		await step(it, 'drain');
		const moved = it.outcomes.length;
		await it.cluster.workers.setDuty(leaving, 'active');
		await finish(it, 'drain');
		expect(it.outcomes.length).toBe(moved);
		expect((await holders(it.cluster)).has(leaving)).toBe(true);
		expect((await reportOf(it.cluster)).byHealth.healthy).toBe(it.contents.size);
	});

	test('a worker with shards can not be forgotten, one that is drained and stopped can', async () => {
		const it = await mending(7, { objects: 6 });
		const [leaving] = it.cluster.workerIds as [WorkerId];
		await expect(it.cluster.workers.forget(leaving)).rejects.toMatchObject({ kind: 'conflict' });
		await it.cluster.workers.setDuty(leaving, 'draining');
		await finish(it, 'drain');
		it.cluster.die(0);
		await it.cluster.workers.forget(leaving);
		expect(it.cluster.workers.state(leaving)).toBe('unknown');
		expect(await it.cluster.store.workers()).toHaveLength(6);
	});
});

test('a new worker gets its part, and then nothing moves any more', async () => {
	const it = await mending(8, { objects: 60 });
	await it.cluster.join();
	const joined = it.cluster.workerIds[8] as WorkerId;
	await finish(it, 'rebalance');
	const { sets } = await it.cluster.store.redundancyRows();
	const held = (workerId: WorkerId) =>
		sets.reduce((sum, { workers, bytes, k }) => sum + (workers.includes(workerId) ? bytes / k : 0), 0);
	const total = it.cluster.workerIds.reduce((sum, workerId) => sum + held(workerId), 0);
	expect(held(joined) / (total / 9)).toBeGreaterThan(0.5);
	const moved = it.outcomes.length;
	expect(await step(it, 'rebalance')).toBeGreaterThan(0);
	expect(it.outcomes.length).toBe(moved);
	expect((await reportOf(it.cluster)).byHealth.healthy).toBe(it.contents.size);
	await readAll(it);
});

test('people come first: a lane pauses in proportion, but not where an object has one spare shard or none', async () => {
	const pauses: number[] = [];
	const clock = {
		...realClock,
		schedule: (delayMs: number, callback: () => void) => {
			if (new Error().stack?.includes('pause') === true) pauses.push(delayMs);
			return realClock.schedule(Math.min(delayMs, 1), callback);
		},
	};
	const it = await mending(9, { objects: 6, change: () => ({ clock, share: 0.25, isBusy: () => true }) });
	await it.cluster.workers.setDuty(it.cluster.workerIds[0] as WorkerId, 'draining');
	await finish(it, 'drain');
	expect(pauses.length).toBe(it.outcomes.length);
	pauses.length = 0;
	it.cluster.die(1);
	await finish(it, 'repair');
	const urgent = it.outcomes.filter(({ kind }) => kind === 'lost');
	expect(urgent.length).toBeGreaterThan(0);
	// One lost of 4+2 or 1+2 leaves one to spare.
	expect(pauses).toEqual([]);
});
