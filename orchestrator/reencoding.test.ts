/** Encoding anew against workers in memory: whatever cluster and policy become, what is stored follows, and stays readable. */

import { describe, expect, test } from 'vitest';
import { DistroError } from '../core/errors.ts';
import type { ObjectId, ShardId } from '../core/ids.ts';
import { LARGE_CELL_BYTES, SMALL_CELL_BYTES, TAG_BYTES } from '../core/limits.ts';
import type { ByteSink } from '../core/ports.ts';
import { seededRandom } from '../test/support/clock.ts';
import { expectNothingElse } from '../test/support/inventory.ts';
import { type MemoryCluster, memoryCluster } from '../test/support/memory-cluster.ts';
import { finish, mendJobs, step, workOff } from '../test/support/work-off.ts';
import { deletionsJob } from './jobs.ts';
import type { ExclusiveJob } from './leases.ts';
import type { ObjectInfo } from './objects.types.ts';
import { type ReencodeJobDeps, type ReencodeOutcome, type ReencodeState, reencodeJob } from './reencoding.ts';
import { writeSnapshot } from './snapshots.ts';

const random = seededRandom('reencoding');
const SMALL = SMALL_CELL_BYTES - TAG_BYTES;
const LARGE = LARGE_CELL_BYTES - TAG_BYTES;
const SIZES = [1, SMALL, SMALL + 1, 3 * SMALL, 500_000, 5 * LARGE, 4_000_000, 17 * 1024 * 1024 + 5];

interface It {
	readonly cluster: MemoryCluster;
	readonly contents: Map<ObjectInfo, Buffer>;
	readonly outcomes: ReencodeOutcome[];
	job(change?: Partial<ReencodeJobDeps>): ExclusiveJob;
}

async function start(workers: number, sizes = SIZES): Promise<It> {
	const cluster = await memoryCluster({ workers, lostAfterMs: 0 });
	const contents = new Map<ObjectInfo, Buffer>();
	for (const size of sizes) {
		const bytes = random.bytes(size);
		contents.set(await cluster.upload(bytes, { sizeHintBytes: size }), bytes);
	}
	const outcomes: ReencodeOutcome[] = [];
	const job = (change: Partial<ReencodeJobDeps> = {}) =>
		reencodeJob({
			...cluster.deps,
			transport: cluster.transport,
			lanes: 2,
			share: 1,
			isBusy: () => false,
			settleMs: 0,
			onOutcome: (outcome) => outcomes.push(outcome),
			...change,
		});
	return { cluster, contents, outcomes, job };
}

async function codes({ cluster, contents }: It): Promise<string[]> {
	const found: string[] = [];
	for (const { objectId } of contents.keys()) {
		const stored = await cluster.store.objectWithSegments(objectId, { fromSegment: 0, limit: 100 });
		found.push([...new Set(stored?.segments.map(({ k, n }) => `${k}+${n - k}`))].join());
	}
	return found;
}

function stateOf(job: ExclusiveJob): ReencodeState {
	return job.state?.() as ReencodeState;
}

async function readAll({ cluster, contents }: It): Promise<void> {
	for (const [info, bytes] of contents) {
		const now = await cluster.objects.info(info.objectId);
		expect(now.etag).toBe(info.etag);
		expect((await cluster.download(info)).equals(bytes)).toBe(true);
	}
}

async function deleteQueued({ store, workers, transport }: MemoryCluster): Promise<void> {
	await finish(
		{ store, beat: () => {} } as MemoryCluster,
		deletionsJob({ store, workers, transport, onDeleted: () => {} }),
	);
}

/** All faults of one encoding before it took over. */
async function expectSettled(it: It): Promise<void> {
	await deleteQueued(it.cluster);
	await expectNothingElse(it.cluster);
	await readAll(it);
	expect(it.cluster.pool.usedBytes).toBe(0);
	expect(it.cluster.transport.open).toBe(0);
}

test('a cluster that grows from one worker to twelve: every object follows, and stays what it is', async () => {
	const it = await start(1);
	const job = it.job();
	const seen: string[][] = [await codes(it)];
	for (const count of [2, 3, 6, 12]) {
		while (it.cluster.workerIds.length < count) await it.cluster.join();
		await finish(it.cluster, job);
		seen.push(await codes(it));
		await expectSettled(it);
	}
	expect(Object.fromEntries(SIZES.map((size, at) => [size, seen.map((codes) => codes[at]).join(' ')]))).toEqual({
		1: '1+0 1+1 1+1 1+2 1+2',
		[SMALL]: '1+0 1+1 1+1 1+2 1+2',
		// One cell and a byte: three shards of it take as much as two copies.
		[SMALL + 1]: '1+0 1+1 1+1 2+2 2+2',
		[3 * SMALL]: '1+0 1+1 2+1 3+2 3+2',
		500000: '1+0 1+1 2+1 4+2 4+2',
		[5 * LARGE]: '1+0 1+1 2+1 4+2 4+2',
		4000000: '1+0 1+1 2+1 4+2 4+2',
		[17 * 1024 * 1024 + 5]: '1+0 1+1 2+1 4+2 8+4',
	});
	expect(it.outcomes.filter(({ error }) => error !== null)).toEqual([]);
	// And then there is nothing more to do.
	const before = it.outcomes.length;
	await finish(it.cluster, job);
	expect(it.outcomes).toHaveLength(before);
});

test('an object of many segments: all of them, on few worker sets, also across both directions', async () => {
	const it = await start(2, []);
	const bytes = random.bytes(40 * 4_096);
	const info = await it.cluster.uploadInCells(bytes, SMALL_CELL_BYTES);
	it.contents.set(info, bytes);
	const large = random.bytes(300 * LARGE + 17);
	it.contents.set(await it.cluster.upload(large), large);
	while (it.cluster.workerIds.length < 9) await it.cluster.join();
	await finish(it.cluster, it.job());
	expect(await codes(it)).toEqual(['3+2', '4+2']);
	const { sets } = await it.cluster.store.redundancyRows();
	expect(sets.length).toBeLessThanOrEqual(3);
	await expectSettled(it);
	const policy = { ...it.cluster.deps.policy, fixed: { dataShards: 1, parityShards: 1 } };
	await finish(it.cluster, it.job({ policy }));
	expect(await codes(it)).toEqual(['1+1', '1+1']);
	await expectSettled(it);
});

test('a worker of six gone for good: what repair can not mend is cut for five, and the worker can be forgotten', async () => {
	const it = await start(6);
	it.cluster.die(0);
	const jobs = mendJobs(it.cluster);
	await finish(it.cluster, jobs.repair);
	expect(jobs.repair.state?.()).toMatchObject({ stuck: [{ worker: 'worker-1', why: 'no_worker' }] });
	await finish(it.cluster, it.job());
	expect((await codes(it)).at(-1)).toBe('3+2');
	await finish(it.cluster, jobs.repair);
	expect(jobs.repair.state?.()).toMatchObject({ stuck: [], waiting_shards: 0 });
	await readAll(it);
	await it.cluster.workers.forget(it.cluster.workerIds[0] as (typeof it.cluster.workerIds)[number]);
});

test('a draining worker of six: the drain ends', async () => {
	const it = await start(6);
	const [leaver] = it.cluster.workerIds;
	if (leaver === undefined) throw new Error('no worker');
	await it.cluster.workers.setDuty(leaver, 'draining');
	const jobs = mendJobs(it.cluster);
	await finish(it.cluster, jobs.drain);
	await finish(it.cluster, it.job());
	await finish(it.cluster, jobs.drain);
	const { sets } = await it.cluster.store.redundancyRows();
	expect(sets.some(({ workers }) => workers.includes(leaver))).toBe(false);
	await expectSettled(it);
});

test('what is in the trash and the cluster’s own snapshots don’t hold up a drain', async () => {
	const it = await start(6);
	const [first] = it.contents.keys();
	const large = [...it.contents.keys()].at(-1) as ObjectInfo;
	for (const { objectId } of [first as ObjectInfo, large]) {
		await it.cluster.store.deleteObject(objectId, { nowMs: 0, purgeAtMs: Number.MAX_SAFE_INTEGER, by: '' });
	}
	const { deps, metadata } = it.cluster;
	const snapshot = await writeSnapshot(
		{
			...deps,
			trashMs: 0,
			periodMs: 0,
			apiKeys: { apiKeys: async () => [] } as never,
			inlineMaxBytes: 0,
			onWritten: () => {},
		},
		{ copies: 6, signal: new AbortController().signal },
	);
	const leaving = it.cluster.workerIds[0] as (typeof it.cluster.workerIds)[number];
	await it.cluster.workers.setDuty(leaving, 'draining');
	const { drain } = mendJobs(it.cluster);
	for (const job of [drain, it.job(), drain]) await finish(it.cluster, job);
	expect([...metadata.placed.values()].filter(({ workerId }) => workerId === leaving)).toEqual([]);
	expect(metadata.objects.get(snapshot.objectId as ObjectId)?.segments).toMatchObject([{ k: 1, n: 5 }]);
	await it.cluster.store.undeleteObject(large.objectId, { nowMs: 0, by: '' });
	await it.cluster.store.undeleteObject((first as ObjectInfo).objectId, { nowMs: 0, by: '' });
	// It is in no report, so it goes before all is counted.
	await it.cluster.store.deleteObject(snapshot.objectId as ObjectId, { nowMs: 0, purgeAtMs: 0, by: '' });
	await expectSettled(it);
});

test('with shards lost or rotten it makes whole ones of those that are left', async () => {
	const it = await start(3, [4_000_000]);
	const [info] = [...it.contents.keys()];
	const stored = await it.cluster.store.objectWithSegments(info?.objectId as ObjectInfo['objectId'], {
		fromSegment: 0,
		limit: 1,
	});
	const [first] = stored?.segments[0]?.placements ?? [];
	if (first === undefined) throw new Error('no shard');
	const shard = it.cluster.transport.shardsOf(first.workerId).get(first.shardId);
	if (shard === undefined) throw new Error('no shard');
	shard.bytes = Buffer.from(shard.bytes);
	shard.bytes[5] = (shard.bytes[5] as number) ^ 1;
	while (it.cluster.workerIds.length < 6) await it.cluster.join();
	await finish(it.cluster, it.job());
	expect(await codes(it)).toEqual(['4+2']);
	await expectSettled(it);
});

describe('waits', () => {
	test('for repair, while something at risk can be mended', async () => {
		const it = await start(3, [4_000_000]);
		it.cluster.die(0);
		while (it.cluster.workerIds.length < 7) await it.cluster.join();
		const job = it.job();
		expect(await step(it.cluster, job)).toBeGreaterThan(0);
		expect([it.outcomes.length, stateOf(job).waiting_for]).toEqual([0, 'repair']);
		await finish(it.cluster, mendJobs(it.cluster).repair);
		await finish(it.cluster, job);
		expect(await codes(it)).toEqual(['4+2']);
	});

	test('until a change has lasted, unless a rule is broken or somebody asks', async () => {
		const it = await start(3, [5_000_000, 100]);
		await it.cluster.join();
		await it.cluster.join();
		const job = it.job({ settleMs: 600_000 });
		const lease = await it.cluster.store.acquireLease('reencode', { holder: 'test', ttlMs: 600_000 });
		if (lease === null) throw new Error('no lease');
		const unasked = () => {
			it.cluster.beat();
			return job.step(new AbortController().signal, lease, false);
		};
		// 2+1 survives less than any two workers; the copies as well.
		while ((await unasked()) === 0);
		expect(await codes(it)).toEqual(['3+2', '1+2']);
		await it.cluster.join();
		expect(await unasked()).toBeGreaterThan(0);
		expect(stateOf(job).waiting_for).toBe('change_to_last');
		expect(await codes(it)).toEqual(['3+2', '1+2']);
		await finish(it.cluster, job);
		expect(await codes(it)).toEqual(['4+2', '1+2']);
	});

	test('for workers that are away just now, and says so', async () => {
		const it = await start(5, [5_000_000]);
		await it.cluster.join();
		it.cluster.leave(5);
		const job = it.job({ policy: { ...it.cluster.deps.policy, tolerate: { workers: 2, zones: 1 } } });
		const away = await memoryAway(it);
		await finish(it.cluster, job);
		expect(away()).toBe('suspect');
		expect(stateOf(job).stuck).toEqual([{ wanted: '4+2', segments: 1 }]);
		expect(it.outcomes).toEqual([]);
		it.cluster.comeBack(5);
		await finish(it.cluster, job);
		expect(await codes(it)).toEqual(['4+2']);
		expect(stateOf(job).stuck).toEqual([]);
	});
});

/** The last worker is suspect and not lost yet. */
async function memoryAway(it: It): Promise<() => string> {
	const { workers } = it.cluster;
	const policyWorkers = workers.policyWorkers.bind(workers);
	const last = it.cluster.workerIds.at(-1);
	const suspect = () =>
		policyWorkers().map((worker) =>
			worker.workerId === last && worker.state === 'lost' ? { ...worker, state: 'suspect' as const } : worker,
		);
	workers.policyWorkers = suspect;
	return () => suspect().find(({ workerId }) => workerId === last)?.state ?? '';
}

describe('what goes wrong', () => {
	test.each(['before', 'after'] as const)(
		'a target that fails %s it took its shard: all is as before',
		async (when) => {
			const it = await start(3, [4_000_000, 100]);
			while (it.cluster.workerIds.length < 6) await it.cluster.join();
			const faults = it.cluster.transport.faultsOf(it.cluster.workerIds[4] as (typeof it.cluster.workerIds)[number]);
			if (when === 'before') faults.refusePut = new DistroError('exhausted', 'full');
			else faults.breakAfterCells = 2;
			const job = it.job();
			await step(it.cluster, job);
			const failed = it.outcomes.filter(({ error }) => error !== null);
			expect(failed.length).toBeGreaterThan(0);
			expect((await codes(it))[0]).toBe('2+1');
			expect((await it.cluster.store.counts()).intents).toBe(0);
			await readAll(it);
			delete faults.refusePut;
			delete faults.breakAfterCells;
			// Beyond the pause before the next try.
			await finish(it.cluster, it.job());
			expect((await codes(it))[0]).toBe('4+2');
			await expectSettled(it);
		},
	);

	test('a target that shows something else afresh: the old shards stay', async () => {
		const it = await start(3, [4_000_000]);
		while (it.cluster.workerIds.length < 6) await it.cluster.join();
		const { transport } = it.cluster;
		const lying = Object.assign(Object.create(transport), {
			stat: async (worker: Parameters<typeof transport.stat>[0], shardId: ShardId) => {
				const [other] = [...transport.shardsOf(worker.workerId).keys()].filter((id) => id !== shardId);
				return transport.stat(worker, other ?? shardId);
			},
		});
		await step(it.cluster, it.job({ transport: lying }));
		expect(it.outcomes.map(({ error }) => error?.kind)).toEqual(['corrupt']);
		expect(await codes(it)).toEqual(['2+1']);
		await readAll(it);
	});

	test('the object is deleted meanwhile: nothing of it stays', async () => {
		const it = await start(3, [4_000_000]);
		const [info] = [...it.contents.keys()];
		if (info === undefined) throw new Error('no object');
		while (it.cluster.workerIds.length < 6) await it.cluster.join();
		const { transport } = it.cluster;
		const deleting = Object.assign(Object.create(transport), {
			stat: async (...args: Parameters<typeof transport.stat>) => {
				await it.cluster.store.deleteObject(info.objectId, { nowMs: 0, purgeAtMs: 0, by: '' });
				return transport.stat(...args);
			},
		});
		await step(it.cluster, it.job({ transport: deleting }));
		expect(it.outcomes.map(({ error }) => error?.kind)).toEqual(['conflict']);
		it.contents.clear();
		await expectSettled(it);
	});

	test('its process stops in the middle: another one goes on, and nothing is left of the first try', async () => {
		const it = await start(2, [4_000_000, 300_000, 100, 2_000_000]);
		while (it.cluster.workerIds.length < 6) await it.cluster.join();
		const stopping = new AbortController();
		const lease = await it.cluster.store.acquireLease('reencode', { holder: 'first', ttlMs: 1 });
		if (lease === null) throw new Error('no lease');
		const onOutcome = () => stopping.abort();
		it.cluster.beat();
		await it.job({ onOutcome, lanes: 1 }).step(stopping.signal, lease, true);
		const other = await it.cluster.another();
		const again = reencodeJob({
			...other.deps,
			transport: other.transport,
			lanes: 2,
			share: 1,
			isBusy: () => false,
			settleMs: 0,
			onOutcome: () => {},
		});
		it.cluster.later(60_000);
		await finish(other, again);
		expect(await codes(it)).toEqual(['4+2', '4+2', '1+2', '4+2']);
		await workOff(it.cluster);
		await expectSettled(it);
	});
});

test('a slow reader across an encoding anew: all of its bytes come, though its old shards are gone', async () => {
	const it = await start(2, []);
	const bytes = random.bytes(600 * LARGE + 9);
	const info = await it.cluster.upload(bytes);
	const parts: Buffer[] = [];
	let isHalf = false;
	let goOn: () => void = () => {};
	const halfWay = new Promise<void>((resolve) => {
		goOn = resolve;
	});
	const sink: ByteSink = {
		write: (chunk) => {
			parts.push(Buffer.from(chunk));
			if (isHalf || parts.length < 20) return true;
			isHalf = true;
			goOn();
			return false;
		},
		drained: () => {},
	};
	const download = await it.cluster.objects.open(info.objectId);
	const { signal } = new AbortController();
	const read = download.read({ offset: 5, length: info.sizeBytes - 10, sink, signal });
	await halfWay;
	while (it.cluster.workerIds.length < 6) await it.cluster.join();
	it.contents.set(info, bytes);
	await finish(it.cluster, it.job());
	await deleteQueued(it.cluster);
	expect(await codes(it)).toEqual(['4+2']);
	it.cluster.beat();
	sink.drained();
	await read;
	expect(Buffer.concat(parts).equals(bytes.subarray(5, bytes.length - 5))).toBe(true);
});

test('explain tells what is wanted, and what was', async () => {
	const it = await start(3, [4_000_000]);
	const [info] = [...it.contents.keys()];
	if (info === undefined) throw new Error('no object');
	const explain = async () =>
		(await it.cluster.objects.explain(info.objectId, { fromSegment: 0, limit: 1 })).segments[0];
	expect(await explain()).toMatchObject({ k: 2, n: 3, was: null, wanted: null });
	const before = (await explain())?.because;
	while (it.cluster.workerIds.length < 6) await it.cluster.join();
	expect(await explain()).toMatchObject({
		k: 2,
		n: 3,
		was: null,
		wanted: { k: 4, n: 6, why: 'unsafe', because: expect.stringContaining('6 of 6 workers') },
	});
	await finish(it.cluster, it.job());
	expect(await explain()).toMatchObject({
		k: 4,
		n: 6,
		because: expect.stringContaining('6 of 6 workers'),
		was: { k: 2, n: 3, because: before, until: expect.any(String) },
		wanted: null,
	});
});

test('what was written while workers were away is widened when they are back', async () => {
	const it = await start(6, []);
	const job = it.job();
	await finish(it.cluster, job);
	const away = await memoryAway(it);
	it.cluster.leave(5);
	let narrow = 0;
	Object.assign(it.cluster.deps, { onMayNotSuit: () => narrow++ });
	const bytes = random.bytes(5_000_000);
	it.contents.set(await it.cluster.upload(bytes), bytes);
	expect([await codes(it), away(), narrow]).toEqual([['3+2'], 'suspect', 1]);
	await it.cluster.store.requestRun('reencode-look-again', 0);
	const lease = await it.cluster.store.acquireLease('reencode', { holder: 'test', ttlMs: 600_000 });
	if (lease === null) throw new Error('no lease');
	const unasked = () => {
		it.cluster.beat();
		return job.step(new AbortController().signal, lease, false);
	};
	// It waits for the worker.
	await unasked();
	expect(stateOf(job).looks_met).toBe(0);
	it.cluster.comeBack(5);
	while ((await unasked()) === 0);
	expect(await codes(it)).toEqual(['4+2']);
	while ((await unasked()) === 0);
	expect([stateOf(job).looks_met, stateOf(job).walk]).toEqual([1, null]);
	// With all of them there nothing is narrow.
	await it.cluster.upload(bytes);
	expect(narrow).toBe(1);
});
