/**
 * A snapshot of the metadata, as bytes: what an object of the kind `snapshot` contains (docs/format.md §13). Restore reads
 * it; the running cluster only writes it.
 *
 *     "distroM1" | zlib stream of: record, record, …, end
 *     record = length of what follows (u32) | kind (u8) | body
 *
 * The end counts what was written and has the digest of all records before it, so a snapshot that is cut short or joined
 * from two is never taken for a whole one. An object's segments follow it. Compression and streams are the callers'.
 */

import { Blake3Hasher } from '@napi-rs/blake-hash';
import { ByteReader, ByteWriter } from '../bytes.ts';
import { DistroError } from '../errors.ts';
import {
	type ClusterId,
	type EncodingId,
	idBytes,
	idFromBytes,
	type ObjectId,
	type SealId,
	type ShardId,
	type UploadId,
	type VersionId,
	type WorkerId,
} from '../ids.ts';
import { OBJECT_KINDS, type ObjectKind } from './manifest.ts';
import { CODECS, type Segment } from './segment.ts';

export const SNAPSHOT_MAGIC = Buffer.from('distroM1', 'latin1');
/** Bytes of a record, kind and body: an inline object with its manifest has less than 70 KiB. */
const RECORD_MAX_BYTES = 1024 * 1024;
const DIGEST_BYTES = 32;

export interface SnapshotObject {
	readonly kind: ObjectKind;
	readonly objectId: ObjectId;
	readonly versionId: VersionId;
	readonly uploadId: UploadId;
	readonly sizeBytes: number;
	readonly segments: number;
	readonly createdAtMs: number;
	readonly etag: string;
	readonly keyGeneration: number;
	readonly wrappedKey: Buffer;
	readonly manifest: Buffer;
	readonly inline: Buffer | null;
	/** null: it is not in the trash. */
	readonly trash: { readonly deletedAtMs: number; readonly purgeAtMs: number } | null;
}

export type SnapshotRecord =
	| {
			readonly is: 'cluster';
			readonly clusterId: ClusterId;
			readonly createdAtMs: number;
			/** When the snapshot was begun: everything that was committed before is in it. */
			readonly beganAtMs: number;
			/** The keys record, as volumes have it. */
			readonly keys: Buffer;
	  }
	| {
			readonly is: 'worker';
			readonly workerId: WorkerId;
			readonly name: string;
			readonly address: string;
			readonly zone: string;
			readonly receiptKey: Buffer;
			readonly registeredAtMs: number;
			readonly lastSeenMs: number;
			readonly duty: string;
			readonly history: string;
	  }
	| {
			readonly is: 'api key';
			readonly keyId: string;
			readonly secretHash: Buffer;
			readonly scope: string;
			readonly label: string;
			readonly createdAtMs: number;
	  }
	| { readonly is: 'object'; readonly object: SnapshotObject }
	| { readonly is: 'segment'; readonly segment: Segment }
	/** Its upload was under way: it may have been committed after its page was read. */
	| { readonly is: 'under way'; readonly objectId: ObjectId }
	/** How long the log of deletions was, and its last hash. */
	| { readonly is: 'deletion log'; readonly entries: number; readonly hash: Buffer }
	| { readonly is: 'end'; readonly objects: number; readonly segments: number; readonly digest: Buffer };

/** In the order of their bytes, from 1. */
const RECORD_KINDS = [
	'cluster',
	'worker',
	'api key',
	'object',
	'segment',
	'under way',
	'deletion log',
	'end',
] as const satisfies readonly SnapshotRecord['is'][];

function encodeBody(record: SnapshotRecord): Buffer {
	const out = new ByteWriter();
	switch (record.is) {
		case 'cluster':
			out.raw(idBytes(record.clusterId)).u64(record.createdAtMs).u64(record.beganAtMs).sized(record.keys);
			break;
		case 'worker':
			out.raw(idBytes(record.workerId)).sized(Buffer.from(record.name)).sized(Buffer.from(record.address));
			out.sized(Buffer.from(record.zone)).sized(record.receiptKey).u64(record.registeredAtMs).u64(record.lastSeenMs);
			out.sized(Buffer.from(record.duty)).sized(Buffer.from(record.history));
			break;
		case 'api key':
			out.sized(Buffer.from(record.keyId)).sized(record.secretHash).sized(Buffer.from(record.scope));
			out.sized(Buffer.from(record.label)).u64(record.createdAtMs);
			break;
		case 'object': {
			const { object } = record;
			out.u8(OBJECT_KINDS.indexOf(object.kind)).raw(idBytes(object.objectId)).raw(idBytes(object.versionId));
			out.raw(idBytes(object.uploadId)).u64(object.sizeBytes).u32(object.segments).u64(object.createdAtMs);
			out.sized(Buffer.from(object.etag)).u32(object.keyGeneration).sized(object.wrappedKey).sized(object.manifest);
			out.u8(object.inline === null ? 0 : 1).sized(object.inline ?? Buffer.alloc(0));
			out.u8(object.trash === null ? 0 : 1);
			if (object.trash !== null) out.u64(object.trash.deletedAtMs).u64(object.trash.purgeAtMs);
			break;
		}
		case 'segment': {
			const { segment: s } = record;
			out.u32(s.index).u8(CODECS.indexOf(s.codec)).u8(s.k).u8(s.n).u32(s.cellBytes).u32(s.cells).u32(s.lastCellBytes);
			out.raw(idBytes(s.sealId)).raw(idBytes(s.encodingId)).sized(s.endRecord).sized(s.roots);
			out.sized(Buffer.from(s.because)).u8(s.placements.length);
			for (const { shardIndex, workerId, shardId } of s.placements) {
				out.u8(shardIndex).raw(idBytes(workerId)).raw(idBytes(shardId));
			}
			break;
		}
		case 'under way':
			out.raw(idBytes(record.objectId));
			break;
		case 'deletion log':
			out.u64(record.entries).raw(record.hash);
			break;
		case 'end':
			out.u64(record.objects).u64(record.segments).raw(record.digest);
			break;
	}
	return out.bytes();
}

function decodeBody(is: SnapshotRecord['is'], reader: ByteReader): SnapshotRecord {
	// Copies, since what is read here outlives the stream's buffers.
	const bytes = () => Buffer.from(reader.sized());
	const text = () => reader.sized().toString();
	switch (is) {
		case 'cluster':
			return {
				is,
				clusterId: idFromBytes<ClusterId>(reader.raw(16)),
				createdAtMs: reader.u64(),
				beganAtMs: reader.u64(),
				keys: bytes(),
			};
		case 'worker':
			return {
				is,
				workerId: idFromBytes<WorkerId>(reader.raw(16)),
				name: text(),
				address: text(),
				zone: text(),
				receiptKey: bytes(),
				registeredAtMs: reader.u64(),
				lastSeenMs: reader.u64(),
				duty: text(),
				history: text(),
			};
		case 'api key':
			return { is, keyId: text(), secretHash: bytes(), scope: text(), label: text(), createdAtMs: reader.u64() };
		case 'object': {
			const kind = OBJECT_KINDS[reader.u8()];
			if (kind === undefined) throw new DistroError('unsupported', 'a snapshot of objects of a kind not known here');
			const facts = {
				kind,
				objectId: idFromBytes<ObjectId>(reader.raw(16)),
				versionId: idFromBytes<VersionId>(reader.raw(16)),
				uploadId: idFromBytes<UploadId>(reader.raw(16)),
				sizeBytes: reader.u64(),
				segments: reader.u32(),
				createdAtMs: reader.u64(),
				etag: text(),
				keyGeneration: reader.u32(),
				wrappedKey: bytes(),
				manifest: bytes(),
			};
			const isInline = reader.u8() === 1;
			const inline = bytes();
			const isTrashed = reader.u8() === 1;
			const trash = isTrashed ? { deletedAtMs: reader.u64(), purgeAtMs: reader.u64() } : null;
			return { is, object: { ...facts, inline: isInline ? inline : null, trash } };
		}
		case 'segment': {
			const index = reader.u32();
			const codec = CODECS[reader.u8()];
			if (codec === undefined) throw new DistroError('unsupported', 'a snapshot with a codec not known here');
			const facts = {
				index,
				codec,
				k: reader.u8(),
				n: reader.u8(),
				cellBytes: reader.u32(),
				cells: reader.u32(),
				lastCellBytes: reader.u32(),
				sealId: idFromBytes<SealId>(reader.raw(16)),
				encodingId: idFromBytes<EncodingId>(reader.raw(16)),
				endRecord: bytes(),
				roots: bytes(),
				because: text(),
			};
			const placements: Segment['placements'][number][] = [];
			for (let left = reader.u8(); left > 0; left--) {
				placements.push({
					shardIndex: reader.u8(),
					workerId: idFromBytes<WorkerId>(reader.raw(16)),
					shardId: idFromBytes<ShardId>(reader.raw(16)),
				});
			}
			return { is, segment: { ...facts, placements } };
		}
		case 'under way':
			return { is, objectId: idFromBytes<ObjectId>(reader.raw(16)) };
		case 'deletion log':
			return { is, entries: reader.u64(), hash: Buffer.from(reader.raw(DIGEST_BYTES)) };
		case 'end':
			return { is, objects: reader.u64(), segments: reader.u64(), digest: Buffer.from(reader.raw(DIGEST_BYTES)) };
	}
}

/** With its length and kind. */
export function encodeRecord(record: SnapshotRecord): Buffer {
	const body = encodeBody(record);
	const kind = RECORD_KINDS.indexOf(record.is) + 1;
	return new ByteWriter()
		.u32(1 + body.length)
		.u8(kind)
		.raw(body)
		.bytes();
}

/** What `encodeRecord` made. Throws `corrupt`, `unsupported`. */
export function decodeRecord(bytes: Buffer): SnapshotRecord {
	const is = RECORD_KINDS[(bytes[4] ?? 0) - 1];
	if (is === undefined) throw new DistroError('unsupported', 'a snapshot has a record of a kind not known here');
	const reader = new ByteReader(bytes.subarray(5), 'a record of a snapshot');
	const record = decodeBody(is, reader);
	reader.end();
	return record;
}

/** Records to bytes, for the zlib stream behind the magic. */
export class SnapshotEncoder {
	readonly #digest = new Blake3Hasher();
	#objects = 0;
	#segments = 0;

	get objects(): number {
		return this.#objects;
	}

	add(record: Exclude<SnapshotRecord, { is: 'end' }>): Buffer {
		if (record.is === 'object') this.#objects++;
		if (record.is === 'segment') this.#segments++;
		const bytes = encodeRecord(record);
		this.#digest.update(bytes);
		return bytes;
	}

	end(): Buffer {
		const digest = this.#digest.digestBuffer();
		return encodeRecord({ is: 'end', objects: this.#objects, segments: this.#segments, digest });
	}
}

/** Bytes of the inflated stream to records, in pieces as they come. Throws `corrupt`, `unsupported`. */
export class SnapshotDecoder {
	readonly #digest = new Blake3Hasher();
	#rest: Buffer = Buffer.alloc(0);
	#objects = 0;
	#segments = 0;
	#ended = false;

	*push(chunk: Buffer): Generator<SnapshotRecord> {
		this.#rest = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
		while (this.#rest.length >= 4) {
			const length = this.#rest.readUInt32LE(0);
			if (length < 1 || length > RECORD_MAX_BYTES) {
				throw new DistroError('corrupt', `no record of a snapshot has ${length} bytes`);
			}
			if (this.#rest.length < 4 + length) return;
			const bytes = this.#rest.subarray(0, 4 + length);
			this.#rest = this.#rest.subarray(4 + length);
			yield this.#record(bytes);
		}
	}

	#record(bytes: Buffer): SnapshotRecord {
		if (this.#ended) throw new DistroError('corrupt', 'a snapshot has records behind its end');
		const record = decodeRecord(bytes);
		if (record.is === 'end') this.#checkEnd(record);
		else this.#digest.update(bytes);
		if (record.is === 'object') this.#objects++;
		if (record.is === 'segment') this.#segments++;
		return record;
	}

	#checkEnd({ objects, segments, digest }: Extract<SnapshotRecord, { is: 'end' }>): void {
		const isWhole =
			objects === this.#objects && segments === this.#segments && this.#digest.digestBuffer().equals(digest);
		if (!isWhole) throw new DistroError('corrupt', 'a snapshot ends with another digest than its records have');
		this.#ended = true;
	}

	/** Once no more bytes come. Throws `corrupt` unless the end was seen: half of a snapshot is none. */
	finish(): void {
		if (!this.#ended || this.#rest.length > 0)
			throw new DistroError('corrupt', 'a snapshot is not whole: it has no end');
	}
}
