/** Whether stored codes still suit: what must come out as a cluster grows and shrinks, and that it always comes to rest. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { EncodingId, SealId, WorkerId } from '../ids.ts';
import { LARGE_CELL_BYTES, SMALL_CELL_BYTES, TAG_BYTES } from '../limits.ts';
import type { WorkerState } from './health.ts';
import { DEFAULT_POLICY, type PolicyWorker, type RedundancyPolicy } from './redundancy.ts';
import type { Segment } from './segment.ts';
import { Suits, type UnsuitedWhy } from './suits.ts';

const MiB = 1024 * 1024;
const GiB = 1024 * MiB;

function workers(count: number, change: (at: number) => Partial<PolicyWorker> = () => ({})): PolicyWorker[] {
	return Array.from({ length: count }, (_, at) => ({
		workerId: at.toString(16).padStart(32, '0') as WorkerId,
		name: `worker-${at}`,
		zone: '',
		state: 'ready' as const,
		bytesFree: 100 * GiB,
		...change(at),
	}));
}

/** Of an object of so many bytes. */
function segmentOf(sizeBytes: number, code: { k: number; n: number }): Segment {
	const cellBytes = sizeBytes <= 512 * 1024 ? SMALL_CELL_BYTES : LARGE_CELL_BYTES;
	const perCell = cellBytes - TAG_BYTES;
	const cells = Math.max(1, Math.ceil(sizeBytes / perCell));
	const { k, n } = code;
	return {
		index: 0,
		codec: k === 1 ? 'replicate' : 'rs-ronomon-6',
		k,
		n,
		cellBytes,
		cells,
		lastCellBytes: sizeBytes - (cells - 1) * perCell + TAG_BYTES,
		sealId: '' as SealId,
		encodingId: '' as EncodingId,
		endRecord: Buffer.alloc(0),
		roots: Buffer.alloc(0),
		because: '',
		placements: [],
	};
}

/** `4+2 space`, or `suits`. */
function outcome(segment: Segment, now: readonly PolicyWorker[], policy: RedundancyPolicy = DEFAULT_POLICY): string {
	const wanted = new Suits(now, policy).wanted(segment, null);
	return wanted === null ? 'suits' : `${wanted.choice.k}+${wanted.choice.m} ${wanted.why}`;
}

function encodedAnew(segment: Segment, now: readonly PolicyWorker[], policy = DEFAULT_POLICY): Segment {
	const wanted = new Suits(now, policy).wanted(segment, null);
	if (wanted === null) return segment;
	const { k, n } = wanted.choice;
	return { ...segment, k, n, codec: k === 1 ? 'replicate' : 'rs-ronomon-6' };
}

const code = ({ k, n }: Segment) => `${k}+${n - k}`;
const SIZES = {
	one: 60_000,
	two: 2 * (SMALL_CELL_BYTES - TAG_BYTES),
	small: 500_000,
	medium: 2 * MiB,
	large: 60 * MiB,
};

test('a cluster that grows ends with the codes of new objects, for each size', () => {
	const grown = Object.fromEntries(
		Object.entries(SIZES).map(([name, size]) => {
			let segment = segmentOf(size, { k: 1, n: 1 });
			const codes = [1, 2, 3, 6, 12].map((count) => {
				segment = encodedAnew(segment, workers(count));
				return code(segment);
			});
			return [name, codes.join(' ')];
		}),
	);
	expect(grown).toEqual({
		one: '1+0 1+1 1+1 1+2 1+2',
		two: '1+0 1+1 2+1 2+2 2+2',
		small: '1+0 1+1 2+1 4+2 4+2',
		medium: '1+0 1+1 2+1 4+2 4+2',
		large: '1+0 1+1 2+1 4+2 8+4',
	});
});

test('from every code of the way, one worker more or fewer', () => {
	const way = [
		[1, 'suits'],
		[2, '1+1 unsafe'],
		[3, '2+1 space'],
		[4, '2+2 unsafe'],
		[5, '3+2 space'],
		[6, '4+2 space'],
		[7, 'suits'],
		[11, 'suits'],
		[12, '8+4 parity'],
	] as const;
	let segment = segmentOf(SIZES.large, { k: 1, n: 1 });
	for (const [count, wanted] of way) {
		expect([count, outcome(segment, workers(count))]).toEqual([count, wanted]);
		segment = encodedAnew(segment, workers(count));
	}
	const lost = (at: number) => ({ state: (at === 0 ? 'lost' : 'ready') as WorkerState });
	expect(outcome(segment, workers(12, lost))).toBe('4+2 unsafe');
	expect(outcome(segmentOf(SIZES.large, { k: 4, n: 6 }), workers(6, lost))).toBe('3+2 unsafe');
	// Never to one copy because the other one is lost.
	expect(outcome(segmentOf(SIZES.large, { k: 1, n: 2 }), workers(2, lost))).toBe('suits');
});

describe('what says nothing', () => {
	const segment = segmentOf(SIZES.large, { k: 4, n: 6 });

	test.each<[string, Partial<PolicyWorker>]>([
		['away', { state: 'suspect' }],
		['cordoned', { state: 'cordoned' }],
		['full', { bytesFree: 0 }],
		['slow', { latencyMs: 60_000 }],
		['often broken', { annualFailureRate: 50 }],
	])('a worker that is %s just now', (_, change) => {
		expect(
			outcome(
				segment,
				workers(6, (at) => (at < 2 ? change : {})),
			),
		).toBe('suits');
	});

	test('what was chosen for workers that are worse stays while they are, and goes when they are good', () => {
		const worse = workers(8, () => ({ annualFailureRate: 10 }));
		const choice = new Suits(worse, DEFAULT_POLICY).wanted(segmentOf(SIZES.large, { k: 1, n: 2 }), null)?.choice;
		expect(choice?.m).toBeGreaterThan(2);
		const stored = segmentOf(SIZES.large, { k: choice?.k ?? 0, n: choice?.n ?? 0 });
		expect(outcome(stored, worse)).toBe('suits');
		expect(outcome(stored, workers(8))).toMatch(/^4\+2/);
	});

	test('a wider code that saves hardly anything', () => {
		// Five cells: one more row of parity for one cell.
		const five = segmentOf(5 * (LARGE_CELL_BYTES - TAG_BYTES), { k: 3, n: 5 });
		expect(outcome(five, workers(6))).toBe('suits');
	});
});

describe('the policy', () => {
	const stored = segmentOf(SIZES.medium, { k: 4, n: 6 });
	const tolerating = (count: number, zones = 1) => ({ ...DEFAULT_POLICY, tolerate: { workers: count, zones } });

	test.each<[RedundancyPolicy, string]>([
		[tolerating(3), '4+3 unsafe'],
		[tolerating(2), 'suits'],
		[tolerating(1), 'suits'],
		[{ ...DEFAULT_POLICY, fixed: { dataShards: 4, parityShards: 2 } }, 'suits'],
		[{ ...DEFAULT_POLICY, fixed: { dataShards: 6, parityShards: 2 } }, '6+2 fixed'],
		[{ ...DEFAULT_POLICY, fixed: { dataShards: 4, parityShards: 3 } }, '4+3 unsafe'],
		// More than there are workers: nothing can be done.
		[{ ...DEFAULT_POLICY, fixed: { dataShards: 10, parityShards: 4 } }, 'suits'],
		[{ ...DEFAULT_POLICY, dataLossPerYear: 1e-14 }, '4+3 parity'],
	])('%j: %s', (policy, wanted) => {
		expect(outcome(stored, workers(9), policy)).toBe(wanted);
	});

	test('less to survive: only where it saves much', () => {
		expect(outcome(segmentOf(SIZES.medium, { k: 4, n: 7 }), workers(9))).toBe('4+2 space');
	});

	test('zones that were not there before', () => {
		const zoned = workers(6, (at) => ({ zone: at % 2 === 0 ? 'a' : 'b' }));
		// Any of two zones holds three of six.
		expect(outcome(stored, zoned)).toMatch(/unsafe$/);
	});
});

test('encoded anew it suits, whatever the cluster is; and a look at its set would not have missed it', () => {
	const states: WorkerState[] = ['ready', 'ready', 'ready', 'suspect', 'lost', 'draining', 'cordoned'];
	const worker = fc.record({
		state: fc.constantFrom(...states),
		zone: fc.constantFrom('', 'a', 'b', 'c'),
		annualFailureRate: fc.constantFrom(undefined, undefined, 0.5, 20),
		latencyMs: fc.constantFrom(undefined, 3, 900),
		bytesFree: fc.constantFrom(0, 100 * GiB),
	});
	const fixed = fc.record({
		dataShards: fc.integer({ min: 1, max: 12 }),
		parityShards: fc.integer({ min: 1, max: 4 }),
	});
	const property = fc.property(
		fc.array(worker, { minLength: 1, maxLength: 16 }),
		fc.constantFrom(...Object.values(SIZES), 5 * (LARGE_CELL_BYTES - TAG_BYTES), 17 * MiB),
		fc.record({ k: fc.integer({ min: 1, max: 9 }), m: fc.integer({ min: 1, max: 5 }) }),
		fc.record({ workers: fc.nat(4), zones: fc.nat(2) }),
		fc.option(fixed, { freq: 4, nil: undefined }),
		(changes, sizeBytes, { k, m }, tolerate, fixedCode) => {
			const now = workers(changes.length, (at) => changes[at] as Partial<PolicyWorker>);
			const policy = { ...DEFAULT_POLICY, tolerate, ...(fixedCode === undefined ? {} : { fixed: fixedCode }) };
			const { cells } = segmentOf(sizeBytes, { k: 1, n: 2 });
			const kept = Math.min(k, cells);
			const stored = segmentOf(sizeBytes, { k: kept, n: kept + m });
			const suits = new Suits(now, policy);
			const wanted = suits.wanted(stored, null);
			expect(wanted?.why satisfies UnsuitedWhy | undefined).toBe(suits.wanted(stored, sizeBytes)?.why);
			if (wanted === null) return;
			expect(suits.mayNotSuit(stored) || suits.breaksRules(stored)).toBe(true);
			const anew = encodedAnew(stored, now, policy);
			expect(suits.wanted(anew, null)).toBeNull();
			expect(suits.breaksRules(anew)).toBe(false);
		},
	);
	fc.assert(property, { seed: 12, numRuns: 800 });
});

test('copies of the cluster’s own are as many as there are workers for, where they break a rule, and then at rest', () => {
	const found = [
		{ copies: 6, left: 5 },
		{ copies: 1, left: 12 },
		{ copies: 3, left: 6 },
		{ copies: 2, left: 0 },
	].map(({ copies, left }) => {
		const suits = new Suits(
			workers(12, (at) => (at < left ? {} : { state: 'lost' })),
			DEFAULT_POLICY,
		);
		const wanted = suits.wantedCopies(segmentOf(SIZES.small, { k: 1, n: copies }));
		if (wanted === null) return null;
		expect(suits.wantedCopies(segmentOf(SIZES.small, wanted.choice))).toBeNull();
		return wanted.choice.n;
	});
	expect(found).toEqual([5, 7, null, null]);
});
