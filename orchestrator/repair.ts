/**
 * One shard of a segment onto another worker: rebuilt from the others when it is lost, copied when it is there. Repair,
 * drain and rebalance all do this.
 *
 *     segment, shard index → intent → Gather (proved) → its cells → one put on another worker → same root → repairDone
 *
 * It needs no key: it works on ciphertext, every input cell is checked against its leaf, and the new shard's root must
 * equal the stored one bit for bit. What was there goes to the delete queue in the transaction that places the new one.
 */

import { codecFor } from '../core/codec/erasure-codec.ts';
import { rows, shardCellLength, shardRows } from '../core/codec/layout.ts';
import { decodeTrailer, encodeTrailer } from '../core/codec/trailer.ts';
import { LEAF_BYTES, leafHash, rootOf } from '../core/crypto/digest.ts';
import { asDistroError, DistroError } from '../core/errors.ts';
import { type ClusterId, newId, type ShardId, type UploadId, type VersionId, type WorkerId } from '../core/ids.ts';
import { BUDGET_WAIT_MS, DOWNLOAD_ROW_SLOTS, IDLE_TRANSFER_MS, REPAIR_DEADLINE_MS } from '../core/limits.ts';
import type { Receipt } from '../core/model/receipt.ts';
import { encodeRecovery } from '../core/model/recovery.ts';
import type { Segment } from '../core/model/segment.ts';
import type { Random, ShardPut, ShardTransport, WorkerRef } from '../core/ports.ts';
import { Gather } from '../core/transfer/gather.ts';
import type { GrpcShardTransport } from '../platform/shard-transport.ts';
import { type ReadDeps, reportFinding, sourcesOf } from './download.ts';
import { giveUp, type Intent } from './intents.ts';
import type { Lease, RepairItem, StoredSegment } from './store.ts';
import { notOpen } from './store-rules.ts';

export interface RepairDeps extends ReadDeps {
	readonly transport: ShardTransport & Pick<GrpcShardTransport, 'stat'>;
	readonly clusterId: ClusterId;
	readonly random: Random;
}

const STAT_TIMEOUT_MS = 5_000;

/** What to place anew. */
export interface ShardTask {
	readonly stored: StoredSegment;
	readonly shardIndex: number;
	readonly to: WorkerId;
	/** The shard itself may be read: it is not known to be bad. */
	readonly copy: boolean;
	/** Asked before anything is sent and before the old shard is given up. False: it is not wanted any more (`canceled`). */
	readonly isWanted?: () => boolean;
}

/** Throws `conflict` when the segment went meanwhile, and whatever the workers' answers were; nothing is left behind then. */
export async function placeShard(
	deps: RepairDeps,
	task: ShardTask,
	options: { signal: AbortSignal; lease?: Lease },
): Promise<void> {
	const { store, workers, clock, random, transport } = deps;
	const { stored, shardIndex, to: workerId } = task;
	const { objectId, versionId, segment } = stored;
	const before = segment.placements.find((placement) => placement.shardIndex === shardIndex);
	const checkWanted = () => {
		if (task.isWanted?.() === false) throw new DistroError('canceled', 'the shard need not be placed anew any more');
	};
	checkWanted();
	const worker = workers.ref(workerId);
	if (worker === null) throw new DistroError('unavailable', 'the worker that was to take the shard is gone');
	const item: RepairItem = {
		objectId,
		versionId,
		segment: segment.index,
		encodingId: segment.encodingId,
		shardIndex,
		attempts: 0,
		dueAtMs: 0,
	};
	await workers.find(segment.placements);
	const uploadId = newId<UploadId>(random);
	const shardId = newId<ShardId>(random);
	const expiresAtMs = clock.nowMs() + REPAIR_DEADLINE_MS;
	const intent: Intent = { uploadId, objectId, shards: [{ shardId, workerId }], expiresAtMs };
	await store.begin(intent);
	try {
		const { recovery, keyGeneration } = await recoveryOf(deps, item);
		// This process may have been stopped meanwhile: what would be sent now nobody would ever delete.
		if (clock.nowMs() >= expiresAtMs) throw notOpen(uploadId);
		const { copy } = task;
		const { signal } = options;
		const receipt = await rebuild(deps, { versionId, segment, shardIndex, shardId, worker, copy, recovery, signal });
		const root = segment.roots.subarray(shardIndex * LEAF_BYTES, (shardIndex + 1) * LEAF_BYTES);
		const right =
			receipt.shardId === shardId &&
			receipt.workerId === workerId &&
			receipt.root.equals(root) &&
			workers.verifyReceipt(receipt);
		if (!right) throw new DistroError('corrupt', 'the receipt is not for the rebuilt shard');
		// Closed only after the target shows it afresh.
		const kept = decodeTrailer(await transport.stat(worker, shardId, { timeoutMs: STAT_TIMEOUT_MS }));
		if (!kept.root.equals(root)) throw new DistroError('corrupt', 'the target keeps something else than was sent');
		checkWanted();
		const placement = { shardIndex, workerId, shardId };
		await store.repairDone({ item, placement, keyGeneration, nowMs: clock.nowMs() }, uploadId, options.lease);
		if (before !== undefined) deps.findings.forget(before.shardId);
	} catch (error) {
		await giveUp(deps, intent, asDistroError(error));
		throw error;
	}
}

/** From the metadata, as the upload made it: no other worker's word is taken for it. */
async function recoveryOf(
	deps: RepairDeps,
	item: RepairItem,
): Promise<{ readonly recovery: Buffer; readonly keyGeneration: number }> {
	const { store } = deps;
	// What is in the trash may be wanted again.
	const object = (await store.object(item.objectId)) ?? (await store.trashed(item.objectId))?.object ?? null;
	if (object === null || object.versionId !== item.versionId) {
		throw new DistroError('conflict', 'the object is gone or was written anew');
	}
	const { objectId, keyGeneration, wrappedKey, createdAtMs } = object;
	const manifest = item.segment === object.segments - 1 ? object.manifest : null;
	const recovery = encodeRecovery({ objectId, keyGeneration, wrappedKey, createdAtMs, manifest });
	return { recovery, keyGeneration };
}

interface Rebuild {
	readonly versionId: VersionId;
	readonly segment: Segment;
	readonly shardIndex: number;
	readonly shardId: ShardId;
	readonly worker: WorkerRef;
	readonly copy: boolean;
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
				// One that is wrong is no source of its own repair.
				sources: sourcesOf(deps, segment).filter((source) => job.copy || source.shardIndex !== shardIndex),
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
