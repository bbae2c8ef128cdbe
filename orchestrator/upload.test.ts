/** Uploads whole, against workers in memory: what is stored reads back with any m workers gone, and no memory is kept. */

import { describe, expect, test } from 'vitest';
import { DistroError } from '../core/errors.ts';
import type { UploadId } from '../core/ids.ts';
import {
	INTENT_RENEW_AGAIN_MS,
	INTENT_RENEW_MS,
	INTENT_TTL_MS,
	LARGE_CELL_BYTES,
	SEGMENT_CELLS,
	TAG_BYTES,
} from '../core/limits.ts';
import type { Clock } from '../core/ports.ts';
import { realClock, seededRandom } from '../test/support/clock.ts';
import { type MemoryCluster, memoryCluster, PLAIN_UPLOAD, pour } from '../test/support/memory-cluster.ts';
import { ObjectService } from './objects.ts';
import type { ObjectInfo, Upload, UploadOptions } from './objects.types.ts';

const random = seededRandom('upload');
const PLAIN = LARGE_CELL_BYTES - TAG_BYTES;

/** Reads it back with as many shards gone as may be, the first ones, so that every cell of parity is needed. */
async function readWithoutSpares(cluster: MemoryCluster, info: ObjectInfo): Promise<Buffer> {
	const { n, k, workers } = await cluster.placed(info);
	const lost = workers.slice(0, n - k);
	for (const workerId of lost) cluster.transport.faultsOf(workerId).dead = true;
	const bytes = await cluster.download(info);
	for (const workerId of lost) cluster.transport.faultsOf(workerId).dead = false;
	return bytes;
}

async function begin(cluster: MemoryCluster, options: Partial<UploadOptions>): Promise<Upload> {
	const begun = await cluster.objects.beginUpload({ ...PLAIN_UPLOAD, ...options }, new AbortController().signal);
	if (!('upload' in begun)) throw new Error('no upload');
	return begun.upload;
}

describe('a row never reaches into the room of the parity', () => {
	test.each([3, 4, 5, 6, 7, 8, 9])('%i cells on twelve workers', async (cells) => {
		const cluster = await memoryCluster({ workers: 12 });
		const bytes = random.bytes(cells * PLAIN - 100);
		for (const sizeHintBytes of [bytes.length, null]) {
			const info = await cluster.upload(bytes, { sizeHintBytes });
			expect((await readWithoutSpares(cluster, info)).equals(bytes)).toBe(true);
		}
		await expect.poll(() => cluster.pool.usedBytes).toBe(0);
	});

	test('workers leave between the reservation and the first row', async () => {
		for (const gone of [1, 2, 3]) {
			for (const cells of [2, 3, 4, 5]) {
				const cluster = await memoryCluster({ workers: 6 });
				const bytes = random.bytes(cells * PLAIN - 100);
				const upload = await begin(cluster, { sizeHintBytes: bytes.length });
				for (let i = 0; i < gone; i++) cluster.leave(i);
				await pour(bytes, upload);
				upload.end();
				expect((await readWithoutSpares(cluster, await upload.result)).equals(bytes)).toBe(true);
			}
		}
	});

	test('workers join between the reservation and the first row', async () => {
		const cluster = await memoryCluster({ workers: 3 });
		const bytes = random.bytes(4 * PLAIN);
		const upload = await begin(cluster, {});
		for (let i = 0; i < 3; i++) await cluster.join();
		await pour(bytes, upload);
		upload.end();
		expect((await readWithoutSpares(cluster, await upload.result)).equals(bytes)).toBe(true);
	});
});

describe('because is what happened', () => {
	async function explained(cluster: MemoryCluster, info: ObjectInfo): Promise<{ code: string; because: string }[]> {
		const { segments } = await cluster.objects.explain(info.objectId, { fromSegment: 0, limit: 10 });
		return segments.map(({ n, k, because }) => ({ code: `${k}+${n - k}`, because }));
	}

	test('where workers have joined or left since the memory was reserved', async () => {
		for (const [before, after] of [
			[3, 6],
			[2, 6],
			[5, 4],
			[6, 4],
			[1, 6],
		] as const) {
			const cluster = await memoryCluster({ workers: before });
			const upload = await begin(cluster, {});
			for (let i = before; i < after; i++) await cluster.join();
			for (let i = after; i < before; i++) cluster.leave(i);
			const bytes = random.bytes(6 * PLAIN);
			await pour(bytes, upload);
			upload.end();
			const info = await upload.result;
			const [{ code, because } = { code: '', because: '' }] = await explained(cluster, info);
			expect(because.startsWith(`${code} because `), because).toBe(true);
			// Any two of six, and of four, may fail, whatever was reserved for fewer.
			expect(Number(code.split('+')[1]), because).toBeGreaterThanOrEqual(2);
			expect((await readWithoutSpares(cluster, info)).equals(bytes)).toBe(true);
		}
	});

	test('what a form announces is more than the file has', async () => {
		const cluster = await memoryCluster({ workers: 6 });
		const bytes = random.bytes(5 * PLAIN);
		const [early] = await explained(cluster, await cluster.upload(bytes, { sizeHintBytes: bytes.length + 200 }));
		expect(early?.because).toContain(`at most ${bytes.length + 200} bytes were announced`);
		const few = random.bytes(2 * PLAIN - 5);
		const [late] = await explained(cluster, await cluster.upload(few, { sizeHintBytes: few.length + 200 }));
		expect(late).toMatchObject({ code: '2+2', because: expect.stringContaining(`it has ${few.length} bytes`) });
	});
});

describe('the metadata store is away when an intent is to be renewed', () => {
	/** Renewals wait until they are told to come. */
	async function uploading() {
		const cluster = await memoryCluster({ workers: 6 });
		const renewals: (() => void)[] = [];
		let laterMs = 0;
		const clock: Clock = {
			nowMs: () => realClock.nowMs() + laterMs,
			monotonicMs: realClock.monotonicMs,
			schedule: (delayMs, callback) => {
				if (delayMs !== INTENT_RENEW_MS && delayMs !== INTENT_RENEW_AGAIN_MS)
					return realClock.schedule(delayMs, callback);
				renewals.push(callback);
				return () => {};
			},
		};
		cluster.store.renew = () => Promise.reject(new DistroError('unavailable', 'away'));
		const objects = new ObjectService({ ...cluster.deps, clock });
		const begun = await objects.beginUpload(PLAIN_UPLOAD, new AbortController().signal);
		if (!('upload' in begun)) throw new Error('no upload');
		const { upload } = begun;
		const bytes = random.bytes(20 * PLAIN);
		await pour(bytes.subarray(0, 16 * PLAIN), upload);
		const renew = async (passedMs: number) => {
			laterMs += passedMs;
			await expect.poll(() => renewals.length).toBeGreaterThan(0);
			renewals.shift()?.();
		};
		return { cluster, upload, bytes, renew };
	}

	test('the upload goes on while the intent lives', async () => {
		const { cluster, upload, bytes, renew } = await uploading();
		await renew(INTENT_RENEW_MS);
		await renew(INTENT_RENEW_AGAIN_MS);
		await pour(bytes.subarray(16 * PLAIN), upload);
		upload.end();
		expect((await cluster.download(await upload.result)).equals(bytes)).toBe(true);
	});

	test('and ends before the intent does', async () => {
		const { upload, renew } = await uploading();
		await renew(INTENT_RENEW_MS);
		await renew(INTENT_TTL_MS - 2 * INTENT_RENEW_MS + 1);
		await expect(upload.result).rejects.toMatchObject({ kind: 'unavailable' });
	});
});

test('the Idempotency-Key of an upload that nobody hears of any more is free when an intent would have expired', async () => {
	const cluster = await memoryCluster({ workers: 3 });
	const idempotency = { owner: '', key: 'once', fingerprint: 'same' };
	const upload = await begin(cluster, { idempotency });
	const claimAt = (nowMs: number) =>
		cluster.store.claimIdempotency({ ...idempotency, uploadId: 'other' as UploadId, expiresAtMs: nowMs + 1 }, nowMs);
	expect(await claimAt(Date.now())).toEqual({ state: 'running' });
	expect(await claimAt(Date.now() + INTENT_TTL_MS + 1)).toEqual({ state: 'claimed' });
	upload.abort('the test is over');
});

test('an object stays on the workers of its first segment, while they will do', async () => {
	const cluster = await memoryCluster({ workers: 12 });
	const bytes = random.bytes(SEGMENT_CELLS * (LARGE_CELL_BYTES - TAG_BYTES) * 2 + 1_000_000);
	const info = await cluster.upload(bytes);
	const { sets, spreads } = await cluster.store.redundancyRows();
	const [first, ...others] = sets.toSorted((a, b) => b.n - a.n).map(({ workers }) => workers);
	expect(sets.reduce((sum, { segments }) => sum + segments, 0)).toBe(3);
	for (const workers of others) for (const workerId of workers) expect(first).toContain(workerId);
	expect(spreads).toHaveLength(1);
	expect((await cluster.download(info)).equals(bytes)).toBe(true);
});

test('a process that was stopped for longer than its intent lasts sends nothing when it goes on', async () => {
	const cluster = await memoryCluster({ workers: 6 });
	let laterMs = 0;
	const clock: Clock = { ...realClock, nowMs: () => realClock.nowMs() + laterMs };
	const begin = cluster.store.begin.bind(cluster.store);
	cluster.store.begin = async (intent) => {
		await begin(intent);
		laterMs += INTENT_TTL_MS + 1;
	};
	const objects = new ObjectService({ ...cluster.deps, clock });
	const begun = await objects.beginUpload(PLAIN_UPLOAD, new AbortController().signal);
	if (!('upload' in begun)) throw new Error('no upload');
	await pour(random.bytes(PLAIN), begun.upload);
	begun.upload.end();
	await expect(begun.upload.result).rejects.toMatchObject({ kind: 'expired' });
	expect(cluster.transport.puts).toBe(0);
});
