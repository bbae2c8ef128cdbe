/**
 * Shards over real mTLS connections on loopback: our client and our server, each of them with grpc-js as the other end,
 * strangers, broken connections, and readers and writers that stop.
 */

import { once } from 'node:events';
import http2 from 'node:http2';
import net, { type AddressInfo } from 'node:net';
import * as grpc from '@grpc/grpc-js';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { DistroError, type ErrorKind } from '../core/errors.ts';
import { idBytes, newId, type ShardId, type WorkerId } from '../core/ids.ts';
import { LARGE_CELL_BYTES, SHARD_LIST_MAX, SMALL_CELL_BYTES } from '../core/limits.ts';
import type { Receipt } from '../core/model/receipt.ts';
import type { ShardGet, ShardList, ShardPut, WorkerRef } from '../core/ports.ts';
import {
	type GetResponse,
	type PutRequest,
	type PutResponse,
	ShardServiceClient,
	ShardServiceService,
} from '../proto/gen/distro/v1/shards.ts';
import { type TestAuthority, testAuthority } from '../test/support/authority.ts';
import { seededRandom } from '../test/support/clock.ts';
import { until } from '../test/support/cluster.ts';
import { type ServedWorker, serveWorker, TestWorker } from '../test/support/shard-worker.ts';
import { errorFromServiceError, toServiceError } from './rpc-errors.ts';
import { GrpcShardTransport } from './shard-transport.ts';
import { PUT_PATH } from './shard-wire.ts';
import { parseIdentity, type TlsSource } from './tls.ts';

const random = seededRandom('shard transport');
const MiB = 1024 * 1024;
/** More than this may not be under way to or from an end that has stopped: windows, and what the system keeps. */
const UNDER_WAY_BYTES = 6 * MiB;

const workerId = newId<WorkerId>(random);
const orchestratorId = newId<WorkerId>(random);

let authority: TestAuthority;
let orchestratorTls: TlsSource;
let workerTls: TlsSource;
let worker: TestWorker;
let served: ServedWorker;
let transport: GrpcShardTransport;

beforeAll(async () => {
	authority = await testAuthority();
	orchestratorTls = await authority.tls('orchestrator', orchestratorId);
	workerTls = await authority.tls('worker', workerId);
});
afterAll(() => authority.remove());

beforeEach(async () => {
	worker = new TestWorker(workerId);
	served = await serveWorker(worker, workerTls);
	transport = new GrpcShardTransport({ tls: orchestratorTls, connections: 2 });
});
afterEach(async () => {
	transport.close();
	await served.close();
});

/** One put, and all that was heard of it. */
class Putting {
	readonly shardId = newId<ShardId>(random);
	readonly put: ShardPut;
	readonly outcome: Promise<Receipt | DistroError>;
	accepted = 0;
	outcomes = 0;
	written = 0;
	done = 0;
	doneBytes = 0;

	constructor(options: { ref?: WorkerRef; by?: GrpcShardTransport; maxBytes?: number } = {}) {
		const { ref = served.ref, by = transport, maxBytes = 64 * MiB } = options;
		let settle: (outcome: Receipt | DistroError) => void = () => {};
		this.outcome = new Promise((resolve) => {
			settle = resolve;
		});
		const hear = (outcome: Receipt | DistroError) => {
			this.outcomes++;
			settle(outcome);
		};
		this.put = by.put(
			ref,
			{ shardId: this.shardId, cellBytes: SMALL_CELL_BYTES, maxBytes, deadlineMs: 12_345 },
			{
				accepted: () => {
					this.accepted++;
				},
				receipt: hear,
				failed: hear,
			},
		);
	}

	write(cell: Buffer): Promise<void> {
		this.written++;
		return new Promise((resolve) => {
			this.put.write(cell, () => {
				this.done++;
				this.doneBytes += cell.length;
				resolve();
			});
		});
	}

	async failure(): Promise<DistroError> {
		const outcome = await this.outcome;
		if (!(outcome instanceof DistroError)) throw new Error('the put went through');
		return outcome;
	}
}

/** One get, and all that was heard of it. */
class Getting {
	readonly get: ShardGet;
	readonly outcome: Promise<'end' | DistroError>;
	outcomes = 0;
	bytes = 0;
	leaves: Buffer | null = null;
	readonly chunks: Buffer[] = [];

	constructor(
		shardId: ShardId,
		options: {
			ref?: WorkerRef;
			by?: GrpcShardTransport;
			offset?: number;
			length: number;
			wantLeaves?: boolean;
			onData?: (got: Getting) => void;
		},
	) {
		const { ref = served.ref, by = transport, offset = 0, length, wantLeaves = false } = options;
		let settle: (outcome: 'end' | DistroError) => void = () => {};
		this.outcome = new Promise((resolve) => {
			settle = resolve;
		});
		const hear = (outcome: 'end' | DistroError) => {
			this.outcomes++;
			settle(outcome);
		};
		this.get = by.get(
			ref,
			{ shardId, offset, length, wantLeaves },
			{
				leaves: (leaves) => {
					expect(this.bytes).toBe(0);
					this.leaves = leaves;
				},
				data: (chunk) => {
					this.bytes += chunk.length;
					if (length < 4 * MiB) this.chunks.push(Buffer.from(chunk));
					options.onData?.(this);
				},
				end: () => hear('end'),
				failed: hear,
			},
		);
	}

	get all(): Buffer {
		return Buffer.concat(this.chunks);
	}

	async failure(): Promise<DistroError> {
		const outcome = await this.outcome;
		if (outcome === 'end') throw new Error('the get went through');
		return outcome;
	}
}

function keep(cellsBytes: number): { shardId: ShardId; cells: Buffer; leaves: Buffer } {
	const shardId = newId<ShardId>(random);
	const shard = { cells: random.bytes(cellsBytes), trailer: random.bytes(500), leaves: random.bytes(64) };
	worker.shards.set(shardId, shard);
	return { shardId, ...shard };
}

/** Waits until a figure that grows has stopped growing. */
async function standsStill(figure: () => number): Promise<number> {
	let last = -1;
	let same = 0;
	await until(
		() => {
			same = figure() === last ? same + 1 : 0;
			last = figure();
			return same >= 8;
		},
		{ what: 'a figure to stand still' },
	);
	return last;
}

describe('put', () => {
	test('cells arrive in order, whole, and the receipt comes back', async () => {
		const putting = new Putting();
		const cells = [0, 1, 2, 3].map((i) => random.bytes(SMALL_CELL_BYTES - i));
		const dones = cells.map((cell) => putting.write(cell));
		const trailer = random.bytes(600);
		putting.put.finish(trailer);
		const all = Buffer.concat(cells);
		expect(await putting.outcome).toEqual(worker.receipt(putting.shardId, all.length));
		await Promise.all(dones);
		expect(worker.requests).toEqual([
			{ shardId: putting.shardId, cellBytes: SMALL_CELL_BYTES, maxBytes: 64 * MiB, deadlineMs: 12_345 },
		]);
		expect(worker.shards.get(putting.shardId)?.cells.equals(all)).toBe(true);
		expect(worker.shards.get(putting.shardId)?.trailer.equals(trailer)).toBe(true);
		expect(putting.accepted).toBe(1);
		putting.put.abort('too late to matter');
		expect(worker.aborted).toEqual([]);
		expect(putting.outcomes).toBe(1);
	});

	const kinds: ErrorKind[] = ['exhausted', 'exists', 'unavailable', 'expired', 'corrupt', 'internal'];
	test.each(kinds)('refused at once as %s: the kind and the sentence arrive, every write is let go', async (kind) => {
		worker.refuse = new DistroError(kind, 'bücher % 100 %zz: “no”\nroom');
		const putting = new Putting();
		const dones = [1, 2, 3].map(() => putting.write(random.bytes(SMALL_CELL_BYTES)));
		const error = await putting.failure();
		expect(error).toMatchObject({ kind, message: worker.refuse.message });
		await Promise.all(dones);
		await putting.write(random.bytes(10));
		putting.put.finish(random.bytes(10));
		expect(putting).toMatchObject({ accepted: 0, outcomes: 1, written: 4, done: 4 });
		expect(worker.shards.size).toBe(0);
	});

	test('refused at the end, after it was accepted: the kind arrives', async () => {
		worker.refuseTrailer = new DistroError('corrupt', 'other leaves than the bytes that came');
		const putting = new Putting();
		await putting.write(random.bytes(SMALL_CELL_BYTES));
		await until(() => putting.accepted === 1, { what: 'acceptance' });
		putting.put.finish(random.bytes(100));
		expect(await putting.failure()).toMatchObject({ kind: 'corrupt', message: worker.refuseTrailer.message });
		expect(worker.outcomes).toEqual(['Put corrupt']);
	});

	test('a disk that is full half-way: the kind arrives, every write is let go', async () => {
		worker.fullAfterBytes = 5 * SMALL_CELL_BYTES;
		const putting = new Putting();
		const dones = Array.from({ length: 100 }, () => putting.write(Buffer.alloc(SMALL_CELL_BYTES)));
		expect(await putting.failure()).toMatchObject({ kind: 'exhausted', message: 'the volume is full' });
		await Promise.all(dones);
		expect(putting).toMatchObject({ accepted: 1, outcomes: 1, done: 100 });
		expect(worker.outcomes).toEqual(['Put exhausted']);
	});

	test('a disk that is full half-way, when all has been written and the end as well: the same', async () => {
		// A stream let go without a reset while its end still waited made node:http2 spin for ever in this process.
		worker.fullAfterBytes = 3 * SMALL_CELL_BYTES;
		for (let i = 0; i < 20; i++) {
			worker.bytesIn = 0;
			const putting = new Putting();
			const dones = Array.from({ length: 12 }, () => putting.write(Buffer.alloc(SMALL_CELL_BYTES)));
			putting.put.finish(random.bytes(100));
			expect(await putting.failure()).toMatchObject({ kind: 'exhausted' });
			await Promise.all(dones);
		}
	});

	test('given up half-way: never a commit, and the worker lets go', async () => {
		const putting = new Putting();
		await putting.write(random.bytes(SMALL_CELL_BYTES));
		await until(() => worker.bytesIn === SMALL_CELL_BYTES, { what: 'the first cell' });
		putting.put.abort('the client has left');
		putting.put.abort('twice');
		putting.put.finish(random.bytes(100));
		await until(() => worker.open === 0, { what: 'the worker to let go' });
		await putting.write(random.bytes(10));
		expect(worker.aborted).toHaveLength(1);
		expect(worker.shards.size).toBe(0);
		expect(putting.outcomes).toBe(0);
	});

	test('given up before the connection stands: every write is let go, nothing is put', async () => {
		const putting = new Putting();
		const done = putting.write(random.bytes(SMALL_CELL_BYTES));
		putting.put.abort('at once');
		await done;
		await until(() => worker.open === 0, { what: 'the worker to let go' });
		expect(worker.shards.size).toBe(0);
		expect(putting.outcomes).toBe(0);
	});

	test('the sender’s process is gone: never a commit', async () => {
		const putting = new Putting();
		await putting.write(random.bytes(SMALL_CELL_BYTES));
		await until(() => worker.bytesIn === SMALL_CELL_BYTES, { what: 'the first cell' });
		transport.close();
		await until(() => worker.open === 0, { what: 'the worker to let go' });
		expect(worker.shards.size).toBe(0);
		expect((await putting.failure()).kind).toBe('unavailable');
		expect(() => new Putting()).toThrow(expect.objectContaining({ kind: 'canceled' }));
	});

	test('a worker that takes nothing stops the sender, and both go on afterwards', async () => {
		worker.holds = true;
		const putting = new Putting();
		const cell = Buffer.alloc(SMALL_CELL_BYTES, 7);
		const cells = 400;
		// As scatter does: the next cells go when the ones before are let go.
		const sending = (async () => {
			for (let i = 0; i < cells; i += 4) await Promise.all([0, 1, 2, 3].map(() => putting.write(cell)));
		})();
		await until(() => worker.bytesIn > 0, { what: 'the first bytes' });
		const stoppedBytes = await standsStill(() => putting.doneBytes);
		expect(stoppedBytes).toBeLessThan(UNDER_WAY_BYTES);
		expect(worker.bytesIn).toBeLessThan(UNDER_WAY_BYTES);
		worker.holds = false;
		worker.take();
		await sending;
		putting.put.finish(random.bytes(100));
		expect(await putting.outcome).toMatchObject({ cellsBytes: cells * cell.length });
	});

	test('a worker that dies: failed once, every write is let go', async () => {
		worker.holds = true;
		const putting = new Putting();
		const dones = Array.from({ length: 20 }, () => putting.write(Buffer.alloc(SMALL_CELL_BYTES)));
		await until(() => worker.bytesIn > 0, { what: 'the first bytes' });
		served.breakOff();
		expect((await putting.failure()).kind).toBe('unavailable');
		await Promise.all(dones);
		expect(putting).toMatchObject({ outcomes: 1, done: 20 });
		await until(() => worker.open === 0, { what: 'the worker to let go' });
	});
});

describe('get', () => {
	test('ranges with and without leaves', async () => {
		const { shardId, cells, leaves } = keep(300_000);
		const whole = new Getting(shardId, { length: cells.length, wantLeaves: true });
		expect(await whole.outcome).toBe('end');
		expect(whole.leaves?.equals(leaves)).toBe(true);
		expect(whole.all.equals(cells)).toBe(true);
		const range = new Getting(shardId, { offset: 70_001, length: 100_003 });
		expect(await range.outcome).toBe('end');
		expect(range.leaves).toBeNull();
		expect(range.all.equals(cells.subarray(70_001, 170_004))).toBe(true);
		range.get.abort('over already');
		await until(() => worker.open === 0, { what: 'the worker to be done' });
		expect(worker.outcomes).toEqual(['Get ok', 'Get ok']);
	});

	test('an unknown shard is not found', async () => {
		const getting = new Getting(newId<ShardId>(random), { length: 1 });
		expect((await getting.failure()).kind).toBe('not_found');
		expect(getting.outcomes).toBe(1);
	});

	test('a refusal arrives on a busy connection as well', async () => {
		const { shardId } = keep(65_536);
		const one = new GrpcShardTransport({ tls: orchestratorTls, connections: 1 });
		const busy = new Getting(shardId, { by: one, length: 64 * MiB });
		await until(() => busy.bytes > 0, { what: 'the first bytes' });
		const kinds = new Set<ErrorKind>();
		for (let round = 0; round < 40; round++) {
			const asked = Array.from({ length: 10 }, () => new Getting(newId<ShardId>(random), { by: one, length: 1 }));
			for (const getting of asked) kinds.add((await getting.failure()).kind);
		}
		expect([...kinds]).toEqual(['not_found']);
		busy.get.abort('enough');
		await until(() => worker.open === 0, { what: 'the worker to let go' });
		one.close();
	});

	test.each([
		['with more to come', 48 * MiB],
		['with all handed over', 900_000],
	])('a reader that takes nothing for too long, %s: the worker lets go', async (_when, length) => {
		const impatient = await serveWorker(worker, workerTls, { idleMs: 100 });
		const { shardId } = keep(1_000_000);
		worker.get = (request, out) => {
			worker.open++;
			out.data(worker.shards.get(shardId)?.cells.subarray(0, request.length) as Buffer, () => {
				worker.open--;
			});
			if (request.length < MiB) out.end();
		};
		const getting = new Getting(shardId, { ref: impatient.ref, length, onData: (got) => got.get.pause() });
		await until(() => getting.bytes > 0, { what: 'the first bytes' });
		await until(() => worker.open === 0, { what: 'the worker to let go' });
		getting.get.resume();
		expect((await getting.failure()).kind).toBe('unavailable');
		await impatient.close();
	});

	test('a worker that ends early, and one that sends too much, are corrupt', async () => {
		const { shardId } = keep(100_000);
		const honest = worker.get.bind(worker);
		worker.get = (request, out) => honest({ ...request, length: request.length - 1 }, out);
		expect((await new Getting(shardId, { length: 50_000 }).failure()).kind).toBe('corrupt');
		worker.get = (request, out) => honest({ ...request, length: request.length + 1 }, out);
		expect((await new Getting(shardId, { length: 50_000 }).failure()).kind).toBe('corrupt');
	});

	test('a worker that fails half-way: its kind arrives behind the bytes', async () => {
		const { shardId } = keep(100_000);
		worker.get = (_request, out) => {
			out.data(Buffer.alloc(1_000), () => out.fail(new DistroError('corrupt', 'shorter than it must be')));
		};
		const getting = new Getting(shardId, { length: 50_000 });
		expect(await getting.failure()).toMatchObject({ kind: 'corrupt', message: 'shorter than it must be' });
		expect(getting.bytes).toBe(1_000);
	});

	test('a worker that dies half-way: failed once, and the next get dials again', async () => {
		const { shardId, cells } = keep(300_000);
		worker.stopAfterBytes = 100_000;
		const getting = new Getting(shardId, { length: cells.length });
		await until(() => getting.bytes >= 100_000, { what: 'the first bytes' });
		served.breakOff();
		expect((await getting.failure()).kind).toBe('unavailable');
		expect(getting.outcomes).toBe(1);
		worker.stopAfterBytes = Number.POSITIVE_INFINITY;
		const again = new Getting(shardId, { length: cells.length });
		expect(await again.outcome).toBe('end');
		expect(again.all.equals(cells)).toBe(true);
	});

	test('a reader that pauses stops the sender, and reads on afterwards', async () => {
		const { shardId } = keep(65_536);
		const length = 48 * MiB;
		const getting = new Getting(shardId, {
			length,
			onData: (got) => {
				if (got.bytes < 100_000) got.get.pause();
			},
		});
		await until(() => getting.bytes > 0, { what: 'the first bytes' });
		const stoppedBytes = await standsStill(() => worker.bytesOut);
		expect(stoppedBytes).toBeLessThan(UNDER_WAY_BYTES);
		expect(getting.bytes).toBeLessThan(100_000);
		// The rest of the connection is not held up by it.
		const other = keep(500_000);
		const beside = new Getting(other.shardId, { length: 500_000 });
		expect(await beside.outcome).toBe('end');
		const resume = setInterval(() => getting.get.resume(), 1);
		expect(await getting.outcome).toBe('end');
		clearInterval(resume);
		expect(getting.bytes).toBe(length);
	});

	test('given up half-way: no event follows, and the worker lets go of its buffer', async () => {
		const { shardId } = keep(65_536);
		const getting = new Getting(shardId, {
			length: 48 * MiB,
			onData: (got) => {
				if (got.bytes > 1_000_000) got.get.abort('enough');
			},
		});
		await until(() => worker.bytesOut > 0 && worker.open === 0, { what: 'the worker to let go' });
		expect(worker.bytesOut).toBeLessThan(48 * MiB);
		expect(getting.outcomes).toBe(0);
		expect(await standsStill(() => getting.bytes)).toBeLessThan(3 * MiB);
	});

	test('given up while paused: the worker lets go as well', async () => {
		const { shardId } = keep(65_536);
		const getting = new Getting(shardId, { length: 48 * MiB, onData: (got) => got.get.pause() });
		await until(() => getting.bytes > 0, { what: 'the first bytes' });
		await standsStill(() => worker.bytesOut);
		getting.get.abort('the client has left');
		await until(() => worker.open === 0, { what: 'the worker to let go' });
		expect(getting.outcomes).toBe(0);
	});
});

describe('delete and stat', () => {
	test('reach the worker, and answers and errors come back', async () => {
		const [one, two, three] = [keep(10), keep(10), keep(10)];
		expect(await transport.stat(served.ref, one.shardId, { timeoutMs: 5_000 })).toEqual(
			worker.shards.get(one.shardId)?.trailer,
		);
		await transport.delete(served.ref, [one.shardId, two.shardId], { timeoutMs: 5_000 });
		expect([...worker.shards.keys()]).toEqual([three.shardId]);
		await expect(transport.stat(served.ref, one.shardId, { timeoutMs: 5_000 })).rejects.toEqual(
			expect.objectContaining({ kind: 'not_found' }),
		);
		worker.stat = () => Promise.reject(new Error('a secret of the worker’s insides'));
		await expect(transport.stat(served.ref, three.shardId, { timeoutMs: 5_000 })).rejects.toEqual(
			expect.objectContaining({ kind: 'internal' }),
		);
	});

	test('a worker that does not answer: timeout', async () => {
		worker.stat = () => new Promise(() => {});
		await expect(transport.stat(served.ref, newId<ShardId>(random), { timeoutMs: 50 })).rejects.toEqual(
			expect.objectContaining({ kind: 'timeout' }),
		);
	});
});

describe('list and trailers', () => {
	const asked = { timeoutMs: 5_000 };

	test('the list comes page by page, with the times and the worker’s own', async () => {
		const ids = Array.from({ length: 5 }, () => keep(10).shardId).sort();
		const first = await transport.list(served.ref, { after: null, limit: 3 }, asked);
		expect(first).toEqual(await worker.list({ after: null, limit: 3 }));
		const second = await transport.list(served.ref, { after: ids[2] as ShardId, limit: 3 }, asked);
		expect([...first.shards, ...second.shards].map(({ shardId }) => shardId)).toEqual(ids);
		expect(await transport.list(served.ref, { after: ids[4] as ShardId, limit: 3 }, asked)).toMatchObject({
			shards: [],
		});
		worker.list = () => Promise.reject(new DistroError('unavailable', 'the volume is offline'));
		await expect(transport.list(served.ref, { after: null, limit: 3 }, asked)).rejects.toMatchObject({
			kind: 'unavailable',
		});
	});

	test('a whole page fits into an answer', async () => {
		const shards = Array.from({ length: SHARD_LIST_MAX }, (_, i) => ({
			shardId: i.toString(16).padStart(32, '0') as ShardId,
			writtenAtMs: Number.MAX_SAFE_INTEGER,
		}));
		worker.list = async () => ({ shards, nowMs: 1 });
		const listed = await transport.list(served.ref, { after: null, limit: SHARD_LIST_MAX }, asked);
		expect(listed.shards).toEqual(shards);
	});

	test('limits that make no sense are refused, and so are lists', async () => {
		for (const limit of [0, SHARD_LIST_MAX + 1]) {
			await expect(transport.list(served.ref, { after: null, limit }, asked)).rejects.toMatchObject({
				kind: 'invalid',
			});
		}
		const [a, b, c] = ['a', 'b', 'c'].map((digit) => ({ shardId: digit.repeat(32) as ShardId, writtenAtMs: 1 }));
		const page = { after: null, limit: 2 };
		for (const shards of [
			[b, a],
			[a, a],
			[a, b, c],
		]) {
			worker.list = async () => ({ shards, nowMs: 1 }) as ShardList;
			await expect(transport.list(served.ref, page, asked)).rejects.toMatchObject({ kind: 'corrupt' });
		}
		worker.list = async () => ({ shards: [a, b], nowMs: 1 }) as ShardList;
		const after = { after: 'a'.repeat(32) as ShardId, limit: 2 };
		await expect(transport.list(served.ref, after, asked)).rejects.toMatchObject({ kind: 'corrupt' });
	});

	test('trailers come in order, with the kind of error of each that is none', async () => {
		const [one, two] = [keep(10), keep(10)];
		const unknown = newId<ShardId>(random);
		const trailers = await transport.trailers(served.ref, [two.shardId, unknown, one.shardId], asked);
		const expected = [two, null, one].map((kept) =>
			kept === null ? 'not_found' : worker.shards.get(kept.shardId)?.trailer,
		);
		expect(trailers).toEqual(expected);
		worker.trailers = async () => ['what is that' as ErrorKind];
		expect(await transport.trailers(served.ref, [unknown, one.shardId], asked)).toEqual(['unavailable']);
		worker.trailers = async () => [];
		await expect(transport.trailers(served.ref, [unknown], asked)).rejects.toMatchObject({ kind: 'corrupt' });
		await expect(transport.trailers(served.ref, [], asked)).rejects.toMatchObject({ kind: 'invalid' });
	});
});

describe('audits', () => {
	const question = () => ({ shardId: newId<ShardId>(random), row: 70_000, nonce: random.bytes(32) });
	const answer = {
		cell: random.bytes(LARGE_CELL_BYTES),
		path: Array.from({ length: 8 }, () => random.bytes(32)),
		leaves: 256,
		signature: random.bytes(64),
	};

	test('question and answer arrive as they were, errors as well', async () => {
		worker.audited = answer;
		const asked = question();
		expect(await transport.audit(served.ref, asked, { deadlineMs: 5_000 })).toEqual(answer);
		expect(worker.audits).toEqual([{ ...asked, deadlineMs: 5_000 }]);
		worker.audited = { ...answer, path: [], cell: random.bytes(16) };
		expect(await transport.audit(served.ref, question(), { deadlineMs: 5_000 })).toEqual(worker.audited);
		for (const kind of ['not_found', 'corrupt', 'unavailable', 'timeout'] as const) {
			worker.audited = new DistroError(kind, 'so it is');
			await expect(transport.audit(served.ref, question(), { deadlineMs: 5_000 })).rejects.toMatchObject({ kind });
		}
	});

	test('a worker that does not answer: timeout, and so does one that drips', async () => {
		worker.audited = new Promise(() => {});
		await expect(transport.audit(served.ref, question(), { deadlineMs: 50 })).rejects.toMatchObject({
			kind: 'timeout',
		});
		const server = http2.createSecureServer({ ...workerTls.serverTlsOptions(), requestCert: true });
		const drips: NodeJS.Timeout[] = [];
		server.on('stream', (stream) => {
			stream.on('error', () => {});
			stream.respond({ ':status': 200, 'content-type': 'application/grpc' });
			drips.push(setInterval(() => stream.write(Buffer.alloc(1)), 10));
		});
		server.listen(0, '127.0.0.1');
		await once(server, 'listening');
		const ref = { workerId, address: `127.0.0.1:${(server.address() as AddressInfo).port}` };
		await expect(transport.audit(ref, question(), { deadlineMs: 200 })).rejects.toMatchObject({ kind: 'timeout' });
		for (const drip of drips) clearInterval(drip);
		transport.close();
		server.close();
	});
});

describe('connections', () => {
	test('several at once are used, up to the limit, and then shared', async () => {
		const { shardId, cells } = keep(200_000);
		worker.stopAfterBytes = 1;
		const getting = [1, 2, 3, 4, 5].map(() => new Getting(shardId, { length: cells.length }));
		await until(() => getting.every(({ bytes }) => bytes > 0), { what: 'all gets' });
		expect(served.sessions.size).toBe(2);
		for (const { get } of getting) get.abort('enough');
		await until(() => worker.open === 0, { what: 'the worker to let go' });
		worker.stopAfterBytes = Number.POSITIVE_INFINITY;
		expect(await new Getting(shardId, { length: cells.length }).outcome).toBe('end');
		expect(served.sessions.size).toBe(2);
	});

	test('one that breaks is replaced, whoever notices first', async () => {
		const { shardId } = keep(1_000);
		for (let round = 0; round < 5; round++) {
			expect(await new Getting(shardId, { length: 1_000 }).outcome).toBe('end');
			served.breakOff();
			await until(() => served.sessions.size === 0, { what: 'the sessions to go' });
		}
	});

	test('nobody listens: unavailable, soon', async () => {
		const { ref } = served;
		await served.close();
		expect((await new Getting(newId<ShardId>(random), { length: 1 }).failure()).kind).toBe('unavailable');
		const putting = new Putting();
		await putting.write(random.bytes(1_000));
		expect((await putting.failure()).kind).toBe('unavailable');
		await expect(transport.stat(ref, newId<ShardId>(random), { timeoutMs: 5_000 })).rejects.toEqual(
			expect.objectContaining({ kind: 'unavailable' }),
		);
		served = await serveWorker(worker, workerTls);
	});
});

describe('strangers', () => {
	let foreign: TestAuthority;
	beforeAll(async () => {
		foreign = await testAuthority();
	});
	afterAll(() => foreign.remove());

	const asked = async (tls: TlsSource, ref = served.ref): Promise<DistroError> => {
		const other = new GrpcShardTransport({ tls, connections: 1 });
		try {
			const putting = new Putting({ by: other, ref });
			await putting.write(random.bytes(1_000));
			putting.put.finish(random.bytes(100));
			const { shardId } = keep(1_000);
			const got = await new Getting(shardId, { by: other, ref, length: 1_000 }).failure();
			const put = await putting.failure();
			expect(got.kind).toBe(put.kind);
			return put;
		} finally {
			other.close();
			expect(worker.requests).toEqual([]);
			expect(worker.bytesOut).toBe(0);
		}
	};

	test('a client of another cluster is not let in', async () => {
		expect((await asked(await foreign.tls('orchestrator', orchestratorId))).kind).toBe('unavailable');
	});

	test('a client whose certificate says worker is denied', async () => {
		expect((await asked(workerTls)).kind).toBe('denied');
	});

	test('a worker of another cluster is not talked to', async () => {
		const stranger = await serveWorker(worker, await foreign.tls('worker', workerId));
		expect((await asked(orchestratorTls, stranger.ref)).kind).toBe('unavailable');
		await stranger.close();
	});

	test('another worker at this worker’s address is not talked to', async () => {
		const mistaken = { ...served.ref, workerId: newId<WorkerId>(random) };
		const error = await asked(orchestratorTls, mistaken);
		expect(error).toMatchObject({ kind: 'unavailable', message: expect.stringContaining('another process answers') });
	});

	test('an orchestrator at a worker’s address is not talked to', async () => {
		const posing = await serveWorker(worker, await authority.tls('orchestrator', workerId));
		expect((await asked(orchestratorTls, posing.ref)).kind).toBe('unavailable');
		await posing.close();
	});

	test('a plain-text client gets nothing', async () => {
		const port = Number(served.ref.address.split(':')[1]);
		const socket = net.connect(port, '127.0.0.1');
		let answered = '';
		socket.on('data', (bytes) => {
			answered += bytes.toString('latin1');
		});
		socket.on('error', () => {});
		socket.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
		await once(socket, 'close');
		expect(answered).not.toContain('HTTP');
		expect(worker.requests).toEqual([]);
	});

	test('methods that are not there: unsupported', async () => {
		const session = http2.connect(`https://${served.ref.address}`, {
			...(orchestratorTls.clientTlsOptions({ expectWorker: workerId }) as http2.SecureClientSessionOptions),
		});
		const stream = session.request({ ':method': 'POST', ':path': '/distro.v1.ShardService/Format' });
		const [headers] = (await once(stream, 'response')) as [http2.IncomingHttpHeaders];
		expect(headers['grpc-status']).toBe(String(grpc.status.UNIMPLEMENTED));
		session.destroy();
	});

	test('a peer that breaks the order of parts, or the wire, is invalid and commits nothing', async () => {
		const session = http2.connect(`https://${served.ref.address}`, {
			...(orchestratorTls.clientTlsOptions({ expectWorker: workerId }) as http2.SecureClientSessionOptions),
		});
		const header = { part: { $case: 'header' as const, value: headerOf(newId<ShardId>(random)) } };
		const encode = (message: PutRequest) => {
			const bytes = ShardServiceService.put.requestSerialize(message);
			const prefix = Buffer.alloc(5);
			prefix.writeUInt32BE(bytes.length, 1);
			return Buffer.concat([prefix, bytes]);
		};
		const cell = encode({ part: { $case: 'cell', value: random.bytes(10) } });
		const trailer = encode({ part: { $case: 'trailer', value: random.bytes(10) } });
		const wrong = {
			'a cell first': cell,
			'a trailer first': trailer,
			'two headers': Buffer.concat([encode(header), encode(header)]),
			'a cell after the trailer': Buffer.concat([encode(header), cell, trailer, cell]),
			'two trailers': Buffer.concat([encode(header), trailer, trailer]),
			'an id that is none': encode({
				part: { $case: 'header', value: { ...header.part.value, shardId: Buffer.alloc(3) } },
			}),
			'no gRPC at all': Buffer.from('{"hello": "there"}'),
			'an unreadable header': Buffer.concat([Buffer.of(0, 0, 0, 0, 4, 0x0a, 2), Buffer.of(0x0a, 0xff)]),
		};
		for (const [what, bytes] of Object.entries(wrong)) {
			const stream = session.request({ ':method': 'POST', ':path': PUT_PATH, te: 'trailers' });
			let status = '';
			stream.on('response', (headers) => {
				status = String(headers['grpc-status'] ?? status);
			});
			stream.on('trailers', (headers) => {
				status = String(headers['grpc-status']);
			});
			stream.on('error', () => {});
			stream.resume();
			stream.end(bytes);
			if (!stream.closed) await once(stream, 'close');
			expect([what, status === '0' || status === '']).toEqual([what, false]);
		}
		await until(() => worker.open === 0, { what: 'the worker to let go' });
		session.destroy();
	});
});

function headerOf(shardId: ShardId) {
	return { shardId: idBytes(shardId), cellBytes: SMALL_CELL_BYTES, maxBytes: MiB, deadlineMs: 5_000 };
}

function workerCredentials(): grpc.ChannelCredentials {
	const { ca, key, cert } = orchestratorTls.material;
	return grpc.credentials.createSsl(ca, key, cert, {
		checkServerIdentity: (_host, peer) => {
			parseIdentity(peer.subjectaltname);
			return undefined;
		},
	});
}

describe('a grpc-js client of our server', () => {
	let client: ShardServiceClient;
	beforeEach(() => {
		client = new ShardServiceClient(served.ref.address, workerCredentials(), {
			'grpc.ssl_target_name_override': 'worker.distro',
		});
	});
	afterEach(() => client.close());

	const cellOf = (value: Buffer): PutRequest => ({ part: { $case: 'cell', value } });

	test('puts', async () => {
		const shardId = newId<ShardId>(random);
		const cells = [random.bytes(SMALL_CELL_BYTES), random.bytes(SMALL_CELL_BYTES), random.bytes(1)];
		const trailer = random.bytes(600);
		const response = await new Promise<PutResponse>((resolve, reject) => {
			const stream = client.put((error, answer) => (error === null ? resolve(answer) : reject(error)));
			stream.write({ part: { $case: 'header', value: headerOf(shardId) } });
			for (const cell of cells) stream.write(cellOf(cell));
			stream.end({ part: { $case: 'trailer', value: trailer } });
		});
		const all = Buffer.concat(cells);
		const receipt = worker.receipt(shardId, all.length);
		expect(response).toEqual({ ...receipt, workerId: idBytes(workerId), shardId: idBytes(shardId) });
		expect(worker.shards.get(shardId)).toMatchObject({ cells: all, trailer });
	});

	test('is told why a put is refused', async () => {
		worker.refuse = new DistroError('exhausted', 'the volume has no room for this shard');
		const error = await new Promise<grpc.ServiceError | null>((resolve) => {
			const stream = client.put(resolve);
			stream.on('error', () => {});
			stream.write({ part: { $case: 'header', value: headerOf(newId<ShardId>(random)) } });
		});
		expect(error?.code).toBe(grpc.status.RESOURCE_EXHAUSTED);
		expect(errorFromServiceError(error as grpc.ServiceError)).toMatchObject({
			kind: 'exhausted',
			message: worker.refuse.message,
		});
	});

	test('is told why a put is refused after it was accepted', async () => {
		for (const prepare of [
			() => {
				worker.refuseTrailer = new DistroError('corrupt', 'other leaves');
			},
			() => {
				worker.fullAfterBytes = 3 * SMALL_CELL_BYTES;
			},
		]) {
			prepare();
			const error = await new Promise<grpc.ServiceError | null>((resolve) => {
				const stream = client.put(resolve);
				stream.on('error', () => {});
				stream.write({ part: { $case: 'header', value: headerOf(newId<ShardId>(random)) } });
				stream.on('metadata', () => {
					for (let i = 0; i < 10; i++) stream.write(cellOf(random.bytes(SMALL_CELL_BYTES)));
					if (worker.refuseTrailer !== null) stream.end({ part: { $case: 'trailer', value: random.bytes(100) } });
				});
			});
			const expected = worker.refuseTrailer === null ? 'exhausted' : 'corrupt';
			expect(errorFromServiceError(error as grpc.ServiceError).kind).toBe(expected);
			worker.refuseTrailer = null;
		}
	});

	test('commits nothing when it cancels, and nothing when it just ends', async () => {
		const begin = () => {
			const stream = client.put(() => {});
			stream.on('error', () => {});
			stream.write({ part: { $case: 'header', value: headerOf(newId<ShardId>(random)) } });
			stream.write(cellOf(random.bytes(1_000)));
			return stream;
		};
		const canceled = begin();
		await until(() => worker.bytesIn === 1_000, { what: 'the cell' });
		canceled.cancel();
		await until(() => worker.aborted.length === 1, { what: 'the worker to let go' });
		begin().end();
		await until(() => worker.aborted.length === 2, { what: 'the worker to let go' });
		expect(worker.shards.size).toBe(0);
	});

	test('gets, and is told what is not there', async () => {
		const { shardId, cells, leaves } = keep(300_000);
		const parts: GetResponse[] = [];
		const stream = client.get({ shardId: idBytes(shardId), offset: 1_000, length: 200_000, wantLeaves: true });
		stream.on('data', (part: GetResponse) => parts.push(part));
		await once(stream, 'end');
		expect(parts[0]?.part).toEqual({ $case: 'leaves', value: leaves });
		const data = Buffer.concat(parts.slice(1).map(({ part }) => part?.value as Buffer));
		expect(data.equals(cells.subarray(1_000, 201_000))).toBe(true);

		const missing = client.get({ shardId: Buffer.alloc(16), offset: 0, length: 1, wantLeaves: false });
		missing.on('data', () => {});
		const [error] = await once(missing, 'error');
		expect(errorFromServiceError(error).kind).toBe('not_found');
	});

	test('deletes and asks', async () => {
		const { shardId } = keep(1_000);
		const { trailer } = worker.shards.get(shardId) ?? {};
		const stat = (id: Buffer) =>
			new Promise<{ trailer: Buffer }>((resolve, reject) => {
				client.stat({ shardId: id }, (error, answer) => (error === null ? resolve(answer) : reject(error)));
			});
		expect(await stat(idBytes(shardId))).toEqual({ trailer });
		await new Promise<void>((resolve, reject) => {
			client.delete({ shardIds: [idBytes(shardId)], forGood: false }, (error) =>
				error === null ? resolve() : reject(error),
			);
		});
		await expect(stat(idBytes(shardId))).rejects.toMatchObject({ code: grpc.status.NOT_FOUND });
		await expect(stat(Buffer.alloc(3))).rejects.toMatchObject({ code: grpc.status.DATA_LOSS });
	});

	test('audits', async () => {
		worker.audited = { cell: random.bytes(100_000), path: [random.bytes(32)], leaves: 2, signature: random.bytes(64) };
		const request = { shardId: idBytes(newId<ShardId>(random)), row: 1, nonce: random.bytes(32), deadlineMs: 1_000 };
		const answer = await new Promise((resolve, reject) => {
			client.audit(request, (error, response) => (error === null ? resolve(response) : reject(error)));
		});
		expect(answer).toEqual(worker.audited);
	});
});

describe('our client of a grpc-js server', () => {
	let server: grpc.Server;
	let ref: WorkerRef;
	const kept = new Map<string, { cells: Buffer; trailer: Buffer }>();
	const seen: PutRequest[] = [];
	let canceled = 0;

	beforeEach(async () => {
		kept.clear();
		seen.splice(0);
		canceled = 0;
		server = new grpc.Server();
		server.addService(ShardServiceService, {
			put: (call: grpc.ServerReadableStream<PutRequest, PutResponse>, answer: grpc.sendUnaryData<PutResponse>) => {
				call.sendMetadata(new grpc.Metadata());
				const cells: Buffer[] = [];
				let shardId: Buffer = Buffer.alloc(16);
				call.on('data', ({ part }: PutRequest) => {
					seen.push({ part });
					if (part?.$case === 'header') shardId = part.value.shardId;
					else if (part?.$case === 'cell') cells.push(part.value);
					else if (part?.$case === 'trailer') {
						const all = Buffer.concat(cells);
						if (part.value.length === 1) {
							answer(toServiceError(new DistroError('corrupt', 'a trailer of one byte')));
							return;
						}
						kept.set(shardId.toString('hex'), { cells: all, trailer: part.value });
						const receipt = worker.receipt(shardId.toString('hex') as ShardId, all.length);
						answer(null, { ...receipt, workerId: idBytes(workerId), shardId });
					}
				});
				call.on('cancelled', () => {
					canceled++;
				});
			},
			get: (
				call: grpc.ServerWritableStream<
					{ shardId: Buffer; offset: number; length: number; wantLeaves: boolean },
					GetResponse
				>,
			) => {
				const { shardId, offset, length, wantLeaves } = call.request;
				const shard = kept.get(shardId.toString('hex'));
				if (shard === undefined) {
					call.emit('error', toServiceError(new DistroError('not_found', 'no such shard')));
					return;
				}
				if (wantLeaves) call.write({ part: { $case: 'leaves', value: shard.trailer } });
				for (let at = offset; at < offset + length; at += 50_000) {
					const value = shard.cells.subarray(at, Math.min(at + 50_000, offset + length));
					call.write({ part: { $case: 'data', value } });
				}
				call.end();
			},
			delete: (call: grpc.ServerUnaryCall<{ shardIds: Buffer[] }, object>, answer: grpc.sendUnaryData<object>) => {
				for (const id of call.request.shardIds) kept.delete(id.toString('hex'));
				answer(null, {});
			},
			stat: (call: grpc.ServerUnaryCall<{ shardId: Buffer }, object>, answer: grpc.sendUnaryData<object>) => {
				const shard = kept.get(call.request.shardId.toString('hex'));
				if (shard === undefined) answer(toServiceError(new DistroError('not_found', 'no such shard')));
				else answer(null, { trailer: shard.trailer });
			},
		});
		const { ca, cert, key } = workerTls.material;
		const credentials = grpc.ServerCredentials.createSsl(ca, [{ cert_chain: cert, private_key: key }], true);
		const port = await new Promise<number>((resolve, reject) => {
			server.bindAsync('127.0.0.1:0', credentials, (error, bound) => (error === null ? resolve(bound) : reject(error)));
		});
		ref = { workerId, address: `127.0.0.1:${port}` };
	});
	afterEach(() => server.forceShutdown());

	test('puts, asks, gets and deletes', async () => {
		const putting = new Putting({ ref });
		const cells = [random.bytes(SMALL_CELL_BYTES), random.bytes(SMALL_CELL_BYTES), random.bytes(3)];
		const trailer = random.bytes(600);
		for (const cell of cells) await putting.write(cell);
		putting.put.finish(trailer);
		const all = Buffer.concat(cells);
		expect(await putting.outcome).toEqual(worker.receipt(putting.shardId, all.length));
		expect(putting.accepted).toBe(1);
		expect(seen.map(({ part }) => part?.$case)).toEqual(['header', 'cell', 'cell', 'cell', 'trailer']);
		expect(await transport.stat(ref, putting.shardId, { timeoutMs: 5_000 })).toEqual(trailer);
		const getting = new Getting(putting.shardId, { ref, offset: 5, length: all.length - 5, wantLeaves: true });
		expect(await getting.outcome).toBe('end');
		expect(getting.leaves).toEqual(trailer);
		expect(getting.all.equals(all.subarray(5))).toBe(true);
		await transport.delete(ref, [putting.shardId], { timeoutMs: 5_000 });
		expect(kept.size).toBe(0);
	});

	test('hears errors of every call', async () => {
		const putting = new Putting({ ref });
		putting.put.finish(Buffer.alloc(1));
		expect(await putting.failure()).toMatchObject({ kind: 'corrupt', message: 'a trailer of one byte' });
		const unknown = newId<ShardId>(random);
		const missing = expect.objectContaining({ kind: 'not_found', message: 'no such shard' });
		expect(await new Getting(unknown, { ref, length: 1 }).failure()).toEqual(missing);
		await expect(transport.stat(ref, unknown, { timeoutMs: 5_000 })).rejects.toEqual(missing);
	});

	test('a put that is given up is cancelled there', async () => {
		const putting = new Putting({ ref });
		await putting.write(random.bytes(SMALL_CELL_BYTES));
		await until(() => seen.length === 2, { what: 'the cell' });
		putting.put.abort('the client has left');
		await until(() => canceled === 1, { what: 'the cancellation' });
		expect(kept.size).toBe(0);
	});
});

/** A worker whose certificate is right and that answers with whatever bytes it likes. */
describe('a worker that talks nonsense', () => {
	const answers: Record<string, (stream: http2.ServerHttp2Stream) => void> = {
		'no gRPC status': (stream) => {
			stream.respond({ ':status': 200 });
			stream.end();
		},
		'an HTTP error': (stream) => stream.respond({ ':status': 502 }, { endStream: true }),
		'a message that is no percent-encoding': (stream) =>
			stream.respond({ ':status': 200, 'grpc-status': '14', 'grpc-message': '100 %zz' }, { endStream: true }),
		'a status that is no number': (stream) =>
			stream.respond({ ':status': 200, 'grpc-status': 'fine' }, { endStream: true }),
		'bytes that are no parts': (stream) => {
			stream.respond({ ':status': 200 }, { waitForTrailers: true });
			stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }));
			stream.end(Buffer.alloc(100, 0xff));
		},
		'an answer of nothing': (stream) => {
			stream.respond({ ':status': 200 }, { waitForTrailers: true });
			stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }));
			stream.end();
		},
		'a broken stream': (stream) => stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR),
	};

	test.each(Object.keys(answers))('%s: every call fails once, with a kind, and the process lives', async (name) => {
		const server = http2.createSecureServer({ ...workerTls.serverTlsOptions() });
		const sessions: http2.Http2Session[] = [];
		server.on('session', (session) => {
			sessions.push(session);
			session.on('error', () => {});
		});
		server.on('stream', (stream) => {
			stream.on('error', () => {});
			stream.resume();
			answers[name]?.(stream);
		});
		server.listen(0, '127.0.0.1');
		await once(server, 'listening');
		const ref = { workerId, address: `127.0.0.1:${(server.address() as AddressInfo).port}` };
		const putting = new Putting({ ref });
		await putting.write(random.bytes(1_000));
		putting.put.finish(random.bytes(100));
		const getting = new Getting(newId<ShardId>(random), { ref, length: 1_000 });
		const stat = transport.stat(ref, newId<ShardId>(random), { timeoutMs: 5_000 });
		const anyFailure = expect.objectContaining({ name: 'DistroError' });
		await expect(stat).rejects.toEqual(anyFailure);
		expect(await putting.failure()).toEqual(anyFailure);
		expect(await getting.failure()).toEqual(anyFailure);
		expect([putting.outcomes, getting.outcomes]).toEqual([1, 1]);
		for (const session of sessions) session.destroy();
		server.close();
	});
});
