/**
 * The trailer of a shard: everything but its cells. It stands behind the cells, from the next multiple of 4 KiB, and its
 * last bytes say how long it is, so that it is found from the end of a file (docs/format.md).
 *
 *     version u8 | codec u8 | k u8 | n u8 | cell bytes u32 | cells u32 | last cell u32 | segment u32 | shard index u16 |
 *     cluster 16 | version 16 | seal 16 | encoding 16 | shard 16 | root 32 |
 *     leaves (sized) | end record (sized) | recovery record (sized) |
 *     footer: length u32 (all of the trailer) | checksum 16 (of all before the footer) | magic 8
 */

import { ByteReader, ByteWriter } from '../bytes.ts';
import { checksum, LEAF_BYTES } from '../crypto/digest.ts';
import { DistroError } from '../errors.ts';
import {
	type ClusterId,
	type EncodingId,
	idBytes,
	idFromBytes,
	type SealId,
	type ShardId,
	type VersionId,
} from '../ids.ts';
import { TRAILER_MAX_BYTES } from '../limits.ts';
import { CODECS, type SegmentShape } from '../model/segment.ts';
import { checkVersion } from '../versions.ts';
import { checkShape, shardRows, trailerOffset } from './layout.ts';

export { trailerOffset };

const VERSION = 1;
const MAGIC = Buffer.from('distroS1', 'latin1');
const CHECKSUM_BYTES = 16;
export const TRAILER_FOOTER_BYTES = 4 + CHECKSUM_BYTES + MAGIC.length;

export interface ShardDescription extends SegmentShape {
	readonly clusterId: ClusterId;
	readonly versionId: VersionId;
	readonly segment: number;
	readonly sealId: SealId;
	readonly encodingId: EncodingId;
	readonly shardIndex: number;
	readonly shardId: ShardId;
}

export interface Trailer {
	readonly description: ShardDescription;
	readonly root: Buffer;
	/** 32 bytes a cell. */
	readonly leaves: Buffer;
	/** Sealed. */
	readonly endRecord: Buffer;
	/** core/model/recovery.ts. */
	readonly recovery: Buffer;
}

export function encodeTrailer(trailer: Trailer): Buffer {
	const { description: d } = trailer;
	const body = new ByteWriter()
		.u8(VERSION)
		.u8(CODECS.indexOf(d.codec))
		.u8(d.k)
		.u8(d.n)
		.u32(d.cellBytes)
		.u32(d.cells)
		.u32(d.lastCellBytes)
		.u32(d.segment)
		.u16(d.shardIndex)
		.raw(idBytes(d.clusterId))
		.raw(idBytes(d.versionId))
		.raw(idBytes(d.sealId))
		.raw(idBytes(d.encodingId))
		.raw(idBytes(d.shardId))
		.raw(trailer.root)
		.sized(trailer.leaves)
		.sized(trailer.endRecord)
		.sized(trailer.recovery)
		.bytes();
	const length = body.length + TRAILER_FOOTER_BYTES;
	return new ByteWriter().raw(body).u32(length).raw(checksum(body)).raw(MAGIC).bytes();
}

/** How long the trailer is, from the last bytes of a file. Throws `corrupt`. */
export function readTrailerFooter(last: Buffer): { length: number } {
	if (last.length < TRAILER_FOOTER_BYTES) throw new DistroError('corrupt', 'the file is too short for a trailer');
	const footer = last.subarray(last.length - TRAILER_FOOTER_BYTES);
	if (!footer.subarray(4 + CHECKSUM_BYTES).equals(MAGIC))
		throw new DistroError('corrupt', 'the file does not end with a trailer');
	const length = footer.readUInt32LE(0);
	if (length < TRAILER_FOOTER_BYTES || length > TRAILER_MAX_BYTES) {
		throw new DistroError('corrupt', `a trailer can't have ${length} bytes`);
	}
	return { length };
}

/** Throws `corrupt`, or `unsupported` for a newer version. Says nothing about the cells, nor about who wrote it. */
export function decodeTrailer(bytes: Buffer): Trailer {
	const { length } = readTrailerFooter(bytes);
	if (length !== bytes.length)
		throw new DistroError('corrupt', `the trailer says it has ${length} bytes, not ${bytes.length}`);
	const body = bytes.subarray(0, length - TRAILER_FOOTER_BYTES);
	const stored = bytes.subarray(body.length + 4, body.length + 4 + CHECKSUM_BYTES);
	if (!checksum(body).equals(stored)) throw new DistroError('corrupt', 'the trailer does not have its checksum');
	const reader = new ByteReader(body, 'a trailer');
	checkVersion(reader.u8(), { what: 'this shard', newest: VERSION });
	const codec = CODECS[reader.u8()];
	if (codec === undefined)
		throw new DistroError('unsupported', 'this shard has a codec that only a newer release knows: run that release');
	const description: ShardDescription = {
		codec,
		k: reader.u8(),
		n: reader.u8(),
		cellBytes: reader.u32(),
		cells: reader.u32(),
		lastCellBytes: reader.u32(),
		segment: reader.u32(),
		shardIndex: reader.u16(),
		clusterId: idFromBytes<ClusterId>(reader.raw(16)),
		versionId: idFromBytes<VersionId>(reader.raw(16)),
		sealId: idFromBytes<SealId>(reader.raw(16)),
		encodingId: idFromBytes<EncodingId>(reader.raw(16)),
		shardId: idFromBytes<ShardId>(reader.raw(16)),
	};
	checkShape(description);
	const trailer: Trailer = {
		description,
		root: reader.raw(LEAF_BYTES),
		leaves: reader.sized(),
		endRecord: reader.sized(),
		recovery: reader.sized(),
	};
	reader.end();
	if (description.shardIndex >= description.n) throw new DistroError('corrupt', 'a shard index of n or more');
	const leaves = description.k === 1 ? description.cells : shardRows(description, description.shardIndex);
	if (trailer.leaves.length !== leaves * LEAF_BYTES)
		throw new DistroError('corrupt', 'the trailer has the wrong number of leaves');
	return trailer;
}
