/**
 * Cauchy Reed-Solomon by @ronomon/reed-solomon 6, on its thread pool.
 *
 * The library's sharp edges stay in this file: k ≤ 24, m ≤ 6, lengths in multiples of 8; an empty Buffer aborts the
 * process; it takes the first k flagged sources, and recomputes every shard that is not flagged as a source. So absent
 * parity behind the k-th source is flagged too when nobody wants it: it is not read, and the work is saved (several times
 * faster degraded reads).
 */

import { createRequire } from 'node:module';
import type * as Ronomon from '@ronomon/reed-solomon';
import { assert } from '../assert.ts';
import { CODEC_ALIGN_BYTES, CODEC_MAX_K, CODEC_MAX_M } from '../limits.ts';
import type { CodedRow, ErasureCodec } from './erasure-codec.ts';

/** Its main file is the addon itself, which Node loads without a warning only this way. */
const ronomon: typeof Ronomon = createRequire(import.meta.url)('@ronomon/reed-solomon');

const contexts = new Map<number, Ronomon.Context>();

function contextFor(k: number, m: number): Ronomon.Context {
	const key = k * (CODEC_MAX_M + 1) + m;
	let context = contexts.get(key);
	if (context === undefined) {
		context = ronomon.create(k, m);
		contexts.set(key, context);
	}
	return context;
}

function compute(row: CodedRow, flags: { sources: number; targets: number }): Promise<void> {
	const { k, n, length, data, parity } = row;
	const m = n - k;
	assert(k > 1 && k <= CODEC_MAX_K && m >= 1 && m <= CODEC_MAX_M, `no code has k ${k} and m ${m}`);
	assert(length > 0 && length % CODEC_ALIGN_BYTES === 0, `cells of ${length} bytes can't be coded`);
	assert(data.length === k * length && parity.length === m * length, 'buffers are k and m cells long');
	// The library would compute nonsense, or abort the process.
	assert(!overlap(data, parity), 'data and parity do not overlap');
	return new Promise((resolve, reject) => {
		ronomon.encode(
			contextFor(k, m),
			flags.sources,
			flags.targets,
			data,
			0,
			data.length,
			parity,
			0,
			parity.length,
			(error) => {
				if (error) reject(error);
				else resolve();
			},
		);
	});
}

function overlap(a: Buffer, b: Buffer): boolean {
	if (a.buffer !== b.buffer) return false;
	return a.byteOffset < b.byteOffset + b.length && b.byteOffset < a.byteOffset + a.length;
}

function flagsOf(shards: Iterable<number>): number {
	let flags = 0;
	for (const shard of shards) flags |= 1 << shard;
	return flags;
}

export const reedSolomon: ErasureCodec = {
	id: 'rs-ronomon-6',

	encode: (row) => {
		const data = (1 << row.k) - 1;
		return compute(row, { sources: data, targets: ((1 << row.n) - 1) & ~data });
	},

	reconstruct: async (row) => {
		const { k, n, present, wanted } = row;
		const missing = wanted.filter((shard) => !present.includes(shard));
		if (missing.length === 0) return;
		const sorted = present.toSorted((a, b) => a - b);
		assert(sorted.length >= k, `${sorted.length} cells of ${k} are not enough`);
		const lastUsed = sorted[k - 1] as number;
		const sources = new Set(sorted);
		for (let shard = Math.max(k, lastUsed + 1); shard < n; shard++) {
			if (!missing.includes(shard)) sources.add(shard);
		}
		await compute(row, { sources: flagsOf(sources), targets: flagsOf(missing) });
	},
};
