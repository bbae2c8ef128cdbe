/** One shard stream each way over mTLS on loopback, both ends in one process, with nothing behind: what moving a byte costs. */

import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { DistroError } from '../core/errors.ts';
import { newId, type ShardId, type WorkerId } from '../core/ids.ts';
import { LARGE_CELL_BYTES } from '../core/limits.ts';
import type { WorkerRef } from '../core/ports.ts';
import { NODE_OPTIONS_OF } from '../hack/node-options.ts';
import { systemRandom } from '../platform/clock.ts';
import { createShardServer, type ShardHandlers } from '../platform/shard-server.ts';
import { GrpcShardTransport } from '../platform/shard-transport.ts';
import { testAuthority } from '../test/support/authority.ts';

const CELLS = 64;
const ROUNDS = 12;

/** CPU seconds per GB of each way, in a process of its own that is started as a worker is. */
export function measureStreams(): [string, number][] {
	const command = [...NODE_OPTIONS_OF.worker.flags, import.meta.filename];
	return JSON.parse(execFileSync(process.execPath, command, { encoding: 'utf8' }));
}

if (import.meta.main) process.stdout.write(JSON.stringify(await measure()));

async function measure(): Promise<[string, number][]> {
	const authority = await testAuthority();
	const workerId = newId<WorkerId>(systemRandom);
	const cell = systemRandom.bytes(LARGE_CELL_BYTES);
	const handlers: ShardHandlers = {
		authorize: () => {},
		put: (request, flow) => {
			setImmediate(flow.accepted);
			return {
				bytes: () => true,
				finish: async () => ({
					workerId,
					shardId: request.shardId,
					root: Buffer.alloc(32),
					cellsBytes: request.maxBytes,
					timeMs: 0,
					signature: Buffer.alloc(64),
				}),
				abort: () => {},
			};
		},
		get: (request, out) => {
			let restBytes = request.length;
			const more = () => {
				if (restBytes === 0) return out.end();
				restBytes -= cell.length;
				out.data(cell, more);
			};
			more();
		},
		delete: async () => {},
		stat: async () => Buffer.alloc(0),
		list: async () => ({ shards: [], nowMs: 0 }),
		trailers: async () => [],
		audit: () => Promise.reject(new DistroError('unsupported', 'not here')),
		writeKeys: async () => {},
		readKeys: () => Promise.reject(new DistroError('unsupported', 'not here')),
	};
	const server = createShardServer({
		tls: (await authority.tls('worker', workerId)).serverTlsOptions(),
		handlers,
	});
	server.listen(0, '127.0.0.1');
	await once(server, 'listening');
	const transport = new GrpcShardTransport({
		tls: await authority.tls('orchestrator', '1'.repeat(32)),
		connections: 1,
	});
	const worker: WorkerRef = { workerId, address: `127.0.0.1:${(server.address() as AddressInfo).port}` };
	try {
		return [
			['one shard stream out, both ends', await cpuPerGb(() => put(transport, worker, cell))],
			['one shard stream in, both ends', await cpuPerGb(() => get(transport, worker))],
		];
	} finally {
		transport.close();
		server.close();
		authority.remove();
	}
}

async function cpuPerGb(stream: () => Promise<void>): Promise<number> {
	for (let i = 0; i < 3; i++) await stream();
	const before = process.cpuUsage();
	for (let i = 0; i < ROUNDS; i++) await stream();
	const { user, system } = process.cpuUsage(before);
	return (user + system) / 1e6 / ((ROUNDS * CELLS * LARGE_CELL_BYTES) / 1e9);
}

function put(transport: GrpcShardTransport, worker: WorkerRef, cell: Buffer): Promise<void> {
	return new Promise((resolve, reject) => {
		const shard = transport.put(
			worker,
			{
				shardId: newId<ShardId>(systemRandom),
				cellBytes: cell.length,
				maxBytes: CELLS * cell.length,
				deadlineMs: 60_000,
			},
			{ accepted: () => {}, receipt: () => resolve(), failed: reject },
		);
		let sent = 0;
		// As an upload does: the next row goes when one before it has left.
		const more = () => {
			if (sent++ < CELLS) shard.write(cell, more);
			else if (sent === CELLS + 2) shard.finish(Buffer.alloc(100));
		};
		more();
		more();
	});
}

function get(transport: GrpcShardTransport, worker: WorkerRef): Promise<void> {
	return new Promise((resolve, reject) => {
		transport.get(
			worker,
			{
				shardId: newId<ShardId>(systemRandom),
				offset: 0,
				length: CELLS * LARGE_CELL_BYTES,
				wantLeaves: false,
			},
			{ leaves: () => {}, data: () => {}, end: resolve, failed: reject },
		);
	});
}
