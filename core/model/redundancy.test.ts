/**
 * The choice of (n, k): what must come out for healthy clusters, and the rules that hold for every other. The whole table
 * with its sentences is in test/vectors/policy.json.
 */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { WorkerId } from '../ids.ts';
import { CODEC_MAX_M } from '../limits.ts';
import type { WorkerState } from './health.ts';
import {
	chooseRedundancy,
	DEFAULT_POLICY,
	largestCode,
	lossPerYear,
	type PolicyWorker,
	quorum,
	type RedundancyChoice,
	type RedundancyPolicy,
	type SegmentSize,
	slowerThanMs,
} from './redundancy.ts';

const MiB = 1024 * 1024;
const GiB = 1024 * MiB;

function workerOf(index: number, change: Partial<PolicyWorker> = {}): PolicyWorker {
	const workerId = index.toString(16).padStart(32, '0') as WorkerId;
	return { workerId, name: `worker-${index}`, zone: '', state: 'ready', bytesFree: 100 * GiB, ...change };
}

function cluster(count: number, change: (index: number) => Partial<PolicyWorker> = () => ({})): PolicyWorker[] {
	return Array.from({ length: count }, (_, index) => workerOf(index, change(index)));
}

const LARGE: SegmentSize = { sizeBytes: 64 * MiB, cells: 253, ended: true };
const MEDIUM: SegmentSize = { sizeBytes: 2 * MiB, cells: 8, ended: true };
const ONE_CELL: SegmentSize = { sizeBytes: 60_000, cells: 1, ended: true };

const code = ({ k, m }: RedundancyChoice) => `${k}+${m}`;

function outcome(size: SegmentSize, workers: readonly PolicyWorker[], policy = DEFAULT_POLICY): string {
	try {
		return code(chooseRedundancy(size, workers, policy));
	} catch (error) {
		return (error as { kind: string }).kind;
	}
}

describe('healthy clusters with the defaults', () => {
	const expected = ['1+0', '1+1', '2+1', '2+2', '3+2', '4+2', '4+2', '4+2', '4+2', '4+2', '4+2', '8+4', '8+4', '8+4'];

	test.each(expected.map((wanted, i) => ({ count: i + 1, wanted })))('$count workers: $wanted', ({ count, wanted }) => {
		expect(outcome(LARGE, cluster(count))).toBe(wanted);
		expect(outcome({ sizeBytes: null, cells: 256, ended: false }, cluster(count))).toBe(wanted);
	});

	test('smaller objects get a smaller k: no shard without data', () => {
		const sizes: [SegmentSize, string][] = [
			[ONE_CELL, '1+2'],
			[{ sizeBytes: 128 * 1024, cells: 2, ended: true }, '2+2'],
			[{ sizeBytes: 192 * 1024, cells: 3, ended: true }, '3+2'],
			[{ sizeBytes: MiB, cells: 4, ended: true }, '4+2'],
			[{ sizeBytes: 16 * MiB, cells: 64, ended: true }, '4+2'],
			[{ sizeBytes: 16 * MiB + 1, cells: 65, ended: true }, '8+4'],
			// The last segment of a large object may be short as well.
			[{ sizeBytes: 64 * MiB, cells: 1, ended: true }, '1+2'],
			[{ sizeBytes: 64 * MiB, cells: 5, ended: true }, '4+2'],
		];
		for (const [size, wanted] of sizes) expect([size, outcome(size, cluster(12))]).toEqual([size, wanted]);
	});

	test('a single worker is said to be not durable', () => {
		expect(chooseRedundancy(LARGE, cluster(1), DEFAULT_POLICY).because).toContain('not durable');
	});

	test('no worker at all', () => {
		expect(outcome(LARGE, [])).toBe('unavailable');
	});
});

describe('workers that are down', () => {
	const down = (count: number, gone: number, state: WorkerState) =>
		cluster(count, (index) => (index < gone ? { state } : {}));

	test.each(['suspect', 'lost', 'cordoned', 'draining'] as const)('%s: not chosen, and writes shrink', (state) => {
		const found = Array.from({ length: 6 }, (_, gone) => outcome(LARGE, down(6, gone, state)));
		expect(found).toEqual(['4+2', '3+2', '2+2', '2+1', '1+1', 'unavailable']);
		const { candidates, because } = chooseRedundancy(LARGE, down(6, 1, state), DEFAULT_POLICY);
		expect(candidates.map(({ state: left }) => left)).not.toContain(state);
		expect(because).toContain('5 of 6 workers');
		expect(because).toContain('1 is not ready');
	});

	test('never 1+0 by shrinking', () => {
		for (let count = 2; count <= 14; count++) {
			expect(outcome(LARGE, down(count, count - 1, 'lost'))).toBe('unavailable');
			expect(outcome(ONE_CELL, down(count, count - 1, 'suspect'))).toBe('unavailable');
		}
		expect(outcome(ONE_CELL, down(1, 1, 'suspect'))).toBe('unavailable');
	});

	test('a refusal says when to come again', () => {
		expect(() => chooseRedundancy(LARGE, down(3, 2, 'lost'), DEFAULT_POLICY)).toThrow(
			expect.objectContaining({ kind: 'unavailable', retryAfterMs: expect.any(Number) }),
		);
	});
});

describe('full disks', () => {
	const full = (count: number, without: number) =>
		cluster(count, (index) => (index < without ? { bytesFree: 16 * MiB } : {}));

	test('are not chosen, and exhausted when nothing else is left', () => {
		const found = Array.from({ length: 7 }, (_, without) => outcome(LARGE, full(6, without)));
		expect(found).toEqual(['4+2', '3+2', '2+2', '2+1', '1+1', 'exhausted', 'exhausted']);
		expect(chooseRedundancy(LARGE, full(6, 2), DEFAULT_POLICY).because).toContain('2 have no room');
	});
});

describe('slow workers', () => {
	test('are passed over while three others will do', () => {
		const slow = (without: number) => cluster(6, (index) => ({ latencyMs: index < without ? 60_000 : 5 }));
		expect([0, 1, 2, 3].map((without) => outcome(LARGE, slow(without)))).toEqual(['4+2', '3+2', '2+2', '2+1']);
		const { candidates, because } = chooseRedundancy(LARGE, slow(2), DEFAULT_POLICY);
		expect(candidates).toHaveLength(4);
		expect(because).toContain('2 too slow just now');
		// With two quick ones left the slow ones are needed.
		expect(chooseRedundancy(LARGE, slow(4), DEFAULT_POLICY).candidates).toHaveLength(6);
		const pair = cluster(2, (index) => ({ latencyMs: index === 0 ? 60_000 : 5 }));
		expect(outcome(LARGE, pair)).toBe('1+1');
	});

	// One that failed before anybody had read anything was once its own median, and was not passed over.
	test('one that is known to be slow among workers that nobody has measured', () => {
		const workers = cluster(6, (index) => (index === 3 ? { latencyMs: 60_000 } : {}));
		expect(chooseRedundancy(LARGE, workers, DEFAULT_POLICY).candidates).toHaveLength(5);
		expect(slowerThanMs([undefined, undefined, 60_000])).toBeLessThan(60_000);
		expect(slowerThanMs([60_000, 5])).toBeLessThan(60_000);
	});

	test('nobody is slow in a cluster that is slow as a whole, or quick', () => {
		expect(slowerThanMs([300, 310, 320])).toBeGreaterThan(320);
		expect(slowerThanMs([1, 2, 150])).toBeGreaterThan(150);
		expect(slowerThanMs([])).toBeGreaterThan(0);
	});

	test('a slow cluster gets a smaller k, and says so', () => {
		const slow = (latencyMs: number) =>
			chooseRedundancy(
				LARGE,
				cluster(12, () => ({ latencyMs })),
				DEFAULT_POLICY,
			);
		expect(code(slow(400))).toBe('8+4');
		expect(code(slow(600))).toBe('4+2');
		expect(slow(600).because).toContain('they take 600 ms to answer');
		expect(
			outcome(
				MEDIUM,
				cluster(6, () => ({ latencyMs: 600 })),
			),
		).toBe('2+2');
		expect(
			outcome(
				ONE_CELL,
				cluster(6, () => ({ latencyMs: 600 })),
			),
		).toBe('1+2');
	});
});

describe('zones', () => {
	const zoned = (sizes: readonly number[]) => {
		const zones = sizes.flatMap((size, zone) => new Array(size).fill(`zone-${zone}`));
		return cluster(zones.length, (index) => ({ zone: zones[index] }));
	};

	test('what one zone holds is never more than m', () => {
		expect(outcome(LARGE, zoned([2, 2, 2]))).toBe('4+2');
		expect(outcome(LARGE, zoned([3, 3]))).toBe('3+3');
		expect(outcome(LARGE, zoned([5, 1]))).toBe('1+2');
		const { because } = chooseRedundancy(LARGE, zoned([3, 3]), DEFAULT_POLICY);
		expect(because).toContain('any 2 of them or 1 of 2 zones may fail');
		expect(outcome(LARGE, zoned([1, 1, 1, 1, 1, 1]))).toBe('4+2');
		expect(outcome(LARGE, zoned([4, 4, 4]))).toBe('8+4');
		expect(outcome(LARGE, zoned([6, 6]))).toBe('4+4');
	});

	test('two zones tolerated', () => {
		const policy = { ...DEFAULT_POLICY, tolerate: { workers: 2, zones: 2 } };
		expect(outcome(LARGE, zoned([2, 2, 2, 2, 2, 2]), policy)).toBe('8+4');
		expect(outcome(LARGE, zoned([4, 4, 4, 4]), policy)).toBe('4+4');
	});

	test('one zone: each worker is its own, and at most half of them may go', () => {
		const policy = { ...DEFAULT_POLICY, tolerate: { workers: 1, zones: 3 } };
		const found = [2, 3, 4, 5, 6].map((count) => outcome(LARGE, cluster(count), policy));
		expect(found).toEqual(['1+1', '2+1', '2+2', '3+2', '3+3']);
	});
});

describe('the target', () => {
	const unreliable = (count: number, annualFailureRate: number) => cluster(count, () => ({ annualFailureRate }));

	test('more parity, then a smaller k, where workers fail more often', () => {
		expect(outcome(LARGE, unreliable(6, 0.02))).toBe('4+2');
		// With p = 0.5 / 8766 an hour: C(6,3) p³ is 3e-8 a year at 4+2, C(6,4) p⁴ is 1e-12 at 3+3.
		expect(outcome(LARGE, unreliable(6, 0.5))).toBe('3+3');
		expect(outcome(LARGE, unreliable(8, 0.5))).toBe('4+3');
	});

	test('a few bad workers count, wherever they stand in the list', () => {
		const bad = (at: number) => cluster(9, (index) => (index >= at && index < at + 3 ? { annualFailureRate: 5 } : {}));
		expect(outcome(LARGE, bad(0))).toBe('4+3');
		expect(outcome(LARGE, bad(6))).toBe('4+3');
	});

	test('a stricter target than the default is taken at its word', () => {
		const strict = (dataLossPerYear: number) => ({ ...DEFAULT_POLICY, dataLossPerYear });
		expect(outcome(LARGE, cluster(3), strict(1e-10))).toBe('1+2');
		expect(outcome(LARGE, cluster(6), strict(1e-15))).toBe('3+3');
		expect(outcome(LARGE, cluster(12), strict(1e-15))).toBe('8+4');
	});

	test('out of reach: the best there is, and it says so', () => {
		const policy = { ...DEFAULT_POLICY, dataLossPerYear: 1e-30 };
		const choice = chooseRedundancy(LARGE, cluster(4), policy);
		expect(code(choice)).toBe('1+3');
		expect(choice.because).toContain('1e-30 a year is out of reach');
		expect(chooseRedundancy(LARGE, cluster(4), DEFAULT_POLICY).because).not.toContain('out of reach');
	});

	test('the probability is right', () => {
		const p = 1 - Math.exp(-0.02 / 8766);
		expect(lossPerYear(2, 1, cluster(2))).toBeCloseTo(p * p * 8766, 15);
		expect(lossPerYear(3, 1, cluster(3)) / (8766 * (3 * p * p * (1 - p) + p ** 3))).toBeCloseTo(1, 9);
		const mixed = [
			workerOf(0, { annualFailureRate: 8766 * Math.LN2 }),
			workerOf(1, { annualFailureRate: 8766 * Math.LN2 }),
		];
		// A half each: both fail in a quarter of the windows.
		expect(lossPerYear(2, 1, mixed)).toBeCloseTo(8766 / 4, 6);
		expect(lossPerYear(2, 0, mixed)).toBeCloseTo((8766 * 3) / 4, 6);
		expect(lossPerYear(2, 2, mixed)).toBe(0);
	});
});

describe('a fixed policy', () => {
	const policy = { ...DEFAULT_POLICY, fixed: { dataShards: 4, parityShards: 3 } };

	test('is kept, but for objects with fewer cells', () => {
		expect(outcome(LARGE, cluster(12), policy)).toBe('4+3');
		expect(outcome({ ...LARGE, cells: 2 }, cluster(12), policy)).toBe('2+3');
		expect(chooseRedundancy(LARGE, cluster(7), policy).because).toContain('4+3');
	});

	test('is not adapted: too few workers refuse, and are counted', () => {
		const workers = cluster(8, (index) => (index < 2 ? { state: 'lost' } : {}));
		expect(() => chooseRedundancy(LARGE, workers, policy)).toThrow(
			expect.objectContaining({ kind: 'unavailable', message: expect.stringContaining('only 6 of 8 workers') }),
		);
	});
});

test('quorum', () => {
	const table: [number, number, number][] = [
		[1, 1, 1],
		[2, 1, 2],
		[3, 1, 2],
		[3, 2, 3],
		[4, 2, 3],
		[5, 3, 4],
		[6, 4, 5],
		[7, 4, 6],
		[12, 8, 10],
		[30, 24, 27],
	];
	for (const [n, k, q] of table) expect([n, k, quorum(n, k)]).toEqual([n, k, q]);
	fc.assert(
		fc.property(fc.integer({ min: 1, max: 24 }), fc.integer({ min: 0, max: 6 }), (k, m) => {
			const q = quorum(k + m, k);
			expect(q).toBe(Math.min(k + m, k + Math.max(1, Math.ceil(m / 2))));
			expect(q).toBeLessThanOrEqual(k + m);
			// Never just k, as long as there is any parity: what is acknowledged survives one loss.
			if (m > 0) expect(q).toBeGreaterThan(k);
		}),
	);
});

describe('an upload that has reserved its memory', () => {
	const room = { dataCells: 2, parityCells: 1 };
	const unknown: SegmentSize = { sizeBytes: null, cells: 256, ended: false, room };

	test('keeps to it, keeps the rules, and says so, whatever the workers are by now', () => {
		expect(outcome(unknown, cluster(3))).toBe('2+1');
		expect(chooseRedundancy(unknown, cluster(3), DEFAULT_POLICY).because).not.toContain('reserved');
		// Any two of six may fail, and two data cells have room for one of parity: copies need none.
		const { because, ...choice } = chooseRedundancy(unknown, cluster(6), DEFAULT_POLICY);
		expect(code(choice as RedundancyChoice)).toBe('1+2');
		expect(because).toMatch(/^1\+2 because .*any 2 of them may fail, its memory was reserved for rows of 2\+1$/);
	});

	test('a slot is full of rows until the segment ends', () => {
		const wide = { dataCells: 3, parityCells: 2 };
		expect(outcome({ ...unknown, room: wide }, cluster(6))).toBe('3+2');
		// 3 is no multiple of 2, and once made 3+2's sentence stand over a 1+2.
		const { because } = chooseRedundancy({ ...unknown, room: wide }, cluster(4), DEFAULT_POLICY);
		expect(because).toMatch(/^1\+2 because /);
		expect(outcome({ sizeBytes: 400_000, cells: 2, ended: true, room: wide }, cluster(4))).toBe('2+2');
		// Two rows of two would reach into the parity of the first.
		expect(outcome({ sizeBytes: 700_000, cells: 3, ended: true, room: wide }, cluster(4))).toBe('1+2');
	});
});

test('what was announced is not taken for the size', () => {
	const announced = { sizeBytes: null, atMostBytes: 16 * MiB + 200, cells: 65, ended: false };
	const choice = chooseRedundancy(announced, cluster(12), DEFAULT_POLICY);
	expect([code(choice), choice.because]).toEqual([
		'8+4',
		expect.stringContaining('at most 16777416 bytes were announced'),
	]);
	expect(outcome({ ...announced, atMostBytes: 16 * MiB }, cluster(12))).toBe('4+2');
	const ended = chooseRedundancy({ ...announced, sizeBytes: 5 * MiB, ended: true }, cluster(12), DEFAULT_POLICY);
	expect([code(ended), ended.because]).toEqual(['4+2', expect.stringContaining('it has 5242880 bytes')]);
});

describe('for every cluster, size and policy', () => {
	const anyWorkers = fc
		.array(
			fc.record({
				zone: fc.constantFrom('', 'a', 'b', 'c'),
				state: fc.constantFrom<WorkerState>('ready', 'ready', 'ready', 'ready', 'suspect', 'lost', 'cordoned'),
				bytesFree: fc.constantFrom(0, 100 * GiB, 100 * GiB, 100 * GiB, 50 * GiB),
				annualFailureRate: fc.constantFrom(undefined, undefined, undefined, 0.001, 0.3, 4),
				latencyMs: fc.constantFrom(undefined, 2, 2, 900, 60_000),
			}),
			{ minLength: 0, maxLength: 16 },
		)
		.map((changes) => changes.map((change, index) => workerOf(index, change)));
	const anySize: fc.Arbitrary<SegmentSize> = fc.record({
		sizeBytes: fc.constantFrom(null, 1_000, 500_000, 5 * MiB, 900 * MiB),
		cells: fc.integer({ min: 1, max: 256 }),
		ended: fc.boolean(),
	});
	/** As an upload asks: what came fits into a slot, and there is a slot for some k. */
	const anyReserved: fc.Arbitrary<SegmentSize> = fc
		.record({
			size: anySize,
			dataCells: fc.constantFrom(1, 2, 3, 4, 8),
			parityCells: fc.integer({ min: 1, max: CODEC_MAX_M }),
		})
		.map(({ size, dataCells, parityCells }) => ({
			...size,
			cells: size.ended ? Math.min(size.cells, dataCells) : Math.max(size.cells, dataCells),
			room: { dataCells, parityCells: dataCells === 1 ? 0 : parityCells },
		}));
	const anyPolicy: fc.Arbitrary<RedundancyPolicy> = fc.record({
		tolerate: fc.record({ workers: fc.integer({ min: 0, max: 4 }), zones: fc.integer({ min: 0, max: 2 }) }),
		dataLossPerYear: fc.constantFrom(1e-3, 1e-9, 1e-12, 1e-40),
	});

	/** The most that `zones` of the zones of these workers can hold when n shards are spread evenly. */
	function mostHeld(n: number, workers: readonly PolicyWorker[], zones: number): number {
		const rest = new Map<string, number>();
		for (const { zone } of workers) rest.set(zone, (rest.get(zone) ?? 0) + 1);
		const held = new Map<string, number>();
		for (let placed = 0; placed < n; ) {
			const before = placed;
			for (const [zone, room] of rest) {
				if (placed === n || (held.get(zone) ?? 0) >= room) continue;
				const lowest = Math.min(
					...[...rest].filter(([other, size]) => (held.get(other) ?? 0) < size).map(([other]) => held.get(other) ?? 0),
				);
				if ((held.get(zone) ?? 0) > lowest) continue;
				held.set(zone, (held.get(zone) ?? 0) + 1);
				placed++;
			}
			if (placed === before) throw new Error('more shards than workers');
		}
		return [...held.values()]
			.sort((a, b) => b - a)
			.slice(0, zones)
			.reduce((sum, count) => sum + count, 0);
	}

	test('the hard rules hold, or it refuses for a reason', () => {
		let chosen = 0;
		fc.assert(
			fc.property(anyWorkers, fc.oneof(anySize, anyReserved), anyPolicy, (workers, size, policy) => {
				let choice: RedundancyChoice;
				const usable = workers.filter(({ state, bytesFree }) => state === 'ready' && bytesFree >= GiB);
				try {
					choice = chooseRedundancy(size, workers, policy);
				} catch (error) {
					const { kind } = error as { kind: string };
					expect(['unavailable', 'exhausted']).toContain(kind);
					// Two workers of one zone always do for something.
					const alike = usable.length >= 2 && new Set(usable.map(({ zone }) => zone)).size === 1;
					if (alike) throw error;
					return;
				}
				chosen++;
				const { n, k, m, candidates, because } = choice;
				expect(n).toBe(k + m);
				expect(because.startsWith(`${k}+${m} because `)).toBe(true);
				expect(because).not.toContain('\n');
				expect(candidates.every((worker) => usable.includes(worker))).toBe(true);
				expect(new Set(candidates).size).toBe(candidates.length);
				expect(n).toBeLessThanOrEqual(candidates.length);
				expect(k).toBeLessThanOrEqual(size.cells);
				expect(m).toBeLessThanOrEqual(CODEC_MAX_M);
				if (size.room !== undefined) {
					const { dataCells, parityCells } = size.room;
					const inSlot = size.ended ? size.cells : dataCells;
					expect(Math.ceil(inSlot / k) * k).toBeLessThanOrEqual(dataCells);
					if (k > 1) expect(m).toBeLessThanOrEqual(parityCells);
				}
				if (workers.length === 1) {
					expect([k, m]).toEqual([1, 0]);
					return;
				}
				expect(m).toBeGreaterThanOrEqual(1);
				if (k > 1) expect(m).toBeGreaterThanOrEqual(Math.ceil(k / 2));
				const half = Math.floor(candidates.length / 2);
				expect(m).toBeGreaterThanOrEqual(Math.min(policy.tolerate.workers, half));
				const zones = new Set(candidates.map(({ zone }) => zone)).size;
				if (zones === 1) expect(m).toBeGreaterThanOrEqual(Math.min(policy.tolerate.zones, half));
				else {
					const tolerated = Math.min(policy.tolerate.zones, Math.floor(zones / 2));
					expect(mostHeld(n, candidates, tolerated)).toBeLessThanOrEqual(m);
				}
			}),
			{ seed: 20_240_610, numRuns: 3_000 },
		);
		expect(chosen).toBeGreaterThan(1_000);
	});

	test('the order of the workers does not matter, nor does asking twice', () => {
		const answer = (size: SegmentSize, workers: readonly PolicyWorker[], policy: RedundancyPolicy) => {
			try {
				const { n, k, because } = chooseRedundancy(size, workers, policy);
				return { n, k, because };
			} catch (error) {
				return (error as { kind: string }).kind;
			}
		};
		fc.assert(
			fc.property(anyWorkers, anySize, anyPolicy, fc.nat(), (workers, size, policy, turn) => {
				const at = workers.length === 0 ? 0 : turn % workers.length;
				const turned = [...workers.slice(at), ...workers.slice(0, at)].reverse();
				const first = answer(size, workers, policy);
				expect(answer(size, workers, policy)).toEqual(first);
				expect(answer(size, turned, policy)).toEqual(first);
			}),
			{ seed: 20_240_611, numRuns: 500 },
		);
	});

	test('the largest code is no smaller than any that is chosen', () => {
		fc.assert(
			fc.property(anyWorkers, anySize, anyPolicy, (workers, size, policy) => {
				let choice: RedundancyChoice;
				try {
					choice = chooseRedundancy(size, workers, policy);
				} catch {
					return;
				}
				const largest = largestCode(size.sizeBytes, workers, policy);
				expect(largest.k).toBeGreaterThanOrEqual(choice.k);
				expect(largest.m).toBeGreaterThanOrEqual(choice.m);
			}),
			{ seed: 20_240_612, numRuns: 1_000 },
		);
	});
});
