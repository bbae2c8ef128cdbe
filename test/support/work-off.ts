/** The background jobs of an orchestrator in memory, stepped by a test until nothing is left to do. */

import { DEFAULT_POLICY } from '../../core/model/redundancy.ts';
import { deletionsJob, expireIntentsJob } from '../../orchestrator/jobs.ts';
import type { ExclusiveJob } from '../../orchestrator/leases.ts';
import { drainJob, type MendDeps, rebalanceJob, repairJob } from '../../orchestrator/mend.ts';
import type { MemoryCluster } from './memory-cluster.ts';

const STEPS_MAX = 200;
/** Beyond every lease, intent and pause before the next try. */
const LONG_MS = 30 * 60_000;
const LEASE_MS = 30_000;

export type MendJobs = Readonly<Record<'repair' | 'drain' | 'rebalance', ExclusiveJob>>;

export function mendJobs(cluster: MemoryCluster, change: Partial<MendDeps> = {}): MendJobs {
	const deps: MendDeps = {
		...cluster.deps,
		transport: cluster.transport,
		policy: DEFAULT_POLICY,
		lanes: 1,
		share: 1,
		isBusy: () => false,
		onOutcome: () => {},
		...change,
	};
	return { repair: repairJob(deps), drain: drainJob(deps), rebalance: rebalanceJob(deps) };
}

/** One step, under a lease of its own. */
export async function step(cluster: MemoryCluster, job: ExclusiveJob, holder = 'test'): Promise<number> {
	const lease = await cluster.store.acquireLease(job.name, { holder, ttlMs: LEASE_MS });
	if (lease === null) throw new Error(`another has the lease ${job.name}`);
	cluster.beat();
	return job.step(new AbortController().signal, lease, true);
}

/** Steps until one finds nothing to do. */
export async function finish(cluster: MemoryCluster, job: ExclusiveJob): Promise<void> {
	for (let steps = 0; (await step(cluster, job)) === 0; steps++) {
		if (steps > STEPS_MAX) throw new Error(`${job.name} does not end`);
	}
}

/** Much later: what was begun has expired, what can be mended is, and what is to be deleted is, where its worker is there. */
export async function workOff(cluster: MemoryCluster): Promise<void> {
	cluster.later(LONG_MS);
	const jobs = mendJobs(cluster);
	const { store, workers, transport, deps } = cluster;
	await finish(cluster, expireIntentsJob({ store, clock: deps.clock }));
	await finish(cluster, jobs.repair);
	await finish(cluster, jobs.drain);
	await finish(cluster, deletionsJob({ store, workers, transport, onDeleted: () => {} }));
}
