/** Golden numbers of the layout: where every cell, row and trailer of some segments lies. */

import { expect, test } from 'vitest';
import {
	cellPlace,
	checkShape,
	codedLength,
	locate,
	objectSegments,
	plainBytes,
	rows,
	segmentPlainBytes,
	shardBytes,
	shardCellLength,
	trailerOffset,
} from '../../core/codec/layout.ts';
import { CELL_SIZES } from '../../core/limits.ts';
import type { SegmentShape } from '../../core/model/segment.ts';
import { golden } from './golden.ts';

const SMALL = CELL_SIZES[0];
const LARGE = CELL_SIZES[1];

function shape(k: number, n: number, size: { cellBytes: number; cells: number; lastCellBytes: number }): SegmentShape {
	return { codec: k === 1 ? 'replicate' : 'rs-ronomon-6', k, n, ...size };
}

const shapes = [
	shape(1, 1, { cellBytes: LARGE, cells: 1, lastCellBytes: 16 }),
	shape(1, 3, { cellBytes: SMALL, cells: 1, lastCellBytes: 65_552 }),
	shape(1, 2, { cellBytes: SMALL, cells: 3, lastCellBytes: 17 }),
	shape(2, 3, { cellBytes: SMALL, cells: 2, lastCellBytes: SMALL }),
	shape(2, 4, { cellBytes: SMALL, cells: 3, lastCellBytes: 17 }),
	shape(4, 6, { cellBytes: LARGE, cells: 5, lastCellBytes: 30_001 }),
	shape(4, 6, { cellBytes: LARGE, cells: 253, lastCellBytes: 30_000 }),
	shape(8, 12, { cellBytes: LARGE, cells: 256, lastCellBytes: LARGE }),
	shape(24, 30, { cellBytes: LARGE, cells: 100, lastCellBytes: LARGE - 1 }),
];

test('layout', () => {
	expect(SMALL).toBe(69_632);
	expect(LARGE).toBe(266_240);
	golden('layout', {
		segments: shapes.map((s) => {
			checkShape(s);
			const lastRow = rows(s) - 1;
			return {
				shape: { ...s },
				rows: rows(s),
				plainBytes: plainBytes(s),
				lastCell: { ...cellPlace(s, s.cells - 1) },
				lastRowCodedLength: codedLength(s, lastRow),
				lastRowLengths: Array.from({ length: s.n }, (_, shard) => shardCellLength(s, shard, lastRow)),
				shardBytes: Array.from({ length: s.n }, (_, shard) => shardBytes(s, shard)),
				trailerOffsets: Array.from({ length: s.n }, (_, shard) => trailerOffset(shardBytes(s, shard))),
				lastByte: { ...locate(s, { offset: Math.max(0, plainBytes(s) - 1), length: 1 }) },
			};
		}),
		objects: [SMALL, LARGE].map((cellBytes) => ({
			cellBytes,
			segmentPlainBytes: segmentPlainBytes(cellBytes),
			segments: [0, 1, segmentPlainBytes(cellBytes), segmentPlainBytes(cellBytes) + 1, 3_000_000_000].map(
				(sizeBytes) => ({
					sizeBytes,
					count: objectSegments(sizeBytes, cellBytes),
				}),
			),
		})),
	});
});
