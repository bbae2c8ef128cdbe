/** A worker behind the real shard server, without a disk: keeps shards in a map and does what a test tells it. */

import { once } from 'node:events';
import type { Http2Session } from 'node:http2';
import type { AddressInfo, Socket } from 'node:net';
import type tls from 'node:tls';
import { DistroError, type ErrorKind } from '../../core/errors.ts';
import type { ShardId, WorkerId } from '../../core/ids.ts';
import type { AuditAnswer, AuditQuestion } from '../../core/model/audit.ts';
import type { Receipt } from '../../core/model/receipt.ts';
import type { ShardGetRequest, ShardList, ShardPutRequest, WorkerRef } from '../../core/ports.ts';
import {
	createShardServer,
	type IncomingShard,
	type OutgoingShard,
	type ShardHandlers,
} from '../../platform/shard-server.ts';
import { parseIdentity, type TlsSource } from '../../platform/tls.ts';

const PIECE_BYTES = 65_536;

export interface KeptShard {
	readonly cells: Buffer;
	readonly trailer: Buffer;
	/** What a Get with leaves sends. */
	readonly leaves: Buffer;
}

export class TestWorker implements ShardHandlers {
	readonly workerId: WorkerId;
	readonly shards = new Map<ShardId, KeptShard>();
	readonly requests: ShardPutRequest[] = [];
	readonly aborted: string[] = [];
	readonly outcomes: string[] = [];
	/** Bytes of puts that have come in, and of gets that were handed out. */
	bytesIn = 0;
	bytesOut = 0;
	/** Puts and gets under way. */
	open = 0;
	/** Refuses puts with this, before or after their bytes. */
	refuse: DistroError | null = null;
	refuseTrailer: DistroError | null = null;
	/** Breaks every put after this many bytes, as a disk does that is full. */
	fullAfterBytes = Number.POSITIVE_INFINITY;
	/** Takes no bytes until `take` is called. */
	holds = false;
	take = () => {};
	/** Every get stops after this many bytes. */
	stopAfterBytes = Number.POSITIVE_INFINITY;
	keys: Buffer | null = null;
	readonly audits: (AuditQuestion & { deadlineMs: number })[] = [];
	/** What an audit is answered. */
	audited: AuditAnswer | DistroError | Promise<AuditAnswer> = new DistroError('not_found', 'no such shard');

	constructor(workerId: WorkerId) {
		this.workerId = workerId;
	}

	authorize(peer: tls.PeerCertificate): void {
		if (parseIdentity(peer.subjectaltname).role !== 'orchestrator')
			throw new DistroError('denied', 'only orchestrators may call a worker');
	}

	put(
		request: ShardPutRequest,
		flow: { accepted(): void; resume(): void; failed(error: DistroError): void },
	): IncomingShard {
		this.requests.push(request);
		const pieces: Buffer[] = [];
		let over = false;
		const end = () => {
			if (over) return false;
			over = true;
			this.open--;
			return true;
		};
		this.open++;
		setImmediate(() => {
			if (this.refuse === null) flow.accepted();
			else if (end()) flow.failed(this.refuse);
		});
		return {
			bytes: (chunk) => {
				this.bytesIn += chunk.length;
				pieces.push(Buffer.from(chunk));
				this.take = () => flow.resume();
				if (this.bytesIn > this.fullAfterBytes && end())
					flow.failed(new DistroError('exhausted', 'the volume is full'));
				return !this.holds;
			},
			finish: async (trailer) => {
				end();
				if (this.refuseTrailer !== null) throw this.refuseTrailer;
				const cells = Buffer.concat(pieces);
				this.shards.set(request.shardId, { cells, trailer, leaves: trailer });
				return this.receipt(request.shardId, cells.length);
			},
			abort: (reason) => {
				if (end()) this.aborted.push(reason);
			},
		};
	}

	receipt(shardId: ShardId, cellsBytes: number): Receipt {
		return {
			workerId: this.workerId,
			shardId,
			root: Buffer.alloc(32, 1),
			cellsBytes,
			timeMs: 1_760_000_000_123,
			signature: Buffer.alloc(64, 2),
		};
	}

	get(request: ShardGetRequest, out: OutgoingShard): void {
		const shard = this.shards.get(request.shardId);
		if (shard === undefined) throw new DistroError('not_found', `there is no shard ${request.shardId}`);
		if (request.wantLeaves) out.leaves(shard.leaves);
		this.open++;
		let over = false;
		const end = () => {
			if (!over) this.open--;
			over = true;
		};
		out.onGone = end;
		let at = 0;
		const next = () => {
			if (at >= this.stopAfterBytes) return;
			// Where a shard is shorter than the range its bytes come again: one buffer serves ranges of any length.
			const from = (request.offset + at) % shard.cells.length;
			const piece = shard.cells.subarray(from, from + Math.min(PIECE_BYTES, request.length - at));
			at += piece.length;
			this.bytesOut += piece.length;
			out.data(piece, (alive) => {
				if (!alive || at === request.length) end();
				else next();
			});
			if (at === request.length) out.end();
		};
		next();
	}

	async delete(shardIds: readonly ShardId[]): Promise<void> {
		for (const shardId of shardIds) this.shards.delete(shardId);
	}

	async stat(shardId: ShardId): Promise<Buffer> {
		const shard = this.shards.get(shardId);
		if (shard === undefined) throw new DistroError('not_found', `there is no shard ${shardId}`);
		return shard.trailer;
	}

	async list({ after, limit }: { after: ShardId | null; limit: number }): Promise<ShardList> {
		const ids = [...this.shards.keys()].sort().filter((shardId) => after === null || shardId > after);
		const shards = ids.slice(0, limit).map((shardId, i) => ({ shardId, writtenAtMs: 1_760_000_000_000 + i }));
		return { shards, nowMs: 1_760_000_009_999 };
	}

	async trailers(shardIds: readonly ShardId[]): Promise<(Buffer | ErrorKind)[]> {
		return shardIds.map((shardId) => this.shards.get(shardId)?.trailer ?? 'not_found');
	}

	async audit(question: AuditQuestion, options: { deadlineMs: number }): Promise<AuditAnswer> {
		this.audits.push({ ...question, ...options });
		if (this.audited instanceof DistroError) throw this.audited;
		return this.audited;
	}

	async writeKeys(record: Buffer): Promise<void> {
		this.keys = record;
	}

	async readKeys(): Promise<Buffer> {
		if (this.keys === null) throw new DistroError('not_found', 'no keys yet');
		return this.keys;
	}
}

export interface ServedWorker {
	readonly ref: WorkerRef;
	/** Connections that are open now. */
	readonly sessions: ReadonlySet<Http2Session>;
	/** As a SIGKILL: every connection breaks. */
	breakOff(): void;
	close(): Promise<void>;
}

export async function serveWorker(
	worker: TestWorker,
	tlsSource: TlsSource,
	options: { idleMs?: number } = {},
): Promise<ServedWorker> {
	const server = createShardServer({
		tls: tlsSource.serverTlsOptions(),
		handlers: worker,
		...options,
		observe: (method, outcome) => worker.outcomes.push(`${method} ${outcome}`),
	});
	const sessions = new Set<Http2Session>();
	server.on('session', (session) => {
		sessions.add(session);
		session.once('close', () => sessions.delete(session));
	});
	server.listen(0, '127.0.0.1');
	await once(server, 'listening');
	const sockets = new Set<Socket>();
	server.on('connection', (socket: Socket) => {
		sockets.add(socket);
		socket.once('close', () => sockets.delete(socket));
	});
	const breakOff = () => {
		for (const socket of sockets) socket.destroy();
	};
	return {
		ref: { workerId: worker.workerId, address: `127.0.0.1:${(server.address() as AddressInfo).port}` },
		sessions,
		breakOff,
		close: async () => {
			const closed = once(server, 'close');
			server.close();
			for (const session of sessions) session.destroy();
			await closed;
		},
	};
}
