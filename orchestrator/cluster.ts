/** The cluster as operators see and steer it: its workers, how whole the data is, what may be stopped. */

import { DistroError } from '../core/errors.ts';
import type { ClusterId, WorkerId } from '../core/ids.ts';
import type { WorkerDuty } from '../core/model/health.ts';
import { annualFailureRate, availability, NEW_HISTORY } from '../core/model/history.ts';
import { chooseRedundancy, type RedundancyPolicy } from '../core/model/redundancy.ts';
import { redundancyReport, type SetCount, setsInTheWay } from '../core/model/redundancy-report.ts';
import type { MemoryPool } from '../core/ports.ts';
import type {
	ClusterAdmin,
	ClusterView,
	DutyChange,
	RedundancyView,
	SnapshotView,
	StopAnswer,
} from './cluster.types.ts';
import type { JobControl, JobView } from './job-control.ts';
import type { ScrubDesk } from './scrub.ts';
import type { MetadataStore } from './store.ts';
import type { WorkerRegistry } from './workers.ts';

/** What each of these ends, and nothing else. */
const UNDONE_BY: Partial<Record<DutyChange, WorkerDuty>> = { uncordon: 'cordoned', 'cancel-drain': 'draining' };

/** Objects that a refusal to stop names. */
const NAMED_MAX = 100;

const DUTY_OF = { cordon: 'cordoned', uncordon: 'active', drain: 'draining', 'cancel-drain': 'active' } as const;

export interface ClusterDeps {
	readonly clusterId: ClusterId;
	readonly store: MetadataStore;
	readonly workers: WorkerRegistry;
	readonly scrub: Pick<ScrubDesk, 'report'>;
	readonly jobs: JobControl;
	readonly snapshots: () => Promise<readonly SnapshotView[]>;
	readonly policy: RedundancyPolicy;
	readonly pools: readonly Pick<MemoryPool, 'capacityBytes' | 'usedBytes'>[];
}

export class Cluster implements ClusterAdmin {
	readonly #deps: ClusterDeps;

	constructor(deps: ClusterDeps) {
		this.#deps = deps;
	}

	async view(): Promise<ClusterView> {
		const { clusterId, store, workers, pools } = this.#deps;
		const sum = (of: (pool: ClusterDeps['pools'][number]) => number) =>
			pools.reduce((total, pool) => total + of(pool), 0);
		const [counts, { sets }] = await Promise.all([store.counts(), store.redundancyRows()]);
		const placed = placedOn(sets);
		return {
			cluster_id: clusterId,
			workers: byName(workers.rows()).map(({ row, state }) => {
				const { latencyMs, bytesPerS } = workers.measured(row.workerId);
				const history = workers.history(row.workerId) ?? NEW_HISTORY;
				return {
					name: row.name,
					worker_id: row.workerId,
					state,
					duty: row.duty,
					zone: row.zone,
					address: row.address,
					shards: row.shards,
					shards_placed: placed.get(row.workerId) ?? 0,
					bytes_used: row.bytesUsed,
					bytes_total: row.bytesTotal,
					latency_ms: latencyMs,
					bytes_per_second: bytesPerS,
					availability: availability(history),
					annual_failure_rate: annualFailureRate(history),
					audits: history.audits,
					last_seen: new Date(row.lastSeenMs).toISOString(),
				};
			}),
			objects: counts.objects,
			trash: { objects: counts.trashObjects, bytes: counts.trashBytes },
			queues: { intents: counts.intents, deletions: counts.deletions, repairs: counts.repairs },
			budget: { capacity_bytes: sum((pool) => pool.capacityBytes), used_bytes: sum((pool) => pool.usedBytes) },
			redundancy: this.#chosenNow(),
		};
	}

	/** What a large new object would get now. */
	#chosenNow(): ClusterView['redundancy'] {
		const { workers, policy } = this.#deps;
		try {
			const size = { sizeBytes: null, cells: 256, ended: false };
			const { n, k, because } = chooseRedundancy(size, workers.policyWorkers(), policy);
			return { n, k, because };
		} catch (error) {
			if (!(error instanceof DistroError)) throw error;
			return null;
		}
	}

	async redundancy(): Promise<RedundancyView> {
		const { store, workers, scrub } = this.#deps;
		const rows = await store.redundancyRows();
		const report = redundancyReport(rows, (workerId) => workers.isReachable(workerId));
		const placed = placedOn(rows.sets);
		// A worker that has not yet scrubbed has nothing older than its registration.
		const sinceMs = workers
			.rows()
			.filter(({ row }) => placed.has(row.workerId))
			.map(({ row }) => Math.max(row.registeredAtMs, scrub.report(row.workerId)?.sinceMs ?? 0));
		const oldestMs = sinceMs.length === 0 ? null : Math.min(...sinceMs);
		return {
			objects: report.objects,
			healthy: report.byHealth.healthy,
			degraded: report.byHealth.degraded,
			at_risk: report.byHealth.at_risk,
			unrecoverable: report.byHealth.unrecoverable,
			inline: report.inline,
			by_spare: Object.fromEntries([...report.bySpare].sort(([a], [b]) => a - b)),
			failure_tolerance: report.failureTolerance,
			bytes_at_risk: report.bytesAtRisk,
			oldest_verification: oldestMs === null ? null : new Date(oldestMs).toISOString(),
		};
	}

	async canStop(names: readonly string[], reserve: number): Promise<StopAnswer> {
		const { store, workers } = this.#deps;
		const stop = names.map((name) => this.#called(name));
		const { sets } = await store.redundancyRows();
		const isLive = (workerId: WorkerId) => workers.isReachable(workerId);
		const inTheWay = setsInTheWay(sets, { stop, reserve, isLive });
		if (inTheWay.length === 0) {
			const because = `every segment keeps at least k + ${reserve} shards that can be read`;
			return { can_stop: true, because, objects: [], segments: 0 };
		}
		const objects = await store.objectsOnSets(
			inTheWay.map(({ setId }) => setId),
			NAMED_MAX,
		);
		const segments = inTheWay.reduce((sum, set) => sum + set.segments, 0);
		const because = `${segments} segment${segments === 1 ? '' : 's'} would have fewer than k + ${reserve} shards that can be read`;
		return { can_stop: false, because, objects, segments };
	}

	async changeDuty(name: string, change: DutyChange): Promise<void> {
		const { workers } = this.#deps;
		const workerId = this.#called(name);
		if (change === 'forget') await workers.forget(workerId);
		else {
			const undone = UNDONE_BY[change];
			const duty = workers.rows().find(({ row }) => row.workerId === workerId)?.row.duty;
			if (undone !== undefined && duty !== undone && duty !== 'active') {
				throw new DistroError('conflict', `${name} is ${duty}, and ${change} ends only what is ${undone}`);
			}
			await workers.setDuty(workerId, DUTY_OF[change]);
		}
	}

	#called(name: string): WorkerId {
		const workerId = this.#deps.workers.called(name);
		if (workerId === null) throw new DistroError('not_found', `there is no worker ${name}: GET /cluster lists them`);
		return workerId;
	}

	async jobs(): Promise<readonly JobView[]> {
		const jobs = await this.#deps.jobs.list();
		return jobs.map((job) => (job.name === 'scrub' ? { ...job, ...this.#scrubbing(job.state) } : job));
	}

	/** It runs on the workers: what those that this orchestrator hears have told. */
	#scrubbing(state: JobView['state']): Pick<JobView, 'state' | 'progress'> {
		const { workers, scrub } = this.#deps;
		const reports = workers.rows().flatMap(({ row }) => {
			const report = scrub.report(row.workerId);
			return report === null ? [] : [{ worker: row.name, ...report }];
		});
		const running = reports.some((report) => report.running);
		return {
			state: state === 'paused' ? state : running ? 'running' : 'idle',
			progress: {
				workers: reports.map(({ worker, running: isRunning, shardsDone, shardsTotal, sinceMs }) => ({
					worker,
					running: isRunning,
					shards_done: shardsDone,
					shards_total: shardsTotal,
					verified_since: sinceMs === 0 ? null : new Date(sinceMs).toISOString(),
				})),
			},
		};
	}

	snapshots(): Promise<readonly SnapshotView[]> {
		return this.#deps.snapshots();
	}

	askJob(name: string, what: 'pause' | 'resume' | 'run'): Promise<void> {
		return this.#deps.jobs.ask(name, what);
	}
}

/** Good shards by worker, as the metadata has them. */
function placedOn(sets: readonly SetCount[]): ReadonlyMap<WorkerId, number> {
	const placed = new Map<WorkerId, number>();
	for (const { workers, segments } of sets) {
		for (const workerId of workers) placed.set(workerId, (placed.get(workerId) ?? 0) + segments);
	}
	return placed;
}

/** worker-2 before worker-10. */
function byName<T extends { readonly row: { readonly name: string } }>(rows: readonly T[]): T[] {
	const { compare } = new Intl.Collator('en', { numeric: true });
	return [...rows].sort((a, b) => compare(a.row.name, b.row.name));
}
