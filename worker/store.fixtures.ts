/** Made-up shards for tests of a worker: real cells, leaves and trailers, repeatable from a seed. */

import { encodeTrailer, type Trailer } from '../core/codec/trailer.ts';
import { leafHash, rootOf } from '../core/crypto/digest.ts';
import { type ClusterId, type EncodingId, newId, type SealId, type ShardId, type VersionId } from '../core/ids.ts';
import { PUT_DEADLINE_MS, SMALL_CELL_BYTES } from '../core/limits.ts';
import type { Random } from '../core/ports.ts';
import { ArenaPool } from '../platform/memory-pool.ts';
import { realClock } from '../test/support/clock.ts';
import type { ShardStore } from './store.ts';

export interface MadeShard {
	readonly shardId: ShardId;
	readonly cells: Buffer;
	readonly parts: Trailer;
	readonly trailer: Buffer;
}

/** One copy of a segment of `cells` small cells. */
export function makeShard(
	random: Random,
	shape: { cells?: number; lastCellBytes?: number; shardId?: ShardId } = {},
): MadeShard {
	const { cells = 1, lastCellBytes = 1_000, shardId = newId<ShardId>(random) } = shape;
	const bytes = random.bytes((cells - 1) * SMALL_CELL_BYTES + lastCellBytes);
	const leaves = Buffer.concat(
		Array.from({ length: cells }, (_, cell) =>
			leafHash(bytes.subarray(cell * SMALL_CELL_BYTES, (cell + 1) * SMALL_CELL_BYTES)),
		),
	);
	const parts: Trailer = {
		description: {
			codec: 'replicate',
			k: 1,
			n: 3,
			cellBytes: SMALL_CELL_BYTES,
			cells,
			lastCellBytes,
			clusterId: newId<ClusterId>(random),
			versionId: newId<VersionId>(random),
			segment: 0,
			sealId: newId<SealId>(random),
			encodingId: newId<EncodingId>(random),
			shardIndex: 0,
			shardId,
		},
		root: rootOf(leaves),
		leaves,
		endRecord: random.bytes(25),
		recovery: random.bytes(97),
	};
	return { shardId, cells: bytes, parts, trailer: encodeTrailer(parts) };
}

/** Page-aligned, as the service's buffers are. */
const arena = new ArenaPool(32 * 1024 * 1024, { clock: realClock });

/** As the service puts a shard: what fails is aborted. */
export async function putShard(
	store: ShardStore,
	shard: MadeShard,
	options: { deadlineMs?: number; pieceBytes?: number; beforeCommit?: () => void } = {},
): Promise<void> {
	const { deadlineMs = PUT_DEADLINE_MS, pieceBytes = 512 * 1024 } = options;
	const { shardId, cells, trailer } = shard;
	const writer = await store.create({ shardId, maxBytes: cells.length, deadlineMs });
	const lease = await arena.acquire([pieceBytes], { timeoutMs: 10_000 });
	try {
		for (let at = 0; at < cells.length; at += pieceBytes) {
			const count = Math.min(pieceBytes, cells.length - at);
			const piece = (lease.slots[0] as Buffer).subarray(0, count);
			cells.copy(piece, 0, at, at + count);
			await new Promise<void>((resolve, reject) => {
				writer.write(piece, (error) => (error === null ? resolve() : reject(error)));
			});
			// The view is the caller's again: what it does with it must not matter.
			piece.fill(0xdd);
		}
		options.beforeCommit?.();
		await writer.commit(trailer);
	} catch (error) {
		await writer.abort();
		throw error;
	} finally {
		lease.release();
	}
}

export async function readCells(
	store: ShardStore,
	shardId: ShardId,
	range: { offset: number; length: number },
): Promise<Buffer> {
	const reader = await store.open(shardId);
	try {
		const into = Buffer.alloc(range.length);
		await new Promise<void>((resolve, reject) => {
			reader.read(range.offset, into, (error) => (error === null ? resolve() : reject(error)));
		});
		return into;
	} finally {
		reader.close();
	}
}
