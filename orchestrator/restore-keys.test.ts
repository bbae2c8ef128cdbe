/** Which of the keys records of a cluster's volumes a restore goes on with. */

import { expect, test } from 'vitest';
import { parseMasterKeys, wrapKey } from '../core/crypto/keys.ts';
import { type ClusterId, idBytes, newId, type VersionId, type WorkerId } from '../core/ids.ts';
import { encodeKeysRecord, type KeysRecord } from '../core/model/keys-record.ts';
import { seededRandom } from '../test/support/clock.ts';
import { collectKeys } from './restore-keys.ts';

const random = seededRandom('restore keys');
const clusterId = newId<ClusterId>(random);
const OLD = `old:${'ab'.repeat(32)}`;
const NEW = `new:${'cd'.repeat(32)}`;
const clusterKeys = [random.bytes(32), random.bytes(32)];

function recordOf(revision: number, o: { master: string; generations: number }): KeysRecord {
	const { id: masterKeyId, key: wrappingKey } = parseMasterKeys(o.master).primary;
	const keys = clusterKeys.slice(0, o.generations).map((key, at) => {
		const context = idBytes(clusterId);
		const wrapped = wrapKey({ wrappingKey, purpose: 'cluster key', context, key, random });
		return { generation: at + 1, createdAtMs: at, masterKeyId, wrapped };
	});
	return { clusterId, revision, keys };
}

function collect(records: readonly (KeysRecord | Buffer)[], master: string) {
	const workers = records.map((_, at) => ({ workerId: newId<WorkerId>(random), address: String(at) }));
	const transport = {
		readKeys: async ({ address }: { address: string }) => {
			const record = records[Number(address)] as KeysRecord | Buffer;
			return Buffer.isBuffer(record) ? record : encodeKeysRecord(record);
		},
	};
	return collectKeys({ transport, master: parseMasterKeys(master), clusterId }, workers);
}

function opens({ openKey }: Awaited<ReturnType<typeof collect>>, generation: number): boolean {
	const versionId = newId<VersionId>(random);
	const wrapped = wrapKey({
		wrappingKey: wrappingKeyOf(generation),
		purpose: 'data key',
		context: idBytes(versionId),
		key: random.bytes(32),
		random,
	});
	return openKey(versionId, { keyGeneration: generation, wrappedKey: wrapped }) !== null;
}

function wrappingKeyOf(generation: number) {
	return parseMasterKeys((clusterKeys[generation - 1] as Buffer).toString('hex')).primary.key;
}

const stale = recordOf(1, { master: OLD, generations: 1 });

test('the newest counts, and a volume that was away is passed over', async () => {
	const newest = recordOf(3, { master: NEW, generations: 2 });
	const keys = await collect([stale, newest], `${NEW},${OLD}`);
	expect(keys.record).toEqual(newest);
	expect([opens(keys, 1), opens(keys, 2)]).toEqual([true, true]);
});

test('a retired master key opens what a volume that was away has: that would lose the newer generation for ever', async () => {
	const newest = recordOf(3, { master: NEW, generations: 2 });
	await expect(collect([stale, newest], OLD)).rejects.toMatchObject({
		kind: 'denied',
		message: expect.stringContaining('they need master key new'),
	});
});

test('where it has all generations it takes the place of the newest, which nobody can open', async () => {
	const keys = await collect([stale, recordOf(2, { master: NEW, generations: 1 })], OLD);
	expect(keys.record).toEqual({ ...stale, revision: 3 });
	expect(opens(keys, 1)).toBe(true);
});

test('one of a newer release is not passed over for an older one', async () => {
	await expect(collect([stale, Buffer.from([2])], OLD)).rejects.toMatchObject({ kind: 'unsupported' });
	expect((await collect([stale, Buffer.from([1])], OLD)).record).toEqual(stale);
});
