/**
 * Identifiers: 128 random bits, written as 32 lower-case hexadecimal digits. In stored and signed bytes they are the
 * 16 raw bytes. All are made from the `Random` port, so that simulations are repeatable.
 */

import { DistroError } from './errors.ts';
import type { Random } from './ports.ts';

export const ID_BYTES = 16;

type Id<Name extends string> = string & { readonly __id: Name };
export type ClusterId = Id<'cluster'>;
export type ObjectId = Id<'object'>;
/** One written version of an object; bound into every seal. */
export type VersionId = Id<'version'>;
export type UploadId = Id<'upload'>;
export type SealId = Id<'seal'>;
export type EncodingId = Id<'encoding'>;
export type ShardId = Id<'shard'>;
export type WorkerId = Id<'worker'>;

export function newId<T extends Id<string>>(random: Random): T {
	return random.bytes(ID_BYTES).toString('hex') as T;
}

export function isId(text: string): boolean {
	return /^[0-9a-f]{32}$/.test(text);
}

/** Reads an id from outside. Throws `invalid` with `what` in the sentence. */
export function parseId<T extends Id<string>>(text: string, what: string): T {
	if (!isId(text)) throw new DistroError('invalid', `${what} must be 32 lower-case hexadecimal digits`);
	return text as T;
}

export function idBytes(id: Id<string>): Buffer {
	return Buffer.from(id, 'hex');
}

export function idFromBytes<T extends Id<string>>(bytes: Uint8Array): T {
	if (bytes.length !== ID_BYTES) throw new DistroError('corrupt', `an id has ${ID_BYTES} bytes, not ${bytes.length}`);
	return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex') as T;
}
