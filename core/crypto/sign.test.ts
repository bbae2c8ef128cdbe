/** Signing keys survive PEM and raw bytes; a receipt holds for exactly what it says. */

import { generateKeyPairSync } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../test/support/clock.ts';
import { newId } from '../ids.ts';
import type { Receipt } from '../model/receipt.ts';
import {
	newSigningKey,
	publicKeyFromRaw,
	rawPublicKey,
	signingKeyFromPem,
	signingKeyToPem,
	signReceipt,
	verifyReceipt,
} from './sign.ts';

const random = seededRandom('sign');
const key = newSigningKey();
const publicKey = publicKeyFromRaw(rawPublicKey(key));
const receipt = signReceipt(
	{
		workerId: newId(random),
		shardId: newId(random),
		root: random.bytes(32),
		cellsBytes: 69_632,
		timeMs: 1_700_000_000_000,
	},
	key,
);

describe('keys', () => {
	test('by PEM and by raw bytes', () => {
		const again = signingKeyFromPem(signingKeyToPem(key));
		expect(rawPublicKey(again).equals(rawPublicKey(key))).toBe(true);
		expect(rawPublicKey(publicKey).equals(rawPublicKey(key))).toBe(true);
		expect(rawPublicKey(key)).toHaveLength(32);
	});

	test('of another kind are refused', () => {
		const pem = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ type: 'pkcs8', format: 'pem' });
		expect(() => signingKeyFromPem(pem as string)).toThrow(expect.objectContaining({ kind: 'invalid' }));
		expect(() => publicKeyFromRaw(Buffer.alloc(31))).toThrow(expect.objectContaining({ kind: 'invalid' }));
	});
});

describe('receipts', () => {
	test('hold under the key that signed them', () => {
		expect(receipt.signature).toHaveLength(64);
		expect(verifyReceipt(receipt, publicKey)).toBe(true);
		expect(verifyReceipt(receipt, publicKeyFromRaw(rawPublicKey(newSigningKey())))).toBe(false);
	});

	const changes: [string, Partial<Receipt>][] = [
		['worker', { workerId: newId(random) }],
		['shard', { shardId: newId(random) }],
		['root', { root: random.bytes(32) }],
		['bytes', { cellsBytes: 69_633 }],
		['time', { timeMs: 1_700_000_000_001 }],
		['signature', { signature: random.bytes(64) }],
		['cut signature', { signature: receipt.signature.subarray(1) }],
		['no signature', { signature: Buffer.alloc(0) }],
		['worker and shard swapped', { workerId: receipt.shardId as never, shardId: receipt.workerId as never }],
	];
	test.each(changes)('do not hold with another %s', (_what, change) => {
		expect(verifyReceipt({ ...receipt, ...change }, publicKey)).toBe(false);
	});
});
