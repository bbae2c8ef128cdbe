/** Keys: what is read from MASTER_KEY, and that a wrapped key opens under its own key, purpose and context only. */

import { createSecretKey } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../test/support/clock.ts';
import { newId, type SealId } from '../ids.ts';
import {
	masterKeyFingerprint,
	newDataKey,
	parseMasterKeys,
	segmentKey,
	unwrapKey,
	WRAPPED_KEY_BYTES,
	wrapKey,
} from './keys.ts';

const random = seededRandom('keys');
const HEX = '00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff';
const OTHER = 'ff'.repeat(32);

describe('MASTER_KEY', () => {
	test('one key, named by its fingerprint', () => {
		const keyring = parseMasterKeys(` ${HEX.toUpperCase()}\n`);
		expect(keyring.keys).toHaveLength(1);
		expect(keyring.primary.id).toMatch(/^[0-9a-f]{8}$/);
		expect(keyring.primary.id).toBe(masterKeyFingerprint(keyring.primary.key));
		expect(keyring.primary.key.export().toString('hex')).toBe(HEX);
		expect(keyring.get(keyring.primary.id)).toBe(keyring.primary.key);
		expect(keyring.get('other')).toBeNull();
	});

	test('a list, the first for what is new, by commas or lines', () => {
		for (const text of [`b:${OTHER},a:${HEX}`, `b:${OTHER}\n a:${HEX}\n`]) {
			const keyring = parseMasterKeys(text);
			expect(keyring.keys.map(({ id }) => id)).toEqual(['b', 'a']);
			expect(keyring.primary.id).toBe('b');
			expect(keyring.get('a')?.export().toString('hex')).toBe(HEX);
		}
	});

	test('a key that was bare and is now in a list is still found', () => {
		const bare = parseMasterKeys(HEX).primary.id;
		expect(parseMasterKeys(`new:${OTHER},old:${HEX}`).get(bare)?.export().toString('hex')).toBe(HEX);
	});

	const wrong: [string, string][] = [
		['nothing', ' \n'],
		['too short', HEX.slice(2)],
		['too long', `${HEX}00`],
		['no digits', HEX.replace('0', 'x')],
		['one wrong of two', `a:${HEX},b:${OTHER.slice(1)}`],
		['an empty id', `:${HEX}`],
		['an id with blanks', `my key:${HEX}`],
		['an id twice', `a:${HEX},a:${OTHER}`],
		['a key twice', `${HEX},${HEX}`],
	];
	test.each(wrong)('refuses %s and shows no key', (_what, text) => {
		let said: { kind: string; message: string } | null = null;
		try {
			parseMasterKeys(text);
		} catch (error) {
			said = error as { kind: string; message: string };
		}
		expect(said?.kind).toBe('invalid');
		for (const part of text.split(/[:,\s]/).filter(({ length }) => length > 8))
			expect(said?.message).not.toContain(part);
		expect(said?.message).toContain('MASTER_KEY');
	});
});

describe('wrapping', () => {
	const wrappingKey = newDataKey(random);
	const context = random.bytes(16);
	const key = random.bytes(32);
	const scope = { wrappingKey, purpose: 'data key', context } as const;
	const wrapped = wrapKey({ ...scope, key, random });

	test('opens to what was wrapped', () => {
		expect(wrapped).toHaveLength(WRAPPED_KEY_BYTES);
		expect(unwrapKey({ ...scope, wrapped }).equals(key)).toBe(true);
		expect(wrapped.includes(key)).toBe(false);
	});

	test('is different each time', () => {
		expect(wrapKey({ ...scope, key, random }).equals(wrapped)).toBe(false);
	});

	test('does not open under another key, purpose or context, nor changed', () => {
		const denied = expect.objectContaining({ kind: 'denied' });
		expect(() => unwrapKey({ ...scope, wrapped, wrappingKey: newDataKey(random) })).toThrow(denied);
		expect(() => unwrapKey({ ...scope, wrapped, purpose: 'cluster key' })).toThrow(denied);
		expect(() => unwrapKey({ ...scope, wrapped, context: random.bytes(16) })).toThrow(denied);
		for (let at = 0; at < wrapped.length; at++) {
			const changed = Buffer.from(wrapped);
			changed.writeUInt8(wrapped.readUInt8(at) ^ 0x80, at);
			expect(() => unwrapKey({ ...scope, wrapped: changed })).toThrow(denied);
		}
	});

	test('another length is no wrapped key', () => {
		for (const bytes of [Buffer.alloc(0), wrapped.subarray(1), Buffer.concat([wrapped, Buffer.alloc(1)])]) {
			expect(() => unwrapKey({ ...scope, wrapped: bytes })).toThrow(expect.objectContaining({ kind: 'corrupt' }));
		}
	});
});

test('each segment and seal has a key of its own', () => {
	const dataKey = newDataKey(random);
	const [sealId, otherSeal] = [newId<SealId>(random), newId<SealId>(random)];
	const keys = [
		segmentKey({ dataKey, segment: 0, sealId }),
		segmentKey({ dataKey, segment: 1, sealId }),
		segmentKey({ dataKey, segment: 256, sealId }),
		segmentKey({ dataKey, segment: 0, sealId: otherSeal }),
		segmentKey({ dataKey: createSecretKey(random.bytes(32)), segment: 0, sealId }),
	].map((key) => key.export().toString('hex'));
	expect(new Set(keys).size).toBe(keys.length);
	expect(segmentKey({ dataKey, segment: 0, sealId }).export().toString('hex')).toBe(keys[0]);
});
