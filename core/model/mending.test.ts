/** Plans carried out on counts alone: they end, they end well, and they don't multiply the worker sets. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../test/support/clock.ts';
import type { WorkerId } from '../ids.ts';
import { type MendPlan, type MendWorker, planDepartures, planRebalance, successor } from './mending.ts';
import { placeShards } from './placement.ts';
import { DEFAULT_POLICY } from './redundancy.ts';
import type { SetCount } from './redundancy-report.ts';

const GiB = 1024 ** 3;
const EVENLY = { policy: DEFAULT_POLICY, leastBytes: 0 };
const SEED = 20_261_124;

function idOf(index: number): WorkerId {
	return index.toString(16).padStart(32, '0') as WorkerId;
}

function worker(index: number, changed: Partial<MendWorker> = {}): MendWorker {
	const state = changed.state ?? 'ready';
	const takes = state === 'ready';
	const room = { bytesFree: 100 * GiB, bytesTotal: 200 * GiB };
	return { workerId: idOf(index), zone: '', state, takes, slow: false, ...room, ...changed };
}

function cluster(count: number, zones = 1): MendWorker[] {
	return Array.from({ length: count }, (_, index) => worker(index, { zone: zones > 1 ? `zone-${index % zones}` : '' }));
}

/** Segments placed as uploads place them. */
function stored(
	workers: readonly MendWorker[],
	o: { k: number; n: number; segments: number; seed: string },
): SetCount[] {
	const random = seededRandom(o.seed);
	const counts = new Map<string, SetCount>();
	for (let i = 0; i < o.segments; i++) {
		const policyWorkers = workers.map((each) => ({ ...each, name: each.workerId }));
		const holders = placeShards({ n: o.n, workers: policyWorkers, random }).toSorted();
		add(counts, { setId: '', k: o.k, n: o.n, workers: holders, segments: 1, bytes: 64 * 1024 * o.k });
	}
	return [...counts.values()];
}

function add(counts: Map<string, SetCount>, more: SetCount): void {
	const setId = JSON.stringify([more.k, more.n, more.workers]);
	const { segments, bytes } = counts.get(setId) ?? { segments: 0, bytes: 0 };
	counts.set(setId, { ...more, setId, segments: segments + more.segments, bytes: bytes + more.bytes });
}

/** What the sets are when the first moves of the plan are done, each set being in one of them only. */
function carriedOut(sets: readonly SetCount[], plan: MendPlan): SetCount[] {
	const counts = new Map<string, SetCount>();
	const moved = new Set<string>();
	for (const { set, from, to, segments } of plan.moves) {
		if (moved.has(set.setId)) continue;
		moved.add(set.setId);
		const bytes = (set.bytes / set.segments) * segments;
		const workers = set.workers.map((workerId) => (workerId === from ? to : workerId)).toSorted();
		add(counts, { ...set, workers, segments, bytes });
		if (segments < set.segments) add(counts, { ...set, segments: set.segments - segments, bytes: set.bytes - bytes });
	}
	for (const set of sets) if (!moved.has(set.setId)) add(counts, set);
	return [...counts.values()];
}

/** Plans and carries out until nothing is planned. */
function mended(sets: readonly SetCount[], plan: (sets: readonly SetCount[]) => MendPlan): SetCount[] {
	let now = [...sets];
	for (let round = 0; round < 200; round++) {
		const next = plan(now);
		if (next.moves.length === 0) return now;
		now = carriedOut(now, next);
	}
	throw new Error('it does not end');
}

function heldBytes(sets: readonly SetCount[], workerId: WorkerId): number {
	return sets.reduce((sum, { workers, bytes, k }) => sum + (workers.includes(workerId) ? bytes / k : 0), 0);
}

describe('departures', () => {
	test('whatever two workers are lost of enough, every set is complete again, and there are not more sets than before', () => {
		fc.assert(
			fc.property(fc.integer({ min: 8, max: 20 }), fc.constantFrom(1, 3), fc.nat(), fc.nat(), (count, zones, a, b) => {
				const before = cluster(count, zones);
				const sets = stored(before, { k: 4, n: 6, segments: 300, seed: `${count}` });
				const gone = [idOf(a % count), idOf(b % count)];
				const workers = before.map((each) =>
					gone.includes(each.workerId) ? { ...each, state: 'lost' as const, takes: false } : each,
				);
				const after = mended(sets, (now) => planDepartures('lost', now, workers));
				for (const set of after) {
					expect(new Set(set.workers).size).toBe(set.n);
					for (const workerId of gone) expect(set.workers).not.toContain(workerId);
				}
				expect(after.length).toBeLessThanOrEqual(sets.length);
				expect(after.reduce((sum, { segments }) => sum + segments, 0)).toBe(300);
			}),
			{ seed: SEED, numRuns: 60 },
		);
	});

	test('fewest spare shards come first', () => {
		const workers = [...cluster(7), worker(7, { state: 'lost' }), worker(8, { state: 'suspect' })];
		const holders = (...indexes: number[]) => indexes.map(idOf);
		const base = { k: 2, n: 4, segments: 1, bytes: 1 };
		const whole = { ...base, setId: 'one lost', workers: holders(0, 1, 2, 7) };
		const worse = { ...base, setId: 'one lost, one away', workers: holders(0, 1, 7, 8) };
		const { moves } = planDepartures('lost', [whole, worse], workers);
		expect(moves.map(({ set, spare }) => [set.setId, spare])).toEqual([
			['one lost, one away', 0],
			['one lost', 1],
		]);
	});

	test('what can not be moved is told with its reason, and nobody is chosen twice', () => {
		const workers = [...cluster(3), worker(3, { state: 'lost' }), worker(4, { state: 'lost' })];
		const base = { k: 2, n: 4, segments: 5, bytes: 1 };
		const tooFew = { ...base, setId: 'too few', workers: [0, 3, 4].map(idOf) };
		const nobody = { ...base, setId: 'nobody', workers: [0, 1, 2, 3].map(idOf) };
		const { moves, stuck } = planDepartures('lost', [tooFew, nobody], workers);
		expect(moves).toEqual([]);
		expect(stuck.map(({ set, why }) => [set.setId, why])).toEqual([
			['too few', 'too_few_shards'],
			['too few', 'too_few_shards'],
			['nobody', 'no_worker'],
		]);
	});

	test('a draining worker is emptied, one that is only cordoned or away is not', () => {
		const workers = cluster(10).map((each, index) =>
			index === 0
				? { ...each, state: 'draining' as const, takes: false }
				: index < 3
					? { ...each, state: index === 1 ? ('cordoned' as const) : ('suspect' as const), takes: false }
					: each,
		);
		const sets = stored(cluster(10), { k: 4, n: 6, segments: 200, seed: 'drain' });
		const after = mended(sets, (now) => planDepartures('drain', now, workers));
		expect(heldBytes(after, idOf(0))).toBe(0);
		for (const index of [1, 2]) expect(heldBytes(after, idOf(index))).toBe(heldBytes(sets, idOf(index)));
	});
});

describe('rebalance', () => {
	test('a new worker fills from all others, to its part; then nothing moves any more', () => {
		fc.assert(
			fc.property(fc.integer({ min: 6, max: 16 }), fc.integer({ min: 1, max: 4 }), (count, joined) => {
				const sets = stored(cluster(count), { k: 4, n: 6, segments: 600, seed: `${count}` });
				const workers = cluster(count + joined);
				const after = mended(sets, (now) => planRebalance(now, workers, EVENLY));
				const part = (600 * 6 * 64 * 1024) / (count + joined);
				for (const { workerId } of workers) {
					expect(Math.abs(heldBytes(after, workerId) - part) / part).toBeLessThan(0.16);
				}
				for (const set of after) expect(new Set(set.workers).size).toBe(6);
			}),
			{ seed: SEED, numRuns: 30 },
		);
	});

	test('larger disks get more', () => {
		const small = cluster(8);
		const workers = small.map((each, index) => (index === 0 ? { ...each, bytesTotal: 2 * each.bytesTotal } : each));
		const sets = stored(small, { k: 2, n: 4, segments: 900, seed: 'large' });
		const after = mended(sets, (now) => planRebalance(now, workers, EVENLY));
		const part = (900 * 4 * 64 * 1024) / 9;
		expect(heldBytes(after, idOf(0)) / part).toBeGreaterThan(1.65);
	});

	test('sets that break the zone rule are mended first, and evening out never breaks it', () => {
		const workers = cluster(9, 3);
		// Two of three zones' workers hold all: worker 0, 3, 6 are zone 0; 1, 4, 7 zone 1.
		const bad: SetCount = { setId: 'bad', k: 4, n: 6, workers: [0, 1, 3, 4, 6, 7].map(idOf), segments: 10, bytes: 4e6 };
		const zoneMax = (set: SetCount) =>
			Math.max(...[0, 1, 2].map((zone) => set.workers.filter((id) => Number.parseInt(id, 16) % 3 === zone).length));
		expect(zoneMax(bad)).toBe(3);
		expect(planRebalance([bad], workers, EVENLY).moves[0]?.kind).toBe('zone');
		const sets = [bad, ...stored(workers.slice(0, 6), { k: 4, n: 6, segments: 50, seed: 'zones' })];
		for (const set of mended(sets, (now) => planRebalance(now, workers, EVENLY))) {
			expect(zoneMax(set)).toBeLessThanOrEqual(2);
		}
	});

	test('small differences are left alone', () => {
		const sets = stored(cluster(6), { k: 4, n: 6, segments: 50, seed: 'small' });
		const joined = cluster(7);
		expect(planRebalance(sets, joined, EVENLY).moves).not.toEqual([]);
		expect(planRebalance(sets, joined, { ...EVENLY, leastBytes: 50 * 64 * 1024 }).moves).toEqual([]);
	});

	test('nothing moves in a cluster that is even, or of one worker, or without room', () => {
		const sets = stored(cluster(6), { k: 4, n: 6, segments: 50, seed: 'even' });
		expect(planRebalance(sets, cluster(6), EVENLY).moves).toEqual([]);
		expect(planRebalance(sets, [worker(0)], EVENLY).moves).toEqual([]);
		const full = [...cluster(6), worker(6, { bytesFree: 0 })];
		expect(planRebalance(sets, full, EVENLY).moves).toEqual([]);
	});
});

test('a successor is the same whoever asks, no holder, in the zone that holds least, and roomy while it can be', () => {
	const workers = cluster(9, 3);
	const set = { workers: [0, 1, 2, 3].map(idOf) };
	const chosen = successor({ set, from: idOf(0), workers });
	expect(successor({ set, from: idOf(0), workers: workers.toReversed() })).toBe(chosen);
	const others = { workers: [1, 2, 4, 5].map(idOf) };
	expect(Number.parseInt(successor({ set: others, from: null, workers }) as string, 16) % 3).toBe(0);
	const nearlyFull = workers.map((each) =>
		each.workerId === idOf(0) ? each : { ...each, bytesFree: 0.05 * each.bytesTotal },
	);
	expect(successor({ set: others, from: null, workers: nearlyFull })).toBe(idOf(0));
	expect(successor({ set: others, from: null, workers, alsoHeld: workers.map(({ workerId }) => workerId) })).toBeNull();
});

test('a slow worker takes what must go somewhere, but only where nobody else will do, and nothing is evened out onto it', () => {
	const slow = cluster(6).map((each, index) => ({ ...each, slow: index >= 4 }));
	const holders = (...indexes: number[]) => ({ workers: indexes.map(idOf) });
	expect(successor({ set: holders(0, 1, 2), from: idOf(0), workers: slow })).toBe(idOf(3));
	const onlySlow = successor({ set: holders(0, 1, 2, 3), from: idOf(0), workers: slow });
	expect([idOf(4), idOf(5)]).toContain(onlySlow);
	const sets = stored(cluster(4), { k: 2, n: 4, segments: 50, seed: 'slow' });
	expect(planRebalance(sets, slow, EVENLY).moves).toEqual([]);
	expect(planRebalance(sets, cluster(6), EVENLY).moves).not.toEqual([]);
});
