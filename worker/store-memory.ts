/**
 * ShardStore in memory: the reference that store.contract.ts was written against, for tests and the simulation. What
 * outlives a store is its MemoryVolume, as a disk outlives a process.
 */

import { decodeTrailer, readTrailerFooter, trailerOffset } from '../core/codec/trailer.ts';
import { DistroError } from '../core/errors.ts';
import type { ShardId } from '../core/ids.ts';
import { TRAILER_MAX_BYTES } from '../core/limits.ts';
import type { Clock } from '../core/ports.ts';
import { RecentlyDeleted } from './recently-deleted.ts';
import type { ListedShard, RecordName, ShardReader, ShardStore, ShardWriter, StoreStats } from './store.ts';

const DAY_MS = 24 * 60 * 60_000;
const TRASH_KEEP_MS = 7 * DAY_MS;
const PURGE_EVERY_MS = 60 * 60_000;

export class MemoryVolume {
	/** Cells, zeros to 4 KiB, trailer: as in a file. */
	readonly shards = new Map<ShardId, Buffer>();
	readonly writtenAtMs = new Map<ShardId, number>();
	readonly trash = new Map<ShardId, { readonly file: Buffer; readonly deletedAtMs: number }>();
	/** Ids of shards on their way. */
	readonly temporary = new Set<ShardId>();
	readonly records = new Map<RecordName, Buffer>();
	/** False: its mount has vanished. */
	online = true;
}

export interface MemoryStoreOptions {
	readonly volume: MemoryVolume;
	readonly clock: Clock;
	readonly capacityBytes: number;
	readonly reserveBytes: number;
	readonly trashKeepMs?: number;
}

export class MemoryShardStore implements ShardStore {
	readonly #volume: MemoryVolume;
	readonly #options: MemoryStoreOptions;
	readonly #writing = new Map<ShardId, MemoryWriter>();
	readonly #deleted: RecentlyDeleted;
	#promisedBytes = 0;
	#usedBytes = 0;
	#cancelPurge: () => void = () => {};

	constructor(options: MemoryStoreOptions) {
		this.#volume = options.volume;
		this.#options = options;
		this.#deleted = new RecentlyDeleted(options.clock);
		this.#volume.temporary.clear();
		for (const file of this.#volume.shards.values()) this.#usedBytes += file.length;
		this.#purge();
	}

	async create(options: { shardId: ShardId; maxBytes: number; deadlineMs: number }): Promise<ShardWriter> {
		const { shardId, maxBytes, deadlineMs } = options;
		this.#online();
		const neededBytes = trailerOffset(maxBytes) + TRAILER_MAX_BYTES;
		if (this.#freeBytes() < neededBytes) throw new DistroError('exhausted', 'the volume has no room for this shard');
		this.#deleted.refuse(shardId);
		if (this.#writing.has(shardId)) throw new DistroError('exists', `shard ${shardId} is being written`);
		this.#promisedBytes += neededBytes;
		const { clock } = this.#options;
		const writer = new MemoryWriter({
			shardId,
			volume: this.#volume,
			clock,
			expiresAtMs: clock.monotonicMs() + deadlineMs,
			ended: (bytes) => {
				this.#writing.delete(shardId);
				this.#volume.temporary.delete(shardId);
				this.#promisedBytes -= neededBytes;
				this.#usedBytes += bytes;
			},
		});
		this.#writing.set(shardId, writer);
		this.#volume.temporary.add(shardId);
		return writer;
	}

	async open(shardId: ShardId): Promise<ShardReader> {
		const file = this.#file(shardId);
		return {
			read: (offset, into, done) => {
				const count = file.subarray(offset, offset + into.length).copy(into);
				const error =
					count === into.length ? null : new DistroError('corrupt', `shard ${shardId} is shorter than it must be`);
				setImmediate(done, error);
			},
			close: () => {},
		};
	}

	async trailer(shardId: ShardId): Promise<Buffer> {
		const file = this.#file(shardId);
		const { length } = readTrailerFooter(file);
		const trailer = Buffer.from(file.subarray(Math.max(0, file.length - length)));
		decodeTrailer(trailer);
		return trailer;
	}

	async delete(shardIds: readonly ShardId[], options: { forGood?: boolean } = {}): Promise<void> {
		this.#online();
		for (const shardId of shardIds) {
			this.#deleted.add(shardId);
			await this.#writing.get(shardId)?.abort();
			const file = this.#volume.shards.get(shardId);
			if (file === undefined) continue;
			this.#volume.shards.delete(shardId);
			this.#volume.writtenAtMs.delete(shardId);
			this.#usedBytes -= file.length;
			if (options.forGood === true) continue;
			this.#volume.trash.set(shardId, { file, deletedAtMs: this.#options.clock.nowMs() });
		}
	}

	async list(options: { after: ShardId | null; limit: number }): Promise<readonly ListedShard[]> {
		this.#online();
		const { after, limit } = options;
		return [...this.#volume.shards.keys()]
			.filter((shardId) => after === null || shardId > after)
			.sort()
			.slice(0, limit)
			.map((shardId) => ({ shardId, writtenAtMs: this.#volume.writtenAtMs.get(shardId) ?? 0 }));
	}

	async stats(): Promise<StoreStats> {
		this.#online();
		return {
			bytesTotal: this.#options.capacityBytes,
			bytesFree: Math.max(0, this.#freeBytes()),
			bytesUsed: this.#usedBytes,
			shards: this.#volume.shards.size,
		};
	}

	async loadRecord(name: RecordName): Promise<Buffer | null> {
		this.#online();
		return this.#volume.records.get(name) ?? null;
	}

	async saveRecord(name: RecordName, record: Buffer): Promise<void> {
		this.#online();
		this.#volume.records.set(name, Buffer.from(record));
	}

	async close(): Promise<void> {
		this.#cancelPurge();
		await Promise.all([...this.#writing.values()].map((writer) => writer.abort()));
	}

	#online(): void {
		if (!this.#volume.online) throw new DistroError('unavailable', 'the volume is offline');
	}

	#file(shardId: ShardId): Buffer {
		this.#online();
		const file = this.#volume.shards.get(shardId);
		if (file === undefined) throw new DistroError('not_found', `there is no shard ${shardId}`);
		return file;
	}

	#freeBytes(): number {
		const { capacityBytes, reserveBytes } = this.#options;
		return capacityBytes - reserveBytes - this.#usedBytes - this.#promisedBytes;
	}

	#purge(): void {
		const { clock, trashKeepMs = TRASH_KEEP_MS } = this.#options;
		for (const [shardId, { deletedAtMs }] of this.#volume.trash) {
			if (deletedAtMs + trashKeepMs <= clock.nowMs()) this.#volume.trash.delete(shardId);
		}
		this.#cancelPurge = clock.schedule(PURGE_EVERY_MS, () => this.#purge());
	}
}

class MemoryWriter implements ShardWriter {
	readonly #o: {
		shardId: ShardId;
		volume: MemoryVolume;
		clock: Clock;
		expiresAtMs: number;
		ended: (bytes: number) => void;
	};
	#pieces: Buffer[] = [];
	#bytes = 0;
	/** The write under way: an abort waits for it. */
	#pending: Promise<void> = Promise.resolve();
	#state: 'writing' | 'failed' | 'ended' = 'writing';

	constructor(parts: {
		shardId: ShardId;
		volume: MemoryVolume;
		clock: Clock;
		expiresAtMs: number;
		ended: (bytes: number) => void;
	}) {
		this.#o = parts;
	}

	write(bytes: Buffer, done: (error: Error | null) => void): void {
		if (this.#state !== 'writing') {
			done(givenUp());
			return;
		}
		this.#pieces.push(Buffer.from(bytes));
		this.#bytes += bytes.length;
		this.#pending = new Promise((settled) => {
			setImmediate(() => {
				settled();
				done(null);
			});
		});
	}

	async commit(trailer: Buffer): Promise<void> {
		const { shardId, volume, clock, expiresAtMs, ended } = this.#o;
		if (this.#state !== 'writing') throw givenUp();
		this.#state = 'failed';
		if (!volume.online) throw new DistroError('unavailable', 'the volume is offline');
		if (clock.monotonicMs() > expiresAtMs) throw new DistroError('expired', 'the deadline of this shard has passed');
		if (volume.shards.has(shardId)) throw new DistroError('exists', 'this shard id is taken');
		const padding = Buffer.alloc(trailerOffset(this.#bytes) - this.#bytes);
		const file = Buffer.concat([...this.#pieces, padding, trailer]);
		this.#state = 'ended';
		volume.shards.set(shardId, file);
		volume.writtenAtMs.set(shardId, clock.nowMs());
		ended(file.length);
	}

	async abort(): Promise<void> {
		if (this.#state === 'ended') return;
		this.#state = 'ended';
		this.#pieces = [];
		await this.#pending;
		this.#o.ended(0);
	}
}

function givenUp(): DistroError {
	return new DistroError('canceled', 'the shard was given up');
}
