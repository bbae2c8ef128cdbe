/** Reads one shard from the disk as scrubbing does: every cell against its leaf, the leaves against the root. */

import { shardCellLength, shardOffset, shardRows } from '../core/codec/layout.ts';
import { decodeTrailer, type Trailer, trailerOffset } from '../core/codec/trailer.ts';
import { LEAF_BYTES, leafHash, rootOf } from '../core/crypto/digest.ts';
import { asDistroError } from '../core/errors.ts';
import type { ShardId } from '../core/ids.ts';
import type { ShardStore } from './store.ts';

/** A detail is a sentence for people: so many runs of cells are named. */
const MAX_RUNS = 10;

export interface Verdict {
	/** `gone`: there is no such shard. `unknown`: a newer release wrote it. */
	readonly outcome: 'ok' | 'corrupt' | 'gone' | 'unknown';
	/** What is corrupt, for people. */
	readonly detail: string;
	/** Of the file, as far as it was read. */
	readonly bytes: number;
}

export interface VerifyOptions {
	/** Page-aligned, at least LARGE_CELL_BYTES. */
	readonly buffer: Buffer;
	/** Awaited before each cell is read: whoever verifies may have to wait. What it throws ends the reading. */
	readonly beforeCell: (bytes: number) => Promise<void>;
}

/** Rejects when nothing can be said of the shard: `unavailable` (the volume fails or is offline), or what `beforeCell` threw. */
export async function verifyShard(store: ShardStore, shardId: ShardId, options: VerifyOptions): Promise<Verdict> {
	let bytes = 0;
	try {
		const encoded = await store.trailer(shardId);
		bytes += encoded.length;
		const trailer = decodeTrailer(encoded);
		const { description, leaves, root } = trailer;
		if (description.shardId !== shardId) return { outcome: 'corrupt', detail: 'it is another shard', bytes };
		if (!rootOf(leaves).equals(root))
			return { outcome: 'corrupt', detail: 'its root is not that of its leaves', bytes };
		const wrong = await wrongCells(store, trailer, options, (count) => {
			bytes += count;
		});
		if (wrong.length === 0) return { outcome: 'ok', detail: '', bytes };
		return { outcome: 'corrupt', detail: `cells ${runs(wrong)} of ${leaves.length / LEAF_BYTES}`, bytes };
	} catch (thrown) {
		const error = asDistroError(thrown);
		if (error.kind === 'not_found') return { outcome: 'gone', detail: '', bytes };
		if (error.kind === 'unsupported') return { outcome: 'unknown', detail: error.message, bytes };
		if (error.kind === 'corrupt') return { outcome: 'corrupt', detail: error.message, bytes };
		throw error;
	}
}

async function wrongCells(
	store: ShardStore,
	{ description, leaves }: Trailer,
	{ buffer, beforeCell }: VerifyOptions,
	read: (bytes: number) => void,
): Promise<number[]> {
	const { shardId, shardIndex } = description;
	const wrong: number[] = [];
	const reader = await store.open(shardId, { direct: true });
	try {
		for (let row = 0; row < shardRows(description, shardIndex); row++) {
			const length = shardCellLength(description, shardIndex, row);
			// Behind the last cell come zeros up to the trailer.
			const into = buffer.subarray(0, trailerOffset(length));
			await beforeCell(into.length);
			const error = await new Promise<Error | null>((resolve) => {
				reader.read(shardOffset(description, row), into, resolve);
			});
			if (error !== null && asDistroError(error).kind !== 'corrupt') throw error;
			read(into.length);
			const leaf = leaves.subarray(row * LEAF_BYTES, (row + 1) * LEAF_BYTES);
			if (error !== null || !leafHash(into.subarray(0, length)).equals(leaf)) wrong.push(row);
		}
		return wrong;
	} finally {
		reader.close();
	}
}

/** 0, 3–5, 9 */
function runs(rows: readonly number[]): string {
	const found: { first: number; last: number }[] = [];
	for (const row of rows) {
		const run = found.at(-1);
		if (run !== undefined && run.last === row - 1) run.last = row;
		else found.push({ first: row, last: row });
	}
	const named = found.slice(0, MAX_RUNS).map(({ first, last }) => (first === last ? `${first}` : `${first}–${last}`));
	return named.join(', ') + (found.length > MAX_RUNS ? ' and others' : '');
}
