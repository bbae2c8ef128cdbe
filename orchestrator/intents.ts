/** How whoever wrote an intent gives it up: nothing that it named may be left on a worker. */

import type { DistroError } from '../core/errors.ts';
import type { Clock } from '../core/ports.ts';
import type { MetadataStore } from './store.ts';

export type Intent = Parameters<MetadataStore['begin']>[0];

/**
 * To be called when no put of the intent goes on. A process that slept past the intent's end may have put a shard after it
 * was deleted, and no queue knows it then: named once more, it is deleted once more. What is placed stays.
 */
export async function giveUp(
	deps: { readonly store: MetadataStore; readonly clock: Clock },
	intent: Intent,
	error: DistroError,
): Promise<void> {
	const { store, clock } = deps;
	if (error.kind === 'expired' || clock.nowMs() >= intent.expiresAtMs) await store.begin(intent);
	await store.abort(intent.uploadId, clock.nowMs());
}
