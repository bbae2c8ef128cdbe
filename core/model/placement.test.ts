/** Placement: distinct workers, even over zones and disks, from few sets, the same sets on every orchestrator. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../test/support/clock.ts';
import type { WorkerId } from '../ids.ts';
import { placeShards, replacement } from './placement.ts';
import { chooseRedundancy, DEFAULT_POLICY, type PolicyWorker } from './redundancy.ts';

const GiB = 1024 ** 3;

function cluster(count: number, change: (index: number) => Partial<PolicyWorker> = () => ({})): PolicyWorker[] {
	const random = seededRandom(`workers ${count}`);
	return Array.from({ length: count }, (_, index) => ({
		workerId: random.bytes(16).toString('hex') as WorkerId,
		name: `worker-${index}`,
		zone: '',
		state: 'ready',
		bytesFree: 100 * GiB,
		...change(index),
	}));
}

function draw(workers: readonly PolicyWorker[], n: number, seed: string | number, draws: number) {
	const random = seededRandom(`draw ${seed}`);
	return Array.from({ length: draws }, () => placeShards({ n, workers, random }));
}

function countBy<T>(items: readonly T[]): Map<T, number> {
	const counts = new Map<T, number>();
	for (const item of items) counts.set(item, (counts.get(item) ?? 0) + 1);
	return counts;
}

const anyCluster = fc
	.array(
		fc.record({ zone: fc.constantFrom('a', 'b', 'c', 'd'), bytesFree: fc.integer({ min: GiB, max: 100 * GiB }) }),
		{
			minLength: 1,
			maxLength: 24,
		},
	)
	.map((changes) => cluster(changes.length, (index) => changes[index] ?? {}));

describe('a placement', () => {
	test('is n distinct workers', () => {
		fc.assert(
			fc.property(anyCluster, fc.nat(), (workers, seed) => {
				const n = 1 + (seed % workers.length);
				const [chosen = []] = draw(workers, n, seed, 1);
				expect(new Set(chosen).size).toBe(n);
				for (const id of chosen) expect(workers.map(({ workerId }) => workerId)).toContain(id);
			}),
			{ seed: 20_240_620 },
		);
	});

	test('is as even over the zones as their sizes allow', () => {
		fc.assert(
			fc.property(anyCluster, fc.nat(), (workers, seed) => {
				const n = 1 + (seed % workers.length);
				const zoneOf = new Map(workers.map(({ workerId, zone }) => [workerId, zone]));
				const sizes = countBy(workers.map(({ zone }) => zone));
				for (const chosen of draw(workers, n, seed, 5)) {
					const held = countBy(chosen.map((id) => zoneOf.get(id) as string));
					const most = Math.max(...held.values());
					// A zone holds less than the fullest by more than one only when it has no more workers.
					for (const [zone, size] of sizes) {
						const count = held.get(zone) ?? 0;
						if (count < most - 1) expect(count).toBe(size);
					}
				}
			}),
			{ seed: 20_240_621 },
		);
	});

	test('keeps what the policy promised: no tolerated zone holds more than m', () => {
		fc.assert(
			fc.property(anyCluster, fc.nat(), (workers, seed) => {
				let choice: ReturnType<typeof chooseRedundancy>;
				try {
					choice = chooseRedundancy({ sizeBytes: null, cells: 256, ended: false }, workers, DEFAULT_POLICY);
				} catch {
					return;
				}
				const { n, m, candidates } = choice;
				const zoneOf = new Map(candidates.map(({ workerId, zone }) => [workerId, zone]));
				if (new Set(zoneOf.values()).size < 2) return;
				const random = seededRandom(`policy ${seed}`);
				const chosen = placeShards({ n, workers: candidates, random });
				const held = countBy(chosen.map((id) => zoneOf.get(id) as string));
				expect(Math.max(...held.values())).toBeLessThanOrEqual(m);
			}),
			{ seed: 20_240_622 },
		);
	});

	test('is the same for the same randomness, whatever order the workers are told in', () => {
		const workers = cluster(20, (index) => ({ zone: `zone-${index % 3}` }));
		const sets = draw(workers, 12, 'same', 50);
		expect(draw(workers.toReversed(), 12, 'same', 50)).toEqual(sets);
	});
});

describe('many placements', () => {
	test.each([
		[30, 12],
		[40, 6],
		[13, 12],
		[100, 3],
	])('of %i workers, %i at a time: at most 1000 sets, and every worker in some', (count, n) => {
		const workers = cluster(count);
		const placed = draw(workers, n, count, 2_000);
		expect(new Set(placed.map((chosen) => chosen.toSorted().join())).size).toBeLessThanOrEqual(1_000);
		expect(new Set(placed.flat()).size).toBe(count);
	});

	test('as many workers as shards: one set', () => {
		const placed = draw(cluster(6), 6, 'one', 200);
		expect(new Set(placed.map((chosen) => chosen.toSorted().join())).size).toBe(1);
	});

	test('workers with the same room get the same load, as data and as parity', () => {
		const workers = cluster(10);
		const placed = draw(workers, 6, 'even', 4_000);
		const mean = (4_000 * 6) / 10;
		for (const [, count] of countBy(placed.flat())) {
			expect(Math.abs(count - mean) / mean).toBeLessThan(0.1);
		}
		for (const index of [0, 5]) {
			for (const [, count] of countBy(placed.map((chosen) => chosen[index]))) {
				expect(Math.abs(count - 400) / 400).toBeLessThan(0.3);
			}
		}
	});

	test('disks fill evenly, also after an emptier one has joined', () => {
		const random = seededRandom('fill');
		const bytesFree = [100, 100, 100, 100, 100, 100, 100, 100, 100, 160].map((gib) => gib * GiB);
		for (let i = 0; i < 4_000; i++) {
			const workers = cluster(10, (index) => ({ bytesFree: bytesFree[index] ?? 0 }));
			const chosen = placeShards({ n: 4, workers, random });
			for (const [index, { workerId }] of workers.entries())
				if (chosen.includes(workerId)) bytesFree[index] = (bytesFree[index] ?? 0) - GiB / 32;
		}
		const old = bytesFree.slice(0, 9);
		// 500 GiB went to ten disks; none is much fuller than the others.
		expect(Math.max(...old) - Math.min(...old)).toBeLessThan(3 * GiB);
	});
});

describe('a replacement', () => {
	test('is never a holder, and is one of the candidates', () => {
		fc.assert(
			fc.property(anyCluster, fc.nat(), (workers, seed) => {
				const count = seed % (workers.length + 1);
				const holders = workers.slice(0, count).map(({ workerId }) => workerId);
				const found = replacement({ holders, candidates: workers });
				if (count === workers.length) expect(found).toBeNull();
				else {
					expect(holders).not.toContain(found);
					expect(workers.map(({ workerId }) => workerId)).toContain(found);
				}
			}),
			{ seed: 20_240_623 },
		);
	});

	test('goes to the zone that holds least, then to the most room', () => {
		const zones = ['a', 'a', 'b', 'b', 'c', 'c'];
		const workers = cluster(6, (index) => ({ zone: zones[index], bytesFree: (index + 1) * GiB }));
		const id = (index: number) => workers[index]?.workerId as WorkerId;
		const find = (holders: number[], candidates = workers) =>
			replacement({
				holders: holders.map(id),
				candidates,
				zoneOf: (workerId) => workers.find((worker) => worker.workerId === workerId)?.zone ?? null,
			});
		expect(find([4, 5, 2])).toBe(id(1));
		expect(find([4, 2])).toBe(id(1));
		expect(find([1, 4, 2])).toBe(id(5));
		expect(find([0, 2, 4])).toBe(id(5));
		expect(find([0, 2, 3, 4, 5])).toBe(id(1));
		expect(find([0, 1, 2, 3, 4, 5])).toBeNull();
		// Holders that are no candidates (down, full) count for their zones all the same.
		const up = workers.filter(({ workerId }) => workerId !== id(5));
		expect(find([5, 2], up)).toBe(id(1));
	});
});
