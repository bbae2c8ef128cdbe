import { beforeEach, expect, test, vi } from 'vitest';
import type { WorkerId } from '../core/ids.ts';
import type { Clock } from '../core/ports.ts';
import { expireIntentsJob, type Job } from './jobs.ts';
import { type ExclusiveJob, exclusive, LEASE_MS } from './leases.ts';
import { begin, Fixtures, NOW_MS } from './store.fixtures.ts';
import { MemoryMetadata, MemoryMetadataStore } from './store-memory.ts';

/** Time that stands still until it is told to go on. */
class ManualClock implements Clock {
	#nowMs = NOW_MS;
	readonly #timers = new Set<{ atMs: number; callback: () => void }>();

	nowMs = () => this.#nowMs;
	monotonicMs = () => this.#nowMs;
	schedule(delayMs: number, callback: () => void): () => void {
		const timer = { atMs: this.#nowMs + delayMs, callback };
		this.#timers.add(timer);
		return () => this.#timers.delete(timer);
	}

	/** Runs what is due, and what that made to be done at once. */
	async advance(ms: number): Promise<void> {
		this.#nowMs += ms;
		for (const timer of this.#timers) {
			if (timer.atMs > this.#nowMs) continue;
			this.#timers.delete(timer);
			timer.callback();
		}
		await new Promise(setImmediate);
	}
}

const make = new Fixtures('leases');
const workers = Array.from({ length: 6 }, () => make.id<WorkerId>());
const never = new AbortController().signal;
let storeClock: ManualClock;
let data: MemoryMetadata;
let steps: string[];

beforeEach(() => {
	storeClock = new ManualClock();
	data = new MemoryMetadata();
	steps = [];
});

/** One orchestrator of its own: with `clock` it may stand still while the others go on. */
function orchestrator(name: string, clock: ManualClock, job: ExclusiveJob['step']): Job {
	const store = new MemoryMetadataStore(data, { nowMs: storeClock.nowMs });
	return exclusive({ name: 'repair', step: job }, { store, clock, holder: name });
}

const noted = (name: string) => async () => {
	steps.push(name);
	return 0;
};

test('one of two does the work; when it ends in order the other goes on at once', async () => {
	const [a, b] = ['a', 'b'].map((name) => orchestrator(name, storeClock, noted(name))) as [Job, Job];
	for (let round = 0; round < 20; round++) {
		await a.step(never);
		expect(await b.step(never)).toBeGreaterThan(0);
		await storeClock.advance(LEASE_MS / 5);
	}
	expect(new Set(steps)).toEqual(new Set(['a']));
	await a.ended?.();
	await b.step(never);
	expect(steps.at(-1)).toBe('b');
});

test('one that died is followed after the lease has ended', async () => {
	const [a, b] = ['a', 'b'].map((name) => orchestrator(name, storeClock, noted(name))) as [Job, Job];
	await a.step(never);
	await storeClock.advance(LEASE_MS - 1);
	await b.step(never);
	expect(steps).toEqual(['a']);
	await storeClock.advance(1);
	await b.step(never);
	expect(steps).toEqual(['a', 'b']);
});

test('a step that takes long keeps its lease', async () => {
	let end = () => {};
	const long = new Promise<number>((resolve) => {
		end = () => resolve(0);
	});
	const a = orchestrator('a', storeClock, () => long);
	const b = orchestrator('b', storeClock, noted('b'));
	const running = a.step(never);
	for (let passed = 0; passed < 5 * LEASE_MS; passed += LEASE_MS / 3) {
		await storeClock.advance(LEASE_MS / 3);
		await b.step(never);
	}
	end();
	await running;
	expect(steps).toEqual([]);
});

test('one that was stopped and goes on: its writes are refused, its step is told, and it stands back', async () => {
	const ownClock = new ManualClock();
	let told: unknown = null;
	let goOn = () => {};
	const stopped = new Promise<void>((resolve) => {
		goOn = resolve;
	});
	const store = new MemoryMetadataStore(data, { nowMs: storeClock.nowMs });
	const a = orchestrator('a', ownClock, async (signal, lease) => {
		signal.addEventListener('abort', () => {
			told = signal.reason;
		});
		await stopped;
		await store.expireIntents(NOW_MS * 2, 10, lease);
		return 0;
	});
	const b = orchestrator('b', storeClock, noted('b'));
	await begin(store, make.upload(workers));
	const running = a.step(never);
	await storeClock.advance(LEASE_MS);
	await b.step(never);
	expect(steps).toEqual(['b']);
	// It wakes: its own clock has hardly moved, so it believes to hold the lease still.
	await ownClock.advance(LEASE_MS / 3);
	expect(told).toMatchObject({ kind: 'canceled' });
	goOn();
	await expect(running).rejects.toMatchObject({ kind: 'expired', reason: 'lease_lost' });
	expect((await store.counts()).intents).toBe(1);
	expect(await a.step(never)).toBeGreaterThan(0);
});

test('a renewal that is under way when its step ends is the last one', async () => {
	const store = new MemoryMetadataStore(data, { nowMs: storeClock.nowMs });
	const acquire = store.acquireLease.bind(store);
	let answer = () => {};
	const held = new Promise<void>((resolve) => {
		answer = resolve;
	});
	const asked = vi.spyOn(store, 'acquireLease').mockImplementation(async (...args) => {
		if (asked.mock.calls.length === 2) await held;
		return acquire(...args);
	});
	let end = () => {};
	const long = new Promise<number>((resolve) => {
		end = () => resolve(0);
	});
	const job = exclusive({ name: 'repair', step: () => long }, { store, clock: storeClock, holder: 'a' });
	const running = job.step(never);
	await storeClock.advance(LEASE_MS / 3);
	await storeClock.advance(LEASE_MS / 3);
	expect(asked.mock.calls.length).toBe(2);
	end();
	await storeClock.advance(0);
	answer();
	await running;
	await job.ended?.();
	for (let i = 0; i < 3; i++) await storeClock.advance(LEASE_MS / 3);
	expect(asked.mock.calls.length).toBe(2);
	expect(await acquire('repair', { holder: 'b', ttlMs: LEASE_MS })).not.toBeNull();
});

test('the jobs pass their lease on', async () => {
	const store = new MemoryMetadataStore(data, { nowMs: storeClock.nowMs });
	const job = expireIntentsJob({ store, clock: storeClock });
	await begin(store, make.upload(workers), NOW_MS);
	await expect(job.step(never, { name: job.name, fencing: 7 })).rejects.toMatchObject({ reason: 'lease_lost' });
	const lease = await store.acquireLease(job.name, { holder: 'a', ttlMs: LEASE_MS });
	await job.step(never, lease as NonNullable<typeof lease>);
	expect((await store.counts()).intents).toBe(0);
});
