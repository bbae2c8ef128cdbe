/** The keys record on a volume: the newest of this cluster stays, and what is told of it is what is there. */

import { beforeEach, expect, test } from 'vitest';
import type { ErrorKind } from '../core/errors.ts';
import { type ClusterId, newId } from '../core/ids.ts';
import { decodeKeysRecord, encodeKeysRecord, type KeysRecord, keysDigest } from '../core/model/keys-record.ts';
import { realClock, seededRandom } from '../test/support/clock.ts';
import { VolumeKeys } from './keys.ts';
import { MemoryShardStore, MemoryVolume } from './store-memory.ts';

const random = seededRandom('volume keys');
const clusterId = newId<ClusterId>(random);
const failing = (kind: ErrorKind) => expect.objectContaining({ kind });
let volume: MemoryVolume;
let store: MemoryShardStore;
let keys: VolumeKeys;

beforeEach(() => {
	volume = new MemoryVolume();
	store = new MemoryShardStore({ volume, clock: realClock, capacityBytes: 1e6, reserveBytes: 0 });
	keys = new VolumeKeys({ store, clusterId });
	return () => store.close();
});

function recordOf(revision: number, change: Partial<KeysRecord> = {}): KeysRecord {
	const key = { generation: 1, createdAtMs: 1, masterKeyId: 'a', wrapped: random.bytes(64) };
	return { clusterId, revision, keys: [key], ...change };
}

test('a record is kept, also by the next process, and told by its digest', async () => {
	expect(await keys.digest()).toHaveLength(0);
	await expect(keys.read()).rejects.toEqual(failing('not_found'));
	const record = recordOf(3);
	await keys.write(encodeKeysRecord(record));
	for (const one of [keys, new VolumeKeys({ store, clusterId })]) {
		expect(await one.digest()).toEqual(keysDigest(record));
		expect(decodeKeysRecord(await one.read())).toEqual(record);
	}
});

test('only a newer revision of this cluster takes its place', async () => {
	const record = recordOf(3);
	await keys.write(encodeKeysRecord(record));
	await keys.write(encodeKeysRecord(record));
	await expect(keys.write(encodeKeysRecord(recordOf(2)))).rejects.toEqual(failing('conflict'));
	await expect(keys.write(encodeKeysRecord(recordOf(3)))).rejects.toEqual(failing('conflict'));
	const foreign = recordOf(9, { clusterId: newId<ClusterId>(random) });
	await expect(keys.write(encodeKeysRecord(foreign))).rejects.toEqual(failing('denied'));
	await expect(keys.write(Buffer.from('no record'))).rejects.toEqual(failing('unsupported'));
	expect(decodeKeysRecord(await keys.read())).toEqual(record);
	const newer = recordOf(4);
	await keys.write(encodeKeysRecord(newer));
	expect(decodeKeysRecord(await keys.read())).toEqual(newer);
});

test('keys that began anew don’t take the place of those that the data needs, whatever their revision', async () => {
	const key = (generation: number, createdAtMs: number) => ({
		generation,
		createdAtMs,
		masterKeyId: 'a',
		wrapped: random.bytes(64),
	});
	const record = recordOf(3, { keys: [key(1, 10), key(2, 20)] });
	await keys.write(encodeKeysRecord(record));
	// Metadata that were lost and not restored; an old copy of them, and what was rotated since.
	for (const others of [[key(1, 99)], [key(1, 99), key(2, 100), key(3, 101)], [key(1, 10)], [key(1, 10), key(2, 50)]]) {
		const written = keys.write(encodeKeysRecord(recordOf(9, { keys: others })));
		await expect(written).rejects.toEqual(failing('conflict'));
	}
	expect(decodeKeysRecord(await keys.read())).toEqual(record);
	// Wrapped by another master key, rotated, and the oldest dropped.
	for (const [revision, present] of [
		[4, [key(1, 10), key(2, 20)]],
		[5, [key(1, 10), key(2, 20), key(3, 30)]],
		[6, [key(2, 20), key(3, 30)]],
		// A worker that was forgotten, and comes back after more of it.
		[60, [key(7, 70)]],
	] as const) {
		await keys.write(encodeKeysRecord(recordOf(revision, { keys: present })));
	}
	expect(decodeKeysRecord(await keys.read()).revision).toBe(60);
});

test('several writes at once: the newest stays, whatever order they came in', async () => {
	const records = [4, 2, 9, 1, 7].map((revision) => recordOf(revision));
	await Promise.allSettled(records.map((record) => keys.write(encodeKeysRecord(record))));
	expect(decodeKeysRecord(await keys.read()).revision).toBe(9);
});

test('what can not be read is written anew; of a newer release it stays, and nothing is told of either', async () => {
	for (const rot of ['', '{"version": 1', 'null']) {
		volume.records.set('keys', Buffer.from(rot));
		expect(await keys.digest()).toHaveLength(0);
		await expect(keys.read()).rejects.toEqual(failing('corrupt'));
		await keys.write(encodeKeysRecord(recordOf(1)));
		expect(decodeKeysRecord(await keys.read()).revision).toBe(1);
	}
	volume.records.set('keys', Buffer.from('{"version": 2}'));
	expect(await keys.digest()).toHaveLength(0);
	await expect(keys.write(encodeKeysRecord(recordOf(5)))).rejects.toEqual(failing('unsupported'));
	expect(volume.records.get('keys')?.toString()).toBe('{"version": 2}');
});

test('keys of another cluster on the volume are not overwritten; an offline volume tells nothing', async () => {
	const other = newId<ClusterId>(random);
	const theirs = encodeKeysRecord(recordOf(1, { clusterId: other }));
	await new VolumeKeys({ store, clusterId: other }).write(theirs);
	await expect(keys.write(encodeKeysRecord(recordOf(5)))).rejects.toEqual(failing('denied'));
	volume.online = false;
	expect(await keys.digest()).toHaveLength(0);
	await expect(keys.read()).rejects.toEqual(failing('unavailable'));
});
