/**
 * Accidents of others, with repair and drain: what a kill, a lost answer or a long pause at any moment does to data that is
 * just being moved. The list of all of them: docs/testing.md.
 */

import { describe, expect, test } from 'vitest';
import type { DistroError } from '../core/errors.ts';
import { SMALL_CELL_BYTES } from '../core/limits.ts';
import { seededRandom } from '../test/support/clock.ts';
import { expectNothingElse, expectTrue } from '../test/support/inventory.ts';
import { type MemoryCluster, memoryCluster } from '../test/support/memory-cluster.ts';
import { Mortal, type MortalPlan } from '../test/support/mortal.ts';
import { mendJobs, step, workOff } from '../test/support/work-off.ts';
import { Findings } from './findings.ts';
import type { MendOutcome } from './mend.ts';
import type { ObjectInfo } from './objects.types.ts';

const random = seededRandom('accidents of repair');
const CASES = ['the repair of a lost worker', 'the repair of a lost shard', 'a drain'] as const;
type Case = (typeof CASES)[number];

interface Scene {
	readonly cluster: MemoryCluster;
	readonly contents: Map<ObjectInfo, Buffer>;
	readonly job: 'repair' | 'drain';
}

/** An object that has something to be moved. */
async function scene(what: Case, objects = 1): Promise<Scene> {
	const cluster = await memoryCluster({ workers: 8, lostAfterMs: 0, poolBytes: 4 * 1024 * 1024 });
	const contents = new Map<ObjectInfo, Buffer>();
	for (let i = 0; i < objects; i++) {
		const bytes = random.bytes(4 * SMALL_CELL_BYTES + 1);
		contents.set(await cluster.upload(bytes, { sizeHintBytes: bytes.length }), bytes);
	}
	const [info] = contents.keys();
	const found = await cluster.store.objectWithSegments(info?.objectId as ObjectInfo['objectId'], {
		fromSegment: 0,
		limit: 1,
	});
	const placement = found?.segments[0]?.placements[1];
	if (placement === undefined) throw new Error('no placement');
	const { workerId, shardId } = placement;
	if (what === 'the repair of a lost worker') cluster.die(cluster.workerIds.indexOf(workerId));
	else if (what === 'a drain') await cluster.workers.setDuty(workerId, 'draining');
	else {
		cluster.transport.shardsOf(workerId).delete(shardId);
		await cluster.store.addFindings([{ workerId, shardId, kind: 'missing', detail: 'test', foundAtMs: 0 }]);
	}
	return { cluster, contents, job: what === 'a drain' ? 'drain' : 'repair' };
}

/** One step of the job, by a process of its own that stops where it is told to. Answers when it has stopped or ended. */
async function begin({ cluster, job }: Scene, plan: MortalPlan) {
	const process = new Mortal(plan);
	const store = process.store(cluster.store);
	const clock = process.clock(cluster.deps.clock);
	const errors: (DistroError | null)[] = [];
	const jobs = mendJobs(cluster, {
		store,
		clock,
		transport: process.transport(cluster.transport),
		findings: new Findings({ store, clock, onReport: () => {} }),
		onOutcome: ({ error }: MendOutcome) => errors.push(error),
	});
	const ended = step(cluster, jobs[job], 'the first').then(
		() => {},
		() => {},
	);
	await Promise.race([ended, process.stopped]);
	return { process, ended, errors };
}

/** Nothing is lost and nothing is left, once everybody is back and all queues are worked off. */
async function expectWhole(cluster: MemoryCluster, { contents }: Scene): Promise<void> {
	await workOff(cluster);
	const { byHealth, objects } = await expectTrue(cluster);
	expect(byHealth.healthy).toBe(objects);
	for (const index of cluster.workerIds.keys()) cluster.comeBack(index);
	await workOff(cluster);
	await expectNothingElse(cluster);
	for (const [info, bytes] of contents) expect((await cluster.download(info)).equals(bytes)).toBe(true);
}

/** Calls `at` with 1, 2, 3, … until there is no such call any more; answers in which calls it stopped. */
async function atEachCall(at: (call: number) => Promise<Mortal>): Promise<ReadonlySet<string>> {
	const names = new Set<string>();
	for (let call = 1; ; call++) {
		const process = await at(call);
		if (process.calls < call) return names;
		names.add(process.stoppedIn);
	}
}

const MOVING = ['begin', 'object', 'put', 'get', 'write', 'finish', 'stat', 'repairDone'];

describe('seaweedfs#9490: a kill between "last shard verified" and "delete the old"', () => {
	const cases = CASES.flatMap((what) => [false, true].map((done) => ({ what, done })));

	test.each(cases)(
		'killed at each call of $what (done: $done): nothing is lost, nothing is left',
		async ({ what, done }) => {
			const names = await atEachCall(async (at) => {
				const it = await scene(what);
				const { process } = await begin(it, { at, done, what: 'is killed' });
				const next = await it.cluster.another();
				await expectTrue(next);
				await expectWhole(next, it);
				return process;
			});
			expect([...names]).toEqual(expect.arrayContaining(MOVING));
		},
	);

	test.each(cases)('an error from each call of $what (done: $done): the same', async ({ what, done }) => {
		const names = await atEachCall(async (at) => {
			const it = await scene(what);
			const { process, ended } = await begin(it, { at, done, what: 'gets an error' });
			await ended;
			await expectTrue(it.cluster);
			await expectWhole(await it.cluster.another(), it);
			return process;
		});
		expect([...names]).toEqual(expect.arrayContaining(MOVING));
	});
});

describe('HDDS-15791: a stalled repairer wakes when its lease has gone to another', () => {
	const cases = CASES.flatMap((what) => [false, true].map((done) => ({ what, done })));

	test.each(cases)('at each call of $what (done: $done), when the other has done all of it', async ({ what, done }) => {
		await atEachCall(async (at) => {
			const it = await scene(what);
			const { process, ended, errors } = await begin(it, { at, done, what: 'stands still' });
			const next = await it.cluster.another();
			await workOff(next);
			const before = await next.store.redundancyRows();
			process.wake();
			await ended;
			if (process.stoppedIn !== '' && process.stoppedIn !== 'repairDone') expect(errors).not.toContain(null);
			expect(await next.store.redundancyRows()).toEqual(before);
			await expectWhole(next, it);
			return process;
		});
	});

	test.each(cases)(
		'at each call of $what (done: $done), when the other has the lease and no more',
		async ({ what, done }) => {
			await atEachCall(async (at) => {
				const it = await scene(what);
				const { process, ended, errors } = await begin(it, { at, done, what: 'stands still' });
				const next = await it.cluster.another();
				next.later(60_000);
				const before = await next.store.redundancyRows();
				await next.store.acquireLease(it.job, { holder: 'the next', ttlMs: 1_000 });
				process.wake();
				await ended;
				if (process.stoppedIn !== '' && process.stoppedIn !== 'repairDone') expect(errors).not.toContain(null);
				expect(await next.store.redundancyRows()).toEqual(before);
				await expectWhole(next, it);
				return process;
			});
		},
	);
});
