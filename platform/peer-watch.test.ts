/** A still put costs its sender nothing; a sender that is gone without a word loses it. */

import net, { type AddressInfo } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { newId, type ShardId, type WorkerId } from '../core/ids.ts';
import { SMALL_CELL_BYTES } from '../core/limits.ts';
import { type TestAuthority, testAuthority } from '../test/support/authority.ts';
import { seededRandom } from '../test/support/clock.ts';
import { createShardServer } from './shard-server.ts';
import { GrpcShardTransport } from './shard-transport.ts';
import type { TlsSource } from './tls.ts';

const random = seededRandom('peer watch');
const workerId = newId<WorkerId>(random);
const PING_MS = 50;
let authority: TestAuthority;
let orchestrator: TlsSource;
let worker: TlsSource;

beforeAll(async () => {
	authority = await testAuthority();
	orchestrator = await authority.tls('orchestrator', newId(random));
	worker = await authority.tls('worker', workerId);
});
afterAll(() => authority.remove());

test('an idle put lives as long as its sender answers, and no longer', async () => {
	let aborted = false;
	let pings = 0;
	const server = createShardServer({
		tls: worker.serverTlsOptions(),
		pings: { pingMs: PING_MS },
		handlers: {
			authorize: () => {},
			put: (_request, flow) => {
				setImmediate(() => flow.accepted());
				return {
					bytes: () => true,
					finish: () => Promise.reject(new Error('not here')),
					abort: () => {
						aborted = true;
					},
				};
			},
			get: () => {},
			delete: async () => {},
			stat: async () => Buffer.alloc(0),
			list: async () => ({ shards: [], nowMs: 0 }),
			trailers: async () => [],
			audit: () => Promise.reject(new Error('not here')),
			writeKeys: async () => {},
			readKeys: () => Promise.reject(new Error('not here')),
		},
	});
	server.on('session', (session) => {
		const ping = session.ping.bind(session);
		session.ping = ((...args: Parameters<typeof ping>) => {
			pings++;
			return ping(...args);
		}) as typeof session.ping;
	});
	await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
	const { port } = server.address() as AddressInfo;
	// Between the two stands what can freeze the connection without closing it.
	const sockets: net.Socket[] = [];
	const proxy = net.createServer((near) => {
		const far = net.connect(port, '127.0.0.1');
		sockets.push(near, far);
		for (const socket of [near, far]) socket.on('error', () => {});
		near.pipe(far).pipe(near);
	});
	await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
	const transport = new GrpcShardTransport({ tls: orchestrator, connections: 1 });
	const address = `127.0.0.1:${(proxy.address() as AddressInfo).port}`;
	await new Promise<void>((accepted, failed) => {
		transport.put(
			{ workerId, address },
			{ shardId: newId<ShardId>(random), cellBytes: SMALL_CELL_BYTES, maxBytes: 1000, deadlineMs: 60_000 },
			{ accepted, receipt: () => {}, failed },
		);
	});
	const before = pings;
	await expect.poll(() => pings).toBeGreaterThan(before + 5);
	expect(aborted).toBe(false);
	for (const socket of sockets) socket.unpipe().pause();
	await expect.poll(() => aborted).toBe(true);
	transport.close();
	for (const socket of sockets) socket.destroy();
	proxy.close();
	server.close();
});
