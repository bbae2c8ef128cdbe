/** What is said of keys, and the job that wraps data keys anew: over a whole object service in memory. */

import { beforeEach, describe, expect, test } from 'vitest';
import { parseMasterKeys } from '../core/crypto/keys.ts';
import type { ErrorKind } from '../core/errors.ts';
import type { VersionId } from '../core/ids.ts';
import { type MemoryCluster, memoryCluster } from '../test/support/memory-cluster.ts';
import { ClusterKeys } from './cluster-keys.ts';
import { rewrapJob } from './rewrap.ts';
import { atOnce } from './store.fixtures.ts';

const failing = (kind: ErrorKind, sentence: RegExp) =>
	expect.objectContaining({ kind, message: expect.stringMatching(sentence) });
let c: MemoryCluster;
let keys: ClusterKeys;

beforeEach(async () => {
	c = await memoryCluster({ workers: 6 });
	keys = new ClusterKeys({ store: c.store, keyring: c.deps.keyring, workers: c.workers });
});

const seen = () => c.store.sawKeys(c.workerIds, c.deps.keyring.record.revision);
const rewrap = (onFailed: (versionId: VersionId) => void = () => {}) => {
	const { store, keyring, clock } = c.deps;
	const job = rewrapJob({ store, keyring, clock, onFailed });
	const step = async () => {
		const lease = await store.acquireLease('rewrap', { holder: 'test', ttlMs: 60_000 });
		if (lease === null) throw new Error('nobody else has it');
		return job.step(new AbortController().signal, lease);
	};
	return { step, state: () => job.state?.() };
};

describe('what is said', () => {
	test('of one master key and one generation: both needed, whatever the volumes have', async () => {
		const view = await keys.view();
		expect(view.generations).toMatchObject([{ generation: 1, objects: 0, shards: 0, may_drop: false }]);
		expect(view.generations[0]?.because).toMatch(/newest/);
		expect(view.master_keys).toMatchObject([
			{ given: true, primary: true, needed_by_generations: [1], may_drop: false },
		]);
		expect(view.master_keys[0]?.needed_by_volumes).toHaveLength(6);
		await seen();
		expect((await keys.view()).master_keys[0]?.needed_by_volumes).toEqual([]);
		expect(JSON.stringify(view)).not.toMatch(/wrapped":|[0-9a-f]{64}/);
	});

	test('of a master key that went out of use: which volumes may need it still, then that it may go', async () => {
		await c.deps.keyring.useMaster(parseMasterKeys(`new:${'cd'.repeat(32)},old:${'ab'.repeat(32)}`));
		await c.store.sawKeys(c.workerIds.slice(1), c.deps.keyring.record.revision);
		const old = async () => (await keys.view()).master_keys.find(({ id }) => id === 'old');
		expect(await old()).toMatchObject({
			needed_by_generations: [],
			needed_by_volumes: ['worker-1'],
			may_drop: false,
			because: expect.stringMatching(/^worker-1 may need it/),
		});
		await seen();
		expect(await old()).toMatchObject({ may_drop: true, because: expect.stringMatching(/^nothing needs it/) });
		await c.deps.keyring.useMaster(parseMasterKeys(`new:${'cd'.repeat(32)}`));
		expect((await keys.view()).master_keys.map(({ id }) => id)).toEqual(['new']);
	});

	test('of a master key that only others were given', async () => {
		const other = await c.another();
		await other.deps.keyring.useMaster(parseMasterKeys(`new:${'cd'.repeat(32)},old:${'ab'.repeat(32)}`));
		expect((await keys.view()).master_keys).toMatchObject([
			{ primary: true, needed_by_generations: [] },
			{ id: 'new', given: false, primary: false, needed_by_generations: [1], may_drop: false },
		]);
	});

	test('of an old generation, reason by reason, until it is dropped', async () => {
		const stored = await c.upload(Buffer.alloc(300_000, 1));
		expect((await keys.rotate()).generations.map(({ generation }) => generation)).toEqual([1, 2]);
		await expect(keys.drop(1)).rejects.toEqual(
			failing(
				'conflict',
				/^generation 1 can't be dropped: the data keys of 1 object .*; the trailers of \d shards .*; the volume of worker-1, worker-2, worker-3, worker-4, worker-5 and 1 more was/,
			),
		);
		await seen();
		await rewrap().step();
		await expect(keys.drop(1)).rejects.toEqual(
			failing('conflict', /dropped: the trailers of \d shards have a data key/),
		);
		await c.store.deleteObject(stored.objectId, atOnce(c.deps.clock.nowMs()));
		await expect(keys.drop(1)).rejects.toEqual(failing('conflict', /dropped: uploads that began before, or shards/));
		for (const workerId of c.workerIds) {
			const queued = await c.store.deletions(workerId, 10);
			await c.store.deletionsDone(
				workerId,
				queued.map(({ shardId }) => shardId),
			);
		}
		expect((await keys.view()).generations[0]).toMatchObject({ objects: 0, shards: 0, may_drop: true });
		await expect(keys.drop(2)).rejects.toEqual(failing('conflict', /newest/));
		await expect(keys.drop(3)).rejects.toEqual(failing('not_found', /no generation 3/));
		expect((await keys.drop(1)).generations).toMatchObject([{ generation: 2 }]);
		await expect(keys.drop(1)).rejects.toEqual(failing('not_found', /no generation 1/));
	});
});

describe('data keys wrapped anew', () => {
	test('page by page, until all are; what is read meanwhile is what was stored', async () => {
		const stored = [];
		for (let at = 0; at < 5; at++) stored.push(await c.upload(Buffer.alloc(1_000, at)));
		const job = rewrap();
		await job.step();
		expect(job.state()).toMatchObject({ generation: 1, percent: 100, left_objects: 0 });
		await keys.rotate();
		expect(await job.step()).toBeLessThan(1_000);
		expect(await job.step()).toBeGreaterThan(1_000);
		expect(job.state()).toMatchObject({ generation: 2, rewrapped_objects: 5, percent: 100, left_objects: 0 });
		expect((await keys.view()).generations.map(({ objects }) => objects)).toEqual([0, 5]);
		for (const [at, info] of stored.entries()) expect(await c.download(info)).toEqual(Buffer.alloc(1_000, at));
	});

	test('what does not open is told once, and does not hold up the others', async () => {
		const [bad, good] = [await c.upload(Buffer.alloc(10)), await c.upload(Buffer.alloc(10))];
		const row = c.metadata.objects.get(bad.objectId);
		if (row === undefined) throw new Error('it was stored');
		row.row.wrappedKey[20] = (row.row.wrappedKey[20] as number) ^ 1;
		await keys.rotate();
		const failed: VersionId[] = [];
		const job = rewrap((versionId) => failed.push(versionId));
		for (let i = 0; i < 4; i++) await job.step();
		expect(failed).toEqual([row.row.versionId]);
		expect(job.state()).toMatchObject({ left_objects: 1, percent: 50, stuck: [{ version_id: row.row.versionId }] });
		expect(c.metadata.objects.get(good.objectId)?.row.keyGeneration).toBe(2);
	});

	test('by another orchestrator than the one that made the generation', async () => {
		await c.upload(Buffer.alloc(10));
		const other = await c.another();
		await other.deps.keyring.rotate();
		const job = rewrap();
		await job.step();
		await job.step();
		expect(job.state()).toMatchObject({ generation: 2, left_objects: 0 });
	});
});
