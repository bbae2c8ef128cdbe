/**
 * The erasure code of one row, behind a port with a stored id: parity bytes are part of the stored format, so another
 * library, or another way of calling this one, is another codec.
 */

import { DistroError } from '../errors.ts';
import type { CodecId } from '../model/segment.ts';
import { reedSolomon } from './reed-solomon.ts';

export interface CodedRow {
	readonly k: number;
	readonly n: number;
	/** L: bytes of each cell in both buffers; a multiple of 8. */
	readonly length: number;
	/** k cells. */
	readonly data: Buffer;
	/** n − k cells. */
	readonly parity: Buffer;
}

export interface ErasureCodec {
	readonly id: CodecId;
	/** Computes the parity from the data, in place. */
	encode(row: CodedRow): Promise<void>;
	/** Computes the `wanted` cells from the `present` ones (shard indexes, at least k of them), in place. Others may change. */
	reconstruct(row: CodedRow & { present: readonly number[]; wanted: readonly number[] }): Promise<void>;
}

/** k = 1: every shard is the cells verbatim, so there is nothing to compute. */
const replicate: ErasureCodec = {
	id: 'replicate',
	encode: async () => {},
	reconstruct: async ({ wanted }) => {
		if (wanted.length > 0) throw new DistroError('internal', 'copies are not computed');
	},
};

export function codecFor(id: CodecId): ErasureCodec {
	return id === 'replicate' ? replicate : reedSolomon;
}
