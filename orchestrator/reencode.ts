/**
 * One segment encoded anew, as (n, k) that suits the cluster and the policy by now. It works on ciphertext and needs no key:
 * the seal stays, so the cells and the object's ETag stay as they are; only how they are cut into shards is new.
 *
 *     segment → intent (all new shards) → Gather (proved) → Recut → Scatter → all n receipts → each target asked afresh → reencoded
 *
 * The old encoding is what is read until the very transaction in which the new one takes its place, and its shards go to the
 * delete queue in that transaction. A quorum is not enough here: nobody waits, and nothing may be less whole than before.
 */

import { createHash } from 'node:crypto';
import { codecFor } from '../core/codec/erasure-codec.ts';
import { rowCells, rows, shardRows } from '../core/codec/layout.ts';
import { decodeTrailer, encodeTrailer } from '../core/codec/trailer.ts';
import { LEAF_BYTES, rootOf } from '../core/crypto/digest.ts';
import { asDistroError, DistroError } from '../core/errors.ts';
import { type EncodingId, newId, type ShardId, type UploadId } from '../core/ids.ts';
import { BUDGET_WAIT_MS, DOWNLOAD_ROW_SLOTS, REPAIR_DEADLINE_MS, UPLOAD_ROW_SLOTS } from '../core/limits.ts';
import { placeShards } from '../core/model/placement.ts';
import { encodeRecovery } from '../core/model/recovery.ts';
import { keepsHardRules, type PolicyWorker, type RedundancyPolicy, takersFor } from '../core/model/redundancy.ts';
import type { Segment, SegmentShape } from '../core/model/segment.ts';
import { Suits } from '../core/model/suits.ts';
import type { MemoryLease, Random, WorkerRef } from '../core/ports.ts';
import { Gather } from '../core/transfer/gather.ts';
import { Recut } from '../core/transfer/recut.ts';
import { Scatter, type ScatterResult, type ScatterTarget } from '../core/transfer/scatter.ts';
import { reportFinding, sourcesOf } from './download.ts';
import { giveUp, type Intent } from './intents.ts';
import type { RepairDeps } from './repair.ts';
import type { Lease, ObjectRow, StoredSegment } from './store.ts';
import { notOpen, segmentGone } from './store-rules.ts';

export interface ReencodeDeps extends RepairDeps {
	readonly policy: RedundancyPolicy;
	/** Told of every code that is chosen, for metrics. */
	readonly onEncoding?: (k: number, n: number) => void;
}

const STAT_TIMEOUT_MS = 5_000;
/** Of one object so many segments are on one worker set, as its upload would have placed them. */
const SEGMENTS_ON_SET = 16;

/**
 * Throws `canceled` when it suits by now, `conflict` when the object is gone or the segment is encoded anew already,
 * `unavailable` when too few workers can take a shard now, and whatever the workers' answers were; nothing is left behind then.
 */
export async function reencodeSegment(
	deps: ReencodeDeps,
	stored: StoredSegment,
	options: { signal: AbortSignal; lease?: Lease },
): Promise<void> {
	const { store, workers, clock, random, transport } = deps;
	const { objectId, versionId, segment: from } = stored;
	const live = await store.object(objectId);
	const object = live ?? (await store.trashed(objectId))?.object ?? null;
	if (object === null || object.versionId !== versionId) throw segmentGone();
	const { targets, shape, because } = choose(deps, { stored, object, isInTrash: live === null });
	const encodingId = newId<EncodingId>(random);
	await workers.find(from.placements);
	const uploadId = newId<UploadId>(random);
	const expiresAtMs = clock.nowMs() + REPAIR_DEADLINE_MS;
	const shards = targets.map(({ shardId, worker }) => ({ shardId, workerId: worker.workerId }));
	const intent: Intent = { uploadId, objectId, shards, expiresAtMs };
	await store.begin(intent);
	try {
		// This process may have been stopped meanwhile: what would be sent now nobody would ever delete.
		if (clock.nowMs() >= expiresAtMs) throw notOpen(uploadId);
		deps.onEncoding?.(shape.k, shape.n);
		const trailer = trailerMaker(deps, { object, from, shape, encodingId });
		const { placements, roots } = await transfer(deps, { from, shape, targets, trailer, signal: options.signal });
		// The old ones are let go only after each of the new ones shows itself afresh.
		await Promise.all(
			targets.map(async ({ worker, shardId }, shardIndex) => {
				const kept = decodeTrailer(await transport.stat(worker, shardId, { timeoutMs: STAT_TIMEOUT_MS }));
				const root = roots.subarray(shardIndex * LEAF_BYTES, (shardIndex + 1) * LEAF_BYTES);
				const isRight = kept.root.equals(root) && kept.description.encodingId === encodingId;
				if (!isRight) throw new DistroError('corrupt', 'a target keeps something else than was sent');
			}),
		);
		const segment: Segment = { ...from, ...shape, encodingId, roots, because, placements };
		const { keyGeneration } = object;
		const nowMs = clock.nowMs();
		const done = { objectId, versionId, fromEncodingId: from.encodingId, segment, keyGeneration, nowMs };
		await store.reencoded(done, uploadId, options.lease);
		for (const { shardId } of from.placements) deps.findings.forget(shardId);
	} catch (error) {
		await giveUp(deps, intent, asDistroError(error));
		throw error;
	}
}

/** Whether the workers that can take a shard now are enough for this code, and for the rules of the policy. */
export function canPlace(
	code: { readonly k: number; readonly m: number },
	workers: readonly PolicyWorker[],
	policy: RedundancyPolicy,
): boolean {
	// Slow ones are placed on where the others don't suffice.
	const there = workers.map((worker) => ({ ...worker, latencyMs: undefined }));
	return keepsHardRules(code, there, policy);
}

/** The code, and who gets which shard. */
function choose(
	deps: ReencodeDeps,
	{ stored, object, isInTrash }: { stored: StoredSegment; object: ObjectRow; isInTrash: boolean },
): { targets: ScatterTarget[]; shape: SegmentShape; because: string } {
	const { versionId, segment } = stored;
	const { workers, policy, random } = deps;
	const now = workers.policyWorkers();
	const suits = new Suits(now, policy);
	const wanted = object.kind === 'user' ? suits.wanted(segment, object.sizeBytes) : suits.wantedCopies(segment);
	if (wanted === null) throw new DistroError('canceled', 'the code of the segment suits by now');
	if (isInTrash && wanted.why !== 'unsafe') {
		throw new DistroError('canceled', 'what is in the trash is not made better, only safe');
	}
	const { n, k, because } = wanted.choice;
	if (!canPlace(wanted.choice, now, policy)) {
		throw new DistroError('unavailable', `too few workers can take a shard of ${k}+${n - k} now`);
	}
	const takers = takersFor(n, now);
	// The same draw for a run of segments, or an object of many would be on as many worker sets.
	const run = Math.floor(segment.index / SEGMENTS_ON_SET);
	const holders = placeShards({ n, workers: takers, random: drawOf(`${versionId} ${run}`) });
	const targets = holders.map((_, at): ScatterTarget => {
		const worker = workers.ref(holders[(at + segment.index) % n] as (typeof holders)[number]);
		if (worker === null) throw new DistroError('unavailable', 'a worker that was to take a shard is gone');
		return { worker, shardId: newId<ShardId>(random) };
	});
	const { cellBytes, cells, lastCellBytes } = segment;
	const codec = k === 1 ? 'replicate' : 'rs-ronomon-6';
	return { targets, shape: { codec, k, n, cellBytes, cells, lastCellBytes }, because };
}

function drawOf(text: string): Random {
	let drawn = 0;
	return { bytes: (count) => createHash('sha256').update(`${text} ${drawn++}`).digest().subarray(0, count) };
}

type TrailerOf = (shard: { shardIndex: number; shardId: ShardId; leaves: Buffer; root: Buffer }) => Buffer;

/** From the metadata, as the upload made them: no worker's word is taken for it. */
function trailerMaker(
	deps: ReencodeDeps,
	{
		object,
		from,
		shape,
		encodingId,
	}: { object: ObjectRow; from: Segment; shape: SegmentShape; encodingId: EncodingId },
): TrailerOf {
	const { objectId, versionId, keyGeneration, wrappedKey, createdAtMs } = object;
	const manifest = from.index === object.segments - 1 ? object.manifest : null;
	const recovery = encodeRecovery({ objectId, keyGeneration, wrappedKey, createdAtMs, manifest });
	const { sealId, endRecord, index: segment } = from;
	return ({ shardIndex, shardId, leaves, root }) =>
		encodeTrailer({
			description: {
				...shape,
				clusterId: deps.clusterId,
				versionId,
				segment,
				sealId,
				encodingId,
				shardIndex,
				shardId,
			},
			root,
			leaves,
			endRecord,
			recovery,
		});
}

interface Transfer {
	readonly from: Segment;
	readonly shape: SegmentShape;
	readonly targets: readonly ScatterTarget[];
	readonly trailer: TrailerOf;
	readonly signal: AbortSignal;
}

/** Row slots for both codes: two of each, or one where the budget has no room for more. */
async function slotsFor(
	deps: ReencodeDeps,
	{ from, shape, signal }: Transfer,
): Promise<{ lease: MemoryLease; gather: readonly Buffer[]; scatter: readonly Buffer[] }> {
	const { pool } = deps;
	const sizesOf = (code: SegmentShape, slots: number) =>
		new Array<number>(Math.min(slots, rows(code))).fill((code.k === 1 ? 1 : code.n) * code.cellBytes);
	let [old, fresh] = [sizesOf(from, DOWNLOAD_ROW_SLOTS), sizesOf(shape, UPLOAD_ROW_SLOTS)];
	const total = [...old, ...fresh].reduce((sum, bytes) => sum + bytes, 0);
	if (total > pool.capacityBytes) [old, fresh] = [sizesOf(from, 1), sizesOf(shape, 1)];
	const lease = await pool.acquire([...old, ...fresh], { timeoutMs: BUDGET_WAIT_MS, signal });
	return { lease, gather: lease.slots.slice(0, old.length), scatter: lease.slots.slice(old.length) };
}

/** All n shards on their workers, with the roots that they have. */
async function transfer(deps: ReencodeDeps, job: Transfer): Promise<ScatterResult> {
	const { from, shape, targets, signal } = job;
	const { lease, gather: gatherSlots, scatter: scatterSlots } = await slotsFor(deps, job);
	let rowsOut = 0;
	let over = false;
	let gather: Gather | null = null;
	let stop = () => {};
	// Memory goes back when neither the gather nor a put can touch it any more.
	const releaseWhenQuiet = () => {
		if (over && rowsOut === 0) lease.release();
	};
	try {
		return await new Promise<ScatterResult>((resolve, reject) => {
			const leaves: Buffer[] = [];
			const fail = (error: DistroError) => {
				gather?.abort(error.message);
				recut.abort();
				scatter.abort(error.message);
				reject(error);
			};
			const onAbort = () => fail(new DistroError('canceled', 'this process is stopping'));
			const cancelDeadline = deps.clock.schedule(REPAIR_DEADLINE_MS, () =>
				fail(new DistroError('timeout', 'encoding the segment anew does not get on')),
			);
			stop = () => {
				cancelDeadline();
				signal.removeEventListener('abort', onAbort);
			};
			const scatter = new Scatter({
				transport: deps.transport,
				clock: deps.clock,
				codec: codecFor(shape.codec),
				k: shape.k,
				n: shape.n,
				cellBytes: shape.cellBytes,
				maxCells: shape.cells,
				quorum: shape.n,
				deadlineMs: REPAIR_DEADLINE_MS,
				targets,
				// It is tried again later, with whoever is there then.
				spare: async () => null,
				onDataLeaf: (leaf) => leaves.push(leaf),
				verifyReceipt: (receipt) => deps.workers.verifyReceipt(receipt),
				onWorkerFailed: (workerId, error) => deps.workers.failed(workerId, error),
				onFailed: fail,
			});
			const recut = new Recut({
				from,
				to: shape,
				slots: scatterSlots,
				send: (row) => {
					rowsOut++;
					const release = () => {
						rowsOut--;
						row.release();
						releaseWhenQuiet();
					};
					return scatter.row({ ...row, release });
				},
				onTakes: () => gather?.resume(),
				onEnd: () => {
					if (!areCellsOf(from, leaves)) {
						fail(new DistroError('corrupt', 'the cells that were read are not those that were stored'));
						return;
					}
					scatter.finish({ shape, trailer: job.trailer }).then(resolve, (error) => fail(asDistroError(error)));
				},
				onFailed: (error) => fail(asDistroError(error)),
			});
			gather = new Gather({
				transport: deps.transport,
				clock: deps.clock,
				codec: codecFor(from.codec),
				shape: from,
				roots: from.roots,
				sources: sourcesOf(deps, from),
				firstRow: 0,
				lastRow: rows(from) - 1,
				wanted: (row) => Array.from({ length: rowCells(from, row) }, (_, shard) => shard),
				proved: true,
				slots: gatherSlots,
				hedgeMs: deps.workers.hedgeMs,
				mayHedge: (worker: WorkerRef) => deps.workers.mayHedge(worker.workerId),
				takes: () => recut.takes,
				onRow: (row) => {
					recut.row(row);
					return -1;
				},
				onEnd: () => {},
				onFailed: fail,
				onFinding: ({ shardId, kind, detail }) => reportFinding(deps, from, { shardId, kind, detail }),
				onWorker: (worker, outcome) => deps.workers.observe(worker.workerId, outcome),
			});
			signal.addEventListener('abort', onAbort, { once: true });
			if (signal.aborted) onAbort();
			else gather.start();
		});
	} finally {
		stop();
		await (gather as Gather | null)?.quiet();
		over = true;
		releaseWhenQuiet();
	}
}

/** Whether cells with these leaves, in their order, have the roots of the old data shards: also of those that were rebuilt. */
function areCellsOf(from: Segment, leaves: readonly Buffer[]): boolean {
	if (leaves.length !== from.cells) return false;
	for (let shard = 0; shard < from.k; shard++) {
		const own = Array.from({ length: shardRows(from, shard) }, (_, row) => leaves[row * from.k + shard] as Buffer);
		const root = from.roots.subarray(shard * LEAF_BYTES, (shard + 1) * LEAF_BYTES);
		if (!rootOf(Buffer.concat(own)).equals(root)) return false;
	}
	return true;
}
