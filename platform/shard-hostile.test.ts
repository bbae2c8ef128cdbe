/** Peers that mean harm, or are broken: whatever bytes they send ends one call, never this process and never without an answer. */

import { mkdtempSync, rmSync } from 'node:fs';
import http2 from 'node:http2';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { newId, type ShardId, type WorkerId } from '../core/ids.ts';
import { SMALL_CELL_BYTES } from '../core/limits.ts';
import { openAuthority } from '../hack/authority.ts';
import { PutResponse } from '../proto/gen/distro/v1/shards.ts';
import { seededRandom } from '../test/support/clock.ts';
import { GrpcShardTransport } from './shard-transport.ts';
import { frame } from './shard-wire.ts';
import { parseIdentity, TlsSource } from './tls.ts';

const random = seededRandom('hostile');
const workerId = newId<WorkerId>(random);
const folder = mkdtempSync(join(tmpdir(), 'distro-hostile-'));
let orchestrator: TlsSource;
let worker: TlsSource;

beforeAll(async () => {
	const authority = await openAuthority(join(folder, 'ca'));
	const issue = async (role: string, id: string) => {
		await authority.issue(join(folder, id), { role, id, hosts: ['127.0.0.1'] });
		return new TlsSource(join(folder, id));
	};
	orchestrator = await issue('orchestrator', newId(random));
	worker = await issue('worker', workerId);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

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

test('a name inside another name of a certificate is nobody', () => {
	const name = `URI:distro://${'a'.repeat(32)}/orchestrator/${'b'.repeat(32)}`;
	expect(parseIdentity(`DNS:localhost, ${name}`)).toMatchObject({ role: 'orchestrator' });
	// So node shows a DNS name that has a comma in it.
	expect(() => parseIdentity(`DNS:"x, ${name}, y"`)).toThrow(expect.objectContaining({ kind: 'denied' }));
});
