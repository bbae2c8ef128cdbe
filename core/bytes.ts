/**
 * Canonical bytes of stored records: fixed-width little-endian integers, ids as 16 bytes, everything else with its length
 * before it. No field names and no optional order, so that one value has one encoding.
 */

import { DistroError } from './errors.ts';

export class ByteWriter {
	readonly #parts: Buffer[] = [];

	u8(value: number): this {
		this.#parts.push(Buffer.from([value]));
		return this;
	}

	u16(value: number): this {
		const bytes = Buffer.alloc(2);
		bytes.writeUInt16LE(value);
		this.#parts.push(bytes);
		return this;
	}

	u32(value: number): this {
		const bytes = Buffer.alloc(4);
		bytes.writeUInt32LE(value);
		this.#parts.push(bytes);
		return this;
	}

	u64(value: number): this {
		const bytes = Buffer.alloc(8);
		bytes.writeBigUInt64LE(BigInt(value));
		this.#parts.push(bytes);
		return this;
	}

	/** Of a length that the reader knows. */
	raw(bytes: Buffer): this {
		this.#parts.push(bytes);
		return this;
	}

	/** With its length (u32) before it. */
	sized(bytes: Buffer): this {
		return this.u32(bytes.length).raw(bytes);
	}

	bytes(): Buffer {
		return Buffer.concat(this.#parts);
	}
}

/** Reads what ByteWriter wrote. Throws `corrupt` when it ends early or late. */
export class ByteReader {
	readonly #bytes: Buffer;
	readonly #what: string;
	#at = 0;

	constructor(bytes: Buffer, what: string) {
		this.#bytes = bytes;
		this.#what = what;
	}

	u8(): number {
		return this.raw(1).readUInt8();
	}

	u16(): number {
		return this.raw(2).readUInt16LE();
	}

	u32(): number {
		return this.raw(4).readUInt32LE();
	}

	u64(): number {
		const value = Number(this.raw(8).readBigUInt64LE());
		if (!Number.isSafeInteger(value)) throw new DistroError('corrupt', `${this.#what} has a number that is too large`);
		return value;
	}

	/** A view. */
	raw(bytes: number): Buffer {
		const end = this.#at + bytes;
		if (end > this.#bytes.length) throw new DistroError('corrupt', `${this.#what} ends too early`);
		const view = this.#bytes.subarray(this.#at, end);
		this.#at = end;
		return view;
	}

	sized(): Buffer {
		return this.raw(this.u32());
	}

	end(): void {
		if (this.#at !== this.#bytes.length) throw new DistroError('corrupt', `${this.#what} has bytes behind its end`);
	}
}
