/**
 * ShardTransport over mTLS HTTP/2: the client of distro.v1.ShardService, with pooled connections to each worker.
 *
 * Several connections a worker, because TLS of one connection is one thread's work on the other side and because one
 * connection's window bounds what is under way. A connection that fails takes only its own streams with it; the next
 * call dials again. Nothing is retried here: what failed is placed or read elsewhere by core/transfer.
 */

import http2 from 'node:http2';
import tls from 'node:tls';
import { DistroError, type ErrorKind, isErrorKind } from '../core/errors.ts';
import { idBytes, idFromBytes, type ShardId, type WorkerId } from '../core/ids.ts';
import { GET_STALL_MS, TRAILER_MAX_BYTES } from '../core/limits.ts';
import type { AuditAnswer, AuditQuestion } from '../core/model/audit.ts';
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
} from '../core/ports.ts';
import {
	AuditRequest,
	AuditResponse,
	DeleteRequest,
	GetRequest,
	ListRequest,
	ListResponse,
	PutHeader,
	PutResponse,
	ReadKeysRequest,
	ReadKeysResponse,
	StatRequest,
	StatResponse,
	TrailersRequest,
	TrailersResponse,
	WriteKeysRequest,
} from '../proto/gen/distro/v1/shards.ts';
import { watchPeer } from './peer-watch.ts';
import { errorFromStatus, KIND_METADATA_KEY } from './rpc-errors.ts';
import {
	AUDIT_PATH,
	CONNECTION_WINDOW_BYTES,
	DELETE_PATH,
	frame,
	GET_FIELD,
	GET_PATH,
	LIST_PATH,
	MessageReader,
	PartReader,
	PUT_FIELD,
	PUT_PATH,
	partPrefix,
	READ_KEYS_PATH,
	SESSION_MEMORY_MB,
	STAT_PATH,
	STREAM_WINDOW_BYTES,
	TRAILERS_PATH,
	WRITE_KEYS_PATH,
} from './shard-wire.ts';
import { madeYoungBuffers } from './young-collection.ts';

const CONNECT_TIMEOUT_MS = 5_000;
const UNARY_MAX_BYTES = 1024 * 1024;

/** TLS for dialling a worker: must check that the peer's certificate is that worker's. */
export interface WorkerTls {
	clientTlsOptions(expect: { expectWorker: WorkerId }): tls.ConnectionOptions;
}

export interface TransportOptions {
	readonly tls: WorkerTls;
	/** Connections to each worker. */
	readonly connections: number;
}

interface Connection {
	readonly session: http2.ClientHttp2Session;
	streams: number;
	/** Out of the pool; its streams may go on. Idempotent. */
	leave: () => void;
}

export class GrpcShardTransport implements ShardTransport {
	readonly #options: TransportOptions;
	readonly #pools = new Map<string, Connection[]>();
	#closed = false;

	constructor(options: TransportOptions) {
		this.#options = options;
	}

	put(worker: WorkerRef, request: ShardPutRequest, events: ShardPutEvents): ShardPut {
		return new PutStream(this.#open(worker, PUT_PATH), request, events);
	}

	get(worker: WorkerRef, request: ShardGetRequest, events: ShardGetEvents): ShardGet {
		return new GetStream(this.#open(worker, GET_PATH), request, events);
	}

	/** Moves shards to the worker's trash. */
	async delete(
		worker: WorkerRef,
		shardIds: readonly ShardId[],
		options: { timeoutMs: number; forGood?: boolean },
	): Promise<void> {
		const { forGood = false } = options;
		const request = DeleteRequest.encode({ shardIds: shardIds.map(idBytes), forGood }).finish();
		await this.#unary(worker, DELETE_PATH, request, options.timeoutMs);
	}

	/** The shard's trailer. */
	async stat(worker: WorkerRef, shardId: ShardId, options: { timeoutMs: number }): Promise<Buffer> {
		const request = StatRequest.encode({ shardId: idBytes(shardId) }).finish();
		return StatResponse.decode(await this.#unary(worker, STAT_PATH, request, options.timeoutMs)).trailer as Buffer;
	}

	/** What the worker has, sorted by id, after `after`, at most `limit` (to SHARD_LIST_MAX); none after the last one. Throws `corrupt` for a list that is none. */
	async list(
		worker: WorkerRef,
		page: { after: ShardId | null; limit: number },
		options: { timeoutMs: number },
	): Promise<ShardList> {
		const after = page.after === null ? Buffer.alloc(0) : idBytes(page.after);
		const request = ListRequest.encode({ after, limit: page.limit }).finish();
		const { entries, nowMs } = ListResponse.decode(await this.#unary(worker, LIST_PATH, request, options.timeoutMs));
		let last = page.after ?? '';
		const shards = entries.map((entry) => {
			const shardId = idFromBytes<ShardId>(entry.shardId);
			if (shardId <= last) throw new DistroError('corrupt', 'the worker’s list is not sorted');
			last = shardId;
			return { shardId, writtenAtMs: entry.writtenAtMs };
		});
		if (shards.length > page.limit) throw new DistroError('corrupt', 'the worker’s list is longer than was asked for');
		return { shards, nowMs };
	}

	/**
	 * Trailers of the first of these shards (TRAILERS_MAX at most), in their order, or the kind of error of each: at least one,
	 * fewer than were asked for where the answer would be too large. Unchecked, as all that a worker says.
	 */
	async trailers(
		worker: WorkerRef,
		shardIds: readonly ShardId[],
		options: { timeoutMs: number },
	): Promise<readonly (Buffer | ErrorKind)[]> {
		const request = TrailersRequest.encode({ shardIds: shardIds.map(idBytes) }).finish();
		const answered = await this.#unary(worker, TRAILERS_PATH, request, options.timeoutMs);
		const { answers } = TrailersResponse.decode(answered);
		if (answers.length < 1 || answers.length > shardIds.length) {
			throw new DistroError('corrupt', `the worker answered ${answers.length} of ${shardIds.length} trailers`);
		}
		return answers.map(({ trailer, error }) => {
			if (error === '') return trailer as Buffer;
			return isErrorKind(error) ? error : 'unavailable';
		});
	}

	/** Unchecked: core/crypto/audit.ts says whether it proves anything. `timeout` after `deadlineMs`, whatever has come by then. */
	async audit(worker: WorkerRef, question: AuditQuestion, options: { deadlineMs: number }): Promise<AuditAnswer> {
		const { deadlineMs } = options;
		const { shardId, row, nonce } = question;
		const request = AuditRequest.encode({ shardId: idBytes(shardId), row, nonce, deadlineMs }).finish();
		return AuditResponse.decode(await this.#unary(worker, AUDIT_PATH, request, deadlineMs));
	}

	/** Keeps the cluster's keys record on the worker's volume. Throws `conflict` when that has a newer one. */
	async writeKeys(worker: WorkerRef, record: Buffer, options: { timeoutMs: number }): Promise<void> {
		await this.#unary(worker, WRITE_KEYS_PATH, WriteKeysRequest.encode({ record }).finish(), options.timeoutMs);
	}

	/** The keys record on the worker's volume; `not_found` when there is none. */
	async readKeys(worker: WorkerRef, options: { timeoutMs: number }): Promise<Buffer> {
		const request = ReadKeysRequest.encode({}).finish();
		const answer = await this.#unary(worker, READ_KEYS_PATH, request, options.timeoutMs);
		return Buffer.from(ReadKeysResponse.decode(answer).record);
	}

	close(): void {
		this.#closed = true;
		for (const pool of this.#pools.values()) for (const { session } of pool) session.destroy();
		this.#pools.clear();
	}

	#unary(worker: WorkerRef, path: string, request: Uint8Array, timeoutMs: number): Promise<Buffer> {
		return new Promise((resolve, reject) => {
			const stream = this.#open(worker, path);
			const reader = new MessageReader(UNARY_MAX_BYTES);
			watch(stream, {
				data: (chunk) => reader.push(chunk),
				end: () => {
					const message = reader.message();
					if (message === null) throw new DistroError('unavailable', 'the worker answered nothing');
					resolve(message);
				},
				failed: reject,
			});
			// Of the whole call: a worker that sends its answer byte by byte must not hold up those that wait for it.
			const timer = setTimeout(() => {
				reject(new DistroError('timeout', `no answer from the worker within ${timeoutMs} ms`));
				stream.close(http2.constants.NGHTTP2_CANCEL);
			}, timeoutMs);
			stream.once('close', () => clearTimeout(timer));
			stream.end(frame(request));
		});
	}

	#open(worker: WorkerRef, path: string): http2.ClientHttp2Stream {
		const connection = this.#connection(worker);
		const stream = connection.session.request({
			':method': 'POST',
			':path': path,
			'content-type': 'application/grpc',
			te: 'trailers',
		});
		connection.streams++;
		stream.once('close', () => {
			connection.streams--;
		});
		return stream;
	}

	#connection(worker: WorkerRef): Connection {
		if (this.#closed) throw new DistroError('canceled', 'this process is stopping');
		const key = `${worker.workerId} ${worker.address}`;
		let pool = this.#pools.get(key);
		if (pool === undefined) {
			pool = [];
			this.#pools.set(key, pool);
		}
		let best: Connection | undefined;
		for (const connection of [...pool]) {
			// It may be destroyed before it says so.
			if (connection.session.destroyed || connection.session.closed) {
				connection.leave();
				continue;
			}
			if (best === undefined || connection.streams < best.streams) best = connection;
		}
		if (best !== undefined && (best.streams === 0 || pool.length >= this.#options.connections)) return best;
		const connection = this.#dial(worker, () => {
			const current = this.#pools.get(key);
			if (current === undefined) return;
			const at = current.indexOf(connection);
			if (at >= 0) current.splice(at, 1);
			if (current.length === 0) this.#pools.delete(key);
		});
		pool.push(connection);
		return connection;
	}

	#dial(worker: WorkerRef, gone: () => void): Connection {
		const colon = worker.address.lastIndexOf(':');
		const socket = tls.connect({
			...this.#options.tls.clientTlsOptions({ expectWorker: worker.workerId }),
			host: worker.address.slice(0, colon),
			port: Number(worker.address.slice(colon + 1)),
			ALPNProtocols: ['h2'],
		});
		socket.setNoDelay(true);
		const session = http2.connect(`https://${worker.address}`, {
			createConnection: () => socket,
			settings: { initialWindowSize: STREAM_WINDOW_BYTES, enablePush: false },
			maxSessionMemory: SESSION_MEMORY_MB,
		});
		let left = false;
		const leave = () => {
			if (left) return;
			left = true;
			clearTimeout(connectTimer);
			gone();
		};
		const connection: Connection = { session, streams: 0, leave };
		const connectTimer = setTimeout(
			() => session.destroy(new DistroError('timeout', `no connection to ${worker.address} in time`)),
			CONNECT_TIMEOUT_MS,
		);
		connectTimer.unref();
		const unwatch = watchPeer(session, {
			onSilent: () => session.destroy(new DistroError('timeout', `${worker.address} does not answer`)),
		});
		session.once('connect', () => {
			clearTimeout(connectTimer);
			session.setLocalWindowSize(CONNECTION_WINDOW_BYTES);
		});
		session.on('error', leave);
		session.on('goaway', leave);
		session.on('close', () => {
			unwatch();
			leave();
		});
		session.unref();
		return connection;
	}
}

/** Follows one call to its end: exactly one of `end` (status OK) and `failed` is called, at most once. */
function watch(
	stream: http2.ClientHttp2Stream,
	call: {
		accepted?: () => void;
		data: (chunk: Buffer) => void;
		end: () => void;
		failed: (error: DistroError) => void;
	},
): void {
	let settled = false;
	let status: DistroError | 'ok' | null = null;
	const fail = (error: DistroError) => {
		if (settled) return;
		settled = true;
		call.failed(error);
	};
	const guarded = (step: () => void) => {
		try {
			step();
		} catch (error) {
			fail(error instanceof DistroError ? error : new DistroError('internal', String(error), { cause: error }));
			stream.close(http2.constants.NGHTTP2_CANCEL);
		}
	};
	stream.on('response', (headers) => {
		if (headers[':status'] !== 200) {
			// Not a worker of ours: nothing that follows is of use, and it may never end.
			status = new DistroError('unavailable', `HTTP status ${headers[':status']}`);
			stream.close(http2.constants.NGHTTP2_CANCEL);
		} else if (headers['grpc-status'] !== undefined) status = statusOf(headers);
		else call.accepted?.();
	});
	stream.on('trailers', (headers) => {
		status = statusOf(headers);
	});
	stream.on('data', (chunk: Buffer) => {
		if (!settled) guarded(() => call.data(chunk));
	});
	stream.on('end', () => {
		if (settled) return;
		if (status === 'ok') {
			guarded(() => call.end());
			settled = true;
		} else if (status !== null) {
			fail(status);
			// The worker wants no more: what is still to be written is let go.
			letGo(stream);
		}
	});
	let failure: Error | null = null;
	stream.on('error', (error) => {
		failure = error;
	});
	stream.on('close', () => {
		if (settled) return;
		if (status instanceof DistroError) fail(status);
		else {
			const because = failure === null ? '' : `: ${failure.message}`;
			fail(new DistroError('unavailable', `the connection to the worker broke${because}`, { cause: failure }));
		}
	});
}

function statusOf(headers: http2.IncomingHttpHeaders): DistroError | 'ok' {
	const code = Number(headers['grpc-status'] ?? Number.NaN);
	if (code === 0) return 'ok';
	const kind = headers[KIND_METADATA_KEY];
	return errorFromStatus({
		code: Number.isInteger(code) ? code : 2,
		message: percentDecoded(String(headers['grpc-message'] ?? '')),
		kind: typeof kind === 'string' ? kind : undefined,
	});
}

/** What is no percent-encoding stays as it is: a worker's bad manners must not end this process. */
function percentDecoded(text: string): string {
	try {
		return decodeURIComponent(text);
	} catch {
		return text;
	}
}

class PutStream implements ShardPut {
	readonly #stream: http2.ClientHttp2Stream;
	/** Of the cells on their way, in order. node:http2 forgets a write's callback when it is destroyed before it connects. */
	#dones: (() => void)[] = [];
	#over = false;

	constructor(stream: http2.ClientHttp2Stream, request: ShardPutRequest, events: ShardPutEvents) {
		this.#stream = stream;
		stream.once('close', () => {
			const dones = this.#dones;
			this.#dones = [];
			for (const done of dones) done();
		});
		const reader = new MessageReader(UNARY_MAX_BYTES);
		watch(stream, {
			accepted: () => {
				if (!this.#over) events.accepted();
			},
			data: (chunk) => reader.push(chunk),
			end: () => {
				if (this.#over) return;
				const message = reader.message();
				if (message === null) throw new DistroError('unavailable', 'the worker sent no receipt');
				const receipt = receiptOf(PutResponse.decode(message));
				this.#over = true;
				events.receipt(receipt);
			},
			failed: (error) => {
				if (this.#over) return;
				this.#over = true;
				events.failed(error);
			},
		});
		const header = PutHeader.encode({
			shardId: idBytes(request.shardId),
			cellBytes: request.cellBytes,
			maxBytes: request.maxBytes,
			deadlineMs: request.deadlineMs,
		}).finish();
		stream.cork();
		stream.write(partPrefix(PUT_FIELD.header, header.length));
		stream.write(header);
		process.nextTick(uncork, stream);
	}

	write(cell: Buffer, done: () => void): void {
		const stream = this.#stream;
		if (this.#over || stream.destroyed) {
			process.nextTick(done);
			return;
		}
		stream.cork();
		stream.write(partPrefix(PUT_FIELD.cell, cell.length));
		this.#dones.push(done);
		stream.write(cell, this.#written);
		process.nextTick(uncork, stream);
	}

	readonly #written = (): void => {
		this.#dones.shift()?.();
	};

	finish(trailer: Buffer): void {
		if (this.#over || this.#stream.destroyed) return;
		this.#stream.cork();
		this.#stream.write(partPrefix(PUT_FIELD.trailer, trailer.length));
		this.#stream.end(trailer);
		process.nextTick(uncork, this.#stream);
	}

	abort(_reason: string): void {
		if (this.#over) return;
		this.#over = true;
		letGo(this.#stream);
	}
}

/**
 * Ends a stream at once and releases the writes that flow control still holds: their `done` must be called.
 *
 * The reset must go before the stream is destroyed: of a stream that is gone nghttp2 asks for more data for ever, and the
 * process stands still. node:http2 holds CANCEL back while a write is in progress, and NO_ERROR until all is written.
 */
function letGo(stream: http2.ClientHttp2Stream): void {
	stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR);
	stream.destroy();
}

function uncork(stream: http2.ClientHttp2Stream): void {
	stream.uncork();
}

function receiptOf(response: PutResponse) {
	return {
		workerId: idFromBytes<WorkerId>(response.workerId),
		shardId: idFromBytes<ShardId>(response.shardId),
		root: Buffer.from(response.root),
		cellsBytes: response.cellsBytes,
		timeMs: response.timeMs,
		signature: Buffer.from(response.signature),
	};
}

class GetStream implements ShardGet {
	readonly #stream: http2.ClientHttp2Stream;
	#over = false;

	constructor(stream: http2.ClientHttp2Stream, request: ShardGetRequest, events: ShardGetEvents) {
		this.#stream = stream;
		let restBytes = request.length;
		const fail = (error: DistroError) => {
			if (this.#over) return;
			this.#over = true;
			events.failed(error);
		};
		const reader = new PartReader({
			streamedField: GET_FIELD.data,
			maxPartBytes: TRAILER_MAX_BYTES,
			events: {
				bytes: (chunk) => {
					madeYoungBuffers(chunk.length);
					if (this.#over) return;
					restBytes -= chunk.length;
					if (restBytes < 0) throw new DistroError('corrupt', 'the worker sent more than was asked for');
					events.data(chunk);
					// The end is told with the last byte: the status that follows can't make these bytes wrong.
					if (restBytes === 0 && !this.#over) {
						this.#over = true;
						events.end();
					}
				},
				part: (field, payload) => {
					if (this.#over) return;
					if (field !== GET_FIELD.leaves) throw new DistroError('invalid', 'an unknown part from the worker');
					events.leaves(payload);
				},
			},
		});
		watch(stream, {
			data: (chunk) => reader.push(chunk),
			end: () => {
				if (restBytes > 0) throw new DistroError('corrupt', 'the shard is shorter than it must be');
			},
			failed: fail,
		});
		const onStall = () => {
			if (this.#over) return;
			if (stream.isPaused()) {
				// It is our turn. The timer and its callback serve once only.
				stream.setTimeout(GET_STALL_MS, onStall);
				return;
			}
			fail(new DistroError('timeout', `the worker sent nothing for ${GET_STALL_MS} ms`));
			stream.close(http2.constants.NGHTTP2_CANCEL);
		};
		stream.setTimeout(GET_STALL_MS, onStall);
		stream.end(
			frame(
				GetRequest.encode({
					shardId: idBytes(request.shardId),
					offset: request.offset,
					length: request.length,
					wantLeaves: request.wantLeaves,
				}).finish(),
			),
		);
	}

	pause(): void {
		this.#stream.pause();
	}

	resume(): void {
		this.#stream.resume();
	}

	abort(_reason: string): void {
		if (this.#over) return;
		this.#over = true;
		this.#stream.close(http2.constants.NGHTTP2_CANCEL);
		// Without a reader the rest would sit in the stream's buffer.
		this.#stream.resume();
	}
}
