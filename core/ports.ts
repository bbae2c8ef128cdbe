/**
 * What core needs from the world, as ports of a few methods each. `platform` (or a simulation) implements them.
 *
 * Invariant: nothing in core reads a clock, opens a socket or a file, or allocates per chunk on the byte path.
 * Byte-path rule: whoever is handed a Buffer view must not touch it after calling its `done`; whoever hands it out must
 * not reuse it before `done` was called. `done` is called exactly once, also after abort or failure.
 */

import type { DistroError } from './errors.ts';
import type { ShardId, WorkerId } from './ids.ts';
import type { Receipt } from './model/receipt.ts';

export interface Clock {
	/** Milliseconds since the Unix epoch. */
	nowMs(): number;
	/** Milliseconds that never go backwards; only differences mean something. */
	monotonicMs(): number;
	/** Calls `callback` once after `delayMs`; the returned function cancels. Never keeps a process alive. */
	schedule(delayMs: number, callback: () => void): () => void;
}

export interface Random {
	/** `count` random bytes, of cryptographic quality outside simulations. */
	bytes(count: number): Buffer;
}

/** Page-aligned memory for one transfer. */
export interface MemoryLease {
	/** One Buffer for each size asked for, in order. Contents are whatever was there before. */
	readonly slots: readonly Buffer[];
	/** Gives everything back. Idempotent. */
	release(): void;
}

/** The process's memory for bytes in flight: one arena of fixed size, handed out first come, first served. */
export interface MemoryPool {
	readonly capacityBytes: number;
	readonly usedBytes: number;
	/**
	 * All of `sizes` at once. Callers never acquire while holding. Throws `exhausted` when the sizes can never fit,
	 * `unavailable` when `timeoutMs` passed, `canceled` when `signal` was aborted.
	 */
	acquire(sizes: readonly number[], options: { timeoutMs: number; signal?: AbortSignal }): Promise<MemoryLease>;
	/** The same if there is room right now and nobody waits, else null. */
	tryAcquire(sizes: readonly number[]): MemoryLease | null;
}

/** Whom to dial: the id is what the worker's certificate must prove. */
export interface WorkerRef {
	readonly workerId: WorkerId;
	/** host:port of its shard service. */
	readonly address: string;
}

/** What a worker has, sorted by id. */
export interface ShardList {
	readonly shards: readonly { readonly shardId: ShardId; readonly writtenAtMs: number }[];
	/** By the worker's clock, as the times are. */
	readonly nowMs: number;
}

export interface ShardPutRequest {
	readonly shardId: ShardId;
	/** Cell length C of the segment, in bytes: where the worker cuts its leaves. */
	readonly cellBytes: number;
	/** The most cell bytes that will come; the worker refuses at once when it has no room for them. */
	readonly maxBytes: number;
	/** After this many milliseconds the worker refuses to make the shard durable. */
	readonly deadlineMs: number;
}

export interface ShardPutEvents {
	/** The worker has room, has opened its temporary file and takes bytes. */
	accepted(): void;
	/** The shard is durable. Nothing follows. */
	receipt(receipt: Receipt): void;
	/** The shard is not there, or not known to be. Nothing follows. */
	failed(error: DistroError): void;
}

/** One shard on its way to one worker. Bytes go out in the order of the calls. */
export interface ShardPut {
	/** One cell. After a failure `done` is still called. */
	write(cell: Buffer, done: () => void): void;
	/** The trailer (core/codec/trailer.ts), which commits. Only after this may a receipt come. */
	finish(trailer: Buffer): void;
	/** Gives up; `failed` is not called any more. Idempotent; no effect after receipt or failure. */
	abort(reason: string): void;
}

export interface ShardGetRequest {
	readonly shardId: ShardId;
	/** Bytes of cells to send: a run inside the shard's cells. */
	readonly offset: number;
	readonly length: number;
	/** Send the shard's leaves first (needed for everything that is decoded, repaired or audited). */
	readonly wantLeaves: boolean;
}

export interface ShardGetEvents {
	/** The leaves of all cells of this shard, 32 bytes each, unchecked. Before the first data. */
	leaves(leaves: Buffer): void;
	/** The next bytes. The view is only valid during the call: copy what is kept. */
	data(chunk: Buffer): void;
	/** All `length` bytes have come. Nothing follows. */
	end(): void;
	failed(error: DistroError): void;
}

export interface ShardGet {
	pause(): void;
	resume(): void;
	/** Gives up; no event follows. Idempotent. */
	abort(reason: string): void;
}

/** Shards to and from workers. Implemented over gRPC by platform/shard-transport, and in memory by the simulation. */
export interface ShardTransport {
	put(worker: WorkerRef, request: ShardPutRequest, events: ShardPutEvents): ShardPut;
	get(worker: WorkerRef, request: ShardGetRequest, events: ShardGetEvents): ShardGet;
}

/** Pushes bytes in: `write` answers false when the writer should wait for `drained` before the next call. */
export interface ByteSink {
	/** Takes the chunk (it may be copied or kept; the caller must not change it). */
	write(chunk: Buffer): boolean;
	/** Called by the sink when it takes bytes again after `write` answered false. Set by the writer. */
	drained: () => void;
}
