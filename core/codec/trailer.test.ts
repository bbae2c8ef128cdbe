/** Trailers come back as they were written, are found from the end of a file, and no changed byte gets through. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../test/support/clock.ts';
import { checksum, rootOf } from '../crypto/digest.ts';
import { newId } from '../ids.ts';
import { TRAILER_MAX_BYTES } from '../limits.ts';
import { decodeTrailer, encodeTrailer, readTrailerFooter, TRAILER_FOOTER_BYTES, type Trailer } from './trailer.ts';

const random = seededRandom('trailer');

function trailer(change: Partial<Trailer['description']> = {}, leafCount = 3): Trailer {
	const leaves = random.bytes(32 * leafCount);
	return {
		description: {
			codec: 'rs-ronomon-6',
			k: 4,
			n: 6,
			cellBytes: 69_632,
			cells: 10,
			lastCellBytes: 100,
			clusterId: newId(random),
			versionId: newId(random),
			segment: 7,
			sealId: newId(random),
			encodingId: newId(random),
			shardIndex: 1,
			shardId: newId(random),
			...change,
		},
		root: rootOf(leaves),
		leaves,
		endRecord: random.bytes(25),
		recovery: random.bytes(97),
	};
}

/** The same trailer with other body bytes and a right checksum. */
function resealed(bytes: Buffer, change: (body: Buffer) => Buffer): Buffer {
	const body = change(Buffer.from(bytes.subarray(0, bytes.length - TRAILER_FOOTER_BYTES)));
	const footer = Buffer.from(bytes.subarray(bytes.length - TRAILER_FOOTER_BYTES));
	footer.writeUInt32LE(body.length + TRAILER_FOOTER_BYTES, 0);
	checksum(body).copy(footer, 4);
	return Buffer.concat([body, footer]);
}

function kindOf(bytes: Buffer): string {
	try {
		decodeTrailer(bytes);
		return 'read';
	} catch (error) {
		return (error as { kind: string }).kind;
	}
}

test('comes back as it was written', () => {
	fc.assert(
		fc.property(
			fc.integer({ min: 1, max: 24 }),
			fc.integer({ min: 0, max: 6 }),
			fc.integer({ min: 24, max: 256 }),
			fc.integer({ min: 16, max: 266_240 }),
			fc.nat(1_000_000),
			(k, m, cells, lastCellBytes, segment) => {
				const n = k + (k === 1 ? m : Math.max(1, m));
				const shardIndex = segment % n;
				const dataLeaves = Math.ceil((cells - shardIndex) / k);
				const leafCount = k === 1 ? cells : shardIndex < k ? dataLeaves : Math.ceil(cells / k);
				const codec = k === 1 ? 'replicate' : 'rs-ronomon-6';
				const written = trailer(
					{ codec, k, n, cells, cellBytes: 266_240, lastCellBytes, segment, shardIndex },
					leafCount,
				);
				const bytes = encodeTrailer(written);
				expect(bytes.length).toBeLessThan(TRAILER_MAX_BYTES);
				expect(decodeTrailer(bytes)).toEqual(written);
			},
		),
		{ seed: 20_240_603 },
	);
});

test('is found from the end of a file', () => {
	const bytes = encodeTrailer(trailer());
	const file = Buffer.concat([random.bytes(5000), bytes]);
	const { length } = readTrailerFooter(file.subarray(-TRAILER_FOOTER_BYTES));
	expect(file.subarray(-length).equals(bytes)).toBe(true);
	expect(readTrailerFooter(file)).toEqual({ length });
});

describe('what is not a trailer', () => {
	test('any changed bit', () => {
		const bytes = encodeTrailer(trailer());
		for (let at = 0; at < bytes.length; at++) {
			const changed = Buffer.from(bytes);
			changed.writeUInt8(bytes.readUInt8(at) ^ (1 << (at % 8)), at);
			expect(kindOf(changed)).toBe('corrupt');
		}
	});

	test('any shorter or longer run of bytes', () => {
		const bytes = encodeTrailer(trailer());
		for (let length = 0; length < bytes.length; length++) {
			expect(kindOf(bytes.subarray(0, length))).toBe('corrupt');
			if (length > 0) expect(kindOf(bytes.subarray(length))).toBe('corrupt');
		}
		expect(kindOf(Buffer.concat([Buffer.alloc(1), bytes]))).toBe('corrupt');
		expect(kindOf(Buffer.alloc(4096))).toBe('corrupt');
	});

	test('a length over the limit, before anything of that length is read', () => {
		const footer = Buffer.from(encodeTrailer(trailer()).subarray(-TRAILER_FOOTER_BYTES));
		footer.writeUInt32LE(TRAILER_MAX_BYTES + 1, 0);
		expect(() => readTrailerFooter(footer)).toThrow(expect.objectContaining({ kind: 'corrupt' }));
	});

	test('a newer version or codec is told apart from damage', () => {
		const bytes = encodeTrailer(trailer());
		const set = (at: number, value: number) =>
			resealed(bytes, (body) => {
				body[at] = value;
				return body;
			});
		expect(kindOf(set(0, 1))).toBe('read');
		expect(kindOf(set(0, 2))).toBe('unsupported');
		expect(kindOf(set(0, 0))).toBe('corrupt');
		expect(() => decodeTrailer(set(0, 2))).toThrow(/newer release \(version 2, this one knows 1\): run that release$/);
		expect(kindOf(set(1, 9))).toBe('unsupported');
	});

	test('lies with a right checksum: shapes, indexes and leaf counts that do not fit', () => {
		const bytes = encodeTrailer(trailer());
		expect(kindOf(encodeTrailer(trailer({ shardIndex: 6 })))).toBe('corrupt');
		expect(kindOf(encodeTrailer(trailer({ k: 11, n: 13 })))).toBe('corrupt');
		expect(kindOf(encodeTrailer(trailer({ lastCellBytes: 3 })))).toBe('corrupt');
		expect(kindOf(encodeTrailer(trailer({}, 4)))).toBe('corrupt');
		expect(kindOf(encodeTrailer(trailer({ shardIndex: 2 }, 3)))).toBe('corrupt');
		expect(kindOf(resealed(bytes, (body) => Buffer.concat([body, Buffer.alloc(1)])))).toBe('corrupt');
		expect(kindOf(resealed(bytes, (body) => body.subarray(0, -1)))).toBe('corrupt');
		expect(kindOf(resealed(bytes, (body) => body.subarray(0, 30)))).toBe('corrupt');
	});
});
