/** The shard service above a volume: what ends a put that never ends by itself. */

import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { newSigningKey } from '../core/crypto/sign.ts';
import type { DistroError } from '../core/errors.ts';
import { newId, type ShardId, type WorkerId } from '../core/ids.ts';
import { SMALL_CELL_BYTES } from '../core/limits.ts';
import { ArenaPool } from '../platform/memory-pool.ts';
import { realClock, seededRandom } from '../test/support/clock.ts';
import { shardHandlers } from './service.ts';
import { openDiskStore } from './store-disk.ts';

const random = seededRandom('service');

test('a put that passes its deadline gives its memory, its room and its file back', async () => {
	const dataDir = mkdtempSync(join(tmpdir(), 'distro-service-'));
	const workerId = newId<WorkerId>(random);
	const store = await openDiskStore({ dataDir, workerId, clock: realClock, reserveBytes: 0 });
	const pool = new ArenaPool(4 * 1024 * 1024, { clock: realClock });
	const handlers = shardHandlers({
		workerId,
		store,
		pool,
		clock: realClock,
		receiptKey: newSigningKey(),
		authorize: () => {},
		onBytes: () => {},
	});
	const error = await new Promise<DistroError>((failed) => {
		const request = { shardId: newId<ShardId>(random), cellBytes: SMALL_CELL_BYTES, maxBytes: 1000, deadlineMs: 100 };
		const shard = handlers.put(request, {
			accepted: () => {
				expect(pool.usedBytes).toBeGreaterThan(0);
				shard.bytes(Buffer.alloc(10));
			},
			resume: () => {},
			failed,
		});
	});
	expect(error.kind).toBe('expired');
	expect(pool.usedBytes).toBe(0);
	await expect.poll(() => readdirSync(join(dataDir, 'tmp'))).toEqual([]);
	await store.close();
	rmSync(dataDir, { recursive: true, force: true });
});
