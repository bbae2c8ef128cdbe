/** From every code to every other one: each cell arrives, whole, in its order, and no slot is lost or used twice. */

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { cellLength, rowCells, rows } from '../codec/layout.ts';
import type { SegmentShape } from '../model/segment.ts';
import { Recut, type RecutRow } from './recut.ts';

const C = 64;

function shapeOf(k: number, m: number, size: { cells: number; lastCellBytes: number }): SegmentShape {
	return { codec: k === 1 ? 'replicate' : 'rs-ronomon-6', k, n: k + m, cellBytes: C, ...size };
}

const contentOf = (cell: number, length: number) => Buffer.alloc(length, (cell * 7 + 1) & 0xff);

/** What was sent, cell by cell. Rows are given back late, in an order that `late` decides. */
async function recut(from: SegmentShape, to: SegmentShape, o: { slots: number; late: readonly number[] }) {
	const cells: Buffer[] = [];
	const out: RecutRow[] = [];
	const released = new Set<number>();
	let [sent, mostOut, turn] = [0, 0, 0];
	let resume = () => {};
	const ended = new Promise<void>((resolve, reject) => {
		const it: Recut = new Recut({
			from,
			to,
			slots: Array.from({ length: o.slots }, () => Buffer.alloc((to.k === 1 ? 1 : to.n) * C, 0xee)),
			send: async (row) => {
				for (let at = 0; at < row.cells; at++) {
					const length = at === row.cells - 1 ? row.lastCellBytes : C;
					cells.push(Buffer.from(row.data.subarray(at * C, at * C + length)));
				}
				expect(row.cells).toBe(rowCells(to, sent++));
				out.push(row);
				mostOut = Math.max(mostOut, out.length);
				await null;
				const give = () => out.splice((o.late[turn++ % o.late.length] as number) % out.length, 1)[0]?.release();
				if (out.length === o.slots || sent === rows(to)) queueMicrotask(give);
			},
			onTakes: () => resume(),
			onEnd: resolve,
			onFailed: reject,
		});
		let next = 0;
		resume = () => {
			while (it.takes && next < rows(from)) {
				const index = next++;
				const row = Array.from({ length: rowCells(from, index) }, (_, shard) => {
					const cell = index * from.k + shard;
					return contentOf(cell, cellLength(from, cell));
				});
				it.row({ index, cells: row, release: () => released.add(index) });
			}
		};
		resume();
	});
	await ended;
	return { cells, released, mostOut };
}

test('any code to any other', async () => {
	const code = fc.record({ k: fc.integer({ min: 1, max: 9 }), m: fc.integer({ min: 1, max: 4 }) });
	const property = fc.asyncProperty(
		code,
		code,
		fc.integer({ min: 1, max: 60 }),
		fc.integer({ min: 16, max: C }),
		fc.integer({ min: 1, max: 3 }),
		fc.array(fc.nat(5), { minLength: 1, maxLength: 5 }),
		async (old, fresh, cells, lastCellBytes, slots, late) => {
			const size = { cells, lastCellBytes };
			const from = shapeOf(Math.min(old.k, cells), old.m, size);
			const to = shapeOf(Math.min(fresh.k, cells), fresh.m, size);
			const result = await recut(from, to, { slots, late });
			expect(result.cells).toEqual(Array.from({ length: cells }, (_, at) => contentOf(at, cellLength(from, at))));
			expect(result.released.size).toBe(rows(from));
			expect(result.mostOut).toBeLessThanOrEqual(slots);
		},
	);
	await fc.assert(property, { seed: 5, numRuns: 400 });
});

test('given up: it sends nothing more and holds no row', async () => {
	const size = { cells: 8, lastCellBytes: C };
	let sent = 0;
	let isReleased = false;
	const it = new Recut({
		from: shapeOf(4, 2, size),
		to: shapeOf(1, 1, size),
		slots: [Buffer.alloc(C)],
		send: async () => {
			sent++;
		},
		onTakes: () => {},
		onEnd: () => {
			throw new Error('it ended');
		},
		onFailed: () => {},
	});
	const cells = [0, 1, 2, 3].map((cell) => contentOf(cell, C));
	it.row({
		index: 0,
		cells,
		release: () => {
			isReleased = true;
		},
	});
	expect(it.takes).toBe(false);
	it.abort();
	await null;
	expect([sent, isReleased, it.takes]).toEqual([0, true, true]);
});
