/** Canonical bytes: what was written is read back, and what ends early, late or too large is `corrupt`. */

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ByteReader, ByteWriter } from './bytes.ts';

const corrupt = expect.objectContaining({ kind: 'corrupt' });

test('comes back as it was written', () => {
	fc.assert(
		fc.property(
			fc.record({
				u8: fc.nat(0xff),
				u16: fc.nat(0xffff),
				u32: fc.nat(0xffff_ffff),
				u64: fc.maxSafeNat(),
				raw: fc.uint8Array({ minLength: 5, maxLength: 5 }),
				sized: fc.uint8Array({ maxLength: 40 }),
			}),
			(value) => {
				const [raw, sized] = [Buffer.from(value.raw), Buffer.from(value.sized)];
				const writer = new ByteWriter().u8(value.u8).u16(value.u16).u32(value.u32).u64(value.u64).raw(raw).sized(sized);
				const reader = new ByteReader(writer.bytes(), 'a test');
				expect([reader.u8(), reader.u16(), reader.u32(), reader.u64()]).toEqual([
					value.u8,
					value.u16,
					value.u32,
					value.u64,
				]);
				expect(reader.raw(5).equals(raw)).toBe(true);
				expect(reader.sized().equals(sized)).toBe(true);
				reader.end();
			},
		),
		{ seed: 20_240_606 },
	);
});

test('early ends, late ends, lengths and numbers that are too large', () => {
	const of = (...bytes: number[]) => new ByteReader(Buffer.from(bytes), 'a test');
	expect(() => of().u8()).toThrow(corrupt);
	expect(() => of(1, 2, 3).u32()).toThrow(corrupt);
	expect(() => of(1, 2).end()).toThrow(corrupt);
	expect(() => of(0xff, 0xff, 0xff, 0xff, 1).sized()).toThrow(corrupt);
	expect(() => of(0, 0, 0, 0, 0, 0, 0x20, 0).u64()).toThrow(corrupt);
});
