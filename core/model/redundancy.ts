/**
 * The choice of (n, k) for one segment, from its size, the workers' health and the network: a pure function, with its
 * reason in one sentence (docs/decisions/0001-choosing-n-and-k.md).
 *
 * Hard rules first (tolerances, zones, half of k as parity), by making k smaller; then the soft target (the probability
 * that more than m of the chosen workers fail within the repair window), by more parity and then a smaller k.
 */

import { assert } from '../assert.ts';
import { DistroError } from '../errors.ts';
import type { WorkerId } from '../ids.ts';
import { CODEC_MAX_K, CODEC_MAX_M, POLICY_MAX_K } from '../limits.ts';
import type { WorkerState } from './health.ts';
import { DEFAULT_AFR } from './history.ts';

export interface PolicyWorker {
	readonly workerId: WorkerId;
	readonly name: string;
	readonly zone: string;
	readonly state: WorkerState;
	readonly bytesFree: number;
	/** Share of a year's failures, such as 0.02. */
	readonly annualFailureRate?: number | undefined;
	/** Share of the time that it can be reached. */
	readonly availability?: number | undefined;
	/** Unknown is fine. */
	readonly latencyMs?: number | undefined;
}

export interface RedundancyPolicy {
	readonly tolerate: { readonly workers: number; readonly zones: number };
	/** Target for a segment. */
	readonly dataLossPerYear: number;
	readonly fixed?: { readonly dataShards: number; readonly parityShards: number };
}

export const DEFAULT_POLICY: RedundancyPolicy = { tolerate: { workers: 2, zones: 1 }, dataLossPerYear: 1e-9 };

export interface SegmentSize {
	/** Of the object; null: unknown. */
	readonly sizeBytes: number | null;
	/** The object has no more than these, as was announced; a form's length is more than its file's. */
	readonly atMostBytes?: number | null;
	/** Data cells in all; until it has ended those that there can be. */
	readonly cells: number;
	readonly ended: boolean;
	/** What its upload has reserved: rows, and their parity, must fit into it whatever the workers are now. */
	readonly room?: SlotRoom | undefined;
}

/** Cells of a slot, which takes whole rows: so many of data, and behind them so many of parity. */
export interface SlotRoom {
	readonly dataCells: number;
	readonly parityCells: number;
}

export interface RedundancyChoice {
	readonly n: number;
	readonly k: number;
	readonly m: number;
	/** One sentence: what decided. */
	readonly because: string;
	/** Another one was the best; the reserved memory has no room for it. */
	readonly isBounded?: boolean;
	/** Workers that may hold a shard: ready, with room, and not slow while others will do. */
	readonly candidates: readonly PolicyWorker[];
}

const K_STEPS = [8, 4, 3, 2, 1] as const;
const MiB = 1024 * 1024;
const YEAR_HOURS = 8766;
const REPAIR_WINDOW_HOURS = 1;
/** A worker this many times slower than the median is passed over while others will do; below the floor nobody is slow. */
const SLOW_FACTOR = 5;
export const SLOW_FLOOR_MS = 200;
/** Where the median worker needs this long for its first byte, fewer of them are asked at once. */
const SLOW_CLUSTER_MS = 500;
/** Enough room for one shard of a full segment and a trailer. */
export const MIN_FREE_BYTES = 32 * MiB;
/** From this many workers on k may be 8. */
const WIDE_WORKERS = 12;

/** Shards that must be durable before a write is acknowledged. */
export function quorum(n: number, k: number): number {
	return Math.min(n, k + Math.max(1, Math.ceil((n - k) / 2)));
}

/** Throws `unavailable` (nothing safe is possible now) or `exhausted` (no worker has room). */
export function chooseRedundancy(
	size: SegmentSize,
	workers: readonly PolicyWorker[],
	policy: RedundancyPolicy,
): RedundancyChoice {
	const { room, ...free } = size;
	const choice = choose(free, workers, policy);
	if (room === undefined || (rowsFit(choice.k, size) && choice.m <= mostParity(choice.k, size))) return choice;
	const bounded = choose(size, workers, policy);
	const why = `its memory was reserved for rows of ${room.dataCells}+${room.parityCells}`;
	return { ...bounded, isBounded: true, because: `${bounded.because}, ${why}` };
}

function choose(size: SegmentSize, workers: readonly PolicyWorker[], policy: RedundancyPolicy): RedundancyChoice {
	const pool = eligible(workers);
	const registered = workers.length;
	if (policy.fixed !== undefined) return chooseFixed(size, { pool, registered, fixed: policy.fixed });
	const count = pool.candidates.length;
	if (registered === 1 && count === 1) {
		return {
			n: 1,
			k: 1,
			m: 0,
			candidates: pool.candidates,
			because: '1+0 because only one worker is registered: not durable',
		};
	}
	const tolerance = Math.min(policy.tolerate.workers, Math.floor(count / 2));
	const wanted = wantedK(size);
	// Every read of a row asks k workers, and waits for the slowest.
	const mostK = pool.slow ? Math.max(1, wanted.k / 2) : wanted.k;
	const choices: Widened[] = [];
	for (const k of K_STEPS) {
		if (k > mostK || k > size.cells || (k > 4 && count < WIDE_WORKERS) || !rowsFit(k, size)) continue;
		const least = leastParity(k, count, policy);
		const most = mostParity(k, size);
		const m = leastZoneSafe({ k, least, most, count, pool, policy });
		if (m === null) continue;
		const widened = widenToTarget({ k, m, most, count, pool, policy });
		choices.push(widened);
		if (widened.holds) break;
	}
	const chosen = choices.find(({ holds }) => holds) ?? choices.toSorted((a, b) => a.loss - b.loss)[0];
	if (chosen === undefined) throw nothingSafe(registered, pool);
	const { k, m } = chosen;
	const n = k + m;
	const reasons = [
		wanted.why,
		`${count} of ${registered} workers can take a shard`,
		mayFail(tolerance, pool, policy),
		...pool.notes,
		...(chosen.holds ? [] : [`the target of ${policy.dataLossPerYear} a year is out of reach with these workers`]),
	];
	return { n, k, m, candidates: pool.candidates, because: `${k}+${m} because ${reasons.join(', ')}` };
}

/**
 * Whether a segment that is cut so keeps the hard rules on these workers: it has room on them, and whatever must be able to
 * fail may.
 */
export function keepsHardRules(
	{ k, m }: { readonly k: number; readonly m: number },
	workers: readonly PolicyWorker[],
	policy: RedundancyPolicy,
): boolean {
	const pool = eligible(workers);
	const count = pool.candidates.length;
	if (k + m > count) return false;
	if (policy.fixed !== undefined) return m >= policy.fixed.parityShards;
	if (m === 0) return workers.length === 1;
	return m >= leastParity(k, count, policy) && zonesHold(k + m, pool, policy) <= m;
}

/** Workers that n shards may be given to now: the slow ones only where the others don't suffice. Throws as `chooseRedundancy`. */
export function takersFor(n: number, workers: readonly PolicyWorker[]): readonly PolicyWorker[] {
	const pool = eligible(workers);
	const takers = pool.candidates.length >= n ? pool.candidates : pool.roomy;
	if (takers.length < n) throw nothingSafe(workers.length, pool);
	return takers;
}

/** Parity that k data shards must have whatever the zones are. */
function leastParity(k: number, count: number, policy: RedundancyPolicy): number {
	return Math.max(1, k > 1 ? Math.ceil(k / 2) : 0, Math.min(policy.tolerate.workers, Math.floor(count / 2)));
}

/** Whether a slot holds whole rows of k: of a segment that goes on it must be full of them. */
function rowsFit(k: number, { cells, ended, room }: SegmentSize): boolean {
	if (room === undefined) return true;
	return ended ? Math.ceil(cells / k) * k <= room.dataCells : room.dataCells % k === 0;
}

/** Copies are sent from the data cells themselves. */
function mostParity(k: number, { room }: SegmentSize): number {
	return room === undefined || k === 1 ? CODEC_MAX_M : Math.min(CODEC_MAX_M, room.parityCells);
}

/** The largest k, and the largest m, that any segment of an object could get right now. Throws as `chooseRedundancy`. */
export function largestCode(
	sizeBytes: number | null,
	workers: readonly PolicyWorker[],
	policy: RedundancyPolicy,
): { k: number; m: number } {
	const { k } = chooseRedundancy({ sizeBytes, cells: CODEC_MAX_K, ended: false }, workers, policy);
	let m = 0;
	for (let cells = 1; cells <= k; cells++) {
		m = Math.max(m, chooseRedundancy({ sizeBytes, cells, ended: true }, workers, policy).m);
	}
	return { k, m };
}

interface Pool {
	readonly candidates: readonly PolicyWorker[];
	/** With those that are too slow just now. */
	readonly roomy: readonly PolicyWorker[];
	readonly zones: number;
	readonly notes: readonly string[];
	readonly full: number;
	/** The workers as a whole answer slowly. */
	readonly slow: boolean;
}

function eligible(workers: readonly PolicyWorker[]): Pool {
	const usable = workers.filter(({ state }) => state === 'ready');
	const roomy = usable.filter(({ bytesFree }) => bytesFree >= MIN_FREE_BYTES);
	const full = usable.length - roomy.length;
	const slowMs = slowerThanMs(roomy.map(({ latencyMs }) => latencyMs));
	const isSlow = ({ latencyMs }: PolicyWorker) => latencyMs !== undefined && latencyMs > slowMs;
	const quick = roomy.filter((worker) => !isSlow(worker));
	// Slow workers are passed over only while the others will do.
	const slowNeeded = quick.length < Math.min(roomy.length, 3);
	const candidates = slowNeeded ? roomy : quick;
	const notes: string[] = [];
	const away = workers.length - usable.length;
	if (away > 0) notes.push(`${away} ${away === 1 ? 'is' : 'are'} not ready`);
	if (full > 0) notes.push(`${full} ${full === 1 ? 'has' : 'have'} no room`);
	if (candidates.length < roomy.length) notes.push(`${roomy.length - candidates.length} too slow just now`);
	const typicalMs = medianMs(candidates.map(({ latencyMs }) => latencyMs));
	const slow = typicalMs >= SLOW_CLUSTER_MS;
	if (slow) notes.push(`they take ${Math.round(typicalMs)} ms to answer`);
	return { candidates, roomy, zones: new Set(candidates.map(({ zone }) => zone)).size, notes, full, slow };
}

/** Workers with a latency above this are far off the median. */
export function slowerThanMs(latenciesMs: readonly (number | undefined)[]): number {
	return Math.max(SLOW_FLOOR_MS, medianMs(latenciesMs) * SLOW_FACTOR);
}

/** The lower one where there are two. Whom nobody has measured counts as quick, or a lone slow one would be its own measure. */
function medianMs(latenciesMs: readonly (number | undefined)[]): number {
	const sorted = latenciesMs.map((latencyMs) => latencyMs ?? 0).sort((a, b) => a - b);
	return sorted[Math.floor((sorted.length - 1) / 2)] ?? 0;
}

function wantedK(size: SegmentSize): { k: number; why: string } {
	const { sizeBytes, atMostBytes = null, cells, ended } = size;
	if (ended && cells === 1) return { k: 1, why: 'it is one cell' };
	const bytes = sizeBytes ?? atMostBytes;
	if (bytes === null) return { k: POLICY_MAX_K, why: 'its size is not known yet' };
	const why = sizeBytes === null ? `at most ${bytes} bytes were announced` : `it has ${bytes} bytes`;
	return { k: isLargeObject(bytes) ? POLICY_MAX_K : 4, why };
}

/** Sizes on the same side get the same code. */
export function isLargeObject(sizeBytes: number): boolean {
	return sizeBytes > 16 * MiB;
}

function mayFail(workers: number, pool: Pool, policy: RedundancyPolicy): string {
	const zones = pool.zones < 2 ? 0 : toleratedZones(pool.zones, policy);
	return `any ${workers} of them${zones === 0 ? '' : ` or ${zones} of ${pool.zones} zones`} may fail`;
}

/** As with workers: not more than half of them. */
function toleratedZones(zones: number, policy: RedundancyPolicy): number {
	return Math.min(policy.tolerate.zones, Math.floor(zones / 2));
}

/** m from `least` up so that the shards fit on the workers and any tolerated zones may go; null when none does. */
function leastZoneSafe(o: {
	k: number;
	least: number;
	most: number;
	count: number;
	pool: Pool;
	policy: RedundancyPolicy;
}): number | null {
	for (let m = o.least; m <= o.most && o.k + m <= o.count; m++) {
		if (zonesHold(o.k + m, o.pool, o.policy) <= m) return m;
	}
	return null;
}

/** Shards that the tolerated number of zones hold at most, when n shards are spread as evenly as the zones allow. */
function zonesHold(n: number, pool: Pool, policy: RedundancyPolicy): number {
	// Where there is one zone a worker is its own zone.
	if (pool.zones < 2) return toleratedZones(pool.candidates.length, policy);
	const sizes = new Map<string, number>();
	for (const worker of pool.candidates) sizes.set(worker.zone, (sizes.get(worker.zone) ?? 0) + 1);
	const held = spread(n, [...sizes.values()]).sort((a, b) => b - a);
	return held.slice(0, toleratedZones(pool.zones, policy)).reduce((sum, count) => sum + count, 0);
}

/** n shards over zones with so many workers each, as evenly as possible. */
function spread(n: number, zoneSizes: readonly number[]): number[] {
	const held = zoneSizes.map(() => 0);
	for (let placed = 0; placed < n; placed++) {
		let best = -1;
		for (const [i, size] of zoneSizes.entries()) {
			if ((held[i] as number) < size && (best < 0 || (held[i] as number) < (held[best] as number))) best = i;
		}
		if (best < 0) break;
		held[best] = (held[best] as number) + 1;
	}
	return held;
}

interface Widened {
	readonly k: number;
	readonly m: number;
	/** Of a segment, expected in a year. */
	readonly loss: number;
	readonly holds: boolean;
}

/** m made larger until the target holds; where it never does, the m that comes nearest. */
function widenToTarget(o: {
	k: number;
	m: number;
	most: number;
	count: number;
	pool: Pool;
	policy: RedundancyPolicy;
}): Widened {
	const { k } = o;
	const asked = o.policy.dataLossPerYear;
	// Healthy workers under the hard rules are good enough: the default target makes up for workers that are worse.
	const healthy = o.pool.candidates.map((worker) => ({ ...worker, annualFailureRate: DEFAULT_AFR }));
	const isStricter = asked < DEFAULT_POLICY.dataLossPerYear;
	const target = isStricter ? asked : Math.max(asked, lossPerYear(k + o.m, o.m, healthy));
	let nearest: Widened | null = null;
	for (let m = o.m; m <= o.most && k + m <= o.count; m++) {
		const loss = lossPerYear(k + m, m, o.pool.candidates);
		if (loss <= target) return { k, m, loss, holds: true };
		if (nearest === null || loss < nearest.loss) nearest = { k, m, loss, holds: false };
	}
	assert(nearest !== null, 'the hard rules gave an m that fits');
	return nearest;
}

/**
 * P(more than m of n candidates fail within one repair window), times the windows of a year. Placement may choose any, so
 * the n that fail most often are looked at.
 */
export function lossPerYear(n: number, m: number, candidates: readonly PolicyWorker[]): number {
	const windows = YEAR_HOURS / REPAIR_WINDOW_HOURS;
	const rates = candidates.map(({ annualFailureRate }) => annualFailureRate ?? DEFAULT_AFR).sort((a, b) => b - a);
	// Poisson-binomial: distribution of the number of failures, one worker at a time.
	let failures = [1];
	for (const rate of rates.slice(0, n)) {
		const p = 1 - Math.exp(-rate / windows);
		const next = new Array(failures.length + 1).fill(0);
		for (const [count, probability] of failures.entries()) {
			next[count] += probability * (1 - p);
			next[count + 1] += probability * p;
		}
		failures = next;
	}
	return failures.slice(m + 1).reduce((sum, p) => sum + p, 0) * windows;
}

function chooseFixed(
	size: SegmentSize,
	o: { pool: Pool; registered: number; fixed: NonNullable<RedundancyPolicy['fixed']> },
): RedundancyChoice {
	const { pool, registered, fixed } = o;
	const k = Math.min(fixed.dataShards, size.cells);
	const m = fixed.parityShards;
	if (k + m > pool.candidates.length) throw nothingSafe(registered, pool);
	const because = `${k}+${m} because the policy fixes ${fixed.dataShards}+${m}`;
	return { n: k + m, k, m, candidates: pool.candidates, because };
}

function nothingSafe(registered: number, pool: Pool): DistroError {
	const { length } = pool.candidates;
	if (pool.full > 0 && length < 2) {
		return new DistroError('exhausted', 'no room is left: add workers or larger disks, or delete objects', {
			retryAfterMs: 60_000,
		});
	}
	return new DistroError(
		'unavailable',
		`only ${length} of ${registered} workers can take a shard now, which is too few for anything safe: start workers`,
		{ retryAfterMs: 5_000 },
	);
}
