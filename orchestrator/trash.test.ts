/** Deleting, undeleting and purging as the service and its jobs do it, on metadata and workers in memory. */

import { beforeEach, expect, test } from 'vitest';
import { seededRandom } from '../test/support/clock.ts';
import { type MemoryCluster, memoryCluster } from '../test/support/memory-cluster.ts';
import { deletionsJob, trashJob } from './jobs.ts';
import { ObjectService, type ObjectsDeps } from './objects.ts';
import { atOnce, NOW_MS } from './store.fixtures.ts';
import type { Lease } from './store.ts';

const DAY_MS = 86_400_000;
const random = seededRandom('trash');
let cluster: MemoryCluster;
let objects: ObjectService;
let deps: ObjectsDeps;

beforeEach(async () => {
	cluster = await memoryCluster({ workers: 6 });
	deps = { ...cluster.deps, trashMs: 7 * DAY_MS };
	objects = new ObjectService(deps);
});

const notFound = (message: RegExp) =>
	expect.objectContaining({ kind: 'not_found', message: expect.stringMatching(message) });
const lease = (name: string) => cluster.store.acquireLease(name, { holder: 'test', ttlMs: 60_000 }) as Promise<Lease>;
const signal = new AbortController().signal;

test('deleted, looked for, listed in the trash, and had back', async () => {
	const bytes = random.bytes(300_000);
	const info = await cluster.upload(bytes, { name: 'a letter' });
	const { objectId } = info;
	const { freedAtMs } = await objects.remove(objectId, 'key-1');
	expect(freedAtMs - cluster.deps.clock.nowMs()).toBeGreaterThan(7 * DAY_MS - 60_000);
	const where = notFound(
		new RegExp(`in the trash until ${new Date(freedAtMs).toISOString()}: POST /objects/${objectId}/undelete`),
	);
	await expect(objects.open(objectId)).rejects.toEqual(where);
	await expect(objects.info(objectId)).rejects.toEqual(where);
	await expect(objects.explain(objectId, { fromSegment: 0, limit: 1 })).rejects.toEqual(where);
	await expect(objects.remove(objectId, '')).rejects.toEqual(where);
	expect((await objects.list({ limit: 10, cursor: null })).objects).toEqual([]);
	const { objects: trashed, next } = await objects.trash({ limit: 10, cursor: null });
	expect([trashed, next]).toEqual([[{ ...info, deletedAtMs: freedAtMs - 7 * DAY_MS, freedAtMs }], null]);
	expect(await objects.undelete(objectId, 'key-2')).toEqual(info);
	// Its answer may have been lost.
	expect(await objects.undelete(objectId, 'key-2')).toEqual(info);
	expect((await cluster.download(info)).equals(bytes)).toBe(true);
	const entries = await cluster.store.deletionLog({ limit: 10, after: 0 });
	expect(entries.map(({ action, by }) => [action, by])).toEqual([
		['trashed', 'key-1'],
		['undeleted', 'key-2'],
	]);
});

test('what is gone, was never there or is not deleted', async () => {
	const { objectId } = await cluster.upload(random.bytes(10_000));
	await expect(objects.purge(objectId, '')).rejects.toEqual(notFound(/not in the trash/));
	await objects.remove(objectId, '');
	await objects.purge(objectId, '');
	await expect(objects.purge(objectId, '')).rejects.toEqual(notFound(/not in the trash/));
	await expect(objects.undelete(objectId, '')).rejects.toEqual(notFound(/^there is no object/));
	await expect(objects.open(objectId)).rejects.toEqual(notFound(/^there is no object/));
});

test('an upload that is asked for again after its object was deleted', async () => {
	const idempotency = { owner: '', key: 'k', fingerprint: 'f' };
	const bytes = random.bytes(10_000);
	const { objectId } = await cluster.upload(bytes, { idempotency });
	await objects.remove(objectId, '');
	await expect(cluster.upload(bytes, { idempotency })).rejects.toEqual(notFound(/in the trash until/));
	await objects.purge(objectId, '');
	await expect(cluster.upload(bytes, { idempotency })).rejects.toEqual(notFound(/^there is no object/));
});

test('the job purges what is due and nothing else, in steps, and tells the last hash of the log', async () => {
	const { store } = cluster;
	const kept = await cluster.upload(random.bytes(10_000));
	const due = [];
	for (let at = 0; at < 60; at++) {
		const { objectId } = await cluster.upload(random.bytes(100));
		const nowMs = cluster.deps.clock.nowMs();
		await store.deleteObject(objectId, { nowMs, purgeAtMs: nowMs + (at < 55 ? 1_000 : 2 * DAY_MS), by: '' });
		due.push(objectId);
	}
	const heads: number[] = [];
	let purged = 0;
	const job = trashJob({
		store,
		clock: cluster.deps.clock,
		onPurged: (count) => {
			purged += count;
		},
		onHead: ({ entries }) => heads.push(entries),
	});
	const held = await lease('trash');
	expect(await job.step(signal, held)).toBeGreaterThan(0);
	expect(await store.counts()).toMatchObject({ objects: 1, trashObjects: 60 });
	cluster.later(DAY_MS);
	const again = await lease('trash');
	// A batch may be cut short where objects are large: only a step that finds nothing is the last one.
	for (const count of [50, 5]) {
		const before = purged;
		expect(await job.step(signal, again)).toBe(0);
		expect(purged - before).toBe(count);
	}
	expect(await job.step(signal, again)).toBeGreaterThan(0);
	expect(await store.counts()).toMatchObject({ objects: 1, trashObjects: 5 });
	expect([purged, job.state?.()]).toEqual([55, { purged_objects: 55 }]);
	expect(heads).toEqual([60]);
	await expect(objects.undelete(due[0] as typeof kept.objectId, '')).rejects.toEqual(notFound(/^there is no object/));
	expect((await objects.info(kept.objectId)).objectId).toBe(kept.objectId);
});

test('shards of what was purged are deleted for good, others go to the workers’ trash', async () => {
	const { store, workers } = cluster;
	const info = await cluster.upload(random.bytes(300_000));
	const placed = (
		await store.segments((await store.object(info.objectId))?.versionId as never, { fromSegment: 0, limit: 9 })
	)
		.flatMap(({ placements }) => placements)
		.map(({ shardId }) => shardId);
	const abandoned = 'a'.repeat(32) as (typeof placed)[number];
	const uploadId = 'b'.repeat(32) as never;
	const shards = [{ shardId: abandoned, workerId: cluster.workerIds[0] as never }];
	await store.begin({ uploadId, objectId: info.objectId, shards, expiresAtMs: NOW_MS });
	await store.abort(uploadId, NOW_MS);
	await store.deleteObject(info.objectId, atOnce());
	const deleted: { shardId: string; forGood: boolean | undefined }[] = [];
	const job = deletionsJob({
		store,
		workers,
		transport: {
			delete: async (_, shardIds, { forGood }) => {
				for (const shardId of shardIds) deleted.push({ shardId, forGood });
			},
		},
		onDeleted: () => {},
	});
	cluster.beat();
	await job.step(signal, await lease('deletions'));
	const expected = [...placed.map((shardId) => ({ shardId, forGood: true })), { shardId: abandoned, forGood: false }];
	expect(deleted.sort(byId)).toEqual(expected.sort(byId));
	expect((await store.counts()).deletions).toBe(0);
});

function byId(a: { shardId: string }, b: { shardId: string }): number {
	return a.shardId < b.shardId ? -1 : 1;
}
