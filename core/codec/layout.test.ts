/** The layout's promises as properties over every shape: cells and places are one to one, and lengths add up. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CELL_SIZES, CODEC_MAX_K, CODEC_MAX_M, SEGMENT_CELLS, TAG_BYTES, TRAILER_ALIGN_BYTES } from '../limits.ts';
import type { SegmentShape } from '../model/segment.ts';
import {
	cellAt,
	cellLength,
	cellPlace,
	checkShape,
	codedLength,
	locate,
	objectSegments,
	plainBytes,
	rowCells,
	rows,
	segmentPlainBytes,
	shardBytes,
	shardCellLength,
	shardOffset,
	shardRows,
	trailerOffset,
} from './layout.ts';

const SEED = { seed: 20_240_601, numRuns: 300 };

const anyShape: fc.Arbitrary<SegmentShape> = fc
	.record({
		cellBytes: fc.constantFrom(...CELL_SIZES),
		cells: fc.integer({ min: 1, max: SEGMENT_CELLS }),
		wantedK: fc.integer({ min: 1, max: CODEC_MAX_K }),
		m: fc.integer({ min: 1, max: CODEC_MAX_M }),
		short: fc.nat(),
	})
	.map(({ cellBytes, cells, wantedK, m, short }) => {
		const k = Math.min(wantedK, cells);
		return {
			codec: k === 1 ? 'replicate' : 'rs-ronomon-6',
			k,
			n: k + m,
			cellBytes,
			cells,
			lastCellBytes: cellBytes - (short % (cellBytes - TAG_BYTES + 1)),
		};
	});

function shape(change: Partial<SegmentShape> = {}): SegmentShape {
	return { codec: 'rs-ronomon-6', k: 4, n: 6, cellBytes: 69_632, cells: 10, lastCellBytes: 100, ...change };
}

describe('places', () => {
	test('every cell has one place, and the place has that cell', () => {
		fc.assert(
			fc.property(anyShape, (s) => {
				checkShape(s);
				for (let cell = 0; cell < s.cells; cell++) {
					const { shardIndex, row } = cellPlace(s, cell);
					expect(shardIndex).toBeLessThan(s.k);
					expect(row).toBeLessThan(shardRows(s, shardIndex));
					expect(cellAt(s, shardIndex, row)).toBe(cell);
				}
			}),
			SEED,
		);
	});

	test('the rows of the data shards hold all cells, once', () => {
		fc.assert(
			fc.property(anyShape, (s) => {
				let inShards = 0;
				for (let shard = 0; shard < s.k; shard++) {
					expect(shardRows(s, shard)).toBeGreaterThan(0);
					inShards += shardRows(s, shard);
				}
				let inRows = 0;
				for (let row = 0; row < rows(s); row++) inRows += rowCells(s, row);
				expect(inShards).toBe(s.cells);
				expect(inRows).toBe(s.cells);
				expect(rowCells(s, rows(s))).toBe(0);
			}),
			SEED,
		);
	});

	test('copies have every cell in every shard', () => {
		const copies = shape({ codec: 'replicate', k: 1, n: 3, cells: 3 });
		for (let shard = 0; shard < 3; shard++) {
			expect([0, 1, 2, 3].map((row) => cellAt(copies, shard, row))).toEqual([0, 1, 2, -1]);
			expect([0, 1, 2, 3].map((row) => shardCellLength(copies, shard, row))).toEqual([69_632, 69_632, 100, 0]);
			expect(shardBytes(copies, shard)).toBe(2 * 69_632 + 100);
		}
	});

	test('parity shards and holes have no data cell', () => {
		expect(cellAt(shape(), 4, 0)).toBe(-1);
		expect(cellAt(shape(), 2, 2)).toBe(-1);
		expect(shardCellLength(shape(), 2, 2)).toBe(0);
	});
});

describe('lengths', () => {
	test('data keep their true length, parity has L, and a shard is the sum of its cells', () => {
		fc.assert(
			fc.property(anyShape, (s) => {
				for (let shard = 0; shard < s.n; shard++) {
					let sum = 0;
					for (let row = 0; row < rows(s); row++) {
						const bytes = shardCellLength(s, shard, row);
						const cell = cellAt(s, shard, row);
						if (cell >= 0) expect(bytes).toBe(cellLength(s, cell));
						else expect(bytes).toBe(shard < s.k ? 0 : codedLength(s, row));
						if (bytes > 0) expect(shardOffset(s, row)).toBe(sum);
						sum += bytes;
					}
					expect(shardBytes(s, shard)).toBe(sum);
				}
			}),
			SEED,
		);
	});

	test('L covers the longest cell of the row, is a multiple of 8 and at most 7 bytes longer', () => {
		fc.assert(
			fc.property(anyShape, (s) => {
				for (let row = 0; row < rows(s); row++) {
					let longest = 0;
					for (let i = 0; i < rowCells(s, row); i++) longest = Math.max(longest, cellLength(s, row * s.k + i));
					const coded = codedLength(s, row);
					expect(coded % 8).toBe(0);
					expect(coded - longest).toBeGreaterThanOrEqual(0);
					expect(coded - longest).toBeLessThan(8);
				}
			}),
			SEED,
		);
	});

	test('plaintext is what the cells hold without their tags', () => {
		fc.assert(
			fc.property(anyShape, (s) => {
				let sum = 0;
				for (let cell = 0; cell < s.cells; cell++) sum += cellLength(s, cell) - TAG_BYTES;
				expect(plainBytes(s)).toBe(sum);
				expect(plainBytes(s)).toBeLessThanOrEqual(segmentPlainBytes(s.cellBytes));
			}),
			SEED,
		);
	});

	test('segments of an object at each edge', () => {
		for (const cellBytes of CELL_SIZES) {
			const full = segmentPlainBytes(cellBytes);
			expect(full).toBe(256 * (cellBytes - 16));
			expect([0, 1, full - 1, full, full + 1, 2 * full, 2 * full + 1].map((s) => objectSegments(s, cellBytes))).toEqual(
				[1, 1, 1, 1, 2, 2, 3],
			);
		}
	});

	test('trailers begin at the next multiple of 4 KiB', () => {
		expect([16, 4095, 4096, 4097].map(trailerOffset)).toEqual([4096, 4096, 4096, 8192]);
		fc.assert(
			fc.property(anyShape, (s) => {
				const bytes = shardBytes(s, s.n - 1);
				expect(trailerOffset(bytes) % TRAILER_ALIGN_BYTES).toBe(0);
				expect(trailerOffset(bytes) - bytes).toBeLessThan(TRAILER_ALIGN_BYTES);
				expect(trailerOffset(bytes)).toBeGreaterThanOrEqual(bytes);
			}),
			SEED,
		);
	});
});

test('a range is located by the cells that hold its first and last byte', () => {
	fc.assert(
		fc.property(anyShape, fc.nat(), fc.nat(), (s, a, b) => {
			const size = plainBytes(s);
			fc.pre(size > 0);
			const offset = a % size;
			const length = 1 + (b % (size - offset));
			const perCell = s.cellBytes - TAG_BYTES;
			const { firstCell, lastCell, skip } = locate(s, { offset, length });
			expect(firstCell * perCell + skip).toBe(offset);
			expect(skip).toBeLessThan(cellLength(s, firstCell) - TAG_BYTES);
			expect(lastCell).toBeLessThan(s.cells);
			expect(lastCell * perCell).toBeLessThan(offset + length);
			expect(lastCell * perCell + cellLength(s, lastCell) - TAG_BYTES).toBeGreaterThanOrEqual(offset + length);
		}),
		SEED,
	);
});

describe('shapes that no segment can have', () => {
	const wrong: [string, Partial<SegmentShape>][] = [
		['k over 24', { k: 25, n: 27, cells: 100 }],
		['m over 6', { n: 11 }],
		['k over the cells', { k: 11, n: 13 }],
		['no k', { k: 0 }],
		['n under k', { n: 3 }],
		['coded without parity', { n: 4 }],
		['coded copies', { k: 1, n: 3 }],
		['copies with k = 4', { codec: 'replicate' }],
		['no cells', { cells: 0 }],
		['too many cells', { cells: 257 }],
		['a cell length that is none', { cellBytes: 4096 }],
		['a last cell shorter than its tag', { lastCellBytes: 15 }],
		['a last cell longer than C', { lastCellBytes: 69_633 }],
		['a fraction', { cells: 9.5 }],
		['not a number', { lastCellBytes: Number.NaN }],
	];
	test.each(wrong)('%s', (_what, change) => {
		expect(() => checkShape(shape())).not.toThrow();
		expect(() => checkShape(shape(change))).toThrow(expect.objectContaining({ kind: 'corrupt' }));
	});
});
