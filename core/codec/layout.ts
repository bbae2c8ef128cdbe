/**
 * The layout of bytes: object → segments → stripes of k cells → shards, as pure functions of a segment's shape.
 *
 *     data cell i of a segment → shard i mod k, row i div k     (systematic, row-major)
 *
 * One sealed chunk is one cell, so a range inside a cell needs one worker and no decoding. Every cell is C bytes long but
 * the segment's last; a row is coded at L, its longest cell rounded up to the codec's alignment, so only the last row
 * differs. See docs/format.md.
 */

import { DistroError } from '../errors.ts';
import {
	CELL_SIZES,
	CODEC_ALIGN_BYTES,
	CODEC_MAX_K,
	CODEC_MAX_M,
	SEGMENT_CELLS,
	TAG_BYTES,
	TRAILER_ALIGN_BYTES,
} from '../limits.ts';
import type { SegmentShape } from '../model/segment.ts';

/** Where a data cell lies. */
export function cellPlace(shape: SegmentShape, cell: number): { shardIndex: number; row: number } {
	return { shardIndex: cell % shape.k, row: Math.floor(cell / shape.k) };
}

/** The data cell at a place, or -1 where there is none. With k = 1 every shard has every cell. */
export function cellAt(shape: SegmentShape, shardIndex: number, row: number): number {
	if (shape.k === 1) return row < shape.cells ? row : -1;
	if (shardIndex >= shape.k) return -1;
	const cell = row * shape.k + shardIndex;
	return cell < shape.cells ? cell : -1;
}

/** Bytes of a data cell, tag included. */
export function cellLength(shape: SegmentShape, cell: number): number {
	return cell === shape.cells - 1 ? shape.lastCellBytes : shape.cellBytes;
}

export function rows(shape: SegmentShape): number {
	return Math.ceil(shape.cells / shape.k);
}

/** Rows in which a shard has a cell. */
export function shardRows(shape: SegmentShape, shardIndex: number): number {
	return shardIndex < shape.k ? Math.ceil((shape.cells - shardIndex) / shape.k) : rows(shape);
}

/** How many data cells a row has. */
export function rowCells(shape: SegmentShape, row: number): number {
	return Math.max(0, Math.min(shape.k, shape.cells - row * shape.k));
}

/** L: bytes at which a row is coded. */
export function codedLength(shape: SegmentShape, row: number): number {
	if (rowCells(shape, row) > 1) return shape.cellBytes;
	return alignUp(cellLength(shape, row * shape.k), CODEC_ALIGN_BYTES);
}

/** Bytes of a shard's cell in a row: data at its true length, parity at L, 0 where there is none. */
export function shardCellLength(shape: SegmentShape, shardIndex: number, row: number): number {
	if (row < 0 || row >= rows(shape)) return 0;
	if (shape.k > 1 && shardIndex >= shape.k) return codedLength(shape, row);
	const cell = cellAt(shape, shardIndex, row);
	return cell < 0 ? 0 : cellLength(shape, cell);
}

/** Bytes of all cells of a shard. */
export function shardBytes(shape: SegmentShape, shardIndex: number): number {
	const last = shardRows(shape, shardIndex) - 1;
	return shardOffset(shape, last) + shardCellLength(shape, shardIndex, last);
}

/** Where a row's cell begins in a shard. */
export function shardOffset(shape: SegmentShape, row: number): number {
	return row * shape.cellBytes;
}

/** Where the trailer of a shard begins. */
export function trailerOffset(cellsBytes: number): number {
	return alignUp(cellsBytes, TRAILER_ALIGN_BYTES);
}

/** All data cells of a segment, tags included. */
export function sealedBytes({ cells, cellBytes, lastCellBytes }: SegmentShape): number {
	return (cells - 1) * cellBytes + lastCellBytes;
}

/** Plaintext bytes of a segment. */
export function plainBytes(shape: SegmentShape): number {
	return (shape.cells - 1) * (shape.cellBytes - TAG_BYTES) + shape.lastCellBytes - TAG_BYTES;
}

/** Plaintext bytes of a full segment. */
export function segmentPlainBytes(cellBytes: number): number {
	return SEGMENT_CELLS * (cellBytes - TAG_BYTES);
}

/** Segments of an object; an empty one has one. */
export function objectSegments(sizeBytes: number, cellBytes: number): number {
	return Math.max(1, Math.ceil(sizeBytes / segmentPlainBytes(cellBytes)));
}

/** The cells that hold a non-empty plaintext range inside a segment, and how much of the first to skip. */
export function locate(
	shape: SegmentShape,
	range: { offset: number; length: number },
): { firstCell: number; lastCell: number; skip: number } {
	const perCell = shape.cellBytes - TAG_BYTES;
	const firstCell = Math.floor(range.offset / perCell);
	const lastCell = Math.floor((range.offset + Math.max(1, range.length) - 1) / perCell);
	return { firstCell, lastCell, skip: range.offset - firstCell * perCell };
}

/** Throws `corrupt` for a shape that no segment can have. */
export function checkShape(shape: SegmentShape): void {
	const { k, n, cells, cellBytes, lastCellBytes, codec } = shape;
	const integers = [k, n, cells, cellBytes, lastCellBytes].every(Number.isSafeInteger);
	const right =
		integers &&
		(CELL_SIZES as readonly number[]).includes(cellBytes) &&
		cells >= 1 &&
		cells <= SEGMENT_CELLS &&
		k >= 1 &&
		k <= Math.min(CODEC_MAX_K, cells) &&
		n >= k &&
		n - k <= CODEC_MAX_M &&
		lastCellBytes >= TAG_BYTES &&
		lastCellBytes <= cellBytes &&
		(codec === 'replicate') === (k === 1) &&
		(k === 1 || n > k);
	if (!right) throw new DistroError('corrupt', `no segment has the shape ${JSON.stringify(shape)}`);
}

function alignUp(bytes: number, alignment: number): number {
	return Math.ceil(bytes / alignment) * alignment;
}
