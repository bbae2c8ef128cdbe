/** When a scatter gives workers up: by a clock that is moved by hand, and puts that do what each test says. */

import { describe, expect, test } from 'vitest';
import { ManualClock, seededRandom } from '../../test/support/clock.ts';
import { codecFor } from '../codec/erasure-codec.ts';
import { shardBytes } from '../codec/layout.ts';
import { rootOf } from '../crypto/digest.ts';
import { DistroError } from '../errors.ts';
import { newId, type ShardId, type WorkerId } from '../ids.ts';
import { SMALL_CELL_BYTES as C } from '../limits.ts';
import type { SegmentShape } from '../model/segment.ts';
import type { ShardPut, ShardPutEvents, ShardTransport } from '../ports.ts';
import { Scatter, type ScatterResult, type ScatterTarget } from './scatter.ts';

const random = seededRandom('stragglers');
const [k, n, quorum] = [4, 6, 5];
const SHAPE: SegmentShape = { codec: 'rs-ronomon-6', k, n, cellBytes: C, cells: k, lastCellBytes: C };

/** One put as its worker sees it. */
class HeldPut implements ShardPut {
	readonly shardId: ShardId;
	readonly workerId: WorkerId;
	readonly events: ShardPutEvents;
	readonly dones: (() => void)[] = [];
	trailer: Buffer | null = null;
	aborted = false;

	constructor(target: { shardId: ShardId; workerId: WorkerId }, events: ShardPutEvents) {
		this.shardId = target.shardId;
		this.workerId = target.workerId;
		this.events = events;
	}

	write(_cell: Buffer, done: () => void): void {
		this.dones.push(done);
	}

	finish(trailer: Buffer): void {
		this.trailer = trailer;
	}

	abort(): void {
		this.aborted = true;
	}

	/** Takes everything that was written. */
	take(): void {
		this.events.accepted();
		for (const done of this.dones.splice(0)) done();
	}

	/** Its trailer is here only the leaves. */
	keep(shardIndex: number): void {
		this.events.receipt({
			workerId: this.workerId,
			shardId: this.shardId,
			root: rootOf(this.trailer as Buffer),
			cellsBytes: shardBytes(SHAPE, shardIndex),
			timeMs: 0,
			signature: Buffer.alloc(64),
		});
	}
}

async function scatterOneRow(o: { without?: number[]; spares?: number } = {}) {
	const clock = new ManualClock();
	/** How long this process was stopped in all: its timers come late by that. */
	const stopped = { ms: 0 };
	const puts: HeldPut[] = [];
	const transport = {
		put: (worker, request, events) => {
			const put = new HeldPut({ shardId: request.shardId, workerId: worker.workerId }, events);
			puts.push(put);
			return put;
		},
	} as Partial<ShardTransport> as ShardTransport;
	const target = (): ScatterTarget => ({
		worker: { workerId: newId<WorkerId>(random), address: 'x:1' },
		shardId: newId<ShardId>(random),
	});
	const failures: DistroError[] = [];
	let spares = o.spares ?? 0;
	let released = false;
	const scatter = new Scatter({
		transport,
		clock: {
			nowMs: () => clock.nowMs() + stopped.ms,
			monotonicMs: () => clock.monotonicMs() + stopped.ms,
			schedule: (delayMs, callback) => clock.schedule(delayMs, callback),
		},
		codec: codecFor(SHAPE.codec),
		k,
		n,
		cellBytes: C,
		maxCells: k,
		quorum,
		targets: Array.from({ length: n }, (_, i) => (o.without?.includes(i) ? null : target())),
		spare: async () => (spares-- > 0 ? target() : null),
		verifyReceipt: () => true,
		onFailed: (error) => failures.push(error),
	});
	const memory = Buffer.alloc(n * C);
	const release = () => {
		released = true;
	};
	await scatter.row({
		data: memory.subarray(0, k * C),
		parity: memory.subarray(k * C),
		cells: k,
		lastCellBytes: C,
		release,
	});
	let result: ScatterResult | null = null;
	const finish = () =>
		scatter.finish({ shape: SHAPE, trailer: ({ leaves }) => leaves }).then(
			(value) => {
				result = value;
			},
			(error) => failures.push(error),
		);
	return { clock, stopped, puts, failures, finish, result: () => result, released: () => released };
}

const settle = () => new Promise<void>((resolve) => setImmediate(resolve));
const broke = () => new DistroError('unavailable', 'the connection broke');

describe('a scatter', () => {
	test('does not give a slow worker up that the quorum needs because another one broke', async () => {
		const s = await scatterOneRow();
		for (const put of s.puts.slice(0, 5)) put.take();
		s.puts[5]?.events.accepted();
		s.clock.advance(1_500);
		s.puts[4]?.events.failed(broke());
		await settle();
		s.clock.advance(5_000);
		await settle();
		expect(s.failures).toEqual([]);
		s.puts[5]?.take();
		s.finish();
		for (const i of [0, 1, 2, 3, 5]) s.puts[i]?.keep(i);
		await settle();
		expect(s.result()?.placements.length).toBe(5);
	});

	test('gives a replacement as much time as the first had', async () => {
		const s = await scatterOneRow({ spares: 1 });
		for (const put of s.puts.slice(0, 5)) put.take();
		s.clock.advance(2_500);
		await settle();
		expect(s.puts.length).toBe(7);
		s.puts[6]?.events.accepted();
		s.clock.advance(1_000);
		await settle();
		expect(s.puts[6]?.aborted).toBe(false);
		s.clock.advance(3_000);
		expect(s.puts[6]?.aborted).toBe(true);
		expect(s.failures).toEqual([]);
	});

	test('does not take the bytes that a given up put returns for bytes that its replacement has', async () => {
		const s = await scatterOneRow({ spares: 1 });
		for (const put of s.puts.slice(0, 5)) put.take();
		s.puts[5]?.events.failed(broke());
		await settle();
		for (const done of s.puts[5]?.dones ?? []) done();
		s.puts[6]?.events.accepted();
		expect(s.released()).toBe(false);
		s.clock.advance(6_000);
		expect(s.puts[6]?.aborted).toBe(true);
	});

	test('that was itself stopped for long gives up nobody whose answer it has not read yet', async () => {
		const s = await scatterOneRow();
		for (const put of s.puts) put.take();
		s.finish();
		s.puts[0]?.keep(0);
		s.stopped.ms = 120_000;
		s.clock.advance(1_000);
		for (let i = 1; i < n; i++) s.puts[i]?.keep(i);
		await settle();
		expect(s.failures).toEqual([]);
		expect(s.result()?.placements.length).toBe(n);
	});

	test.each([
		['take the shard', () => {}],
		['take a row', (put: HeldPut) => put.events.accepted()],
		['send their receipts', (put: HeldPut) => put.take()],
	])('fails in the end when too many workers do not %s', async (_, step) => {
		const s = await scatterOneRow();
		for (const put of s.puts.slice(0, 3)) put.take();
		for (const put of s.puts.slice(3)) step(put);
		s.finish();
		for (const i of [0, 1, 2]) s.puts[i]?.keep(i);
		s.clock.advance(20_000);
		await settle();
		expect(s.failures).toEqual([]);
		s.clock.advance(45_000);
		await settle();
		expect(s.failures.map(({ kind }) => kind)).toEqual(['unavailable']);
	});

	test('never ends with less than the quorum, also when workers were missing from the start', async () => {
		const s = await scatterOneRow({ without: [0, 1] });
		for (const put of s.puts) put.take();
		s.finish();
		for (const [i, put] of s.puts.entries()) put.keep(i + 2);
		await settle();
		expect(s.result()).toBe(null);
		expect(s.failures.map(({ kind }) => kind)).toEqual(['unavailable']);
	});
});
