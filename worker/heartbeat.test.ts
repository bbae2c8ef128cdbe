/** A worker's heartbeat against a real gRPC server that behaves as a test tells it. */

import type { ServerDuplexStream } from '@grpc/grpc-js';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { ShardId } from '../core/ids.ts';
import { systemClock, systemRandom } from '../platform/clock.ts';
import { bindGrpcServer, createGrpcServer, grpcChannelCredentials } from '../platform/grpc.ts';
import {
	ClusterServiceService,
	type HeartbeatRequest,
	type HeartbeatResponse,
	type RegisterRequest,
} from '../proto/gen/distro/v1/cluster.ts';
import { type TestAuthority, testAuthority } from '../test/support/authority.ts';
import { type HeartbeatDeps, startHeartbeat } from './heartbeat.ts';
import type { ScrubOrders, ScrubReport } from './scrub.ts';

const registration: RegisterRequest = {
	name: 'worker-1',
	address: '127.0.0.1:1',
	zone: '',
	receiptKey: Buffer.alloc(32),
};
const stats = { bytesTotal: 100, bytesUsed: 10, bytesFree: 90, shards: 1 };
const answer: HeartbeatResponse = { acknowledgedShardIds: [], scrubPaused: false, scrubPass: 0, scrubRevision: 0 };
const DIGEST = Buffer.alloc(16, 7);
const nothingFound: ScrubReport = { findings: [], sinceMs: 0, pass: 0, shardsDone: 0, shardsTotal: 0, running: false };
let authority: TestAuthority;

beforeEach(async () => {
	authority = await testAuthority();
});
afterEach(() => authority.remove());

/** Calls `onStream` for each heartbeat stream; registers whoever asks. */
async function serve(
	onStream: (call: ServerDuplexStream<HeartbeatRequest, HeartbeatResponse>) => void,
	parts: Partial<Pick<HeartbeatDeps, 'stats' | 'scrub'>> = {},
) {
	const server = createGrpcServer();
	server.addService(ClusterServiceService, {
		register: (_call: unknown, answer: (error: null, response: object) => void) => answer(null, { heartbeatMs: 20 }),
		heartbeat: onStream,
	});
	const tls = await authority.tls('orchestrator', '1'.repeat(32));
	const port = await bindGrpcServer(server, { address: '127.0.0.1:0', tls });
	const workerTls = await authority.tls('worker', '2'.repeat(32));
	const heartbeat = startHeartbeat({
		orchestrators: [`127.0.0.1:${port}`],
		credentials: () => grpcChannelCredentials(workerTls),
		registration: () => registration,
		stats: async () => stats,
		keysDigest: async () => DIGEST,
		scrub: { report: () => nothingFound, heard: () => {} },
		...parts,
		clock: systemClock,
		random: systemRandom,
		answerTimeoutMs: 300,
		log: { info: () => {}, warn: () => {} },
	});
	return {
		heartbeat,
		close: async () => {
			await heartbeat.stop();
			server.forceShutdown();
		},
	};
}

test('a stream that nobody answers is opened anew, and one that is answered stays', async () => {
	let streams = 0;
	let beats = 0;
	const served = await serve((call) => {
		streams++;
		const deaf = streams === 1;
		call.on('data', () => {
			if (deaf) return;
			beats++;
			call.write(answer);
		});
		call.on('end', () => call.end());
		call.on('error', () => {});
	});
	await expect.poll(() => served.heartbeat.connected(), { timeout: 10_000 }).toBe(1);
	expect(streams).toBe(2);
	// Longer than a stream may go without an answer: 30 beats of 20 ms.
	await expect.poll(() => beats, { timeout: 10_000 }).toBeGreaterThan(30);
	expect(streams).toBe(2);
	await served.close();
});

test('one that is answered no more is opened anew', async () => {
	let streams = 0;
	const served = await serve((call) => {
		const answers = streams++ === 0 ? 3 : Number.POSITIVE_INFINITY;
		let answered = 0;
		call.on('data', () => {
			if (answered++ < answers) call.write(answer);
		});
		call.on('end', () => call.end());
		call.on('error', () => {});
	});
	await expect.poll(() => streams, { timeout: 10_000 }).toBe(2);
	await expect.poll(() => served.heartbeat.connected(), { timeout: 10_000 }).toBe(1);
	await served.close();
});

test('findings go with every beat until they are acknowledged, and orders come with the answers', async () => {
	const shardId = '5'.repeat(32) as ShardId;
	const beats: HeartbeatRequest[] = [];
	const heard: ScrubOrders[] = [];
	let acknowledged = false;
	let online = true;
	const report: ScrubReport = {
		findings: [{ shardId, kind: 'missing', detail: 'gone' }],
		sinceMs: 1_700_000_000_000,
		pass: 3,
		shardsDone: 5,
		shardsTotal: 9,
		running: true,
	};
	const served = await serve(
		(call) => {
			call.on('data', (beat: HeartbeatRequest) => {
				beats.push(beat);
				const ids = acknowledged ? beat.findings.map((finding) => finding.shardId) : [];
				call.write({ acknowledgedShardIds: ids, scrubPaused: true, scrubPass: 4, scrubRevision: 7 });
			});
			call.on('end', () => call.end());
			call.on('error', () => {});
		},
		{
			stats: async () => {
				if (!online) throw new Error('offline');
				return stats;
			},
			scrub: { report: () => report, heard: (orders) => heard.push(orders) },
		},
	);
	await expect.poll(() => beats.length, { timeout: 10_000 }).toBeGreaterThan(2);
	const [first, second] = beats;
	expect(first).toMatchObject({
		scrubbedSinceMs: 1_700_000_000_000,
		scrub: { pass: 3, shardsDone: 5, shardsTotal: 9, running: true },
		findings: [{ missing: true, detail: 'gone' }],
	});
	expect(DIGEST.equals(first?.keysDigest as Buffer)).toBe(true);
	expect(second?.findings).toEqual(first?.findings);
	expect(heard[0]).toEqual({ acknowledged: [], paused: true, pass: 4, revision: 7 });
	acknowledged = true;
	await expect.poll(() => heard.at(-1)?.acknowledged, { timeout: 10_000 }).toEqual([shardId]);
	// A volume that is gone proves nothing.
	online = false;
	await expect.poll(() => beats.at(-1)?.online, { timeout: 10_000 }).toBe(false);
	expect(beats.at(-1)?.findings).toEqual([]);
	expect(beats.at(-1)?.keysDigest).toHaveLength(0);
	await served.close();
});
