/**
 * Background work: one shape for every job (a name, one step, how long to wait), run one step at a time, stoppable.
 * A step's failure is told and the job goes on: nothing here may end the process.
 */

import type { DeletionHead } from '../core/crypto/deletion-log.ts';
import { asDistroError, type DistroError } from '../core/errors.ts';
import type { WorkerId } from '../core/ids.ts';
import type { Clock } from '../core/ports.ts';
import type { GrpcShardTransport } from '../platform/shard-transport.ts';
import type { ExclusiveJob } from './leases.ts';
import type { Lease, MetadataStore } from './store.ts';
import type { WorkerRegistry } from './workers.ts';

export interface Job {
	readonly name: string;
	/** One step; answers how many milliseconds to wait before the next (0: at once). */
	step(signal: AbortSignal): Promise<number>;
	/** Once, after the last step. */
	ended?(): Promise<void>;
}

export interface RunningJobs {
	/** No new steps; resolves when those under way have ended. */
	stop(): Promise<void>;
}

const AFTER_FAILURE_MS = 5_000;

export function runJobs(
	jobs: readonly Job[],
	options: { clock: Clock; onFailed: (job: string, error: DistroError) => void },
): RunningJobs {
	const stopping = new AbortController();
	const loops = jobs.map(async (job) => {
		while (!stopping.signal.aborted) {
			let waitMs = AFTER_FAILURE_MS;
			try {
				waitMs = await job.step(stopping.signal);
			} catch (error) {
				if (!stopping.signal.aborted) options.onFailed(job.name, asDistroError(error));
			}
			await pause(options.clock, waitMs, stopping.signal);
		}
		await job.ended?.().catch((error) => options.onFailed(job.name, asDistroError(error)));
	});
	return {
		stop: async () => {
			stopping.abort();
			await Promise.all(loops);
		},
	};
}

export function pause(clock: Clock, waitMs: number, signal: AbortSignal): Promise<void> {
	return new Promise((resolve) => {
		if (signal.aborted) {
			resolve();
			return;
		}
		const done = () => {
			cancel();
			signal.removeEventListener('abort', done);
			resolve();
		};
		const cancel = clock.schedule(waitMs, done);
		signal.addEventListener('abort', done);
	});
}

const EXPIRE_BATCH = 100;
const EXPIRE_EVERY_MS = 5_000;

/** Gives up intents whose uploads are gone: their shards go to the delete queue. */
export function expireIntentsJob(deps: { store: MetadataStore; clock: Clock }): ExclusiveJob {
	return {
		name: 'expire-intents',
		step: async (_signal, lease) => {
			const expired = await deps.store.expireIntents(deps.clock.nowMs(), EXPIRE_BATCH, lease);
			return expired === EXPIRE_BATCH ? 0 : EXPIRE_EVERY_MS;
		},
	};
}

const DELETE_BATCH = 256;
const DELETE_EVERY_MS = 1_000;
const DELETE_TIMEOUT_MS = 30_000;

/** Empties the exact delete queue of each worker that is there; the others' wait until they return. */
export function deletionsJob(deps: {
	store: MetadataStore;
	workers: WorkerRegistry;
	transport: Pick<GrpcShardTransport, 'delete'>;
	onDeleted: (count: number) => void;
}): ExclusiveJob {
	const { store, workers, transport } = deps;
	const deleteOn = async (workerId: WorkerId, lease: Lease): Promise<boolean> => {
		const worker = workers.ref(workerId);
		if (worker === null) return false;
		const queue = await store.deletions(workerId, DELETE_BATCH);
		for (const forGood of [false, true]) {
			const shardIds = queue.filter((item) => item.forGood === forGood).map(({ shardId }) => shardId);
			if (shardIds.length === 0) continue;
			await transport.delete(worker, shardIds, { timeoutMs: DELETE_TIMEOUT_MS, forGood });
			await store.deletionsDone(workerId, shardIds, lease);
			deps.onDeleted(shardIds.length);
		}
		return queue.length === DELETE_BATCH;
	};
	return {
		name: 'deletions',
		step: async (_signal, lease) => {
			const { deletions } = await store.counts();
			if (deletions === 0) return DELETE_EVERY_MS;
			const there = workers.rows().filter(({ row }) => workers.isReachable(row.workerId));
			// One slow worker must not hold up the others' queues.
			const results = await Promise.allSettled(there.map(({ row }) => deleteOn(row.workerId, lease)));
			const failed = results.find((result) => result.status === 'rejected');
			if (failed !== undefined) throw failed.reason;
			return results.some((result) => result.status === 'fulfilled' && result.value) ? 0 : DELETE_EVERY_MS;
		},
	};
}

const PURGE_BATCH = 50;
const PURGE_EVERY_MS = 1_000;
/** So often the last hash of the log of deletions is told, if there is a new one. */
const TELL_HEAD_MS = 60 * 60_000;

/** Purges what has been in the trash for its time. */
export function trashJob(deps: {
	store: MetadataStore;
	clock: Clock;
	onPurged: (count: number) => void;
	onHead: (head: DeletionHead) => void;
}): ExclusiveJob {
	const { store, clock, onPurged, onHead } = deps;
	let purged = 0;
	let told = 0;
	let tellAtMs = Number.NEGATIVE_INFINITY;
	return {
		name: 'trash',
		state: () => ({ purged_objects: purged }),
		step: async (_signal, lease) => {
			const count = await store.purgeTrash(clock.nowMs(), PURGE_BATCH, lease);
			purged += count;
			if (count > 0) onPurged(count);
			if (clock.monotonicMs() >= tellAtMs) {
				const head = await store.deletionHead();
				if (head.entries > told) onHead(head);
				told = head.entries;
				tellAtMs = clock.monotonicMs() + TELL_HEAD_MS;
			}
			return count > 0 ? 0 : PURGE_EVERY_MS;
		},
	};
}
