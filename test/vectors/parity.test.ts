/**
 * Golden parity of the codec `rs-ronomon-6`. Its bytes depend on k, m and the length coded at once, so a new release of
 * the library that computes otherwise would make every stored shard unreadable: it fails here instead.
 */

import { expect, test } from 'vitest';
import { codecFor } from '../../core/codec/erasure-codec.ts';
import { checksum } from '../../core/crypto/digest.ts';
import { counting, golden, hex } from './golden.ts';

const codec = codecFor('rs-ronomon-6');
const CODES = [
	[2, 1],
	[2, 2],
	[3, 2],
	[4, 1],
	[4, 2],
	[4, 3],
	[5, 4],
	[8, 4],
	[8, 6],
	[16, 5],
	[24, 6],
] as const;
const LENGTHS = [8, 24, 1_000, 69_632, 266_240];

/** Byte i of the row is i·i + i/251 (integer part), mod 256: repeats nowhere that matters. */
function pattern(bytes: number): Buffer {
	const out = Buffer.alloc(bytes);
	for (let i = 0; i < bytes; i++) out[i] = (i * i + Math.floor(i / 251)) & 0xff;
	return out;
}

async function parityOf(k: number, m: number, data: Buffer): Promise<Buffer> {
	const length = data.length / k;
	const parity = Buffer.alloc(m * length);
	await codec.encode({ k, n: k + m, length, data, parity });
	return parity;
}

test('parity', async () => {
	const hashed: { k: number; m: number; length: number; checksum: string }[] = [];
	for (const [k, m] of CODES) {
		for (const length of LENGTHS) {
			hashed.push({ k, m, length, checksum: hex(checksum(await parityOf(k, m, pattern(k * length)))) });
		}
	}
	const plain: { k: number; m: number; data: string; parity: string }[] = [];
	for (const [k, m] of CODES.slice(0, 6)) {
		const data = counting(k * 8);
		plain.push({ k, m, data: hex(data), parity: hex(await parityOf(k, m, data)) });
	}
	const kept = golden('parity', { hashed, plain });

	// And what was stored then still decodes now, from the last k shards.
	for (const { k, m, data, parity } of kept.plain) {
		const broken = Buffer.from(data, 'hex');
		broken.fill(0xaa, 0, m * 8);
		const n = k + m;
		const lost = Array.from({ length: Math.min(m, k) }, (_, i) => i);
		const present = Array.from({ length: n }, (_, i) => i).filter((shard) => !lost.includes(shard));
		const row = { k, n, length: 8, data: broken, parity: Buffer.from(parity, 'hex') };
		await codec.reconstruct({ ...row, present, wanted: lost });
		expect(hex(broken)).toBe(data);
	}
});
