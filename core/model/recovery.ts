/**
 * A recovery record: what bare-disk recovery needs of a shard's object, in every trailer. Nothing in it is secret without
 * the master key.
 *
 * Bytes: version (u8 = 1) | key generation (u32) | wrapped data key (64) | object id (16) | created (u64, ms) |
 * sealed manifest (sized; empty where it was not known yet, or is over 2 KiB).
 */

import { ByteReader, ByteWriter } from '../bytes.ts';
import { idBytes, idFromBytes, type ObjectId } from '../ids.ts';
import { checkVersion } from '../versions.ts';

export interface RecoveryRecord {
	readonly keyGeneration: number;
	readonly wrappedKey: Buffer;
	readonly objectId: ObjectId;
	readonly createdAtMs: number;
	/** Known with the last segment only. */
	readonly manifest: Buffer | null;
}

const VERSION = 1;
const WRAPPED_KEY_BYTES = 64;
const MANIFEST_MAX_BYTES = 2048;

export function encodeRecovery(record: RecoveryRecord): Buffer {
	const { manifest } = record;
	return new ByteWriter()
		.u8(VERSION)
		.u32(record.keyGeneration)
		.raw(record.wrappedKey)
		.raw(idBytes(record.objectId))
		.u64(record.createdAtMs)
		.sized(manifest === null || manifest.length > MANIFEST_MAX_BYTES ? Buffer.alloc(0) : manifest)
		.bytes();
}

/** Throws `corrupt`, or `unsupported` for a newer version. */
export function decodeRecovery(bytes: Buffer): RecoveryRecord {
	const reader = new ByteReader(bytes, 'a recovery record');
	checkVersion(reader.u8(), { what: 'the recovery record of this shard', newest: VERSION });
	const keyGeneration = reader.u32();
	const wrappedKey = Buffer.from(reader.raw(WRAPPED_KEY_BYTES));
	const objectId = idFromBytes<ObjectId>(reader.raw(16));
	const createdAtMs = reader.u64();
	const manifest = reader.sized();
	reader.end();
	return {
		keyGeneration,
		wrappedKey,
		objectId,
		createdAtMs,
		manifest: manifest.length === 0 ? null : Buffer.from(manifest),
	};
}
