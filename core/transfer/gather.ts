/**
 * Gather: rows of one segment back from its workers. Download, repair and the client share it.
 *
 * Two ways. **Direct**: only the wanted data shards are read, nothing is decoded, and the consumer's cipher tag is the
 * check. **Decoding**: any k shards are read, each cell is checked against its leaf and the leaves against the stored
 * root before use, and what is wanted is rebuilt, or copied where its own shard is a good source. A gather starts direct when it can; when a worker fails, sends wrong
 * bytes or lags behind the others, it goes on from the first row that was not delivered, with other shards. So no row is
 * delivered twice and no wrong cell spoils another.
 *
 * It doesn't open cells, and doesn't know workers' health: `sources` are the caller's ranking.
 */

import { assert } from '../assert.ts';
import type { ErasureCodec } from '../codec/erasure-codec.ts';
import { codedLength, rowCells, shardCellLength, shardOffset } from '../codec/layout.ts';
import { LEAF_BYTES, leafHash, rootOf } from '../crypto/digest.ts';
import { asDistroError, DistroError } from '../errors.ts';
import type { ShardId } from '../ids.ts';
import type { SegmentShape } from '../model/segment.ts';
import type { Clock, ShardGet, ShardTransport, WorkerRef } from '../ports.ts';

export interface GatherSource {
	readonly shardIndex: number;
	readonly shardId: ShardId;
	readonly worker: WorkerRef;
	/** Known to be gone or wrong: used only when nothing else is left. */
	readonly lastResort: boolean;
}

export interface GatheredRow {
	readonly index: number;
	/** By shard index: the wanted cells; others may be null. */
	readonly cells: readonly (Buffer | null)[];
	/** The bytes are no longer needed. */
	release(): void;
}

export interface GatherOptions {
	readonly transport: ShardTransport;
	readonly clock: Clock;
	readonly codec: ErasureCodec;
	readonly shape: SegmentShape;
	/** Roots of all n shards, 32 bytes each. */
	readonly roots: Buffer;
	/** Best first. */
	readonly sources: readonly GatherSource[];
	readonly firstRow: number;
	readonly lastRow: number;
	/** Shard indexes wanted of a row; those without a cell in the row are ignored. */
	readonly wanted: (row: number) => readonly number[];
	/** Never unproved: each delivered cell was checked against its leaf, or decoded from such (repair, moves). */
	readonly proved: boolean;
	/** Row slots, each with room for n cells. */
	readonly slots: readonly Buffer[];
	/** A worker that is this much behind the others is replaced, if `mayHedge` agrees. */
	readonly hedgeMs: number;
	/** Hedges cost as much as reads: a cluster that is busy as a whole must not be asked for more because it is busy. */
	readonly mayHedge: (worker: WorkerRef) => boolean;
	/**
	 * Rows in order. Answers the shard index of a wanted cell that proved wrong (cipher tag), else -1. A row that was found
	 * wrong comes again; what the consumer took of it already it must remember itself.
	 */
	readonly onRow: (row: GatheredRow) => number;
	/** False: `onRow` is not called before `resume`. */
	readonly takes: () => boolean;
	readonly onEnd: () => void;
	readonly onFailed: (error: DistroError) => void;
	readonly onFinding: (finding: {
		shardIndex: number;
		shardId: ShardId;
		kind: 'missing' | 'corrupt';
		detail: string;
	}) => void;
	/**
	 * For health: a worker failed, was replaced after `laggedMs`, sent its first byte after `ms`, or one more cell of `bytes`.
	 * That took it `tookMs`; null where the consumer held it up, or it is the first.
	 */
	readonly onWorker?: (worker: WorkerRef, outcome: WorkerOutcome) => void;
}

export type WorkerOutcome =
	| { readonly error: DistroError }
	| { readonly laggedMs: number }
	| { readonly ms: number }
	| { readonly bytes: number; readonly tookMs: number | null };

interface Stream {
	readonly source: GatherSource;
	get: ShardGet | null;
	/** Row and bytes of it that come next. */
	row: number;
	filledBytes: number;
	readonly lastRow: number;
	leaves: Buffer | null;
	/** Came while no slot was free. */
	held: Buffer[];
	paused: boolean;
	readonly openedAtMs: number;
	/** When its last bytes came. */
	heardAtMs: number;
	heard: boolean;
	/** When its cell before was complete; null before the first, and while it is held up. */
	cellBeganMs: number | null;
	ended: boolean;
}

interface RowState {
	readonly index: number;
	readonly have: boolean[];
	count: number;
	firstAtMs: number;
	lastAtMs: number;
	decoding: boolean;
	decoded: boolean;
	delivered: boolean;
}

export class Gather {
	readonly #o: GatherOptions;
	#mode: 'direct' | 'decoding' = 'direct';
	/** Streams of the current attempt; late events of others are ignored. */
	#attempt = 0;
	#streams: Stream[] = [];
	/** Shards that are not asked again, with why. */
	readonly #bad = new Map<number, DistroError>();
	/** How often each shard lagged. */
	readonly #lags = new Map<number, number>();
	/** There is a shard that could be asked instead of one that is. */
	#hasSpare = true;
	/** Doubles whenever only shards that lagged, and last resorts, are left to change to: one of them may still be the quicker. */
	#patience = 1;
	readonly #rows: (RowState | null)[];
	/** First row that was not delivered, and first whose slot is not free yet. */
	#nextRow: number;
	#firstHeldRow: number;
	readonly #releasedRows = new Set<number>();
	#waitingSinceMs: number;
	#over = false;
	#cancelWatchdog: () => void = () => {};
	#pumping = false;
	#decoding: Promise<void> = Promise.resolve();

	constructor(options: GatherOptions) {
		this.#o = options;
		this.#nextRow = options.firstRow;
		this.#firstHeldRow = options.firstRow;
		this.#rows = options.slots.map(() => null);
		this.#waitingSinceMs = options.clock.monotonicMs();
		assert(options.slots.length > 0 && options.lastRow >= options.firstRow, 'a gather has rows and slots');
	}

	start(): void {
		this.#begin();
		if (!this.#over) this.#armWatchdog();
	}

	/** The consumer takes rows again. */
	resume(): void {
		this.#waitingSinceMs = this.#o.clock.monotonicMs();
		this.#pump();
	}

	/** Gives up; no event follows. The slots are free once `quiet` has resolved. Idempotent. */
	abort(reason: string): void {
		if (this.#over) return;
		this.#over = true;
		this.#cancelWatchdog();
		this.#stopStreams(reason);
	}

	/** After the end, a failure or `abort`: resolves when no decode writes into the slots any more. */
	quiet(): Promise<void> {
		return this.#decoding;
	}

	/** Opens streams from the first undelivered row on, with the best shards that are left. */
	#begin(): void {
		this.#attempt++;
		this.#stopStreams('other shards are asked');
		for (let slot = 0; slot < this.#rows.length; slot++) {
			const row = this.#rows[slot];
			// A delivered row may still be in use; all others are read again.
			if (row !== null && row !== undefined && !row.delivered && !row.decoding) this.#rows[slot] = null;
		}
		const chosen = this.#choose();
		if (chosen === null) {
			this.#fail(this.#tooFew());
			return;
		}
		this.#waitingSinceMs = this.#o.clock.monotonicMs();
		const attempt = this.#attempt;
		for (const source of chosen) {
			this.#open(source);
			if (this.#attempt !== attempt || this.#over) return;
		}
	}

	#choose(): readonly GatherSource[] | null {
		const { sources, shape, proved } = this.#o;
		const needed = this.#cellsNeededToDecode();
		// Nobody is out for good because it lagged: the one that came in its place may send nothing at all.
		const demerits = ({ shardIndex, lastResort }: GatherSource) =>
			(this.#lags.get(shardIndex) ?? 0) + (lastResort ? 1 : 0);
		const ranked = sources
			.filter(({ shardIndex }) => !this.#bad.has(shardIndex) && this.#rowsOf(shardIndex) > 0)
			.toSorted((a, b) => demerits(a) - demerits(b));
		const good = ranked.filter((source) => demerits(source) === 0);
		this.#hasSpare = ranked.length > needed;
		if (good.length <= needed) this.#patience *= 2;
		if (shape.k > 1) {
			const direct = this.#neededShards().map((index) => good.find((source) => source.shardIndex === index));
			if (direct.every((source) => source !== undefined)) {
				// Proved, they come with their leaves, which only decoding mode checks; there is nothing to decode then.
				this.#mode = proved ? 'decoding' : 'direct';
				return direct;
			}
		}
		this.#mode = shape.k === 1 && !proved ? 'direct' : 'decoding';
		return ranked.length >= needed ? ranked.slice(0, needed) : null;
	}

	/** Data shards with a wanted cell in any row that is left. */
	#neededShards(): number[] {
		const needed = new Set<number>();
		for (let row = this.#nextRow; row <= this.#o.lastRow; row++) {
			for (const index of this.#o.wanted(row)) if (shardCellLength(this.#o.shape, index, row) > 0) needed.add(index);
			if (needed.size === this.#o.shape.k) break;
		}
		return [...needed];
	}

	/** k, or fewer where only a short last row is left: cells that don't exist are known zeros. */
	#cellsNeededToDecode(): number {
		const { shape } = this.#o;
		return this.#nextRow === this.#o.lastRow ? rowCells(shape, this.#nextRow) : shape.k;
	}

	#rowsOf(shardIndex: number): number {
		return this.#lastRowOf(shardIndex) - this.#nextRow + 1;
	}

	/** The last wanted row in which this shard has a cell. */
	#lastRowOf(shardIndex: number): number {
		const { shape, lastRow } = this.#o;
		return shardCellLength(shape, shardIndex, lastRow) > 0 ? lastRow : lastRow - 1;
	}

	#open(source: GatherSource): void {
		const { shape } = this.#o;
		const direct = this.#mode === 'direct' && shape.k > 1;
		let firstRow = this.#nextRow;
		let lastRow = this.#lastRowOf(source.shardIndex);
		if (direct) {
			const wants = (row: number) => this.#o.wanted(row).includes(source.shardIndex);
			while (firstRow < lastRow && !wants(firstRow)) firstRow++;
			while (lastRow > firstRow && !wants(lastRow)) lastRow--;
		}
		const offset = shardOffset(shape, firstRow);
		const length = shardOffset(shape, lastRow) - offset + shardCellLength(shape, source.shardIndex, lastRow);
		const openedAtMs = this.#o.clock.monotonicMs();
		const stream: Stream = {
			source,
			get: null,
			row: firstRow,
			filledBytes: 0,
			lastRow,
			leaves: null,
			held: [],
			paused: false,
			openedAtMs,
			heardAtMs: openedAtMs,
			heard: false,
			cellBeganMs: null,
			ended: false,
		};
		this.#streams.push(stream);
		const attempt = this.#attempt;
		const current = () => this.#attempt === attempt && !this.#over;
		try {
			stream.get = this.#o.transport.get(
				source.worker,
				{ shardId: source.shardId, offset, length, wantLeaves: this.#mode === 'decoding' },
				{
					leaves: (leaves) => {
						if (current()) this.#leaves(stream, leaves);
					},
					data: (chunk) => {
						if (!current()) return;
						stream.heardAtMs = this.#o.clock.monotonicMs();
						if (!stream.heard) {
							stream.heard = true;
							this.#o.onWorker?.(source.worker, { ms: stream.heardAtMs - stream.openedAtMs });
						}
						if (stream.held.length > 0) stream.held.push(Buffer.from(chunk));
						else this.#take(stream, chunk);
						if (current()) this.#pump();
					},
					end: () => {
						stream.ended = true;
					},
					failed: (error) => {
						if (current()) this.#shardFailed(stream, error);
					},
				},
			);
		} catch (error) {
			this.#shardFailed(stream, asDistroError(error));
		}
	}

	#leaves(stream: Stream, leaves: Buffer): void {
		const { shardIndex } = stream.source;
		const root = this.#o.roots.subarray(shardIndex * LEAF_BYTES, (shardIndex + 1) * LEAF_BYTES);
		if (leaves.length % LEAF_BYTES === 0 && leaves.length > 0 && rootOf(leaves).equals(root)) stream.leaves = leaves;
		else this.#shardFailed(stream, new DistroError('corrupt', 'the leaves do not belong to the stored root'));
	}

	/** Copies bytes to where they belong; what has no slot yet is held and the stream paused. */
	#take(stream: Stream, chunk: Buffer): void {
		const { shape } = this.#o;
		const { shardIndex } = stream.source;
		let at = 0;
		while (at < chunk.length) {
			if (stream.row > stream.lastRow) {
				this.#shardFailed(stream, new DistroError('corrupt', 'more bytes than the shard has'));
				return;
			}
			if (stream.row >= this.#firstHeldRow + this.#o.slots.length) {
				stream.held.push(Buffer.from(chunk.subarray(at)));
				stream.cellBeganMs = null;
				if (!stream.paused) {
					stream.paused = true;
					stream.get?.pause();
				}
				return;
			}
			const cellLength = shardCellLength(shape, shardIndex, stream.row);
			const count = Math.min(cellLength - stream.filledBytes, chunk.length - at);
			const row = this.#rowState(stream.row);
			// Of a row that went out without this cell the bytes are not needed any more.
			if (row !== null && !row.decoding && !row.decoded && !row.delivered) {
				const cell = this.#cell(stream.row, shardIndex);
				chunk.copy(cell, stream.filledBytes, at, at + count);
			}
			stream.filledBytes += count;
			at += count;
			if (stream.filledBytes === cellLength) {
				const attempt = this.#attempt;
				this.#cellDone(stream, row);
				if (attempt !== this.#attempt || this.#over) return;
			}
		}
	}

	#cellDone(stream: Stream, row: RowState | null): void {
		const { shardIndex } = stream.source;
		if (row !== null && !row.decoding && !row.decoded && !row.delivered) {
			if (this.#mode === 'decoding') {
				const { leaves } = stream;
				const expected = leaves?.subarray(stream.row * LEAF_BYTES, (stream.row + 1) * LEAF_BYTES);
				const length = shardCellLength(this.#o.shape, shardIndex, stream.row);
				const cell = this.#cell(stream.row, shardIndex).subarray(0, length);
				if (expected === undefined || !leafHash(cell).equals(expected)) {
					this.#shardFailed(stream, new DistroError('corrupt', `cell ${stream.row} is not what was stored`));
					return;
				}
			}
			const nowMs = this.#o.clock.monotonicMs();
			if (row.count === 0) row.firstAtMs = nowMs;
			row.lastAtMs = nowMs;
			row.have[shardIndex] = true;
			row.count++;
		}
		const nowMs = this.#o.clock.monotonicMs();
		const tookMs = stream.cellBeganMs === null ? null : nowMs - stream.cellBeganMs;
		this.#o.onWorker?.(stream.source.worker, { bytes: stream.filledBytes, tookMs });
		stream.cellBeganMs = nowMs;
		stream.row++;
		stream.filledBytes = 0;
	}

	/** The state of a row that has or may have a slot; null for one that was delivered and released. */
	#rowState(index: number): RowState | null {
		if (index < this.#firstHeldRow) return null;
		const slot = index % this.#o.slots.length;
		const known = this.#rows[slot];
		if (known !== null && known !== undefined && known.index === index) return known;
		const fresh: RowState = {
			index,
			have: new Array(this.#o.shape.n).fill(false),
			count: 0,
			firstAtMs: 0,
			lastAtMs: 0,
			decoding: false,
			decoded: false,
			delivered: false,
		};
		this.#rows[slot] = fresh;
		return fresh;
	}

	/** Where a shard's cell of a row lies in the row's slot: data first, then parity, at the coded length. */
	#cell(row: number, shardIndex: number): Buffer {
		const slot = this.#o.slots[row % this.#o.slots.length] as Buffer;
		if (this.#o.shape.k === 1) return slot;
		const length = codedLength(this.#o.shape, row);
		return slot.subarray(shardIndex * length, (shardIndex + 1) * length);
	}

	#pump(): void {
		if (this.#pumping) return;
		this.#pumping = true;
		try {
			while (!this.#over && this.#nextRow <= this.#o.lastRow && this.#o.takes() && this.#step());
		} finally {
			this.#pumping = false;
		}
		if (!this.#over && this.#nextRow > this.#o.lastRow) {
			this.#over = true;
			this.#cancelWatchdog();
			this.#stopStreams('the rows are complete');
			this.#o.onEnd();
		}
	}

	/** Delivers the next row if it is ready. */
	#step(): boolean {
		const row = this.#rowState(this.#nextRow);
		if (row === null || row.decoding) return false;
		const wanted = this.#o.wanted(row.index).filter((i) => shardCellLength(this.#o.shape, i, row.index) > 0);
		if (!row.decoded && this.#o.shape.k > 1) {
			const direct = wanted.every((index) => row.have[index] === true);
			if (!direct) {
				if (this.#mode === 'decoding' && row.count >= rowCells(this.#o.shape, row.index)) this.#decode(row, wanted);
				return false;
			}
		} else if (!row.decoded && row.count === 0) return false;
		return this.#deliver(row, wanted);
	}

	#decode(row: RowState, wanted: readonly number[]): void {
		const { shape, codec } = this.#o;
		const { k, n } = shape;
		const length = codedLength(shape, row.index);
		const slot = this.#o.slots[row.index % this.#o.slots.length] as Buffer;
		const present: number[] = [];
		for (let i = 0; i < n; i++) {
			const cellLength = shardCellLength(shape, i, row.index);
			if (cellLength > 0 && row.have[i] !== true) continue;
			// A data cell that is short or doesn't exist is zeros to its coded length.
			if (cellLength < length) slot.fill(0, i * length + cellLength, (i + 1) * length);
			present.push(i);
		}
		row.decoding = true;
		const missing = wanted.filter((index) => row.have[index] !== true);
		this.#decoding = codec
			.reconstruct({
				k,
				n,
				length,
				data: slot.subarray(0, k * length),
				parity: slot.subarray(k * length, n * length),
				present,
				wanted: missing,
			})
			.then(
				() => {
					row.decoding = false;
					row.decoded = true;
					this.#pump();
				},
				(error) => {
					row.decoding = false;
					this.#fail(asDistroError(error));
				},
			);
	}

	#deliver(row: RowState, wanted: readonly number[]): boolean {
		const { shape } = this.#o;
		const cells: (Buffer | null)[] = new Array(shape.n).fill(null);
		for (const index of wanted) {
			cells[index] = this.#cell(row.index, index).subarray(0, shardCellLength(shape, index, row.index));
		}
		row.delivered = true;
		this.#nextRow = row.index + 1;
		this.#waitingSinceMs = this.#o.clock.monotonicMs();
		let released = false;
		let right = false;
		const release = () => {
			if (released) return;
			released = true;
			if (right) this.#released(row.index);
		};
		const wrong = this.#o.onRow({ index: row.index, cells, release });
		if (wrong < 0 || this.#over) {
			right = true;
			if (released) this.#released(row.index);
			return true;
		}
		row.delivered = false;
		this.#nextRow = row.index;
		this.#rows[row.index % this.#rows.length] = null;
		const source = this.#streams.find((stream) =>
			shape.k === 1 ? true : stream.source.shardIndex === wrong && row.have[wrong] === true,
		)?.source;
		if (this.#mode === 'decoding' || source === undefined) {
			this.#fail(new DistroError('corrupt', `row ${row.index} does not open although its shards are what was stored`));
			return false;
		}
		this.#exclude(source, new DistroError('corrupt', `cell ${row.index} does not open`));
		this.#begin();
		return false;
	}

	#released(index: number): void {
		this.#releasedRows.add(index);
		while (this.#releasedRows.delete(this.#firstHeldRow)) {
			this.#rows[this.#firstHeldRow % this.#rows.length] = null;
			this.#firstHeldRow++;
		}
		if (this.#over) return;
		const attempt = this.#attempt;
		for (const stream of this.#streams) {
			const held = stream.held;
			if (held.length === 0) continue;
			stream.held = [];
			for (const [i, chunk] of held.entries()) {
				if (stream.held.length > 0) {
					stream.held.push(...held.slice(i));
					break;
				}
				this.#take(stream, chunk);
				if (attempt !== this.#attempt || this.#over) return;
			}
			if (stream.held.length === 0 && stream.paused) {
				stream.paused = false;
				stream.get?.resume();
			}
		}
		this.#pump();
	}

	#shardFailed(stream: Stream, error: DistroError): void {
		this.#exclude(stream.source, error);
		this.#begin();
		this.#pump();
	}

	#exclude(source: GatherSource, error: DistroError): void {
		this.#bad.set(source.shardIndex, error);
		this.#o.onWorker?.(source.worker, { error });
		if (error.kind === 'not_found' || error.kind === 'corrupt') {
			const kind = error.kind === 'not_found' ? 'missing' : 'corrupt';
			const { shardIndex, shardId } = source;
			this.#o.onFinding({ shardIndex, shardId, kind, detail: error.message });
		}
	}

	#tooFew(): DistroError {
		const { shape, sources } = this.#o;
		const lost = [...this.#bad.values()].filter((error) => error.kind === 'not_found' || error.kind === 'corrupt');
		const away = sources.length - lost.length;
		// What is only away may come back; what is gone or wrong does not.
		const kind = away >= shape.k ? 'unavailable' : 'unrecoverable';
		const left = kind === 'unavailable' ? sources.length - this.#bad.size : away;
		const many = left === 0 ? 'none' : `only ${left}`;
		const shards = `${many} of this segment's ${shape.n} shard${shape.n === 1 ? '' : 's'}`;
		const needed = `${shape.k} ${shape.k === 1 ? 'is' : 'are'} needed`;
		// For whoever asked; addresses and what went wrong there are for the log.
		const why = [...this.#bad].map(([shardIndex, { message }]) => `shard ${shardIndex}: ${message}`).join('; ');
		return new DistroError(
			kind,
			kind === 'unavailable'
				? `${shards} can be read now and ${needed}: start the workers that are not ready (GET /cluster lists them)`
				: `${shards} can still be read and ${needed}: the others are lost or damaged`,
			{ retryAfterMs: 5_000, ...(why === '' ? {} : { cause: new Error(why) }) },
		);
	}

	#armWatchdog(): void {
		const everyMs = Math.max(5, this.#o.hedgeMs / 2);
		const armedAtMs = this.#o.clock.monotonicMs();
		this.#cancelWatchdog = this.#o.clock.schedule(everyMs, () => {
			// When this comes late the process itself was held up, and what the workers sent meanwhile is still unread.
			if (this.#o.clock.monotonicMs() - armedAtMs < 1.5 * everyMs) this.#hedge();
			if (!this.#over) this.#armWatchdog();
		});
	}

	/** Replaces the workers that keep the next row waiting while the others have sent theirs. */
	#hedge(): void {
		if (!this.#hasSpare || this.#nextRow > this.#o.lastRow || !this.#o.takes()) return;
		// All slots are with the consumer: it is its turn.
		if (this.#nextRow >= this.#firstHeldRow + this.#o.slots.length) return;
		const row = this.#rowState(this.#nextRow);
		if (row === null || row.decoding || row.decoded) return;
		const nowMs = this.#o.clock.monotonicMs();
		const expected = this.#streams.filter((s) => s.row <= row.index && s.lastRow >= row.index && !s.paused);
		const othersAtMs = row.count > 0 ? Math.max(row.lastAtMs, this.#waitingSinceMs) : this.#waitingSinceMs;
		const othersTookMs = row.count > 0 ? Math.max(0, row.lastAtMs - this.#waitingSinceMs) : 0;
		const laggedMs = nowMs - othersAtMs;
		const patienceMs = Math.max(this.#patience * this.#o.hedgeMs, 2 * othersTookMs);
		if (laggedMs < patienceMs) return;
		// Where nobody has sent the row yet, but bytes come, everything is slow: asking others would add to the load.
		const laggards = expected.filter((s) => row.count > 0 || nowMs - s.heardAtMs >= patienceMs);
		const replaced = laggards.filter(({ source }) => this.#o.mayHedge(source.worker));
		if (replaced.length === 0) return;
		for (const { source } of replaced) {
			this.#lags.set(source.shardIndex, (this.#lags.get(source.shardIndex) ?? 0) + 1);
			this.#o.onWorker?.(source.worker, { laggedMs });
		}
		this.#begin();
		this.#pump();
	}

	#stopStreams(reason: string): void {
		const streams = this.#streams;
		this.#streams = [];
		for (const stream of streams) stream.get?.abort(reason);
	}

	#fail(error: DistroError): void {
		if (this.#over) return;
		this.abort(error.message);
		this.#o.onFailed(error);
	}
}
