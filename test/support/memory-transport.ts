/**
 * A ShardTransport without a network: workers are maps in memory, and faults are switched on per worker. The twin that
 * transfer tests and the simulation run on. Everything is delivered asynchronously and in order.
 */

import { decodeTrailer } from '../../core/codec/trailer.ts';
import { asDistroError, DistroError, type ErrorKind } from '../../core/errors.ts';
import type { ShardId, WorkerId } from '../../core/ids.ts';
import type {
	ShardGet,
	ShardGetEvents,
	ShardGetRequest,
	ShardList,
	ShardPut,
	ShardPutEvents,
	ShardPutRequest,
	ShardTransport,
	WorkerRef,
} from '../../core/ports.ts';

export interface Faults {
	/** Refuses puts with this. */
	refusePut?: DistroError;
	/** Never answers (SIGSTOP). */
	frozen?: boolean;
	/** Breaks every stream (SIGKILL). */
	dead?: boolean;
	/** Takes rows but never sends a receipt. */
	noReceipt?: boolean;
	/** Signs for another root. */
	wrongReceipt?: boolean;
	/** Sends a chunk only this often. */
	chunkMs?: number;
	/** Sends its receipt when the first cell comes. */
	earlyReceipt?: boolean;
	/** Breaks a put after this many cells. */
	breakAfterCells?: number;
}

export interface StoredShard {
	bytes: Buffer;
	trailer: Buffer;
	writtenAtMs: number;
}

const CHUNK_BYTES = 16_384;

export class MemoryTransport implements ShardTransport {
	readonly shards = new Map<WorkerId, Map<ShardId, StoredShard>>();
	readonly keys = new Map<WorkerId, Buffer>();
	readonly faults = new Map<WorkerId, Faults>();
	/** Puts and gets under way: must be 0 when all is over. */
	open = 0;
	puts = 0;
	gets = 0;
	/** Shards that are being written, and what ends that. */
	readonly writing = new Map<ShardId, (error: DistroError) => void>();

	faultsOf(workerId: WorkerId): Faults {
		const known = this.faults.get(workerId);
		if (known !== undefined) return known;
		const fresh: Faults = {};
		this.faults.set(workerId, fresh);
		return fresh;
	}

	shardsOf(workerId: WorkerId): Map<ShardId, StoredShard> {
		let shards = this.shards.get(workerId);
		if (shards === undefined) {
			shards = new Map();
			this.shards.set(workerId, shards);
		}
		return shards;
	}

	put(worker: WorkerRef, request: ShardPutRequest, events: ShardPutEvents): ShardPut {
		this.puts++;
		this.open++;
		const faults = this.faultsOf(worker.workerId);
		const cells: Buffer[] = [];
		let over = false;
		const heldDones: (() => void)[] = [];
		const end = (tell: () => void) => {
			if (over) return;
			over = true;
			this.open--;
			this.writing.delete(request.shardId);
			for (const done of heldDones.splice(0)) done();
			tell();
		};
		const fail = (error: DistroError) => end(() => events.failed(error));
		this.writing.set(request.shardId, fail);
		const later = (step: () => void) =>
			setImmediate(() => {
				if (over) return;
				if (faults.dead) fail(new DistroError('unavailable', 'the connection broke'));
				else if (!faults.frozen) step();
			});
		later(() => {
			if (faults.refusePut !== undefined) fail(faults.refusePut);
			else events.accepted();
		});
		return {
			write: (cell, done) => {
				if (over) {
					setImmediate(done);
					return;
				}
				heldDones.push(done);
				later(() => {
					cells.push(Buffer.from(cell));
					if (faults.earlyReceipt) {
						const [root, signature] = [Buffer.alloc(32), Buffer.alloc(64)];
						const { workerId } = worker;
						const { shardId } = request;
						end(() => events.receipt({ workerId, shardId, root, cellsBytes: cell.length, timeMs: 0, signature }));
						return;
					}
					if (cells.length === faults.breakAfterCells) fail(new DistroError('unavailable', 'broke half-way'));
					else heldDones.shift()?.();
				});
			},
			finish: (trailerBytes) => {
				later(() => {
					if (faults.noReceipt) return;
					const trailer = decodeTrailer(trailerBytes);
					this.shardsOf(worker.workerId).set(request.shardId, {
						bytes: Buffer.concat(cells),
						trailer: trailerBytes,
						writtenAtMs: Date.now(),
					});
					const root = faults.wrongReceipt ? Buffer.alloc(32) : trailer.root;
					const cellsBytes = cells.reduce((sum, cell) => sum + cell.length, 0);
					const { workerId } = worker;
					end(() =>
						events.receipt({
							workerId,
							shardId: request.shardId,
							root,
							cellsBytes,
							timeMs: 0,
							signature: Buffer.alloc(64),
						}),
					);
				});
			},
			abort: () => end(() => {}),
		};
	}

	async stat(worker: WorkerRef, shardId: ShardId): Promise<Buffer> {
		this.answering(worker);
		const shard = this.shardsOf(worker.workerId).get(shardId);
		if (shard === undefined) throw new DistroError('not_found', 'no such shard');
		return shard.trailer;
	}

	/** As a worker does it: what is being written never arrives. */
	async delete(worker: WorkerRef, shardIds: readonly ShardId[]): Promise<void> {
		this.answering(worker);
		for (const shardId of shardIds) {
			this.writing.get(shardId)?.(new DistroError('canceled', 'it was deleted while it was written'));
			this.shardsOf(worker.workerId).delete(shardId);
		}
	}

	async list(worker: WorkerRef, page: { after: ShardId | null; limit: number }): Promise<ShardList> {
		this.answering(worker);
		const found = [...this.shardsOf(worker.workerId)].filter(
			([shardId]) => page.after === null || shardId > page.after,
		);
		const shards = found.map(([shardId, { writtenAtMs }]) => ({ shardId, writtenAtMs }));
		shards.sort((a, b) => (a.shardId < b.shardId ? -1 : 1));
		return { shards: shards.slice(0, page.limit), nowMs: Date.now() };
	}

	async trailers(worker: WorkerRef, shardIds: readonly ShardId[]): Promise<readonly (Buffer | ErrorKind)[]> {
		this.answering(worker);
		return shardIds.map((shardId) => this.shardsOf(worker.workerId).get(shardId)?.trailer ?? 'not_found');
	}

	async writeKeys(worker: WorkerRef, record: Buffer): Promise<void> {
		this.answering(worker);
		this.keys.set(worker.workerId, Buffer.from(record));
	}

	async readKeys(worker: WorkerRef): Promise<Buffer> {
		this.answering(worker);
		const record = this.keys.get(worker.workerId);
		if (record === undefined) throw new DistroError('not_found', 'no keys yet');
		return record;
	}

	private answering(worker: WorkerRef): void {
		if (this.faultsOf(worker.workerId).dead) throw new DistroError('unavailable', 'the connection broke');
	}

	get(worker: WorkerRef, request: ShardGetRequest, events: ShardGetEvents): ShardGet {
		this.gets++;
		this.open++;
		const faults = this.faultsOf(worker.workerId);
		let over = false;
		let paused = false;
		let at = -1;
		const end = (tell: () => void) => {
			if (over) return;
			over = true;
			this.open--;
			tell();
		};
		const soon = (step: () => void) =>
			faults.chunkMs === undefined ? setImmediate(step) : setTimeout(step, faults.chunkMs);
		const next = () =>
			soon(() => {
				if (over || paused || faults.frozen) return;
				if (faults.dead) {
					end(() => events.failed(new DistroError('unavailable', 'the connection broke')));
					return;
				}
				const shard = this.shardsOf(worker.workerId).get(request.shardId);
				if (shard === undefined) {
					end(() => events.failed(new DistroError('not_found', 'no such shard')));
					return;
				}
				if (at < 0) {
					at = 0;
					try {
						if (request.wantLeaves) events.leaves(decodeTrailer(shard.trailer).leaves);
					} catch (error) {
						end(() => events.failed(asDistroError(error)));
						return;
					}
					next();
					return;
				}
				const from = request.offset + at;
				const chunk = shard.bytes.subarray(from, Math.min(from + CHUNK_BYTES, request.offset + request.length));
				if (chunk.length === 0) {
					end(() => events.failed(new DistroError('corrupt', 'the shard is shorter than it must be')));
					return;
				}
				at += chunk.length;
				// A view that is only valid during the call, as the port says.
				const view = Buffer.from(chunk);
				events.data(view);
				view.fill(0xee);
				if (at === request.length) end(() => events.end());
				else next();
			});
		next();
		return {
			pause: () => {
				paused = true;
			},
			resume: () => {
				if (!paused) return;
				paused = false;
				next();
			},
			abort: () => end(() => {}),
		};
	}
}
