/** The real clock and the real random source: what simulations replace. */

import { randomBytes } from 'node:crypto';
import type { Clock, Random } from '../core/ports.ts';

export const systemClock: Clock = {
	nowMs: () => Date.now(),
	monotonicMs: () => performance.now(),
	schedule: (delayMs, callback) => {
		const timer = setTimeout(callback, delayMs);
		timer.unref();
		return () => clearTimeout(timer);
	},
};

export const systemRandom: Random = { bytes: (count) => randomBytes(count) };
