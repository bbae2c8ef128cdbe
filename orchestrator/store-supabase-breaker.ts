/**
 * Circuit breaker: after the database has failed for a while nothing waits for it any more. Calls fail at once, and one at
 * a time tries whether it is back.
 *
 * A restart of the database is over sooner than that and is bridged by repeating, so that uploads under way live on.
 */

import { DistroError } from '../core/errors.ts';
import type { Clock, Random } from '../core/ports.ts';
import { backoffMs } from '../core/retry.ts';

/** Failing for this long without one success opens it. */
const OPEN_AFTER_MS = 3_000;
/** Between tries; half of it at least. */
const PROBE_BASE_MS = 500;
const PROBE_MAX_MS = 5_000;
/** What clients are told at least. */
const RETRY_AFTER_MIN_MS = 1_000;

export class Breaker {
	readonly #clock: Clock;
	readonly #random: Random;
	/** When the first of the failures began that no success has followed, or null. */
	#failingSinceMs: number | null = null;
	#probeAtMs = 0;
	#probes = 0;
	#probing = false;
	#open = false;
	/** Of the last failure: whoever is refused meanwhile may say why. */
	#cause: Error | null = null;

	constructor(deps: { clock: Clock; random: Random }) {
		this.#clock = deps.clock;
		this.#random = deps.random;
	}

	/** Whether a call would be refused now. */
	get isOpen(): boolean {
		return this.#open && (this.#probing || this.#clock.monotonicMs() < this.#probeAtMs);
	}

	/** Before each try. Throws `unavailable` while it is open; whoever passes must tell how it went. */
	enter(): void {
		if (this.isOpen) throw this.refusal();
		if (this.#open) this.#probing = true;
	}

	refusal(): DistroError {
		const waitMs = Math.max(RETRY_AFTER_MIN_MS, this.#probeAtMs - this.#clock.monotonicMs());
		return new DistroError('unavailable', 'the metadata database does not answer: try again later', {
			retryAfterMs: Math.ceil(waitMs),
			...(this.#cause === null ? {} : { cause: this.#cause }),
		});
	}

	succeeded(): void {
		this.#failingSinceMs = null;
		this.#open = false;
		this.#probing = false;
		this.#probes = 0;
	}

	/** `startedMs`: monotonic time at which the failed try began. */
	failed(startedMs: number, cause: Error | null = null): void {
		this.#cause = cause;
		this.#failingSinceMs ??= startedMs;
		const nowMs = this.#clock.monotonicMs();
		this.#probing = false;
		if (!this.#open && nowMs - this.#failingSinceMs < OPEN_AFTER_MS) return;
		this.#open = true;
		const spread = backoffMs(this.#probes++, { baseMs: PROBE_BASE_MS, maxMs: PROBE_MAX_MS, random: this.#random });
		this.#probeAtMs = nowMs + PROBE_BASE_MS / 2 + spread;
	}
}
