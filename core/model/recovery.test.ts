/** Recovery records come back, and leave out a manifest that would make every trailer large. */

import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../test/support/clock.ts';
import { newId, type ObjectId } from '../ids.ts';
import { decodeRecovery, encodeRecovery, type RecoveryRecord } from './recovery.ts';

const random = seededRandom('recovery');
const record: RecoveryRecord = {
	keyGeneration: 3,
	wrappedKey: random.bytes(64),
	objectId: newId<ObjectId>(random),
	createdAtMs: 1_700_000_000_000,
	manifest: random.bytes(2048),
};

describe('recovery records', () => {
	test('come back', () => {
		expect(decodeRecovery(encodeRecovery(record))).toEqual(record);
		expect(decodeRecovery(encodeRecovery({ ...record, manifest: null }))).toEqual({ ...record, manifest: null });
	});

	test('leave out a manifest over 2 KiB', () => {
		expect(decodeRecovery(encodeRecovery({ ...record, manifest: random.bytes(2049) })).manifest).toBeNull();
	});

	test('cut or longer ones are corrupt, newer ones unsupported', () => {
		const bytes = encodeRecovery(record);
		for (const length of [0, 1, 5, 69, 93, bytes.length - 1]) {
			expect(() => decodeRecovery(bytes.subarray(0, length))).toThrow(expect.objectContaining({ kind: 'corrupt' }));
		}
		const longer = Buffer.concat([bytes, Buffer.alloc(1)]);
		expect(() => decodeRecovery(longer)).toThrow(expect.objectContaining({ kind: 'corrupt' }));
		const newer = Buffer.from(bytes);
		newer[0] = 2;
		expect(() => decodeRecovery(newer)).toThrow(
			expect.objectContaining({ kind: 'unsupported', message: expect.stringContaining('run that release') }),
		);
	});
});
