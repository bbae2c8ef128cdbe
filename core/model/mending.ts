/**
 * What to move so that the data becomes whole and even again: shards of lost workers, of draining ones, those that break
 * the zone rule, and those of workers that hold more than their part. Pure; it sees counts by worker set only.
 *
 * The target is a function of the set and of who leaves it, so that all segments of a set end on one set again and the
 * number of sets stays small, whatever is lost and in whatever order it is mended.
 */

import { createHash } from 'node:crypto';
import type { WorkerId } from '../ids.ts';
import { isReachable, segmentHealth, type WorkerState } from './health.ts';
import { MIN_FREE_BYTES, type RedundancyPolicy } from './redundancy.ts';
import type { SetCount } from './redundancy-report.ts';

export interface MendWorker {
	readonly workerId: WorkerId;
	readonly zone: string;
	readonly state: WorkerState;
	/** May be given shards now. */
	readonly takes: boolean;
	/** Failed lately, or far slower than the others: given shards that must go somewhere when nobody else will do. */
	readonly slow: boolean;
	readonly bytesFree: number;
	readonly bytesTotal: number;
}

export type MoveKind = 'lost' | 'drain' | 'zone' | 'balance';

/** One shard of each segment of a set goes from one worker to another. */
export interface Move {
	readonly kind: MoveKind;
	readonly set: SetCount;
	readonly from: WorkerId;
	readonly to: WorkerId;
	/** Live shards beyond k as it is now. */
	readonly spare: number;
	/** Segments to move at most: fewer than the set has when evening out. */
	readonly segments: number;
}

export interface Stuck {
	readonly kind: MoveKind;
	readonly set: SetCount;
	readonly from: WorkerId;
	readonly why: 'too_few_shards' | 'no_worker';
}

export interface MendPlan {
	/** Most urgent first. */
	readonly moves: readonly Move[];
	/** Must leave, and can't now. */
	readonly stuck: readonly Stuck[];
}

/** A worker's part may be this much more or less than its capacity says before anything is moved. */
const EVEN_WITHIN = 0.15;
/** Fuller than this a worker takes moved shards only when no other can. */
const FULL_ABOVE = 0.9;

/**
 * Off lost workers (`lost`), or off those to be emptied (`drain`), fewest spare shards first. A worker that is not among
 * `workers` was forgotten while an upload to it was under way: it is lost.
 */
export function planDepartures(
	kind: 'lost' | 'drain',
	sets: readonly SetCount[],
	workers: readonly MendWorker[],
): MendPlan {
	const byId = new Map(workers.map((worker) => [worker.workerId, worker]));
	const moves: Move[] = [];
	const stuck: Stuck[] = [];
	for (const set of sets) {
		const spare = liveOf(set, byId).length - set.k;
		for (const from of set.workers) {
			const state = byId.get(from)?.state ?? 'lost';
			if (state !== (kind === 'lost' ? 'lost' : 'draining')) continue;
			if (spare < 0) {
				stuck.push({ kind, set, from, why: 'too_few_shards' });
				continue;
			}
			const to = successor({ set, from, workers });
			if (to === null) stuck.push({ kind, set, from, why: 'no_worker' });
			else moves.push({ kind, set, from, to, spare, segments: set.segments });
		}
	}
	return { moves: moves.sort((a, b) => a.spare - b.spare || compare(a.set.setId, b.set.setId)), stuck };
}

/** Whether there are segments at risk that repair can do something for now. */
export function isRepairUrgent(sets: readonly SetCount[], workers: readonly MendWorker[]): boolean {
	const byId = new Map(workers.map((worker) => [worker.workerId, worker]));
	return sets.some((set) => {
		const { n, k } = set;
		if (segmentHealth({ n, k, placed: liveOf(set, byId).length }) !== 'at_risk') return false;
		if (set.workers.length < n && successor({ set, from: null, workers }) !== null) return true;
		const lost = set.workers.filter((workerId) => (byId.get(workerId)?.state ?? 'lost') === 'lost');
		return lost.some((from) => successor({ set, from, workers }) !== null);
	});
}

/** First what breaks the zone rule, then what evens out. */
export function planRebalance(
	sets: readonly SetCount[],
	workers: readonly MendWorker[],
	o: {
		readonly policy: RedundancyPolicy;
		/** A worker that holds less than this too much or too little is left alone. */
		readonly leastBytes: number;
	},
): MendPlan {
	const zones = planZones(sets, workers, o.policy);
	return { moves: zones.length > 0 ? zones : planBalance(sets, workers, o), stuck: [] };
}

function planZones(sets: readonly SetCount[], workers: readonly MendWorker[], policy: RedundancyPolicy): Move[] {
	const rule = zoneRule(workers, policy);
	const { byId } = rule;
	return sets.flatMap((set) => {
		if (keepsZones(set, set.workers, rule)) return [];
		const held = zoneCounts(set.workers, byId);
		const heldIn = (workerId: WorkerId) => held.get(byId.get(workerId)?.zone ?? '') ?? 0;
		// Off the fullest zone; which of its members is arbitrary, and always the same.
		const [from] = liveOf(set, byId).toSorted((a, b) => heldIn(b) - heldIn(a) || compare(a, b));
		if (from === undefined) return [];
		const to = successor({ set, from, workers });
		if (to === null || (held.get(byId.get(to)?.zone ?? '') ?? 0) + 1 >= heldIn(from)) return [];
		const spare = liveOf(set, byId).length - set.k;
		return spare < 0 ? [] : [{ kind: 'zone' as const, set, from, to, spare, segments: set.segments }];
	});
}

/** What the zone rule asks of all sets alike. */
interface ZoneRule {
	readonly byId: ReadonlyMap<WorkerId, MendWorker>;
	/** That there are. */
	readonly zones: number;
	readonly policy: RedundancyPolicy;
}

function zoneRule(workers: readonly MendWorker[], policy: RedundancyPolicy): ZoneRule {
	const byId = new Map(workers.map((worker) => [worker.workerId, worker]));
	return { byId, zones: new Set(workers.map(({ zone }) => zone)).size, policy };
}

/** Whether any tolerated number of zones may go; where there is one zone there is nothing to keep. */
function keepsZones(set: SetCount, holders: readonly WorkerId[], { byId, zones, policy }: ZoneRule): boolean {
	if (zones < 2) return true;
	const tolerated = Math.min(policy.tolerate.zones, Math.floor(zones / 2));
	const held = [...zoneCounts(holders, byId).values()].sort((a, b) => b - a);
	return held.slice(0, tolerated).reduce((sum, count) => sum + count, 0) <= set.n - set.k;
}

/** From the worker that holds most beyond its part to the one that lacks most. */
function planBalance(
	sets: readonly SetCount[],
	workers: readonly MendWorker[],
	{ policy, leastBytes }: { policy: RedundancyPolicy; leastBytes: number },
): Move[] {
	const rule = zoneRule(workers, policy);
	const takers = workers.filter(({ takes, slow }) => takes && !slow);
	const capacity = takers.reduce((sum, { bytesTotal }) => sum + bytesTotal, 0);
	if (takers.length < 2 || capacity === 0) return [];
	const held = new Map<WorkerId, number>(takers.map(({ workerId }) => [workerId, 0]));
	for (const { workers: holders, bytes, k } of sets) {
		for (const workerId of holders) {
			const before = held.get(workerId);
			if (before !== undefined) held.set(workerId, before + bytes / k);
		}
	}
	const stored = [...held.values()].reduce((sum, bytes) => sum + bytes, 0);
	const partOf = ({ bytesTotal }: MendWorker) => (stored * bytesTotal) / capacity;
	const beyond = (worker: MendWorker) => (held.get(worker.workerId) ?? 0) - partOf(worker);
	const band = (worker: MendWorker) => Math.max(leastBytes, EVEN_WITHIN * partOf(worker));
	const givers = takers.filter((worker) => beyond(worker) > band(worker));
	const roomy = takers
		.filter(({ bytesFree }) => bytesFree >= MIN_FREE_BYTES)
		.toSorted((a, b) => beyond(a) - beyond(b) || compare(a.workerId, b.workerId));
	const lackers = roomy.filter((worker) => beyond(worker) < -band(worker));
	// A giver need not be beyond its band where somebody lacks, and the other way round: a new worker fills from all.
	const from = (givers.length > 0 ? givers : lackers.length > 0 ? takers : []).toSorted(
		(a, b) => beyond(b) - beyond(a) || compare(a.workerId, b.workerId),
	);
	const to = lackers.length > 0 ? lackers : roomy;
	for (const giver of from) {
		for (const taker of to) {
			const bytes = Math.min(beyond(giver), -beyond(taker));
			const moves = bytes <= 0 ? [] : movesOf({ sets, giver, taker, bytes, rule });
			if (moves.length > 0) return moves;
		}
	}
	return [];
}

function movesOf(o: {
	sets: readonly SetCount[];
	giver: MendWorker;
	taker: MendWorker;
	bytes: number;
	rule: ZoneRule;
}): Move[] {
	const { giver, taker, rule } = o;
	const [from, to] = [giver.workerId, taker.workerId];
	const moves: Move[] = [];
	let left = o.bytes;
	const usable = o.sets.filter(({ workers }) => workers.includes(from) && !workers.includes(to));
	// Whole sets in a fixed order: a set that is cut in two is one more to count.
	for (const set of usable.toSorted((a, b) => compare(rank(a, from, to), rank(b, from, to)))) {
		const shardBytes = set.bytes / set.k / set.segments;
		const segments = Math.min(set.segments, Math.floor(left / shardBytes));
		const holders = set.workers.map((workerId) => (workerId === from ? to : workerId));
		const spare = liveOf(set, rule.byId).length - set.k;
		if (segments === 0 || spare < 0 || !keepsZones(set, holders, rule)) continue;
		moves.push({ kind: 'balance', set, from, to, spare, segments });
		left -= segments * shardBytes;
	}
	return moves;
}

/**
 * Who takes over a shard: may be given one, has room, is no holder; not slow while another will do; in the zone that holds
 * least of the set; not nearly full while another will do; and then by a draw that is the same for the same set and leaver
 * (rendezvous hashing, Thaler and Ravishankar 1996). `from` null: the shard is missing, nobody leaves.
 */
export function successor(request: {
	readonly set: Pick<SetCount, 'workers'>;
	readonly from: WorkerId | null;
	readonly workers: readonly MendWorker[];
	/** Holders beyond the set's: of shards that are marked. */
	readonly alsoHeld?: readonly WorkerId[];
	readonly bytes?: number;
}): WorkerId | null {
	const { set, from, workers, alsoHeld = [], bytes = 0 } = request;
	const byId = new Map(workers.map((worker) => [worker.workerId, worker]));
	const stay = set.workers.filter((workerId) => workerId !== from);
	const held = zoneCounts(stay, byId);
	const key = [...stay].sort(compare).join();
	const cost = (worker: MendWorker) => [
		worker.slow ? 1 : 0,
		held.get(worker.zone) ?? 0,
		worker.bytesFree < (1 - FULL_ABOVE) * worker.bytesTotal ? 1 : 0,
	];
	const [best] = workers
		.filter(
			({ workerId, takes, bytesFree }) =>
				takes && bytesFree >= MIN_FREE_BYTES + bytes && !set.workers.includes(workerId) && !alsoHeld.includes(workerId),
		)
		.map((worker) => ({
			workerId: worker.workerId,
			cost: cost(worker),
			draw: hash(`${key} ${from} ${worker.workerId}`),
		}))
		.toSorted((a, b) => {
			for (const [i, value] of a.cost.entries()) if (value !== b.cost[i]) return value - (b.cost[i] as number);
			return compare(a.draw, b.draw);
		});
	return best?.workerId ?? null;
}

function liveOf(set: SetCount, byId: ReadonlyMap<WorkerId, MendWorker>): WorkerId[] {
	return set.workers.filter((workerId) => isReachable(byId.get(workerId)?.state ?? 'lost'));
}

function zoneCounts(
	holders: readonly WorkerId[],
	byId: ReadonlyMap<WorkerId, MendWorker>,
): ReadonlyMap<string, number> {
	const counts = new Map<string, number>();
	for (const holder of holders) {
		const zone = byId.get(holder)?.zone;
		if (zone !== undefined) counts.set(zone, (counts.get(zone) ?? 0) + 1);
	}
	return counts;
}

function rank(set: SetCount, from: WorkerId, to: WorkerId): string {
	return hash(`${set.k} ${set.n} ${set.workers.join()} ${from} ${to}`);
}

function hash(text: string): string {
	return createHash('sha256').update(text).digest('hex');
}

function compare(a: string, b: string): number {
	return a < b ? -1 : a > b ? 1 : 0;
}
