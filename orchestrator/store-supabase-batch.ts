/**
 * Group commit over the REST interface: while one round trip is under way the next calls gather, and go out together.
 *
 * Calls with the same key go through the same lane, one batch at a time, so they take effect in the order in which they
 * were made; also when a batch is tried again. Every call is safe to repeat (the functions see to that), so a lost answer
 * is asked for again until the call's deadline. Whoever's batch fails as a whole for another reason is sent alone.
 */

import { asDistroError, DistroError } from '../core/errors.ts';
import type { Clock, Random } from '../core/ports.ts';
import { backoffMs } from '../core/retry.ts';
import type { Lease } from './store.ts';
import { storeClosed } from './store-rules.ts';
import type { Breaker } from './store-supabase-breaker.ts';
import { answerError } from './store-supabase-errors.ts';
import { isPassing, type SupabaseRpc, TOO_LONG } from './store-supabase-rpc.ts';

export interface BatchOptions {
	/** The Postgres function that takes the batches. */
	readonly name: string;
	readonly lanes: number;
	/** Calls in a batch: each is a sub-transaction, of which Postgres keeps 64 cheaply. */
	readonly maxCalls: number;
	/** From the call until it is given up, waiting and repeating included. */
	readonly deadlineMs: number;
	/** Of one round trip. */
	readonly timeoutMs: number;
	/** Where a call goes on that alone takes too long here. */
	readonly slow?: Batches;
}

export interface StoreCall {
	readonly method: string;
	readonly args: object;
	/** Calls with the same key keep their order. */
	readonly key: string;
	readonly lease?: Lease | undefined;
	/** About how long its JSON is, when that is much. */
	readonly chars?: number;
}

interface Waiting {
	readonly call: StoreCall;
	readonly untilMs: number;
	readonly resolve: (value: unknown) => void;
	readonly reject: (error: DistroError) => void;
}

interface Lane {
	queue: Waiting[];
	idle: Promise<void> | null;
}

type Answer = { readonly ok: unknown } | { readonly error: { code: string; message: string; detail: string } };

const MAX_BATCH_CHARS = 1 << 20;
/** Over all lanes: at a thousand a second they wait two seconds. */
const MAX_WAITING = 2_000;
const RETRY_BASE_MS = 50;
const RETRY_MAX_MS = 1_000;
const MAX_TRIES = 10;

export class Batches {
	readonly #rpc: SupabaseRpc;
	readonly #breaker: Breaker;
	readonly #clock: Clock;
	readonly #random: Random;
	readonly #options: BatchOptions;
	readonly #lanes: readonly Lane[];
	#waiting = 0;
	#closed = false;

	constructor(deps: { rpc: SupabaseRpc; breaker: Breaker; clock: Clock; random: Random }, options: BatchOptions) {
		this.#rpc = deps.rpc;
		this.#breaker = deps.breaker;
		this.#clock = deps.clock;
		this.#random = deps.random;
		this.#options = options;
		this.#lanes = Array.from({ length: options.lanes }, () => ({ queue: [], idle: null }));
	}

	run(call: StoreCall): Promise<unknown> {
		if (this.#closed) return Promise.reject(storeClosed());
		if (this.#breaker.isOpen) return Promise.reject(this.#breaker.refusal());
		if (this.#waiting >= MAX_WAITING) {
			const busy = 'too many calls wait for the metadata database';
			return Promise.reject(new DistroError('unavailable', busy, { retryAfterMs: 1_000 }));
		}
		const lane = this.#lanes[hash(call.key) % this.#lanes.length] as Lane;
		return new Promise((resolve, reject) => {
			this.#waiting++;
			const untilMs = this.#clock.monotonicMs() + this.#options.deadlineMs;
			lane.queue.push({ call, untilMs, resolve, reject });
			// Whatever else this turn of the event loop asks for goes along.
			lane.idle ??= new Promise<void>((done) => setImmediate(() => this.#drain(lane).then(done)));
		});
	}

	async close(): Promise<void> {
		this.#closed = true;
		await Promise.all(this.#lanes.map(({ idle }) => idle));
	}

	async #drain(lane: Lane): Promise<void> {
		while (lane.queue.length > 0) await this.#send(this.#take(lane));
		lane.idle = null;
	}

	#take(lane: Lane): Waiting[] {
		let chars = 0;
		let count = 0;
		const keys = new Set<string>();
		for (const { call } of lane.queue) {
			chars += call.chars ?? 0;
			// One of a key: what comes after it must not be done where it had to be put off.
			const full = count === this.#options.maxCalls || chars > MAX_BATCH_CHARS || keys.has(call.key);
			if (full && count > 0) break;
			keys.add(call.key);
			count++;
		}
		const batch = lane.queue.slice(0, count);
		lane.queue = lane.queue.slice(count);
		this.#waiting -= count;
		// The same order in every batch, against deadlocks.
		return batch.sort((a, b) => (a.call.key < b.call.key ? -1 : a.call.key > b.call.key ? 1 : 0));
	}

	/** Until each has its answer. Never rejects. */
	async #send(batch: Waiting[]): Promise<void> {
		let left = batch;
		for (let attempt = 0; left.length > 0; attempt++) {
			const startedMs = this.#clock.monotonicMs();
			let failure: DistroError;
			try {
				this.#breaker.enter();
			} catch (refusal) {
				for (const { reject } of left) reject(refusal as DistroError);
				return;
			}
			try {
				const calls = left.map(({ call: { method, args, lease } }) => ({ method, args, fence: lease }));
				const answers = await this.#rpc.call(this.#options.name, { calls }, { timeoutMs: this.#options.timeoutMs });
				this.#breaker.succeeded();
				const busy = settle(left, answers as Answer[]);
				if (left.length > 1) {
					// Others want the same rows in another order. Alone each of them holds nothing while it waits.
					for (const one of busy) await this.#send([one]);
					return;
				}
				left = busy;
				failure = new DistroError('unavailable', 'the metadata database is busy', { retryAfterMs: 1_000 });
			} catch (error) {
				failure = asDistroError(error);
				const tooLong = failure.reason === TOO_LONG;
				if (isDatabaseAway(failure) && !tooLong) this.#breaker.failed(startedMs, failure);
				else this.#breaker.succeeded();
				if (left.length > 1 && (tooLong || !isDatabaseAway(failure))) {
					for (const one of left) await this.#send([one]);
					return;
				}
				const { slow } = this.#options;
				if (tooLong && slow !== undefined) {
					for (const { call, resolve, reject } of left) slow.run(call).then(resolve, reject);
					return;
				}
				failure = outward(failure);
			}
			const nowMs = this.#clock.monotonicMs();
			const spent = attempt + 1 >= MAX_TRIES || !mayRepeat(failure);
			left = left.filter(({ untilMs, reject }) => {
				const goesOn = !spent && untilMs > nowMs;
				if (!goesOn) reject(failure);
				return goesOn;
			});
			if (left.length > 0) {
				await this.#pause(backoffMs(attempt, { baseMs: RETRY_BASE_MS, maxMs: RETRY_MAX_MS, random: this.#random }));
			}
		}
	}

	#pause(ms: number): Promise<void> {
		return new Promise((resolve) => {
			this.#clock.schedule(ms, resolve);
		});
	}
}

/** Answers those that have an answer; returns those that the database asks to be repeated (a deadlock, a lock's time). */
function settle(batch: Waiting[], answers: readonly Answer[]): Waiting[] {
	if (!Array.isArray(answers) || answers.length !== batch.length) {
		throw new DistroError('internal', 'the metadata database answered something else than was asked');
	}
	return batch.filter(({ resolve, reject }, index) => {
		const answer = answers[index] as Answer;
		if ('ok' in answer) resolve(answer.ok);
		else if (isPassing(200, answer.error.code)) return true;
		else reject(answerError(answer.error));
		return false;
	});
}

function isDatabaseAway({ kind }: DistroError): boolean {
	return kind === 'unavailable' || kind === 'timeout' || kind === 'denied';
}

function mayRepeat({ kind, reason }: DistroError): boolean {
	return (kind === 'unavailable' && reason !== 'key_refused') || kind === 'timeout';
}

/** Whoever uploads can't help it that our key was revoked: all of that is 503 to them. The cause is for the operator. */
function outward(cause: DistroError): DistroError {
	const { kind, message } = cause;
	if (kind === 'unavailable' || kind === 'timeout')
		return new DistroError('unavailable', message, { retryAfterMs: 1_000 });
	if (kind !== 'denied') return cause;
	const details = { retryAfterMs: 5_000, reason: 'key_refused', cause };
	return new DistroError('unavailable', 'the metadata database refuses this orchestrator', details);
}

function hash(text: string): number {
	let sum = 0;
	for (let index = 0; index < text.length; index++) sum = (Math.imul(sum, 31) + text.charCodeAt(index)) >>> 0;
	return sum;
}
