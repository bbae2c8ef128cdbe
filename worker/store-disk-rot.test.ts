/** A disk that rots. */

import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { encodeTrailer } from '../core/codec/trailer.ts';
import { leafHash, rootOf } from '../core/crypto/digest.ts';
import { newId, type ShardId, type WorkerId } from '../core/ids.ts';
import { SMALL_CELL_BYTES } from '../core/limits.ts';
import { realClock, seededRandom } from '../test/support/clock.ts';
import { type DiskShardStore, type FileCalls, openDiskStore } from './store-disk.ts';

const random = seededRandom('disk faults');
const workerId = newId<WorkerId>(random);
const CELL = random.bytes(1000);
let dataDir = '';

beforeEach(() => {
	dataDir = fs.mkdtempSync(join(tmpdir(), 'distro-disk-'));
});
afterEach(() => {
	fs.rmSync(dataDir, { recursive: true, force: true });
});

function open(files: Partial<FileCalls> = {}): Promise<DiskShardStore> {
	return openDiskStore({ dataDir, workerId, clock: realClock, reserveBytes: 0, files: { ...fs, ...files } });
}

function trailerOf(shardId: ShardId): Buffer {
	const leaves = leafHash(CELL);
	return encodeTrailer({
		description: {
			codec: 'replicate',
			k: 1,
			n: 2,
			cellBytes: SMALL_CELL_BYTES,
			cells: 1,
			lastCellBytes: CELL.length,
			clusterId: newId(random),
			versionId: newId(random),
			segment: 0,
			sealId: newId(random),
			encodingId: newId(random),
			shardIndex: 0,
			shardId,
		},
		root: rootOf(leaves),
		leaves,
		endRecord: Buffer.alloc(25),
		recovery: Buffer.alloc(0),
	});
}

async function put(store: DiskShardStore, shardId: ShardId): Promise<() => Promise<void>> {
	const writer = await store.create({ shardId, maxBytes: CELL.length, deadlineMs: 60_000 });
	await new Promise<void>((resolve, reject) => writer.write(CELL, (error) => (error ? reject(error) : resolve())));
	return () => writer.commit(trailerOf(shardId));
}

test('a sector that can not be read is a corrupt shard', async () => {
	const store = await open({
		read: ((...args: unknown[]) => {
			const done = args.at(-1) as (error: Error) => void;
			done(Object.assign(new Error('i/o error'), { code: 'EIO' }));
		}) as never,
	});
	const shardId = newId<ShardId>(random);
	await (await put(store, shardId))();
	const reader = await store.open(shardId);
	const error = await new Promise((resolve) => reader.read(0, Buffer.alloc(10), resolve));
	expect(error).toMatchObject({ kind: 'corrupt' });
	reader.close();
	await store.close();
});
