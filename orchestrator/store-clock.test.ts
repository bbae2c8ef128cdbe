/** The store's time of day, on a clock that is moved by hand. */

import { expect, test } from 'vitest';
import { ManualClock } from '../test/support/clock.ts';
import { openStoreClock } from './store-clock.ts';

const HOUR_MS = 3_600_000;

/** A store that is `aheadMs` ahead of the clock, and whose answers take as long to come as `onWay` says, each way. */
function setUp(aheadMs: number) {
	const clock = new ManualClock();
	const way = { thereMs: 0, backMs: 0, aheadMs };
	const store = {
		nowMs: async () => {
			clock.advance(way.thereMs);
			const storeMs = clock.nowMs() + way.aheadMs;
			clock.advance(way.backMs);
			return storeMs;
		},
	};
	return { clock, way, store, errorMs: (nowMs: number) => Math.abs(nowMs - (clock.nowMs() + way.aheadMs)) };
}

test.each([-5 * HOUR_MS, 0, 5 * HOUR_MS])(
	'a clock that differs by %d ms tells the time of the store',
	async (aheadMs) => {
		const { clock, way, store, errorMs } = setUp(aheadMs);
		way.thereMs = 30;
		way.backMs = 10;
		const storeClock = await openStoreClock(store, clock);
		expect(errorMs(storeClock.nowMs())).toBeLessThanOrEqual(20);
		clock.advance(HOUR_MS);
		expect(errorMs(storeClock.nowMs())).toBeLessThanOrEqual(20);
		expect(Number.isInteger(storeClock.nowMs())).toBe(true);
		expect(storeClock.monotonicMs()).toBe(clock.monotonicMs());
	},
);

test('what drifted is put right; an answer that took long is not believed, but for the first', async () => {
	const { clock, way, store, errorMs } = setUp(HOUR_MS);
	way.backMs = 3_000;
	const storeClock = await openStoreClock(store, clock);
	expect(errorMs(storeClock.nowMs())).toBe(1_500);
	way.backMs = 2_000;
	await storeClock.sync();
	expect(errorMs(storeClock.nowMs())).toBe(1_000);
	way.aheadMs += 400;
	way.backMs = 2_001;
	await storeClock.sync();
	expect(errorMs(storeClock.nowMs())).toBe(1_400);
	way.backMs = 0;
	await storeClock.sync();
	expect(errorMs(storeClock.nowMs())).toBe(0);
});

test('a store that is away is no clock, and later changes nothing', async () => {
	const { clock, way, store, errorMs } = setUp(HOUR_MS);
	let away = true;
	const nowMs = () => (away ? Promise.reject(new Error('away')) : store.nowMs());
	await expect(openStoreClock({ nowMs }, clock)).rejects.toThrow('away');
	away = false;
	const storeClock = await openStoreClock({ nowMs }, clock);
	away = true;
	way.backMs = 0;
	await expect(storeClock.sync()).rejects.toThrow('away');
	expect(errorMs(storeClock.nowMs())).toBe(0);
});
