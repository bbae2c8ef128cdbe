/** Shards over the simulated network: what platform/shard-transport and platform/shard-server do over a real one. */

import { asDistroError, DistroError, type ErrorKind } from '../../core/errors.ts';
import type { ShardId } from '../../core/ids.ts';
import { GET_STALL_MS } from '../../core/limits.ts';
import type { AuditAnswer, AuditQuestion } from '../../core/model/audit.ts';
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
import type { IncomingShard, OutgoingShard, ShardHandlers } from '../../platform/shard-server.ts';
import type { GrpcShardTransport } from '../../platform/shard-transport.ts';
import type { Dice } from './dice.ts';
import type { Connection, Network } from './network.ts';
import type { SimNode } from './world.ts';

const CONNECT_TIMEOUT_MS = 5_000;

export class SimTransport
	implements
		ShardTransport,
		Pick<GrpcShardTransport, 'stat' | 'delete' | 'list' | 'trailers' | 'audit' | 'writeKeys' | 'readKeys'>
{
	readonly #network: Network;
	readonly #host: string;
	readonly #node: SimNode;
	readonly #dice: Dice;
	/** Streams that are not over: none may stay for ever. */
	open = 0;

	constructor(network: Network, o: { host: string; node: SimNode; dice: Dice }) {
		this.#network = network;
		this.#host = o.host;
		this.#node = o.node;
		this.#dice = o.dice;
	}

	#connect(worker: WorkerRef): { connection: Connection; handlers: ShardHandlers | null } {
		const to = worker.address.split(':')[0] as string;
		const connection = this.#network.connect({ host: this.#host, node: this.#node }, to);
		const found = this.#network.hosts.get(to)?.shards;
		// Another certificate than the one that was asked for.
		return { connection, handlers: found?.workerId === worker.workerId ? found.handlers : null };
	}

	put(worker: WorkerRef, request: ShardPutRequest, events: ShardPutEvents): ShardPut {
		const { connection, handlers } = this.#connect(worker);
		this.open++;
		let isOver = false;
		const dones: (() => void)[] = [];
		const end = (tell: () => void) => {
			if (isOver) return;
			isOver = true;
			this.open--;
			for (const done of dones.splice(0)) queueMicrotask(done);
			connection.close('client');
			tell();
		};
		const fail = (error: DistroError) => end(() => events.failed(error));
		connection.client.onBreak = (why) => fail(new DistroError('unavailable', why));
		const cancelConnect = this.#node.clock.schedule(CONNECT_TIMEOUT_MS, () => {
			if (!heard) fail(new DistroError('timeout', 'no connection in time'));
		});
		let heard = false;
		const server = new ServedPut(connection, handlers, {
			connected: () => {
				heard = true;
				cancelConnect();
			},
			accepted: () => {
				if (!isOver) events.accepted();
			},
			taken: () => dones.shift()?.(),
			receipt: (receipt) => end(() => events.receipt(receipt)),
			failed: fail,
		});
		connection.toServer(() => server.begin(request));
		return {
			write: (cell, done) => {
				if (isOver) {
					queueMicrotask(done);
					return;
				}
				dones.push(done);
				const bytes = Buffer.from(cell);
				connection.toServer(() => server.push(bytes));
			},
			finish: (trailer) => {
				const bytes = Buffer.from(trailer);
				if (!isOver) connection.toServer(() => server.end(bytes));
			},
			abort: () => end(() => {}),
		};
	}

	get(worker: WorkerRef, request: ShardGetRequest, events: ShardGetEvents): ShardGet {
		const { connection, handlers } = this.#connect(worker);
		this.open++;
		let isOver = false;
		let isPaused = false;
		let restBytes = request.length;
		const waiting: (() => void)[] = [];
		let cancelStall = () => {};
		const end = (tell: () => void) => {
			if (isOver) return;
			isOver = true;
			this.open--;
			cancelStall();
			connection.close('client');
			tell();
		};
		const fail = (error: DistroError) => end(() => events.failed(error));
		const armStall = () => {
			cancelStall();
			cancelStall = this.#node.clock.schedule(GET_STALL_MS, () => {
				if (isPaused) armStall();
				else fail(new DistroError('timeout', 'the worker sent nothing'));
			});
		};
		armStall();
		connection.client.onBreak = (why) => fail(new DistroError('unavailable', why));
		const incoming = (what: () => void) => {
			if (isOver) return;
			armStall();
			if (isPaused || waiting.length > 0) waiting.push(what);
			else what();
		};
		const server = new ServedGet(connection, this.#dice, {
			leaves: (leaves) => incoming(() => events.leaves(leaves)),
			data: (bytes, sent) =>
				incoming(() => {
					restBytes -= bytes.length;
					events.data(bytes);
					// A view is only good during the call.
					bytes.fill(0xee);
					if (isOver) return;
					connection.toServer(sent);
					if (restBytes === 0) end(() => events.end());
				}),
			failed: (error) => incoming(() => fail(error)),
		});
		connection.toServer(() => server.begin(handlers, request));
		return {
			pause: () => {
				isPaused = true;
			},
			resume: () => {
				isPaused = false;
				while (!isPaused && !isOver && waiting.length > 0) waiting.shift()?.();
			},
			abort: () => end(() => {}),
		};
	}

	async stat(worker: WorkerRef, shardId: ShardId, options: { timeoutMs: number }): Promise<Buffer> {
		return this.#ask(worker, (handlers) => handlers.stat(shardId), options.timeoutMs);
	}

	async delete(
		worker: WorkerRef,
		shardIds: readonly ShardId[],
		{ timeoutMs, forGood = false }: { timeoutMs: number; forGood?: boolean },
	): Promise<void> {
		await this.#ask(worker, (handlers) => handlers.delete(shardIds, { forGood }), timeoutMs);
	}

	async list(
		worker: WorkerRef,
		page: { after: ShardId | null; limit: number },
		options: { timeoutMs: number },
	): Promise<ShardList> {
		return this.#ask(worker, (handlers) => handlers.list(page), options.timeoutMs);
	}

	async trailers(
		worker: WorkerRef,
		shardIds: readonly ShardId[],
		options: { timeoutMs: number },
	): Promise<readonly (Buffer | ErrorKind)[]> {
		return this.#ask(worker, (handlers) => handlers.trailers(shardIds), options.timeoutMs);
	}

	async audit(worker: WorkerRef, question: AuditQuestion, options: { deadlineMs: number }): Promise<AuditAnswer> {
		return this.#ask(worker, (handlers) => handlers.audit(question, options), options.deadlineMs);
	}

	async writeKeys(worker: WorkerRef, record: Buffer, options: { timeoutMs: number }): Promise<void> {
		await this.#ask(worker, (handlers) => handlers.writeKeys(record), options.timeoutMs);
	}

	async readKeys(worker: WorkerRef, options: { timeoutMs: number }): Promise<Buffer> {
		return this.#ask(worker, (handlers) => handlers.readKeys(), options.timeoutMs);
	}

	#ask<T>(worker: WorkerRef, what: (handlers: ShardHandlers) => Promise<T>, timeoutMs: number): Promise<T> {
		const { connection, handlers } = this.#connect(worker);
		const [, to] = connection.hosts;
		return new Promise((resolve, reject) => {
			const cancel = this.#node.clock.schedule(timeoutMs, () => {
				connection.close('client');
				reject(new DistroError('timeout', 'no answer from the worker in time'));
			});
			connection.client.onBreak = (why) => {
				cancel();
				reject(new DistroError('unavailable', why));
			};
			const answer = (tell: () => void) =>
				connection.toClient(() => {
					cancel();
					connection.close('client');
					tell();
				});
			connection.toServer(() => {
				if (handlers === null) answer(() => reject(new DistroError('denied', 'another worker is there')));
				else
					what(handlers).then(
						(result) => answer(() => resolve(result)),
						(error) => answer(() => reject(asDistroError(error))),
					);
			});
			this.#network.again(this.#host, to, () => {
				const now = this.#network.hosts.get(to);
				// Who heard it once hears it again, or its successor on the same volume.
				if (now?.shards?.workerId !== worker.workerId) return;
				const { handlers: later } = now.shards;
				now.node.run(() => void what(later).catch(() => {}));
			});
		});
	}
}

/** The worker's side of a put. */
class ServedPut {
	readonly #connection: Connection;
	readonly #handlers: ShardHandlers | null;
	readonly #client: ShardPutEvents & { connected(): void; taken(): void };
	#shard: IncomingShard | null = null;
	#isHeld = false;
	#isFinishing = false;
	#waiting: (() => void)[] = [];

	constructor(
		connection: Connection,
		handlers: ShardHandlers | null,
		client: ShardPutEvents & { connected(): void; taken(): void },
	) {
		this.#connection = connection;
		this.#handlers = handlers;
		this.#client = client;
	}

	begin(request: ShardPutRequest): void {
		this.#connection.server.onBreak = () => this.#shard?.abort('the sender has left');
		this.#connection.toClient(() => this.#client.connected());
		try {
			if (this.#handlers === null) throw new DistroError('denied', 'another worker is there');
			this.#shard = this.#handlers.put(request, {
				accepted: () => this.#connection.toClient(() => this.#client.accepted()),
				resume: () => {
					this.#isHeld = false;
					this.#next();
				},
				failed: (error) => this.#fail(error),
			});
		} catch (error) {
			this.#fail(asDistroError(error));
		}
	}

	#fail(error: DistroError): void {
		this.#shard?.abort(error.message);
		this.#waiting = [];
		this.#connection.toClient(() => this.#client.failed(error));
	}

	push(bytes: Buffer): void {
		this.#waiting.push(() => {
			if (this.#shard?.bytes(bytes) === false) this.#isHeld = true;
			this.#connection.toClient(() => this.#client.taken());
		});
		this.#next();
	}

	end(trailer: Buffer): void {
		this.#waiting.push(() => {
			if (this.#isFinishing) return;
			this.#isFinishing = true;
			this.#shard?.finish(trailer).then(
				(receipt) => this.#connection.toClient(() => this.#client.receipt(receipt)),
				(error) => this.#fail(asDistroError(error)),
			);
		});
		this.#next();
	}

	#next(): void {
		while (!this.#isHeld && this.#waiting.length > 0) this.#waiting.shift()?.();
	}
}

interface GetClient {
	leaves(leaves: Buffer): void;
	data(bytes: Buffer, sent: () => void): void;
	failed(error: DistroError): void;
}

/** The worker's side of a get. */
class ServedGet implements OutgoingShard {
	onGone: () => void = () => {};
	readonly #connection: Connection;
	readonly #dice: Dice;
	readonly #client: GetClient;
	readonly #unsent = new Set<(alive: boolean) => void>();

	constructor(connection: Connection, dice: Dice, client: GetClient) {
		this.#connection = connection;
		this.#dice = dice;
		this.#client = client;
	}

	begin(handlers: ShardHandlers | null, request: ShardGetRequest): void {
		this.#connection.server.onBreak = () => {
			this.onGone();
			for (const sent of [...this.#unsent]) sent(false);
		};
		if (handlers === null) this.fail(new DistroError('denied', 'another worker is there'));
		else handlers.get(request, this);
	}

	leaves(leaves: Buffer): void {
		const bytes = Buffer.from(leaves);
		this.#connection.toClient(() => this.#client.leaves(bytes));
	}

	data(bytes: Buffer, sent: (alive: boolean) => void): void {
		const tell = (alive: boolean) => {
			if (this.#unsent.delete(tell)) sent(alive);
		};
		this.#unsent.add(tell);
		if (this.#connection.server.isClosed) {
			queueMicrotask(() => tell(false));
			return;
		}
		// In pieces that end anywhere.
		const cut = this.#dice.below(bytes.length);
		const pieces = [bytes.subarray(0, cut), bytes.subarray(cut)].filter(({ length }) => length > 0);
		for (const [i, piece] of pieces.entries()) {
			const copy = Buffer.from(piece);
			const isLast = i === pieces.length - 1;
			this.#connection.toClient(() =>
				this.#client.data(copy, () => {
					if (isLast) tell(true);
				}),
			);
		}
	}

	end(): void {}

	fail(error: DistroError): void {
		this.#connection.toClient(() => this.#client.failed(error));
	}
}
