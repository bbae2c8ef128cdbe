/**
 * A manifest: the plaintext facts of an object, sealed with its data key. Nothing about shards stands in it, so repair and
 * re-encoding never touch it.
 *
 * Bytes: version (u8 = 1) | flags (u8: 1 name, 2 content type, 4 sha-256) | size (u64) | segments (u32) | created (u64, ms)
 * | name (sized) | content type (sized) | sha-256 (32).
 */

import { ByteReader, ByteWriter } from '../bytes.ts';
import { checkVersion } from '../versions.ts';

export interface Manifest {
	readonly name: string | null;
	readonly contentType: string | null;
	readonly sizeBytes: number;
	/** 0 for an inline object. */
	readonly segments: number;
	readonly sha256: Buffer | null;
	readonly createdAtMs: number;
}

const VERSION = 1;
const HAS_NAME = 1;
const HAS_TYPE = 2;
const HAS_DIGEST = 4;

export function encodeManifest(manifest: Manifest): Buffer {
	const { name, contentType, sha256 } = manifest;
	const flags =
		(name === null ? 0 : HAS_NAME) | (contentType === null ? 0 : HAS_TYPE) | (sha256 === null ? 0 : HAS_DIGEST);
	const writer = new ByteWriter()
		.u8(VERSION)
		.u8(flags)
		.u64(manifest.sizeBytes)
		.u32(manifest.segments)
		.u64(manifest.createdAtMs);
	if (name !== null) writer.sized(Buffer.from(name));
	if (contentType !== null) writer.sized(Buffer.from(contentType));
	if (sha256 !== null) writer.raw(sha256);
	return writer.bytes();
}

/** Throws `corrupt`, or `unsupported` for a newer version. */
export function decodeManifest(bytes: Buffer): Manifest {
	const reader = new ByteReader(bytes, 'a manifest');
	checkVersion(reader.u8(), { what: 'the manifest of this object', newest: VERSION });
	const flags = reader.u8();
	const manifest: Manifest = {
		sizeBytes: reader.u64(),
		segments: reader.u32(),
		createdAtMs: reader.u64(),
		name: (flags & HAS_NAME) === 0 ? null : reader.sized().toString(),
		contentType: (flags & HAS_TYPE) === 0 ? null : reader.sized().toString(),
		sha256: (flags & HAS_DIGEST) === 0 ? null : Buffer.from(reader.raw(32)),
	};
	reader.end();
	return manifest;
}
