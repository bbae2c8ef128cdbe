import { describe, expect, test } from 'vitest';
import type { Clock } from '../core/ports.ts';
import { ManualClock } from '../test/support/clock.ts';
import { ArenaPool } from './memory-pool.ts';

const PAGE = 4096;

function handClock(): Clock & { advance(ms: number): void } {
	let nowMs = 0;
	const timers = new Set<{ atMs: number; callback: () => void }>();
	return {
		nowMs: () => nowMs,
		monotonicMs: () => nowMs,
		schedule: (delayMs, callback) => {
			const timer = { atMs: nowMs + delayMs, callback };
			timers.add(timer);
			return () => timers.delete(timer);
		},
		advance: (ms) => {
			nowMs += ms;
			for (const timer of [...timers]) {
				if (timer.atMs > nowMs) continue;
				timers.delete(timer);
				timer.callback();
			}
		},
	};
}

describe('ArenaPool', () => {
	test('slots are page-aligned, distinct, and of the asked length', () => {
		const pool = new ArenaPool(65_536, { clock: handClock() });
		const lease = pool.tryAcquire([100, PAGE, 5000]);
		expect(lease?.slots.map((slot) => slot.length)).toEqual([100, PAGE, 5000]);
		expect(lease?.slots.map((slot) => slot.byteOffset % PAGE)).toEqual([0, 0, 0]);
		for (const [i, slot] of (lease?.slots ?? []).entries()) slot.fill(i + 1);
		for (const [i, slot] of (lease?.slots ?? []).entries()) expect(slot.every((byte) => byte === i + 1)).toBe(true);
		expect(pool.usedBytes).toBe(4 * PAGE);
		lease?.release();
		lease?.release();
		expect(pool.usedBytes).toBe(0);
	});

	test('given-back extents join, so that the whole arena can be had again', () => {
		const pool = new ArenaPool(65_536, { clock: handClock() });
		const leases = Array.from({ length: 16 }, () => pool.tryAcquire([PAGE]));
		expect(pool.tryAcquire([1])).toBeNull();
		for (const i of [3, 1, 2, 0, 15, 7, 9, 8, 4, 6, 5, 14, 10, 13, 11, 12]) leases[i]?.release();
		expect(pool.tryAcquire([65_536])).not.toBeNull();
	});

	test('waiters are served in order, and a small late one does not overtake', async () => {
		const pool = new ArenaPool(65_536, { clock: handClock() });
		const first = pool.tryAcquire([60_000]);
		const order: string[] = [];
		const big = pool.acquire([65_536], { timeoutMs: 1000 }).then((lease) => {
			order.push('big');
			lease.release();
		});
		const small = pool.acquire([PAGE], { timeoutMs: 1000 }).then(() => order.push('small'));
		expect(pool.tryAcquire([1])).toBeNull();
		first?.release();
		await Promise.all([big, small]);
		expect(order).toEqual(['big', 'small']);
	});

	test('a wait ends at its deadline, by its signal, or at once when it can never be served', async () => {
		const clock = handClock();
		const pool = new ArenaPool(65_536, { clock });
		pool.tryAcquire([65_536]);
		const late = pool.acquire([1], { timeoutMs: 50 });
		const abort = new AbortController();
		const canceled = pool.acquire([1], { timeoutMs: 1000, signal: abort.signal });
		clock.advance(50);
		await expect(late).rejects.toMatchObject({ kind: 'unavailable', retryAfterMs: 5000 });
		abort.abort();
		await expect(canceled).rejects.toMatchObject({ kind: 'canceled' });
		await expect(pool.acquire([70_000], { timeoutMs: 1 })).rejects.toMatchObject({ kind: 'exhausted' });
		expect(pool.waiting).toBe(0);
	});
});

test('busy while somebody has memory, and for a moment after', () => {
	const clock = new ManualClock();
	const pool = new ArenaPool(1024 * 1024, { clock });
	expect(pool.isBusy(1_000)).toBe(false);
	const lease = pool.tryAcquire([4096]);
	clock.advance(60_000);
	expect(pool.isBusy(1_000)).toBe(true);
	lease?.release();
	clock.advance(999);
	expect(pool.isBusy(1_000)).toBe(true);
	clock.advance(1);
	expect(pool.isBusy(1_000)).toBe(false);
});
