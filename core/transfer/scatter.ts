/**
 * Scatter: one segment's rows out to n workers at once. Upload, repair and the client share it.
 *
 * It codes each row, hashes every cell, and keeps n puts going side by side. A slow or failed worker never holds up the
 * rest: while the first row is still in memory another worker takes its shard over (with a new shard id); later it is
 * left out, as long as the quorum can still be met. It settles for the quorum only when stragglers pass their deadline,
 * and never acknowledges less.
 *
 * It doesn't choose workers, seal, or touch metadata: `spare` and `trailer` come from the caller.
 */

import { assert } from '../assert.ts';
import type { ErasureCodec } from '../codec/erasure-codec.ts';
import { codedLength, shardBytes, shardCellLength } from '../codec/layout.ts';
import { LEAF_BYTES, leafHash, rootOf } from '../crypto/digest.ts';
import { asDistroError, DistroError } from '../errors.ts';
import type { ShardId, WorkerId } from '../ids.ts';
import {
	PUT_ACCEPT_MS,
	PUT_DEADLINE_MS,
	PUT_REPLACEMENTS,
	PUT_STALL_MS,
	PUT_STRAGGLER_MS,
	SEGMENT_CELLS,
} from '../limits.ts';
import type { Receipt } from '../model/receipt.ts';
import type { Placement, SegmentShape } from '../model/segment.ts';
import type { Clock, ShardPut, ShardTransport, WorkerRef } from '../ports.ts';

export interface ScatterTarget {
	readonly worker: WorkerRef;
	readonly shardId: ShardId;
}

export interface ScatterOptions {
	readonly transport: ShardTransport;
	readonly clock: Clock;
	readonly codec: ErasureCodec;
	readonly k: number;
	readonly n: number;
	readonly cellBytes: number;
	/** The most data cells that will come. */
	readonly maxCells: number;
	/** Durable shards that `finish` needs at least. */
	readonly quorum: number;
	/** After this workers refuse to keep a shard of it; default: a put's own. */
	readonly deadlineMs?: number;
	/** n targets in order of shard index; null: nobody for this one, it is left out from the start. */
	readonly targets: readonly (ScatterTarget | null)[];
	/** Another worker for a shard, durably intended; null when there is none. */
	readonly spare: (shardIndex: number, failed: DistroError) => Promise<ScatterTarget | null>;
	/** Leaves of the row's data cells in object order, for the object's ETag. */
	readonly onDataLeaf?: (leaf: Buffer) => void;
	/** False when the receipt's signature is not that worker's. */
	readonly verifyReceipt: (receipt: Receipt) => boolean;
	/** Called for each worker that failed or straggled, for health. */
	readonly onWorkerFailed?: (workerId: WorkerId, error: DistroError) => void;
	/** The quorum can't be met any more: nothing follows, all buffers have been given back. */
	readonly onFailed: (error: DistroError) => void;
}

/** What the caller knows only at the end. `trailer` makes one shard's trailer. */
export interface ScatterEnd {
	readonly shape: SegmentShape;
	readonly trailer: (shard: { shardIndex: number; shardId: ShardId; leaves: Buffer; root: Buffer }) => Buffer;
}

export interface ScatterResult {
	readonly placements: readonly Placement[];
	/** 32 bytes for each of the n shards. */
	readonly roots: Buffer;
	/** Intended but not placed: to be deleted where they may be. */
	readonly abandoned: readonly { shardId: ShardId; workerId: WorkerId }[];
}

interface Row {
	readonly index: number;
	/** Cell of each shard, or null where the row has none for it. */
	readonly cells: readonly (Buffer | null)[];
	/** Shards that still need the bytes. */
	pending: number;
	readonly doneBy: boolean[];
	readonly sentAtMs: number;
	quorumAtMs: number | null;
	readonly release: () => void;
}

interface Ending {
	readonly end: ScatterEnd;
	readonly roots: Buffer;
	readonly startedAtMs: number;
	quorumAtMs: number | null;
}

interface Shard {
	readonly index: number;
	target: ScatterTarget | null;
	put: ShardPut | null;
	state: 'sending' | 'replacing' | 'durable' | 'out';
	accepted: boolean;
	openedAtMs: number;
	replacements: number;
	/** Counts puts, so that late events of a replaced one are ignored. */
	attempt: number;
}

export class Scatter {
	readonly #o: ScatterOptions;
	readonly #shards: Shard[];
	readonly #leaves: Buffer[];
	readonly #leafCounts: number[];
	/** Rows whose bytes are still held, oldest first. */
	readonly #rows: Row[] = [];
	#rowCount = 0;
	#releasedRows = 0;
	#coding = 0;
	readonly #abandoned: { shardId: ShardId; workerId: WorkerId }[] = [];
	#end: Ending | null = null;
	#resolve: ((result: ScatterResult) => void) | null = null;
	#reject: ((error: DistroError) => void) | null = null;
	#over = false;
	#cancelWatchdog: () => void = () => {};
	#lastFailure: DistroError | null = null;

	constructor(options: ScatterOptions) {
		this.#o = options;
		const { n, k, maxCells } = options;
		const maxRows = Math.ceil(maxCells / k);
		assert(options.targets.length === n && maxCells <= SEGMENT_CELLS, 'one target for each shard of one segment');
		this.#leaves = Array.from({ length: n }, () => Buffer.allocUnsafe(maxRows * LEAF_BYTES));
		this.#leafCounts = new Array(n).fill(0);
		this.#shards = options.targets.map((target, index) => ({
			index,
			target,
			put: null,
			state: target === null ? 'out' : 'sending',
			accepted: false,
			openedAtMs: 0,
			replacements: 0,
			attempt: 0,
		}));
		for (const shard of this.#shards) if (shard.state === 'sending') this.#open(shard);
		this.#armWatchdog();
	}

	/**
	 * The next row: `data` has room for k cells at stride C with the row's cells in place; `cells` of them are there, the
	 * last one `lastCellBytes` long. Only the segment's last row may be short. `parity` has room for n − k cells. Both
	 * are the scatter's until `release` is called. Rows go out in the order of the calls.
	 */
	async row(row: {
		data: Buffer;
		parity: Buffer;
		cells: number;
		lastCellBytes: number;
		release: () => void;
	}): Promise<void> {
		const { k, n, codec } = this.#o;
		const index = this.#rowCount++;
		const shape: SegmentShape = { ...this.#shapeOf(row.cells, row.lastCellBytes), codec: codec.id };
		const length = codedLength(shape, 0);
		const data = row.data.subarray(0, k * length);
		const filled = (row.cells - 1) * this.#o.cellBytes + row.lastCellBytes;
		this.#coding++;
		try {
			if (n > k && k > 1) {
				data.fill(0, filled);
				await codec.encode({ k, n, length, data, parity: row.parity.subarray(0, (n - k) * length) });
			}
		} catch (error) {
			this.#fail(asDistroError(error));
		}
		this.#coding--;
		if (this.#over) {
			row.release();
			return;
		}
		const cells: (Buffer | null)[] = [];
		for (let i = 0; i < n; i++) {
			if (k === 1) cells.push(data.subarray(0, row.lastCellBytes));
			else if (i >= row.cells && i < k) cells.push(null);
			else if (i < k) cells.push(data.subarray(i * length, i * length + shardCellLength(shape, i, 0)));
			else cells.push(row.parity.subarray((i - k) * length, (i - k + 1) * length));
		}
		this.#hash(cells);
		const held: Row = {
			index,
			cells,
			pending: 0,
			doneBy: new Array(n).fill(false),
			sentAtMs: this.#o.clock.monotonicMs(),
			quorumAtMs: null,
			release: row.release,
		};
		this.#rows.push(held);
		for (const shard of this.#shards) if (shard.state === 'sending') this.#send(shard, held);
		this.#releaseRows();
		if (this.#end !== null) throw new DistroError('internal', 'a row after the end');
	}

	/**
	 * All rows have been handed over (and their `row` calls have resolved). Resolves when at least the quorum is durable
	 * and the rest is durable too or has passed its deadline.
	 */
	finish(end: ScatterEnd): Promise<ScatterResult> {
		assert(this.#coding === 0 && this.#end === null, 'finish comes once, after the last row');
		if (this.#over) return Promise.reject(this.#lastFailure ?? new DistroError('canceled', 'the segment was given up'));
		const roots = Buffer.concat(this.#shards.map((shard) => rootOf(this.#leavesOf(shard.index))));
		return new Promise((resolve, reject) => {
			this.#resolve = resolve;
			this.#reject = reject;
			this.#end = { end, roots, startedAtMs: this.#o.clock.monotonicMs(), quorumAtMs: null };
			for (const shard of this.#shards) if (shard.state === 'sending') this.#sendTrailer(shard);
			this.#settle();
		});
	}

	/** Gives the segment up: every put is cancelled, every buffer given back. Idempotent. */
	abort(reason: string): void {
		this.#close(new DistroError('canceled', reason));
	}

	/** Everything that was ever named for this segment. */
	get intended(): readonly { shardId: ShardId; workerId: WorkerId }[] {
		const current = this.#shards.flatMap(({ target }) =>
			target === null ? [] : [{ shardId: target.shardId, workerId: target.worker.workerId }],
		);
		return [...current, ...this.#abandoned];
	}

	#shapeOf(cells: number, lastCellBytes: number): Omit<SegmentShape, 'codec'> {
		return { k: this.#o.k, n: this.#o.n, cellBytes: this.#o.cellBytes, cells, lastCellBytes };
	}

	#leavesOf(index: number): Buffer {
		return (this.#leaves[index] as Buffer).subarray(0, (this.#leafCounts[index] as number) * LEAF_BYTES);
	}

	#hash(cells: readonly (Buffer | null)[]): void {
		let first: Buffer | null = null;
		for (const [i, cell] of cells.entries()) {
			if (cell === null) continue;
			// With k = 1 every shard is the same bytes.
			const leaf: Buffer = this.#o.k === 1 && first !== null ? first : leafHash(cell);
			first ??= leaf;
			const count = this.#leafCounts[i] as number;
			leaf.copy(this.#leaves[i] as Buffer, count * LEAF_BYTES);
			this.#leafCounts[i] = count + 1;
			if (i < this.#o.k) this.#o.onDataLeaf?.(leaf);
		}
	}

	#open(shard: Shard): void {
		const target = shard.target as ScatterTarget;
		const attempt = ++shard.attempt;
		shard.accepted = false;
		shard.openedAtMs = this.#o.clock.monotonicMs();
		const current = () => shard.attempt === attempt && !this.#over;
		const maxRows = Math.ceil(this.#o.maxCells / this.#o.k);
		try {
			shard.put = this.#o.transport.put(
				target.worker,
				{
					shardId: target.shardId,
					cellBytes: this.#o.cellBytes,
					maxBytes: maxRows * this.#o.cellBytes,
					deadlineMs: this.#o.deadlineMs ?? PUT_DEADLINE_MS,
				},
				{
					accepted: () => {
						if (!current()) return;
						shard.accepted = true;
						this.#releaseRows();
					},
					receipt: (receipt) => {
						if (current()) this.#receipt(shard, receipt);
					},
					failed: (error) => {
						if (current()) this.#shardFailed(shard, error);
					},
				},
			);
		} catch (error) {
			this.#shardFailed(shard, asDistroError(error));
		}
	}

	#send(shard: Shard, row: Row): void {
		const cell = row.cells[shard.index] ?? null;
		if (cell === null) {
			row.doneBy[shard.index] = true;
			return;
		}
		row.pending++;
		const { attempt } = shard;
		(shard.put as ShardPut).write(cell, () => {
			row.pending--;
			// Of a put that was given up: the bytes are free, but the shard doesn't have them.
			if (shard.attempt === attempt) row.doneBy[shard.index] = true;
			this.#releaseRows();
		});
	}

	#sendTrailer(shard: Shard): void {
		const { end, roots } = this.#end as Ending;
		const { shardId } = shard.target as ScatterTarget;
		const root = roots.subarray(shard.index * LEAF_BYTES, (shard.index + 1) * LEAF_BYTES);
		(shard.put as ShardPut).finish(
			end.trailer({ shardIndex: shard.index, shardId, leaves: this.#leavesOf(shard.index), root }),
		);
	}

	/** Gives back the rows that nobody needs any more, oldest first. */
	#releaseRows(): void {
		for (;;) {
			const row = this.#rows[0];
			if (row === undefined || row.pending > 0) return;
			// The first rows stay until every worker has taken or refused its shard, so that another can take over.
			if (!this.#over && this.#releasedRows === 0 && this.#shards.some(mayNeedFirstRow)) return;
			this.#rows.shift();
			this.#releasedRows++;
			row.release();
		}
	}

	#receipt(shard: Shard, receipt: Receipt): void {
		const target = shard.target as ScatterTarget;
		const end = this.#end;
		const right =
			end !== null &&
			receipt.workerId === target.worker.workerId &&
			receipt.shardId === target.shardId &&
			receipt.cellsBytes === shardBytes(end.end.shape, shard.index) &&
			receipt.root.equals(end.roots.subarray(shard.index * LEAF_BYTES, (shard.index + 1) * LEAF_BYTES)) &&
			this.#o.verifyReceipt(receipt);
		if (!right) {
			this.#shardFailed(shard, new DistroError('corrupt', 'a receipt for something else'));
			return;
		}
		shard.state = 'durable';
		this.#settle();
	}

	#shardFailed(shard: Shard, error: DistroError): void {
		if (shard.state !== 'sending') return;
		const target = shard.target as ScatterTarget;
		this.#lastFailure = error;
		this.#o.onWorkerFailed?.(target.worker.workerId, error);
		this.#abandoned.push({ shardId: target.shardId, workerId: target.worker.workerId });
		shard.attempt++;
		shard.target = null;
		const canTakeOver = this.#releasedRows === 0 && shard.replacements < PUT_REPLACEMENTS;
		shard.state = canTakeOver ? 'replacing' : 'out';
		shard.put?.abort(error.message);
		shard.put = null;
		if (canTakeOver) this.#replace(shard, error);
		else this.#leftOut();
	}

	#replace(shard: Shard, error: DistroError): void {
		shard.replacements++;
		this.#o.spare(shard.index, error).then(
			(target) => {
				if (target !== null && this.#over) {
					this.#abandoned.push({ shardId: target.shardId, workerId: target.worker.workerId });
					return;
				}
				if (this.#over) return;
				if (target === null) {
					shard.state = 'out';
					this.#leftOut();
					return;
				}
				shard.target = target;
				shard.state = 'sending';
				this.#open(shard);
				if (shard.state !== 'sending') return;
				for (const row of this.#rows) {
					row.doneBy[shard.index] = false;
					this.#send(shard, row);
				}
				if (this.#end !== null) this.#sendTrailer(shard);
			},
			(failure) => {
				if (this.#over) return;
				this.#lastFailure = asDistroError(failure);
				shard.state = 'out';
				this.#leftOut();
			},
		);
	}

	#leftOut(): void {
		const possible = this.#shards.filter((shard) => shard.state !== 'out').length;
		if (possible < this.#o.quorum) {
			const failure = this.#lastFailure;
			const kind = failure?.kind === 'exhausted' ? 'exhausted' : 'unavailable';
			this.#fail(
				new DistroError(
					kind,
					`only ${possible} of ${this.#o.n} workers can keep a shard of this segment and ${this.#o.quorum} are needed` +
						(failure === null ? '' : ` (${failure.message})`),
					{ cause: failure, retryAfterMs: 5_000 },
				),
			);
			return;
		}
		this.#releaseRows();
		this.#settle();
	}

	#settle(): void {
		const end = this.#end;
		if (end === null || this.#over) return;
		const durable = this.#shards.filter((shard) => shard.state === 'durable').length;
		if (durable >= this.#o.quorum) end.quorumAtMs ??= this.#o.clock.monotonicMs();
		if (this.#shards.some((shard) => shard.state === 'sending' || shard.state === 'replacing')) return;
		if (durable < this.#o.quorum) {
			this.#leftOut();
			return;
		}
		const resolve = this.#resolve;
		const placements = this.#shards.flatMap(({ state, target, index }) =>
			state === 'durable' && target !== null
				? [{ shardIndex: index, workerId: target.worker.workerId, shardId: target.shardId }]
				: [],
		);
		const result: ScatterResult = { placements, roots: end.roots, abandoned: [...this.#abandoned] };
		this.#reject = null;
		this.#close(null);
		resolve?.(result);
	}

	#armWatchdog(): void {
		const armedAtMs = this.#o.clock.monotonicMs();
		this.#cancelWatchdog = this.#o.clock.schedule(PUT_ACCEPT_MS, () => {
			// When this comes late the process itself was held up, and what the workers answered meanwhile is still unread.
			if (this.#o.clock.monotonicMs() - armedAtMs < 1.5 * PUT_ACCEPT_MS) this.#cutStragglers();
			if (!this.#over) this.#armWatchdog();
		});
	}

	#cutStragglers(): void {
		const nowMs = this.#o.clock.monotonicMs();
		this.#cut('taking the shard', (shard) => {
			const waitedMs = nowMs - shard.openedAtMs;
			if (shard.accepted || waitedMs < PUT_ACCEPT_MS) return false;
			return waitedMs >= PUT_STALL_MS || this.#quorumHas((other) => other.accepted);
		});
		const row = this.#rows[0];
		if (row !== undefined && !this.#over) {
			const has = (shard: Shard) => row.doneBy[shard.index] === true;
			// A worker that failed meanwhile may have taken the quorum with it: then the late ones are needed.
			row.quorumAtMs = this.#quorumHas(has) ? (row.quorumAtMs ?? nowMs) : null;
			this.#cut('a row', (shard) => !has(shard) && isLate(nowMs, { ...row, startedAtMs: row.sentAtMs }, shard));
		}
		const end = this.#end;
		if (end === null || this.#over) return;
		this.#cut('its receipt', (shard) => {
			if (!isLate(nowMs, end, shard, 2 * PUT_STALL_MS)) return false;
			if (end.quorumAtMs !== null) shard.replacements = PUT_REPLACEMENTS;
			return true;
		});
		if (end.quorumAtMs === null || this.#over) return;
		for (const shard of this.#shards) {
			if (shard.state === 'replacing' && isLate(nowMs, end, shard)) shard.state = 'out';
		}
		this.#settle();
	}

	/** Gives up the shards on their way that are too late with something. */
	#cut(what: string, isTooLate: (shard: Shard) => boolean): void {
		for (const shard of this.#shards) {
			if (this.#over) return;
			if (shard.state !== 'sending' || !isTooLate(shard)) continue;
			this.#shardFailed(shard, new DistroError('timeout', `the worker is too late with ${what}`));
		}
	}

	#quorumHas(has: (shard: Shard) => boolean): boolean {
		let count = 0;
		for (const shard of this.#shards) {
			if (shard.state === 'durable' || (shard.state === 'sending' && has(shard))) count++;
		}
		return count >= this.#o.quorum;
	}

	#fail(error: DistroError): void {
		if (this.#over) return;
		const reject = this.#reject;
		this.#close(error);
		if (reject === null) this.#o.onFailed(error);
	}

	#close(error: DistroError | null): void {
		if (this.#over) return;
		this.#over = true;
		this.#lastFailure = error ?? this.#lastFailure;
		this.#cancelWatchdog();
		for (const shard of this.#shards) {
			if (shard.state !== 'durable') shard.put?.abort(error?.message ?? 'left out');
			shard.put = null;
		}
		this.#releaseRows();
		if (error !== null) this.#reject?.(error);
	}
}

function mayNeedFirstRow(shard: Shard): boolean {
	return shard.state === 'replacing' || (shard.state === 'sending' && !shard.accepted);
}

/** Behind the quorum by more than stragglers get, or by more than anybody gets. A replacement has its own time. */
function isLate(
	nowMs: number,
	since: { readonly startedAtMs: number; readonly quorumAtMs: number | null },
	shard: Shard,
	stallMs = PUT_STALL_MS,
): boolean {
	if (nowMs - Math.max(since.startedAtMs, shard.openedAtMs) >= stallMs) return true;
	if (since.quorumAtMs === null) return false;
	const graceMs = Math.max(PUT_STRAGGLER_MS, since.quorumAtMs - since.startedAtMs);
	return nowMs - Math.max(since.quorumAtMs, shard.openedAtMs) >= graceMs;
}
