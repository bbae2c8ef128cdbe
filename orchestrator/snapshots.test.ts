/** Snapshots of a cluster in memory: written as an object of the cluster's own, found again among the shards, and read. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { decodeTrailer } from '../core/codec/trailer.ts';
import { parseMasterKeys } from '../core/crypto/keys.ts';
import type { WorkerId } from '../core/ids.ts';
import { encodeKeysRecord } from '../core/model/keys-record.ts';
import type { OpenDataKey } from '../core/model/recover.ts';
import { seededRandom } from '../test/support/clock.ts';
import { type MemoryCluster, memoryCluster } from '../test/support/memory-cluster.ts';
import type { ApiKeyRow, ApiKeyStore } from './api-keys.ts';
import { ScanIndex } from './restore-index.ts';
import { collectKeys } from './restore-keys.ts';
import { findSnapshots, readSnapshot } from './restore-snapshot.ts';
import { outlived, type SnapshotDeps, snapshotJob, viewSnapshots, writeSnapshot } from './snapshots.ts';
import type { Lease, WholeObject } from './store.ts';

const HOUR_MS = 60 * 60_000;
const DAY_MS = 24 * HOUR_MS;
const random = seededRandom('snapshots');
const apiKey: ApiKeyRow = {
	keyId: '0123456789abcdef',
	secretHash: random.bytes(32),
	scope: 'admin',
	label: 'me',
	createdAtMs: 1,
};
const apiKeys: Pick<ApiKeyStore, 'apiKeys'> = { apiKeys: async () => [apiKey] };
const signal = new AbortController().signal;

let c: MemoryCluster;
let deps: SnapshotDeps;
let folder: string;
let index: ScanIndex;

beforeEach(async () => {
	c = await memoryCluster({ workers: 5 });
	deps = { ...c.deps, apiKeys: apiKeys as ApiKeyStore, periodMs: HOUR_MS, onWritten: () => {} };
	folder = mkdtempSync(join(tmpdir(), 'distro-snapshot-'));
	index = new ScanIndex(join(folder, 'index.db'));
});
afterEach(() => {
	index.close();
	rmSync(folder, { recursive: true });
});

/** What a scan of all workers would put into the index. */
function scan(wanted: (workerId: WorkerId) => boolean = () => true): void {
	index.together(() => {
		for (const workerId of c.workerIds.filter(wanted)) {
			for (const { trailer } of c.transport.shardsOf(workerId).values()) {
				index.addShard(decodeTrailer(trailer), { workerId, writtenAtMs: 0 });
			}
		}
	});
}

/** From the keys that volumes have. */
async function keys(master = 'ab'.repeat(32)): Promise<OpenDataKey> {
	const cluster = await c.store.cluster();
	if (cluster === null) throw new Error('no cluster');
	const { clusterId } = cluster;
	const transport = { readKeys: async () => encodeKeysRecord(cluster) };
	const worker = { workerId: c.workerIds[0] as WorkerId, address: '' };
	return (await collectKeys({ transport, master: parseMasterKeys(master), clusterId }, [worker])).openKey;
}

async function all(): Promise<readonly WholeObject[]> {
	return (await c.store.wholeObjects({ after: null, limit: 1_000 })).objects;
}

test('what is written is found again among the shards, and tells of everything', async () => {
	for (const size of [10, 70_000, 3 << 20]) await c.upload(random.bytes(size), { name: `of ${size}` });
	const gone = await c.upload(random.bytes(100_000));
	await c.store.deleteObject(gone.objectId, { nowMs: 5, purgeAtMs: 9, by: '' });
	const known = await all();
	c.beat();
	const { objectId, objects } = await writeSnapshot(deps, { copies: 5, signal });
	expect(objects).toBe(known.length);
	// Any one worker has all of it.
	scan((workerId) => workerId === c.workerIds[2]);
	const openKey = await keys();
	const [found] = findSnapshots(index, openKey);
	if (found === undefined) throw new Error('no snapshot was found');
	const rest = await readSnapshot({ ...c.deps, index, openKey }, found.versionId, signal);
	expect(rest).toMatchObject({ objects: known.length, apiKeys: [apiKey] });
	expect(rest.workers.map(({ workerId }) => workerId).sort()).toEqual([...c.workerIds].sort());
	const cluster = await c.store.cluster();
	if (cluster === null) throw new Error('no cluster');
	expect(rest.cluster).toMatchObject({ clusterId: c.deps.clusterId, keys: encodeKeysRecord(cluster) });
	for (const { object, segments, trash } of known) {
		expect(index.known(object.versionId)).toEqual({ object: { ...object, trash }, segments });
	}
	const [view] = await viewSnapshots(c.deps);
	expect(view).toMatchObject({ object_id: objectId, objects: known.length, shards: 5, shards_healthy: 5, copies: 5 });
});

test('nobody else can read, explain or delete it, nor make one', async () => {
	c.beat();
	const { objectId } = await writeSnapshot(deps, { copies: 3, signal });
	const id = objectId as never;
	for (const ask of [
		() => c.objects.info(id),
		() => c.objects.open(id),
		() => c.objects.remove(id, ''),
		() => c.objects.explain(id, { fromSegment: 0, limit: 1 }),
	]) {
		await expect(ask()).rejects.toMatchObject({ kind: 'not_found' });
	}
	expect((await c.objects.list({ limit: 10, cursor: null })).objects).toEqual([]);
	await c.upload(random.bytes(50_000), { name: '17', contentType: 'application/vnd.distro.snapshot' });
	scan();
	expect(findSnapshots(index, await keys())).toHaveLength(1);
	await expect(keys('cd'.repeat(32))).rejects.toMatchObject({ kind: 'denied' });
});

test('one that fails half-way leaves nothing that is taken for a snapshot', async () => {
	c.beat();
	const failing: SnapshotDeps = {
		...deps,
		store: new Proxy(c.store, {
			get: (target, name) => {
				if (name === 'deletionHead') return () => Promise.reject(new Error('the store is gone'));
				const value: unknown = Reflect.get(target, name);
				return typeof value === 'function' ? value.bind(target) : value;
			},
		}),
	};
	await expect(writeSnapshot(failing, { copies: 5, signal })).rejects.toThrow('the store is gone');
	scan();
	expect(findSnapshots(index, await keys())).toEqual([]);
	expect((await c.store.list({ limit: 1, after: null, kind: 'snapshot' })).objects).toEqual([]);
});

test('one that is not right is given up at once, and the one before is read', async () => {
	await c.upload(random.bytes(70_000));
	c.beat();
	await writeSnapshot(deps, { copies: 3, signal });
	const [good] = await all();
	if (good === undefined) throw new Error('no object');
	c.later(HOUR_MS);
	c.beat();
	// The same object twice, and then more than pipes between reading and decoding hold.
	const inline = Array.from({ length: 3_000 }, () => random.bytes(4_096));
	const many = inline.map((bytes) => ({ ...good, segments: [], object: { ...good.object, inline: bytes } }));
	const wrong = new Proxy(c.store, {
		get: (target, name) => {
			if (name === 'wholeObjects') return async () => ({ objects: many, next: null });
			const value: unknown = Reflect.get(target, name);
			return typeof value === 'function' ? value.bind(target) : value;
		},
	});
	await writeSnapshot({ ...deps, store: wrong }, { copies: 3, signal });
	scan();
	const openKey = await keys();
	const [newest, before] = findSnapshots(index, openKey).map(({ versionId }) => versionId);
	if (newest === undefined || before === undefined) throw new Error('no two snapshots were found');
	await expect(readSnapshot({ ...c.deps, index, openKey }, newest, signal)).rejects.toThrow('UNIQUE');
	expect(c.deps.pool.usedBytes).toBe(0);
	index.forgetKnown();
	expect(await readSnapshot({ ...c.deps, index, openKey }, before, signal)).toMatchObject({ objects: 1 });
});

test('as many copies as there are workers that take shards, and fewer where there is no room', async () => {
	c.leave(4);
	c.beat();
	const job = snapshotJob(deps);
	await job.step(signal, {} as Lease, true);
	expect((await viewSnapshots(c.deps))[0]).toMatchObject({ copies: 3 });
	for (const index of [3, 2]) c.leave(index);
	c.beat();
	await job.step(signal, {} as Lease, true);
	expect((await viewSnapshots(c.deps)).map(({ copies, shards }) => [copies, shards])).toContainEqual([2, 2]);
});

describe('the job', () => {
	test('writes one when its time has come since the last, or when it is asked', async () => {
		const job = snapshotJob(deps);
		const count = async () => (await c.store.list({ limit: 100, after: null, kind: 'snapshot' })).objects.length;
		const step = async (asked = false) => {
			c.beat();
			const waitMs = await job.step(signal, {} as Lease, asked);
			expect(waitMs).toBeGreaterThan(0);
			return count();
		};
		expect(await step()).toBe(0);
		c.later(HOUR_MS);
		expect([await step(), await step(), await step(true)]).toEqual([1, 1, 2]);
		c.later(HOUR_MS - 60_000);
		expect(await step()).toBe(2);
		c.later(60_000);
		expect(await step()).toBe(3);
		for (let hours = 0; hours < 30; hours++) {
			c.later(HOUR_MS);
			await step();
		}
		expect(await count()).toBeLessThanOrEqual(24 + 2);
		expect(await count()).toBeGreaterThanOrEqual(24);
		// For good, and not by the trash.
		expect((await c.store.trash({ limit: 10, after: null })).objects).toEqual([]);
	});

	test('with a period of 0 only when it is asked', async () => {
		const job = snapshotJob({ ...deps, periodMs: 0 });
		c.later(100 * DAY_MS);
		c.beat();
		expect(await job.step(signal, {} as Lease)).toBeGreaterThan(0);
		expect((await c.store.list({ limit: 1, after: null, kind: 'snapshot' })).objects).toEqual([]);
	});
});

test('the newest 24 are kept, and the last of each of 7 days', () => {
	const nowMs = 1_000 * DAY_MS + 12 * HOUR_MS;
	const hourly = Array.from({ length: 24 * 20 }, (_, hours) => ({ createdAtMs: nowMs - hours * HOUR_MS }));
	const gone = new Set(outlived(hourly, nowMs));
	const kept = hourly.filter((snapshot) => !gone.has(snapshot));
	expect(kept.slice(0, 24)).toEqual(hourly.slice(0, 24));
	const days = kept.slice(24).map(({ createdAtMs }) => Math.floor(createdAtMs / DAY_MS));
	expect(days).toEqual([998, 997, 996, 995, 994, 993]);
	expect(outlived(hourly.slice(0, 3), nowMs + 900 * DAY_MS)).toEqual([]);
});
