/**
 * ShardStore: the port behind which a worker keeps its shards. Adapters: store-disk, store-memory; both pass
 * store.contract.ts.
 *
 * A shard is a run of cells followed, at the next multiple of 4 KiB, by one trailer (core/codec/trailer.ts). It is
 * whole and durable or it is not there.
 */

import type { ShardId } from '../core/ids.ts';

export interface ShardWriter {
	/** Appends. The view stays the caller's after `done`; an error means the shard can only be aborted. One write at a time. */
	write(bytes: Buffer, done: (error: Error | null) => void): void;
	/**
	 * Appends the trailer and makes the shard durable: fsync, link, fsync of the folder. `exists` when the id is
	 * taken, `expired` when the put's deadline has passed before the link (nothing is left then).
	 */
	commit(trailer: Buffer): Promise<void>;
	/** Removes what was written. Idempotent; no effect after commit. */
	abort(): Promise<void>;
}

export interface ShardReader {
	/** Fills `into` from `offset`; an error when the file is shorter. */
	read(offset: number, into: Buffer, done: (error: Error | null) => void): void;
	close(): void;
}

/** How far scrubbing has come; the cluster's wrapped keys. */
export type RecordName = 'scrub' | 'keys';

export interface StoreStats {
	readonly bytesTotal: number;
	readonly bytesFree: number;
	readonly bytesUsed: number;
	readonly shards: number;
}

export interface ListedShard {
	readonly shardId: ShardId;
	/** By the clock of the machine. Where it can't be read: now. */
	readonly writtenAtMs: number;
}

export interface ShardStore {
	/**
	 * Room for `maxBytes` of cells and a trailer. `exhausted` when it would eat into the reserve, `unavailable` when the
	 * volume is offline (its sentinel is missing), `expired` when the shard was deleted lately. `deadlineMs` counts from now.
	 */
	create(options: { shardId: ShardId; maxBytes: number; deadlineMs: number }): Promise<ShardWriter>;
	/**
	 * For reading cells. `not_found`; `unavailable` when the volume is offline: never `not_found` then. Whether it is whole
	 * shows when it is read. `direct`: from the disk itself as far as that is possible, and not from what the system
	 * remembers of it; `into` must then be page-aligned, and `offset` and its length multiples of 4 KiB.
	 */
	open(shardId: ShardId, options?: { direct?: boolean }): Promise<ShardReader>;
	/** The trailer's bytes, checked by its own checksum only (`corrupt` otherwise). */
	trailer(shardId: ShardId): Promise<Buffer>;
	/** Moves to trash, or removes at once (`forGood`). Unknown ids are fine. Durable when it resolves. */
	delete(shardIds: readonly ShardId[], options?: { forGood?: boolean }): Promise<void>;
	/** What is there, sorted by id, after `after` (or from the start), at most `limit`. `unavailable` when the volume is offline: never fewer then. */
	list(options: { after: ShardId | null; limit: number }): Promise<readonly ListedShard[]>;
	stats(): Promise<StoreStats>;
	/** What `saveRecord` kept last, or null. */
	loadRecord(name: RecordName): Promise<Buffer | null>;
	/** Keeps a small record on the volume in place of the one before. Durable when it resolves. One at a time of each name. */
	saveRecord(name: RecordName, record: Buffer): Promise<void>;
	close(): Promise<void>;
}
