/**
 * The worker's shard service: between the wire (platform/shard-server) and the volume (ShardStore).
 *
 * A put's bytes are gathered in pooled buffers, hashed cell by cell, written, and only acknowledged when the trailer
 * agrees with every leaf and the shard is durable. The worker sees sealed bytes only and holds no key but the one that
 * signs its receipts. It doesn't decide where shards go and never deletes on its own.
 */

import type { KeyObject } from 'node:crypto';
import { shardBytes, shardCellLength, shardOffset } from '../core/codec/layout.ts';
import { decodeTrailer, type Trailer } from '../core/codec/trailer.ts';
import { answerAudit } from '../core/crypto/audit.ts';
import { LEAF_BYTES, LeafHasher, rootOf } from '../core/crypto/digest.ts';
import { signReceipt } from '../core/crypto/sign.ts';
import { asDistroError, DistroError, type ErrorKind } from '../core/errors.ts';
import type { ShardId, WorkerId } from '../core/ids.ts';
import { BUDGET_WAIT_MS, CELL_SIZES, SEGMENT_CELLS, TRAILERS_AT_ONCE, TRAILERS_BYTES } from '../core/limits.ts';
import type { AuditAnswer, AuditQuestion } from '../core/model/audit.ts';
import type { Receipt } from '../core/model/receipt.ts';
import type { Clock, MemoryLease, MemoryPool, ShardGetRequest, ShardPutRequest } from '../core/ports.ts';
import type { IncomingShard, OutgoingShard, ShardHandlers } from '../platform/shard-server.ts';
import type { VolumeKeys } from './keys.ts';
import type { ShardReader, ShardStore, ShardWriter } from './store.ts';

/** Bytes per write and read of a volume, at most; a transfer holds two such buffers. */
const IO_BYTES = 512 * 1024;

/** Longer timers fire at once. */
const MAX_TIMER_MS = 2 ** 31 - 1;

export interface ShardServiceDeps {
	readonly workerId: WorkerId;
	readonly store: ShardStore;
	readonly keys: Pick<VolumeKeys, 'read' | 'write'>;
	readonly pool: MemoryPool;
	readonly clock: Clock;
	readonly receiptKey: KeyObject;
	readonly authorize: ShardHandlers['authorize'];
	readonly onBytes: (direction: 'in' | 'out', bytes: number) => void;
}

export function shardHandlers(deps: ShardServiceDeps): ShardHandlers {
	return {
		authorize: deps.authorize,
		put: (request, flow) => new PutSession(deps, request, flow),
		get: (request, out) => {
			sendShard(deps, request, out).catch((error) => out.fail(asDistroError(error)));
		},
		delete: (shardIds, options) => deps.store.delete(shardIds, options),
		stat: (shardId) => deps.store.trailer(shardId),
		list: async (options) => {
			const shards = await deps.store.list(options);
			return { shards, nowMs: deps.clock.nowMs() };
		},
		trailers: (shardIds) => trailers(deps.store, shardIds),
		audit: (question, { deadlineMs }) => audit(deps, question, deadlineMs),
		writeKeys: (record) => deps.keys.write(record),
		readKeys: () => deps.keys.read(),
	};
}

/** Until the answer is large enough; what can't be read says why, and holds up none of the others. */
async function trailers(store: ShardStore, shardIds: readonly ShardId[]): Promise<(Buffer | ErrorKind)[]> {
	const answers: (Buffer | ErrorKind)[] = [];
	let bytes = 0;
	while (answers.length < shardIds.length && bytes < TRAILERS_BYTES) {
		const next = shardIds.slice(answers.length, answers.length + TRAILERS_AT_ONCE);
		const read = next.map((shardId) => store.trailer(shardId).catch((error) => asDistroError(error).kind));
		for (const answer of await Promise.all(read)) {
			answers.push(answer);
			bytes += answer.length;
		}
	}
	return answers;
}

/** The cell as it is on the disk, right or wrong: who asked finds out. */
async function audit(deps: ShardServiceDeps, question: AuditQuestion, deadlineMs: number): Promise<AuditAnswer> {
	const { store, clock, workerId, receiptKey } = deps;
	const startedMs = clock.monotonicMs();
	const { shardId, row } = question;
	const { description, leaves } = decodeTrailer(await store.trailer(shardId));
	const length = shardCellLength(description, description.shardIndex, row);
	if (description.shardId !== shardId || length === 0) {
		throw new DistroError('corrupt', 'there is another shard under this id');
	}
	const cell = Buffer.alloc(length);
	const reader = await store.open(shardId);
	try {
		await new Promise<void>((resolve, reject) => {
			reader.read(shardOffset(description, row), cell, (error) => (error === null ? resolve() : reject(error)));
		});
	} finally {
		reader.close();
	}
	if (clock.monotonicMs() - startedMs > deadlineMs) throw new DistroError('timeout', 'the disk took too long');
	return answerAudit(question, { workerId, cell, leaves }, receiptKey);
}

class PutSession implements IncomingShard {
	readonly #deps: ShardServiceDeps;
	readonly #request: ShardPutRequest;
	readonly #flow: { accepted(): void; resume(): void; failed(error: DistroError): void };
	readonly #canceled = new AbortController();
	#lease: MemoryLease | null = null;
	#writer: ShardWriter | null = null;
	/** Came before there was a buffer for it; the sender is paused meanwhile. */
	#waiting: Buffer[] = [];
	/** Which slot fills, how far, and whether the other one is being written. */
	#slot = 0;
	#filledBytes = 0;
	#writing = false;
	#receivedBytes = 0;
	readonly #hasher = new LeafHasher();
	#cellFilledBytes = 0;
	readonly #leaves: Buffer;
	#leafCount = 0;
	#idle: (() => void) | null = null;
	#failure: DistroError | null = null;
	#over = false;
	readonly #cancelDeadline: () => void;

	constructor(
		deps: ShardServiceDeps,
		request: ShardPutRequest,
		flow: { accepted(): void; resume(): void; failed(error: DistroError): void },
	) {
		this.#deps = deps;
		this.#request = request;
		this.#flow = flow;
		if (!(CELL_SIZES as readonly number[]).includes(request.cellBytes)) {
			throw new DistroError('unsupported', `cells of ${request.cellBytes} bytes`);
		}
		if (request.maxBytes < 1 || request.maxBytes > SEGMENT_CELLS * request.cellBytes) {
			throw new DistroError('invalid', `a shard of up to ${request.maxBytes} bytes`);
		}
		this.#leaves = Buffer.alloc(Math.ceil(request.maxBytes / request.cellBytes) * LEAF_BYTES);
		this.#cancelDeadline = deps.clock.schedule(Math.min(request.deadlineMs, MAX_TIMER_MS), () =>
			this.#fail(new DistroError('expired', 'the deadline of this shard has passed')),
		);
		this.#begin().catch((error) => this.#fail(asDistroError(error)));
	}

	async #begin(): Promise<void> {
		const { maxBytes, shardId, deadlineMs } = this.#request;
		const sizes = maxBytes <= IO_BYTES ? [maxBytes] : [IO_BYTES, IO_BYTES];
		const lease =
			this.#deps.pool.tryAcquire(sizes) ??
			(await this.#deps.pool.acquire(sizes, { timeoutMs: BUDGET_WAIT_MS, signal: this.#canceled.signal }));
		if (this.#over) {
			lease.release();
			return;
		}
		this.#lease = lease;
		const writer = await this.#deps.store.create({ shardId, maxBytes, deadlineMs });
		this.#writer = writer;
		if (this.#over) {
			this.#discard();
			return;
		}
		this.#flow.accepted();
		this.#drain();
	}

	bytes(chunk: Buffer): boolean {
		if (this.#over) return true;
		this.#receivedBytes += chunk.length;
		if (this.#receivedBytes > this.#request.maxBytes) {
			this.#fail(new DistroError('invalid', `more than the ${this.#request.maxBytes} bytes that were announced`));
			return true;
		}
		if (this.#writer === null || this.#waiting.length > 0) {
			this.#waiting.push(chunk);
			return false;
		}
		const taken = this.#take(chunk);
		if (taken === chunk.length) return true;
		this.#waiting.push(chunk.subarray(taken));
		return false;
	}

	/** Copies what there is room for; answers how much that was. */
	#take(chunk: Buffer): number {
		let at = 0;
		while (at < chunk.length && this.#lease !== null) {
			const slot = this.#lease.slots[this.#slot] as Buffer;
			if (this.#filledBytes === slot.length) {
				if (this.#writing) return at;
				this.#flush();
				continue;
			}
			const count = Math.min(slot.length - this.#filledBytes, chunk.length - at);
			chunk.copy(slot, this.#filledBytes, at, at + count);
			this.#filledBytes += count;
			at += count;
		}
		return at;
	}

	/** Hashes and writes the filled slot; filling goes on in the other one, if there is one. */
	#flush(): void {
		const slots = (this.#lease as MemoryLease).slots;
		const full = (slots[this.#slot] as Buffer).subarray(0, this.#filledBytes);
		this.#slot = (this.#slot + 1) % slots.length;
		this.#filledBytes = 0;
		this.#writing = true;
		(this.#writer as ShardWriter).write(full, (error) => {
			this.#writing = false;
			if (error !== null) this.#fail(asDistroError(error));
			if (this.#over) {
				this.#discard();
				return;
			}
			this.#drain();
		});
		this.#hash(full);
	}

	#hash(bytes: Buffer): void {
		const { cellBytes } = this.#request;
		let at = 0;
		while (at < bytes.length) {
			const count = Math.min(cellBytes - this.#cellFilledBytes, bytes.length - at);
			this.#hasher.update(bytes.subarray(at, at + count));
			this.#cellFilledBytes += count;
			at += count;
			if (this.#cellFilledBytes === cellBytes) this.#endCell();
		}
	}

	#endCell(): void {
		this.#hasher.digestInto(this.#leaves, this.#leafCount * LEAF_BYTES);
		this.#leafCount++;
		this.#cellFilledBytes = 0;
	}

	#drain(): void {
		while (this.#waiting.length > 0) {
			const chunk = this.#waiting[0] as Buffer;
			const taken = this.#take(chunk);
			if (taken < chunk.length) {
				this.#waiting[0] = chunk.subarray(taken);
				return;
			}
			this.#waiting.shift();
		}
		if (this.#idle === null) this.#flow.resume();
		else if (this.#filledBytes > 0 && !this.#writing) this.#flush();
		else if (!this.#writing) this.#idle();
	}

	async finish(trailerBytes: Buffer): Promise<Receipt> {
		const trailer = decodeTrailer(trailerBytes);
		await new Promise<void>((resolve) => {
			this.#idle = resolve;
			if (this.#over) resolve();
			else if (this.#writer !== null && !this.#writing) this.#drain();
		});
		if (this.#failure !== null) throw this.#failure;
		if (this.#over) throw new DistroError('canceled', 'the put was given up');
		if (this.#cellFilledBytes > 0) this.#endCell();
		this.#check(trailer);
		this.#over = true;
		this.#cancelDeadline();
		try {
			await (this.#writer as ShardWriter).commit(trailerBytes);
		} catch (error) {
			await (this.#writer as ShardWriter).abort();
			throw error;
		} finally {
			this.#lease?.release();
		}
		this.#deps.onBytes('in', this.#receivedBytes);
		return signReceipt(
			{
				workerId: this.#deps.workerId,
				shardId: this.#request.shardId,
				root: trailer.root,
				cellsBytes: this.#receivedBytes,
				timeMs: this.#deps.clock.nowMs(),
			},
			this.#deps.receiptKey,
		);
	}

	#check(trailer: Trailer): void {
		const { description } = trailer;
		const leaves = this.#leaves.subarray(0, this.#leafCount * LEAF_BYTES);
		const wrong =
			description.shardId !== this.#request.shardId
				? 'another shard id'
				: description.cellBytes !== this.#request.cellBytes
					? 'another cell length'
					: shardBytes(description, description.shardIndex) !== this.#receivedBytes
						? `${shardBytes(description, description.shardIndex)} bytes, and ${this.#receivedBytes} came`
						: !trailer.leaves.equals(leaves)
							? 'other leaves than the bytes that came'
							: !trailer.root.equals(rootOf(leaves))
								? 'a root that its leaves do not have'
								: null;
		if (wrong !== null) throw new DistroError('corrupt', `the trailer says ${wrong}`);
	}

	abort(_reason: string): void {
		if (this.#over) return;
		this.#over = true;
		this.#cancelDeadline();
		this.#canceled.abort();
		this.#idle?.();
		if (!this.#writing) this.#discard();
	}

	#fail(error: DistroError): void {
		if (this.#over) return;
		this.#failure = error;
		this.abort(error.message);
		this.#flow.failed(error);
	}

	/** Everything back, once no write is under way. */
	#discard(): void {
		this.#waiting = [];
		this.#lease?.release();
		// The put has failed already; what the removal says can't change that, and leftovers go at the next start.
		this.#writer?.abort().catch(() => {});
	}
}

async function sendShard(deps: ShardServiceDeps, request: ShardGetRequest, out: OutgoingShard): Promise<void> {
	if (request.length < 1) throw new DistroError('invalid', 'a get of no bytes');
	const gone = new AbortController();
	out.onGone = () => gone.abort('the reader has left');
	const sizes = request.length <= IO_BYTES ? [request.length] : [IO_BYTES, IO_BYTES];
	const lease =
		deps.pool.tryAcquire(sizes) ?? (await deps.pool.acquire(sizes, { timeoutMs: BUDGET_WAIT_MS, signal: gone.signal }));
	let reader: ShardReader;
	try {
		reader = await deps.store.open(request.shardId);
	} catch (error) {
		lease.release();
		throw error;
	}
	const close = () => {
		reader.close();
		lease.release();
	};
	try {
		if (request.wantLeaves) out.leaves(decodeTrailer(await deps.store.trailer(request.shardId)).leaves);
	} catch (error) {
		close();
		throw error;
	}
	new SendLoop(deps, request, { out, reader, slots: lease.slots, close }).next(0);
}

/** Reads ahead by one slot while the other is being sent. */
class SendLoop {
	readonly #deps: ShardServiceDeps;
	readonly #request: ShardGetRequest;
	readonly #parts: { out: OutgoingShard; reader: ShardReader; slots: readonly Buffer[]; close: () => void };
	readonly #busy: boolean[];
	#readBytes = 0;
	#sentBytes = 0;
	#reading = false;
	#over = false;
	#closed = false;

	constructor(
		deps: ShardServiceDeps,
		request: ShardGetRequest,
		parts: { out: OutgoingShard; reader: ShardReader; slots: readonly Buffer[]; close: () => void },
	) {
		this.#deps = deps;
		this.#request = request;
		this.#parts = parts;
		this.#busy = parts.slots.map(() => false);
	}

	next(slot: number): void {
		const { out, reader, slots } = this.#parts;
		if (this.#over) {
			this.#closeWhenQuiet();
			return;
		}
		if (this.#reading || this.#busy[slot] || this.#readBytes === this.#request.length) return;
		const whole = slots[slot] as Buffer;
		const into = whole.subarray(0, Math.min(whole.length, this.#request.length - this.#readBytes));
		this.#reading = true;
		this.#busy[slot] = true;
		reader.read(this.#request.offset + this.#readBytes, into, (error) => {
			this.#reading = false;
			if (error !== null) {
				this.#busy[slot] = false;
				this.#over = true;
				out.fail(asDistroError(error));
				this.#closeWhenQuiet();
				return;
			}
			this.#readBytes += into.length;
			out.data(into, (alive) => {
				this.#busy[slot] = false;
				this.#sentBytes += into.length;
				if (!alive) this.#over = true;
				if (this.#sentBytes === this.#request.length || this.#over) this.#closeWhenQuiet();
				else this.next(slot);
			});
			if (this.#readBytes === this.#request.length) out.end();
			else this.next((slot + 1) % slots.length);
		});
	}

	#closeWhenQuiet(): void {
		this.#over = true;
		if (this.#closed || this.#reading || this.#busy.includes(true)) return;
		this.#closed = true;
		this.#deps.onBytes('out', this.#sentBytes);
		this.#parts.close();
	}
}
