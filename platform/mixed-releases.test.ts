/** Processes of two releases on one wire, as while a cluster is upgraded: what one of them does not know it says, and goes on. */

import http2 from 'node:http2';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { idBytes, newId, type ShardId, type WorkerId } from '../core/ids.ts';
import { StatRequest, StatResponse } from '../proto/gen/distro/v1/shards.ts';
import { type TestAuthority, testAuthority } from '../test/support/authority.ts';
import { seededRandom } from '../test/support/clock.ts';
import { type ServedWorker, serveWorker, TestWorker } from '../test/support/shard-worker.ts';
import { GrpcShardTransport } from './shard-transport.ts';
import { frame, MessageReader, STAT_PATH } from './shard-wire.ts';
import type { TlsSource } from './tls.ts';

const random = seededRandom('mixed releases');
const workerId = newId<WorkerId>(random);
const shardId = newId<ShardId>(random);
const trailer = random.bytes(100);
let authority: TestAuthority;
let orchestrator: TlsSource;
let workerTls: TlsSource;
let served: ServedWorker;

beforeAll(async () => {
	authority = await testAuthority();
	orchestrator = await authority.tls('orchestrator', newId(random));
	workerTls = await authority.tls('worker', workerId);
	const worker = new TestWorker(workerId);
	worker.shards.set(shardId, { cells: Buffer.alloc(10), trailer, leaves: Buffer.alloc(32) });
	served = await serveWorker(worker, workerTls);
});
afterAll(async () => {
	await served?.close();
	authority.remove();
});

function connect(): http2.ClientHttp2Session {
	return http2.connect(`https://${served.ref.address}`, orchestrator.clientTlsOptions({ expectWorker: workerId }));
}

function call(session: http2.ClientHttp2Session, path: string, message: Uint8Array) {
	const headers = { ':method': 'POST', ':path': path, 'content-type': 'application/grpc', te: 'trailers' };
	const stream = session.request(headers);
	const reader = new MessageReader(10_000);
	let status: http2.IncomingHttpHeaders = {};
	const hear = (said: http2.IncomingHttpHeaders) => {
		status = { ...status, ...said };
	};
	stream.on('response', hear);
	stream.on('trailers', hear);
	stream.on('data', (chunk: Buffer) => reader.push(chunk));
	stream.end(frame(message));
	return new Promise<{ status: string | undefined; kind: unknown; message: Buffer | null }>((resolve, reject) => {
		stream.once('error', reject);
		stream.once('end', () => {
			const { 'grpc-status': code, 'distro-error-kind': kind } = status;
			resolve({ status: code as string | undefined, kind, message: reader.message() });
		});
	});
}

test('a worker that is asked for a method of a newer release says so, and answers the next call on that connection', async () => {
	const session = connect();
	const request = StatRequest.encode({ shardId: idBytes(shardId) }).finish();
	const unknown = await call(session, '/distro.v1.ShardService/OfTomorrow', request);
	expect(unknown).toEqual({ status: '12', kind: 'unsupported', message: null });
	const known = await call(session, STAT_PATH, request);
	expect(known.status).toBe('0');
	expect(StatResponse.decode(known.message as Buffer).trailer.equals(trailer)).toBe(true);
	session.close();
});

test('a request with a field of a newer release is answered as if it were not there', async () => {
	const session = connect();
	// Field 900, a number.
	const request = Buffer.concat([
		StatRequest.encode({ shardId: idBytes(shardId) }).finish(),
		Buffer.from('a03807', 'hex'),
	]);
	const answer = await call(session, STAT_PATH, request);
	expect(answer.status).toBe('0');
	expect(StatResponse.decode(answer.message as Buffer).trailer.equals(trailer)).toBe(true);
	session.close();
});

test('an orchestrator that asks a worker for what only newer ones know hears `unsupported`, also from a foreign gRPC server', async () => {
	const server = http2.createSecureServer({ ...workerTls.serverTlsOptions(), allowHTTP1: false });
	server.on('stream', (stream) => {
		stream.resume();
		stream.respond({ ':status': 200, 'content-type': 'application/grpc', 'grpc-status': '12' }, { endStream: true });
	});
	await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
	const transport = new GrpcShardTransport({ tls: orchestrator, connections: 1 });
	const ref = { workerId, address: `127.0.0.1:${(server.address() as AddressInfo).port}` };
	const asked = { timeoutMs: 5_000 };
	const unsupported = { kind: 'unsupported' };
	await expect(transport.list(ref, { after: null, limit: 10 }, asked)).rejects.toMatchObject(unsupported);
	await expect(transport.trailers(ref, [shardId], asked)).rejects.toMatchObject(unsupported);
	const question = { shardId, row: 0, nonce: random.bytes(32) };
	await expect(transport.audit(ref, question, { deadlineMs: 5_000 })).rejects.toMatchObject(unsupported);
	transport.close();
	server.close();
});
