/**
 * The mark of a restore that is under way, in the store that it fills: a row of the jobs' table. Until its end no orchestrator
 * starts there, since it would take for rubbish what is not restored yet.
 */

import { DistroError } from '../core/errors.ts';
import type { MetadataStore } from './store.ts';

const JOB = 'restore';

export async function isHalfRestored(store: MetadataStore): Promise<boolean> {
	const row = (await store.jobs()).find(({ name }) => name === JOB);
	return row?.state === 'running';
}

export function markRestore(store: MetadataStore, state: 'running' | 'done', nowMs: number): Promise<void> {
	return store.saveJobState(JOB, state, nowMs);
}

/** What an orchestrator asks before it starts. Throws `conflict`. */
export async function refuseHalfRestored(store: MetadataStore): Promise<void> {
	if (!(await isHalfRestored(store))) return;
	throw new DistroError(
		'conflict',
		'a restore of these metadata was not finished: run it again (make restore, or the role restore of the image)',
	);
}
