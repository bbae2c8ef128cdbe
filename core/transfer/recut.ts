/**
 * Recut: the cells of one segment out of rows of one code and into rows of another, in their order. Encoding anew is
 * gather → recut → scatter.
 *
 * A row of the new code needs cells of several old ones, or the other way round, so cells are copied into row slots of its
 * own; what has no slot yet waits in the old row, which is held until all of it is taken. It knows nothing of workers.
 */

import { assert } from '../assert.ts';
import { cellLength, rowCells } from '../codec/layout.ts';
import type { SegmentShape } from '../model/segment.ts';
import type { GatheredRow } from './gather.ts';

/** As Scatter takes it. */
export interface RecutRow {
	readonly data: Buffer;
	readonly parity: Buffer;
	readonly cells: number;
	readonly lastCellBytes: number;
	readonly release: () => void;
}

export interface RecutOptions {
	readonly from: SegmentShape;
	readonly to: SegmentShape;
	/** Each with room for n cells of the new code; one cell for copies. */
	readonly slots: readonly Buffer[];
	/** One at a time, in order. */
	readonly send: (row: RecutRow) => Promise<void>;
	/** `takes` is true again. */
	readonly onTakes: () => void;
	/** All cells went out, and the last `send` has resolved. */
	readonly onEnd: () => void;
	readonly onFailed: (error: unknown) => void;
}

export class Recut {
	readonly #o: RecutOptions;
	readonly #free: Buffer[];
	#slot: Buffer | null = null;
	#slotCells = 0;
	/** Of which some cells have no slot yet. */
	#held: GatheredRow | null = null;
	#nextCell = 0;
	#sent: Promise<void> = Promise.resolve();
	#over = false;

	constructor(options: RecutOptions) {
		this.#o = options;
		this.#free = [...options.slots];
	}

	/** False: no row before `onTakes`. */
	get takes(): boolean {
		return this.#held === null;
	}

	/** Rows in their order, all their data cells there. */
	row(row: GatheredRow): void {
		assert(this.#held === null, 'a row while another is held');
		this.#held = row;
		this.#take();
	}

	/** Sends nothing more. The slots are free when each row that was sent has been released. */
	abort(): void {
		this.#over = true;
		this.#held?.release();
		this.#held = null;
	}

	#take(): void {
		const { from, to } = this.#o;
		const row = this.#held;
		if (row === null) return;
		const end = row.index * from.k + rowCells(from, row.index);
		while (this.#nextCell < end) {
			this.#slot ??= this.#free.pop() ?? null;
			if (this.#slot === null) return;
			const cell = row.cells[this.#nextCell - row.index * from.k] as Buffer;
			cell.copy(this.#slot, this.#slotCells * to.cellBytes);
			this.#slotCells++;
			this.#nextCell++;
			if (this.#slotCells === to.k || this.#nextCell === to.cells) this.#emit();
		}
		this.#held = null;
		row.release();
	}

	#emit(): void {
		const { to, send, onEnd, onFailed } = this.#o;
		const slot = this.#slot as Buffer;
		const cells = this.#slotCells;
		this.#slot = null;
		this.#slotCells = 0;
		const lastCellBytes = cellLength(to, this.#nextCell - 1);
		const isLast = this.#nextCell === to.cells;
		const dataBytes = to.k * to.cellBytes;
		const release = () => {
			this.#free.push(slot);
			if (this.#over || this.#held === null) return;
			this.#take();
			if (this.#held === null) this.#o.onTakes();
		};
		const row = { data: slot.subarray(0, dataBytes), parity: slot.subarray(dataBytes), cells, lastCellBytes, release };
		this.#sent = this.#sent.then(async () => {
			if (this.#over) return;
			await send(row);
			if (isLast && !this.#over) onEnd();
		});
		this.#sent.catch(onFailed);
	}
}
