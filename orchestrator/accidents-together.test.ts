/** Accidents of others, with many objects at once: reports made half-way, and jobs that get into each other's way. All of them: docs/testing.md. */

import { describe, expect, test } from 'vitest';
import type { WorkerId } from '../core/ids.ts';
import { SMALL_CELL_BYTES } from '../core/limits.ts';
import { seededRandom } from '../test/support/clock.ts';
import { expectNothingElse, expectTrue } from '../test/support/inventory.ts';
import { type MemoryCluster, memoryCluster } from '../test/support/memory-cluster.ts';
import { Mortal } from '../test/support/mortal.ts';
import { finish, mendJobs, step, workOff } from '../test/support/work-off.ts';
import { deletionsJob } from './jobs.ts';
import type { MendOutcome } from './mend.ts';
import type { ObjectInfo } from './objects.types.ts';

const random = seededRandom('accidents together');

async function filled(workers: number, objects: number, zones: readonly string[] = ['']) {
	const cluster = await memoryCluster({ workers: 0, lostAfterMs: 0, poolBytes: 16 * 1024 * 1024 });
	for (let i = 0; i < workers; i++) await cluster.join(zones[i % zones.length]);
	const contents = new Map<ObjectInfo, Buffer>();
	for (let i = 0; i < objects; i++) {
		const bytes = random.bytes((i % 6) * SMALL_CELL_BYTES + 1);
		contents.set(await cluster.upload(bytes, { sizeHintBytes: bytes.length }), bytes);
	}
	return { cluster, contents };
}

async function expectAllBack(cluster: MemoryCluster, contents: ReadonlyMap<ObjectInfo, Buffer>): Promise<void> {
	for (const index of cluster.workerIds.keys()) cluster.comeBack(index);
	await workOff(cluster);
	await expectNothingElse(cluster);
	for (const [info, bytes] of contents) expect((await cluster.download(info)).equals(bytes)).toBe(true);
}

describe('rustfs#5869: a repair that is stopped half-way does not report healthy', () => {
	test('before each call of repair, drain and repair again the report is what the disks say', async () => {
		const { cluster, contents } = await filled(9, 12);
		const seen = new Set<number>();
		const process = new Mortal({
			at: Number.POSITIVE_INFINITY,
			what: 'is killed',
			done: false,
			onCall: async () => {
				seen.add((await expectTrue(cluster)).byHealth.healthy);
			},
		});
		const outcomes: MendOutcome[] = [];
		const jobs = mendJobs(cluster, {
			store: process.store(cluster.store),
			transport: process.transport(cluster.transport),
			lanes: 3,
			onOutcome: (outcome) => outcomes.push(outcome),
		});
		cluster.die(0);
		await finish(cluster, jobs.repair);
		await cluster.workers.setDuty(cluster.workerIds[1] as WorkerId, 'draining');
		await finish(cluster, jobs.drain);
		cluster.die(2);
		await finish(cluster, jobs.repair);
		expect(outcomes.every(({ error }) => error === null)).toBe(true);
		// It was seen at many moments between the first and the last object.
		expect(seen.size).toBeGreaterThan(contents.size / 2);
		expect((await expectTrue(cluster)).byHealth.healthy).toBe(contents.size);
		await expectAllBack(cluster, contents);
	});

	test('killed between any two shards: the next one reports what is missing, until nothing is', async () => {
		const { cluster, contents } = await filled(8, 8);
		cluster.die(3);
		const before = (await expectTrue(cluster)).byHealth.healthy;
		expect(before).toBeLessThan(contents.size);
		let last = before;
		for (let kills = 0; last < contents.size; kills++) {
			expect(kills).toBeLessThan(contents.size);
			let shards = 0;
			const half = Promise.withResolvers<void>();
			const process = new Mortal({
				at: Number.POSITIVE_INFINITY,
				what: 'is killed',
				done: false,
				onCall: (name) => {
					// One shard is whole in its new place; the next one is on its way.
					if (name !== 'stat' || ++shards === 1) return;
					half.resolve();
					return new Promise(() => {});
				},
			});
			const one = mendJobs(cluster, {
				store: process.store(cluster.store),
				transport: process.transport(cluster.transport),
			});
			await Promise.race([step(cluster, one.repair, `try ${kills}`), half.promise]);
			const next = await cluster.another();
			const { healthy } = (await expectTrue(next)).byHealth;
			expect(healthy).toBeGreaterThan(last);
			if (shards > 1) expect(healthy).toBeLessThan(contents.size);
			last = healthy;
			cluster.later(60_000);
		}
		await expectAllBack(await cluster.another(), contents);
	});
});

describe('two shards of one segment are never on one worker', () => {
	test.each(['a', 'b', 'c'])(
		'repair, drain and rebalance of two orchestrators at once on the same segments, seed %s',
		async (seed) => {
			const { cluster, contents } = await filled(9, 30, ['x', 'y', 'z']);
			const other = await cluster.another();
			const dice = seededRandom(`two orchestrators ${seed}`);
			const outcomes: MendOutcome[] = [];
			// Between any two calls others may have done theirs.
			const jobsOf = (of: MemoryCluster) => {
				const process = new Mortal({
					at: Number.POSITIVE_INFINITY,
					what: 'is killed',
					done: false,
					onCall: async () => {
						for (let hops = (dice.bytes(1)[0] as number) % 8; hops > 0; hops--) {
							await new Promise((resolve) => setImmediate(resolve));
						}
					},
				});
				const { repair, drain, rebalance } = mendJobs(of, {
					store: process.store(of.store),
					transport: process.transport(of.transport),
					lanes: 3,
					onOutcome: (outcome) => {
						outcomes.push(outcome);
						expectTrue(of).catch((error) => untrue.push(error));
					},
				});
				const { store, workers, transport } = of;
				return [repair, drain, rebalance, deletionsJob({ store, workers, transport, onDeleted: () => {} })];
			};
			const untrue: unknown[] = [];
			const all = [
				...jobsOf(cluster).map((job) => ({ of: cluster, job })),
				...jobsOf(other).map((job) => ({ of: other, job })),
			];
			const rounds = async (count: number) => {
				for (let round = 0; round < count; round++) {
					// One holder's name for both: as if each believed to have the lease.
					await Promise.all(all.map(({ of, job }) => step(of, job)));
				}
			};
			// Two new workers to fill; and when that has begun one dies and two are to be emptied.
			await cluster.join('x');
			await cluster.join('y');
			await rounds(1);
			expect(outcomes.map(({ kind }) => kind)).toContain('balance');
			const stillFilling = rounds(1);
			cluster.die(0);
			for (const index of [1, 5]) await cluster.workers.setDuty(cluster.workerIds[index] as WorkerId, 'draining');
			await other.workers.read();
			await stillFilling;
			await rounds(4);
			expect(untrue).toEqual([]);
			// They did meet, and all three did something.
			expect(outcomes.some(({ error }) => error?.kind === 'conflict')).toBe(true);
			const placed = new Set(outcomes.filter(({ error }) => error === null).map(({ kind }) => kind));
			expect([...placed].sort()).toEqual(['balance', 'drain', 'lost']);
			await workOff(cluster);
			await workOff(cluster);
			await expectAllBack(cluster, contents);
		},
	);
});
