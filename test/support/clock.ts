/** Real time, time that a test moves by hand, and a seeded random source. */

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

/** Evenly from 0 to 1, without 1. */
export function draw(random: Random): number {
	return random.bytes(4).readUInt32LE() / 2 ** 32;
}

/** Stands still until it is moved; what was scheduled runs in order of its time, within `advance`. */
export class ManualClock implements Clock {
	#ms: number;
	#scheduled: { atMs: number; callback: () => void }[] = [];

	constructor(startMs = Date.UTC(2026, 0, 1)) {
		this.#ms = startMs;
	}

	nowMs(): number {
		return this.#ms;
	}

	monotonicMs(): number {
		return this.#ms;
	}

	schedule(delayMs: number, callback: () => void): () => void {
		const entry = { atMs: this.#ms + delayMs, callback };
		this.#scheduled.push(entry);
		return () => {
			this.#scheduled = this.#scheduled.filter((other) => other !== entry);
		};
	}

	advance(ms: number): void {
		const untilMs = this.#ms + ms;
		for (;;) {
			const next = this.#scheduled.toSorted((a, b) => a.atMs - b.atMs)[0];
			if (next === undefined || next.atMs > untilMs) break;
			this.#scheduled = this.#scheduled.filter((other) => other !== next);
			this.#ms = next.atMs;
			next.callback();
		}
		this.#ms = untilMs;
	}
}
