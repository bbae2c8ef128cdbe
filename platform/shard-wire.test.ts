/** The wire of shards against what protobuf and gRPC say, cut into pieces at every place, and everything that is not it. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { GetResponse, PutRequest } from '../proto/gen/distro/v1/shards.ts';
import { frame, GET_FIELD, MessageReader, PartReader, PUT_FIELD, partPrefix } from './shard-wire.ts';

type Part = { field: number; payload: Buffer };

/** Reads pieces; the parts of the streamed field are joined where they follow each other without another between. */
function readParts(pieces: readonly Buffer[], options = { streamedField: 2, maxPartBytes: 65_536 }) {
	const parts: Part[] = [];
	let streamed: Buffer[] = [];
	const endRun = () => {
		if (streamed.length > 0) parts.push({ field: options.streamedField, payload: Buffer.concat(streamed) });
		streamed = [];
	};
	const reader = new PartReader({
		...options,
		events: {
			bytes: (chunk) => streamed.push(Buffer.from(chunk)),
			part: (field, payload) => {
				endRun();
				parts.push({ field, payload });
			},
		},
	});
	for (const piece of pieces) reader.push(piece);
	endRun();
	return { parts, atBoundary: reader.atBoundary };
}

const written = (parts: readonly Part[]) =>
	Buffer.concat(parts.flatMap(({ field, payload }) => [partPrefix(field, payload.length), payload]));

function bytewise(bytes: Buffer): Buffer[] {
	return Array.from(bytes, (_, i) => bytes.subarray(i, i + 1));
}

function kindOf(read: () => unknown): string {
	try {
		read();
		return 'read';
	} catch (error) {
		return (error as { kind: string }).kind;
	}
}

describe('parts', () => {
	test('are what protobuf and gRPC write', () => {
		const lengths = [1, 2, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152];
		for (const length of lengths) {
			const payload = Buffer.alloc(length, 7);
			expect(
				written([{ field: PUT_FIELD.cell, payload }]).equals(
					frame(PutRequest.encode({ part: { $case: 'cell', value: payload } }).finish()),
				),
			).toBe(true);
			expect(
				written([{ field: GET_FIELD.data, payload }]).equals(
					frame(GetResponse.encode({ part: { $case: 'data', value: payload } }).finish()),
				),
			).toBe(true);
		}
	});

	test('come out the same however the stream is cut', () => {
		const anyPart = fc.record({
			field: fc.constantFrom(1, 2, 3),
			payload: fc.uint8Array({ maxLength: 400 }).map((bytes) => Buffer.from(bytes)),
		});
		fc.assert(
			fc.property(fc.array(anyPart, { maxLength: 8 }), fc.array(fc.nat(300), { maxLength: 30 }), (parts, cuts) => {
				const bytes = written(parts);
				const pieces: Buffer[] = [];
				let at = 0;
				for (const cut of cuts) {
					pieces.push(bytes.subarray(at, at + cut));
					at += cut;
				}
				pieces.push(bytes.subarray(at));
				const whole = readParts([bytes]);
				expect(whole.atBoundary).toBe(true);
				expect(readParts(pieces)).toEqual(whole);
				expect(readParts(bytewise(bytes))).toEqual(whole);
				const joined = (field: number, all: readonly Part[]) =>
					Buffer.concat(all.filter((part) => part.field === field).map(({ payload }) => payload)).toString('hex');
				for (const field of [1, 2, 3]) expect(joined(field, whole.parts)).toBe(joined(field, parts));
				expect(whole.parts.filter(({ field }) => field !== 2)).toEqual(parts.filter(({ field }) => field !== 2));
			}),
			{ seed: 20_240_605 },
		);
	});

	test('a stream that ends inside a part is told from one that ends between two', () => {
		const bytes = written([
			{ field: 1, payload: Buffer.alloc(5) },
			{ field: 2, payload: Buffer.alloc(300) },
		]);
		const boundaries = [0, 12, bytes.length];
		for (let length = 0; length <= bytes.length; length++) {
			expect(readParts([bytes.subarray(0, length)]).atBoundary).toBe(boundaries.includes(length));
		}
	});

	test('what is not one field in one message is invalid, byte by byte as well', () => {
		const whole = written([{ field: 3, payload: Buffer.alloc(200, 1) }]);
		const changed = (at: number, value: number) => {
			const bytes = Buffer.from(whole);
			bytes[at] = value;
			return bytes;
		};
		const wrong = {
			compressed: changed(0, 1),
			'an empty message': Buffer.alloc(5),
			'a varint field': changed(5, (3 << 3) | 0),
			'a field number of two bytes': changed(5, 0x82),
			'a message longer than its field': changed(4, (whole[4] as number) + 1),
			'a message shorter than its field': changed(4, (whole[4] as number) - 1),
			'a length that never ends': Buffer.concat([whole.subarray(0, 6), Buffer.alloc(20, 0xff)]),
			'a part over the limit': written([{ field: 3, payload: Buffer.alloc(1_001) }]),
		};
		const options = { streamedField: 2, maxPartBytes: 1_000 };
		expect(kindOf(() => readParts([whole], options))).toBe('read');
		for (const [what, bytes] of Object.entries(wrong)) {
			expect([what, kindOf(() => readParts([bytes], options))]).toEqual([what, 'invalid']);
			expect([what, kindOf(() => readParts(bytewise(bytes), options))]).toEqual([what, 'invalid']);
		}
	});

	test('random bytes are refused or wait for more, and never anything else', () => {
		fc.assert(
			fc.property(fc.uint8Array({ maxLength: 100 }), (bytes) => {
				expect(['read', 'invalid']).toContain(kindOf(() => readParts([Buffer.from(bytes)])));
			}),
			{ seed: 20_240_606 },
		);
	});
});

describe('whole messages', () => {
	const read = (pieces: readonly Buffer[], maxBytes = 1_000) => {
		const reader = new MessageReader(maxBytes);
		for (const piece of pieces) reader.push(piece);
		return reader.message();
	};

	test('come out the same however they are cut', () => {
		const message = Buffer.from('one message');
		expect(read([frame(message)])).toEqual(message);
		expect(read(bytewise(frame(message)))).toEqual(message);
		expect(read([frame(Buffer.alloc(0))])).toEqual(Buffer.alloc(0));
		expect(read([])).toBeNull();
		expect(read([frame(Buffer.alloc(1_000))])?.length).toBe(1_000);
	});

	test('anything else is invalid', () => {
		const message = frame(Buffer.from('one message'));
		for (let length = 1; length < message.length; length++)
			expect(kindOf(() => read([message.subarray(0, length)]))).toBe('invalid');
		expect(kindOf(() => read([message, message]))).toBe('invalid');
		expect(kindOf(() => read([Buffer.concat([Buffer.of(1), message.subarray(1)])]))).toBe('invalid');
		expect(kindOf(() => read([frame(Buffer.alloc(1_001))]))).toBe('invalid');
	});
});
