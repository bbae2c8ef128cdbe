/** Keys of orchestrators that share their metadata: rotated by one, known to all, and never lost. */

import { beforeEach, describe, expect, test, vi } from 'vitest';
import { type MasterKeyring, parseMasterKeys } from '../core/crypto/keys.ts';
import { DistroError, type ErrorKind } from '../core/errors.ts';
import { type ClusterId, newId, type VersionId } from '../core/ids.ts';
import { decodeKeysRecord, encodeKeysRecord } from '../core/model/keys-record.ts';
import { realClock, seededRandom } from '../test/support/clock.ts';
import { Keyring } from './keyring.ts';
import { keysJob } from './keys-job.ts';
import { MemoryMetadata, MemoryMetadataStore } from './store-memory.ts';

const random = seededRandom('keyring');
const clusterId = newId<ClusterId>(random);
const [A, B, C] = ['aa', 'bb', 'cc'].map((byte) => byte.repeat(32)) as [string, string, string];
const failing = (kind: ErrorKind, sentence: RegExp) =>
	expect.objectContaining({ kind, message: expect.stringMatching(sentence) });
let metadata: MemoryMetadata;
let store: MemoryMetadataStore;

beforeEach(() => {
	metadata = new MemoryMetadata();
	store = new MemoryMetadataStore(metadata);
});

const open = (master: string | MasterKeyring) =>
	Keyring.open({
		store,
		master: typeof master === 'string' ? parseMasterKeys(master) : master,
		clusterId,
		clock: realClock,
		random,
	});
const versionId = () => newId<VersionId>(random);
const wrappedBy = () => metadata.cluster?.keys.map(({ masterKeyId }) => masterKeyId);

describe('a master key', () => {
	test('that is new and first wraps all generations anew, once; the data keys stay', async () => {
		const before = await open(`a:${A}`);
		await before.rotate();
		const version = versionId();
		const { key, generation, wrapped } = before.newDataKey(version);
		const revision = before.record.revision;
		const after = await open(`b:${B},a:${A}`);
		expect(wrappedBy()).toEqual(['b', 'b']);
		expect(after.record.revision).toBe(revision + 1);
		await open(`b:${B},a:${A}`);
		expect(metadata.cluster?.revision).toBe(revision + 1);
		const row = { keyGeneration: generation, wrappedKey: wrapped };
		for (const keyring of [after, await open(`b:${B}`), before]) {
			expect((await keyring.dataKey(version, row)).equals(key)).toBe(true);
		}
	});

	test('that is needed and not given: the start says which, for which generation, and changes nothing', async () => {
		const first = await open(`a:${A}`);
		await first.rotate();
		const stored = metadata.cluster;
		await expect(open(`b:${B}`)).rejects.toEqual(
			failing('denied', /needs master key a \(generation 1 .*\), and master key a \(generation 2 .*and b was given/),
		);
		// Another key under the right id.
		await expect(open(`a:${B}`)).rejects.toEqual(failing('denied', /master key a as given does not open generation 1/));
		expect(metadata.cluster).toBe(stored);
		await open(`c:${C},a:${A}`);
		await expect(open(`a:${A}`)).rejects.toEqual(failing('denied', /needs master key c .*and a was given/));
	});

	test('from a changed file is taken when the store can do it again, and what was refused is told once', async () => {
		const keyring = await open(`a:${A}`);
		let master = parseMasterKeys(`a:${A}`);
		const job = keysJob({ keyring, masterNow: () => master });
		const step = () => job.step(new AbortController().signal);
		await step();
		master = parseMasterKeys(`b:${B},a:${A}`);
		const change = vi.spyOn(store, 'changeClusterKeys');
		change.mockRejectedValueOnce(new DistroError('unavailable', 'the store is away'));
		await expect(step()).rejects.toEqual(failing('unavailable', /away/));
		expect(wrappedBy()).toEqual(['a']);
		await step();
		expect(wrappedBy()).toEqual(['b']);
		master = parseMasterKeys(`c:${C}`);
		await expect(step()).rejects.toEqual(failing('denied', /master key b/));
		await step();
		expect(wrappedBy()).toEqual(['b']);
	});

	test('once given bare and now by name is the same key: nothing is wrapped anew', async () => {
		const bare = await open(A);
		const { revision } = bare.record;
		const named = await open(`name:${A}`);
		expect(named.record.revision).toBe(revision);
		expect(named.nameOf(bare.record.keys[0]?.masterKeyId as string)).toBe('name');
	});

	test('changed while it runs: wrapped anew, and whoever still has the old one goes on', async () => {
		const [one, other] = [await open(`a:${A}`), await open(`a:${A}`)];
		await one.useMaster(parseMasterKeys(`b:${B},a:${A}`));
		expect(wrappedBy()).toEqual(['b']);
		await other.refresh();
		const version = versionId();
		const made = other.newDataKey(version);
		const row = { keyGeneration: made.generation, wrappedKey: made.wrapped };
		expect((await one.dataKey(version, row)).equals(made.key)).toBe(true);
		// It could not wrap a generation so that the others can open it.
		await expect(other.rotate()).rejects.toEqual(failing('conflict', /wrapped by master key b .* not given/));
		// And a new generation it can't open says which key is missing, and takes the newest that it can.
		await one.rotate();
		await other.refresh();
		expect(other.newest).toBe(1);
		const late = one.newDataKey(version);
		await expect(other.dataKey(version, { keyGeneration: late.generation, wrappedKey: late.wrapped })).rejects.toEqual(
			failing('unavailable', /generation 2 .* is wrapped by master key b/),
		);
		await other.useMaster(parseMasterKeys(`b:${B}`));
		expect(other.newest).toBe(2);
	});

	test('that would open nothing is not taken while it runs either', async () => {
		const keyring = await open(`a:${A}`);
		await keyring.rotate();
		const { record } = keyring;
		for (const wrong of [`b:${B}`, `a:${B}`]) {
			await expect(keyring.useMaster(parseMasterKeys(wrong))).rejects.toEqual(failing('denied', /master key a/));
		}
		expect(keyring.record).toBe(record);
		expect(await keyring.rotate()).toBe(3);
		expect(wrappedBy()).toEqual(['a', 'a', 'a']);
	});

	test('of an older list does not undo what a newer one did meanwhile', async () => {
		const [stale, one] = [await open(`a:${A}`), await open(`a:${A}`)];
		const change = store.changeClusterKeys.bind(store);
		store.changeClusterKeys = async (keys, revision) => {
			store.changeClusterKeys = change;
			await one.useMaster(parseMasterKeys(`c:${C},b:${B},a:${A}`));
			return change(keys, revision);
		};
		await stale.useMaster(parseMasterKeys(`b:${B},a:${A}`));
		expect(wrappedBy()).toEqual(['c']);
		await open(`c:${C}`);
	});

	test('of several orchestrators that start at once one wraps anew', async () => {
		await open(`a:${A}`);
		const all = await Promise.all(Array.from({ length: 5 }, () => open(`b:${B},a:${A}`)));
		expect(metadata.cluster?.revision).toBe(2);
		expect(new Set(all.map(({ record }) => record.revision))).toEqual(new Set([2]));
	});
});

describe('a generation', () => {
	test('is for what is new at once, and others learn of it when they need it', async () => {
		const [one, other] = [await open(A), await open(A)];
		expect(await one.rotate()).toBe(2);
		const version = versionId();
		const made = one.newDataKey(version);
		expect(made.generation).toBe(2);
		const row = { keyGeneration: 2, wrappedKey: made.wrapped };
		expect(other.newest).toBe(1);
		expect((await other.dataKey(version, row)).equals(made.key)).toBe(true);
		expect(other.newDataKey(version).generation).toBe(2);
		await expect(other.dataKey(version, { ...row, keyGeneration: 3 })).rejects.toEqual(
			failing('denied', /generation 3 of the cluster key is not known/),
		);
	});

	test('of many rotations at once each adds one', async () => {
		const all = await Promise.all(Array.from({ length: 4 }, () => open(A)));
		const made = await Promise.all(all.map((keyring) => keyring.rotate()));
		expect(made.sort()).toEqual([2, 3, 4, 5]);
		expect(metadata.cluster?.keys.map(({ generation }) => generation)).toEqual([1, 2, 3, 4, 5]);
	});

	test('whose answer was lost is not made twice', async () => {
		const keyring = await open(A);
		const change = store.changeClusterKeys.bind(store);
		store.changeClusterKeys = async (keys, revision) => {
			store.changeClusterKeys = change;
			await change(keys, revision);
			return change(keys, revision);
		};
		expect(await keyring.rotate()).toBe(2);
		expect(metadata.cluster?.keys).toHaveLength(2);
	});

	test('data keys wrapped anew are the same keys', async () => {
		const keyring = await open(A);
		const version = versionId();
		const old = keyring.newDataKey(version);
		await keyring.rotate();
		const anew = keyring.rewrapped({ versionId: version, keyGeneration: 1, wrappedKey: old.wrapped });
		expect(anew).toMatchObject({ versionId: version, before: old.wrapped, keyGeneration: 2 });
		expect((await keyring.dataKey(version, anew)).equals(old.key)).toBe(true);
		expect(() => keyring.rewrapped({ versionId: versionId(), keyGeneration: 1, wrappedKey: old.wrapped })).toThrow(
			failing('denied', /does not open/),
		);
	});
});

test('the record on volumes and the master key are enough', async () => {
	const keyring = await open(`a:${A}`);
	await keyring.rotate();
	const version = versionId();
	const { key, generation, wrapped } = keyring.newDataKey(version);
	const record = decodeKeysRecord(encodeKeysRecord(keyring.record));
	metadata = new MemoryMetadata();
	store = new MemoryMetadataStore(metadata);
	await store.initCluster({ ...record, revision: record.revision + 1, createdAtMs: record.keys[0]?.createdAtMs ?? 0 });
	const restored = await open(`a:${A}`);
	const row = { keyGeneration: generation, wrappedKey: wrapped };
	expect((await restored.dataKey(version, row)).equals(key)).toBe(true);
});

test('no key is in what is thrown or shown', async () => {
	const keyring = await open(`a:${A}`);
	const shown: unknown[] = [keyring.record];
	for (const master of [`b:${B}`, `a:${B}`, 'x', `a:${A},a:${B}`]) {
		const opening = Promise.resolve(master).then(open);
		await opening.catch((error) => shown.push(error.message, String(error.cause)));
	}
	expect(shown.length).toBeGreaterThan(6);
	expect(JSON.stringify(shown)).not.toMatch(new RegExp(`${A}|${B}`, 'i'));
});
