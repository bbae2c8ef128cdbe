/**
 * Reads the trailers of everything that the workers have into the index of a restore. Many workers at once, each page by
 * page: what is in memory is a page of ids and one answer of trailers a worker.
 */

import { decodeTrailer, type Trailer } from '../core/codec/trailer.ts';
import { rootOf } from '../core/crypto/digest.ts';
import { asDistroError, DistroError } from '../core/errors.ts';
import type { ClusterId, ShardId, WorkerId } from '../core/ids.ts';
import { SHARD_LIST_MAX, TRAILERS_MAX } from '../core/limits.ts';
import { decodeRecovery } from '../core/model/recovery.ts';
import type { Clock, ShardList, WorkerRef } from '../core/ports.ts';
import type { GrpcShardTransport } from '../platform/shard-transport.ts';
import type { ScanIndex } from './restore-index.ts';

const TIMEOUT_MS = 60_000;
/** Once: a page that fails twice is a worker that fails. */
const TRIES = 3;

/** A file that is no shard of this cluster, or can't be read. */
export interface BadShard {
	readonly workerId: WorkerId;
	readonly shardId: ShardId;
	readonly because: string;
}

export interface ScanDeps {
	readonly clusterId: ClusterId;
	readonly index: ScanIndex;
	readonly transport: Pick<GrpcShardTransport, 'list' | 'trailers'>;
	readonly clock: Clock;
	readonly onShards: (count: number) => void;
	readonly onBad: (bad: BadShard) => void;
}

/**
 * Throws what the first worker failed with: half of a worker's list would be taken for losses. `unsupported` for a shard of a
 * newer release: to this one it would be as good as lost, and the restored metadata would not know it.
 */
export async function scanWorkers(deps: ScanDeps, workers: readonly WorkerRef[]): Promise<void> {
	await Promise.all(workers.map((worker) => scanWorker(deps, worker)));
}

async function scanWorker(deps: ScanDeps, worker: WorkerRef): Promise<void> {
	const { transport, clock } = deps;
	for (let after: ShardId | null = null; ; ) {
		const page = { after, limit: SHARD_LIST_MAX };
		const listed: ShardList = await again(() => transport.list(worker, page, { timeoutMs: TIMEOUT_MS }));
		if (listed.shards.length === 0) return;
		// Times as this process would have said them.
		const aheadMs = clock.nowMs() - listed.nowMs;
		for (let from = 0; from < listed.shards.length; ) {
			const asked = listed.shards.slice(from, from + TRAILERS_MAX);
			const ids = asked.map(({ shardId }) => shardId);
			const answers = await again(() => transport.trailers(worker, ids, { timeoutMs: TIMEOUT_MS }));
			deps.index.together(() => {
				for (const [at, answer] of answers.entries()) {
					const { shardId, writtenAtMs } = asked[at] as (typeof asked)[number];
					const trailer = checked(answer, { shardId, clusterId: deps.clusterId });
					if (typeof trailer === 'string') deps.onBad({ workerId: worker.workerId, shardId, because: trailer });
					else deps.index.addShard(trailer, { workerId: worker.workerId, writtenAtMs: writtenAtMs + aheadMs });
				}
			});
			deps.onShards(answers.length);
			from += answers.length;
		}
		after = listed.shards.at(-1)?.shardId ?? null;
	}
}

/** The trailer, or why it is none of this shard of this cluster. */
function checked(answer: Buffer | string, of: { shardId: ShardId; clusterId: ClusterId }): Trailer | string {
	if (typeof answer === 'string') return `its trailer can't be read: ${answer}`;
	try {
		const trailer = decodeTrailer(answer);
		checkRecovery(trailer.recovery);
		const { shardId, clusterId } = trailer.description;
		if (clusterId !== of.clusterId) return `it is of another cluster: ${clusterId}`;
		if (shardId !== of.shardId) return `its trailer is that of ${shardId}`;
		if (!rootOf(trailer.leaves).equals(trailer.root)) return 'its leaves do not belong to its root';
		return trailer;
	} catch (thrown) {
		const error = asDistroError(thrown);
		if (error.kind === 'unsupported') throw error;
		return error.message;
	}
}

/** Throws `unsupported`. What is only damaged does no harm: other trailers of the object have the same. */
function checkRecovery(bytes: Buffer): void {
	try {
		decodeRecovery(bytes);
	} catch (error) {
		if (asDistroError(error).kind === 'unsupported') throw error;
	}
}

async function again<T>(ask: () => Promise<T>): Promise<T> {
	for (let tries = 1; ; tries++) {
		try {
			return await ask();
		} catch (thrown) {
			const error = asDistroError(thrown);
			const passes = error.kind === 'unavailable' || error.kind === 'timeout';
			if (!passes || tries === TRIES) {
				throw new DistroError(error.kind, `a worker could not be read: ${error.message}`, { cause: thrown });
			}
		}
	}
}
