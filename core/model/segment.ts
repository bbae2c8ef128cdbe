/** What is known of one segment: how it was cut, and where its shards are. */

import type { EncodingId, SealId, ShardId, WorkerId } from '../ids.ts';

export const CODECS = ['replicate', 'rs-ronomon-6'] as const;
/** `replicate`: k = 1, every shard is the cells verbatim. `rs-ronomon-6`: @ronomon/reed-solomon 6, a stored format. */
export type CodecId = (typeof CODECS)[number];

/** How a sealed segment is cut into cells and shards. All that layout needs. */
export interface SegmentShape {
	readonly codec: CodecId;
	readonly k: number;
	readonly n: number;
	/** C: bytes of every cell but the last, tag included. */
	readonly cellBytes: number;
	/** Number of data cells, at least 1. */
	readonly cells: number;
	/** Bytes of the last cell, tag included: TAG_BYTES to C. */
	readonly lastCellBytes: number;
}

export interface Placement {
	readonly shardIndex: number;
	readonly workerId: WorkerId;
	readonly shardId: ShardId;
}

export interface Segment extends SegmentShape {
	/** 0-based position in the object. */
	readonly index: number;
	readonly sealId: SealId;
	readonly encodingId: EncodingId;
	/** Sealed {cells, last cell's length, last segment or not}. */
	readonly endRecord: Buffer;
	/** Roots of all n shards in order of shard index, 32 bytes each, whether or not the shard is placed. */
	readonly roots: Buffer;
	/** One sentence: why this (n, k). */
	readonly because: string;
	/** The shards that are durable; a missing index is in the repair queue. */
	readonly placements: readonly Placement[];
	/** How it was cut before it was encoded anew, for people. */
	readonly was?: FormerCode | undefined;
}

export interface FormerCode {
	readonly k: number;
	readonly n: number;
	readonly because: string;
	readonly untilMs: number;
}
