/**
 * One download: the segments of a range through Gather, each cell opened before a byte of it is written.
 *
 *     rows → Gather → open cells (cipher tag) → sink
 *
 * Memory is reserved once, before the first byte is asked for. The end record of a segment is opened before any of its
 * lengths is trusted, so that metadata can't cut an object short unnoticed.
 */

import type { KeyObject } from 'node:crypto';
import { codecFor } from '../core/codec/erasure-codec.ts';
import { cellAt, cellLength, rowCells, segmentPlainBytes } from '../core/codec/layout.ts';
import { segmentKey } from '../core/crypto/keys.ts';
import { type CellAd, cellAd, createCellDecipher, openEndRecord, openInline } from '../core/crypto/seal.ts';
import { DistroError } from '../core/errors.ts';
import type { ShardId, WorkerId } from '../core/ids.ts';
import { BUDGET_WAIT_MS, DOWNLOAD_ROW_SLOTS, TAG_BYTES } from '../core/limits.ts';
import type { Segment } from '../core/model/segment.ts';
import type { ByteSink, Clock, MemoryLease, MemoryPool, ShardTransport } from '../core/ports.ts';
import { Gather, type GatherSource } from '../core/transfer/gather.ts';
import { madeYoungBuffers } from '../platform/young-collection.ts';
import type { Findings } from './findings.ts';
import type { MetadataStore, ObjectRow } from './store.ts';
import type { WorkerRegistry } from './workers.ts';

/** Segment rows fetched at once. */
export const SEGMENT_PAGE = 16;

export interface ReadDeps {
	readonly store: MetadataStore;
	readonly workers: WorkerRegistry;
	readonly transport: ShardTransport;
	readonly pool: MemoryPool;
	readonly clock: Clock;
	readonly findings: Findings;
}

export interface ReadTarget {
	readonly object: ObjectRow;
	readonly dataKey: KeyObject;
	/** The first page, as it came with the object. */
	readonly segments: readonly Segment[];
}

/** Sends plaintext [offset, offset + length) into the sink. */
export async function readObject(
	deps: ReadDeps,
	target: ReadTarget,
	options: { offset: number; length: number; sink: ByteSink; signal: AbortSignal },
): Promise<void> {
	const { object, dataKey } = target;
	const { offset, length, sink, signal } = options;
	if (length === 0 && object.sizeBytes > 0) return;
	if (object.inline !== null) {
		const plaintext = openInline(dataKey, object.versionId, object.inline);
		if (plaintext.length !== object.sizeBytes)
			throw new DistroError('corrupt', 'the object has another size than recorded');
		if (length > 0) sink.write(plaintext.subarray(offset, offset + length));
		return;
	}
	const pages = new SegmentPages(deps.store, target);
	const first = await pages.get(0);
	// Every segment of an object is cut by the same C, and all but the last are full.
	const perSegment = segmentPlainBytes(first.cellBytes);
	const memory = new ReadMemory(deps.pool, signal);
	try {
		const end = offset + length;
		for (let at = offset; at < end || (length === 0 && at === offset); ) {
			const index = Math.floor(at / perSegment);
			const segment = index === 0 ? first : await pages.get(index);
			const from = at - index * perSegment;
			const count = Math.min(end - at, perSegment - from);
			const hasMoved = await readSegment(deps, { target, segment, memory, from, count, sink, signal });
			if (hasMoved) pages.forget();
			at += Math.max(1, count);
		}
	} finally {
		memory.release();
	}
}

class SegmentPages {
	readonly #store: MetadataStore;
	readonly #target: ReadTarget;
	#page: readonly Segment[];

	constructor(store: MetadataStore, target: ReadTarget) {
		this.#store = store;
		this.#target = target;
		this.#page = target.segments;
	}

	/** What was read before may say wrongly where shards are. */
	forget(): void {
		this.#page = [];
	}

	async get(index: number): Promise<Segment> {
		const { object } = this.#target;
		const known = this.#page.find((segment) => segment.index === index);
		if (known !== undefined) return known;
		this.#page = await this.#store.segments(object.versionId, { fromSegment: index, limit: SEGMENT_PAGE });
		const segment = this.#page[0];
		if (segment === undefined || segment.index !== index) {
			throw new DistroError('not_found', `object ${object.objectId} was deleted while it was read`);
		}
		return segment;
	}
}

/** The row slots of one read: kept from segment to segment, made larger only while none is held. */
class ReadMemory {
	readonly #pool: MemoryPool;
	readonly #signal: AbortSignal;
	#lease: MemoryLease | null = null;

	constructor(pool: MemoryPool, signal: AbortSignal) {
		this.#pool = pool;
		this.#signal = signal;
	}

	async slots(slotBytes: number, count: number): Promise<readonly Buffer[]> {
		const have = this.#lease;
		if (have !== null && have.slots.length >= count && (have.slots[0] as Buffer).length >= slotBytes) return have.slots;
		this.release();
		const sizes = new Array(count).fill(slotBytes);
		this.#lease =
			this.#pool.tryAcquire(sizes) ??
			(await this.#pool.acquire(sizes, { timeoutMs: BUDGET_WAIT_MS, signal: this.#signal }));
		return this.#lease.slots;
	}

	release(): void {
		this.#lease?.release();
		this.#lease = null;
	}
}

interface SegmentRead {
	readonly target: ReadTarget;
	readonly segment: Segment;
	readonly memory: ReadMemory;
	/** Plaintext range inside the segment. */
	readonly from: number;
	readonly count: number;
	readonly sink: ByteSink;
	readonly signal: AbortSignal;
}

/** So often a read goes on with what the metadata says anew of a segment. */
const REREADS = 8;

/**
 * Its shards may go elsewhere, or be cut anew, while it is read: then the read goes on from the first cell that was not
 * written with those that are there now. Answers whether that was so.
 */
async function readSegment(deps: ReadDeps, read: SegmentRead): Promise<boolean> {
	let { segment } = read;
	const progress = { nextCell: 0 };
	for (let reread = 0; ; reread++) {
		try {
			await readPlaced(deps, { ...read, segment }, progress);
			return reread > 0;
		} catch (error) {
			const isGone = error instanceof DistroError && (error.kind === 'unavailable' || error.kind === 'unrecoverable');
			if (!isGone || reread === REREADS || read.signal.aborted) throw error;
			const now = await placedNow(deps, { ...read, segment }).catch(() => null);
			if (now === null) throw error;
			segment = now;
		}
	}
}

/** The segment as the metadata has it by now; null when its shards are where they were. */
async function placedNow({ store }: ReadDeps, { target, segment }: SegmentRead): Promise<Segment | null> {
	const { versionId } = target.object;
	const [now] = await store.segments(versionId, { fromSegment: segment.index, limit: 1 });
	if (now === undefined || now.index !== segment.index) return null;
	const known = new Set(segment.placements.map(({ shardId }) => shardId));
	return now.placements.every(({ shardId }) => known.has(shardId)) ? null : now;
}

/** `progress` says where the read is, also after it failed. */
async function readPlaced(deps: ReadDeps, read: SegmentRead, progress: { nextCell: number }): Promise<void> {
	const { segment, target, sink, signal } = read;
	const { object } = target;
	const { versionId } = object;
	const key = segmentKey({ dataKey: target.dataKey, segment: segment.index, sealId: segment.sealId });
	const ad = cellAd({ versionId, segment: segment.index, sealId: segment.sealId });
	checkEnd(segment, object, openEndRecord(key, ad, segment.endRecord));

	const cellPlainBytes = segment.cellBytes - TAG_BYTES;
	const firstCell = Math.max(progress.nextCell, Math.floor(read.from / cellPlainBytes));
	const lastCell = Math.floor((read.from + Math.max(1, read.count) - 1) / cellPlainBytes);
	await deps.workers.find(segment.placements);
	const { k, n } = segment;
	const firstRow = Math.floor(firstCell / k);
	const lastRow = Math.floor(lastCell / k);
	const slotBytes = (k === 1 ? 1 : n) * segment.cellBytes;
	const slots = await read.memory.slots(slotBytes, Math.min(DOWNLOAD_ROW_SLOTS, lastRow - firstRow + 1));
	if (signal.aborted) throw new DistroError('canceled', 'the reader has left');

	const opener = new CellOpener({ segment, key, ad, from: read.from, count: read.count, sink, progress });
	let gather: Gather | null = null;
	const received = new Promise<void>((resolve, reject) => {
		let taking = true;
		const settle = (finish: () => void) => {
			signal.removeEventListener('abort', onAbort);
			finish();
		};
		const giveUp = (error: unknown) => {
			gather?.abort('the reader has left');
			settle(() => reject(error));
		};
		const onAbort = () => giveUp(new DistroError('canceled', 'the reader has left'));
		gather = new Gather({
			transport: deps.transport,
			clock: deps.clock,
			codec: codecFor(segment.codec),
			shape: segment,
			roots: segment.roots,
			sources: sourcesOf(deps, segment),
			firstRow,
			lastRow,
			wanted: (row) => wantedShards(segment, row, firstCell, lastCell),
			proved: false,
			slots,
			hedgeMs: deps.workers.hedgeMs,
			mayHedge: (worker) => deps.workers.mayHedge(worker.workerId),
			takes: () => taking,
			onRow: (row) => {
				let wrong = -1;
				try {
					wrong = opener.row(row);
				} catch (error) {
					// The sink's or our own fault: no worker is to blame, and none must be asked again.
					giveUp(error);
				}
				row.release();
				if (wrong < 0 && opener.full) taking = false;
				opener.full = false;
				return wrong;
			},
			onEnd: () => settle(resolve),
			onFailed: (error) => settle(() => reject(error)),
			onFinding: ({ shardId, kind, detail }) => reportFinding(deps, segment, { shardId, kind, detail }),
			onWorker: (worker, outcome) => deps.workers.observe(worker.workerId, outcome),
		});
		sink.drained = () => {
			taking = true;
			gather?.resume();
		};
		signal.addEventListener('abort', onAbort, { once: true });
		gather.start();
	});
	try {
		await received;
	} finally {
		// Only now may the memory serve somebody else.
		await (gather as Gather | null)?.quiet();
	}
}

/** What the sealed end record says must be what the metadata says: metadata alone proves nothing. */
function checkEnd(
	segment: Segment,
	object: ObjectRow,
	end: { cells: number; lastCellBytes: number; lastSegment: boolean },
): void {
	const right =
		end.cells === segment.cells &&
		end.lastCellBytes === segment.lastCellBytes &&
		end.lastSegment === (segment.index === object.segments - 1);
	if (!right) throw new DistroError('corrupt', `segment ${segment.index} ends otherwise than it was sealed`);
}

function wantedShards(segment: Segment, row: number, firstCell: number, lastCell: number): number[] {
	if (segment.k === 1) return [0];
	const wanted: number[] = [];
	for (let shard = 0; shard < rowCells(segment, row); shard++) {
		const cell = row * segment.k + shard;
		if (cell >= firstCell && cell <= lastCell) wanted.push(shard);
	}
	return wanted;
}

interface OpenerOptions {
	readonly segment: Segment;
	readonly key: KeyObject;
	readonly ad: CellAd;
	readonly from: number;
	readonly count: number;
	readonly sink: ByteSink;
	/** Cells before it were written already: a row that was found wrong half-way comes again. */
	readonly progress: { nextCell: number };
}

/** Opens the wanted cells of each row in order and writes what the range asks for. */
class CellOpener {
	readonly #o: OpenerOptions;
	/** The sink wants no more before it has drained. */
	full = false;

	constructor(options: OpenerOptions) {
		this.#o = options;
	}

	/** The shard index of the first cell that does not open, or -1. */
	row(row: { index: number; cells: readonly (Buffer | null)[] }): number {
		const { segment, key, ad, from, count, sink, progress } = this.#o;
		const cellPlainBytes = segment.cellBytes - TAG_BYTES;
		for (const [shard, sealed] of row.cells.entries()) {
			if (sealed === null) continue;
			const cell = cellAt(segment, shard, row.index);
			if (cell < progress.nextCell) continue;
			const plaintextBytes = cellLength(segment, cell) - TAG_BYTES;
			const decipher = createCellDecipher(key, ad, cell);
			const plaintext = decipher.update(sealed.subarray(0, plaintextBytes));
			madeYoungBuffers(plaintextBytes);
			decipher.setAuthTag(sealed.subarray(plaintextBytes));
			try {
				decipher.final();
			} catch {
				return shard;
			}
			progress.nextCell = cell + 1;
			const start = Math.max(0, from - cell * cellPlainBytes);
			const end = Math.min(plaintextBytes, from + count - cell * cellPlainBytes);
			if (end > start && !sink.write(plaintext.subarray(start, end))) this.full = true;
		}
		return -1;
	}
}

/** The segment's shards, best first. */
export function sourcesOf(deps: Pick<ReadDeps, 'workers' | 'findings'>, segment: Segment): GatherSource[] {
	const { workers, findings } = deps;
	const sources: (GatherSource & { score: number })[] = [];
	for (const { shardIndex, shardId, workerId } of segment.placements) {
		const worker = workers.ref(workerId);
		if (worker === null) continue;
		const lastResort = findings.has(shardId) || !workers.mayRead(workerId);
		sources.push({ shardIndex, shardId, worker, lastResort, score: workers.score(workerId) });
	}
	// Data shards before parity, since they need no decoding; among copies the fastest.
	const parity = (source: GatherSource) => (segment.k > 1 && source.shardIndex >= segment.k ? 1 : 0);
	return sources.sort((a, b) => parity(a) - parity(b) || a.score - b.score);
}

export function reportFinding(
	deps: Pick<ReadDeps, 'findings'>,
	segment: Segment,
	finding: { shardId: ShardId; kind: 'missing' | 'corrupt'; detail: string },
): void {
	const placement = segment.placements.find(({ shardId }) => shardId === finding.shardId);
	if (placement !== undefined) deps.findings.report({ ...finding, workerId: placement.workerId as WorkerId });
}
