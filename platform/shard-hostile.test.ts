/** Peers that mean harm, are broken or refuse: what they send ends one call, never the process or the connection, and never without an answer. */

import http2 from 'node:http2';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { DistroError } from '../core/errors.ts';
import { newId, type ShardId, type WorkerId } from '../core/ids.ts';
import { SMALL_CELL_BYTES } from '../core/limits.ts';
import type { ShardGet } from '../core/ports.ts';
import { PutResponse } from '../proto/gen/distro/v1/shards.ts';
import { type TestAuthority, testAuthority } from '../test/support/authority.ts';
import { seededRandom } from '../test/support/clock.ts';
import { createShardServer, type OutgoingShard, type ShardHandlers } from './shard-server.ts';
import { GrpcShardTransport } from './shard-transport.ts';
import { frame } from './shard-wire.ts';
import { parseIdentity, type TlsSource } from './tls.ts';

const random = seededRandom('hostile');
const workerId = newId<WorkerId>(random);
let authority: TestAuthority;
let orchestrator: TlsSource;
let worker: TlsSource;

beforeAll(async () => {
	authority = await testAuthority();
	orchestrator = await authority.tls('orchestrator', newId(random));
	worker = await authority.tls('worker', workerId);
});
afterAll(() => authority.remove());

/** A worker that answers every call as it likes. */
async function hostileWorker(answer: (stream: http2.ServerHttp2Stream) => void) {
	const server = http2.createSecureServer({ ...worker.serverTlsOptions(), allowHTTP1: false });
	server.on('stream', (stream) => {
		stream.on('error', () => {});
		stream.resume();
		answer(stream);
	});
	await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
	const transport = new GrpcShardTransport({ tls: orchestrator, connections: 1 });
	const ref = { workerId, address: `127.0.0.1:${(server.address() as AddressInfo).port}` };
	return {
		transport,
		ref,
		close: () => {
			transport.close();
			server.close();
		},
	};
}

const GRPC = { ':status': 200, 'content-type': 'application/grpc' };

function receipt(change: Partial<PutResponse>): Buffer {
	const shardId = Buffer.alloc(16);
	const good = {
		workerId: shardId,
		shardId,
		root: Buffer.alloc(32),
		cellsBytes: 1,
		timeMs: 1,
		signature: Buffer.alloc(64),
	};
	return frame(PutResponse.encode({ ...good, ...change }).finish());
}

test.each<[string, (stream: http2.ServerHttp2Stream) => void]>([
	[
		'a status text that is not percent-encoded',
		(stream) => stream.respond({ ...GRPC, 'grpc-status': '13', 'grpc-message': '%zz%' }, { endStream: true }),
	],
	['a receipt with an id of five bytes', (stream) => withTrailers(stream, receipt({ workerId: Buffer.alloc(5) }))],
	['a receipt that is no message', (stream) => withTrailers(stream, frame(Buffer.alloc(40, 0xff)))],
	['no receipt', (stream) => withTrailers(stream, Buffer.alloc(0))],
	['another HTTP status, and nothing more', (stream) => stream.respond({ ':status': 500 })],
])('a worker that answers a put with %s fails that put', async (_, answer) => {
	const { transport, ref, close } = await hostileWorker(answer);
	const outcome = await new Promise<string>((resolve) => {
		const request = { shardId: newId<ShardId>(random), cellBytes: SMALL_CELL_BYTES, maxBytes: 1000, deadlineMs: 1000 };
		const put = transport.put(ref, request, {
			accepted: () => {},
			receipt: () => resolve('receipt'),
			failed: (error) => resolve(error.kind),
		});
		put.write(Buffer.alloc(1000), () => put.finish(Buffer.alloc(100)));
	});
	expect(outcome).toMatch(/^(unavailable|internal|corrupt|invalid)$/);
	close();
});

function withTrailers(stream: http2.ServerHttp2Stream, body: Buffer): void {
	stream.respond(GRPC, { waitForTrailers: true });
	stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }));
	stream.end(body);
}

const NOT_HERE: ShardHandlers = {
	authorize: () => {},
	put: () => {
		throw new DistroError('unsupported', 'not here');
	},
	get: () => {},
	delete: async () => {},
	stat: async () => Buffer.from('alive'),
	list: async () => ({ shards: [], nowMs: 0 }),
	trailers: async (shardIds) => shardIds.map(() => 'not_found' as const),
	audit: () => Promise.reject(new DistroError('unsupported', 'not here')),
	writeKeys: async () => {},
	readKeys: () => Promise.reject(new DistroError('unsupported', 'not here')),
};

/** Our own server with these handlers, and a client of it. */
async function server(handlers: Partial<ShardHandlers>, options: { idleMs?: number } = {}) {
	const listener = createShardServer({
		tls: worker.serverTlsOptions(),
		handlers: { ...NOT_HERE, ...handlers },
		...options,
	});
	await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve));
	const transport = new GrpcShardTransport({ tls: orchestrator, connections: 1 });
	const ref = { workerId, address: `127.0.0.1:${(listener.address() as AddressInfo).port}` };
	return {
		transport,
		ref,
		/** The connection still serves. */
		alive: async () => {
			const trailer = await transport.stat(ref, newId<ShardId>(random), { timeoutMs: 5_000 });
			expect(trailer.toString()).toBe('alive');
		},
		close: () => {
			transport.close();
			listener.close();
		},
	};
}

test('a put that is refused after it was accepted fails with its own kind, and the connection goes on', async () => {
	const s = await server({
		put: (_request, flow) => {
			setImmediate(() => flow.accepted());
			return {
				bytes: () => true,
				finish: async () => {
					throw new DistroError('corrupt', 'other leaves');
				},
				abort: () => {},
			};
		},
	});
	const error = await new Promise<DistroError>((failed) => {
		const request = {
			shardId: newId<ShardId>(random),
			cellBytes: SMALL_CELL_BYTES,
			maxBytes: 2000,
			deadlineMs: 60_000,
		};
		const put = s.transport.put(s.ref, request, {
			accepted: () => {
				put.write(Buffer.alloc(1000), () => {});
				put.finish(Buffer.alloc(1000));
			},
			receipt: () => {},
			failed,
		});
	});
	expect(error).toMatchObject({ kind: 'corrupt', message: 'other leaves' });
	await s.alive();
	s.close();
});

test('a get that fails half-way fails with its own kind, and the connection goes on', async () => {
	const s = await server({
		get: (_request, out) => out.data(Buffer.alloc(1000), () => out.fail(new DistroError('corrupt', 'too short'))),
	});
	const error = await new Promise<DistroError>((failed) => {
		const request = { shardId: newId<ShardId>(random), offset: 0, length: 2000, wantLeaves: false };
		s.transport.get(s.ref, request, { leaves: () => {}, data: () => {}, end: () => {}, failed });
	});
	expect(error).toMatchObject({ kind: 'corrupt', message: 'too short' });
	await s.alive();
	s.close();
});

test('a get that fails while its reader takes nothing waits for it, and the connection goes on', async () => {
	const length = 4 * 1024 * 1024;
	const s = await server({
		get: (_request, out) => {
			out.data(Buffer.alloc(length - 1), () => {});
			out.fail(new DistroError('corrupt', 'too short'));
		},
	});
	let get: ShardGet | null = null;
	const failed = new Promise<DistroError>((failedWith) => {
		const request = { shardId: newId<ShardId>(random), offset: 0, length, wantLeaves: false };
		const events = { leaves: () => {}, data: () => get?.pause(), end: () => {}, failed: failedWith };
		get = s.transport.get(s.ref, request, events);
	});
	// Longer than a refused peer is given to hear of it.
	await new Promise((resolve) => setTimeout(resolve, 2_500));
	await s.alive();
	const drain = setInterval(() => get?.resume(), 1);
	expect(await failed).toMatchObject({ kind: 'corrupt', message: 'too short' });
	clearInterval(drain);
	s.close();
});

test('a reader that takes nothing loses its buffers, be they the last ones, and the connection goes on', async () => {
	const length = 4 * 1024 * 1024;
	let get: ShardGet | null = null;
	let s: Awaited<ReturnType<typeof server>> | null = null;
	const alive = new Promise<boolean>((sent) => {
		const handlers = {
			get: (_request: unknown, out: OutgoingShard) => {
				out.data(Buffer.alloc(length), sent);
				out.end();
			},
		};
		server(handlers, { idleMs: 300 }).then((started) => {
			s = started;
			const request = { shardId: newId<ShardId>(random), offset: 0, length, wantLeaves: false };
			const events = { leaves: () => {}, data: () => get?.pause(), end: () => {}, failed: () => {} };
			get = started.transport.get(started.ref, request, events);
		});
	});
	expect(await alive).toBe(false);
	const started = s as Awaited<ReturnType<typeof server>> | null;
	await started?.alive();
	started?.close();
});

test('a name inside another name of a certificate is nobody', () => {
	const name = `URI:distro://${'a'.repeat(32)}/orchestrator/${'b'.repeat(32)}`;
	expect(parseIdentity(`DNS:localhost, ${name}`)).toMatchObject({ role: 'orchestrator' });
	// So node shows a DNS name that has a comma in it.
	expect(() => parseIdentity(`DNS:"x, ${name}, y"`)).toThrow(expect.objectContaining({ kind: 'denied' }));
});
