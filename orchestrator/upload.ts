/**
 * One upload: plaintext in, cells sealed as they come, rows out through Scatter, one commit at the end.
 *
 *     write → seal into a row slot → (n, k) and placement, once enough is known → Scatter → commit
 *
 * The whole working set is reserved before the first byte; when no slot is free `write` answers false. The intent names
 * every shard and worker durably before the shard's first byte leaves, so a process that dies here leaves nothing that
 * can't be found. Nothing is visible before the commit.
 */

import { type CipherGCM, createHash, type Hash, type KeyObject } from 'node:crypto';
import { codecFor } from '../core/codec/erasure-codec.ts';
import { encodeTrailer } from '../core/codec/trailer.ts';
import { EtagHasher, leafHash } from '../core/crypto/digest.ts';
import { segmentKey } from '../core/crypto/keys.ts';
import { type CellAd, cellAd, createCellCipher, sealEndRecord, sealInline, sealManifest } from '../core/crypto/seal.ts';
import { asDistroError, DistroError } from '../core/errors.ts';
import {
	type ClusterId,
	type EncodingId,
	newId,
	type ObjectId,
	type SealId,
	type ShardId,
	type UploadId,
	type VersionId,
	type WorkerId,
} from '../core/ids.ts';
import {
	IDEMPOTENCY_TTL_MS,
	INTENT_RENEW_AGAIN_MS,
	INTENT_RENEW_MS,
	INTENT_TTL_MS,
	SEGMENT_CELLS,
	TAG_BYTES,
} from '../core/limits.ts';
import { placeShards, replacement } from '../core/model/placement.ts';
import { encodeRecovery } from '../core/model/recovery.ts';
import { chooseRedundancy, type PolicyWorker, quorum, type RedundancyPolicy } from '../core/model/redundancy.ts';
import type { Segment, SegmentShape } from '../core/model/segment.ts';
import { isChosenForNow } from '../core/model/suits.ts';
import type { Clock, MemoryLease, Random, ShardTransport } from '../core/ports.ts';
import { Scatter, type ScatterTarget } from '../core/transfer/scatter.ts';
import { madeYoungBuffers } from '../platform/young-collection.ts';
import { giveUp } from './intents.ts';
import type { Keyring, WrappedDataKey } from './keyring.ts';
import type { ObjectInfo, Upload, UploadOptions } from './objects.types.ts';
import type { Commit, IntendedShard, MetadataStore, ObjectRow } from './store.ts';
import { notOpen } from './store-rules.ts';
import type { WorkerRegistry } from './workers.ts';

export interface UploadDeps {
	readonly clusterId: ClusterId;
	readonly store: MetadataStore;
	readonly workers: WorkerRegistry;
	readonly transport: ShardTransport;
	readonly keyring: Keyring;
	readonly clock: Clock;
	readonly random: Random;
	readonly policy: RedundancyPolicy;
	readonly inlineMaxBytes: number;
	/** Told of every chosen code, for metrics. */
	readonly onEncoding?: (k: number, n: number) => void;
	/** Told after an object came that may not suit the cluster: written while workers were away, or out of the trash. */
	readonly onMayNotSuit?: () => void;
}

/** What was reserved: slots of `dataCells` + `parityCells` cells of `cellBytes`. */
export interface UploadMemory {
	readonly lease: MemoryLease;
	readonly cellBytes: number;
	readonly dataCells: number;
	readonly parityCells: number;
}

/** Cells of one segment, in one slot, ready to go out. */
interface Batch {
	readonly kind: 'batch';
	readonly segment: SealedSegment;
	readonly slot: Buffer;
	readonly cells: number;
	readonly lastCellBytes: number;
	/** The object ends with it. */
	readonly ended: boolean;
}

interface SegmentEnd {
	readonly kind: 'end';
	readonly segment: SealedSegment;
	readonly last: boolean;
}

/** A segment as the sealing side knows it. */
interface SealedSegment {
	readonly index: number;
	readonly sealId: SealId;
	readonly key: KeyObject;
	readonly ad: CellAd;
	cells: number;
	lastCellBytes: number;
}

/** A GiB of segments on one worker set. */
const SEGMENTS_ON_SET = 16;

/** A segment as the scattering side knows it. */
interface OpenSegment {
	readonly sealed: SealedSegment;
	readonly scatter: Scatter;
	readonly encodingId: EncodingId;
	readonly k: number;
	readonly n: number;
	readonly codec: SegmentShape['codec'];
	readonly because: string;
}

export class UploadSession implements Upload {
	readonly result: Promise<ObjectInfo>;
	readonly uploadId: UploadId;
	readonly objectId: ObjectId;
	drained: () => void = () => {};
	readonly #deps: UploadDeps;
	readonly #options: UploadOptions;
	readonly #memory: UploadMemory | null;
	readonly #versionId: VersionId;
	readonly #dataKey: WrappedDataKey;
	readonly #createdAtMs: number;
	readonly #sha256: Hash | null;
	readonly #etag = new EtagHasher();
	#sizeBytes = 0;
	#mayNotSuit = false;
	/** Workers of the segments so far. */
	#holders: readonly WorkerId[] = [];

	/** Plaintext that may still become an inline object. */
	#inline: Buffer[] | null = [];
	/** Taken, but without a slot yet. */
	#waiting: Buffer[] = [];
	#freeSlots: Buffer[];
	#slot: Buffer | null = null;
	#slotCells = 0;
	#segment: SealedSegment | null = null;
	#segments = 0;
	#cipher: CipherGCM | null = null;
	#cellFilledBytes = 0;

	readonly #queue: (Batch | SegmentEnd)[] = [];
	#emitting = false;
	#open: OpenSegment | null = null;
	readonly #finished: Promise<{ segment: Segment; abandoned: readonly IntendedShard[] }>[] = [];
	readonly #scatters = new Set<Scatter>();
	/** Rows that are out; the memory goes back when there is none. */
	#rowsOut = 0;
	#intent: 'none' | 'open' | 'closed' = 'none';
	#ended = false;
	#over = false;
	#resolve!: (info: ObjectInfo) => void;
	#reject!: (error: DistroError) => void;
	#cancelRenewal: () => void = () => {};
	/** As the store knows it. */
	#intentUntilMs = 0;
	readonly #named: IntendedShard[] = [];

	constructor(deps: UploadDeps, options: UploadOptions, parts: { memory: UploadMemory | null; uploadId: UploadId }) {
		this.#deps = deps;
		this.#options = options;
		this.#memory = parts.memory;
		this.uploadId = parts.uploadId;
		this.objectId = newId<ObjectId>(deps.random);
		this.#versionId = newId<VersionId>(deps.random);
		this.#dataKey = deps.keyring.newDataKey(this.#versionId);
		this.#createdAtMs = deps.clock.nowMs();
		this.#sha256 = options.wantSha256 || options.expectedSha256 !== null ? createHash('sha256') : null;
		this.#freeSlots = [...(parts.memory?.lease.slots ?? [])];
		this.result = new Promise((resolve, reject) => {
			this.#resolve = resolve;
			this.#reject = reject;
		});
		this.result.catch(() => {});
	}

	write(chunk: Buffer): boolean {
		if (this.#over || chunk.length === 0) return true;
		this.#sizeBytes += chunk.length;
		// The chunk, and what the cipher makes of it.
		madeYoungBuffers(2 * chunk.length);
		const { sizeHintBytes } = this.#options;
		if (sizeHintBytes !== null && this.#sizeBytes > sizeHintBytes) {
			this.#fail(new DistroError('invalid', `more bytes came than the ${sizeHintBytes} that were announced`));
			return true;
		}
		this.#sha256?.update(chunk);
		if (this.#inline !== null) {
			this.#inline.push(chunk);
			if (this.#sizeBytes <= this.#deps.inlineMaxBytes) return true;
			this.#waiting = this.#inline;
			this.#inline = null;
		} else this.#waiting.push(chunk);
		return this.#seal();
	}

	end(): void {
		if (this.#over || this.#ended) return;
		this.#ended = true;
		if (this.#inline !== null && this.#sizeBytes <= this.#deps.inlineMaxBytes && this.#deps.inlineMaxBytes > 0) {
			this.#commitInline(Buffer.concat(this.#inline));
			return;
		}
		this.#inline = null;
		if (this.#seal()) this.#endCells();
	}

	abort(reason: string): void {
		this.#fail(new DistroError('canceled', 'the upload was given up', { reason }));
	}

	/** Seals what waits, while there are slots. False: some still waits. */
	#seal(): boolean {
		while (this.#waiting.length > 0) {
			const chunk = this.#waiting[0] as Buffer;
			const taken = this.#sealChunk(chunk);
			if (this.#over) return true;
			if (taken < chunk.length) {
				this.#waiting[0] = chunk.subarray(taken);
				return false;
			}
			this.#waiting.shift();
		}
		return true;
	}

	#sealChunk(chunk: Buffer): number {
		const { cellBytes } = this.#memory as UploadMemory;
		let at = 0;
		while (at < chunk.length) {
			if (!this.#openCell()) return at;
			const count = Math.min(cellBytes - TAG_BYTES - this.#cellFilledBytes, chunk.length - at);
			const sealed = (this.#cipher as CipherGCM).update(chunk.subarray(at, at + count));
			sealed.copy(this.#slot as Buffer, this.#slotCells * cellBytes + this.#cellFilledBytes);
			this.#cellFilledBytes += count;
			at += count;
			if (this.#cellFilledBytes === cellBytes - TAG_BYTES) this.#closeCell(false);
		}
		return at;
	}

	/** A slot, a segment and a cipher for the next byte. False: no slot is free. */
	#openCell(): boolean {
		if (this.#cipher !== null) return true;
		if (this.#slot === null) {
			const slot = this.#freeSlots.pop();
			if (slot === undefined) return false;
			this.#slot = slot;
			this.#slotCells = 0;
		}
		if (this.#segment !== null && this.#segment.cells === SEGMENT_CELLS) {
			this.#push({ kind: 'end', segment: this.#segment, last: false });
			this.#segment = null;
		}
		if (this.#segment === null) {
			const index = this.#segments++;
			const sealId = newId<SealId>(this.#deps.random);
			this.#segment = {
				index,
				sealId,
				key: segmentKey({ dataKey: this.#dataKey.key, segment: index, sealId }),
				ad: cellAd({ versionId: this.#versionId, segment: index, sealId }),
				cells: 0,
				lastCellBytes: 0,
			};
		}
		this.#cipher = createCellCipher(this.#segment.key, this.#segment.ad, this.#segment.cells);
		this.#cellFilledBytes = 0;
		return true;
	}

	#closeCell(ended: boolean): void {
		const { cellBytes, dataCells } = this.#memory as UploadMemory;
		const cipher = this.#cipher as CipherGCM;
		const segment = this.#segment as SealedSegment;
		cipher.final();
		cipher.getAuthTag().copy(this.#slot as Buffer, this.#slotCells * cellBytes + this.#cellFilledBytes);
		this.#cipher = null;
		this.#slotCells++;
		segment.cells++;
		segment.lastCellBytes = this.#cellFilledBytes + TAG_BYTES;
		if (this.#slotCells === dataCells || segment.cells === SEGMENT_CELLS) this.#closeSlot(ended);
	}

	#closeSlot(ended: boolean): void {
		const segment = this.#segment as SealedSegment;
		const slot = this.#slot as Buffer;
		this.#slot = null;
		const batch = { segment, slot, cells: this.#slotCells, lastCellBytes: segment.lastCellBytes };
		this.#push({ kind: 'batch', ...batch, ended });
	}

	/** All plaintext is sealed or fits into the open cell: close what is open. */
	#endCells(): void {
		if (this.#cipher === null && this.#segment === null && !this.#openCell()) {
			throw new DistroError('internal', 'an empty object found no slot');
		}
		if (this.#cipher !== null) this.#closeCell(true);
		if (this.#slot !== null && this.#slotCells > 0) this.#closeSlot(true);
		this.#push({ kind: 'end', segment: this.#segment as SealedSegment, last: true });
	}

	#push(item: Batch | SegmentEnd): void {
		this.#queue.push(item);
		if (this.#emitting) return;
		this.#emitting = true;
		this.#emit().then(
			() => {
				this.#emitting = false;
			},
			(error) => this.#fail(asDistroError(error)),
		);
	}

	/** Sends batches out in order and ends segments; one at a time. */
	async #emit(): Promise<void> {
		for (let item = this.#queue.shift(); item !== undefined && !this.#over; item = this.#queue.shift()) {
			if (item.kind === 'end') {
				this.#endSegment(item);
				if (item.last) await this.#commit();
			} else {
				if (this.#open === null) this.#open = await this.#openSegment(item);
				if (this.#over) return;
				await this.#sendBatch(this.#open, item);
			}
		}
	}

	async #sendBatch(open: OpenSegment, batch: Batch): Promise<void> {
		const { cellBytes, dataCells, parityCells } = this.#memory as UploadMemory;
		const { k, n } = open;
		const rows = Math.ceil(batch.cells / k);
		const parity = batch.slot.subarray(dataCells * cellBytes);
		const rowsAtOnce = n > k && k > 1 ? Math.max(1, Math.floor(parityCells / (n - k))) : rows;
		let rowsOut = 0;
		let wake: (() => void) | null = null;
		for (let row = 0; row < rows && !this.#over; row++) {
			// Many parity cells for few data cells: their room is used again once the rows before have left.
			if (row > 0 && row % rowsAtOnce === 0 && rowsOut > 0) {
				await new Promise<void>((resolve) => {
					wake = resolve;
				});
			}
			const cells = Math.min(k, batch.cells - row * k);
			const isLast = row === rows - 1;
			const parityAt = (row % rowsAtOnce) * (n - k) * cellBytes;
			this.#rowsOut++;
			rowsOut++;
			await open.scatter.row({
				data: batch.slot.subarray(row * k * cellBytes, (row + 1) * k * cellBytes),
				parity: parity.subarray(parityAt, parityAt + (n - k) * cellBytes),
				cells,
				lastCellBytes: isLast ? batch.lastCellBytes : cellBytes,
				release: () => {
					this.#rowsOut--;
					rowsOut--;
					if (rowsOut === 0) wake?.();
					if (rowsOut === 0 && (isLast || this.#over)) this.#freeSlot(batch.slot);
				},
			});
		}
	}

	#freeSlot(slot: Buffer): void {
		if (this.#over) {
			this.#releaseMemory();
			return;
		}
		this.#freeSlots.push(slot);
		if (this.#waiting.length === 0 || !this.#seal()) return;
		if (this.#ended) this.#endCells();
		else this.drained();
	}

	/**
	 * An object stays on the workers of its first segment, while they will do, so that objects of many segments are on few
	 * combinations of worker sets; a large one goes on to others, so that it is not all on a few disks.
	 */
	#place(n: number, candidates: readonly PolicyWorker[], segment: number): WorkerId[] {
		const { random } = this.#deps;
		const same = candidates.filter(({ workerId }) => this.#holders.includes(workerId));
		const isKept = segment % SEGMENTS_ON_SET !== 0 && same.length === this.#holders.length && n <= same.length;
		const holders = placeShards({ n, workers: isKept ? same : candidates, random });
		if (!isKept) this.#holders = holders.slice();
		return holders;
	}

	/** Chooses (n, k) and workers, writes the intent, opens the puts. */
	async #openSegment(first: Batch): Promise<OpenSegment> {
		const { deps, dataCells, parityCells, cellBytes } = { deps: this.#deps, ...(this.#memory as UploadMemory) };
		const maxCells = first.ended ? first.cells : this.#maxCells(first.segment.index);
		const size = {
			sizeBytes: this.#ended ? this.#sizeBytes : null,
			atMostBytes: this.#options.sizeHintBytes,
			cells: maxCells,
			ended: first.ended,
			room: { dataCells, parityCells },
		};
		const workers = deps.workers.policyWorkers();
		const choice = chooseRedundancy(size, workers, deps.policy);
		const { n, k, candidates, because } = choice;
		this.#mayNotSuit ||= isChosenForNow(choice, size, { workers, policy: deps.policy });
		const holders = this.#place(n, candidates, first.segment.index);
		const targetOn = (workerId: WorkerId): ScatterTarget | null => {
			const worker = deps.workers.ref(workerId);
			return worker === null ? null : { worker, shardId: newId<ShardId>(deps.random) };
		};
		const targets = holders.map(targetOn);
		const asked = new Set(holders);
		const zoneOf = (holder: WorkerId) => candidates.find(({ workerId }) => workerId === holder)?.zone ?? null;
		await this.#intend(targets.filter((target) => target !== null));
		deps.onEncoding?.(k, n);
		const codec = k === 1 ? 'replicate' : 'rs-ronomon-6';
		const scatter: Scatter = new Scatter({
			transport: deps.transport,
			clock: deps.clock,
			codec: codecFor(codec),
			k,
			n,
			cellBytes,
			maxCells,
			quorum: quorum(n, k),
			targets,
			spare: async (shardIndex, failed) => {
				const before = holders[shardIndex];
				// A connection that broke says little about its worker: where nobody else is there, it is tried again.
				const again = failed.kind === 'unavailable' && before !== undefined && deps.workers.state(before) === 'ready';
				const holding = holders.filter((_, index) => index !== shardIndex);
				const spares = candidates.filter(({ workerId }) => !asked.has(workerId));
				const next = replacement({ holders: holding, candidates: spares, zoneOf }) ?? (again ? before : undefined);
				const target = next === undefined ? null : targetOn(next);
				if (next !== undefined) {
					asked.add(next);
					holders[shardIndex] = next;
				}
				if (target !== null) await this.#intend([target]);
				return target;
			},
			onDataLeaf: (leaf) => this.#etag.add(leaf),
			verifyReceipt: (receipt) => deps.workers.verifyReceipt(receipt),
			onWorkerFailed: (workerId, error) => deps.workers.failed(workerId, error),
			onFailed: (error) => this.#fail(error),
		});
		this.#scatters.add(scatter);
		if (this.#over) scatter.abort('the upload was given up');
		const encodingId = newId<EncodingId>(deps.random);
		return { sealed: first.segment, scatter, encodingId, k, n, codec, because };
	}

	/** Cells that a segment can get at most, as far as the announced size says. */
	#maxCells(segment: number): number {
		const { sizeHintBytes } = this.#options;
		if (sizeHintBytes === null) return SEGMENT_CELLS;
		const { cellBytes } = this.#memory as UploadMemory;
		const cells = Math.ceil(sizeHintBytes / (cellBytes - TAG_BYTES)) - segment * SEGMENT_CELLS;
		return Math.max(1, Math.min(SEGMENT_CELLS, cells));
	}

	async #intend(targets: readonly ScatterTarget[]): Promise<void> {
		const { store, clock } = this.#deps;
		const shards = targets.map(({ shardId, worker }) => ({ shardId, workerId: worker.workerId }));
		this.#named.push(...shards);
		if (this.#intent === 'open') {
			await store.extend(this.uploadId, shards);
			this.#checkIntent(this.#intentUntilMs);
			return;
		}
		const expiresAtMs = clock.nowMs() + INTENT_TTL_MS;
		this.#intent = 'open';
		this.#intentUntilMs = expiresAtMs;
		await store.begin({ uploadId: this.uploadId, objectId: this.objectId, shards, expiresAtMs });
		if (this.#over) {
			await store.abort(this.uploadId, clock.nowMs());
			return;
		}
		this.#renewLater(INTENT_RENEW_MS);
		this.#checkIntent(expiresAtMs);
	}

	/**
	 * This process may have been stopped since it asked: the intent was given up then, and what would be sent now nobody
	 * would ever delete.
	 */
	#checkIntent(untilMs: number): void {
		if (this.#deps.clock.nowMs() >= untilMs) throw notOpen(this.uploadId);
	}

	#renewLater(waitMs: number): void {
		const { store, clock } = this.#deps;
		this.#cancelRenewal = clock.schedule(waitMs, () => {
			const expiresAtMs = clock.nowMs() + INTENT_TTL_MS;
			store.renew(this.uploadId, expiresAtMs).then(
				() => {
					this.#intentUntilMs = expiresAtMs;
					if (!this.#over) this.#renewLater(INTENT_RENEW_MS);
				},
				(thrown) => {
					const error = asDistroError(thrown);
					const passes = error.kind === 'unavailable' || error.kind === 'timeout';
					// The intent lives for a while yet, and the store may be back before it ends.
					if (passes && !this.#over && clock.nowMs() + INTENT_RENEW_MS < this.#intentUntilMs) {
						this.#renewLater(INTENT_RENEW_AGAIN_MS);
					} else this.#fail(error);
				},
			);
		});
	}

	#endSegment({ segment: sealed, last }: SegmentEnd): void {
		const open = this.#open as OpenSegment;
		this.#open = null;
		const { deps, cellBytes } = { deps: this.#deps, ...(this.#memory as UploadMemory) };
		const { k, n, codec, encodingId, because } = open;
		const shape: SegmentShape = { codec, k, n, cellBytes, cells: sealed.cells, lastCellBytes: sealed.lastCellBytes };
		const endRecord = sealEndRecord(sealed.key, sealed.ad, {
			cells: sealed.cells,
			lastCellBytes: sealed.lastCellBytes,
			lastSegment: last,
		});
		const recovery = encodeRecovery({
			keyGeneration: this.#dataKey.generation,
			wrappedKey: this.#dataKey.wrapped,
			objectId: this.objectId,
			createdAtMs: this.#createdAtMs,
			// Sizes are known only at the end: the last segment's trailers carry the manifest.
			manifest: last ? this.#manifest() : null,
		});
		const finished = open.scatter
			.finish({
				shape,
				trailer: ({ shardIndex, shardId, leaves, root }) =>
					encodeTrailer({
						description: {
							...shape,
							clusterId: deps.clusterId,
							versionId: this.#versionId,
							segment: sealed.index,
							sealId: sealed.sealId,
							encodingId,
							shardIndex,
							shardId,
						},
						root,
						leaves,
						endRecord,
						recovery,
					}),
			})
			.then(({ placements, roots, abandoned }) => ({
				segment: {
					...shape,
					index: sealed.index,
					sealId: sealed.sealId,
					encodingId,
					endRecord,
					roots,
					because,
					placements,
				},
				abandoned,
			}))
			.finally(() => this.#scatters.delete(open.scatter));
		finished.catch((error) => this.#fail(asDistroError(error)));
		this.#finished.push(finished);
	}

	#sealedManifest: Buffer | null = null;
	#digest: Buffer | null = null;

	#manifest(): Buffer {
		if (this.#sealedManifest !== null) return this.#sealedManifest;
		const { name, contentType, expectedSha256 } = this.#options;
		this.#digest = this.#sha256?.digest() ?? null;
		if (expectedSha256 !== null && this.#digest !== null && !this.#digest.equals(expectedSha256)) {
			throw new DistroError('invalid', 'the bytes do not have the announced sha-256 (Repr-Digest): send them again', {
				reason: 'digest_mismatch',
			});
		}
		const sealed = sealManifest(
			this.#dataKey.key,
			{
				name,
				contentType,
				sizeBytes: this.#sizeBytes,
				segments: this.#segments,
				sha256: this.#digest,
				createdAtMs: this.#createdAtMs,
				kind: this.#options.kind ?? 'user',
			},
			this.#deps.random,
		);
		this.#sealedManifest = sealed;
		return sealed;
	}

	async #commit(): Promise<void> {
		const finished = await Promise.all(this.#finished);
		if (this.#over) return;
		await this.#commitRows({
			inline: null,
			segments: finished.map(({ segment }) => segment),
			abandoned: finished.flatMap(({ abandoned }) => abandoned),
		});
	}

	#commitInline(plaintext: Buffer): void {
		try {
			const sealed = sealInline(this.#dataKey.key, this.#versionId, plaintext);
			this.#etag.add(leafHash(sealed));
			this.#commitRows({ inline: sealed, segments: [], abandoned: [] }).catch((error) =>
				this.#fail(asDistroError(error)),
			);
		} catch (error) {
			this.#fail(asDistroError(error));
		}
	}

	async #commitRows(rows: { inline: Buffer | null; segments: Segment[]; abandoned: IntendedShard[] }): Promise<void> {
		const { store, clock } = this.#deps;
		const { idempotency } = this.#options;
		const nowMs = clock.nowMs();
		const object: ObjectRow = {
			objectId: this.objectId,
			versionId: this.#versionId,
			uploadId: this.uploadId,
			kind: this.#options.kind ?? 'user',
			sizeBytes: this.#sizeBytes,
			segments: rows.segments.length,
			createdAtMs: this.#createdAtMs,
			manifest: this.#manifest(),
			etag: this.#etag.digest(this.#versionId),
			keyGeneration: this.#dataKey.generation,
			wrappedKey: this.#dataKey.wrapped,
			inline: rows.inline,
		};
		const commit: Commit = {
			object,
			segments: rows.segments,
			abandoned: rows.abandoned,
			idempotency:
				idempotency === null
					? null
					: { ...idempotency, uploadId: this.uploadId, expiresAtMs: nowMs + IDEMPOTENCY_TTL_MS },
			nowMs,
		};
		const row = await store.commit(commit);
		this.#intent = 'closed';
		if (this.#mayNotSuit) this.#deps.onMayNotSuit?.();
		if (this.#over) return;
		this.#over = true;
		this.#cancelRenewal();
		this.#releaseMemory();
		this.#resolve({
			objectId: row.objectId,
			sizeBytes: row.sizeBytes,
			createdAtMs: row.createdAtMs,
			etag: row.etag,
			name: this.#options.name,
			contentType: this.#options.contentType,
			sha256: this.#digest,
		});
	}

	#fail(error: DistroError): void {
		if (this.#over) return;
		this.#over = true;
		this.#cancelRenewal();
		this.#waiting = [];
		this.#inline = null;
		for (const scatter of this.#scatters) scatter.abort(error.message);
		this.#releaseMemory();
		const { store, clock } = this.#deps;
		const { uploadId, objectId } = this;
		// Where this fails too, the intent expires and is collected then.
		if (this.#intent === 'open') {
			const intent = { uploadId, objectId, shards: this.#named, expiresAtMs: this.#intentUntilMs };
			giveUp(this.#deps, intent, error).catch(() => {});
		} else if (this.#options.idempotency !== null) store.abort(uploadId, clock.nowMs()).catch(() => {});
		this.#reject(error);
		// A writer that waits for room must hear that nobody will read any more.
		this.drained();
	}

	/** Only once no put reads from it any more. */
	#releaseMemory(): void {
		if (this.#rowsOut === 0) this.#memory?.lease.release();
	}
}
