/** Real time and a seeded random source, for tests that need no control over either. */

import { createCipheriv, createHash } from 'node:crypto';
import type { Clock, Random } from '../../core/ports.ts';

export const realClock: Clock = {
	nowMs: () => Date.now(),
	monotonicMs: () => performance.now(),
	schedule: (delayMs, callback) => {
		const timer = setTimeout(callback, delayMs);
		timer.unref();
		return () => clearTimeout(timer);
	},
};

/** The same bytes for the same seed, on every machine. */
export function seededRandom(seed: string): Random {
	const stream = createCipheriv('aes-256-ctr', createHash('sha256').update(seed).digest(), Buffer.alloc(16));
	return { bytes: (count) => stream.update(Buffer.alloc(count)) };
}
