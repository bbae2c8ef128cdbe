/** Health of workers and segments, as pure functions (design words: ready, suspect, lost, cordoned, draining). */

import { SUSPECT_AFTER_MS } from '../limits.ts';

export type WorkerState = 'ready' | 'suspect' | 'lost' | 'cordoned' | 'draining';
/** What an operator asked of a worker. `cordoned`: no new shards; `draining`: and what it has moves elsewhere. */
export type WorkerDuty = 'active' | 'cordoned' | 'draining';
export type SegmentHealth = 'healthy' | 'degraded' | 'at_risk' | 'unrecoverable';

const WORST_LAST = ['healthy', 'degraded', 'at_risk', 'unrecoverable'] as const;

/** A closed stream makes a worker ineligible at once; only time makes it lost. */
export function workerState(worker: {
	streamOpen: boolean;
	sinceHeartbeatMs: number;
	duty: WorkerDuty;
	lostAfterMs: number;
}): WorkerState {
	if (!worker.streamOpen || worker.sinceHeartbeatMs > SUSPECT_AFTER_MS) {
		return worker.sinceHeartbeatMs > worker.lostAfterMs ? 'lost' : 'suspect';
	}
	return worker.duty === 'active' ? 'ready' : worker.duty;
}

/** Its shards can be read. */
export function isReachable(state: WorkerState): boolean {
	return state === 'ready' || state === 'cordoned' || state === 'draining';
}

/** `placed`: shards that are there and good. */
export function segmentHealth(segment: { n: number; k: number; placed: number }): SegmentHealth {
	const { n, k, placed } = segment;
	if (placed >= n) return 'healthy';
	if (placed < k) return 'unrecoverable';
	return placed - k <= 1 ? 'at_risk' : 'degraded';
}

export function worstHealth(healths: readonly SegmentHealth[]): SegmentHealth {
	return healths.reduce<SegmentHealth>(
		(worst, health) => (WORST_LAST.indexOf(health) > WORST_LAST.indexOf(worst) ? health : worst),
		'healthy',
	);
}
