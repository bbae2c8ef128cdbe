/** Keys on their way to volumes: each gets the newest record, whoever was away, and however often a write fails. */

import { beforeEach, expect, test } from 'vitest';
import { DistroError } from '../core/errors.ts';
import { type ClusterId, newId, type WorkerId } from '../core/ids.ts';
import { decodeKeysRecord, type KeysRecord, keysDigest } from '../core/model/keys-record.ts';
import { ManualClock, seededRandom } from '../test/support/clock.ts';
import { KeyDelivery } from './key-delivery.ts';

const random = seededRandom('key delivery');
const NONE = Buffer.alloc(0);
const workerId = newId<WorkerId>(random);
let clock: ManualClock;
let record: KeysRecord;
let fails: DistroError | null;
let written: number[];
let noted: [WorkerId, number][];
let failures: string[];
let refreshed: () => void;
let delivery: KeyDelivery;

beforeEach(() => {
	clock = new ManualClock();
	record = recordOf(1);
	fails = null;
	written = [];
	noted = [];
	failures = [];
	refreshed = () => {};
	delivery = new KeyDelivery({
		store: {
			sawKeys: async (workerIds, revision) => {
				for (const id of workerIds) noted.push([id, revision]);
			},
		},
		workers: { ref: (id) => ({ workerId: id, address: 'here:1' }) },
		transport: {
			writeKeys: async (_worker, bytes) => {
				written.push(decodeKeysRecord(bytes).revision);
				if (fails !== null) throw fails;
			},
		},
		clock,
		record: () => record,
		refresh: async () => refreshed(),
		onFailed: (_worker, error) => failures.push(error.kind),
	});
});

const clusterId = newId<ClusterId>(random);
function recordOf(revision: number): KeysRecord {
	const key = { generation: 1, createdAtMs: 1, masterKeyId: 'a', wrapped: random.bytes(64) };
	return { clusterId, revision, keys: [key] };
}
const settled = () => new Promise((done) => setImmediate(done));
const beat = async (digest: Buffer, id = workerId) => {
	delivery.heard(id, digest);
	await settled();
};

test('written where it is another, noted when it is there, and then left alone', async () => {
	await beat(NONE);
	expect(written).toEqual([1]);
	expect(noted).toEqual([[workerId, 1]]);
	await beat(keysDigest(record));
	expect([written.length, noted.length]).toEqual([1, 1]);
	record = recordOf(2);
	await beat(keysDigest(recordOf(1)));
	expect(written).toEqual([1, 2]);
	expect(noted.at(-1)).toEqual([workerId, 2]);
	// A volume that was put back to an older state.
	await beat(NONE);
	expect(written).toEqual([1, 2, 2]);
});

test('one that has it already is only noted', async () => {
	await beat(keysDigest(record));
	expect(written).toEqual([]);
	expect(noted).toEqual([[workerId, 1]]);
});

test('what fails is tried again later and later; one that registers anew at once', async () => {
	fails = new DistroError('timeout', 'no answer');
	const tries = async (ms: number) => {
		const before = written.length;
		for (let passed = 0; passed < ms; passed += 1_000) {
			await beat(NONE);
			clock.advance(1_000);
		}
		return written.length - before;
	};
	const [early, late] = [await tries(60_000), await tries(3_600_000)];
	expect(early).toBeGreaterThan(3);
	expect(early).toBeLessThan(8);
	expect(late).toBeGreaterThan(10);
	expect(late).toBeLessThan(16);
	expect(failures).toHaveLength(early + late);
	expect(noted).toEqual([]);
	fails = null;
	await beat(NONE);
	expect(noted).toEqual([]);
	delivery.joined(workerId);
	await beat(NONE);
	expect(noted).toEqual([[workerId, 1]]);
});

test('a newer record on the volume: this orchestrator looks what it is, and writes that', async () => {
	fails = new DistroError('conflict', 'newer');
	refreshed = () => {
		record = recordOf(2);
		fails = null;
	};
	await beat(NONE);
	expect(failures).toEqual([]);
	await beat(NONE);
	expect(written).toEqual([1, 2]);
	// And where there is none in the metadata, that is told.
	fails = new DistroError('conflict', 'newer');
	refreshed = () => {};
	await beat(NONE);
	expect(failures).toEqual(['conflict']);
});

test('no more than a few at once, and each worker once', async () => {
	let release = () => {};
	const held = new Promise<void>((done) => {
		release = done;
	});
	const deps = {
		store: { sawKeys: async () => {} },
		workers: { ref: (id: WorkerId) => ({ workerId: id, address: 'here:1' }) },
		transport: {
			writeKeys: async ({ workerId: id }: { workerId: WorkerId }) => {
				noted.push([id, 0]);
				await held;
			},
		},
	};
	const slow = new KeyDelivery({ ...deps, clock, record: () => record, refresh: async () => {}, onFailed: () => {} });
	const all = Array.from({ length: 50 }, () => newId<WorkerId>(random));
	for (const id of [...all, ...all]) slow.heard(id, NONE);
	await settled();
	expect(noted).toHaveLength(8);
	release();
	for (let round = 0; round < 20; round++) {
		const has = new Set(noted.map(([id]) => id));
		for (const id of all) slow.heard(id, has.has(id) ? keysDigest(record) : NONE);
		await settled();
	}
	expect(new Set(noted.map(([id]) => id))).toEqual(new Set(all));
});
