/**
 * A manifest: the plaintext facts of an object, sealed with its data key. Nothing about shards stands in it, so repair and
 * re-encoding never touch it.
 *
 * Bytes: version (u8 = 1) | flags (u8: 1 name, 2 content type, 4 sha-256) | size (u64) | segments (u32) | created (u64, ms)
 * | name (sized) | content type (sized) | sha-256 (32).
 *
 * Version 2 has the object's kind (u8) behind the flags. Only objects of the cluster's own have it, so that nobody's upload
 * passes for one of them, and people's stay as they were.
 */

import { ByteReader, ByteWriter } from '../bytes.ts';
import { DistroError } from '../errors.ts';
import { checkVersion } from '../versions.ts';

export const OBJECT_KINDS = ['user', 'snapshot'] as const;
/** Whose an object is: people's, or the cluster's own snapshot of its metadata. */
export type ObjectKind = (typeof OBJECT_KINDS)[number];

export interface Manifest {
	readonly name: string | null;
	readonly contentType: string | null;
	readonly sizeBytes: number;
	/** 0 for an inline object. */
	readonly segments: number;
	readonly sha256: Buffer | null;
	readonly createdAtMs: number;
	/** `user` where it is not said. */
	readonly kind?: ObjectKind;
}

const VERSION = 1;
const VERSION_WITH_KIND = 2;
const HAS_NAME = 1;
const HAS_TYPE = 2;
const HAS_DIGEST = 4;

export function encodeManifest(manifest: Manifest): Buffer {
	const { name, contentType, sha256, kind = 'user' } = manifest;
	const flags =
		(name === null ? 0 : HAS_NAME) | (contentType === null ? 0 : HAS_TYPE) | (sha256 === null ? 0 : HAS_DIGEST);
	const writer = new ByteWriter().u8(kind === 'user' ? VERSION : VERSION_WITH_KIND).u8(flags);
	if (kind !== 'user') writer.u8(OBJECT_KINDS.indexOf(kind));
	writer.u64(manifest.sizeBytes).u32(manifest.segments).u64(manifest.createdAtMs);
	if (name !== null) writer.sized(Buffer.from(name));
	if (contentType !== null) writer.sized(Buffer.from(contentType));
	if (sha256 !== null) writer.raw(sha256);
	return writer.bytes();
}

/** Throws `corrupt`, or `unsupported` for a newer version. */
export function decodeManifest(bytes: Buffer): Manifest {
	const reader = new ByteReader(bytes, 'a manifest');
	const version = reader.u8();
	checkVersion(version, { what: 'the manifest of this object', newest: VERSION_WITH_KIND });
	const flags = reader.u8();
	const kind = version === VERSION ? 'user' : OBJECT_KINDS[reader.u8()];
	if (kind === undefined) throw new DistroError('unsupported', 'a manifest of an object of a kind not known here');
	const manifest: Manifest = {
		sizeBytes: reader.u64(),
		segments: reader.u32(),
		createdAtMs: reader.u64(),
		name: (flags & HAS_NAME) === 0 ? null : reader.sized().toString(),
		contentType: (flags & HAS_TYPE) === 0 ? null : reader.sized().toString(),
		sha256: (flags & HAS_DIGEST) === 0 ? null : Buffer.from(reader.raw(32)),
		...(kind === 'user' ? {} : { kind }),
	};
	reader.end();
	return manifest;
}
