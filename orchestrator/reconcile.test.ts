/** Reconcile against workers and metadata in memory: what it removes, what it never touches, and when it stops. */

import { describe, expect, test } from 'vitest';
import { DistroError } from '../core/errors.ts';
import { newId, type ShardId, type UploadId, type WorkerId } from '../core/ids.ts';
import { RECONCILE_AGE_MS, REPAIR_DEADLINE_MS } from '../core/limits.ts';
import { seededRandom } from '../test/support/clock.ts';
import { type MemoryCluster, memoryCluster } from '../test/support/memory-cluster.ts';
import { JobControl } from './job-control.ts';
import { type ReconcileDeps, type ReconcileState, reconcileJob, type StoppedWorker } from './reconcile.ts';
import { placeShard } from './repair.ts';
import { begin, Fixtures } from './store.fixtures.ts';

const random = seededRandom('reconcile');
const HOUR_MS = 60 * 60_000;
const PERIOD_MS = 7 * 24 * HOUR_MS;
const OLD_MS = RECONCILE_AGE_MS + 60_000;
const YOUNG_MS = RECONCILE_AGE_MS - 60_000;

interface Scene {
	readonly cluster: MemoryCluster;
	readonly stopped: StoppedWorker[];
	readonly setAside: unknown[];
	/** An orchestrator's job, as it runs there. */
	start(change?: Partial<ReconcileDeps>): Promise<{ step(): Promise<number>; state(): ReconcileState }>;
	/** A run from its beginning until there is nothing to do at once. */
	run(change?: Partial<ReconcileDeps>): Promise<ReconcileState>;
}

async function scene(options: { workers?: number; objects?: number } = {}): Promise<Scene> {
	const cluster = await memoryCluster({ workers: options.workers ?? 4 });
	for (let i = 0; i < (options.objects ?? 0); i++) await cluster.upload(random.bytes(5_000));
	for (const shards of cluster.transport.shards.values()) {
		for (const shard of shards.values()) shard.writtenAtMs -= OLD_MS;
	}
	const stopped: StoppedWorker[] = [];
	const setAside: unknown[] = [];
	let last = 0;
	const start: Scene['start'] = async (change = {}) => {
		const { store } = cluster;
		const holder = `orchestrator ${++last}`;
		const deps: ReconcileDeps = {
			...cluster.deps,
			transport: cluster.transport,
			ageMs: RECONCILE_AGE_MS,
			periodMs: PERIOD_MS,
			limit: 0.02,
			onQueued: () => {},
			onStopped: (worker) => stopped.push(worker),
			onSetAside: (_worker, error) => setAside.push(error),
			...change,
		};
		// Whoever had it is gone.
		cluster.metadata.leases.delete('reconcile');
		cluster.metadata.leases.set('reconcile', { holder: '', fencing: last, endsAtMs: 0 });
		const job = reconcileJob(deps);
		const steered = new JobControl({ store, clock: deps.clock }).steer(job);
		return {
			step: async () => {
				const lease = await store.acquireLease('reconcile', { holder, ttlMs: 3_600_000 });
				if (lease === null) throw new Error('no lease');
				cluster.beat();
				return steered.step(new AbortController().signal, lease);
			},
			state: () => job.state?.() as ReconcileState,
		};
	};
	const run: Scene['run'] = async (change) => {
		const job = await start(change);
		await cluster.store.requestRun('reconcile', 0);
		while ((await job.step()) === 0);
		return job.state();
	};
	return { cluster, stopped, setAside, start, run };
}

/** The store, but for these. */
function withCalls(store: ReconcileDeps['store'], changed: Partial<ReconcileDeps['store']>): ReconcileDeps['store'] {
	return {
		knownShards: (...args) => store.knownShards(...args),
		queueUnknown: (...args) => store.queueUnknown(...args),
		forgottenAt: (...args) => store.forgottenAt(...args),
		jobs: () => store.jobs(),
		...changed,
	};
}

function plant({ cluster }: Scene, workerId: WorkerId, ageMs: number, shardId = newId<ShardId>(random)): ShardId {
	const shard = { bytes: Buffer.alloc(10), trailer: Buffer.alloc(10), writtenAtMs: Date.now() - ageMs };
	cluster.transport.shardsOf(workerId).set(shardId, shard);
	return shardId;
}

async function queued({ cluster }: Scene): Promise<ShardId[]> {
	const queues = await Promise.all(cluster.workerIds.map((workerId) => cluster.store.deletions(workerId, 10_000)));
	return queues
		.flat()
		.map(({ shardId }) => shardId)
		.sort();
}

describe('what is unknown', () => {
	test('is queued when it is old; what is young, intended, queued or placed is not touched', async () => {
		const it = await scene({ objects: 60 });
		const { store, workerIds, metadata, transport } = it.cluster;
		const [first, second] = workerIds as [WorkerId, WorkerId];
		const orphans = [plant(it, first, OLD_MS), plant(it, second, OLD_MS)];
		const young = plant(it, first, YOUNG_MS);
		const make = new Fixtures('reconcile');
		const upload = make.upload([first], { n: 2, k: 1 });
		await begin(store, upload, Number.MAX_SAFE_INTEGER);
		for (const { shardId } of upload.shards) plant(it, first, OLD_MS, shardId);
		const deleting = plant(it, second, OLD_MS);
		metadata.deletions.set(deleting, { shardId: deleting, workerId: second, forGood: false, queuedAtMs: 0 });
		const placed = metadata.placed.size;

		const state = await it.run();
		expect(await queued(it)).toEqual([...orphans, deleting].sort());
		expect(state).toMatchObject({ queued_shards: 2, missing_shards: 0, stuck: [], away: [], turn: null });
		expect(state.ended_at).not.toBeNull();
		expect(state.compared_shards).toBe([...transport.shards.values()].reduce((sum, { size }) => sum + size, 0));
		expect(metadata.placed.size).toBe(placed);
		expect(transport.shardsOf(first).has(young)).toBe(true);
		// The same again: nothing is left to queue.
		expect(await it.run()).toMatchObject({ queued_shards: 0, stuck: [] });
	});

	test('a process that was killed between its late put and giving it up leaves one shard: it is queued', async () => {
		const it = await scene({ workers: 3, objects: 1 });
		const { store, transport, workerIds, metadata, deps } = it.cluster;
		await it.cluster.join();
		const [object] = metadata.objects.values();
		const [segment] = object?.segments ?? [];
		if (object === undefined || segment === undefined) throw new Error('no object');
		const { objectId, versionId } = object.row;
		const to = workerIds[3] as WorkerId;
		let late: ShardId | null = null;
		const dying = {
			...deps,
			transport: {
				get: transport.get.bind(transport),
				put: (...args: Parameters<typeof transport.put>) => {
					// It slept just here: its intent has expired, and what that named was deleted.
					it.cluster.later(REPAIR_DEADLINE_MS);
					const [uploadId] = [...metadata.intents.keys()] as [UploadId];
					store.abort(uploadId, 0);
					store.deletionsDone(to, [args[1].shardId]);
					late = args[1].shardId;
					return transport.put(...args);
				},
				// And here it is killed.
				stat: () => new Promise<never>(() => {}),
			},
		};
		const stored = { objectId, versionId, segment };
		placeShard(dying, { stored, shardIndex: 0, to, copy: true }, { signal: new AbortController().signal });
		await expect.poll(() => transport.shardsOf(to).size).toBe(1);
		expect([...transport.shardsOf(to).keys()]).toEqual([late]);
		expect(await queued(it)).toEqual([]);

		await it.run();
		expect(await queued(it)).toEqual([]);
		for (const shard of transport.shardsOf(to).values()) shard.writtenAtMs -= OLD_MS;
		// All that this worker has: no row names it, and yet a single one is no disaster.
		await new Fixtures('known').store(store, [to], { n: 2, k: 1 });
		await it.run();
		expect(await queued(it)).toEqual([late]);
	});

	test('a shard that is named while it is looked at is left alone', async () => {
		const it = await scene({ objects: 60 });
		const { store, workerIds } = it.cluster;
		const [worker] = workerIds as [WorkerId];
		const upload = new Fixtures('named').upload([worker], { n: 1, k: 1 });
		const [shard] = upload.shards as [(typeof upload.shards)[number]];
		plant(it, worker, OLD_MS, shard.shardId);
		// After the rows of its range were read for the first time.
		let reads = 0;
		const named = withCalls(store, {
			knownShards: async (...args: Parameters<typeof store.knownShards>) => {
				const page = await store.knownShards(...args);
				if (args[0] === worker && ++reads === 1) await begin(store, upload, Number.MAX_SAFE_INTEGER);
				return page;
			},
		});
		expect(await it.run({ store: named })).toMatchObject({ queued_shards: 0, stuck: [] });
		expect(reads).toBeGreaterThan(1);
		expect(await queued(it)).toEqual([]);
	});
});

describe('what is gone', () => {
	test('is found and queued for repair; what moved meanwhile is not', async () => {
		const it = await scene({ objects: 60 });
		const { store, transport, workerIds, metadata } = it.cluster;
		const [worker] = workerIds as [WorkerId];
		const [gone, moved, back] = [...transport.shardsOf(worker).keys()] as [ShardId, ShardId, ShardId];
		const kept = transport.shardsOf(worker).get(back);
		for (const shardId of [gone, moved, back]) transport.shardsOf(worker).delete(shardId);
		const racing = {
			list: async (...args: Parameters<typeof transport.list>) => {
				const listed = await transport.list(...args);
				// Just after the list was made.
				if (args[0].workerId === worker && kept !== undefined) {
					transport.shardsOf(worker).set(back, kept);
					metadata.placed.delete(moved);
				}
				return listed;
			},
			trailers: transport.trailers.bind(transport),
		};
		expect(await it.run({ transport: racing })).toMatchObject({ missing_shards: 1, queued_shards: 0, stuck: [] });
		expect([...metadata.findings.values()]).toMatchObject([{ shardId: gone, workerId: worker, kind: 'missing' }]);
		expect((await store.repairs({ nowMs: Number.MAX_SAFE_INTEGER, limit: 10 })).length).toBe(1);
	});

	test('a worker that can’t say whether it has a shard says nothing of it', async () => {
		const it = await scene({ objects: 10 });
		const { transport, workerIds, metadata } = it.cluster;
		const [worker] = workerIds as [WorkerId];
		const [hidden] = [...transport.shardsOf(worker).keys()] as [ShardId];
		transport.shardsOf(worker).delete(hidden);
		for (const kind of ['unavailable', 'corrupt'] as const) {
			const unsure = { list: transport.list.bind(transport), trailers: async () => [kind] };
			expect(await it.run({ transport: unsure })).toMatchObject({ missing_shards: 0 });
		}
		expect(metadata.findings.size).toBe(0);
	});
});

describe('it stops', () => {
	test('where it would remove over 2 %, before it has queued anything, and goes on with the others', async () => {
		const it = await scene({ objects: 100 });
		const { transport, workerIds } = it.cluster;
		const [bad, good] = workerIds as [WorkerId, WorkerId];
		const most = Math.floor((transport.shardsOf(bad).size + 3) * 0.02);
		const orphans = Array.from({ length: most + 1 }, () => plant(it, bad, OLD_MS));
		const orphan = plant(it, good, OLD_MS);
		const state = await it.run();
		expect(await queued(it)).toEqual([orphan]);
		const shards = transport.shardsOf(bad).size;
		const why = 'too many shards are unknown';
		const stuck = { worker: 'worker-1', worker_id: bad, shards, unknown: most + 1, queued: 0, why };
		expect(state.stuck).toEqual([stuck]);
		expect(it.stopped).toEqual([stuck]);
		const jobs = new JobControl({ store: it.cluster.store, clock: it.cluster.deps.clock });
		expect((await jobs.list()).find(({ name }) => name === 'reconcile')).toMatchObject({ state: 'stuck' });
		// Somebody looked, and allows it.
		expect(await it.run({ limit: 1 })).toMatchObject({ stuck: [], queued_shards: orphans.length });
		expect(await queued(it)).toEqual([...orphans, orphan].sort());
	});

	test('exactly 2 % may go', async () => {
		const it = await scene({ objects: 0, workers: 1 });
		const { store, workerIds } = it.cluster;
		const [worker] = workerIds as [WorkerId];
		const upload = await new Fixtures('exactly').store(store, [worker], { segments: 98, n: 1, k: 1 });
		for (const { shardId } of upload.shards) plant(it, worker, OLD_MS, shardId);
		const orphans = [plant(it, worker, OLD_MS), plant(it, worker, OLD_MS)];
		expect(await it.run()).toMatchObject({ queued_shards: 2, stuck: [] });
		expect(await queued(it)).toEqual(orphans.sort());
	});

	test('where the metadata knows nothing of a worker that has shards, whatever is allowed', async () => {
		const it = await scene({ objects: 20 });
		const nothing = withCalls(it.cluster.store, { knownShards: async () => [] });
		for (const limit of [0.02, 1]) {
			const { stuck } = await it.run({ store: nothing, limit });
			expect(stuck.map(({ why }) => why)).toEqual(new Array(4).fill('the metadata knows no shard of it'));
		}
		expect(await queued(it)).toEqual([]);
		expect(it.stopped).toHaveLength(8);
	});

	test('where they have become too many between the two passes', async () => {
		const it = await scene({ objects: 60, workers: 3 });
		const { transport, workerIds } = it.cluster;
		const [worker] = workerIds as [WorkerId];
		plant(it, worker, OLD_MS);
		let lists = 0;
		const growing = {
			list: async (...args: Parameters<typeof transport.list>) => {
				if (args[0].workerId === worker && ++lists === 2) for (let i = 0; i < 10; i++) plant(it, worker, OLD_MS);
				return transport.list(...args);
			},
			trailers: transport.trailers.bind(transport),
		};
		expect(await it.run({ transport: growing })).toMatchObject({ queued_shards: 0, stuck: [{ unknown: 11 }] });
		expect(await queued(it)).toEqual([]);
	});
});

describe('a page that can not be had', () => {
	test('of a worker: its turn comes later, and the others have theirs', async () => {
		const it = await scene({ objects: 60 });
		const { transport, workerIds } = it.cluster;
		const orphans = workerIds.map((workerId) => plant(it, workerId, OLD_MS)) as [ShardId, ...ShardId[]];
		const offline = new DistroError('unavailable', 'the volume is offline');
		let isOffline = true;
		const unreadable = {
			list: async (...args: Parameters<typeof transport.list>) => {
				if (args[0].workerId === workerIds[0] && isOffline) throw offline;
				return transport.list(...args);
			},
			trailers: transport.trailers.bind(transport),
		};
		const state = await it.run({ transport: unreadable });
		expect(state).toMatchObject({ away: [workerIds[0]], ended_at: null, missing_shards: 0, queued_shards: 3 });
		expect(await queued(it)).toEqual(orphans.slice(1).sort());
		expect(it.setAside).toEqual([offline]);
		isOffline = false;
		expect(await it.run({ transport: unreadable })).toMatchObject({ away: [], queued_shards: 1 });
		expect(await queued(it)).toEqual(orphans.toSorted());
	});

	test('a worker that is away has its turn when it is back, in the same run', async () => {
		const it = await scene({ objects: 60 });
		const { store, workerIds } = it.cluster;
		const orphans = workerIds.map((workerId) => plant(it, workerId, OLD_MS));
		it.cluster.leave(2);
		const job = await it.start();
		await store.requestRun('reconcile', 0);
		while ((await job.step()) === 0);
		expect(job.state()).toMatchObject({ away: [workerIds[2]], ended_at: null, queued_shards: 3 });
		it.cluster.comeBack(2);
		// Asked for again it would begin anew: another orchestrator goes on.
		const next = await it.start();
		while ((await next.step()) === 0);
		expect(next.state()).toMatchObject({ away: [], queued_shards: 4, began_at: job.state().began_at });
		expect(next.state().ended_at).not.toBeNull();
		expect(await queued(it)).toEqual(orphans.sort());
	});

	test('of the metadata: the step fails, nothing is queued, and it goes on there', async () => {
		const it = await scene({ objects: 60 });
		const { store, workerIds } = it.cluster;
		const orphan = plant(it, workerIds[1] as WorkerId, OLD_MS);
		let failures = 3;
		const failing = withCalls(store, {
			knownShards: async (...args: Parameters<typeof store.knownShards>) => {
				if (failures-- > 0) throw new DistroError('unavailable', 'the metadata store is away');
				return store.knownShards(...args);
			},
		});
		const job = await it.start({ store: failing });
		await store.requestRun('reconcile', 0);
		for (let i = 0; i < 3; i++) await expect(job.step()).rejects.toMatchObject({ kind: 'unavailable' });
		expect(await queued(it)).toEqual([]);
		while ((await job.step()) === 0);
		expect(await queued(it)).toEqual([orphan]);
		expect(it.setAside).toEqual([]);
	});
});

describe('many pages', () => {
	test('every range is compared once, and another orchestrator goes on where one stopped', async () => {
		const it = await scene({ workers: 2 });
		const { store, transport, workerIds, metadata } = it.cluster;
		const make = new Fixtures('pages');
		const [one] = workerIds as [WorkerId];
		const upload = await make.store(store, workerIds, { segments: 3_200, n: 2, k: 1 });
		for (const { shardId, workerId } of upload.shards) plant(it, workerId, OLD_MS, shardId);
		const orphans = Array.from({ length: 50 }, () => plant(it, one, OLD_MS));
		const gone = [...transport.shardsOf(one).keys()].filter((shardId) => metadata.placed.has(shardId)).slice(0, 30);
		for (const shardId of gone) transport.shardsOf(one).delete(shardId);

		await store.requestRun('reconcile', 0);
		let state: ReconcileState | null = null;
		let orchestrators = 0;
		for (let isOver = false; !isOver; orchestrators++) {
			const job = await it.start();
			let saved = '';
			// Each does one range, and one more of which it could not write down any more that it was done.
			for (let steps = 0; steps < 2 && !isOver; steps++) {
				if (steps === 1) saved = metadata.jobs.get('reconcile')?.state ?? '';
				isOver = (await job.step()) > 0;
			}
			const row = metadata.jobs.get('reconcile');
			if (!isOver && row !== undefined) metadata.jobs.set('reconcile', { ...row, state: saved });
			state = job.state();
			// What was asked for is met by the run that began for it.
			if (orchestrators === 0 && row !== undefined) metadata.jobs.set('reconcile', { ...row, runs: 0 });
			expect(orchestrators).toBeLessThan(50);
		}
		expect(orchestrators).toBeGreaterThan(8);
		expect(state).toMatchObject({ stuck: [], missing_shards: 30 });
		expect(await queued(it)).toEqual(orphans.sort());
		expect([...metadata.findings.keys()].sort()).toEqual(gone.sort());
	});
});

describe('when', () => {
	test('a period after the first start, and then every period; a new orchestrator knows', async () => {
		const it = await scene({ objects: 60 });
		const { workerIds } = it.cluster;
		const orphan = plant(it, workerIds[0] as WorkerId, OLD_MS);
		const job = await it.start();
		await job.step();
		it.cluster.later(PERIOD_MS - 60_000);
		const next = await it.start();
		await next.step();
		expect(next.state()).toMatchObject({ began_at: null });
		expect(await queued(it)).toEqual([]);
		it.cluster.later(120_000);
		const third = await it.start();
		while ((await third.step()) === 0);
		expect(third.state().ended_at).not.toBeNull();
		expect(await queued(it)).toEqual([orphan]);
		const dueInMs = Date.parse(third.state().due_at) - it.cluster.deps.clock.nowMs();
		expect(dueInMs).toBeGreaterThan(PERIOD_MS - 60_000);
		expect(dueInMs).toBeLessThanOrEqual(PERIOD_MS);
	});
});

describe('a worker that was forgotten and is back with what it had', () => {
	test('what is from before is removed, however much it is; what came later counts', async () => {
		const it = await scene({ objects: 60, workers: 5 });
		const { store, workers, workerIds } = it.cluster;
		const [back] = workerIds as [WorkerId];
		const row = workers.rows().find(({ row: { workerId } }) => workerId === back)?.row;
		if (row === undefined) throw new Error('no worker');
		for (const { objectId } of (await store.list({ limit: 1_000, after: null })).objects) {
			await store.deleteObject(objectId, { nowMs: 0, purgeAtMs: 0, by: '' });
		}
		const old = [...it.cluster.transport.shardsOf(back).keys()];
		expect(old.length).toBeGreaterThan(10);
		const forgottenAtMs = Date.now() - RECONCILE_AGE_MS - 1_000;
		await store.forgetWorker(back, forgottenAtMs);
		await store.saveWorker(row);
		for (const workerId of workerIds.slice(1)) {
			const done = await store.deletions(workerId, 10_000);
			await store.deletionsDone(
				workerId,
				done.map(({ shardId }) => shardId),
			);
			it.cluster.transport.shardsOf(workerId).clear();
		}
		// Written when it was back: there are no rows for them.
		const later = [plant(it, back, RECONCILE_AGE_MS + 500), plant(it, back, RECONCILE_AGE_MS + 500)];
		const state = await it.run();
		expect(await queued(it)).toEqual(old.sort());
		expect(state.stuck).toMatchObject([{ worker_id: back, unknown: later.length }]);
	});

	test('however much it is, it does not make room for the removal of what came later', async () => {
		const it = await scene({ workers: 1 });
		const { store, workers, workerIds } = it.cluster;
		const [back] = workerIds as [WorkerId];
		const row = workers.rows()[0]?.row;
		if (row === undefined) throw new Error('no worker');
		await store.forgetWorker(back, Date.now() - RECONCILE_AGE_MS - 1_000);
		await store.saveWorker(row);
		const old = Array.from({ length: 200 }, () => plant(it, back, OLD_MS));
		const known = await new Fixtures('back').store(store, [back], { segments: 10, n: 1, k: 1 });
		for (const { shardId } of known.shards) plant(it, back, RECONCILE_AGE_MS + 500, shardId);
		// 2 of 12, and not of 212.
		for (let i = 0; i < 2; i++) plant(it, back, RECONCILE_AGE_MS + 500);
		expect(await it.run()).toMatchObject({ stuck: [{ worker_id: back, unknown: 2, shards: 212, queued: 0 }] });
		expect(await queued(it)).toEqual(old.sort());
	});
});
