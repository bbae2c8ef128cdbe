/**
 * Which keys are to be worked on, and when. A key is worked on by one worker at a time; added while it is, it comes once
 * more afterwards; added ten times, it comes once. After a failure it waits, 0.5 s doubled up to 5 min with jitter, each
 * key for itself. The idea is client-go's (util/workqueue).
 *
 * It differs in one thing: what is added while it waits for a failure comes soon, but not at once, so that a pass whose own
 * writes wake it can't run in circles.
 */

import { assert } from '../../core/assert.ts';
import { asDistroError, type DistroError } from '../../core/errors.ts';
import type { Clock, Random } from '../../core/ports.ts';
import { backoffMs } from '../../core/retry.ts';

export const RETRY_BASE_MS = 500;
export const RETRY_MAX_MS = 300_000;
/** Timers hold at most 24 days; a look too many costs nothing. */
export const DELAY_MAX_MS = 6 * 3_600_000;
/** Keys are resources; who makes more of them than this is not helped by a longer queue. */
export const KEYS_MAX = 10_000;

export interface WorkQueueOptions {
	readonly clock: Clock;
	readonly random: Random;
	/** Keys worked on at once. */
	readonly workers: number;
	/** One pass. A number asks for the next one after so many milliseconds. `signal`: stop waited long enough. */
	readonly work: (key: string, signal: AbortSignal) => Promise<number | null>;
	/** `failures` in a row, this one counted. */
	readonly onFailure: (key: string, error: DistroError, failures: number) => void;
}

interface Entry {
	state: 'waiting' | 'due' | 'running';
	/** Of `waiting`: when it is due, by the monotonic clock, and what takes that back. */
	dueMs: number;
	cancel: () => void;
	/** Added while it ran: due again no later than this. */
	againMs: number | null;
	failures: number;
	/** Not before this, whoever adds it. */
	earliestMs: number;
}

export class WorkQueue {
	readonly #o: WorkQueueOptions;
	readonly #entries = new Map<string, Entry>();
	/** In the order in which they became due. */
	readonly #due = new Set<string>();
	readonly #running = new Set<Promise<void>>();
	readonly #abort = new AbortController();
	#stopped = false;

	constructor(options: WorkQueueOptions) {
		assert(options.workers > 0, 'a queue has workers');
		this.#o = options;
	}

	/** Keys that wait, are due, or are worked on. */
	get size(): number {
		return this.#entries.size;
	}

	/** As soon as may be. False: the queue is stopped or full, and the key was not taken. */
	add(key: string): boolean {
		return this.addAfter(key, 0);
	}

	/** Due within `delayMs`; earlier if it was due earlier. */
	addAfter(key: string, delayMs: number): boolean {
		if (this.#stopped) return false;
		const nowMs = this.#o.clock.monotonicMs();
		const dueMs = nowMs + Math.min(Math.max(0, delayMs), DELAY_MAX_MS);
		const entry = this.#entries.get(key);
		if (entry === undefined) {
			if (this.#entries.size >= KEYS_MAX) return false;
			this.#plan(key, newEntry(), dueMs);
		} else if (entry.state === 'running') {
			entry.againMs = Math.min(entry.againMs ?? dueMs, dueMs);
		} else if (entry.state === 'waiting' && Math.max(dueMs, entry.earliestMs) < entry.dueMs) {
			this.#plan(key, entry, dueMs);
		}
		return true;
	}

	/** Nothing begins any more; what runs may end. After `graceMs` it is told to, by its signal. */
	async stop(graceMs: number): Promise<void> {
		this.#stopped = true;
		for (const entry of this.#entries.values()) entry.cancel();
		this.#due.clear();
		const cancel = this.#o.clock.schedule(graceMs, () => this.#abort.abort());
		await Promise.all(this.#running);
		cancel();
		this.#entries.clear();
	}

	#plan(key: string, entry: Entry, wantedMs: number): void {
		entry.cancel();
		const nowMs = this.#o.clock.monotonicMs();
		entry.dueMs = Math.max(wantedMs, entry.earliestMs);
		this.#entries.set(key, entry);
		if (entry.dueMs <= nowMs) {
			this.#becomeDue(key, entry);
			return;
		}
		entry.state = 'waiting';
		entry.cancel = this.#o.clock.schedule(entry.dueMs - nowMs, () => this.#becomeDue(key, entry));
	}

	#becomeDue(key: string, entry: Entry): void {
		entry.state = 'due';
		this.#due.add(key);
		this.#next();
	}

	#next(): void {
		for (const key of this.#due) {
			if (this.#stopped || this.#running.size >= this.#o.workers) return;
			const entry = this.#entries.get(key);
			this.#due.delete(key);
			if (entry === undefined) continue;
			entry.state = 'running';
			const run = this.#work(key, entry).finally(() => {
				this.#running.delete(run);
				this.#next();
			});
			this.#running.add(run);
		}
	}

	async #work(key: string, entry: Entry): Promise<void> {
		const { clock, onFailure, random, work } = this.#o;
		let nextMs: number | null = null;
		try {
			const delayMs = await work(key, this.#abort.signal);
			entry.failures = 0;
			entry.earliestMs = 0;
			if (delayMs !== null) nextMs = clock.monotonicMs() + Math.min(delayMs, DELAY_MAX_MS);
		} catch (thrown) {
			const error = asDistroError(thrown);
			const limits = { baseMs: RETRY_BASE_MS, maxMs: RETRY_MAX_MS, random };
			const waitMs = Math.max(backoffMs(entry.failures++, limits), error.retryAfterMs ?? 0);
			const nowMs = clock.monotonicMs();
			nextMs = nowMs + Math.min(waitMs, DELAY_MAX_MS);
			entry.earliestMs = nowMs + Math.min(waitMs, RETRY_BASE_MS);
			onFailure(key, error, entry.failures);
		}
		if (entry.againMs !== null) nextMs = Math.min(nextMs ?? entry.againMs, entry.againMs);
		entry.againMs = null;
		if (nextMs === null || this.#stopped) this.#entries.delete(key);
		else this.#plan(key, entry, nextMs);
	}
}

function newEntry(): Entry {
	return { state: 'due', dueMs: 0, cancel: () => {}, againMs: null, failures: 0, earliestMs: 0 };
}
