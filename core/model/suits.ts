/**
 * Whether the code of a stored segment still suits the cluster and the policy, and which one it should have instead. Pure
 * (docs/decisions/0014-encoding-anew.md).
 *
 * Only what lasts counts: the cluster as it is meant to be. A worker that is away, full, slow or cordoned just now is still
 * one of it; one that is lost or being emptied is not. And only a code that is really better is worth the work, or a worker
 * that comes and goes would have everything encoded to and fro.
 */

import { createHash } from 'node:crypto';
import { plainBytes, shardBytes } from '../codec/layout.ts';
import { DistroError } from '../errors.ts';
import { CODEC_MAX_K, CODEC_MAX_M } from '../limits.ts';
import {
	chooseRedundancy,
	isLargeObject,
	keepsHardRules,
	MIN_FREE_BYTES,
	type PolicyWorker,
	type RedundancyChoice,
	type RedundancyPolicy,
	type SegmentSize,
	SLOW_FLOOR_MS,
} from './redundancy.ts';
import type { Segment, SegmentShape } from './segment.ts';

/**
 * `unsafe`: it breaks a hard rule, or has more shards than there are workers for; this does not wait. `parity`: the code that
 * is chosen now survives more. `space`: it needs much less room. `fixed`: the policy names another one.
 */
export type UnsuitedWhy = 'unsafe' | 'parity' | 'space' | 'fixed';

export interface WantedCode {
	readonly choice: RedundancyChoice;
	readonly why: UnsuitedWhy;
}

/**
 * Less saved than this part of what a segment takes is not worth reading and writing all of it. From 3+2 to 4+2 it is a tenth,
 * less what the last row takes.
 */
const WORTH_SAVING = 1 / 12;
const LARGE_BYTES = Number.MAX_SAFE_INTEGER;

/** The workers as the cluster is meant to have them. */
export function steadyWorkers(workers: readonly PolicyWorker[]): PolicyWorker[] {
	return workers.map((worker) => ({
		...worker,
		state: worker.state === 'lost' || worker.state === 'draining' ? worker.state : 'ready',
		bytesFree: Number.MAX_SAFE_INTEGER,
		latencyMs: undefined,
	}));
}

/** Whether something else was chosen than if every worker that the cluster is meant to have could take a shard, and memory were there. */
export function isChosenForNow(
	chosen: Pick<RedundancyChoice, 'k' | 'n' | 'isBounded'>,
	size: SegmentSize,
	o: { readonly workers: readonly PolicyWorker[]; readonly policy: RedundancyPolicy },
): boolean {
	const steady = steadyWorkers(o.workers);
	const isAlike = ({ state, bytesFree, latencyMs = 0 }: PolicyWorker, at: number) =>
		state === steady[at]?.state && bytesFree >= MIN_FREE_BYTES && latencyMs < SLOW_FLOOR_MS;
	// Nearly always: nothing need be chosen twice.
	if (chosen.isBounded !== true && o.workers.every(isAlike)) return false;
	const meant = choose({ ...size, room: undefined }, steady, o.policy);
	return meant !== null && (meant.k !== chosen.k || meant.n !== chosen.n);
}

/** What would be chosen on these workers for each size that makes a difference. */
interface CodeTable {
	/** The same for the same codes and policy: it changes when the cluster or the policy does, and with nothing else. */
	readonly key: string;
	readonly codes: readonly { readonly cells: number; readonly k: number; readonly n: number }[];
}

export function codeTable(workers: readonly PolicyWorker[], policy: RedundancyPolicy): CodeTable {
	const codes = [1, LARGE_BYTES].flatMap((sizeBytes) =>
		Array.from({ length: CODEC_MAX_K }, (_, at) => {
			const { k, n } = choose({ sizeBytes, cells: at + 1, ended: true }, workers, policy) ?? { k: 0, n: 0 };
			return { cells: at + 1, k, n };
		}),
	);
	const { tolerate, dataLossPerYear, fixed } = policy;
	const rules = [tolerate.workers, tolerate.zones, dataLossPerYear, fixed?.dataShards, fixed?.parityShards];
	const text = `${rules.join(' ')}: ${codes.map(({ k, n }) => `${k}+${n - k}`).join(' ')}`;
	return { key: createHash('sha256').update(text).digest('hex').slice(0, 16), codes };
}

/** The judgement for one cluster and policy. */
export class Suits {
	/** The same while the same would be chosen. */
	readonly key: string;
	readonly #policy: RedundancyPolicy;
	readonly #workers: readonly PolicyWorker[];
	/** Records of workers fade and change: what is right for healthy ones stays. */
	readonly #healthy: readonly PolicyWorker[];
	readonly #codes: CodeTable['codes'];
	readonly #chosen = new Map<string, { ideal: RedundancyChoice | null; chosen: RedundancyChoice | null }>();

	/** `workers` as they are now. */
	constructor(workers: readonly PolicyWorker[], policy: RedundancyPolicy) {
		this.#policy = policy;
		this.#workers = steadyWorkers(workers);
		this.#healthy = this.#workers.map((worker) => ({ ...worker, annualFailureRate: undefined }));
		const { key, codes } = codeTable(this.#healthy, policy);
		this.key = key;
		this.#codes = codes;
	}

	/** It breaks a hard rule, or has more shards than there are workers for. */
	breaksRules({ k, n }: Code): boolean {
		return !keepsHardRules({ k, m: n - k }, this.#workers, this.#policy);
	}

	/** Whether a segment that is cut so can be one that does not suit: told without looking at it. */
	mayNotSuit(code: Code): boolean {
		return this.#codes.some(({ cells, k, n }) => cells >= code.k && (k !== code.k || n !== code.n));
	}

	/** null: it suits, or nothing safe is possible. Without the object's size: as much as the segment tells of it. */
	wanted(segment: Segment, sizeBytes: number | null): WantedCode | null {
		const { ideal, chosen } = this.#choices(segment, sizeBytes);
		if (ideal === null || chosen === null) return null;
		// What was chosen for workers that were worse stays as well.
		if (isSame(segment, ideal) || isSame(segment, chosen)) return null;
		if (this.breaksRules(segment)) return { choice: chosen, why: 'unsafe' };
		if (this.#policy.fixed !== undefined) return { choice: chosen, why: 'fixed' };
		const why = better(segment, ideal) === null ? null : better(segment, chosen);
		return why === null ? null : { choice: chosen, why };
	}

	/**
	 * Of a segment of the cluster's own, which has copies (snapshots): those are not chosen by the policy, but where there are
	 * fewer workers by now than copies, or one copy is on a cluster that has grown, there must be as many as can be.
	 */
	wantedCopies(
		segment: SegmentShape,
	): { choice: { k: 1; n: number; m: number; because: string }; why: 'unsafe' } | null {
		if (!this.breaksRules(segment)) return null;
		const there = this.#workers.filter(({ state }) => state === 'ready').length;
		const n = Math.min(1 + CODEC_MAX_M, there);
		if (n === 0 || isSame(segment, { k: 1, n })) return null;
		return { choice: { k: 1, n, m: n - 1, because: `${n} copies: as many as there are workers for` }, why: 'unsafe' };
	}

	#choices(segment: Segment, sizeBytes: number | null) {
		const both = (bytes: number) => {
			const size = { sizeBytes: bytes, cells: segment.cells, ended: true };
			const ideal = choose(size, this.#healthy, this.#policy);
			return { ideal, chosen: choose(size, this.#workers, this.#policy) };
		};
		if (sizeBytes !== null) return both(sizeBytes);
		// Only a large object has more than one segment.
		const bytes = segment.index > 0 ? LARGE_BYTES : plainBytes(segment);
		const key = `${Math.min(segment.cells, CODEC_MAX_K)} ${isLargeObject(bytes)}`;
		const known = this.#chosen.get(key) ?? both(bytes);
		this.#chosen.set(key, known);
		return known;
	}
}

interface Code {
	readonly k: number;
	readonly n: number;
}

function choose(
	size: SegmentSize,
	workers: readonly PolicyWorker[],
	policy: RedundancyPolicy,
): RedundancyChoice | null {
	try {
		return chooseRedundancy(size, workers, policy);
	} catch (error) {
		if (error instanceof DistroError) return null;
		throw error;
	}
}

function isSame(segment: SegmentShape, { k, n }: Code): boolean {
	return segment.k === k && segment.n === n;
}

function better(segment: SegmentShape, { k, n, m }: RedundancyChoice): 'parity' | 'space' | null {
	if (m > segment.n - segment.k) return 'parity';
	const before = storedBytes(segment);
	return before - storedBytes({ ...segment, k, n }) >= WORTH_SAVING * before ? 'space' : null;
}

/** Cells of all shards. */
function storedBytes(shape: SegmentShape): number {
	let bytes = 0;
	for (let shard = 0; shard < shape.n; shard++) bytes += shardBytes(shape, shard);
	return bytes;
}
