/**
 * The server of distro.v1.ShardService on the gRPC wire over mTLS HTTP/2: turns streams into calls of `ShardHandlers`.
 * It knows nothing of disks; worker/service.ts is behind it. Who the peer is stands in its certificate only.
 */

import http2 from 'node:http2';
import type tls from 'node:tls';
import { asDistroError, DistroError, type ErrorKind } from '../core/errors.ts';
import { idBytes, idFromBytes, type ShardId } from '../core/ids.ts';
import { IDLE_TRANSFER_MS, SHARD_LIST_MAX, STREAM_IDLE_MS, TRAILER_MAX_BYTES, TRAILERS_MAX } from '../core/limits.ts';
import type { AuditAnswer, AuditQuestion } from '../core/model/audit.ts';
import type { Receipt } from '../core/model/receipt.ts';
import type { ShardGetRequest, ShardList, ShardPutRequest } from '../core/ports.ts';
import {
	AuditRequest,
	AuditResponse,
	DeleteRequest,
	DeleteResponse,
	GetRequest,
	ListRequest,
	ListResponse,
	PutHeader,
	PutResponse,
	ReadKeysResponse,
	StatRequest,
	StatResponse,
	TrailersRequest,
	TrailersResponse,
	WriteKeysRequest,
	WriteKeysResponse,
} from '../proto/gen/distro/v1/shards.ts';
import { watchPeer } from './peer-watch.ts';
import { grpcStatusOf, KIND_METADATA_KEY } from './rpc-errors.ts';
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

const REQUEST_MAX_BYTES = 1024 * 1024;
const MAX_STREAMS = 1000;
/** A peer that goes on sending for this long after it was refused is cut off. */
const RESET_AFTER_MS = 1_000;

/** One shard coming in. */
export interface IncomingShard {
	/** Takes a view, which it may keep while it waits; false: no more before `resume` was called. */
	bytes(chunk: Buffer): boolean;
	/** The trailer has come: resolves to the receipt when the shard is durable. */
	finish(trailer: Buffer): Promise<Receipt>;
	/** The sender gave up or broke off. Idempotent; no effect after `finish` resolved. */
	abort(reason: string): void;
}

/** One shard going out. All calls after the peer left do nothing. */
export interface OutgoingShard {
	leaves(leaves: Buffer): void;
	/** `sent` is called exactly once, when the bytes are no longer needed; with false when the peer has left. */
	data(bytes: Buffer, sent: (alive: boolean) => void): void;
	end(): void;
	fail(error: DistroError): void;
	/** The peer has left. */
	onGone: () => void;
}

export interface ShardHandlers {
	/** Throws `denied` when this peer may not call. `peer` is the URI name of its certificate. */
	authorize(peer: tls.PeerCertificate): void;
	/** Starts a put. `accepted` is called when there is room; a failure before or after goes to `failed`. */
	put(
		request: ShardPutRequest,
		flow: { accepted(): void; resume(): void; failed(error: DistroError): void },
	): IncomingShard;
	get(request: ShardGetRequest, out: OutgoingShard): void;
	delete(shardIds: readonly ShardId[], options: { forGood: boolean }): Promise<void>;
	stat(shardId: ShardId): Promise<Buffer>;
	/** Sorted by id, after `after`, at most `limit`; `nowMs` is by the clock of the times in it. */
	list(options: { after: ShardId | null; limit: number }): Promise<ShardList>;
	/** Of the first of these shards, in their order, at least one: the trailer, or the kind of error. */
	trailers(shardIds: readonly ShardId[]): Promise<readonly (Buffer | ErrorKind)[]>;
	/** Throws `timeout` when it could not answer within `deadlineMs`. */
	audit(question: AuditQuestion, options: { deadlineMs: number }): Promise<AuditAnswer>;
	/** Keeps the cluster's keys record on the volume, durable when it resolves; and what was kept last. */
	writeKeys(record: Buffer): Promise<void>;
	readKeys(): Promise<Buffer>;
}

export interface ShardServerOptions {
	readonly tls: tls.SecureContextOptions & tls.TlsOptions;
	readonly handlers: ShardHandlers;
	/** A put or get that moves no byte for this long loses what is kept for it. */
	readonly idleMs?: number;
	/** Called for each finished call: method name, status kind or 'ok'. */
	readonly observe?: (method: string, outcome: string) => void;
	/** How often to ask whether a peer still lives. */
	readonly pings?: { readonly pingMs: number };
}

/** The caller listens and closes. */
export function createShardServer(options: ShardServerOptions): http2.Http2SecureServer {
	const { handlers, idleMs = STREAM_IDLE_MS } = options;
	const server = http2.createSecureServer({
		...options.tls,
		requestCert: true,
		rejectUnauthorized: true,
		allowHTTP1: false,
		maxSessionMemory: SESSION_MEMORY_MB,
		settings: { initialWindowSize: STREAM_WINDOW_BYTES, maxConcurrentStreams: MAX_STREAMS },
	});
	const verdicts = new WeakMap<http2.Http2Session, DistroError | 'ok'>();
	server.on('secureConnection', (socket) => socket.setNoDelay(true));
	server.on('session', (session) => {
		session.setLocalWindowSize(CONNECTION_WINDOW_BYTES);
		try {
			handlers.authorize((session.socket as tls.TLSSocket).getPeerCertificate());
			verdicts.set(session, 'ok');
		} catch (error) {
			verdicts.set(session, asDistroError(error));
		}
		session.on('error', () => session.destroy());
		session.on('close', watchPeer(session, { onSilent: () => session.destroy(), ...options.pings }));
	});
	server.on('stream', (stream, headers) => {
		const path = headers[':path'] ?? '';
		const call = new Call({ stream, path, observe: options.observe, idleMs });
		const verdict = stream.session === undefined ? undefined : verdicts.get(stream.session);
		if (verdict !== 'ok') call.fail(verdict ?? new DistroError('denied', 'not authorized'));
		else if (path === PUT_PATH) servePut(call, handlers);
		else if (path === GET_PATH) serveGet(call, handlers);
		else if (path === DELETE_PATH) {
			serveUnary(call, async (bytes) => {
				const { shardIds, forGood } = DeleteRequest.decode(bytes);
				await handlers.delete(
					shardIds.map((id) => idFromBytes<ShardId>(id)),
					{ forGood },
				);
				return DeleteResponse.encode({}).finish();
			});
		} else if (path === STAT_PATH) {
			serveUnary(call, async (bytes) => {
				const trailer = await handlers.stat(idFromBytes<ShardId>(StatRequest.decode(bytes).shardId));
				return StatResponse.encode({ trailer }).finish();
			});
		} else if (path === LIST_PATH) {
			serveUnary(call, async (bytes) => {
				const { after, limit } = ListRequest.decode(bytes);
				if (limit < 1 || limit > SHARD_LIST_MAX) throw new DistroError('invalid', `a list of ${limit} shards`);
				const listed = await handlers.list({ after: after.length === 0 ? null : idFromBytes<ShardId>(after), limit });
				const entries = listed.shards.map(({ shardId, writtenAtMs }) => ({ shardId: idBytes(shardId), writtenAtMs }));
				return ListResponse.encode({ entries, nowMs: listed.nowMs }).finish();
			});
		} else if (path === TRAILERS_PATH) {
			serveUnary(call, async (bytes) => {
				const { shardIds } = TrailersRequest.decode(bytes);
				if (shardIds.length < 1 || shardIds.length > TRAILERS_MAX) {
					throw new DistroError('invalid', `the trailers of ${shardIds.length} shards`);
				}
				const trailers = await handlers.trailers(shardIds.map((id) => idFromBytes<ShardId>(id)));
				const answers = trailers.map((trailer) =>
					typeof trailer === 'string' ? { trailer: Buffer.alloc(0), error: trailer } : { trailer, error: '' },
				);
				return TrailersResponse.encode({ answers }).finish();
			});
		} else if (path === AUDIT_PATH) {
			serveUnary(call, async (bytes) => {
				const { shardId, row, nonce, deadlineMs } = AuditRequest.decode(bytes);
				const question = { shardId: idFromBytes<ShardId>(shardId), row, nonce };
				const answer = await handlers.audit(question, { deadlineMs });
				return AuditResponse.encode({ ...answer, path: [...answer.path] }).finish();
			});
		} else if (path === WRITE_KEYS_PATH) {
			serveUnary(call, async (bytes) => {
				await handlers.writeKeys(Buffer.from(WriteKeysRequest.decode(bytes).record));
				return WriteKeysResponse.encode({}).finish();
			});
		} else if (path === READ_KEYS_PATH) {
			serveUnary(call, async () => ReadKeysResponse.encode({ record: await handlers.readKeys() }).finish());
		} else call.fail(new DistroError('unsupported', `no method ${path}`));
	});
	return server;
}

/** One call's life: headers once, status once. */
class Call {
	readonly stream: http2.ServerHttp2Stream;
	readonly idleMs: number;
	readonly #method: string;
	readonly #observe: ShardServerOptions['observe'];
	#over = false;

	constructor(o: {
		stream: http2.ServerHttp2Stream;
		path: string;
		observe: ShardServerOptions['observe'];
		idleMs: number;
	}) {
		const { stream, path, observe } = o;
		this.stream = stream;
		this.idleMs = o.idleMs;
		this.#method = path.slice(path.lastIndexOf('/') + 1);
		this.#observe = observe;
		stream.on('error', () => this.#finished('canceled'));
		stream.on('close', () => this.#finished('canceled'));
	}

	get over(): boolean {
		return this.#over;
	}

	/** Node throws where an answer goes to a stream that its peer has closed. */
	get #gone(): boolean {
		return this.stream.destroyed || this.stream.closed;
	}

	/** Sends the headers if they have not gone: "accepted". */
	respond(): void {
		if (this.#over || this.stream.headersSent || this.#gone) return;
		this.stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true });
		this.stream.on('wantTrailers', () => this.stream.sendTrailers({ 'grpc-status': '0' }));
	}

	/** Ends the call with one message or, without, after what was written. */
	ok(message?: Uint8Array): void {
		if (this.#over || this.#gone) return;
		this.respond();
		this.#finished('ok');
		if (message === undefined) this.stream.end();
		else this.stream.end(frame(message));
	}

	fail(error: DistroError): void {
		if (this.#over || this.#gone) return;
		this.#finished(error.kind);
		const trailers = {
			'grpc-status': String(grpcStatusOf(error.kind)),
			'grpc-message': encodeURIComponent(error.message),
			[KIND_METADATA_KEY]: error.kind,
		};
		const { stream } = this;
		// What the peer still sends is thrown away until it has heard. A reset now would overtake the reason on its way; and
		// before the trailers have gone node:http2 asks a closed stream for none, and its session spins for ever.
		stream.resume();
		const resetLater = () => {
			const reset = setTimeout(() => stream.close(http2.constants.NGHTTP2_NO_ERROR), RESET_AFTER_MS);
			reset.unref();
			stream.once('close', () => clearTimeout(reset));
		};
		if (stream.headersSent) {
			stream.removeAllListeners('wantTrailers');
			stream.on('wantTrailers', () => {
				stream.sendTrailers(trailers);
				resetLater();
			});
			stream.end();
		} else {
			stream.respond({ ':status': 200, 'content-type': 'application/grpc', ...trailers }, { endStream: true });
			resetLater();
		}
	}

	#finished(outcome: string): void {
		if (this.#over) return;
		this.#over = true;
		this.#observe?.(this.#method, outcome);
	}
}

function serveUnary(call: Call, answer: (request: Buffer) => Promise<Uint8Array>): void {
	const reader = new MessageReader(REQUEST_MAX_BYTES);
	call.stream.on('data', (chunk: Buffer) => {
		try {
			reader.push(chunk);
		} catch (error) {
			call.fail(asDistroError(error));
		}
	});
	call.stream.setTimeout(IDLE_TRANSFER_MS, () => call.fail(new DistroError('timeout', 'the call was idle')));
	call.stream.on('end', async () => {
		if (call.over) return;
		try {
			call.ok(await answer(reader.message() ?? Buffer.alloc(0)));
		} catch (error) {
			call.fail(asDistroError(error));
		}
	});
}

function servePut(call: Call, handlers: ShardHandlers): void {
	const { stream } = call;
	let shard: IncomingShard | null = null;
	let finishing = false;
	const fail = (error: DistroError) => {
		shard?.abort(error.message);
		call.fail(error);
	};
	const reader = new PartReader({
		streamedField: PUT_FIELD.cell,
		maxPartBytes: TRAILER_MAX_BYTES,
		events: {
			bytes: (chunk) => {
				madeYoungBuffers(chunk.length);
				if (shard === null) throw new DistroError('invalid', 'a cell before the header');
				if (finishing) throw new DistroError('invalid', 'a cell after the trailer');
				if (!shard.bytes(chunk)) stream.pause();
			},
			part: (field, payload) => {
				if (field === PUT_FIELD.header && shard === null) {
					const header = PutHeader.decode(payload);
					shard = handlers.put(
						{
							shardId: idFromBytes<ShardId>(header.shardId),
							cellBytes: header.cellBytes,
							maxBytes: header.maxBytes,
							deadlineMs: header.deadlineMs,
						},
						{ accepted: () => call.respond(), resume: () => stream.resume(), failed: (error) => fail(error) },
					);
				} else if (field === PUT_FIELD.trailer && shard !== null && !finishing) {
					finishing = true;
					shard.finish(payload).then(
						(receipt) => call.ok(PutResponse.encode(responseOf(receipt)).finish()),
						(error) => fail(asDistroError(error)),
					);
				} else throw new DistroError('invalid', 'parts of a put come as header, cells, trailer');
			},
		},
	});
	stream.on('data', (chunk: Buffer) => {
		if (call.over) return;
		try {
			reader.push(chunk);
		} catch (error) {
			fail(asDistroError(error));
		}
	});
	// A stream that was cancelled or whose sender was killed may end normally: only the trailer commits.
	stream.on('end', () => {
		if (!finishing && !call.over) fail(new DistroError('canceled', 'the stream ended before the trailer'));
	});
	stream.on('close', () => shard?.abort('the sender has left'));
	stream.setTimeout(call.idleMs, () => {
		if (!finishing && !call.over) fail(new DistroError('timeout', 'no byte came for too long'));
	});
}

function responseOf(receipt: Receipt): PutResponse {
	return {
		workerId: idBytes(receipt.workerId),
		shardId: idBytes(receipt.shardId),
		root: receipt.root,
		cellsBytes: receipt.cellsBytes,
		timeMs: receipt.timeMs,
		signature: receipt.signature,
	};
}

function serveGet(call: Call, handlers: ShardHandlers): void {
	const { stream } = call;
	const reader = new MessageReader(REQUEST_MAX_BYTES);
	const out: OutgoingShard = {
		leaves: (leaves) => {
			if (call.over || stream.destroyed) return;
			call.respond();
			stream.write(partPrefix(GET_FIELD.leaves, leaves.length));
			stream.write(leaves);
		},
		data: (bytes, sent) => {
			if (call.over || stream.destroyed) {
				process.nextTick(sent, false);
				return;
			}
			call.respond();
			let told = false;
			const tell = (alive: boolean) => {
				if (told) return;
				told = true;
				stream.off('close', onClose);
				sent(alive);
			};
			const onClose = () => tell(false);
			stream.once('close', onClose);
			stream.cork();
			stream.write(partPrefix(GET_FIELD.data, bytes.length));
			stream.write(bytes, (error) => tell(error === null || error === undefined));
			process.nextTick(uncork, stream);
		},
		end: () => call.ok(),
		fail: (error) => call.fail(error),
		onGone: () => {},
	};
	stream.on('close', () => out.onGone());
	// A reader that takes nothing for too long loses the buffers that are kept for it, the last ones as well.
	stream.setTimeout(call.idleMs, () => stream.close(http2.constants.NGHTTP2_CANCEL));
	stream.on('data', (chunk: Buffer) => {
		try {
			reader.push(chunk);
		} catch (error) {
			call.fail(asDistroError(error));
		}
	});
	stream.on('end', () => {
		if (call.over) return;
		try {
			const request = GetRequest.decode(reader.message() ?? Buffer.alloc(0));
			handlers.get(
				{
					shardId: idFromBytes<ShardId>(request.shardId),
					offset: request.offset,
					length: request.length,
					wantLeaves: request.wantLeaves,
				},
				out,
			);
		} catch (error) {
			call.fail(asDistroError(error));
		}
	});
}

function uncork(stream: http2.ServerHttp2Stream): void {
	stream.uncork();
}
