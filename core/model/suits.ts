/**
 * Whether the code of a stored segment still suits the cluster and the policy, and which one it should have instead. Pure
 * (docs/decisions/0014-encoding-anew.md).
 *
 * Only what lasts counts: the cluster as it is meant to be. A worker that is away, full, slow or cordoned just now is still
 * one of it; one that is lost or being emptied is not. And only a code that is really better is worth the work, or a worker
 * that comes and goes would have everything encoded to and fro.
 */

import { plainBytes, shardBytes } from '../codec/layout.ts';
import { DistroError } from '../errors.ts';
import { CODEC_MAX_K } from '../limits.ts';
import {
	chooseRedundancy,
	keepsHardRules,
	type PolicyWorker,
	type RedundancyChoice,
	type RedundancyPolicy,
	type SegmentSize,
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

/** Less saved than this part of what a segment takes is not worth reading and writing all of it. */
const WORTH_SAVING = 0.1;
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

/** null: it suits, or nothing safe is possible. `workers` as they are now. */
export function wantedCode(
	segment: Segment,
	o: {
		/** Of the object. */
		readonly sizeBytes: number;
		readonly workers: readonly PolicyWorker[];
		readonly policy: RedundancyPolicy;
	},
): WantedCode | null {
	const { policy } = o;
	const workers = steadyWorkers(o.workers);
	const size = { sizeBytes: o.sizeBytes, cells: segment.cells, ended: true };
	const isUnsafe = !keepsHardRules({ k: segment.k, m: segment.n - segment.k }, workers, policy);
	// Workers' records fade and change: what is right for healthy ones stays, and so does what was chosen for worse ones.
	const healthy = workers.map((worker) => ({ ...worker, annualFailureRate: undefined }));
	const ideal = choice(size, healthy, policy);
	const chosen = choice(size, workers, policy);
	if (ideal === null || chosen === null || isSame(segment, ideal) || isSame(segment, chosen)) return null;
	if (isUnsafe) return { choice: chosen, why: 'unsafe' };
	if (policy.fixed !== undefined) return { choice: chosen, why: 'fixed' };
	const why = better(segment, ideal) === null ? null : better(segment, chosen);
	return why === null ? null : { choice: chosen, why };
}

function choice(
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

function isSame(segment: SegmentShape, { k, n }: { readonly k: number; readonly n: number }): boolean {
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

/** As much as a segment tells of its object's size: that of a large one has many, or is large itself. */
export function objectBytesOf(segment: Segment): number {
	return segment.index > 0 ? LARGE_BYTES : plainBytes(segment);
}

/** What every segment would get, whatever its size: it changes when the cluster or the policy does, and with nothing else. */
export interface CodeTable {
	/** The same for the same codes and policy. */
	readonly key: string;
	readonly codes: readonly { readonly cells: number; readonly k: number; readonly n: number }[];
}

export function codeTable(workers: readonly PolicyWorker[], policy: RedundancyPolicy): CodeTable {
	const codes: { cells: number; k: number; n: number }[] = [];
	for (const sizeBytes of [1, LARGE_BYTES]) {
		for (let cells = 1; cells <= CODEC_MAX_K; cells++) {
			const chosen = choice({ sizeBytes, cells, ended: true }, workers, policy);
			codes.push({ cells, k: chosen?.k ?? 0, n: chosen?.n ?? 0 });
		}
	}
	const { tolerate, dataLossPerYear, fixed } = policy;
	const rules = [tolerate.workers, tolerate.zones, dataLossPerYear, fixed?.dataShards, fixed?.parityShards];
	return { key: `${rules.join(' ')}: ${codes.map(({ k, n }) => `${k}+${n - k}`).join(' ')}`, codes };
}

/** Whether a segment that is cut so can be one that does not suit: told without looking at it. */
export function mayNotSuit(code: { readonly k: number; readonly n: number }, table: CodeTable): boolean {
	return table.codes.some(({ cells, k, n }) => cells >= code.k && (k !== code.k || n !== code.n));
}
