/**
 * Placement: which workers get a segment's shards. Pure; randomness is a port.
 *
 * Segments draw from a bounded number of worker sets (copysets, Cidon et al., USENIX ATC 2013): fewer distinct sets mean
 * fewer combinations of failures that lose anything, and counts by set answer "what may be stopped" without walking
 * objects. Sets are cut from permutations of the workers that are a function of their ids, so that every orchestrator
 * makes the same ones.
 */

import { createHash } from 'node:crypto';
import type { WorkerId } from '../ids.ts';
import type { Random } from '../ports.ts';
import type { PolicyWorker } from './redundancy.ts';

/** Distinct sets that one cluster uses for one n, at most. */
const MAX_SETS = 1000;

export interface PlacementRequest {
	readonly n: number;
	/** At least n. */
	readonly workers: readonly PolicyWorker[];
	readonly random: Random;
}

/** n distinct workers in order of shard index. */
export function placeShards(request: PlacementRequest): WorkerId[] {
	const { n, random } = request;
	const pick = (count: number) => Math.floor((random.bytes(4).readUInt32LE() / 0x1_0000_0000) * count);
	const set = drawSet(request, pick);
	// Which shard index goes where is free: it evens out who serves data and who parity.
	const turn = pick(n);
	return set.map((_, i) => (set[(i + turn) % n] as PolicyWorker).workerId);
}

function drawSet(request: PlacementRequest, pick: (count: number) => number): PolicyWorker[] {
	const { n, workers } = request;
	const sorted = workers.toSorted((a, b) => (a.workerId < b.workerId ? -1 : 1));
	if (sorted.length === n) return sorted;
	const perPermutation = Math.floor(sorted.length / n) || 1;
	const permutations = Math.max(1, Math.floor(MAX_SETS / perPermutation));
	// Two draws, and the one with more room and steadier workers: keeps workers evenly full (the power of two choices).
	const first = cutSet(request, sorted, pick(permutations), pick(perPermutation));
	const second = cutSet(request, sorted, pick(permutations), pick(perPermutation));
	return worth(first) >= worth(second) ? first : second;
}

function worth(set: readonly PolicyWorker[]): number {
	return Math.min(...set.map(({ bytesFree, availability = 1 }) => bytesFree * availability));
}

/** The `index`-th run of n workers in a permutation that spreads zones. */
function cutSet(
	request: PlacementRequest,
	sorted: readonly PolicyWorker[],
	permutation: number,
	index: number,
): PolicyWorker[] {
	const { n } = request;
	const rank = new Map(
		sorted.map(({ workerId }) => [workerId, createHash('sha256').update(`${permutation} ${workerId}`).digest('hex')]),
	);
	const permuted = sorted.toSorted((a, b) =>
		(rank.get(a.workerId) as string) < (rank.get(b.workerId) as string) ? -1 : 1,
	);
	const rotated = [...permuted.slice(index * n), ...permuted.slice(0, index * n)];
	const set: PolicyWorker[] = [];
	const held = new Map<string, number>();
	// Round by round one more shard a zone: as even as the zones allow, whatever their sizes.
	for (let round = 1; set.length < n; round++) {
		for (const worker of rotated) {
			if (set.length === n) break;
			if (set.includes(worker) || (held.get(worker.zone) ?? 0) >= round) continue;
			set.push(worker);
			held.set(worker.zone, (held.get(worker.zone) ?? 0) + 1);
		}
	}
	return set;
}

/**
 * One more worker for a shard of an upload: not a holder, keeps the zone rule where it can, the one with most room. Nobody
 * waits for worker sets to stay few here, as mending does (mending.ts).
 */
export function replacement(request: {
	readonly holders: readonly WorkerId[];
	readonly candidates: readonly PolicyWorker[];
	/** Zone of each holder, where known. */
	readonly zoneOf?: (workerId: WorkerId) => string | null;
}): WorkerId | null {
	const { holders, candidates, zoneOf } = request;
	const held = new Map<string, number>();
	for (const holder of holders) {
		const zone = zoneOf?.(holder) ?? candidates.find(({ workerId }) => workerId === holder)?.zone;
		if (zone !== undefined) held.set(zone, (held.get(zone) ?? 0) + 1);
	}
	const [best] = candidates
		.filter(({ workerId }) => !holders.includes(workerId))
		.toSorted((a, b) => (held.get(a.zone) ?? 0) - (held.get(b.zone) ?? 0) || b.bytesFree - a.bytesFree);
	return best?.workerId ?? null;
}
