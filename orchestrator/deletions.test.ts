/** An edited, removed or moved entry of the log of deletions is found, wherever it is. */

import { expect, test } from 'vitest';
import { type DeletionEntry, headAfter, NO_DELETIONS, nextDeletion } from '../core/crypto/deletion-log.ts';
import { DeletionLog } from './deletions.ts';
import { atOnce, Fixtures, NOW_MS } from './store.fixtures.ts';
import { MemoryMetadata, MemoryMetadataStore } from './store-memory.ts';

const ENTRIES = 2_100;

async function filled() {
	const data = new MemoryMetadata();
	const store = new MemoryMetadataStore(data);
	const make = new Fixtures('deletions');
	for (let at = 0; at < ENTRIES; at++) {
		const { objectId } = await make.store(store, [], { segments: 0 });
		await store.deleteObject(objectId, { ...atOnce(NOW_MS + at), by: `key ${at % 3}` });
	}
	return { data, store, log: new DeletionLog(store) };
}

test('what is intact', async () => {
	const { store, log } = await filled();
	const { hash } = await store.deletionHead();
	expect(await log.verify()).toEqual({ entries: ENTRIES, hash, firstBad: null });
	const empty = new DeletionLog(new MemoryMetadataStore());
	expect(await empty.verify()).toEqual({ ...NO_DELETIONS, firstBad: null });
});

const at = 1_500;
const edits: Record<string, (entry: DeletionEntry) => DeletionEntry> = {
	object: (entry) => ({ ...entry, objectId: 'f'.repeat(32) as DeletionEntry['objectId'] }),
	action: (entry) => ({ ...entry, action: 'undeleted' }),
	'action that is none': (entry) => ({ ...entry, action: 'toString' as 'purged' }),
	time: (entry) => ({ ...entry, atMs: entry.atMs + 1 }),
	'who did it': (entry) => ({ ...entry, by: '' }),
	hash: (entry) => ({ ...entry, hash: Buffer.alloc(32) }),
	number: (entry) => ({ ...entry, number: entry.number + 1 }),
};

test.each(Object.entries(edits))('an edited %s', async (_, edit) => {
	const { data, log } = await filled();
	data.deletionLog[at] = edit(data.deletionLog[at] as DeletionEntry);
	expect((await log.verify()).firstBad).toBe(at + 1);
});

test('an edited entry with a hash of its own: the next one tells', async () => {
	const { data, log } = await filled();
	const before = data.deletionLog[at - 1] as DeletionEntry;
	const entry = data.deletionLog[at] as DeletionEntry;
	data.deletionLog[at] = nextDeletion(headAfter(before), { ...entry, by: 'somebody else' });
	expect((await log.verify()).firstBad).toBe(at + 2);
});

test('entries that were removed, or changed places', async () => {
	for (const removed of [0, at, ENTRIES - 1]) {
		const { data, store } = await filled();
		const head = await store.deletionHead();
		data.deletionLog.splice(removed, 1);
		// As a database has it, where the head is a row of its own.
		const log = new DeletionLog({
			deletionLog: (options) => store.deletionLog(options),
			deletionHead: async () => head,
		});
		expect((await log.verify()).firstBad).toBe(removed + 1);
	}
	const { data, log } = await filled();
	const [one, other] = [data.deletionLog[at], data.deletionLog[at + 7]] as [DeletionEntry, DeletionEntry];
	data.deletionLog[at] = other;
	data.deletionLog[at + 7] = one;
	expect((await log.verify()).firstBad).toBe(at + 1);
});

test('the last entry edited with a hash of its own: the head that is kept beside it tells', async () => {
	const { data, store } = await filled();
	const head = await store.deletionHead();
	const before = data.deletionLog.at(-2) as DeletionEntry;
	const last = data.deletionLog.at(-1) as DeletionEntry;
	data.deletionLog[ENTRIES - 1] = nextDeletion(headAfter(before), { ...last, by: 'somebody else' });
	const log = new DeletionLog({ deletionLog: (options) => store.deletionLog(options), deletionHead: async () => head });
	expect((await log.verify()).firstBad).toBe(ENTRIES);
});

test('what is added while it is verified does no harm', async () => {
	const { data, store } = await filled();
	const make = new Fixtures('more');
	let calls = 0;
	const log = new DeletionLog({
		deletionHead: () => store.deletionHead(),
		deletionLog: async (options) => {
			if (calls++ === 0) {
				const { objectId } = await make.store(store, [], { segments: 0 });
				await store.deleteObject(objectId, atOnce());
			}
			return store.deletionLog(options);
		},
	});
	expect(await log.verify()).toMatchObject({ entries: ENTRIES, firstBad: null });
	expect(data.deletionLog).toHaveLength(ENTRIES + 1);
});
