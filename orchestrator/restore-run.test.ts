/** A restore in memory: shards of one cluster, rows into a fresh store; stopped at each of its calls and run again. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { decodeTrailer } from '../core/codec/trailer.ts';
import { parseMasterKeys } from '../core/crypto/keys.ts';
import type { ShardId, WorkerId } from '../core/ids.ts';
import { encodeKeysRecord } from '../core/model/keys-record.ts';
import type { OpenDataKey } from '../core/model/recover.ts';
import type { WorkerRef } from '../core/ports.ts';
import { seededRandom } from '../test/support/clock.ts';
import { type MemoryCluster, memoryCluster } from '../test/support/memory-cluster.ts';
import { newerShard } from '../test/support/newer.ts';
import { ScanIndex } from './restore-index.ts';
import { collectKeys } from './restore-keys.ts';
import { markRestore, refuseHalfRestored } from './restore-mark.ts';
import { restoreObjects, type Told } from './restore-run.ts';
import { type BadShard, scanWorkers } from './restore-scan.ts';
import type { MetadataStore, WholeObject } from './store.ts';
import { MemoryMetadata, MemoryMetadataStore } from './store-memory.ts';

const random = seededRandom('restore');
const signal = new AbortController().signal;
const NOW_MS = 2_000_000_000_000;

let c: MemoryCluster;
let folder: string;
let openKey: OpenDataKey;
let told: Told[];

beforeEach(async () => {
	c = await memoryCluster({ workers: 6 });
	folder = mkdtempSync(join(tmpdir(), 'distro-restore-'));
	told = [];
	const cluster = await c.store.cluster();
	if (cluster === null) throw new Error('no cluster');
	const { clusterId } = cluster;
	const transport = { readKeys: async () => encodeKeysRecord(cluster) };
	const worker = { workerId: c.workerIds[0] as WorkerId, address: '' };
	({ openKey } = await collectKeys({ transport, master: parseMasterKeys('ab'.repeat(32)), clusterId }, [worker]));
});
afterEach(() => rmSync(folder, { recursive: true }));

async function whole(store: MetadataStore): Promise<readonly WholeObject[]> {
	return (await store.wholeObjects({ after: null, limit: 1_000 })).objects;
}

/** Scans all workers and restores what they have. `known`: as a snapshot of that time has it. */
async function restore(
	target: MetadataStore | null,
	o: { known?: readonly WholeObject[]; beganAtMs?: number; verify?: boolean; writtenAtMs?: number } = {},
) {
	const index = new ScanIndex(join(folder, 'index.db'));
	told = [];
	try {
		index.together(() => {
			for (const workerId of c.workerIds) {
				for (const { trailer } of c.transport.shardsOf(workerId).values()) {
					index.addShard(decodeTrailer(trailer), { workerId, writtenAtMs: o.writtenAtMs ?? 0 });
				}
			}
			for (const { object, segments, trash } of o.known ?? []) {
				index.addKnown({ ...object, trash });
				for (const segment of segments) index.addKnownSegment(object.versionId, { is: 'segment', segment });
			}
		});
		c.beat();
		const snapshotBeganAtMs = o.known === undefined ? null : (o.beganAtMs ?? NOW_MS);
		return await restoreObjects(
			{
				...c.deps,
				index,
				openKey,
				snapshotBeganAtMs,
				verify: o.verify ?? false,
				target,
				trashMs: 1_000,
				onTold: (one) => told.push(one),
				onProgress: () => {},
			},
			signal,
		);
	} finally {
		index.close();
	}
}

const byId = (a: WholeObject, b: WholeObject) => (a.object.objectId < b.object.objectId ? -1 : 1);
/** Of objects without a row nobody knows the upload, nor why they were cut so. */
const comparable = (objects: readonly WholeObject[]) =>
	objects.toSorted(byId).map(({ object, segments, trash }) => ({
		object: { ...object, uploadId: '' },
		segments: segments.map((segment) => ({ ...segment, because: '' })),
		trash,
	}));

async function someObjects(): Promise<void> {
	for (const size of [1, 70_000, 1 << 20, 3 << 20]) await c.upload(random.bytes(size), { name: `of ${size}` });
}

test('rows from shards alone are those that the metadata had, to the byte', async () => {
	await someObjects();
	const store = new MemoryMetadataStore();
	expect(await restore(store)).toMatchObject({ recovered: 4, notRecovered: 0, unconfirmed: 0, doubtful: 0 });
	expect(comparable(await whole(store))).toEqual(comparable(await whole(c.store)));
	expect((await store.counts()).intents).toBe(0);
});

test('shards that are missing are rebuilt for their roots, and queued for repair', async () => {
	await someObjects();
	for (const { segments } of await whole(c.store)) {
		for (const { placements, n, k } of segments) {
			for (const { workerId, shardId } of placements.slice(0, n - k)) c.transport.shardsOf(workerId).delete(shardId);
		}
	}
	const store = new MemoryMetadataStore();
	expect(await restore(store, { verify: true })).toMatchObject({ recovered: 4, notRecovered: 0, doubtful: 4 });
	const rootsOf = (objects: readonly WholeObject[]) =>
		comparable(objects).map(({ object, segments }) => [object.etag, segments.map(({ roots }) => roots)]);
	expect(rootsOf(await whole(store))).toEqual(rootsOf(await whole(c.store)));
	const missing = (await whole(c.store)).flatMap(({ segments }) => segments.map(({ n, k }) => n - k));
	expect((await store.counts()).repairs).toBe(missing.reduce((sum, count) => sum + count, 0));
});

test('with fewer than k shards an object is told, with its name, and not written', async () => {
	await c.upload(random.bytes(3 << 20), { name: 'too little' });
	const [one] = (await whole(c.store)) as [WholeObject];
	const [segment] = one.segments;
	const gone = segment?.placements.slice(0, segment.n - segment.k + 1) ?? [];
	for (const { workerId, shardId } of gone) c.transport.shardsOf(workerId).delete(shardId);
	const store = new MemoryMetadataStore();
	expect(await restore(store)).toMatchObject({ recovered: 0, notRecovered: 1 });
	expect(told).toMatchObject([{ fate: 'not recovered', name: 'too little', object_id: one.object.objectId }]);
	expect(await whole(store)).toEqual([]);
});

test('a shard whose bytes are wrong is found by verifying, and not placed', async () => {
	await c.upload(random.bytes(3 << 20), { name: 'rotten' });
	const [one] = (await whole(c.store)) as [WholeObject];
	const [bad] = one.segments[0]?.placements ?? [];
	if (bad === undefined) throw new Error('no shard');
	const stored = c.transport.shardsOf(bad.workerId).get(bad.shardId);
	stored?.bytes.writeUInt8((stored.bytes[100] as number) ^ 1, 100);
	const store = new MemoryMetadataStore();
	expect(await restore(store, { verify: true })).toMatchObject({ recovered: 1 });
	const [restored] = (await whole(store)) as [WholeObject];
	expect(restored.segments[0]?.placements.map(({ shardId }) => shardId)).not.toContain(bad.shardId);
});

describe('with a snapshot', () => {
	test('its rows come back as they were; newer ones are since; older ones that it lacks wait in the trash', async () => {
		await someObjects();
		const known = await whole(c.store);
		const trashed = known[1] as WholeObject;
		await c.store.deleteObject(trashed.object.objectId, { nowMs: 5, purgeAtMs: 50, by: '' });
		const snapshot = await whole(c.store);
		const beganAtMs = c.deps.clock.nowMs();
		c.later(3_600_000);
		const newer = await c.upload(random.bytes(80_000), { name: 'newer' });
		const store = new MemoryMetadataStore();
		const lacking = snapshot.filter(({ object }) => object !== snapshot[2]?.object);
		const began = beganAtMs + 1_800_000;
		const tally = await restore(store, { known: lacking, beganAtMs: began });
		expect(tally).toMatchObject({ recovered: 4, since: 1, unconfirmed: 1, notRecovered: 0 });
		const restored = await whole(store);
		const fateOf = (id: string | undefined) => restored.find(({ object }) => object.objectId === id)?.trash;
		expect(fateOf(newer.objectId)).toBe(null);
		expect(fateOf(trashed.object.objectId)).toEqual({ deletedAtMs: 5, purgeAtMs: 50 });
		expect(fateOf(snapshot[2]?.object.objectId)).toMatchObject({ purgeAtMs: expect.any(Number) });
		const inSnapshot = restored.filter(({ object }) => lacking.some((one) => one.object.objectId === object.objectId));
		expect(inSnapshot.toSorted(byId)).toEqual(lacking.toSorted(byId));
	});

	test('what it has and no shard is left of is told', async () => {
		await c.upload(random.bytes(70_000), { name: 'gone' });
		const [gone] = (await whole(c.store)) as [WholeObject];
		for (const { workerId, shardId } of gone.segments.flatMap(({ placements }) => placements)) {
			c.transport.shardsOf(workerId).delete(shardId);
		}
		const store = new MemoryMetadataStore();
		expect(await restore(store, { known: [gone] })).toMatchObject({ recovered: 0, notRecovered: 1 });
		expect(told).toMatchObject([{ fate: 'not recovered', object_id: gone.object.objectId }]);
	});
});

test('shards of a newer release end it before anything is written; what is damaged is told', async () => {
	await c.upload(random.bytes(70_000));
	const index = new ScanIndex(join(folder, 'index.db'));
	const workerId = c.workerIds[0] as WorkerId;
	const [first] = c.transport.shardsOf(workerId);
	if (first === undefined) throw new Error('no shard');
	const [shardId, { trailer }] = first;
	const scan = (bytes: Buffer) => {
		const bad: BadShard[] = [];
		const { clock } = c.deps;
		const transport = {
			list: async (_worker: WorkerRef, { after }: { after: ShardId | null }) => ({
				nowMs: clock.nowMs(),
				shards: after === null ? [{ shardId, writtenAtMs: 0 }] : [],
			}),
			trailers: async () => [bytes],
		};
		const { clusterId } = c.deps;
		const deps = { clusterId, index, transport, clock, onShards: () => {}, onBad: (one: BadShard) => bad.push(one) };
		return scanWorkers(deps as never, [{ workerId, address: '' }]).then(() => bad.length);
	};
	const newer = newerShard(trailer);
	expect(await scan(trailer)).toBe(0);
	expect(await scan(trailer.subarray(0, -1))).toBe(1);
	await expect(scan(newer)).rejects.toMatchObject({ kind: 'unsupported' });
	index.close();
});

test('run again with a snapshot, or without one, it says what this run knows', async () => {
	await someObjects();
	const known = await whole(c.store);
	const lacking = known.slice(1);
	const store = new MemoryMetadataStore();
	const fates = async () => (await whole(store)).filter(({ trash }) => trash !== null).length;
	const again = async (o: Parameters<typeof restore>[1]) => {
		const tally = await restore(store, o);
		expect(await store.counts()).toMatchObject({ intents: 0, deletions: 0 });
		return [tally.recovered, tally.unconfirmed, tally.notRecovered, await fates()];
	};
	expect(await again({})).toEqual([4, 0, 0, 0]);
	expect(await again({ known: lacking })).toEqual([3, 1, 0, 1]);
	expect(await again({ known })).toEqual([4, 0, 0, 0]);
	expect(await again({ known: lacking })).toEqual([3, 1, 0, 1]);
	expect(await again({})).toEqual([4, 0, 0, 0]);
});

test('a dry run says the same, and touches nothing', async () => {
	await someObjects();
	const before = await whole(c.store);
	expect(await restore(null)).toMatchObject({ recovered: 4 });
	expect(await whole(c.store)).toEqual(before);
});

test('stopped at any call and run again it ends the same, and until then no orchestrator starts there', async () => {
	await someObjects();
	const wanted = comparable(await whole(c.store));
	for (let at = 1; ; at++) {
		const data = new MemoryMetadata();
		const store = new MemoryMetadataStore(data);
		await markRestore(store, 'running', NOW_MS);
		let calls = 0;
		// Every second time its answer is lost, and not the call.
		const stopping = new Proxy(store, {
			get: (target, name) => {
				const value: unknown = Reflect.get(target, name);
				if (typeof value !== 'function') return value;
				return async (...args: unknown[]) => {
					calls++;
					if (calls > at) throw new Error('stopped');
					const answer: unknown = await value.apply(target, args);
					if (calls >= at && at % 2 === 0) throw new Error('stopped');
					return answer;
				};
			},
		});
		const isDone = await restore(stopping).then(
			() => true,
			() => false,
		);
		await expect(refuseHalfRestored(store)).rejects.toMatchObject({ kind: 'conflict' });
		await restore(store);
		expect(comparable(await whole(store)), `stopped at call ${at}`).toEqual(wanted);
		expect(await store.counts()).toMatchObject({ objects: wanted.length, intents: 0, deletions: 0 });
		await markRestore(store, 'done', NOW_MS);
		await refuseHalfRestored(store);
		if (isDone) break;
	}
});
