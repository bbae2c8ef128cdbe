/**
 * What every MetadataStore must do, whatever keeps its rows: run by store-memory, store-sqlite and store-supabase.
 *
 * Tests look through the port only. Each opens an empty store. What one adapter alone promises (locks, migrations, crash
 * points) is tested beside that adapter.
 */

import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
	type DeletionAction,
	type DeletionEntry,
	headAfter,
	NO_DELETIONS,
	nextDeletion,
} from '../core/crypto/deletion-log.ts';
import type { ErrorKind } from '../core/errors.ts';
import type { ClusterId, ObjectId, ShardId, UploadId, WorkerId } from '../core/ids.ts';
import type { Segment } from '../core/model/segment.ts';
import { DeletionLog } from './deletions.ts';
import { atOnce, begin, Fixtures, itemOf, NOW_MS, type Upload, type UploadShape } from './store.fixtures.ts';
import { checkRedundancy, nameOf, type Redundancy, reported } from './store.recount.ts';
import type {
	ClusterRow,
	Finding,
	Lease,
	MetadataStore,
	OldTrailers,
	RepairItem,
	RewrappedObject,
	StoredSegment,
	WholeObject,
	WorkerSighting,
} from './store.ts';
import { UNUSED_MARGIN_MS } from './store-rules.ts';

export interface OpenedStore {
	readonly store: MetadataStore;
	/** Closes it and opens the same data again. */
	reopen(): Promise<MetadataStore>;
	/** Removes everything. */
	dispose(): Promise<void>;
}

export function describeMetadataStore(name: string, open: () => Promise<OpenedStore>): void {
	describe(`MetadataStore: ${name}`, () => {
		let opened: OpenedStore;
		let store: MetadataStore;
		let make: Fixtures;
		let workers: WorkerId[];

		beforeEach(async () => {
			opened = await open();
			store = opened.store;
			make = new Fixtures('contract');
			workers = Array.from({ length: 6 }, () => make.id<WorkerId>());
		});
		afterEach(() => opened.dispose());

		const deletions = async () => {
			const queues = await Promise.all(workers.map((workerId) => store.deletions(workerId, 10_000)));
			return idsOf(queues.flat());
		};
		const idsOf = (shards: readonly { shardId: ShardId }[]) => shards.map(({ shardId }) => shardId).sort();
		const stored = (upload: Upload) => store.objectWithSegments(upload.objectId, { fromSegment: 0, limit: 1_000 });
		const dueItems = () => store.repairs({ nowMs: Number.MAX_SAFE_INTEGER, limit: 10_000 });
		const placementOf = (upload: Upload, segment: number, shardIndex: number) => {
			const found = upload.commit.segments[segment]?.placements.find((other) => other.shardIndex === shardIndex);
			if (found === undefined) throw new Error('the fixture left this shard out');
			return found;
		};
		const finding = (upload: Upload, segment: number, shardIndex: number, foundAtMs = NOW_MS): Finding => {
			const { shardId, workerId } = placementOf(upload, segment, shardIndex);
			return { shardId, workerId, kind: 'corrupt', detail: 'cell 3', foundAtMs };
		};

		const rebuilt = async (item: RepairItem, workerId: WorkerId) => {
			const uploadId = make.id<UploadId>();
			const shard = { shardId: make.id<ShardId>(), workerId };
			await store.begin({ uploadId, objectId: item.objectId, shards: [shard], expiresAtMs: NOW_MS + 1_000 });
			return {
				uploadId,
				shard,
				done: { item, placement: { shardIndex: item.shardIndex, ...shard }, keyGeneration: 1, nowMs: NOW_MS },
			};
		};

		describe('objects of the cluster’s own', () => {
			test('are in no list and no count of people’s objects, on no spread, and on their worker sets', async () => {
				const user = await make.store(store, workers, { nowMs: NOW_MS + 1 });
				const counts = await store.counts();
				const own = await make.store(store, workers, { kind: 'snapshot', k: 1, n: 4, segments: 2, missing: [3] });
				expect((await stored(own))?.object).toEqual(own.commit.object);
				expect(await store.object(own.objectId)).toMatchObject({ kind: 'snapshot' });
				expect(await store.counts()).toEqual({ ...counts, repairs: 2, deletions: 2 });
				expect((await store.list({ limit: 10, after: null })).objects).toEqual([user.commit.object]);
				const own2 = await make.store(store, workers, { kind: 'snapshot', nowMs: NOW_MS + 2 });
				const first = await store.list({ limit: 1, after: null, kind: 'snapshot' });
				expect(first.objects).toEqual([own2.commit.object]);
				const second = await store.list({ limit: 1, after: first.next, kind: 'snapshot' });
				expect(second).toEqual({ objects: [own.commit.object], next: null });
				const { sets, spreads } = await store.redundancyRows();
				expect(sets.reduce((sum, { segments }) => sum + segments, 0)).toBe(4);
				expect(spreads.reduce((sum, { objects }) => sum + objects, 0)).toBe(1);
			});

			test('keep no spread when their shards are found bad, are rebuilt, and are gone at once when they go', async () => {
				const own = await make.store(store, workers, { kind: 'snapshot', k: 1, n: 3, segments: 2 });
				await store.addFindings([finding(own, 1, 0)]);
				const [item] = (await dueItems()) as [RepairItem];
				const { uploadId, done } = await rebuilt(item, workers[5] as WorkerId);
				await store.repairDone(done, uploadId);
				expect((await store.redundancyRows()).spreads).toEqual([]);
				expect((await store.redundancyRows()).sets.map(({ segments }) => segments)).toEqual([1, 1]);
				const counts = await store.counts();
				expect(await store.deleteObject(own.objectId, atOnce())).toBe(true);
				expect(await store.counts()).toEqual({ ...counts, deletions: counts.deletions + 6 });
				expect(await store.redundancyRows()).toEqual({ sets: [], spreads: [] });
				expect((await store.list({ limit: 10, after: null, kind: 'snapshot' })).objects).toEqual([]);
			});
		});

		describe('whole objects', () => {
			test('come each once, of every kind and with the trash, with all their segments, page by page', async () => {
				const shapes: UploadShape[] = [
					{},
					{ segments: 0 },
					{ segments: 5 },
					{ kind: 'snapshot' },
					{ segments: 2, missing: [1] },
				];
				const uploads: Upload[] = [];
				for (const shape of shapes) uploads.push(await make.store(store, workers, shape));
				const trashed = uploads[4] as Upload;
				await store.deleteObject(trashed.objectId, { nowMs: NOW_MS, purgeAtMs: NOW_MS + 5, by: '' });
				const expected = uploads.map(({ commit }) => ({
					object: commit.object,
					trash: commit === trashed.commit ? { deletedAtMs: NOW_MS, purgeAtMs: NOW_MS + 5 } : null,
					segments: commit.segments,
				}));
				const byId = (a: WholeObject, b: WholeObject) => (a.object.objectId < b.object.objectId ? -1 : 1);
				for (const limit of [1, 2, 3, 100]) {
					const found: WholeObject[] = [];
					for (let after: string | null = null, pages = 0; ; pages++) {
						expect(pages).toBeLessThan(10);
						const page = await store.wholeObjects({ after, limit });
						expect(page.objects.length).toBeLessThanOrEqual(limit);
						const segments = page.objects.slice(0, -1).flatMap((whole) => whole.segments);
						expect(segments.length).toBeLessThan(limit);
						found.push(...page.objects);
						if (page.next === null) break;
						after = page.next;
					}
					expect(found.sort(byId)).toEqual(expected.toSorted(byId));
				}
				await expect(store.wholeObjects({ after: 'x', limit: 1 })).rejects.toMatchObject({ kind: 'invalid' });
			});
		});

		describe('cluster', () => {
			test('the first row stays', async () => {
				const row = {
					clusterId: make.id<ClusterId>(),
					createdAtMs: NOW_MS,
					revision: 1,
					keys: [make.clusterKey(2, 'm1'), make.clusterKey(1, 'm1')],
				};
				const oldestFirst = { ...row, keys: row.keys.toReversed() };
				expect(await store.initCluster(row)).toEqual(oldestFirst);
				expect(await store.initCluster({ ...row, clusterId: make.id<ClusterId>(), keys: [] })).toEqual(oldestFirst);
				store = await opened.reopen();
				expect(await store.initCluster({ ...row, clusterId: make.id<ClusterId>() })).toEqual(oldestFirst);
				expect(await store.cluster()).toEqual(oldestFirst);
			});

			test('before it there is none', async () => {
				expect(await store.cluster()).toBeNull();
				expect(await store.keyUse(10)).toEqual([]);
				await refused('conflict', store.changeClusterKeys([make.clusterKey(1, 'm')], 1));
			});
		});

		describe('keys', () => {
			const NOTHING = { objects: 0, shards: 0, leftovers: true };
			/** Two generations, at revision 2. */
			const rotated = async (): Promise<ClusterRow> => {
				const clusterId = make.id<ClusterId>();
				await store.initCluster({ clusterId, createdAtMs: NOW_MS, revision: 1, keys: [make.clusterKey(1, 'm1')] });
				return store.changeClusterKeys([make.clusterKey(2, 'm1')], 1);
			};
			const later = (upload: Upload, generation: number): Upload => {
				const { commit } = upload;
				return { ...upload, commit: { ...commit, object: { ...commit.object, keyGeneration: generation } } };
			};
			const committed = async (generation: number, shape: UploadShape = {}): Promise<Upload> => {
				const upload = later(make.upload(workers, shape), generation);
				await begin(store, upload);
				await store.commit(upload.commit);
				return upload;
			};
			const rewrapped = async (keyGeneration: number, limit = 100): Promise<RewrappedObject[]> =>
				(await store.oldKeyObjects({ below: keyGeneration, limit })).map(({ versionId, wrappedKey }) => ({
					versionId,
					before: wrappedKey,
					keyGeneration,
					wrappedKey: make.bytes(64),
				}));

			test('wrapped anew or added by whoever has the revision; nobody else changes anything', async () => {
				const first = await rotated();
				expect(first.revision).toBe(2);
				expect(first.keys.map(({ generation }) => generation)).toEqual([1, 2]);
				await refused('conflict', store.changeClusterKeys([make.clusterKey(3, 'm')], 1));
				await refused('conflict', store.changeClusterKeys([make.clusterKey(3, 'm')], 3));
				expect(await store.cluster()).toEqual(first);
				const anew = { ...make.clusterKey(1, 'm2'), createdAtMs: 5 };
				const second = await store.changeClusterKeys([anew, make.clusterKey(3, 'm2')], 2);
				const [one, two] = first.keys;
				expect(second.revision).toBe(3);
				expect(second.keys.slice(0, 2)).toEqual([{ ...anew, createdAtMs: one?.createdAtMs }, two]);
				expect(second.keys[2]).toMatchObject({ generation: 3, masterKeyId: 'm2', createdAtMs: NOW_MS + 3 });
				store = await opened.reopen();
				expect(await store.cluster()).toEqual(second);
			});

			test('of many changes at once one is made', async () => {
				const { revision } = await rotated();
				const changes = Array.from({ length: 8 }, (_, at) =>
					store.changeClusterKeys([make.clusterKey(3 + at, 'm')], revision),
				);
				const results = await Promise.allSettled(changes);
				expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
				expect((await store.cluster())?.keys).toHaveLength(3);
			});

			test('who needs a generation: objects and trailers apart, counted up to a limit', async () => {
				await rotated();
				await committed(1);
				await committed(1, { segments: 2, n: 5 });
				await committed(1, { segments: 0 });
				const upload = await committed(2, { missing: [3] });
				expect(await store.keyUse(100)).toEqual([
					{ generation: 1, objects: 3, shards: 16, leftovers: true },
					{ generation: 2, objects: 1, shards: 5, leftovers: true },
				]);
				expect((await store.keyUse(2)).map(({ objects, shards }) => [objects, shards])).toEqual([
					[2, 2],
					[1, 2],
				]);
				// A rebuilt shard has the key as it was read before.
				const [item] = (await store.repairs({ nowMs: NOW_MS, limit: 1 })) as [RepairItem];
				const { uploadId, done } = await rebuilt(item, make.id<WorkerId>());
				await store.repairDone({ ...done, keyGeneration: 1 }, uploadId);
				expect((await store.keyUse(100)).map(({ shards }) => shards)).toEqual([17, 5]);
				// And so has a segment that was cut anew.
				const anew = make.reencoding(upload, { k: 2, n: 4, workers });
				const intent = { uploadId: anew.uploadId, objectId: anew.done.objectId, shards: anew.shards };
				await store.begin({ ...intent, expiresAtMs: NOW_MS + 1_000 });
				await store.reencoded({ ...anew.done, keyGeneration: 2 }, anew.uploadId);
				expect((await store.keyUse(100)).map(({ shards }) => shards)).toEqual([16, 4]);
				await store.deleteObject(upload.objectId, atOnce());
				expect((await store.keyUse(100)).map(({ objects, shards }) => [objects, shards])).toEqual([
					[3, 16],
					[0, 0],
				]);
			});

			test('data keys are wrapped anew one by one, if they still are what they were', async () => {
				await rotated();
				const upload = await committed(1);
				await committed(1, { segments: 0 });
				await committed(2);
				const [one, two] = (await rewrapped(2)) as [RewrappedObject, RewrappedObject];
				expect(await store.oldKeyObjects({ below: 2, limit: 1 })).toHaveLength(1);
				expect(await store.rewrapObjects([one, { ...two, before: make.bytes(64) }])).toBe(1);
				expect(await store.rewrapObjects([one, two])).toBe(1);
				expect(await rewrapped(2)).toEqual([]);
				const changed = [one, two].find(({ versionId }) => versionId === upload.versionId) as RewrappedObject;
				const { wrappedKey } = changed;
				expect(await store.object(upload.objectId)).toEqual({ ...upload.commit.object, keyGeneration: 2, wrappedKey });
				// Trailers stay what they are.
				expect((await store.keyUse(100)).map(({ objects, shards }) => [objects, shards])).toEqual([
					[0, 6],
					[3, 6],
				]);
				expect(await store.rewrapObjects([{ ...one, versionId: make.id() }])).toBe(0);
			});

			test('segments with old trailers come by pages, with the shards that are meant', async () => {
				await rotated();
				const old = [await committed(1, { segments: 3 }), await committed(1, { missing: [0] })];
				await committed(2, { segments: 2 });
				const all = async (limit: number) => {
					const found: OldTrailers[] = [];
					let after: string | null = null;
					do {
						const page = await store.oldTrailers(1, { after, limit });
						expect(page.trailers.length).toBeLessThanOrEqual(limit);
						found.push(...page.trailers);
						after = page.next;
					} while (after !== null);
					return found;
				};
				const [item] = (await store.repairs({ nowMs: NOW_MS, limit: 1 })) as [RepairItem];
				const { uploadId, done } = await rebuilt(item, make.id<WorkerId>());
				await store.repairDone({ ...done, keyGeneration: 2 }, uploadId);
				for (const limit of [1, 2, 3, 100]) {
					const found = await all(limit);
					expect(found).toHaveLength(4);
					for (const { stored: segment, shardIndexes } of found) {
						const upload = old.find(({ versionId }) => versionId === segment.versionId) as Upload;
						expect(shardIndexes).toEqual(upload === old[1] ? [1, 2, 3, 4, 5] : [0, 1, 2, 3, 4, 5]);
						const [now] = await store.segments(segment.versionId, { fromSegment: segment.segment.index, limit: 1 });
						expect(segment.segment).toEqual(now);
					}
				}
				await refused('invalid', store.oldTrailers(1, { after: 'nowhere', limit: 1 }));
				expect(await store.oldTrailers(7, { after: null, limit: 1 })).toEqual({ trailers: [], next: null });
			});

			test('a generation can be dropped when nothing needs it, and not before', async () => {
				const { revision } = await rotated();
				const worker = make.worker('worker-1');
				await store.saveWorker(worker);
				await store.sawKeys([worker.workerId], revision);
				const stays = async () => {
					await refused('conflict', store.dropClusterKey(1, revision));
					expect((await store.cluster())?.revision).toBe(revision);
				};
				// Nobody has noted that it is not needed.
				await stays();
				const inline = await committed(1, { segments: 0 });
				await store.noteUnusedKeys();
				await stays();
				await store.deleteObject(inline.objectId, atOnce());
				const upload = await committed(1);
				await store.rewrapObjects(await rewrapped(2));
				await store.noteUnusedKeys();
				await stays();
				const open = make.upload(workers);
				await begin(store, open);
				await store.deleteObject(upload.objectId, atOnce());
				await store.noteUnusedKeys();
				// Its shards wait for deletion.
				await stays();
				for (const { shardId, workerId } of upload.shards) await store.deletionsDone(workerId, [shardId]);
				expect((await store.counts()).deletions).toBe(0);
				// An upload began before it was noted.
				await stays();
				const LATER_MS = Date.now() + 2 * UNUSED_MARGIN_MS;
				await store.abort(open.uploadId, LATER_MS);
				expect((await store.counts()).deletions).toBe(6);
				expect((await store.keyUse(10))[0]).toEqual({ ...NOTHING, generation: 1, leftovers: false });
				const absent = make.worker('worker-2');
				await store.saveWorker(absent);
				await stays();
				await store.sawKeys([absent.workerId], revision - 1);
				await stays();
				await store.sawKeys([absent.workerId], revision);
				await refused('conflict', store.dropClusterKey(1, revision - 1));
				await refused('conflict', store.dropClusterKey(2, revision));
				await refused('conflict', store.dropClusterKey(3, revision));
				const dropped = await store.dropClusterKey(1, revision);
				expect(dropped.revision).toBe(revision + 1);
				expect(dropped.keys.map(({ generation }) => generation)).toEqual([2]);
				store = await opened.reopen();
				expect(await store.cluster()).toEqual(dropped);
				expect((await store.keyUse(10)).map(({ generation }) => generation)).toEqual([2]);
			});

			test('used again after it was noted: the note counts no more', async () => {
				await rotated();
				await store.noteUnusedKeys();
				expect((await store.keyUse(10))[0]).toMatchObject({ leftovers: false });
				await store.noteUnusedKeys();
				expect((await store.keyUse(10))[0]).toMatchObject({ leftovers: false });
				await committed(1);
				await store.noteUnusedKeys();
				expect((await store.keyUse(10)).map(({ leftovers }) => leftovers)).toEqual([true, true]);
			});

			test('nothing is written with a generation that was dropped', async () => {
				const { revision } = await rotated();
				const kept = await committed(2, { missing: [0] });
				const open = later(make.upload(workers), 1);
				// What it left out waits for deletion.
				await store.deletionsDone(
					workers[0] as WorkerId,
					(await store.deletions(workers[0] as WorkerId, 10)).map(({ shardId }) => shardId),
				);
				await store.noteUnusedKeys();
				await store.dropClusterKey(1, revision);
				await begin(store, open);
				await refused('unavailable', store.commit(open.commit));
				await refused('unavailable', store.commit(later(make.upload(workers, { segments: 0 }), 1).commit));
				expect(await store.object(open.objectId)).toBeNull();
				const [item] = (await store.repairs({ nowMs: NOW_MS, limit: 1 })) as [RepairItem];
				const { uploadId, done } = await rebuilt(item, make.id<WorkerId>());
				await refused('unavailable', store.repairDone({ ...done, keyGeneration: 1 }, uploadId));
				const anew = make.reencoding(kept, { k: 2, n: 4, workers });
				const { uploadId: anewId, shards } = anew;
				const { objectId } = anew.done;
				await store.begin({ uploadId: anewId, objectId, shards, expiresAtMs: NOW_MS + 1_000 });
				await refused('unavailable', store.reencoded({ ...anew.done, keyGeneration: 1 }, anewId));
				expect((await store.intents(10)).map((intent) => intent.uploadId).sort()).toEqual(
					[open.uploadId, uploadId, anewId].sort(),
				);
				const { versionId } = kept;
				const before = kept.commit.object.wrappedKey;
				await refused(
					'unavailable',
					store.rewrapObjects([{ versionId, before, keyGeneration: 1, wrappedKey: make.bytes(64) }]),
				);
				await store.repairDone({ ...done, keyGeneration: 2 }, uploadId);
			});

			test('commits with it and its end at once: never both', async () => {
				let { revision } = await rotated();
				for (let generation = 2; generation < 12; generation++) {
					await store.changeClusterKeys([make.clusterKey(generation + 1, 'm')], revision++);
					await store.noteUnusedKeys();
					const late = Array.from({ length: 6 }, () => later(make.upload(workers, { segments: 0 }), generation));
					const [dropped, ...commits] = await Promise.allSettled([
						store.dropClusterKey(generation, revision),
						...late.map(({ commit }) => store.commit(commit)),
					]);
					const isThere = ((await store.cluster()) as ClusterRow).keys.some((key) => key.generation === generation);
					expect(isThere).toBe(dropped.status === 'rejected');
					const done = commits.filter(({ status }) => status === 'fulfilled').length;
					if (!isThere) expect(done).toBe(0);
					revision = ((await store.cluster()) as ClusterRow).revision;
				}
			});

			test('which volume has which revision: the highest that was seen, of workers that are there', async () => {
				const [one, two] = [make.worker('worker-1'), make.worker('worker-2')];
				await store.saveWorker(one);
				await store.saveWorker(two);
				await store.sawKeys([one.workerId, two.workerId, make.id<WorkerId>()], 3);
				await store.sawKeys([one.workerId], 2);
				await store.sawKeys([two.workerId], 4);
				const both = [
					[one.workerId, 3],
					[two.workerId, 4],
				] as const;
				expect(await store.keysOnVolumes()).toEqual(new Map(both));
				await store.forgetWorker(one.workerId, NOW_MS);
				expect(await store.keysOnVolumes()).toEqual(new Map(both.slice(1)));
				store = await opened.reopen();
				expect(await store.keysOnVolumes()).toEqual(new Map(both.slice(1)));
			});
		});

		describe('commit', () => {
			test('what was written is read, also after opening again', async () => {
				const upload = make.upload(workers, { segments: 3 });
				await begin(store, upload);
				expect(await stored(upload)).toBeNull();
				expect(await store.commit(upload.commit)).toEqual(upload.commit.object);
				store = await opened.reopen();
				expect(await store.object(upload.objectId)).toEqual(upload.commit.object);
				expect(await stored(upload)).toEqual({ object: upload.commit.object, segments: upload.commit.segments });
				expect(await store.intents(10)).toEqual([]);
				expect(await deletions()).toEqual([]);
				const page = { fromSegment: 1, limit: 1 };
				expect(await store.segments(upload.versionId, page)).toEqual(upload.commit.segments.slice(1, 2));
				expect(await store.segments(make.id(), page)).toEqual([]);
			});

			test('bytes come back as Buffers of their own length', async () => {
				const upload = make.upload(workers);
				const { object } = upload.commit;
				await begin(store, upload);
				// A view into something larger: only the view may be stored.
				const manifest = make.bytes(4_096).subarray(100, 140);
				await store.commit({ ...upload.commit, object: { ...object, manifest } });
				const row = await store.object(upload.objectId);
				expect(Buffer.isBuffer(row?.manifest)).toBe(true);
				expect(row?.manifest.equals(manifest)).toBe(true);
			});

			test('repeated after a lost answer it gives the stored row and changes nothing', async () => {
				const upload = await make.store(store, workers, { missing: [5] });
				const before = await store.counts();
				const again = { ...upload.commit, object: { ...upload.commit.object, etag: 'another' } };
				expect(await store.commit(again)).toEqual(upload.commit.object);
				expect(await store.counts()).toEqual(before);
			});

			test('an upload that was committed cannot begin again', async () => {
				const upload = await make.store(store, workers);
				await refused('exists', begin(store, upload));
				expect(await store.expireIntents(NOW_MS * 2, 10)).toBe(0);
				expect(await deletions()).toEqual([]);
			});

			test('begin repeated is one intent', async () => {
				const upload = make.upload(workers);
				await begin(store, upload);
				await begin(store, upload);
				expect((await store.counts()).intents).toBe(1);
				await store.abort(upload.uploadId, NOW_MS);
				expect(await deletions()).toEqual(idsOf(upload.shards));
			});

			test('without an intent it is expired, and nothing is left', async () => {
				const upload = make.upload(workers);
				await refused('expired', store.commit(upload.commit));
				expect(await stored(upload)).toBeNull();
				expect((await store.counts()).objects).toBe(0);
			});

			test('inline objects need no intent', async () => {
				const upload = make.upload(workers, { segments: 0, sizeBytes: 64 });
				expect(await store.commit(upload.commit)).toEqual(upload.commit.object);
				expect(await stored(upload)).toEqual({ object: upload.commit.object, segments: [] });
			});

			test('shards that no intent named are refused, and the intent stays open', async () => {
				const upload = make.upload(workers);
				await begin(store, { ...upload, shards: upload.shards.slice(1) });
				await refused('invalid', store.commit(upload.commit));
				await store.extend(upload.uploadId, upload.shards.slice(0, 1));
				await store.commit(upload.commit);
			});

			test('named and not placed goes to the delete queue, missing goes to repair', async () => {
				const upload = make.upload(workers, { segments: 2, missing: [1, 4] });
				const replaced = { shardId: make.id<ShardId>(), workerId: workers[0] as WorkerId };
				await begin(store, upload);
				await store.extend(upload.uploadId, [replaced]);
				await store.commit({ ...upload.commit, abandoned: [replaced] });
				const placed = new Set(upload.commit.segments.flatMap(({ placements }) => idsOf(placements)));
				const leftOut = upload.shards.filter(({ shardId }) => !placed.has(shardId));
				expect(await deletions()).toEqual(idsOf([...leftOut, replaced]));
				const items = [0, 1].flatMap((segment) => [1, 4].map((index) => itemOf(upload, segment, index)));
				expect(await dueItems()).toEqual(items.map((item) => ({ ...item, attempts: 0, dueAtMs: NOW_MS })));
			});

			test.each([2 ** 32 + 1, Number.MAX_SAFE_INTEGER])('%d bytes are exact', async (sizeBytes) => {
				const upload = await make.store(store, workers, { sizeBytes });
				store = await opened.reopen();
				expect((await store.object(upload.objectId))?.sizeBytes).toBe(sizeBytes);
				expect((await store.counts()).bytes).toBe(sizeBytes);
			});

			test.each([2 ** 53, -1, 0.5, Number.NaN])('%d bytes are refused', async (sizeBytes) => {
				const upload = make.upload(workers, { sizeBytes });
				await begin(store, upload);
				await refused('invalid', store.commit(upload.commit));
				expect(await stored(upload)).toBeNull();
			});

			test('segments that contradict themselves are refused', async () => {
				const upload = make.upload(workers, { segments: 2 });
				await begin(store, upload);
				const [first, second] = upload.commit.segments as [Segment, Segment];
				const twice = { ...first, placements: [...first.placements, ...first.placements] };
				for (const segments of [[first], [second, first], [twice, second]]) {
					await refused('invalid', store.commit({ ...upload.commit, segments }));
				}
				await store.commit(upload.commit);
			});

			test('text is stored, never run', async () => {
				const because = `'); DROP TABLE objects; --"`;
				const upload = make.upload(workers);
				await begin(store, upload);
				const segments = upload.commit.segments.map((segment) => ({ ...segment, because }));
				const object = { ...upload.commit.object, etag: because };
				await store.commit({ ...upload.commit, object, segments });
				expect(await stored(upload)).toEqual({ object, segments });
				expect(await store.object(because as ObjectId)).toBeNull();
			});

			test('200 at once: all are there, and one refusal harms no other', async () => {
				const uploads = Array.from({ length: 200 }, () => make.upload(workers));
				await Promise.all(uploads.map((upload) => begin(store, upload)));
				const late = new Set(uploads.filter((_, index) => index % 7 === 0));
				await Promise.all([...late].map(({ uploadId }) => store.abort(uploadId, NOW_MS)));
				const results = await Promise.allSettled(uploads.map(({ commit }) => store.commit(commit)));
				for (const [index, upload] of uploads.entries()) {
					expect(results[index]?.status).toBe(late.has(upload) ? 'rejected' : 'fulfilled');
					expect((await stored(upload)) === null).toBe(late.has(upload));
				}
				expect(await deletions()).toEqual(idsOf([...late].flatMap(({ shards }) => [...shards])));
				expect((await store.counts()).objects).toBe(200 - late.size);
			});

			test('commit and abort at once: one of them wins, and no shard is both placed and to be deleted', async () => {
				for (let round = 0; round < 10; round++) {
					const upload = make.upload(workers);
					await begin(store, upload);
					const calls = [
						() => store.commit(upload.commit),
						() => store.abort(upload.uploadId, NOW_MS),
						() => store.expireIntents(NOW_MS * 2, 10),
					];
					const order = round % 2 === 0 ? calls : calls.toReversed();
					await Promise.allSettled(order.map((call) => call()));
					const placed = (await stored(upload))?.segments.flatMap(({ placements }) => idsOf(placements)) ?? [];
					const queued = (await deletions()).filter((id) => idsOf(upload.shards).includes(id));
					expect([...placed, ...queued].sort()).toEqual(idsOf(upload.shards));
				}
				expect((await store.counts()).intents).toBe(0);
			});

			test('the same commit many times at once is one object', async () => {
				const upload = make.upload(workers, { missing: [0] });
				await begin(store, upload);
				const rows = await Promise.all(Array.from({ length: 20 }, () => store.commit(upload.commit)));
				for (const row of rows) expect(row).toEqual(upload.commit.object);
				expect(await store.counts()).toMatchObject({ objects: 1, repairs: 1, deletions: 1 });
			});
		});

		describe('intents', () => {
			test('abort queues every named shard once; later calls are expired', async () => {
				const upload = make.upload(workers);
				await begin(store, { ...upload, shards: upload.shards.slice(0, 4) });
				await store.extend(upload.uploadId, upload.shards.slice(4));
				await store.abort(upload.uploadId, NOW_MS);
				await store.abort(upload.uploadId, NOW_MS);
				expect(await deletions()).toEqual(idsOf(upload.shards));
				await refused('expired', store.commit(upload.commit));
				await refused('expired', store.extend(upload.uploadId, upload.shards));
				await refused('expired', store.renew(upload.uploadId, NOW_MS));
				expect(await store.intents(10)).toEqual([]);
				expect(await stored(upload)).toBeNull();
			});

			test('abort after commit has no effect', async () => {
				const upload = await make.store(store, workers);
				await store.abort(upload.uploadId, NOW_MS);
				expect(await deletions()).toEqual([]);
				expect(await stored(upload)).not.toBeNull();
			});

			test('calls in one turn take effect in order', async () => {
				const upload = make.upload(workers);
				await Promise.all([begin(store, upload), store.abort(upload.uploadId, NOW_MS)]);
				expect((await store.counts()).intents).toBe(0);
				expect(await deletions()).toEqual(idsOf(upload.shards));
			});

			test('expiry takes the oldest first, at most as many as asked; renewed ones live', async () => {
				const uploads = [3, 1, 2, 4].map((at) => ({ upload: make.upload(workers), expiresAtMs: NOW_MS + at }));
				for (const { upload, expiresAtMs } of uploads) await begin(store, upload, expiresAtMs);
				const [third, first, second, fourth] = uploads.map(({ upload }) => upload) as [Upload, Upload, Upload, Upload];
				expect((await store.intents(2)).map(({ uploadId }) => uploadId)).toEqual([first.uploadId, second.uploadId]);
				await store.renew(second.uploadId, NOW_MS + 100);
				expect(await store.expireIntents(NOW_MS, 10)).toBe(0);
				expect(await store.expireIntents(NOW_MS + 4, 1)).toBe(1);
				expect(await deletions()).toEqual(idsOf(first.shards));
				expect(await store.expireIntents(NOW_MS + 3, 10)).toBe(1);
				expect(await deletions()).toEqual(idsOf([...first.shards, ...third.shards]));
				await refused('expired', store.commit(third.commit));
				await store.commit(second.commit);
				expect(await store.intents(10)).toEqual([
					{ uploadId: fourth.uploadId, objectId: fourth.objectId, state: 'open', expiresAtMs: NOW_MS + 4 },
				]);
			});
		});

		describe('idempotency', () => {
			const key = (uploadId: UploadId, more: object = {}) => ({
				owner: 'owner',
				key: 'key',
				fingerprint: 'POST /objects',
				uploadId,
				expiresAtMs: NOW_MS + 1_000,
				...more,
			});
			const request = { key: 'key', fingerprint: 'POST /objects' };

			test('claimed, running, done, mismatch; per owner', async () => {
				const upload = make.upload(workers, { idempotency: request });
				const other = make.id<UploadId>();
				expect(await store.claimIdempotency(key(upload.uploadId), NOW_MS)).toEqual({ state: 'claimed' });
				expect(await store.claimIdempotency(key(upload.uploadId), NOW_MS)).toEqual({ state: 'claimed' });
				expect(await store.claimIdempotency(key(other), NOW_MS)).toEqual({ state: 'running' });
				expect(await store.claimIdempotency(key(other, { fingerprint: 'x' }), NOW_MS)).toEqual({ state: 'mismatch' });
				expect(await store.claimIdempotency(key(other, { owner: 'b' }), NOW_MS)).toEqual({ state: 'claimed' });
				await begin(store, upload);
				await store.commit(upload.commit);
				const done = { state: 'done', objectId: upload.objectId };
				expect(await store.claimIdempotency(key(other), NOW_MS)).toEqual(done);
				expect(await store.claimIdempotency(key(other, { fingerprint: 'x' }), NOW_MS)).toEqual({ state: 'mismatch' });
				await store.abort(upload.uploadId, NOW_MS);
				expect(await store.claimIdempotency(key(other), NOW_MS)).toEqual(done);
				expect(await store.claimIdempotency(key(other), NOW_MS + 1_000)).toEqual({ state: 'claimed' });
			});

			test('abort and expiry of the intent free a claim, renewal keeps it', async () => {
				const [aborted, expired, renewed] = Array.from({ length: 3 }, () => make.upload(workers)) as [
					Upload,
					Upload,
					Upload,
				];
				for (const upload of [aborted, expired, renewed]) {
					await store.claimIdempotency(key(upload.uploadId, { key: upload.uploadId }), NOW_MS);
					await begin(store, upload);
				}
				await store.abort(aborted.uploadId, NOW_MS);
				await store.renew(renewed.uploadId, NOW_MS + 9_000);
				await store.expireIntents(NOW_MS + 1_000, 10);
				const states = await Promise.all(
					[aborted, expired, renewed].map(({ uploadId }) =>
						store.claimIdempotency(
							key(make.id<UploadId>(), { key: uploadId, expiresAtMs: NOW_MS * 2 }),
							NOW_MS + 5_000,
						),
					),
				);
				expect(states.map(({ state }) => state)).toEqual(['claimed', 'claimed', 'running']);
			});

			test('many claims of one key at once: one has it', async () => {
				const states = await Promise.all(
					Array.from({ length: 12 }, () => store.claimIdempotency(key(make.id<UploadId>()), NOW_MS)),
				);
				expect(states.filter(({ state }) => state === 'claimed')).toHaveLength(1);
				expect(states.filter(({ state }) => state === 'running')).toHaveLength(11);
			});

			test('two uploads with one key: one object', async () => {
				const uploads = Array.from({ length: 2 }, () => make.upload(workers, { idempotency: request }));
				const [first, second] = uploads as [Upload, Upload];
				await Promise.all(uploads.map((upload) => begin(store, upload)));
				const results = await Promise.allSettled(uploads.map(({ commit }) => store.commit(commit)));
				expect(results.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
				const loser = results[0]?.status === 'rejected' ? first : second;
				await refused('conflict', store.commit(loser.commit));
				expect((await store.counts()).objects).toBe(1);
				await store.abort(loser.uploadId, NOW_MS);
				expect(await deletions()).toEqual(idsOf(loser.shards));
			});
		});

		describe('lists', () => {
			test('1,234 objects newest first, each once, by pages', async () => {
				const uploads = Array.from({ length: 1_234 }, (_, index) =>
					make.upload(workers, { segments: 0, nowMs: NOW_MS + (index % 40) }),
				);
				await Promise.all(uploads.map(({ commit }) => store.commit(commit)));
				const expected = uploads
					.map(({ commit }) => commit.object)
					.sort((a, b) => b.createdAtMs - a.createdAtMs || (a.objectId < b.objectId ? 1 : -1))
					.map(({ objectId }) => objectId);
				for (const limit of [100, 617, 1_000, 1_234, 5_000]) {
					const seen: ObjectId[] = [];
					let pages = 0;
					let after: string | null = null;
					do {
						const page = await store.list({ limit, after });
						seen.push(...page.objects.map(({ objectId }) => objectId));
						after = page.next;
						pages++;
					} while (after !== null);
					expect(seen).toEqual(expected);
					expect(pages).toBe(Math.ceil(1_234 / limit));
				}
			});

			test('a page goes on where it was, whatever is added and removed meanwhile', async () => {
				const uploads: Upload[] = [];
				for (let at = 0; at < 6; at++) uploads.push(await make.store(store, workers, { nowMs: NOW_MS + at }));
				const first = await store.list({ limit: 3, after: null });
				await store.deleteObject(first.objects.at(-1)?.objectId as ObjectId, atOnce());
				await make.store(store, workers, { nowMs: NOW_MS + 99 });
				const second = await store.list({ limit: 3, after: first.next });
				expect(second.objects.map(({ objectId }) => objectId)).toEqual(
					uploads
						.slice(0, 3)
						.map(({ objectId }) => objectId)
						.reverse(),
				);
				expect(second.next).toBeNull();
			});

			test.each(['', 'x', '1', '1.2', `1.${'0'.repeat(32)}.1`, `-1.${'0'.repeat(32)}`, `1.${'G'.repeat(32)}`])(
				'cursor %j is invalid',
				(after) => refused('invalid', store.list({ limit: 1, after })),
			);
		});

		describe('deletion', () => {
			test('the object, its findings and repairs go; its shards are queued, oldest first, per worker', async () => {
				const older = await make.store(store, workers, { segments: 2, missing: [5] });
				const newer = await make.store(store, workers);
				await store.deletionsDone(workers[5] as WorkerId, idsOf(older.shards));
				await store.addFindings([finding(older, 1, 2)]);
				expect(await store.deleteObject(older.objectId, atOnce())).toBe(true);
				expect(await store.deleteObject(older.objectId, atOnce())).toBe(false);
				expect(await stored(older)).toBeNull();
				expect(await store.findings(older.versionId)).toEqual([]);
				expect(await dueItems()).toEqual([]);
				expect(await stored(newer)).not.toBeNull();
				await store.deleteObject(newer.objectId, atOnce(NOW_MS + 1));
				const worker = workers[0] as WorkerId;
				const queue = await store.deletions(worker, 10);
				expect(queue).toHaveLength(3);
				expect(queue.at(-1)).toEqual({ shardId: newer.shards[0]?.shardId, forGood: true });
				expect(await store.deletions(worker, 2)).toEqual(queue.slice(0, 2));
				const none = { objects: 0, bytes: 0, trashObjects: 0, trashBytes: 0, intents: 0, repairs: 0 };
				expect(await store.counts()).toEqual({ ...none, deletions: 16 });
			});

			test('queues longer than a page come whole and in order', async () => {
				const worker = workers.slice(0, 1);
				const uploads = Array.from({ length: 23 }, (_, at) =>
					make.upload(worker, { segments: 100, k: 1, n: 1, nowMs: NOW_MS + at }),
				);
				for (const upload of uploads) await begin(store, upload);
				for (const { uploadId } of uploads) await store.abort(uploadId, NOW_MS);
				const queue = await store.deletions(worker[0] as WorkerId, 10_000);
				expect(idsOf(queue)).toEqual(idsOf(uploads.flatMap(({ shards }) => [...shards])));
				expect(queue.some(({ forGood }) => forGood)).toBe(false);
				for (const limit of [1, 999, 1_000, 1_001, 2_299, 2_300]) {
					expect(await store.deletions(worker[0] as WorkerId, limit)).toEqual(queue.slice(0, limit));
				}
				await store.deletionsDone(worker[0] as WorkerId, idsOf(queue.slice(0, 2_000)));
				expect(await store.deletions(worker[0] as WorkerId, 10_000)).toEqual(queue.slice(2_000));
			});

			test('1,100 open intents come oldest first', async () => {
				const uploads = Array.from({ length: 1_100 }, () => make.upload(workers, { segments: 0 }));
				await Promise.all(uploads.map((upload, at) => begin(store, upload, NOW_MS + (at % 7))));
				const rows = await store.intents(5_000);
				expect(new Set(rows.map(({ uploadId }) => uploadId)).size).toBe(1_100);
				const places = rows.map(({ expiresAtMs, uploadId }) => `${expiresAtMs} ${uploadId}`);
				expect(places).toEqual(places.toSorted());
			});

			test('a shard leaves the queue only by its own worker', async () => {
				const upload = await make.store(store, workers);
				await store.deleteObject(upload.objectId, atOnce());
				const all = idsOf(upload.shards);
				await store.deletionsDone(workers[1] as WorkerId, all);
				await store.deletionsDone(workers[1] as WorkerId, all);
				expect(await deletions()).toEqual(idsOf(upload.shards.filter(({ workerId }) => workerId !== workers[1])));
				expect(await store.deletions(workers[1] as WorkerId, 10)).toEqual([]);
			});
		});

		describe('trash', () => {
			const DAY_MS = 86_400_000;
			const keep = (nowMs = NOW_MS) => ({ nowMs, purgeAtMs: nowMs + DAY_MS, by: 'key-1' });
			const trashIds = async () => {
				const { objects } = await store.trash({ limit: 1_000, after: null });
				return objects.map(({ object }) => object.objectId);
			};
			const actions = async () => {
				const entries = await store.deletionLog({ limit: 1_000, after: 0 });
				return entries.map(({ action, by }) => `${action} ${by}`.trim());
			};

			test('what is deleted is not seen any more, keeps its shards, and comes back as it was', async () => {
				const upload = await make.store(store, workers, { segments: 2, missing: [5], sizeBytes: 1_000 });
				const other = await make.store(store, workers, { sizeBytes: 2_000 });
				const [before, row, queued] = [await reported(store), await stored(upload), await deletions()];
				expect(await store.deleteObject(upload.objectId, keep())).toBe(true);
				expect(await store.deleteObject(upload.objectId, keep())).toBe(false);
				expect(await store.deleteObject(upload.objectId, atOnce())).toBe(false);
				expect(await store.object(upload.objectId)).toBeNull();
				expect(await stored(upload)).toBeNull();
				const { objects } = await store.list({ limit: 10, after: null });
				expect(objects.map(({ objectId }) => objectId)).toEqual([other.objectId]);
				expect(await store.segments(upload.versionId, { fromSegment: 0, limit: 9 })).toEqual(row?.segments);
				const trashed = { object: upload.commit.object, deletedAtMs: NOW_MS, purgeAtMs: NOW_MS + DAY_MS };
				store = await opened.reopen();
				expect(await store.trashed(upload.objectId)).toEqual(trashed);
				expect(await store.trashed(other.objectId)).toBeNull();
				expect(await store.trashed('x' as ObjectId)).toBeNull();
				expect(await store.trash({ limit: 10, after: null })).toEqual({ objects: [trashed], next: null });
				expect(await deletions()).toEqual(queued);
				expect(await dueItems()).toHaveLength(2);
				const counts = { objects: 1, bytes: 2_000, trashObjects: 1, trashBytes: 1_000 };
				expect(await store.counts()).toMatchObject(counts);
				const { sets, spreads } = await checkRedundancy(store);
				expect(sets).toEqual(before.sets);
				expect(Object.values(spreads)).toEqual([{ objects: 1, bytes: 2_000 }]);

				expect(await store.undeleteObject(other.objectId, keep())).toBe(false);
				expect(await store.undeleteObject(make.id<ObjectId>(), keep())).toBe(false);
				expect(await store.undeleteObject(upload.objectId, keep(NOW_MS + 5))).toBe(true);
				expect(await store.undeleteObject(upload.objectId, keep())).toBe(false);
				expect(await stored(upload)).toEqual(row);
				expect(await checkRedundancy(store)).toEqual(before);
				expect(await store.trashed(upload.objectId)).toBeNull();
				expect(await store.counts()).toMatchObject({ objects: 2, bytes: 3_000, trashObjects: 0, trashBytes: 0 });
				expect(await actions()).toEqual(['trashed key-1', 'undeleted key-1']);
			});

			test('what is repaired meanwhile touches no spread, and is where it is when the object comes back', async () => {
				const upload = await make.store(store, workers, { segments: 2, sizeBytes: 1_000 });
				await store.addFindings([finding(upload, 1, 2)]);
				await store.deleteObject(upload.objectId, keep());
				await store.addFindings([finding(upload, 0, 3)]);
				expect((await checkRedundancy(store)).spreads).toEqual({});
				const newcomer = make.id<WorkerId>();
				for (const item of await dueItems()) {
					const { uploadId, done } = await rebuilt(item, newcomer);
					await store.repairDone(done, uploadId);
				}
				const { sets, spreads } = await checkRedundancy(store);
				expect(Object.keys(sets)).toHaveLength(2);
				expect(spreads).toEqual({});
				const ids = (await store.redundancyRows()).sets.map(({ setId }) => setId);
				expect(await store.objectsOnSets(ids, 10)).toEqual([upload.objectId]);
				expect(await store.sampleSet(ids[0] as string, 0.5)).not.toBeNull();
				expect(await store.undeleteObject(upload.objectId, keep())).toBe(true);
				expect(await checkRedundancy(store)).toEqual({
					sets,
					spreads: { [Object.keys(sets).sort().join(' + ')]: { objects: 1, bytes: 1_000 } },
				});
			});

			test('purged when its time is over: rows, findings and repairs go, shards are queued for good', async () => {
				const uploads: Upload[] = [];
				for (let at = 0; at < 5; at++) {
					const upload = await make.store(store, workers, { segments: at % 3, missing: at === 4 ? [1] : [] });
					uploads.push(upload);
					await store.deleteObject(upload.objectId, keep(NOW_MS + at));
				}
				const [first, second, , , last] = uploads as [Upload, Upload, Upload, Upload, Upload];
				await store.addFindings([finding(last, 0, 2)]);
				const queued = await deletions();
				expect(await store.purgeTrash(NOW_MS + DAY_MS - 1, 10)).toBe(0);
				expect(await store.purgeTrash(NOW_MS + DAY_MS + 3, 1)).toBe(1);
				const rest = uploads.slice(1).map(({ objectId }) => objectId);
				expect(await trashIds()).toEqual(rest.reverse());
				expect(await store.undeleteObject(first.objectId, keep())).toBe(false);
				expect(await store.purgeTrash(NOW_MS + DAY_MS + 3, 10)).toBe(3);
				expect(await trashIds()).toEqual([last.objectId]);
				expect(await store.purgeObject(second.objectId, keep())).toBe(false);
				expect(await store.purgeObject(last.objectId, keep())).toBe(true);
				expect(await store.purgeObject(last.objectId, keep())).toBe(false);
				expect(await store.findings(last.versionId)).toEqual([]);
				expect(await dueItems()).toEqual([]);
				expect(await deletions()).toEqual(idsOf(uploads.flatMap(({ shards }) => [...shards])));
				for (const workerId of workers) {
					// What the last one's commit left out was queued before.
					const soft = (await store.deletions(workerId, 100)).filter(({ forGood }) => !forGood);
					expect(soft.every(({ shardId }) => queued.includes(shardId))).toBe(true);
				}
				const all = await Promise.all(workers.map((workerId) => store.deletions(workerId, 100)));
				expect(all.flat().filter(({ forGood }) => !forGood)).toHaveLength(1);
				expect(await checkRedundancy(store)).toEqual({ sets: {}, spreads: {} });
				expect(await store.counts()).toMatchObject({ objects: 0, bytes: 0, trashObjects: 0, trashBytes: 0 });
				const trashed = Array.from({ length: 5 }, () => 'trashed key-1');
				expect(await actions()).toEqual([...trashed, 'purged', 'purged', 'purged', 'purged', 'purged key-1']);
			});

			test('one that is not deleted is not purged; without a time in the trash it is purged at once', async () => {
				const upload = await make.store(store, workers);
				expect(await store.purgeObject(upload.objectId, keep())).toBe(false);
				expect(await store.purgeTrash(Number.MAX_SAFE_INTEGER, 10)).toBe(0);
				expect(await stored(upload)).not.toBeNull();
				expect(await store.deleteObject(upload.objectId, { ...atOnce(), by: 'key-2' })).toBe(true);
				expect(await store.trashed(upload.objectId)).toBeNull();
				expect(await store.undeleteObject(upload.objectId, keep())).toBe(false);
				expect(await actions()).toEqual(['purged key-2']);
				expect(await checkRedundancy(store)).toEqual({ sets: {}, spreads: {} });
			});

			test('its id is not free, and its upload stays committed', async () => {
				const upload = await make.store(store, workers);
				await store.deleteObject(upload.objectId, keep());
				const taken = make.upload(workers);
				await begin(store, taken);
				const object = { ...taken.commit.object, objectId: upload.objectId };
				await refused('exists', store.commit({ ...taken.commit, object }));
				await refused('exists', begin(store, upload));
				expect(await store.commit(upload.commit)).toEqual(upload.commit.object);
				expect(await store.object(upload.objectId)).toBeNull();
				await store.undeleteObject(upload.objectId, keep());
				expect(await stored(upload)).not.toBeNull();
			});

			test('the trash by pages, what stays longest first; lists leave it out', async () => {
				const uploads = Array.from({ length: 620 }, () => make.upload(workers, { segments: 0 }));
				await Promise.all(uploads.map(({ commit }) => store.commit(commit)));
				const gone = uploads.filter((_, at) => at % 2 === 0);
				await Promise.all(gone.map(({ objectId }, at) => store.deleteObject(objectId, keep(NOW_MS + (at % 40)))));
				const expected = gone
					.map(({ objectId }, at) => ({ objectId, at: at % 40 }))
					.sort((a, b) => b.at - a.at || (a.objectId < b.objectId ? 1 : -1))
					.map(({ objectId }) => objectId);
				for (const limit of [40, 309, 310, 1_000]) {
					const seen: ObjectId[] = [];
					let after: string | null = null;
					do {
						const page = await store.trash({ limit, after });
						seen.push(...page.objects.map(({ object }) => object.objectId));
						after = page.next;
					} while (after !== null);
					expect(seen).toEqual(expected);
				}
				const { objects, next } = await store.list({ limit: 310, after: null });
				expect(next).toBeNull();
				expect(objects.map(({ objectId }) => objectId).sort()).toEqual(
					uploads
						.filter((_, at) => at % 2 === 1)
						.map(({ objectId }) => objectId)
						.sort(),
				);
				await refused('invalid', store.trash({ limit: 1, after: 'x' }));
			});

			test('deleted, undeleted and purged at once: one after the other, and each is in the log once', async () => {
				const uploads: Upload[] = [];
				for (let at = 0; at < 20; at++) uploads.push(await make.store(store, workers, { segments: 1 + (at % 2) }));
				const calls = uploads.flatMap(({ objectId }): (() => Promise<boolean | number>)[] => [
					() => store.deleteObject(objectId, keep()),
					() => store.undeleteObject(objectId, keep()),
					() => store.deleteObject(objectId, keep()),
					() => store.purgeObject(objectId, keep()),
					() => store.purgeTrash(NOW_MS + 2 * DAY_MS, 3),
				]);
				const answers = await Promise.all(calls.map((call) => call()));
				const entries = answers.reduce<number>((sum, answer) => sum + Number(answer), 0);
				expect(await new DeletionLog(store).verify()).toMatchObject({ entries, firstBad: null });
				await checkRedundancy(store);
			});
		});

		describe('log of deletions', () => {
			test('each entry follows the one before, computed alike everywhere, also after opening again', async () => {
				expect(await store.deletionHead()).toEqual(NO_DELETIONS);
				expect(await store.deletionLog({ limit: 10, after: 0 })).toEqual([]);
				const expected: DeletionEntry[] = [];
				const expectNext = ({ objectId }: Upload, action: DeletionAction, atMs: number, by: string) => {
					const last = expected.at(-1);
					const head = last === undefined ? NO_DELETIONS : headAfter(last);
					expected.push(nextDeletion(head, { objectId, action, atMs, by }));
				};
				const [first, second, third] = [
					await make.store(store, workers),
					await make.store(store, workers),
					await make.store(store, workers),
				];
				const late = 2 ** 45 + 1;
				await store.deleteObject(first.objectId, { nowMs: NOW_MS, purgeAtMs: NOW_MS + 5, by: 'a1b2' });
				expectNext(first, 'trashed', NOW_MS, 'a1b2');
				await store.undeleteObject(first.objectId, { nowMs: late, by: '' });
				expectNext(first, 'undeleted', late, '');
				await store.deleteObject(second.objectId, { nowMs: NOW_MS, purgeAtMs: NOW_MS, by: 'ü\u{1f600}' });
				expectNext(second, 'purged', NOW_MS, 'ü\u{1f600}');
				store = await opened.reopen();
				await store.deleteObject(third.objectId, { nowMs: 0, purgeAtMs: 1, by: '' });
				expectNext(third, 'trashed', 0, '');
				await store.purgeTrash(NOW_MS, 10);
				expectNext(third, 'purged', NOW_MS, '');
				expect(await store.deletionLog({ limit: 10, after: 0 })).toEqual(expected);
				expect(await store.deletionLog({ limit: 2, after: 1 })).toEqual(expected.slice(1, 3));
				expect(await store.deletionHead()).toEqual({ entries: 5, hash: expected.at(-1)?.hash });
			});

			test('what was refused, or had no effect, is not in it', async () => {
				const upload = await make.store(store, workers);
				await store.undeleteObject(upload.objectId, atOnce());
				await store.purgeObject(upload.objectId, atOnce());
				await store.deleteObject(make.id<ObjectId>(), atOnce());
				await refused('expired', store.purgeTrash(NOW_MS, 10, { name: 'never', fencing: 1 }));
				expect(await store.deletionHead()).toEqual(NO_DELETIONS);
			});

			test('1,100 deletions at once: each once, by pages, in a chain', async () => {
				const uploads = Array.from({ length: 1_100 }, () => make.upload(workers, { segments: 0 }));
				await Promise.all(uploads.map(({ commit }) => store.commit(commit)));
				await Promise.all(uploads.map(({ objectId }) => store.deleteObject(objectId, atOnce())));
				const entries = await store.deletionLog({ limit: 2_000, after: 0 });
				expect(entries.map(({ number }) => number)).toEqual(Array.from({ length: 1_100 }, (_, at) => at + 1));
				expect(new Set(entries.map(({ objectId }) => objectId)).size).toBe(1_100);
				expect(await new DeletionLog(store).verify()).toMatchObject({ entries: 1_100, firstBad: null });
			});
		});

		describe('known shards', () => {
			const no = { placed: false, intended: false, deleting: false };
			const known = async (workerId: WorkerId) => {
				const page = await store.knownShards(workerId, { after: null, limit: 10_000 });
				return new Map(page.map(({ shardId, ...how }) => [shardId, how]));
			};

			test('what placements, open intents and the delete queue name, each with its own', async () => {
				const [placed, open, deleted, aborted] = [
					await make.store(store, workers, { missing: [1] }),
					make.upload(workers),
					await make.store(store, workers),
					make.upload(workers),
				];
				await begin(store, open);
				await begin(store, aborted);
				await store.abort(aborted.uploadId, NOW_MS);
				await store.deleteObject(deleted.objectId, atOnce());
				// Marked, and yet placed.
				await store.addFindings([finding(placed, 0, 0)]);
				for (const [index, workerId] of workers.entries()) {
					const shardOf = (upload: Upload) => upload.shards[index]?.shardId as ShardId;
					expect(await known(workerId)).toEqual(
						new Map(
							[
								[shardOf(placed), index === 1 ? { ...no, deleting: true } : { ...no, placed: true }] as const,
								[shardOf(open), { ...no, intended: true }] as const,
								[shardOf(deleted), { ...no, deleting: true }] as const,
								[shardOf(aborted), { ...no, deleting: true }] as const,
							].sort(([a], [b]) => (a < b ? -1 : 1)),
						),
					);
				}
				expect(await known(make.id<WorkerId>())).toEqual(new Map());
				await store.commit(open.commit);
				const [first] = open.shards as [Upload['shards'][number]];
				expect((await known(first.workerId)).get(first.shardId)).toEqual({ ...no, placed: true });
				await store.deletionsDone(first.workerId, [(deleted.shards[0] as Upload['shards'][number]).shardId]);
				expect(await known(first.workerId)).not.toHaveProperty((deleted.shards[0] as Upload['shards'][number]).shardId);
			});

			test('2,300 come by pages in order, each once; a page covers all ids up to its last one', async () => {
				const worker = workers[0] as WorkerId;
				const ids: ShardId[] = [];
				for (const state of ['placed', 'open', 'deleted'] as const) {
					const uploads = Array.from({ length: 10 }, () => make.upload([worker], { segments: 77, k: 1, n: 1 }));
					await Promise.all(uploads.map((upload) => begin(store, upload)));
					if (state !== 'open') await Promise.all(uploads.map(({ commit }) => store.commit(commit)));
					if (state === 'deleted') {
						await Promise.all(uploads.map(({ objectId }) => store.deleteObject(objectId, atOnce())));
					}
					ids.push(...uploads.flatMap((upload) => idsOf(upload.shards)));
				}
				ids.sort();
				for (const limit of [7, 1_000, 2_310, 2_311]) {
					const found: ShardId[] = [];
					let pages = 0;
					for (;;) {
						const page = await store.knownShards(worker, { after: found.at(-1) ?? null, limit });
						expect(page.map(({ shardId }) => shardId)).toEqual(ids.slice(found.length, found.length + limit));
						found.push(...page.map(({ shardId }) => shardId));
						if (page.length < limit || ++pages === 20) break;
					}
					expect(found.length).toBe(Math.min(ids.length, limit * 20));
				}
				const [middle] = ids.slice(1_000) as [ShardId];
				const [next] = await store.knownShards(worker, { after: middle, limit: 1 });
				expect(next?.shardId).toBe(ids[1_001]);
			});

			test('unknown shards go to the delete queue; what is placed or intended by now does not', async () => {
				const [worker, other] = workers as [WorkerId, WorkerId];
				const [placed, open] = [await make.store(store, [worker]), make.upload([worker])];
				await begin(store, open);
				const unknown = [make.id<ShardId>(), make.id<ShardId>()];
				const queued = make.upload([worker]);
				await begin(store, queued);
				await store.abort(queued.uploadId, NOW_MS);
				const before = await known(worker);
				const all = [...idsOf(placed.shards), ...idsOf(open.shards), ...unknown];
				expect(await store.queueUnknown(worker, all, NOW_MS)).toBe(2);
				expect(await known(worker)).toEqual(
					new Map([...before, ...unknown.map((shardId) => [shardId, { ...no, deleting: true }] as const)]),
				);
				// Said again after a lost answer, and what was there already.
				expect(await store.queueUnknown(worker, [...all, ...idsOf(queued.shards)], NOW_MS)).toBe(
					2 + queued.shards.length,
				);
				expect(await store.deletions(worker, 100)).toHaveLength(2 + queued.shards.length);
				expect(await store.deletions(other, 100)).toEqual([]);
				expect(await store.queueUnknown(worker, [], NOW_MS)).toBe(0);
				// Placed on another worker: it is somebody's.
				expect(await store.queueUnknown(other, idsOf(placed.shards), NOW_MS)).toBe(0);
				expect(await stored(placed)).toMatchObject({ segments: placed.commit.segments });
				await store.commit(open.commit);
				await store.deletionsDone(worker, unknown);
				expect(await store.deletions(worker, 100)).toHaveLength(queued.shards.length);
			});

			test('a commit and the same shards called unknown, at once: what is placed is not to be deleted', async () => {
				const uploads = Array.from({ length: 20 }, () => make.upload(workers));
				await Promise.all(uploads.map((upload) => begin(store, upload)));
				await Promise.all(
					uploads.flatMap(({ commit, shards }) => [
						store.commit(commit),
						...workers.map((workerId, index) =>
							store.queueUnknown(workerId, [(shards[index] as (typeof shards)[number]).shardId], NOW_MS),
						),
					]),
				);
				expect(await deletions()).toEqual([]);
			});
		});

		describe('findings and repair', () => {
			test('a finding marks the shard, keeps its placement and queues one repair', async () => {
				const upload = await make.store(store, workers);
				const unknown = { ...finding(upload, 0, 1), shardId: make.id<ShardId>() };
				const foreign = { ...finding(upload, 0, 1), workerId: workers[5] as WorkerId };
				expect(await store.addFindings([unknown, foreign])).toEqual([]);
				expect(await dueItems()).toEqual([]);
				const found = finding(upload, 0, 3, NOW_MS + 5);
				expect(await store.addFindings([unknown, found, foreign])).toEqual([found.shardId]);
				const again: Finding = { ...finding(upload, 0, 3, NOW_MS + 9), kind: 'missing', detail: 'gone' };
				await store.addFindings([again]);
				expect(await store.findings(upload.versionId)).toEqual([again]);
				expect((await stored(upload))?.segments).toEqual(upload.commit.segments);
				expect(await dueItems()).toEqual([{ ...itemOf(upload, 0, 3), attempts: 0, dueAtMs: NOW_MS + 5 }]);
				expect(await store.repairs({ nowMs: NOW_MS + 4, limit: 9 })).toEqual([]);
			});

			test('fewest spare shards first, then oldest', async () => {
				const one = await make.store(store, workers, { missing: [0] });
				const two = await make.store(store, workers, { missing: [1, 2] });
				const three = await make.store(store, workers, { k: 3, missing: [3] });
				const order = async () => (await dueItems()).map(({ objectId, shardIndex }) => `${objectId} ${shardIndex}`);
				const is = (upload: Upload, shardIndex: number) => `${upload.objectId} ${shardIndex}`;
				expect(await order()).toEqual([is(two, 1), is(two, 2), is(one, 0), is(three, 3)]);
				await store.addFindings([finding(one, 0, 4)]);
				expect(await order()).toEqual([is(one, 0), is(two, 1), is(two, 2), is(one, 4), is(three, 3)]);
				await store.addFindings([finding(three, 0, 0), finding(three, 0, 1), finding(three, 0, 2)]);
				expect((await order()).slice(0, 4)).toEqual([3, 0, 1, 2].map((index) => is(three, index)));
				expect(await store.repairs({ nowMs: NOW_MS * 2, limit: 2 })).toHaveLength(2);
			});

			test('more findings and repairs than a page holds', async () => {
				const upload = await make.store(store, workers, { segments: 200 });
				const all = upload.commit.segments.flatMap(({ index, placements }) =>
					placements.map(({ shardIndex }) => finding(upload, index, shardIndex)),
				);
				await Promise.all([store.addFindings(all.slice(0, 700)), store.addFindings(all.slice(500))]);
				const byShard = all.toSorted((a, b) => (a.shardId < b.shardId ? -1 : 1));
				expect(await store.findings(upload.versionId)).toEqual(byShard);
				const items = await dueItems();
				expect(new Set(items.map(({ segment, shardIndex }) => `${segment}/${shardIndex}`)).size).toBe(1_200);
				expect(await store.repairs({ nowMs: NOW_MS, limit: 1_001 })).toEqual(items.slice(0, 1_001));
			});

			test('deferred: later, with one more attempt, the same when said twice', async () => {
				const upload = await make.store(store, workers, { missing: [0] });
				const [item] = (await dueItems()) as [RepairItem];
				await store.deferRepair(item, NOW_MS + 60_000);
				await store.deferRepair(item, NOW_MS + 60_000);
				expect(await store.repairs({ nowMs: NOW_MS + 59_999, limit: 9 })).toEqual([]);
				expect(await dueItems()).toEqual([{ ...item, attempts: 1, dueAtMs: NOW_MS + 60_000 }]);
				await store.deleteObject(upload.objectId, atOnce());
				await store.deferRepair(item, NOW_MS);
				expect(await dueItems()).toEqual([]);
			});

			test('done: the new shard replaces the old one, which is deleted; findings and item go', async () => {
				const upload = await make.store(store, workers, { segments: 2 });
				await store.addFindings([finding(upload, 1, 2), finding(upload, 1, 4)]);
				const item = (await dueItems()).find(({ shardIndex }) => shardIndex === 2) as RepairItem;
				const { uploadId, shard, done } = await rebuilt(item, make.id<WorkerId>());
				await store.repairDone(done, uploadId);
				await store.repairDone(done, uploadId);
				const segments = (await stored(upload))?.segments as Segment[];
				expect(segments[0]).toEqual(upload.commit.segments[0]);
				expect(segments[1]?.placements[2]).toEqual({ shardIndex: 2, ...shard });
				expect(segments[1]?.placements).toHaveLength(6);
				expect(await deletions()).toEqual([placementOf(upload, 1, 2).shardId]);
				expect(await store.findings(upload.versionId)).toEqual([finding(upload, 1, 4)]);
				expect(await dueItems()).toMatchObject([{ shardIndex: 4 }]);
				expect((await store.counts()).intents).toBe(0);
			});

			test('done: a shard that was missing is added', async () => {
				const upload = await make.store(store, workers, { missing: [0] });
				const before = await deletions();
				const [item] = (await dueItems()) as [RepairItem];
				const { uploadId, shard, done } = await rebuilt(item, workers[0] as WorkerId);
				await store.repairDone(done, uploadId);
				expect((await stored(upload))?.segments[0]?.placements[0]).toEqual({ shardIndex: 0, ...shard });
				expect(await deletions()).toEqual(before);
				expect((await store.counts()).repairs).toBe(0);
			});

			test('done too late: the object is gone, so the new shard is deleted', async () => {
				const upload = await make.store(store, workers, { missing: [0] });
				const [item] = (await dueItems()) as [RepairItem];
				const { uploadId, shard, done } = await rebuilt(item, workers[0] as WorkerId);
				await store.deleteObject(upload.objectId, atOnce());
				await refused('conflict', store.repairDone(done, uploadId));
				expect(await deletions()).toEqual(idsOf([...upload.shards, shard]));
				expect((await store.counts()).intents).toBe(0);
			});

			test('done on a worker that has another shard of the segment by now: the new shard is deleted', async () => {
				const upload = await make.store(store, workers);
				await store.addFindings([finding(upload, 0, 1)]);
				const [item] = (await dueItems()) as [RepairItem];
				const { uploadId, shard, done } = await rebuilt(item, workers[0] as WorkerId);
				await refused('conflict', store.repairDone(done, uploadId));
				expect(await deletions()).toEqual([shard.shardId]);
				expect((await stored(upload))?.segments).toEqual(upload.commit.segments);
				expect(await store.counts()).toMatchObject({ intents: 0, repairs: 1 });
				// Its own worker may take it again.
				const again = await rebuilt(item, workers[1] as WorkerId);
				await store.repairDone(again.done, again.uploadId);
				expect((await store.counts()).repairs).toBe(0);
			});

			test('done for another encoding: the new shard is deleted, the segment stays', async () => {
				const upload = await make.store(store, workers);
				const item = { ...itemOf(upload, 0, 1), encodingId: make.id(), attempts: 0, dueAtMs: 0 } as RepairItem;
				const { uploadId, shard, done } = await rebuilt(item, workers[0] as WorkerId);
				await refused('conflict', store.repairDone(done, uploadId));
				expect(await deletions()).toEqual([shard.shardId]);
				expect((await stored(upload))?.segments).toEqual(upload.commit.segments);
			});

			test('done needs an open intent that named the shard', async () => {
				await make.store(store, workers, { missing: [0] });
				const [item] = (await dueItems()) as [RepairItem];
				const { uploadId, done } = await rebuilt(item, workers[0] as WorkerId);
				const other = { ...done, placement: { ...done.placement, shardId: make.id<ShardId>() } };
				await refused('invalid', store.repairDone(other, uploadId));
				await store.abort(uploadId, NOW_MS);
				await refused('expired', store.repairDone(done, uploadId));
				expect((await store.counts()).repairs).toBe(1);
			});
		});

		describe('another encoding', () => {
			const renamed = async (
				upload: Upload,
				o: { segment?: number; k?: number; n?: number; workers?: readonly WorkerId[] } = {},
			) => {
				const { k = 2, n = 3, segment = 0 } = o;
				const reencoding = make.reencoding(upload, { k, n, segment, workers: o.workers ?? workers });
				const { uploadId, shards } = reencoding;
				await store.begin({ uploadId, objectId: upload.objectId, shards, expiresAtMs: NOW_MS + 1_000 });
				return reencoding;
			};

			test('takes the place of the old one: rows, sets, findings and repairs; the old shards are deleted', async () => {
				const upload = await make.store(store, workers, { segments: 3, missing: [5] });
				await store.addFindings([finding(upload, 1, 2), finding(upload, 2, 0)]);
				const before = await deletions();
				const { done, uploadId, shards } = await renamed(upload, { segment: 1 });
				await store.reencoded(done, uploadId);
				await store.reencoded(done, uploadId);
				const segments = (await stored(upload))?.segments as Segment[];
				const from = upload.commit.segments[1] as Segment;
				const { k, n, because } = from;
				expect(segments).toEqual([
					upload.commit.segments[0],
					{ ...done.segment, was: { k, n, because, untilMs: done.nowMs } },
					upload.commit.segments[2],
				]);
				expect(await store.object(upload.objectId)).toEqual(upload.commit.object);
				expect(await deletions()).toEqual([...before, ...idsOf(from.placements)].sort());
				expect(await store.findings(upload.versionId)).toEqual([finding(upload, 2, 0)]);
				expect((await dueItems()).map(({ segment, shardIndex }) => [segment, shardIndex]).sort()).toEqual([
					[0, 5],
					[2, 0],
					[2, 5],
				]);
				expect(await store.counts()).toMatchObject({ intents: 0, repairs: 3 });
				await checkRedundancy(store);
				expect(idsOf(done.segment.placements)).toEqual(idsOf(shards));
				// And again, from copies to a wide code; only the last one is remembered.
				const next = await renamed({ ...upload, commit: { ...upload.commit, segments: [done.segment] } });
				const wide = { ...next.done, segment: { ...next.done.segment, index: 1 } };
				await store.reencoded(wide, next.uploadId);
				store = await opened.reopen();
				const again = (await stored(upload))?.segments[1];
				expect(again?.was).toEqual({ k: 2, n: 3, because: done.segment.because, untilMs: wide.nowMs });
			});

			test('of an object with one segment moves it to another spread', async () => {
				const upload = await make.store(store, workers, { k: 1, n: 2 });
				const { done, uploadId } = await renamed(upload, { k: 4, n: 6 });
				await store.reencoded(done, uploadId);
				await checkRedundancy(store);
				const { sets, spreads } = await store.redundancyRows();
				expect(sets).toMatchObject([{ k: 4, n: 6, segments: 1 }]);
				expect(spreads).toMatchObject([{ setIds: [sets[0]?.setId], objects: 1 }]);
			});

			test('of an encoding that was replaced meanwhile: its shards are deleted, the segment stays', async () => {
				const upload = await make.store(store, workers);
				const first = await renamed(upload);
				const second = await renamed(upload, { k: 3, n: 5 });
				await store.reencoded(first.done, first.uploadId);
				const before = await deletions();
				await refused('conflict', store.reencoded(second.done, second.uploadId));
				expect((await stored(upload))?.segments[0]?.encodingId).toBe(first.done.segment.encodingId);
				expect(await deletions()).toEqual([...before, ...idsOf(second.shards)].sort());
				expect((await store.counts()).intents).toBe(0);
			});

			test('of an object that is gone: its shards are deleted', async () => {
				const upload = await make.store(store, workers);
				const { done, uploadId, shards } = await renamed(upload);
				await store.deleteObject(upload.objectId, atOnce());
				const before = await deletions();
				await refused('conflict', store.reencoded(done, uploadId));
				expect(await deletions()).toEqual([...before, ...idsOf(shards)].sort());
			});

			test('needs all its shards, named by an open intent', async () => {
				const upload = await make.store(store, workers);
				const { done, uploadId } = await renamed(upload);
				const { placements } = done.segment;
				const lacking = { ...done, segment: { ...done.segment, placements: placements.slice(1) } };
				await refused('invalid', store.reencoded(lacking, uploadId));
				const [first, ...others] = placements as [Segment['placements'][number]];
				const unnamed = { ...done.segment, placements: [{ ...first, shardId: make.id<ShardId>() }, ...others] };
				await refused('invalid', store.reencoded({ ...done, segment: unnamed }, uploadId));
				await store.abort(uploadId, NOW_MS);
				await refused('expired', store.reencoded(done, uploadId));
				expect((await stored(upload))?.segments).toEqual(upload.commit.segments);
				await checkRedundancy(store);
			});

			test('under a lease that was lost nothing changes', async () => {
				const upload = await make.store(store, workers);
				const { done, uploadId } = await renamed(upload);
				await refused('expired', store.reencoded(done, uploadId, { name: 'reencode', fencing: 7 }));
				expect((await stored(upload))?.segments).toEqual(upload.commit.segments);
			});

			test('and a repair of the old one at once: one of them has the segment', async () => {
				for (let round = 0; round < 10; round++) {
					const upload = await make.store(store, workers, { missing: [0] });
					const item = (await dueItems()).find(({ versionId }) => versionId === upload.versionId) as RepairItem;
					const repair = await rebuilt(item, workers[0] as WorkerId);
					const { done, uploadId } = await renamed(upload);
					const calls = [
						() => store.reencoded(done, uploadId),
						() => store.repairDone(repair.done, repair.uploadId).catch(() => {}),
					];
					await Promise.all((round % 2 === 0 ? calls : calls.toReversed()).map((call) => call()));
					expect((await stored(upload))?.segments[0]?.placements).toEqual(done.segment.placements);
				}
				await checkRedundancy(store);
				const placed = (await store.list({ limit: 100, after: null })).objects;
				expect(placed).toHaveLength(10);
				expect((await store.counts()).repairs).toBe(0);
			});
		});

		describe('redundancy', () => {
			const BYTES = 16 * 69_632 + 4_097;
			const on = (k: number, n: number, indexes: readonly number[]) =>
				nameOf({ k, n, workers: indexes.map((index) => workers[index] as WorkerId).sort() });
			const ALL = [0, 1, 2, 3, 4, 5];
			const setIdOf = async (name: string) => {
				const found = (await store.redundancyRows()).sets.find((set) => nameOf(set) === name);
				if (found === undefined) throw new Error(`no segment is on ${name}`);
				return found.setId;
			};
			const keyOf = ({ versionId, segment }: StoredSegment) => `${versionId} ${segment.index}`;
			/** Pages until the end. */
			const segmentsOn = async (setId: string, limit: number) => {
				const pages: StoredSegment[][] = [];
				let after: string | null = null;
				do {
					const page = await store.segmentsOnSet(setId, { after, limit });
					pages.push([...page.segments]);
					after = page.next;
				} while (after !== null);
				return pages;
			};

			test('an empty store has none', async () => {
				expect(await store.redundancyRows()).toEqual({ sets: [], spreads: [] });
				for (const setId of ['1', '0', '-1', 'x', '', make.id()]) {
					expect(await store.segmentsOnSet(setId, { after: null, limit: 10 })).toEqual({ segments: [], next: null });
					expect(await store.sampleSet(setId, 0.5)).toBeNull();
					expect(await store.objectsOnSets([setId], 10)).toEqual([]);
				}
				expect(await store.objectsOnSets([], 10)).toEqual([]);
			});

			test('commit counts by k, n and workers; begun, refused, aborted and repeated uploads count nothing', async () => {
				const plain = await make.store(store, workers, { sizeBytes: 1_000 });
				await make.store(store, workers, { sizeBytes: 2_000 });
				const cut = await make.store(store, workers, { k: 3, sizeBytes: 4_000 });
				const lacking = await make.store(store, workers, { missing: [1, 4], sizeBytes: 8_000 });
				const expected: Redundancy = {
					sets: {
						[on(4, 6, ALL)]: { segments: 2, bytes: 2 * BYTES },
						[on(3, 6, ALL)]: { segments: 1, bytes: BYTES },
						[on(4, 6, [0, 2, 3, 5])]: { segments: 1, bytes: BYTES },
					},
					spreads: {
						[on(4, 6, ALL)]: { objects: 2, bytes: 3_000 },
						[on(3, 6, ALL)]: { objects: 1, bytes: 4_000 },
						[on(4, 6, [0, 2, 3, 5])]: { objects: 1, bytes: 8_000 },
					},
				};
				expect(await reported(store)).toEqual(expected);
				for (const { commit } of [plain, cut, lacking]) await store.commit(commit);
				const begun = make.upload(workers, { k: 2 });
				await begin(store, begun);
				const aborted = make.upload(workers, { k: 2 });
				await begin(store, aborted);
				await store.abort(aborted.uploadId, NOW_MS);
				await refused('expired', store.commit(aborted.commit));
				const unnamed = make.upload(workers, { k: 2 });
				await begin(store, { ...unnamed, shards: unnamed.shards.slice(1) });
				await refused('invalid', store.commit(unnamed.commit));
				const taken = make.upload(workers, { k: 2 });
				await begin(store, taken);
				const object = { ...taken.commit.object, objectId: plain.objectId };
				await refused('exists', store.commit({ ...taken.commit, object }));
				expect(await reported(store)).toEqual(expected);
				expect(await checkRedundancy(store)).toEqual(expected);
				store = await opened.reopen();
				expect(await reported(store)).toEqual(expected);
			});

			test('inline objects are on no set, and are objects', async () => {
				const inline = make.upload(workers, { segments: 0, sizeBytes: 64 });
				await store.commit(inline.commit);
				await store.commit(make.upload(workers, { segments: 0, sizeBytes: 36 }).commit);
				expect(await store.redundancyRows()).toEqual({ sets: [], spreads: [{ setIds: [], objects: 2, bytes: 100 }] });
				await make.store(store, workers, { sizeBytes: 1_000 });
				expect((await checkRedundancy(store)).spreads).toEqual({
					'': { objects: 2, bytes: 100 },
					[on(4, 6, ALL)]: { objects: 1, bytes: 1_000 },
				});
				await store.deleteObject(inline.objectId, atOnce());
				expect((await checkRedundancy(store)).spreads['']).toEqual({ objects: 1, bytes: 36 });
			});

			test('shards that are placed nowhere: a set of no workers', async () => {
				await make.store(store, workers, { missing: ALL });
				expect(await store.redundancyRows()).toMatchObject({ sets: [{ k: 4, n: 6, workers: [], segments: 1 }] });
				await checkRedundancy(store);
			});

			test('two shards on one worker name it twice', async () => {
				const four = workers.slice(0, 4);
				await make.store(store, four);
				const expected = [0, 0, 1, 1, 2, 3].map((index) => workers[index] as WorkerId).sort();
				expect((await store.redundancyRows()).sets).toMatchObject([{ workers: expected }]);
			});

			test('findings take a shard out of its set, repair brings it in elsewhere; each counts once', async () => {
				const upload = await make.store(store, workers, { segments: 2, sizeBytes: 1_000 });
				const other = await make.store(store, workers, { sizeBytes: 2_000 });
				const whole = await setIdOf(on(4, 6, ALL));
				const unknown = { ...finding(upload, 0, 1), shardId: make.id<ShardId>() };
				const foreign = { ...finding(upload, 0, 1), workerId: workers[5] as WorkerId };
				const both = [finding(upload, 1, 2), finding(upload, 1, 2, NOW_MS + 1)];
				for (const findings of [both, both, [unknown, foreign]]) await store.addFindings(findings);
				expect(await checkRedundancy(store)).toEqual({
					sets: {
						[on(4, 6, ALL)]: { segments: 2, bytes: 2 * BYTES },
						[on(4, 6, [0, 1, 3, 4, 5])]: { segments: 1, bytes: BYTES },
					},
					spreads: {
						[on(4, 6, ALL)]: { objects: 1, bytes: 2_000 },
						[[on(4, 6, ALL), on(4, 6, [0, 1, 3, 4, 5])].sort().join(' + ')]: { objects: 1, bytes: 1_000 },
					},
				});
				expect(await setIdOf(on(4, 6, ALL))).toBe(whole);
				expect(new Set(await store.objectsOnSets([whole], 10))).toEqual(new Set([upload.objectId, other.objectId]));
				const lacking = await setIdOf(on(4, 6, [0, 1, 3, 4, 5]));
				expect(await store.objectsOnSets([lacking], 10)).toEqual([upload.objectId]);

				const [item] = (await dueItems()) as [RepairItem];
				const taken = await rebuilt(item, workers[0] as WorkerId);
				await refused('conflict', store.repairDone(taken.done, taken.uploadId));
				const newcomer = make.id<WorkerId>();
				const { uploadId, done } = await rebuilt(item, newcomer);
				await store.repairDone(done, uploadId);
				await store.repairDone(done, uploadId);
				const others = [0, 1, 3, 4, 5].map((index) => workers[index] as WorkerId);
				const mended = nameOf({ k: 4, n: 6, workers: [...others, newcomer].sort() });
				expect(await checkRedundancy(store)).toEqual({
					sets: {
						[on(4, 6, ALL)]: { segments: 2, bytes: 2 * BYTES },
						[mended]: { segments: 1, bytes: BYTES },
					},
					spreads: {
						[on(4, 6, ALL)]: { objects: 1, bytes: 2_000 },
						[[on(4, 6, ALL), mended].sort().join(' + ')]: { objects: 1, bytes: 1_000 },
					},
				});
				expect(await store.segmentsOnSet(lacking, { after: null, limit: 10 })).toEqual({ segments: [], next: null });
				const late = await rebuilt({ ...item, shardIndex: 3 }, make.id<WorkerId>());
				await store.deleteObject(upload.objectId, atOnce());
				await refused('conflict', store.repairDone(late.done, late.uploadId));
				expect(await checkRedundancy(store)).toEqual({
					sets: { [on(4, 6, ALL)]: { segments: 1, bytes: BYTES } },
					spreads: { [on(4, 6, ALL)]: { objects: 1, bytes: 2_000 } },
				});
			});

			test('a missing shard that is rebuilt where it should have been: the set is whole', async () => {
				await make.store(store, workers, { missing: [2] });
				const [item] = (await dueItems()) as [RepairItem];
				const { uploadId, done } = await rebuilt(item, workers[2] as WorkerId);
				await store.repairDone(done, uploadId);
				expect(Object.keys((await checkRedundancy(store)).sets)).toEqual([on(4, 6, ALL)]);
			});

			test('all segments of an object marked at once, and every shard of one', async () => {
				const upload = await make.store(store, workers, { segments: 5, sizeBytes: 1_000 });
				await store.addFindings([0, 1, 2, 3, 4].map((segment) => finding(upload, segment, 5)));
				expect((await checkRedundancy(store)).spreads).toEqual({
					[on(4, 6, [0, 1, 2, 3, 4])]: { objects: 1, bytes: 1_000 },
				});
				await store.addFindings(ALL.map((index) => finding(upload, 3, index)));
				expect((await checkRedundancy(store)).sets[on(4, 6, [])]).toEqual({ segments: 1, bytes: BYTES });
			});

			test('an object whose segments are on several sets, in any order, is on one spread', async () => {
				const mixed = (order: readonly number[]) => {
					const upload = make.upload(workers, { segments: 6, sizeBytes: 600 });
					// Segment by segment without one of three workers.
					const segments = upload.commit.segments.map((segment, at) => ({
						...segment,
						placements: segment.placements.filter(({ shardIndex }) => shardIndex !== order[at % order.length]),
					}));
					return { ...upload, commit: { ...upload.commit, segments } };
				};
				const uploads = [mixed([0, 1, 2]), mixed([2, 1, 0]), mixed([1, 1, 0, 2])];
				for (const upload of uploads) {
					await begin(store, upload);
					await store.commit(upload.commit);
				}
				const { spreads } = await checkRedundancy(store);
				expect(Object.values(spreads)).toEqual([{ objects: 3, bytes: 1_800 }]);
				const ids = (await store.redundancyRows()).sets.map(({ setId }) => setId);
				expect(new Set(await store.objectsOnSets(ids, 10))).toEqual(new Set(uploads.map(({ objectId }) => objectId)));
				expect(await store.objectsOnSets(ids, 2)).toHaveLength(2);
				for (const { objectId } of uploads) await store.deleteObject(objectId, atOnce());
				expect(await store.redundancyRows()).toEqual({ sets: [], spreads: [] });
			});

			test('a set that empties and fills again; an id of before never names another set', async () => {
				const named = new Map<string, string>();
				const remember = async () => {
					for (const set of (await store.redundancyRows()).sets) {
						expect(named.get(set.setId) ?? nameOf(set)).toBe(nameOf(set));
						named.set(set.setId, nameOf(set));
					}
				};
				for (let round = 0; round < 3; round++) {
					for (const k of [3, 4]) {
						const upload = await make.store(store, workers, { k, sizeBytes: 1_000 });
						await remember();
						expect(await checkRedundancy(store)).toEqual({
							sets: { [on(k, 6, ALL)]: { segments: 1, bytes: BYTES } },
							spreads: { [on(k, 6, ALL)]: { objects: 1, bytes: 1_000 } },
						});
						await store.addFindings([finding(upload, 0, round)]);
						await remember();
						if (round === 1) store = await opened.reopen();
						await store.deleteObject(upload.objectId, atOnce());
						expect(await store.redundancyRows()).toEqual({ sets: [], spreads: [] });
					}
				}
				expect(new Set(named.values()).size).toBe(8);
			});

			test('2,100 segments of one set come by pages, each once, with all that is known of them', async () => {
				const uploads = [700, 1, 699, 700].map((segments) => make.upload(workers, { segments }));
				for (const upload of uploads) {
					await begin(store, upload);
					await store.commit(upload.commit);
				}
				await make.store(store, workers, { k: 3, segments: 3 });
				const setId = await setIdOf(on(4, 6, ALL));
				const all = uploads.flatMap(({ objectId, versionId, commit }) =>
					commit.segments.map((segment) => ({ objectId, versionId, segment })),
				);
				const sorted = (segments: readonly StoredSegment[]) =>
					segments.toSorted((a, b) => (keyOf(a) < keyOf(b) ? -1 : 1));
				const [whole] = (await segmentsOn(setId, 5_000)) as [StoredSegment[]];
				expect(sorted(whole)).toEqual(sorted(all));
				for (const limit of [999, 1_000, 2_099, 2_100]) {
					const pages = await segmentsOn(setId, limit);
					expect(pages.map(({ length }) => length)).toEqual(
						Array.from({ length: Math.ceil(2_100 / limit) }, (_, at) => Math.min(limit, 2_100 - at * limit)),
					);
					expect(pages.flat().map(keyOf)).toEqual(whole.map(keyOf));
				}
			});

			test('segments that leave a set while its pages are read are left out, the others come once', async () => {
				const uploads = [];
				for (let count = 0; count < 8; count++) uploads.push(await make.store(store, workers, { segments: 2 }));
				const setId = await setIdOf(on(4, 6, ALL));
				const first = await store.segmentsOnSet(setId, { after: null, limit: 5 });
				const seen = new Set(first.segments.map(keyOf));
				const rest = uploads.flatMap((upload) =>
					[0, 1]
						.filter((segment) => !seen.has(`${upload.versionId} ${segment}`))
						.map((segment) => ({ upload, segment })),
				);
				const [left, gone] = rest.slice(-3) as [(typeof rest)[number], (typeof rest)[number]];
				await store.addFindings([finding(left.upload, left.segment, 0)]);
				await store.deleteObject(gone.upload.objectId, atOnce());
				const later = await store.segmentsOnSet(setId, { after: first.next, limit: 100 });
				const stay = rest.filter(
					({ upload, segment }) => upload !== gone.upload && !(upload === left.upload && segment === left.segment),
				);
				expect(later.segments.map(keyOf).toSorted()).toEqual(
					stay.map(({ upload, segment }) => `${upload.versionId} ${segment}`).toSorted(),
				);
				expect(later.next).toBeNull();
			});

			test('samples: every segment comes, each from its set, objects about equally often', async () => {
				const uploads = [];
				for (let count = 0; count < 10; count++) {
					uploads.push(await make.store(store, workers, { segments: 4 }));
					await make.store(store, workers, { k: 3 });
				}
				const setId = await setIdOf(on(4, 6, ALL));
				const drawn = new Map<string, number>();
				for (let at = 0; at < 400; at++) {
					const sample = (await store.sampleSet(setId, (at + 0.5) / 400)) as StoredSegment;
					const upload = uploads.find(({ objectId }) => objectId === sample.objectId) as Upload;
					expect(sample).toEqual({
						objectId: upload.objectId,
						versionId: upload.versionId,
						segment: upload.commit.segments[sample.segment.index],
					});
					drawn.set(keyOf(sample), (drawn.get(keyOf(sample)) ?? 0) + 1);
				}
				expect(drawn.size).toBe(40);
				// 10 each would be even; an object's own place and the gap before it may both be drawn.
				expect(Math.max(...drawn.values())).toBeLessThanOrEqual(25);
				for (const at of [0, 1]) expect(await store.sampleSet(setId, at)).not.toBeNull();
			});

			test('a set that is gone has no sample, and one of one segment always that', async () => {
				const upload = await make.store(store, workers);
				const setId = await setIdOf(on(4, 6, ALL));
				for (const at of [0, 0.3, 0.999, 1]) {
					expect((await store.sampleSet(setId, at))?.objectId).toBe(upload.objectId);
				}
				await store.deleteObject(upload.objectId, atOnce());
				expect(await store.sampleSet(setId, 0.5)).toBeNull();
				expect(await store.objectsOnSets([setId], 5)).toEqual([]);
			});

			test.each(['x', '1', '1.2.3', '{}'])('cursor %j is invalid', async (after) => {
				await make.store(store, workers);
				const setId = await setIdOf(on(4, 6, ALL));
				await refused('invalid', store.segmentsOnSet(setId, { after, limit: 1 }));
			});

			test('commits, findings, repairs and deletions at once: the counts are those of the rows', async () => {
				const make2 = new Fixtures('at once');
				const uploads = Array.from({ length: 60 }, (_, at) =>
					make2.upload(at % 2 === 0 ? workers : workers.toReversed(), {
						segments: 1 + (at % 3),
						missing: at % 4 === 0 ? [at % 6] : [],
					}),
				);
				await Promise.all(uploads.map((upload) => begin(store, upload)));
				await Promise.all(uploads.map(({ commit }) => store.commit(commit)));
				const items = (await dueItems()).slice(0, 12);
				const repairs = await Promise.all(
					items.map((item, at) => rebuilt(item, at % 3 === 0 ? (workers[at % 6] as WorkerId) : make2.id())),
				);
				await Promise.allSettled([
					...uploads.map((upload, at) => store.addFindings([finding(upload, 0, (at + 1) % 6)])),
					...uploads.filter((_, at) => at % 5 === 0).map(({ objectId }) => store.deleteObject(objectId, atOnce())),
					...repairs.map(({ done, uploadId }) => store.repairDone(done, uploadId)),
					...uploads.map(({ commit }) => store.commit(commit)),
				]);
				await checkRedundancy(store);
			});
		});

		describe('workers', () => {
			test('saved, changed, kept', async () => {
				const [b, a] = [make.worker('worker-b'), make.worker('worker-a')];
				await store.saveWorker(b);
				await store.saveWorker(a);
				const full = { bytesUsed: Number.MAX_SAFE_INTEGER - 1, bytesTotal: Number.MAX_SAFE_INTEGER };
				const changed = { ...b, ...full, address: '127.0.0.1:1', lastSeenMs: NOW_MS + 5 };
				await store.saveWorker({ ...changed, registeredAtMs: NOW_MS + 5 });
				store = await opened.reopen();
				expect(await store.workers()).toEqual([a, changed]);
			});

			test('another receipt key is denied, another worker with the name refused', async () => {
				const worker = make.worker('worker-1');
				await store.saveWorker(worker);
				await refused('denied', store.saveWorker({ ...worker, receiptKey: make.bytes(32) }));
				await refused('exists', store.saveWorker(make.worker('worker-1')));
				await store.saveWorker({ ...worker, name: 'worker-2' });
				await store.saveWorker(make.worker('worker-1'));
				expect((await store.workers()).map(({ name: called }) => called)).toEqual(['worker-1', 'worker-2']);
			});

			test('figures of those that were seen, and of nobody else', async () => {
				const [a, b, stranger] = ['worker-a', 'worker-b', 'worker-c'].map((name) => make.worker(name));
				if (a === undefined || b === undefined || stranger === undefined) throw new Error('three workers');
				await store.saveWorker(a);
				await store.saveWorker(b);
				const seen = { lastSeenMs: NOW_MS + 9, bytesTotal: 2 ** 53 - 1, bytesUsed: 2 ** 53 - 2, shards: 2 ** 33 };
				await store.sawWorkers([
					{ workerId: stranger.workerId, ...seen },
					{ workerId: b.workerId, ...seen },
				]);
				await store.sawWorkers([]);
				store = await opened.reopen();
				expect(await store.workers()).toEqual([a, { ...b, ...seen }]);
			});

			test('a name is taken from whom nobody has seen since, and that only', async () => {
				const [before, other] = [make.worker('worker-1'), make.worker('worker-2')];
				await store.saveWorker(before);
				await store.saveWorker(other);
				const rename = (name: string, lastSeenMs: number) => store.renameWorker(before.workerId, { name, lastSeenMs });
				expect(await rename('worker-1~0', NOW_MS - 1)).toBe(false);
				await refused('exists', rename('worker-2', NOW_MS));
				expect(await rename('worker-1~0', NOW_MS)).toBe(true);
				// Its answer may have been lost.
				expect(await rename('worker-1~0', NOW_MS)).toBe(true);
				expect(await store.renameWorker(make.id(), { name: 'worker-3', lastSeenMs: NOW_MS })).toBe(false);
				const after = make.worker('worker-1');
				await store.saveWorker(after);
				store = await opened.reopen();
				expect(await store.workers()).toEqual([after, { ...before, name: 'worker-1~0' }, other]);
			});

			test('duty and history stay when the worker is seen again, and are changed by their own calls only', async () => {
				const worker = make.worker('worker-1');
				await store.saveWorker({ ...worker, duty: 'draining', history: 'x' } as WorkerSighting);
				expect(await store.workers()).toEqual([{ ...worker, duty: 'active', history: '' }]);
				expect(await store.setDuty(worker.workerId, 'cordoned')).toBe(true);
				expect(await store.setDuty(make.id<WorkerId>(), 'cordoned')).toBe(false);
				await store.saveHistory(worker.workerId, '{"audits":[3,"§"]}');
				await store.saveHistory(make.id<WorkerId>(), 'nobody');
				await store.saveWorker({ ...worker, shards: 99 });
				const expected = { ...worker, shards: 99, duty: 'cordoned', history: '{"audits":[3,"§"]}' };
				expect(await store.workers()).toEqual([expected]);
				store = await opened.reopen();
				expect(await store.workers()).toEqual([expected]);
				await store.setDuty(worker.workerId, 'draining');
				await store.setDuty(worker.workerId, 'active');
				expect(await store.workers()).toEqual([{ ...expected, duty: 'active' }]);
			});

			test('one that a placement names is not forgotten, good or marked; then it goes with its delete queue', async () => {
				const rows = workers.map((workerId, at) => ({ ...make.worker(`worker-${at}`), workerId }));
				for (const row of rows) await store.saveWorker(row);
				const stays = await make.store(store, workers.slice(1), { k: 3, n: 5 });
				const upload = await make.store(store, workers, { missing: [1] });
				const worker = workers[0] as WorkerId;
				await refused('conflict', store.forgetWorker(worker, NOW_MS));
				await store.addFindings([finding(upload, 0, 0)]);
				await refused('conflict', store.forgetWorker(worker, NOW_MS));
				const item = (await dueItems()).find(({ shardIndex }) => shardIndex === 0) as RepairItem;
				const { uploadId, done } = await rebuilt(item, workers[1] as WorkerId);
				await store.repairDone(done, uploadId);
				expect(await store.deletions(worker, 10)).toHaveLength(1);
				const before = await store.counts();
				expect(await store.forgetWorker(make.id<WorkerId>(), NOW_MS)).toBe(false);
				expect(await store.forgetWorker(worker, NOW_MS)).toBe(true);
				expect(await store.forgetWorker(worker, NOW_MS)).toBe(false);
				expect(await store.deletions(worker, 10)).toEqual([]);
				expect(await store.counts()).toEqual({ ...before, deletions: before.deletions - 1 });
				expect(await store.workers()).toEqual(rows.slice(1));
				expect(await store.forgottenAt(worker)).toBe(NOW_MS);
				expect(await store.forgottenAt(workers[1] as WorkerId)).toBeNull();
				await refused('conflict', store.forgetWorker(workers[1] as WorkerId, NOW_MS));
				for (const { objectId } of [stays, upload]) await store.deleteObject(objectId, atOnce());
				expect(await store.forgetWorker(workers[1] as WorkerId, NOW_MS)).toBe(true);
				// Its name is free.
				await store.saveWorker({ ...make.worker('worker-0'), name: 'worker-1' });
			});

			test('one that a write under way names is not forgotten: its shards would be in a queue that nobody empties', async () => {
				const worker = workers[0] as WorkerId;
				await store.saveWorker({ ...make.worker('worker-0'), workerId: worker });
				const upload = make.upload([worker]);
				await begin(store, upload);
				await refused('conflict', store.forgetWorker(worker, NOW_MS));
				await store.abort(upload.uploadId, NOW_MS);
				expect(await store.forgetWorker(worker, NOW_MS)).toBe(true);
				expect(await store.counts()).toMatchObject({ intents: 0, deletions: 0 });
			});
		});

		test('no shard is named on a worker that was forgotten, until it is back', async () => {
			const gone = make.worker('worker-0');
			await store.saveWorker(gone);
			expect(await store.forgetWorker(gone.workerId, NOW_MS)).toBe(true);
			const upload = make.upload([workers[0] as WorkerId, gone.workerId]);
			await refused('unavailable', begin(store, upload));
			expect(await store.counts()).toMatchObject({ intents: 0, deletions: 0 });
			const { uploadId, objectId, shards } = upload;
			await store.begin({ uploadId, objectId, shards: shards.slice(0, 1), expiresAtMs: NOW_MS + 1_000 });
			await refused('unavailable', store.extend(uploadId, shards.slice(1, 2)));
			store = await opened.reopen();
			await refused('unavailable', store.extend(uploadId, shards.slice(1, 2)));
			await store.saveWorker(gone);
			await store.extend(uploadId, shards.slice(1));
			expect(await store.forgottenAt(gone.workerId)).toBe(NOW_MS);
			await store.commit(upload.commit);
			await store.deleteObject(objectId, atOnce());
			expect(await store.forgetWorker(gone.workerId, NOW_MS + 5)).toBe(true);
			expect(await store.forgottenAt(gone.workerId)).toBe(NOW_MS + 5);
		});

		test('forgotten while shards are named on it: either is refused, and no queue is left that nobody empties', async () => {
			for (let round = 0; round < 10; round++) {
				const worker = make.worker(`worker-${round}`);
				await store.saveWorker(worker);
				const uploads = Array.from({ length: 8 }, () => make.upload([worker.workerId]));
				const [forgotten, ...begun] = await Promise.allSettled([
					store.forgetWorker(worker.workerId, NOW_MS),
					...uploads.map((upload) => begin(store, upload)),
				]);
				await Promise.all(uploads.map(({ uploadId }) => store.abort(uploadId, NOW_MS)));
				const wasForgotten = forgotten?.status === 'fulfilled';
				const named = begun.filter(({ status }) => status === 'fulfilled').length;
				expect((await store.workers()).some(({ workerId }) => workerId === worker.workerId)).toBe(!wasForgotten);
				if (wasForgotten) expect(named).toBe(0);
				expect(await store.deletions(worker.workerId, 100)).toHaveLength(named * 6);
			}
		});

		describe('jobs', () => {
			test('paused, asked to run, told their state: each keeps what the others said', async () => {
				expect(await store.jobs()).toEqual([]);
				await store.saveJobState('repair', '{"left":3}', NOW_MS);
				await store.requestRun('audit', NOW_MS + 1);
				await store.pauseJob('repair', true, NOW_MS + 2);
				await store.pauseJob('drain', false, NOW_MS + 3);
				const audit = { name: 'audit', paused: false, runs: 1, state: '', updatedAtMs: NOW_MS + 1 };
				const drain = { name: 'drain', paused: false, runs: 0, state: '', updatedAtMs: NOW_MS + 3 };
				const repair = { name: 'repair', paused: true, runs: 0, state: '{"left":3}', updatedAtMs: NOW_MS + 2 };
				expect(await store.jobs()).toEqual([audit, drain, repair]);
				await store.requestRun('audit', NOW_MS + 4);
				await store.requestRun('repair', NOW_MS + 5);
				await store.saveJobState('audit', 'x', NOW_MS + 6);
				await store.pauseJob('repair', false, NOW_MS + 7);
				store = await opened.reopen();
				expect(await store.jobs()).toEqual([
					{ ...audit, runs: 2, state: 'x', updatedAtMs: NOW_MS + 6 },
					drain,
					{ ...repair, paused: false, runs: 1, updatedAtMs: NOW_MS + 7 },
				]);
			});

			test('requests at once all count', async () => {
				await Promise.all(Array.from({ length: 20 }, () => store.requestRun('audit', NOW_MS)));
				expect(await store.jobs()).toMatchObject([{ runs: 20 }]);
			});
		});

		describe('leases', () => {
			const HOUR_MS = 3_600_000;
			const acquire = (holder: string, ttlMs = HOUR_MS) => store.acquireLease('repair', { holder, ttlMs });

			test('one holder at a time, which keeps its number; the next one gets a higher', async () => {
				const first = (await acquire('a')) as Lease;
				expect(await acquire('b')).toBeNull();
				expect(await acquire('a')).toEqual(first);
				expect((await store.acquireLease('other', { holder: 'b', ttlMs: HOUR_MS }))?.name).toBe('other');
				await store.releaseLease(first);
				const second = (await acquire('b')) as Lease;
				expect(second.fencing).toBeGreaterThan(first.fencing);
				await store.releaseLease(first);
				expect(await acquire('a')).toBeNull();
			});

			test('of many at once one gets it', async () => {
				const got = await Promise.all(['a', 'b', 'c', 'd', 'e'].map((holder) => acquire(holder)));
				expect(got.filter((lease) => lease !== null)).toHaveLength(1);
			});

			test('it ends by itself, and its own holder then gets a new number', async () => {
				const first = (await acquire('a', 1)) as Lease;
				await expect.poll(() => acquire('b', 1)).not.toBeNull();
				await expect.poll(() => acquire('a')).not.toBeNull();
				expect((await acquire('a'))?.fencing).toBeGreaterThan(first.fencing + 1);
			});

			test('writes under it take effect; under one that was lost they are refused and leave nothing', async () => {
				const upload = await make.store(store, workers, { missing: [0, 1] });
				const expiring = make.upload(workers);
				await begin(store, expiring, NOW_MS);
				const worker = make.worker('worker-1');
				await store.saveWorker(worker);
				const [item, other] = (await dueItems()) as [RepairItem, RepairItem];
				const uploadId = make.id<UploadId>();
				const shard = { shardId: make.id<ShardId>(), workerId: workers[0] as WorkerId };
				await store.begin({ uploadId, objectId: item.objectId, shards: [shard], expiresAtMs: NOW_MS * 2 });
				const done = { item, placement: { shardIndex: item.shardIndex, ...shard }, keyGeneration: 1, nowMs: NOW_MS };
				const queue = await store.deletions(workers[0] as WorkerId, 10);
				const writes = (lease: Lease): (() => Promise<unknown>)[] => [
					() => store.deferRepair(other, NOW_MS + 5, lease),
					() => store.deletionsDone(workers[0] as WorkerId, idsOf(queue), lease),
					() => store.purgeTrash(NOW_MS * 2, 10, lease),
					() => store.repairDone(done, uploadId, lease),
					() => store.expireIntents(NOW_MS, 10, lease),
					() => store.saveHistory(worker.workerId, 'told', lease),
					() => store.saveJobState('repair', 'told', NOW_MS, lease),
				];
				const view = async () => [
					await store.counts(),
					await dueItems(),
					await stored(upload),
					await store.workers(),
					await store.jobs(),
					await reported(store),
				];
				const before = await view();
				const lost = (await acquire('a', 1)) as Lease;
				await expect.poll(() => acquire('b')).not.toBeNull();
				for (const write of writes(lost)) await refused('expired', write());
				for (const write of writes({ name: 'never', fencing: 1 })) await refused('expired', write());
				expect(await view()).toEqual(before);
				const held = (await acquire('b')) as Lease;
				for (const write of writes(held)) await write();
				expect(await dueItems()).toEqual([{ ...other, attempts: 1, dueAtMs: NOW_MS + 5 }]);
				expect((await store.counts()).intents).toBe(0);
				expect(await store.workers()).toEqual([{ ...worker, history: 'told' }]);
				expect(await store.jobs()).toMatchObject([{ name: 'repair', state: 'told' }]);
				await store.releaseLease(held);
				await refused('expired', store.expireIntents(NOW_MS, 10, held));
			});
		});

		test('counts are those of the rows, also after opening again', async () => {
			const kept = await make.store(store, workers, { missing: [2], sizeBytes: 1_000 });
			const gone = await make.store(store, workers, { sizeBytes: 2_000 });
			const deleted = await make.store(store, workers, { sizeBytes: 4_000 });
			await store.deleteObject(deleted.objectId, { nowMs: NOW_MS, purgeAtMs: NOW_MS + 1, by: '' });
			await begin(store, make.upload(workers));
			await store.addFindings([finding(kept, 0, 0)]);
			await store.deleteObject(gone.objectId, atOnce());
			const trashed = { trashObjects: 1, trashBytes: 4_000 };
			const expected = { objects: 1, bytes: 1_000, ...trashed, intents: 1, deletions: 7, repairs: 2 };
			expect(await store.counts()).toEqual(expected);
			store = await opened.reopen();
			expect(await store.counts()).toEqual(expected);
		});

		test('it has a clock', async () => {
			const first = await store.nowMs();
			expect(Number.isSafeInteger(first)).toBe(true);
			await expect.poll(() => store.nowMs()).toBeGreaterThan(first);
			expect((await store.nowMs()) - first).toBeLessThan(60_000);
		});

		test('close waits for what is under way; then everything is refused', async () => {
			const upload = make.upload(workers);
			const writes = [begin(store, upload), store.commit(upload.commit)];
			const closed = store.close();
			await Promise.all(writes);
			await closed;
			await store.close();
			await refused('unavailable', store.counts());
			store = await opened.reopen();
			expect(await stored(upload)).not.toBeNull();
		});
	});
}

async function refused(kind: ErrorKind, call: Promise<unknown>): Promise<void> {
	await expect(call).rejects.toMatchObject({ name: 'DistroError', kind });
}
