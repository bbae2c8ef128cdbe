/** What is no keys record is refused, in bytes and as a file. */

import { describe, expect, test } from 'vitest';
import { counting, sameId } from '../../test/vectors/golden.ts';
import type { ErrorKind } from '../errors.ts';
import { decodeKeysRecord, encodeKeysRecord, formatKeysFile, type KeysRecord, parseKeysFile } from './keys-record.ts';

const record: KeysRecord = {
	clusterId: sameId(1),
	revision: 7,
	keys: [1, 2].map((generation) => ({
		generation,
		createdAtMs: 1_000 * generation,
		masterKeyId: 'a',
		wrapped: counting(64, generation),
	})),
};
const failing = (kind: ErrorKind) => expect.objectContaining({ kind });

describe('bytes', () => {
	const bytes = encodeKeysRecord(record);

	test('that end early or late are corrupt', () => {
		for (let length = 0; length < bytes.length; length++) {
			expect(() => decodeKeysRecord(bytes.subarray(0, length))).toThrow(failing('corrupt'));
		}
		expect(() => decodeKeysRecord(Buffer.concat([bytes, Buffer.alloc(1)]))).toThrow(failing('corrupt'));
		expect(() => decodeKeysRecord(Buffer.alloc(100_000))).toThrow(failing('corrupt'));
	});

	test('of a newer version are unsupported; generations that are not in order are corrupt', () => {
		const newer = Buffer.from(bytes);
		newer[0] = 2;
		expect(() => decodeKeysRecord(newer)).toThrow(failing('unsupported'));
		const [one, two] = record.keys;
		for (const keys of [
			[two, one],
			[one, one],
		]) {
			const wrong = encodeKeysRecord({ ...record, keys: keys as KeysRecord['keys'] });
			expect(() => decodeKeysRecord(wrong)).toThrow(failing('corrupt'));
		}
	});
});

describe('keys.json', () => {
	const text = formatKeysFile(record);

	test('any changed character makes it corrupt, or changes nothing', () => {
		for (let at = 0; at < text.length; at++) {
			const changed = `${text.slice(0, at)}${text[at] === '1' ? '3' : '1'}${text.slice(at + 1)}`;
			let read: KeysRecord | null = null;
			try {
				read = parseKeysFile(changed);
			} catch (error) {
				expect(error).toEqual(expect.objectContaining({ kind: expect.stringMatching(/^(corrupt|unsupported)$/) }));
			}
			if (read !== null) expect(read).toEqual(record);
		}
	});

	test('what is none is corrupt, and a newer version is unsupported', () => {
		for (const other of ['', 'null', '[]', '{}', '7', text.slice(0, -10), text.replace('"keys"', '"key"')]) {
			expect(() => parseKeysFile(other)).toThrow(failing('corrupt'));
		}
		expect(() => parseKeysFile('{"version": 2}')).toThrow(failing('unsupported'));
	});
});
