/**
 * The time of day of the metadata store, for orchestrators that share one: what one of them says expires at some time
 * expires for all at that time, whatever their own clocks say. Only the time of day is the store's; what is measured here is
 * measured by this process's own monotonic clock.
 *
 * Between two questions time goes on by the monotonic clock. A machine that slept is behind until the next one, which is the
 * safe side: nothing expires too early.
 */

import type { Clock } from '../core/ports.ts';
import type { MetadataStore } from './store.ts';

/** Half of the time that an answer took: as far as it may be wrong. Later ones that took longer are not believed. */
const MAX_ERROR_MS = 1_000;
export const SYNC_EVERY_MS = 10_000;

export interface StoreClock extends Clock {
	/** Asks the store again. To be repeated. */
	sync(): Promise<void>;
}

/** Throws what the store throws when it can't tell. */
export async function openStoreClock(store: Pick<MetadataStore, 'nowMs'>, clock: Clock): Promise<StoreClock> {
	let aheadMs: number | null = null;
	const sync = async () => {
		const askedMs = clock.monotonicMs();
		const storeMs = await store.nowMs();
		const answeredMs = clock.monotonicMs();
		if (aheadMs !== null && (answeredMs - askedMs) / 2 > MAX_ERROR_MS) return;
		aheadMs = storeMs - (askedMs + answeredMs) / 2;
	};
	await sync();
	return {
		nowMs: () => Math.round(clock.monotonicMs() + (aheadMs as number)),
		monotonicMs: () => clock.monotonicMs(),
		schedule: (delayMs, callback) => clock.schedule(delayMs, callback),
		sync,
	};
}
