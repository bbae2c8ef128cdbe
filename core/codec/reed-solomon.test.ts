/**
 * Reed-Solomon: every loss pattern of every code with up to 12 shards, samples of all others. Cells that are not there
 * hold garbage, since that is what a reused slot holds.
 */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../test/support/clock.ts';
import { CODEC_MAX_K, CODEC_MAX_M } from '../limits.ts';
import { type CodedRow, codecFor } from './erasure-codec.ts';

const codec = codecFor('rs-ronomon-6');
const random = seededRandom('reed-solomon');
const EXHAUSTIVE_N = 12;

async function encoded(k: number, m: number, length: number): Promise<CodedRow> {
	const row = { k, n: k + m, length, data: random.bytes(k * length), parity: Buffer.alloc(m * length, 0xee) };
	await codec.encode(row);
	return row;
}

function cellOf(row: CodedRow, shard: number): Buffer {
	const { k, length, data, parity } = row;
	return shard < k
		? data.subarray(shard * length, (shard + 1) * length)
		: parity.subarray((shard - k) * length, (shard - k + 1) * length);
}

/** Copies the row, spoils what is not present, rebuilds, and compares. */
async function check(row: CodedRow, present: readonly number[], wanted: readonly number[]): Promise<void> {
	const broken = { ...row, data: Buffer.from(row.data), parity: Buffer.from(row.parity) };
	for (let shard = 0; shard < row.n; shard++) if (!present.includes(shard)) cellOf(broken, shard).fill(0xaa);
	await codec.reconstruct({ ...broken, present, wanted });
	for (const shard of [...present, ...wanted]) {
		if (!cellOf(broken, shard).equals(cellOf(row, shard))) {
			throw new Error(`k ${row.k} n ${row.n} present ${present} wanted ${wanted}: shard ${shard} is wrong`);
		}
	}
}

/** All subsets of 0..n-1 with 1 to `most` members. */
function* losses(n: number, most: number): Generator<number[]> {
	for (let flags = 1; flags < 1 << n; flags++) {
		const lost: number[] = [];
		for (let i = 0; i < n; i++) if (flags & (1 << i)) lost.push(i);
		if (lost.length <= most) yield lost;
	}
}

function without(n: number, lost: readonly number[]): number[] {
	return Array.from({ length: n }, (_, i) => i).filter((shard) => !lost.includes(shard));
}

describe('every loss pattern', () => {
	for (let k = 2; k <= 10; k++) {
		test(`k = ${k}, up to ${EXHAUSTIVE_N} shards`, async () => {
			for (let m = 1; m <= CODEC_MAX_M && k + m <= EXHAUSTIVE_N; m++) {
				const n = k + m;
				const row = await encoded(k, m, 8);
				let running: Promise<void>[] = [];
				for (const lost of losses(n, m)) {
					const left = without(n, lost);
					running.push(check(row, left, lost));
					// A download wants data only, and has read no more than k shards.
					const lostData = lost.filter((shard) => shard < k);
					if (lostData.length > 0) {
						running.push(check(row, left.slice(0, k), lostData));
						running.push(check(row, left.slice(-k), lostData.slice(-1)));
					}
					// A repair wants one shard, parity included.
					running.push(check(row, left.slice(-k).reverse(), lost.slice(-1)));
					if (running.length > 500) {
						await Promise.all(running);
						running = [];
					}
				}
				await Promise.all(running);
			}
		});
	}
});

test('any k present and any wanted, for every code and several lengths', async () => {
	await fc.assert(
		fc.asyncProperty(
			fc.integer({ min: 2, max: CODEC_MAX_K }),
			fc.integer({ min: 1, max: CODEC_MAX_M }),
			fc.constantFrom(8, 16, 24, 1000, 4104),
			fc.infiniteStream(fc.nat(1_000_000)),
			async (k, m, length, choices) => {
				const row = await encoded(k, m, length);
				const order = without(row.n, [])
					.map((shard) => ({ shard, at: choices.next().value as number }))
					.sort((a, b) => a.at - b.at)
					.map(({ shard }) => shard);
				const presentCount = k + ((choices.next().value as number) % m);
				const absent = order.slice(presentCount);
				const wanted = absent.slice(0, 1 + ((choices.next().value as number) % absent.length));
				await check(row, order.slice(0, presentCount), wanted);
			},
		),
		{ seed: 20_240_602, numRuns: 400 },
	);
});

describe('encoding', () => {
	test('is systematic, and its first parity cell is the xor of the data', async () => {
		const k = 5;
		const row = await encoded(k, 3, 64);
		const before = Buffer.from(row.data);
		const sum = Buffer.alloc(64);
		for (let shard = 0; shard < k; shard++)
			for (const [i, byte] of cellOf(row, shard).entries()) sum[i] = (sum[i] ?? 0) ^ byte;
		expect(cellOf(row, k).equals(sum)).toBe(true);
		await codec.encode(row);
		expect(row.data.equals(before)).toBe(true);
	});

	test('whole cells of both lengths come back', async () => {
		for (const length of [69_632, 266_240]) {
			const row = await encoded(4, 2, length);
			await check(row, [1, 3, 4, 5], [0, 2]);
		}
	});

	test('refuses what would end the process', async () => {
		const none = Buffer.alloc(0);
		const row = { k: 2, n: 3, length: 8, data: Buffer.alloc(16), parity: Buffer.alloc(8) };
		const wrong: CodedRow[] = [
			{ ...row, n: 2, parity: none },
			{ ...row, length: 0, data: none, parity: none },
			{ ...row, length: 9, data: Buffer.alloc(18), parity: Buffer.alloc(9) },
			{ ...row, data: Buffer.alloc(15) },
			{ ...row, k: 25, n: 26, data: Buffer.alloc(200) },
			{ ...row, n: 9, parity: Buffer.alloc(56) },
		];
		for (const each of wrong) {
			await expect((async () => codec.encode(each))()).rejects.toMatchObject({ kind: 'internal' });
		}
		await expect(codec.reconstruct({ ...row, present: [0], wanted: [1] })).rejects.toMatchObject({ kind: 'internal' });
	});

	test('nothing to do is nothing done', async () => {
		const row = await encoded(2, 2, 8);
		await check(row, [0, 1], []);
		await check(row, [0, 1, 2], [0]);
	});
});

test('copies need no code', async () => {
	const replicate = codecFor('replicate');
	const row = { k: 1, n: 1, length: 8, data: Buffer.alloc(8, 7), parity: Buffer.alloc(0) };
	await replicate.encode(row);
	expect(row.data.equals(Buffer.alloc(8, 7))).toBe(true);
	await expect(replicate.reconstruct({ ...row, present: [], wanted: [0] })).rejects.toMatchObject({ kind: 'internal' });
});
