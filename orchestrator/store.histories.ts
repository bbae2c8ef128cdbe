/**
 * Random histories: an adapter must answer every call of them as the reference in memory does, and end with the same rows.
 */

import fc from 'fast-check';
import { expect } from 'vitest';
import { asDistroError } from '../core/errors.ts';
import type { ObjectId, ShardId, UploadId, WorkerId } from '../core/ids.ts';
import { atOnce, begin, Fixtures, NOW_MS, type Upload } from './store.fixtures.ts';
import { checkRedundancy, reported } from './store.recount.ts';
import type { MetadataStore } from './store.ts';
import { MemoryMetadataStore } from './store-memory.ts';

const step = fc.record({
	act: fc.constantFrom(
		'begin',
		'begin',
		'begin',
		'commit',
		'commit',
		'commit',
		'commit',
		'inline',
		'abort',
		'renew',
		'expire',
		'claim',
		'delete',
		'trash',
		'trash',
		'undelete',
		'purge',
		'purge due',
		'deletionsDone',
		'unknown',
		'finding',
		'finding',
		'finding',
		'defer',
		'repair',
		'repair',
		'reencode',
	),
	pick: fc.nat(1_000),
	other: fc.nat(1_000),
});

type Step = typeof step extends fc.Arbitrary<infer Value> ? Value : never;

/** `open` gives an empty store; `check` looks behind the port when a history has ended. */
export async function compareHistories(
	open: () => Promise<{ store: MetadataStore; check: () => Promise<void> }>,
	options: { runs: number },
): Promise<void> {
	const histories = fc.array(step, { minLength: 20, maxLength: 120 });
	const property = fc.asyncProperty(histories, async (steps) => {
		const { store, check } = await open();
		await compare(store, steps);
		await check();
		await store.close();
	});
	await fc.assert(property, { seed: 20_260_101, numRuns: options.runs });
}

async function compare(tested: MetadataStore, steps: readonly Step[]): Promise<void> {
	const memory = new MemoryMetadataStore();
	const make = new Fixtures('model');
	// Uploads go to the first four; repair has two more to choose from.
	const workers = Array.from({ length: 6 }, () => make.id<WorkerId>());
	const uploads: Upload[] = [];
	let nowMs = NOW_MS;
	for (const { act, pick, other } of steps) {
		nowMs += pick % 7;
		const upload = uploads[pick % Math.max(1, uploads.length)];
		// One list of calls for both stores: whatever is random is drawn before.
		const fresh = make.upload(workers.slice(0, 4), {
			segments: 1 + (other % 2),
			k: 2,
			n: 4,
			missing: [[], [0], [1, 3]][other % 3] as number[],
			nowMs,
			...(other % 4 === 0 ? { idempotency: { key: `key ${other % 3}`, fingerprint: 'f' } } : {}),
		});
		const anew = make.reencoding(upload ?? fresh, {
			segment: upload === undefined ? 0 : other % upload.commit.segments.length,
			k: 1 + (other % 3),
			n: 4 + (other % 2),
			workers: workers.slice(pick % 2),
		});
		const shardId = make.id<ShardId>();
		const repairUploadId = make.id<UploadId>();
		if (act === 'begin') uploads.push(fresh);
		const inline = make.upload(workers, { segments: 0, nowMs });
		const on = async (store: MetadataStore): Promise<unknown> => {
			if (act === 'begin') return begin(store, fresh, nowMs + (other % 50));
			if (act === 'inline') return store.commit(inline.commit);
			if (act === 'purge due') return store.purgeTrash(nowMs, 1 + (other % 3));
			if (act === 'expire') return store.expireIntents(nowMs, 1 + (other % 3));
			if (upload === undefined) return null;
			const shard = upload.shards[other % upload.shards.length] as (typeof upload.shards)[number];
			const items = await store.repairs({ nowMs: NOW_MS * 2, limit: 100 });
			const item = items[other % Math.max(1, items.length)];
			switch (act) {
				case 'commit':
					return store.commit(upload.commit);
				case 'abort':
					return store.abort(upload.uploadId, nowMs);
				case 'renew':
					return store.renew(upload.uploadId, nowMs + 30);
				case 'claim':
					return store.claimIdempotency(
						{
							owner: 'owner',
							key: `key ${other % 3}`,
							fingerprint: 'f',
							uploadId: upload.uploadId,
							expiresAtMs: nowMs + 40,
						},
						nowMs,
					);
				case 'delete':
					return store.deleteObject(upload.objectId, atOnce(nowMs));
				case 'trash':
					return store.deleteObject(upload.objectId, { nowMs, purgeAtMs: nowMs + 1 + (other % 40), by: `${other}` });
				case 'undelete':
					return store.undeleteObject(upload.objectId, { nowMs, by: `${other}` });
				case 'purge':
					return store.purgeObject(upload.objectId, { nowMs, by: '' });
				case 'deletionsDone':
					return store.deletionsDone(shard.workerId, [shard.shardId]);
				case 'unknown':
					return store.queueUnknown(shard.workerId, [shard.shardId, shardId], nowMs);
				case 'finding':
					return store.addFindings([{ ...shard, kind: 'corrupt', detail: `${other}`, foundAtMs: nowMs }]);
				case 'reencode': {
					const now = await store.objectWithSegments(upload.objectId, { fromSegment: 0, limit: 9 });
					const from = now?.segments[anew.done.segment.index];
					const { objectId } = upload;
					await store.begin({ uploadId: anew.uploadId, objectId, shards: anew.shards, expiresAtMs: nowMs + 9 });
					// Now and then of one that is not there any more.
					const fromEncodingId = (other % 5 === 0 ? undefined : from?.encodingId) ?? anew.done.fromEncodingId;
					return store.reencoded({ ...anew.done, fromEncodingId, nowMs }, anew.uploadId);
				}
				case 'defer':
					return item === undefined ? null : store.deferRepair(item, nowMs + other);
				case 'repair': {
					if (item === undefined) return null;
					const placement = { shardIndex: item.shardIndex, shardId, workerId: workers[pick % 6] as WorkerId };
					const { objectId } = item;
					await store.begin({ uploadId: repairUploadId, objectId, shards: [placement], expiresAtMs: nowMs + 9 });
					return store.repairDone({ item, placement, keyGeneration: 1, nowMs }, repairUploadId);
				}
			}
		};
		expect(await settled(on(tested))).toEqual(await settled(on(memory)));
	}
	expect(await view(tested, uploads, workers)).toEqual(await view(memory, uploads, workers));
	await checkRedundancy(tested);
}

async function settled(call: Promise<unknown>): Promise<unknown> {
	try {
		return { value: (await call) ?? null };
	} catch (error) {
		return { kind: asDistroError(error).kind };
	}
}

async function view(store: MetadataStore, uploads: readonly Upload[], workers: readonly WorkerId[]): Promise<unknown> {
	const all = { fromSegment: 0, limit: 9 };
	const { objects } = await store.list({ limit: 1_000, after: null });
	const ids: ObjectId[] = [...objects, ...uploads].map(({ objectId }) => objectId);
	return {
		objects,
		segments: await Promise.all(ids.map((objectId) => store.objectWithSegments(objectId, all))),
		findings: await Promise.all(uploads.map(({ versionId }) => store.findings(versionId))),
		deletions: await Promise.all(
			workers.map(async (workerId) => {
				const queue = await store.deletions(workerId, 10_000);
				return queue.map(({ shardId, forGood }) => `${shardId} ${forGood}`).sort();
			}),
		),
		trash: await store.trash({ limit: 1_000, after: null }),
		log: await store.deletionLog({ limit: 1_000, after: 0 }),
		head: await store.deletionHead(),
		known: await Promise.all(workers.map((workerId) => store.knownShards(workerId, { after: null, limit: 10_000 }))),
		repairs: await store.repairs({ nowMs: NOW_MS * 2, limit: 10_000 }),
		intents: await store.intents(1_000),
		counts: await store.counts(),
		redundancy: await reported(store),
	};
}
