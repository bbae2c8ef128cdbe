/**
 * Repair: rebuilds missing and corrupt shards, one queue item at a time. The simplest repair that is right.
 *
 *     due item → intent → Gather (proved) → the missing cells → one put on another worker → same root → repairDone
 *
 * It needs no key: it works on ciphertext, every input cell is checked against its leaf, and the rebuilt shard's root
 * must equal the stored one bit for bit. It doesn't decide what is lost: reads, commits and (later) audits fill the queue.
 */

import { codecFor } from '../core/codec/erasure-codec.ts';
import { rows, shardBytes, shardCellLength, shardRows } from '../core/codec/layout.ts';
import { decodeTrailer, encodeTrailer } from '../core/codec/trailer.ts';
import { LEAF_BYTES, leafHash, rootOf } from '../core/crypto/digest.ts';
import { asDistroError, DistroError } from '../core/errors.ts';
import { type ClusterId, newId, type ShardId, type UploadId, type VersionId } from '../core/ids.ts';
import { BUDGET_WAIT_MS, DOWNLOAD_ROW_SLOTS, IDLE_TRANSFER_MS, REPAIR_DEADLINE_MS } from '../core/limits.ts';
import { replacement } from '../core/model/placement.ts';
import type { Receipt } from '../core/model/receipt.ts';
import { encodeRecovery } from '../core/model/recovery.ts';
import type { RedundancyPolicy } from '../core/model/redundancy.ts';
import type { Segment } from '../core/model/segment.ts';
import type { Random, ShardPut, ShardTransport, WorkerRef } from '../core/ports.ts';
import { backoffMs } from '../core/retry.ts';
import { Gather } from '../core/transfer/gather.ts';
import type { GrpcShardTransport } from '../platform/shard-transport.ts';
import { type ReadDeps, reportFinding, sourcesOf } from './download.ts';
import type { Lease, RepairItem } from './store.ts';

export interface RepairDeps extends ReadDeps {
	readonly transport: ShardTransport & Pick<GrpcShardTransport, 'stat'>;
	readonly clusterId: ClusterId;
	readonly random: Random;
	readonly policy: RedundancyPolicy;
}

const BATCH = 16;
const RETRY_BASE_MS = 2_000;
const RETRY_MAX_MS = 10 * 60_000;
const STAT_TIMEOUT_MS = 5_000;

/** Works off what is due; answers how many shards it rebuilt. Stops between items when `signal` is aborted. */
export async function repairDue(
	deps: RepairDeps,
	options: {
		signal: AbortSignal;
		lease?: Lease;
		onOutcome: (outcome: 'repaired' | 'deferred', item: RepairItem, error: DistroError | null) => void;
	},
): Promise<number> {
	const { store, clock, random } = deps;
	let repaired = 0;
	for (const item of await store.repairs({ nowMs: clock.nowMs(), limit: BATCH })) {
		if (options.signal.aborted) break;
		try {
			await repairShard(deps, item, options);
			repaired++;
			options.onOutcome('repaired', item, null);
		} catch (thrown) {
			const error = asDistroError(thrown);
			const waitMs = RETRY_BASE_MS + backoffMs(item.attempts, { baseMs: RETRY_BASE_MS, maxMs: RETRY_MAX_MS, random });
			await store.deferRepair(item, clock.nowMs() + waitMs, options.lease);
			options.onOutcome('deferred', item, error);
		}
	}
	return repaired;
}

async function repairShard(
	deps: RepairDeps,
	item: RepairItem,
	options: { signal: AbortSignal; lease?: Lease },
): Promise<void> {
	const { signal, lease } = options;
	const { store, workers, clock, random } = deps;
	const [segment] = await store.segments(item.versionId, { fromSegment: item.segment, limit: 1 });
	if (segment === undefined || segment.index !== item.segment || segment.encodingId !== item.encodingId) {
		throw new DistroError('conflict', 'the segment is gone or was encoded anew');
	}
	await workers.find(segment.placements);
	const others = segment.placements.filter(({ shardIndex }) => shardIndex !== item.shardIndex);
	const known = workers.policyWorkers();
	const candidates = known.filter(({ workerId, state }) => state === 'ready' && workers.isGood(workerId));
	const before = segment.placements.find(({ shardIndex }) => shardIndex === item.shardIndex);
	const workerId = replacement({
		holders: others.map((placement) => placement.workerId),
		candidates: candidates.filter(({ bytesFree }) => bytesFree > shardBytes(segment, item.shardIndex)),
		// Its own worker may take it again (a rotten file on a sound disk), but not while another will do.
		avoid: before === undefined ? [] : [before.workerId],
		// Holders that are away count in their zones as well.
		zoneOf: (holder) => known.find(({ workerId: other }) => other === holder)?.zone ?? null,
	});
	const worker = workerId === null ? null : workers.ref(workerId);
	if (workerId === null || worker === null) throw new DistroError('unavailable', 'no worker is free to take the shard');

	const uploadId = newId<UploadId>(random);
	const shardId = newId<ShardId>(random);
	const expiresAtMs = clock.nowMs() + REPAIR_DEADLINE_MS;
	await store.begin({ uploadId, objectId: item.objectId, shards: [{ shardId, workerId }], expiresAtMs });
	try {
		const recovery = await recoveryOf(deps, item);
		const receipt = await rebuild(deps, {
			versionId: item.versionId,
			segment,
			shardIndex: item.shardIndex,
			shardId,
			worker,
			recovery,
			signal,
		});
		const root = segment.roots.subarray(item.shardIndex * LEAF_BYTES, (item.shardIndex + 1) * LEAF_BYTES);
		const right =
			receipt.shardId === shardId &&
			receipt.workerId === workerId &&
			receipt.root.equals(root) &&
			workers.verifyReceipt(receipt);
		if (!right) throw new DistroError('corrupt', 'the receipt is not for the rebuilt shard');
		// Closed only after the target shows it afresh.
		const stored = decodeTrailer(await deps.transport.stat(worker, shardId, { timeoutMs: STAT_TIMEOUT_MS }));
		if (!stored.root.equals(root)) throw new DistroError('corrupt', 'the target keeps something else than was sent');
		const placement = { shardIndex: item.shardIndex, workerId, shardId };
		await store.repairDone({ item, placement, nowMs: clock.nowMs() }, uploadId, lease);
		if (before !== undefined) deps.findings.forget(before.shardId);
	} catch (error) {
		await store.abort(uploadId, clock.nowMs());
		throw error;
	}
}

/** From the metadata, as the upload made it: no other worker's word is taken for it. */
async function recoveryOf(deps: RepairDeps, item: RepairItem): Promise<Buffer> {
	const object = await deps.store.object(item.objectId);
	if (object === null || object.versionId !== item.versionId) {
		throw new DistroError('conflict', 'the object is gone or was written anew');
	}
	const { objectId, keyGeneration, wrappedKey, createdAtMs } = object;
	const manifest = item.segment === object.segments - 1 ? object.manifest : null;
	return encodeRecovery({ objectId, keyGeneration, wrappedKey, createdAtMs, manifest });
}

interface Rebuild {
	readonly versionId: VersionId;
	readonly segment: Segment;
	readonly shardIndex: number;
	readonly shardId: ShardId;
	readonly worker: WorkerRef;
	readonly recovery: Buffer;
	readonly signal: AbortSignal;
}

async function rebuild(deps: RepairDeps, job: Rebuild): Promise<Receipt> {
	const { segment, shardIndex, shardId, worker, signal } = job;
	const slotBytes = (segment.k === 1 ? 1 : segment.n) * segment.cellBytes;
	const lastRow = shardRows(segment, shardIndex) - 1;
	const slotCount = Math.min(DOWNLOAD_ROW_SLOTS, lastRow + 1);
	const lease = await deps.pool.acquire(new Array(slotCount).fill(slotBytes), { timeoutMs: BUDGET_WAIT_MS, signal });
	let cellsOut = 0;
	let over = false;
	let gather: Gather | null = null;
	let cancelStall = () => {};
	let onAbort = () => {};
	// Memory goes back when neither the gather nor the put can touch it any more.
	const releaseWhenQuiet = () => {
		if (over && cellsOut === 0) lease.release();
	};
	try {
		return await new Promise<Receipt>((resolve, reject) => {
			const leaves = Buffer.alloc((lastRow + 1) * LEAF_BYTES);
			let finished = false;
			const fail = (error: DistroError) => {
				gather?.abort(error.message);
				put.abort(error.message);
				reject(error);
			};
			// A worker that takes nothing must not hold up all other repairs.
			const progress = () => {
				cancelStall();
				cancelStall = deps.clock.schedule(IDLE_TRANSFER_MS, () =>
					fail(new DistroError('timeout', 'the rebuilt shard does not get on')),
				);
			};
			const put: ShardPut = deps.transport.put(
				worker,
				{
					shardId,
					cellBytes: segment.cellBytes,
					maxBytes: rows(segment) * segment.cellBytes,
					deadlineMs: REPAIR_DEADLINE_MS,
				},
				{
					accepted: progress,
					receipt: (receipt) => {
						if (finished) resolve(receipt);
						else fail(new DistroError('corrupt', 'a receipt before the shard was sent'));
					},
					failed: (error) => fail(error),
				},
			);
			progress();
			gather = new Gather({
				transport: deps.transport,
				clock: deps.clock,
				codec: codecFor(segment.codec),
				shape: segment,
				roots: segment.roots,
				// The shard itself is what is wrong: it is no source of its own repair.
				sources: sourcesOf(deps, segment).filter((source) => source.shardIndex !== shardIndex),
				firstRow: 0,
				lastRow,
				wanted: () => [shardIndex],
				proved: true,
				slots: lease.slots,
				hedgeMs: deps.workers.hedgeMs,
				mayHedge: (worker) => deps.workers.mayHedge(worker.workerId),
				takes: () => true,
				onRow: (row) => {
					const cell = row.cells[shardIndex] as Buffer;
					leafHash(cell).copy(leaves, row.index * LEAF_BYTES);
					cellsOut++;
					put.write(cell.subarray(0, shardCellLength(segment, shardIndex, row.index)), () => {
						cellsOut--;
						if (!over) progress();
						row.release();
						releaseWhenQuiet();
					});
					return -1;
				},
				onEnd: () => {
					const root = segment.roots.subarray(shardIndex * LEAF_BYTES, (shardIndex + 1) * LEAF_BYTES);
					if (!rootOf(leaves).equals(root)) {
						fail(new DistroError('corrupt', 'the rebuilt shard is not the one that was stored'));
						return;
					}
					finished = true;
					put.finish(trailerOf(deps, job, { leaves, root }));
				},
				onFailed: fail,
				onFinding: ({ shardId: found, kind, detail }) => reportFinding(deps, segment, { shardId: found, kind, detail }),
				onWorker: (other, outcome) => deps.workers.observe(other.workerId, outcome),
			});
			onAbort = () => fail(new DistroError('canceled', 'this process is stopping'));
			signal.addEventListener('abort', onAbort, { once: true });
			gather.start();
		});
	} finally {
		signal.removeEventListener('abort', onAbort);
		cancelStall();
		await (gather as Gather | null)?.quiet();
		over = true;
		releaseWhenQuiet();
	}
}

function trailerOf(deps: RepairDeps, job: Rebuild, tree: { leaves: Buffer; root: Buffer }): Buffer {
	const { segment, shardIndex, shardId, recovery } = job;
	const { codec, k, n, cellBytes, cells, lastCellBytes, sealId, encodingId } = segment;
	return encodeTrailer({
		description: {
			codec,
			k,
			n,
			cellBytes,
			cells,
			lastCellBytes,
			sealId,
			encodingId,
			segment: segment.index,
			clusterId: deps.clusterId,
			versionId: job.versionId,
			shardIndex,
			shardId,
		},
		...tree,
		endRecord: segment.endRecord,
		recovery,
	});
}
