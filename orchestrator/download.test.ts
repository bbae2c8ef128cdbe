/** Downloads whole, against workers in memory: whatever ends one, its memory goes back, and not while it is still used. */

import { afterEach, expect, test, vi } from 'vitest';
import { reedSolomon } from '../core/codec/reed-solomon.ts';
import type { WorkerId } from '../core/ids.ts';
import { LARGE_CELL_BYTES } from '../core/limits.ts';
import type { ByteSink } from '../core/ports.ts';
import { seededRandom } from '../test/support/clock.ts';
import { memoryCluster } from '../test/support/memory-cluster.ts';

const random = seededRandom('download');
const NOWHERE: ByteSink = { write: () => true, drained: () => {} };

afterEach(() => {
	vi.restoreAllMocks();
});

test('memory is kept while a row is being decoded, though the reader has left', async () => {
	const cluster = await memoryCluster({ workers: 6 });
	const info = await cluster.upload(random.bytes(12 * LARGE_CELL_BYTES));
	const { workers } = await cluster.placed(info);
	cluster.transport.faultsOf(workers[0] as WorkerId).dead = true;
	let finish = () => {};
	const decoding = new Promise<void>((begun) => {
		vi.spyOn(reedSolomon, 'reconstruct').mockImplementation(() => {
			begun();
			return new Promise((resolve) => {
				finish = resolve;
			});
		});
	});
	const gone = new AbortController();
	const download = await cluster.objects.open(info.objectId);
	const reading = download.read({ offset: 0, length: info.sizeBytes, sink: NOWHERE, signal: gone.signal });
	const outcome = reading.then(
		() => 'read',
		(error) => error.kind,
	);
	await decoding;
	gone.abort();
	await expect.poll(() => cluster.transport.open).toBe(0);
	expect(cluster.pool.usedBytes).toBeGreaterThan(0);
	finish();
	expect(await outcome).toBe('canceled');
	expect(cluster.pool.usedBytes).toBe(0);
});

test('a sink that throws ends the read, and no worker is blamed for it', async () => {
	const cluster = await memoryCluster({ workers: 6 });
	const info = await cluster.upload(random.bytes(12 * LARGE_CELL_BYTES));
	const sink: ByteSink = {
		write: () => {
			throw new Error('no such header');
		},
		drained: () => {},
	};
	const download = await cluster.objects.open(info.objectId);
	const reading = download.read({ offset: 0, length: info.sizeBytes, sink, signal: new AbortController().signal });
	await expect(reading).rejects.toThrow('no such header');
	expect(cluster.workerIds.every((workerId) => cluster.workers.isGood(workerId))).toBe(true);
	expect(cluster.pool.usedBytes).toBe(0);
	expect(cluster.transport.open).toBe(0);
});
