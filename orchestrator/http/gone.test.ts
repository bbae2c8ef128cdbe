/** Clients that have left before anybody listened: nothing is begun for them. */

import { EventEmitter } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { expect, test } from 'vitest';
import { LARGE_CELL_BYTES } from '../../core/limits.ts';
import { seededRandom } from '../../test/support/clock.ts';
import { memoryCluster, PLAIN_UPLOAD } from '../../test/support/memory-cluster.ts';
import { sendObject } from './download.ts';

test('a reader that left while the object was looked up leaves no memory behind', async () => {
	const cluster = await memoryCluster({ workers: 6 });
	const info = await cluster.upload(seededRandom('gone').bytes(12 * LARGE_CELL_BYTES));
	const download = await cluster.objects.open(info.objectId);
	const response = Object.assign(new EventEmitter(), {
		destroyed: true,
		writableLength: 0,
		socket: null,
		writeHead: () => response,
		// As node answers once a response is destroyed.
		write: () => false,
		end: () => response,
		destroy: () => response,
	});
	const exchange = {
		request: { method: 'GET', headers: {} } as IncomingMessage,
		response: response as unknown as ServerResponse,
	};
	const sending = sendObject(exchange, { download, attachment: false, onBroken: () => {} });
	await expect(sending).rejects.toMatchObject({ kind: 'canceled' });
	expect(cluster.pool.usedBytes).toBe(0);
	expect(cluster.transport.open).toBe(0);
});

test('a writer that left before memory was found for it gets none', async () => {
	const cluster = await memoryCluster({ workers: 6 });
	const gone = AbortSignal.abort();
	await expect(cluster.objects.beginUpload(PLAIN_UPLOAD, gone)).rejects.toMatchObject({ kind: 'canceled' });
	expect(cluster.pool.usedBytes).toBe(0);
});
