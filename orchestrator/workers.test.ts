/** Who is here and who is good: by heartbeats and by what transfers saw, on a clock that is moved by hand. */

import { beforeEach, describe, expect, test, vi } from 'vitest';
import { newSigningKey, rawPublicKey, signReceipt } from '../core/crypto/sign.ts';
import { DistroError, type ErrorKind } from '../core/errors.ts';
import type { ShardId, WorkerId } from '../core/ids.ts';
import { HEDGE_MAX_MS, LOST_AFTER_MS, SUSPECT_AFTER_MS } from '../core/limits.ts';
import type { Clock } from '../core/ports.ts';
import { systemClock } from '../platform/clock.ts';
import { ManualClock } from '../test/support/clock.ts';
import { MemoryMetadata, MemoryMetadataStore } from './store-memory.ts';
import { EXCHANGE_MS, type Heartbeat, type NameTaken, WorkerRegistry, type WorkerStats } from './workers.ts';

const worker = (digit: string, name: string) => ({
	workerId: digit.repeat(32) as WorkerId,
	name,
	address: `127.0.0.1:${digit}`,
	zone: '',
	receiptKey: rawPublicKey(newSigningKey()),
});

test('a name goes to the worker with a new volume, once the one that had it is gone', async () => {
	const metadata = new MemoryMetadataStore(new MemoryMetadata());
	const taken: NameTaken[] = [];
	const open = () =>
		new WorkerRegistry({ store: metadata, clock: systemClock, onNameTaken: (change) => taken.push(change) });
	const registry = open();
	const before = worker('1', 'worker-3');
	const after = worker('2', 'worker-3');
	await registry.register(before);
	const heartbeat = registry.heartbeat(before.workerId);
	await expect(registry.register(after)).rejects.toMatchObject({ kind: 'exists' });
	heartbeat.closed();
	await registry.register(after);
	const stream = registry.heartbeat(after.workerId);
	expect([registry.name(after.workerId), registry.name(before.workerId)]).toEqual(['worker-3', 'worker-3~11111111']);
	expect(taken).toMatchObject([
		{ name: 'worker-3', workerId: after.workerId, formerly: { workerId: before.workerId, name: 'worker-3~11111111' } },
	]);

	const restarted = open();
	await restarted.read();
	expect(restarted.name(before.workerId)).toBe('worker-3~11111111');
	expect(restarted.ref(before.workerId)).toEqual({ workerId: before.workerId, address: before.address });
	await restarted.register(after);
	expect(taken).toHaveLength(1);

	// And back again only when that one is gone in its turn.
	await expect(registry.register(before)).rejects.toMatchObject({ kind: 'exists' });
	stream.closed();
	await registry.register(before);
	expect([registry.name(after.workerId), registry.name(before.workerId)]).toEqual(['worker-3~22222222', 'worker-3']);
	expect(taken).toHaveLength(2);
});

test('a full disk keeps strangers out, and not who is known', async () => {
	const store = new MemoryMetadataStore(new MemoryMetadata());
	const registry = new WorkerRegistry({ store, clock: systemClock });
	const known = worker('1', 'worker-1');
	await registry.register(known);
	vi.spyOn(store, 'saveWorker').mockRejectedValue(new DistroError('exhausted', 'the disk is full'));
	await registry.register({ ...known, address: '127.0.0.1:99' });
	expect(registry.ref(known.workerId)?.address).toBe('127.0.0.1:99');
	await expect(registry.register(worker('2', 'worker-2'))).rejects.toMatchObject({ kind: 'exhausted' });
	vi.restoreAllMocks();
});

describe('on a clock that is moved by hand', () => {
	const stats: WorkerStats = { bytesTotal: 1_000, bytesUsed: 300, bytesFree: 700, shards: 3, online: true };
	let clock: ManualClock;
	let store: MemoryMetadataStore;
	let registry: WorkerRegistry;

	beforeEach(() => {
		clock = new ManualClock();
		store = new MemoryMetadataStore(new MemoryMetadata());
		registry = new WorkerRegistry({ store, clock });
	});

	const join = async (digit: string): Promise<{ workerId: WorkerId; heartbeat: Heartbeat }> => {
		const joining = worker(digit, `worker-${digit}`);
		await registry.register(joining);
		const heartbeat = registry.heartbeat(joining.workerId);
		heartbeat.beat(stats);
		return { workerId: joining.workerId, heartbeat };
	};
	const latencyOf = (id: WorkerId) => registry.policyWorkers().find(({ workerId }) => workerId === id)?.latencyMs;
	const failed = (id: WorkerId, kind: ErrorKind) => registry.failed(id, new DistroError(kind, 'made for a test'));

	test('ready with its first figures, not before', async () => {
		const joining = worker('1', 'worker-1');
		expect(() => registry.heartbeat(joining.workerId)).toThrow(expect.objectContaining({ kind: 'not_found' }));
		expect(registry.state(joining.workerId)).toBe('unknown');
		await registry.register(joining);
		expect(registry.state(joining.workerId)).toBe('suspect');
		const heartbeat = registry.heartbeat(joining.workerId);
		expect(registry.state(joining.workerId)).toBe('suspect');
		heartbeat.beat(stats);
		expect(registry.state(joining.workerId)).toBe('ready');
		expect(registry.policyWorkers()).toMatchObject([{ name: 'worker-1', state: 'ready', bytesFree: 700 }]);
		heartbeat.beat({ ...stats, online: false });
		expect(registry.state(joining.workerId)).toBe('suspect');
	});

	test('a second stream is refused while the first is open', async () => {
		const { workerId, heartbeat } = await join('1');
		expect(() => registry.heartbeat(workerId)).toThrow(
			expect.objectContaining({ kind: 'exists', message: expect.stringContaining('worker-1') }),
		);
		heartbeat.closed();
		const second = registry.heartbeat(workerId);
		// What the closed stream still says counts for nothing.
		heartbeat.beat({ ...stats, bytesFree: 1 });
		heartbeat.closed();
		second.beat(stats);
		expect(registry.state(workerId)).toBe('ready');
		expect(registry.policyWorkers()).toMatchObject([{ bytesFree: 700 }]);
	});

	test('a closed stream makes it suspect at once, only time makes it lost', async () => {
		const { workerId, heartbeat } = await join('1');
		heartbeat.closed();
		expect(registry.state(workerId)).toBe('suspect');
		expect(registry.isGood(workerId)).toBe(false);
		clock.advance(LOST_AFTER_MS);
		expect(registry.state(workerId)).toBe('suspect');
		clock.advance(1);
		expect(registry.state(workerId)).toBe('lost');
		registry.heartbeat(workerId).beat(stats);
		expect(registry.state(workerId)).toBe('ready');
	});

	test('an open stream that says nothing is suspect, then lost', async () => {
		const { workerId, heartbeat } = await join('1');
		clock.advance(SUSPECT_AFTER_MS);
		expect(registry.state(workerId)).toBe('ready');
		clock.advance(1);
		expect(registry.state(workerId)).toBe('suspect');
		clock.advance(LOST_AFTER_MS);
		expect(registry.state(workerId)).toBe('lost');
		heartbeat.beat(stats);
		expect(registry.state(workerId)).toBe('ready');
	});

	// All workers were lost for as long as it took them to come back to a restarted orchestrator.
	test('after a restart a silent worker is suspect, and lost only once this process has waited long enough', async () => {
		const { workerId } = await join('1');
		// A night without the cluster, or a jump of the wall clock: neither says that the worker was away.
		clock.advance(100 * LOST_AFTER_MS);
		const restarted = new WorkerRegistry({ store, clock });
		await restarted.read();
		expect(restarted.state(workerId)).toBe('suspect');
		clock.advance(LOST_AFTER_MS);
		expect(restarted.state(workerId)).toBe('suspect');
		clock.advance(1);
		expect(restarted.state(workerId)).toBe('lost');
		restarted.heartbeat(workerId).beat(stats);
		expect(restarted.state(workerId)).toBe('ready');
	});

	test('its figures are kept, though not with every beat', async () => {
		const { heartbeat } = await join('1');
		const save = vi.spyOn(store, 'sawWorkers');
		for (let second = 0; second < 60; second++) {
			clock.advance(1_000);
			heartbeat.beat({ ...stats, shards: second });
			if (second % 30 === 29) await registry.exchange();
		}
		expect(save).toHaveBeenCalledTimes(2);
		expect(await store.workers()).toMatchObject([{ shards: 59, lastSeenMs: clock.nowMs() }]);
		// A silent worker is not told of.
		clock.advance(SUSPECT_AFTER_MS + 1);
		await registry.exchange();
		expect(save).toHaveBeenCalledTimes(2);
	});

	describe('several orchestrators', () => {
		let here: WorkerRegistry;
		let there: WorkerRegistry;
		let taken: NameTaken[];
		const joining = worker('1', 'worker-1');
		const successor = worker('2', 'worker-1');
		const ids = ({ workerId }: { workerId: WorkerId }) => workerId;

		beforeEach(() => {
			taken = [];
			const onNameTaken = (change: NameTaken) => taken.push(change);
			// Their wall clocks are hours apart.
			const early: Clock = {
				nowMs: () => clock.nowMs() - 5 * 3_600_000,
				monotonicMs: () => clock.monotonicMs(),
				schedule: (ms, callback) => clock.schedule(ms, callback),
			};
			here = new WorkerRegistry({ store, clock, shared: true, onNameTaken });
			there = new WorkerRegistry({ store, clock: early, shared: true, onNameTaken });
		});

		/** The time of some exchanges, with a beat a second on those streams. */
		const pass = async (ms: number, streams: readonly Heartbeat[] = []) => {
			for (let left = ms; left > 0; left -= EXCHANGE_MS) {
				for (let second = 0; second < EXCHANGE_MS; second += 1_000) {
					clock.advance(1_000);
					for (const stream of streams) stream.beat(stats);
				}
				await there.exchange();
				await here.exchange();
			}
		};
		const joinThere = async (joins = joining) => {
			await there.register(joins);
			const stream = there.heartbeat(joins.workerId);
			stream.beat(stats);
			return stream;
		};

		test('a worker that has its stream with another one is ready here, as long as it is heard there', async () => {
			await here.read();
			const stream = await joinThere();
			await here.exchange();
			expect(here.state(joining.workerId)).toBe('suspect');
			await pass(3 * EXCHANGE_MS, [stream]);
			expect(here.state(joining.workerId)).toBe('ready');
			expect(here.isGood(joining.workerId)).toBe(true);
			expect(here.policyWorkers()).toMatchObject([{ name: 'worker-1', state: 'ready', bytesFree: 700 }]);
			expect(here.ref(joining.workerId)).toEqual({ workerId: joining.workerId, address: joining.address });
			await pass(20 * EXCHANGE_MS, [stream]);
			expect(here.state(joining.workerId)).toBe('ready');
			stream.closed();
			await pass(4 * EXCHANGE_MS);
			expect(here.state(joining.workerId)).toBe('suspect');
			await pass(LOST_AFTER_MS);
			expect(here.state(joining.workerId)).toBe('lost');
		});

		test('one with its volume offline is heard, and not ready', async () => {
			await here.read();
			const stream = await joinThere();
			await pass(3 * EXCHANGE_MS, [stream]);
			for (let at = 0; at < 4; at++) {
				clock.advance(EXCHANGE_MS);
				stream.beat({ bytesTotal: 0, bytesUsed: 0, bytesFree: 0, shards: 0, online: false });
				await there.exchange();
				await here.exchange();
			}
			expect(here.state(joining.workerId)).toBe('suspect');
		});

		test('the own stream decides: its end counts at once, though others still hear of it', async () => {
			const stream = await joinThere();
			await here.register(joining);
			const own = here.heartbeat(joining.workerId);
			await pass(3 * EXCHANGE_MS, [stream, own]);
			expect(here.state(joining.workerId)).toBe('ready');
			own.closed();
			expect(here.state(joining.workerId)).toBe('suspect');
			await pass(EXCHANGE_MS, [stream]);
			expect(here.state(joining.workerId)).toBe('suspect');
			// It goes on there: only the way to here is broken.
			await pass(4 * EXCHANGE_MS, [stream]);
			expect(here.state(joining.workerId)).toBe('ready');
			const again = here.heartbeat(joining.workerId);
			again.beat(stats);
			clock.advance(SUSPECT_AFTER_MS + 1);
			stream.beat(stats);
			await there.exchange();
			await here.exchange();
			expect(here.state(joining.workerId)).toBe('suspect');
		});

		test('one tells for all: each worker is written about once an exchange', async () => {
			const streams = [await joinThere()];
			await here.register(joining);
			streams.push(here.heartbeat(joining.workerId));
			const told = vi.spyOn(store, 'sawWorkers');
			await pass(30 * EXCHANGE_MS, streams);
			expect(told.mock.calls.length).toBeGreaterThanOrEqual(15);
			expect(told.mock.calls.length).toBeLessThanOrEqual(33);
		});

		test('an unknown holder of a shard is looked up, soon again but not every time', async () => {
			await here.read();
			await joinThere();
			clock.advance(1_000);
			const look = vi.spyOn(store, 'workers');
			await here.find([joining]);
			expect(here.ref(joining.workerId)).toMatchObject({ address: joining.address });
			await here.find([joining]);
			expect(look).toHaveBeenCalledTimes(1);
			const stranger = worker('9', 'worker-9');
			for (let at = 0; at < 10; at++) await here.find([stranger]);
			expect(look).toHaveBeenCalledTimes(1);
			clock.advance(1_000);
			look.mockRejectedValueOnce(new DistroError('unavailable', 'away'));
			await here.find([stranger]);
			expect(look).toHaveBeenCalledTimes(2);
			expect(here.state(stranger.workerId)).toBe('unknown');
		});

		test('who registers here after another one keeps the figures that are known there', async () => {
			const stream = await joinThere();
			await pass(EXCHANGE_MS, [stream]);
			await here.register({ ...joining, address: '127.0.0.1:77' });
			expect(await store.workers()).toMatchObject([{ bytesTotal: 1_000, shards: 3, address: '127.0.0.1:77' }]);
			await there.exchange();
			expect(there.ref(joining.workerId)?.address).toBe('127.0.0.1:77');
			expect(there.state(joining.workerId)).toBe('ready');
		});

		test('a name goes over to a new worker once nobody hears the one that had it, and all see it', async () => {
			const stream = await joinThere();
			await pass(4 * EXCHANGE_MS, [stream]);
			// It never had a stream here, and is heard there.
			await expect(here.register(successor)).rejects.toMatchObject({ kind: 'exists' });
			stream.closed();
			await expect(here.register(successor)).rejects.toMatchObject({ kind: 'exists' });
			await pass(5 * EXCHANGE_MS);
			await here.register(successor);
			expect(taken.map(({ name, formerly }) => [name, ids(formerly), formerly.name])).toEqual([
				['worker-1', joining.workerId, 'worker-1~11111111'],
			]);
			expect(there.name(joining.workerId)).toBe('worker-1');
			await there.exchange();
			expect(there.name(joining.workerId)).toBe('worker-1~11111111');
			expect(there.name(successor.workerId)).toBe('worker-1');
			await there.register(successor);
			expect(taken).toHaveLength(1);
		});

		test('a name that both give away at once goes over once', async () => {
			const stream = await joinThere();
			await pass(EXCHANGE_MS, [stream]);
			stream.closed();
			await pass(6 * EXCHANGE_MS);
			await Promise.all([here.register(successor), there.register(successor)]);
			expect((await store.workers()).map(({ name }) => name)).toEqual(['worker-1', 'worker-1~11111111']);
			const third = worker('3', 'worker-1');
			await expect(here.register(third)).rejects.toMatchObject({ kind: 'exists' });
		});

		test('who is heard again between the look and the taking keeps its name', async () => {
			const stream = await joinThere();
			await pass(EXCHANGE_MS, [stream]);
			stream.closed();
			await pass(6 * EXCHANGE_MS);
			const rename = store.renameWorker.bind(store);
			vi.spyOn(store, 'renameWorker').mockImplementationOnce(async (...args) => {
				await there.register(joining);
				return rename(...args);
			});
			await expect(here.register(successor)).rejects.toMatchObject({ kind: 'exists' });
			expect((await store.workers()).map(ids)).toEqual([joining.workerId]);
			expect(taken).toEqual([]);
		});

		test('one that was forgotten there is forgotten here, unless it is here', async () => {
			const stream = await joinThere();
			await pass(EXCHANGE_MS, [stream]);
			stream.closed();
			await store.forgetWorker(joining.workerId, 0);
			clock.advance(EXCHANGE_MS);
			await here.exchange();
			await there.exchange();
			expect([here.state(joining.workerId), there.state(joining.workerId)]).toEqual(['unknown', 'unknown']);
		});
	});

	describe('penalty', () => {
		test.each(['timeout', 'unavailable'] as const)('%s: passed over for ten seconds', async (kind) => {
			const { workerId, heartbeat } = await join('1');
			await join('2');
			failed(workerId, kind);
			expect(registry.isGood(workerId)).toBe(false);
			expect(latencyOf(workerId)).toBeGreaterThan(HEDGE_MAX_MS);
			for (let second = 0; second < 11; second++) {
				clock.advance(1_000);
				heartbeat.beat(stats);
			}
			expect(registry.isGood(workerId)).toBe(true);
			expect(latencyOf(workerId)).toBeUndefined();
		});

		test.each(['exhausted', 'corrupt', 'not_found', 'canceled'] as const)('%s says nothing about it', async (kind) => {
			const { workerId } = await join('1');
			failed(workerId, kind);
			expect(registry.isGood(workerId)).toBe(true);
		});

		test('grows while it never answers in time, and starts anew when it does', async () => {
			const { workerId, heartbeat } = await join('1');
			const others = [await join('2'), await join('3')];
			const passedOverS = () => {
				failed(workerId, 'timeout');
				failed(workerId, 'timeout');
				let seconds = 0;
				for (; !registry.isGood(workerId); seconds++) {
					clock.advance(1_000);
					for (const stream of [heartbeat, ...others.map((other) => other.heartbeat)]) stream.beat(stats);
				}
				return seconds;
			};
			expect([passedOverS(), passedOverS(), passedOverS()]).toEqual([10, 20, 40]);
			registry.observe(workerId, { ms: 4 });
			expect(passedOverS()).toBe(10);
		});

		test('ends when it comes back with a new stream', async () => {
			const { workerId, heartbeat } = await join('1');
			failed(workerId, 'unavailable');
			heartbeat.closed();
			registry.heartbeat(workerId).beat(stats);
			expect(registry.isGood(workerId)).toBe(true);
		});

		// The average once began with the penalty, and took a minute of reads to forget it.
		test('does not enter the average of what is measured', async () => {
			const { workerId, heartbeat } = await join('1');
			registry.observe(workerId, { ms: 4 });
			failed(workerId, 'timeout');
			registry.observe(workerId, { ms: 4 });
			for (let second = 0; second < 11; second++) {
				clock.advance(1_000);
				heartbeat.beat(stats);
			}
			expect(latencyOf(workerId)).toBeCloseTo(4);
		});
	});

	test('one slow worker does not make everybody wait, and only one read at a time tries it again', async () => {
		const slow = await join('1');
		const others = [await join('2'), await join('3'), await join('4')];
		for (let i = 0; i < 400; i++) {
			for (const { workerId } of others) registry.observe(workerId, { ms: 5 });
			registry.observe(slow.workerId, { ms: 1_000 });
		}
		expect(registry.hedgeMs).toBeLessThan(50);
		expect(registry.mayRead(slow.workerId)).toBe(false);
		const later = (seconds: number) => {
			for (let second = 0; second < seconds; second++) {
				clock.advance(1_000);
				for (const { heartbeat, workerId } of [slow, ...others]) {
					heartbeat.beat(stats);
					if (workerId !== slow.workerId) registry.observe(workerId, { ms: 5 });
				}
			}
		};
		later(31);
		const tried = () => Array.from({ length: 5 }, () => registry.mayRead(slow.workerId));
		expect(tried()).toEqual([true, false, false, false, false]);
		later(3);
		expect(tried()).toEqual([true, false, false, false, false]);
		registry.observe(slow.workerId, { ms: 5 });
		expect(tried()).toEqual([true, true, true, true, true]);
	});

	test('a worker that answers at once and then trickles counts as slow, and is known as such', async () => {
		const [trickling, quick] = [await join('1'), await join('2')];
		for (const { workerId } of [trickling, quick]) registry.observe(workerId, { ms: 3 });
		for (let i = 0; i < 5; i++) {
			registry.observe(quick.workerId, { bytes: 266_240, tookMs: 2 });
			registry.observe(trickling.workerId, { bytes: 266_240, tookMs: 4_000 });
			// Held up by the client: says nothing.
			registry.observe(quick.workerId, { bytes: 266_240, tookMs: null });
		}
		expect([registry.isGood(trickling.workerId), registry.isGood(quick.workerId)]).toEqual([false, true]);
		expect(registry.score(trickling.workerId)).toBeGreaterThan(100 * registry.score(quick.workerId));
		expect(registry.measured(trickling.workerId)).toEqual({ latencyMs: 3, bytesPerS: expect.closeTo(66_560, 0) });
		clock.advance(60_000);
		expect(registry.measured(trickling.workerId)).toEqual({ latencyMs: null, bytesPerS: null });
	});

	describe('a read may leave a worker that lags', () => {
		/** It sends other reads something. */
		const answers = (id: WorkerId, times = 1) => {
			for (let i = 0; i < times; i++) registry.observe(id, { ms: 5 });
		};
		const left = (id: WorkerId, times: number) => Array.from({ length: times }, () => registry.mayHedge(id));

		test('at once, and as often as it likes, when it sends nobody anything', async () => {
			const { workerId } = await join('1');
			await join('2');
			expect(left(workerId, 20)).not.toContain(false);
			answers(workerId);
			clock.advance(HEDGE_MAX_MS + 1);
			expect(left(workerId, 20)).not.toContain(false);
			registry.observe(workerId, { laggedMs: 300 });
			expect(registry.isGood(workerId)).toBe(false);
		});

		test('four times and then for one read in twenty, when it answers others', async () => {
			const { workerId } = await join('1');
			await join('2');
			answers(workerId);
			expect(left(workerId, 6)).toEqual([true, true, true, true, false, false]);
			answers(workerId, 19);
			expect(registry.mayHedge(workerId)).toBe(false);
			answers(workerId, 2);
			expect(left(workerId, 2)).toEqual([true, false]);
			answers(workerId, 1_000);
			expect(left(workerId, 5)).toEqual([true, true, true, true, false]);
			registry.observe(workerId, { laggedMs: 100 });
			expect(registry.isGood(workerId)).toBe(true);
			// Cells of streams that are long open are answers as well.
			clock.advance(HEDGE_MAX_MS + 1);
			registry.observe(workerId, { bytes: 65_536, tookMs: null });
			expect(registry.mayHedge(workerId)).toBe(false);
		});

		test('that is not ready any more, though something of it still comes', async () => {
			const { workerId, heartbeat } = await join('1');
			answers(workerId);
			left(workerId, 4);
			expect(registry.mayHedge(workerId)).toBe(false);
			heartbeat.closed();
			expect(registry.mayHedge(workerId)).toBe(true);
		});
	});

	test('latency is averaged, and forgotten when nobody measures it again', async () => {
		const { workerId, heartbeat } = await join('1');
		expect(latencyOf(workerId)).toBeUndefined();
		registry.observe(workerId, { ms: 100 });
		expect(latencyOf(workerId)).toBe(100);
		for (let i = 0; i < 200; i++) registry.observe(workerId, { ms: 10 });
		expect(latencyOf(workerId)).toBeCloseTo(10, 3);
		expect(registry.score(workerId)).toBeCloseTo(10, 3);
		clock.advance(30_000);
		heartbeat.beat(stats);
		expect(latencyOf(workerId)).toBeUndefined();
	});

	test('receipts are checked with the key of the worker that they name', async () => {
		const keys = [newSigningKey(), newSigningKey()];
		for (const [i, key] of keys.entries()) {
			await registry.register({ ...worker(`${i + 1}`, `worker-${i + 1}`), receiptKey: rawPublicKey(key) });
		}
		const receipt = {
			workerId: '1'.repeat(32) as WorkerId,
			shardId: 'a'.repeat(32) as ShardId,
			root: Buffer.alloc(32),
			cellsBytes: 10,
			timeMs: 1,
		};
		const signed = keys.map((key) => signReceipt(receipt, key));
		expect(signed.map((each) => registry.verifyReceipt(each))).toEqual([true, false]);
		const [good] = signed;
		expect(good && registry.verifyReceipt({ ...good, workerId: '3'.repeat(32) as WorkerId })).toBe(false);
	});
});
