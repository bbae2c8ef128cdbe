/**
 * Background work that one orchestrator does at a time: a job runs only while this process holds the lease of its name,
 * and its writes carry it, so that one that was stopped and goes on does no harm.
 */

import { asDistroError, DistroError } from '../core/errors.ts';
import type { Clock } from '../core/ports.ts';
import type { JobName } from './job-names.ts';
import type { Job } from './jobs.ts';
import type { Lease, MetadataStore } from './store.ts';

/** What a job tells of itself. `stuck`: what it should do and can't now. */
export interface JobProgress {
	readonly stuck?: readonly object[];
	readonly [figure: string]: unknown;
}

export interface ExclusiveJob {
	readonly name: JobName;
	/**
	 * As of Job. `lease` goes into every write that allows one; `signal` is aborted as well when the lease is lost. `asked`:
	 * people want it done now, also what is hardly worth it.
	 */
	step(signal: AbortSignal, lease: Lease, asked?: boolean): Promise<number>;
	/** What people see of it, as JSON. */
	state?(): JobProgress;
	/** Jobs with one lease run in one process; its own name otherwise. */
	readonly leaseName?: JobName;
}

/** After this another orchestrator takes over from one that died. */
export const LEASE_MS = 30_000;
/** Renewed when this much has passed: every renewal is a durable write. */
const RENEW_MS = LEASE_MS / 3;

/** `holder` names this run of this process, never used again. */
export function exclusive(job: ExclusiveJob, deps: { store: MetadataStore; clock: Clock; holder: string }): Job {
	const { store, clock, holder } = deps;
	let lease: Lease | null = null;
	let renewedMs = 0;
	const renew = async (): Promise<Lease | null> => {
		// From before the call: the store's time runs from some moment after it.
		const startedMs = clock.monotonicMs();
		lease = await store.acquireLease(job.leaseName ?? job.name, { holder, ttlMs: LEASE_MS });
		renewedMs = startedMs;
		return lease;
	};
	return {
		name: job.name,
		step: async (signal) => {
			const fresh = lease !== null && clock.monotonicMs() - renewedMs < RENEW_MS;
			const held = fresh ? lease : await renew();
			if (held === null) return RENEW_MS;
			const lost = new AbortController();
			let cancel = () => {};
			let over = false;
			let renewing: Promise<void> = Promise.resolve();
			const keep = () => {
				if (over) return;
				cancel = clock.schedule(RENEW_MS, () => {
					renewing = renew().then(
						(now) => {
							if (now?.fencing === held.fencing) keep();
							else lost.abort(new DistroError('canceled', `the lease ${job.name} was lost`));
						},
						() => {
							if (clock.monotonicMs() - renewedMs < LEASE_MS) keep();
							else lost.abort(new DistroError('canceled', `the lease ${job.name} could not be renewed`));
						},
					);
				});
			};
			keep();
			try {
				return await job.step(AbortSignal.any([signal, lost.signal]), held);
			} catch (thrown) {
				const error = asDistroError(thrown);
				if (error.reason === 'lease_lost') lease = null;
				throw error;
			} finally {
				over = true;
				cancel();
				// One under way would take the lease again after it was given back.
				await renewing;
			}
		},
		ended: async () => {
			if (lease !== null) await store.releaseLease(lease);
		},
	};
}
