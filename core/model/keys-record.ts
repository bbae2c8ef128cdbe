/**
 * The keys record: all generations of the cluster key, each wrapped by a master key, as every worker's volume keeps them in
 * keys.json. With it bare disks and the master key are enough to read the data. Nothing in it is secret without the master
 * key.
 *
 * Bytes: version (u8 = 1) | cluster id (16) | revision (u64) | generations (u32), and for each, oldest first:
 * generation (u32) | created (u64, ms) | id of its master key (sized, UTF-8) | wrapped key (64).
 *
 * The revision grows with every change: of two records of one cluster the one with the higher number counts.
 */

import { ByteReader, ByteWriter } from '../bytes.ts';
import { checksum } from '../crypto/digest.ts';
import { WRAPPED_KEY_BYTES } from '../crypto/keys.ts';
import { DistroError } from '../errors.ts';
import { type ClusterId, idBytes, idFromBytes, isId } from '../ids.ts';

export interface WrappedClusterKey {
	/** From 1; the highest is for what is new. */
	readonly generation: number;
	readonly createdAtMs: number;
	/** Which master key wraps it. */
	readonly masterKeyId: string;
	readonly wrapped: Buffer;
}

export interface KeysRecord {
	readonly clusterId: ClusterId;
	readonly revision: number;
	/** Oldest first. */
	readonly keys: readonly WrappedClusterKey[];
}

const VERSION = 1;
/** Of the bytes: some four hundred generations. */
export const KEYS_RECORD_MAX_BYTES = 64 * 1024;

export function encodeKeysRecord({ clusterId, revision, keys }: KeysRecord): Buffer {
	const writer = new ByteWriter().u8(VERSION).raw(idBytes(clusterId)).u64(revision).u32(keys.length);
	for (const { generation, createdAtMs, masterKeyId, wrapped } of keys) {
		writer.u32(generation).u64(createdAtMs).sized(Buffer.from(masterKeyId, 'utf8')).raw(wrapped);
	}
	return writer.bytes();
}

/** Throws `corrupt`, or `unsupported` for a newer version. */
export function decodeKeysRecord(bytes: Buffer): KeysRecord {
	if (bytes.length > KEYS_RECORD_MAX_BYTES) throw new DistroError('corrupt', 'a keys record is too long');
	const reader = new ByteReader(bytes, 'a keys record');
	const version = reader.u8();
	if (version !== VERSION) throw newer(version);
	const clusterId = idFromBytes<ClusterId>(reader.raw(16));
	const revision = reader.u64();
	const count = reader.u32();
	const keys: WrappedClusterKey[] = [];
	for (let i = 0; i < count; i++) {
		const generation = reader.u32();
		const createdAtMs = reader.u64();
		const masterKeyId = reader.sized().toString('utf8');
		const wrapped = Buffer.from(reader.raw(WRAPPED_KEY_BYTES));
		if (generation <= (keys.at(-1)?.generation ?? 0)) {
			throw new DistroError('corrupt', 'a keys record has its generations out of order');
		}
		keys.push({ generation, createdAtMs, masterKeyId, wrapped });
	}
	reader.end();
	return { clusterId, revision, keys };
}

/** What heartbeats say of a volume's record, 16 bytes. */
export function keysDigest(record: KeysRecord): Buffer {
	return checksum(encodeKeysRecord(record));
}

interface KeysFile {
	readonly version: number;
	readonly clusterId: string;
	readonly revision: number;
	readonly keys: readonly { generation: number; createdAtMs: number; masterKeyId: string; wrapped: string }[];
	readonly checksum: string;
}

/** keys.json: for people to see what is there, and for whoever has nothing but a disk. */
export function formatKeysFile(record: KeysRecord): string {
	const { clusterId, revision, keys } = record;
	const shown: KeysFile = {
		version: VERSION,
		clusterId,
		revision,
		keys: keys.map(({ wrapped, ...key }) => ({ ...key, wrapped: wrapped.toString('hex') })),
		checksum: keysDigest(record).toString('hex'),
	};
	return `${JSON.stringify(shown, null, '\t')}\n`;
}

/** Throws `corrupt`, or `unsupported` for a newer version. */
export function parseKeysFile(text: string): KeysRecord {
	let file: Partial<KeysFile> | null;
	try {
		file = JSON.parse(text);
	} catch (cause) {
		throw new DistroError('corrupt', 'keys.json is no JSON', { cause });
	}
	const version = file?.version;
	if (typeof version === 'number' && version > VERSION) throw newer(version);
	try {
		const { clusterId, revision, keys, checksum: stated } = file as KeysFile;
		if (!isId(clusterId)) throw new DistroError('corrupt', 'keys.json names no cluster');
		const record = {
			clusterId: clusterId as ClusterId,
			revision,
			keys: keys.map(({ generation, createdAtMs, masterKeyId, wrapped }) => ({
				generation,
				createdAtMs,
				masterKeyId,
				wrapped: Buffer.from(wrapped, 'hex'),
			})),
		};
		if (keysDigest(record).toString('hex') !== stated)
			throw new DistroError('corrupt', 'keys.json has a wrong checksum');
		// Whatever the checksum says, it must be a record.
		return decodeKeysRecord(encodeKeysRecord(record));
	} catch (error) {
		if (error instanceof DistroError) throw error;
		throw new DistroError('corrupt', 'keys.json is no keys record', { cause: error });
	}
}

function newer(version: number): DistroError {
	return new DistroError(
		'unsupported',
		`a keys record of version ${version}, and this release knows ${VERSION}: use the release that wrote it, or a newer one`,
	);
}
