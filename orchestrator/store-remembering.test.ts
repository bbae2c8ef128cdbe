import { beforeEach, expect, test } from 'vitest';
import { DistroError } from '../core/errors.ts';
import type { WorkerId } from '../core/ids.ts';
import type { Clock } from '../core/ports.ts';
import { describeMetadataStore } from './store.contract.ts';
import { atOnce, Fixtures, type Upload } from './store.fixtures.ts';
import type { MetadataStore } from './store.ts';
import { MemoryMetadata, MemoryMetadataStore } from './store-memory.ts';
import { MAX_AGE_MS, rememberingReads } from './store-remembering.ts';

let nowMs = 0;
const clock: Clock = { nowMs: () => nowMs, monotonicMs: () => nowMs, schedule: () => () => {} };

describeMetadataStore('remembering', async () => {
	const data = new MemoryMetadata();
	let store = rememberingReads(new MemoryMetadataStore(data), { clock });
	return {
		store,
		reopen: async () => {
			await store.close();
			store = rememberingReads(new MemoryMetadataStore(data), { clock });
			return store;
		},
		dispose: () => store.close(),
	};
});

const make = new Fixtures('remembering');
const workers = Array.from({ length: 6 }, () => make.id<WorkerId>());
const page = { fromSegment: 0, limit: 8 };

/** A store that can be switched off. */
class Switched extends MemoryMetadataStore {
	failure: DistroError | null = null;

	override async object(...args: Parameters<MetadataStore['object']>) {
		if (this.failure !== null) throw this.failure;
		return super.object(...args);
	}

	override async objectWithSegments(...args: Parameters<MetadataStore['objectWithSegments']>) {
		if (this.failure !== null) throw this.failure;
		return super.objectWithSegments(...args);
	}

	override async segments(...args: Parameters<MetadataStore['segments']>) {
		if (this.failure !== null) throw this.failure;
		return super.segments(...args);
	}
}

let inner: Switched;
let store: MetadataStore;
let upload: Upload;
const away = new DistroError('unavailable', 'away');

beforeEach(async () => {
	inner = new Switched();
	store = rememberingReads(inner, { clock });
	upload = await make.store(store, workers, { segments: 2 });
});

const readAll = () =>
	Promise.all([
		store.object(upload.objectId),
		store.objectWithSegments(upload.objectId, page),
		store.segments(upload.versionId, { fromSegment: 1, limit: 8 }),
	]);

test.each(['unavailable', 'timeout'] as const)(
	'what was read before is read while the store is away: %s',
	async (kind) => {
		const before = await readAll();
		inner.failure = new DistroError(kind, 'away');
		expect(await readAll()).toEqual(before);
		await expect(store.object((await make.store(inner, workers)).objectId)).rejects.toThrow('away');
		await expect(store.segments(upload.versionId, page)).rejects.toThrow('away');
	},
);

test('for so long and no longer', async () => {
	await readAll();
	inner.failure = away;
	nowMs += MAX_AGE_MS;
	await readAll();
	nowMs++;
	await expect(store.object(upload.objectId)).rejects.toThrow('away');
	await expect(store.objectWithSegments(upload.objectId, page)).rejects.toThrow('away');
	await expect(store.segments(upload.versionId, page)).rejects.toThrow('away');
});

test('while the store answers, its word counts; what another one deleted is forgotten with it', async () => {
	await readAll();
	await inner.deleteObject(upload.objectId, atOnce());
	expect(await store.objectWithSegments(upload.objectId, page)).toBeNull();
	inner.failure = away;
	await expect(store.object(upload.objectId)).rejects.toThrow('away');
});

test('what was deleted here is forgotten at once, also when the answer is lost', async () => {
	await readAll();
	inner.deleteObject = () => Promise.reject(away);
	await expect(store.deleteObject(upload.objectId, atOnce())).rejects.toThrow('away');
	inner.failure = away;
	await expect(store.object(upload.objectId)).rejects.toThrow('away');
});

test('other failures are not covered up', async () => {
	await readAll();
	inner.failure = new DistroError('corrupt', 'damaged');
	await expect(store.object(upload.objectId)).rejects.toThrow('damaged');
});

test('it stays small: the longest unread goes first', async () => {
	store = rememberingReads(inner, { clock, maxBytes: 10_000 });
	const uploads = await Promise.all(Array.from({ length: 12 }, () => make.store(inner, workers, { segments: 0 })));
	for (const { objectId } of uploads) await store.object(objectId);
	await store.object(uploads[5]?.objectId as Upload['objectId']);
	await store.object((await make.store(inner, workers, { segments: 0 })).objectId);
	inner.failure = away;
	const kept = await Promise.allSettled(uploads.map(({ objectId }) => store.object(objectId)));
	const indexes = kept.flatMap(({ status }, index) => (status === 'fulfilled' ? [index] : []));
	expect(indexes).toContain(5);
	expect(indexes).toContain(11);
	expect(indexes).not.toContain(0);
	expect(indexes.length).toBeLessThanOrEqual(9);
});
