/**
 * When an orchestrator that was just started is ready: once the workers of before are back, so that the first upload finds
 * them all and the first download is not refused; but it waits for them a few seconds at most.
 */

import type { WorkerId } from '../core/ids.ts';
import { LOST_AFTER_MS } from '../core/limits.ts';
import type { Clock } from '../core/ports.ts';

const WAIT_MS = 5_000;

/**
 * Answers the workers it still waits for. Who had been away for long when the last of the others was seen is not among them:
 * by the time now nobody could be told from the rest after a night without the cluster.
 */
export function waitForKnownWorkers(
	known: readonly { readonly workerId: WorkerId; readonly lastSeenMs: number }[],
	o: { clock: Pick<Clock, 'monotonicMs'>; isReady: (workerId: WorkerId) => boolean },
): () => readonly WorkerId[] {
	const startedAtMs = o.clock.monotonicMs();
	const lastSeenMs = Math.max(...known.map((worker) => worker.lastSeenMs));
	let awaited = known
		.filter((worker) => lastSeenMs - worker.lastSeenMs <= LOST_AFTER_MS)
		.map((worker) => worker.workerId);
	return () => {
		if (o.clock.monotonicMs() - startedAtMs >= WAIT_MS) awaited = [];
		// Who has come back and leaves again is no reason to start over.
		awaited = awaited.filter((workerId) => !o.isReady(workerId));
		return awaited;
	};
}
