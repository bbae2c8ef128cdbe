/**
 * A process that ends, fails or stands still at any one of its calls to the world: the metadata store and the workers. It
 * is the same at each call, so a test that goes through all numbers has been at every point where a kill can fall.
 */

import { DistroError } from '../../core/errors.ts';
import type {
	Clock,
	ShardGet,
	ShardGetEvents,
	ShardGetRequest,
	ShardPut,
	ShardPutEvents,
	ShardPutRequest,
	WorkerRef,
} from '../../core/ports.ts';
import type { RepairDeps } from '../../orchestrator/repair.ts';
import type { MetadataStore } from '../../orchestrator/store.ts';

export const STOPS = ['is killed', 'gets an error', 'stands still'] as const;
export type Stop = (typeof STOPS)[number];

export interface MortalPlan {
	/** The number of the call, from 1. */
	readonly at: number;
	readonly what: Stop;
	/** The call takes effect, and only its answer is not heard. */
	readonly done: boolean;
	/** Sees each call before it is made. */
	readonly onCall?: (name: string) => void | Promise<void>;
}

type Transport = RepairDeps['transport'];

export class Mortal {
	readonly #plan: MortalPlan;
	readonly #waiting: (() => void)[] = [];
	readonly #breaks = new Set<() => void>();
	#state: 'alive' | 'still' | 'dead' = 'alive';
	#stop = () => {};
	/** How many calls there were. */
	calls = 0;
	/** The name of the call where it stopped. */
	stoppedIn = '';
	/** It was killed, or stands still. */
	readonly stopped: Promise<void>;

	constructor(plan: MortalPlan) {
		this.#plan = plan;
		this.stopped = new Promise((resolve) => {
			this.#stop = resolve;
		});
	}

	/** Goes on where it stood, knowing nothing of the time between. */
	wake(): void {
		if (this.#state === 'still') this.#state = 'alive';
		for (const step of this.#waiting.splice(0)) this.#run(step);
	}

	#run(step: () => void): void {
		if (this.#state === 'alive') step();
		else if (this.#state === 'still') this.#waiting.push(step);
	}

	#end(): void {
		this.#state = this.#plan.what === 'is killed' ? 'dead' : 'still';
		if (this.#state === 'dead') for (const hangUp of this.#breaks) hangUp();
		this.#stop();
	}

	/** Makes the call, or stops there. `fail` is what a caller hears of an error. */
	#call(name: string, steps: { act: () => void; fail: (error: DistroError) => void }): void {
		this.#run(() => {
			if (++this.calls !== this.#plan.at) {
				steps.act();
				return;
			}
			this.stoppedIn = name;
			const { what, done } = this.#plan;
			if (what === 'gets an error') {
				if (done) steps.act();
				steps.fail(new DistroError('unavailable', `${name}: made for a test`));
			} else if (done) {
				steps.act();
				this.#end();
			} else {
				this.#end();
				this.#run(steps.act);
			}
		});
	}

	/** Whose answer comes later. */
	async #ask<T>(name: string, act: () => Promise<T>): Promise<T> {
		await this.#plan.onCall?.(name);
		return new Promise<T>((resolve, reject) => {
			this.#call(name, {
				act: () =>
					act().then(
						(value) => this.#run(() => resolve(value)),
						(error) => this.#run(() => reject(error)),
					),
				fail: reject,
			});
		});
	}

	#wrapped<T extends object>(real: T): T {
		return new Proxy(real, {
			get: (target, name) => {
				const value = Reflect.get(target, name) as unknown;
				if (typeof value !== 'function') return value;
				return (...args: unknown[]) => this.#ask(String(name), () => value.apply(target, args));
			},
		});
	}

	store(real: MetadataStore): MetadataStore {
		return this.#wrapped(real);
	}

	clock(real: Clock): Clock {
		return { ...real, schedule: (delayMs, callback) => real.schedule(delayMs, () => this.#run(callback)) };
	}

	transport(real: Transport): Transport {
		return {
			stat: (...args) => this.#ask('stat', () => real.stat(...args)),
			put: (worker, request, events) => this.#put(real, { worker, request, events }),
			get: (worker, request, events) => this.#get(real, { worker, request, events }),
		};
	}

	#put(real: Transport, o: { worker: WorkerRef; request: ShardPutRequest; events: ShardPutEvents }): ShardPut {
		let put: ShardPut | null = null;
		let over = false;
		let finished = false;
		const hear = (event: () => void) =>
			this.#run(() => {
				if (!over) event();
			});
		const last = (event: () => void) =>
			hear(() => {
				over = true;
				event();
			});
		// A connection that breaks takes back what was not finished.
		const hangUp = () => {
			if (!finished) put?.abort('the connection broke');
		};
		this.#breaks.add(hangUp);
		const fail = (error: DistroError) => {
			hangUp();
			setImmediate(() => last(() => o.events.failed(error)));
		};
		const act = () => {
			put = real.put(o.worker, o.request, {
				accepted: () => hear(() => o.events.accepted()),
				receipt: (receipt) => last(() => o.events.receipt(receipt)),
				failed: (error) => last(() => o.events.failed(error)),
			});
		};
		this.#call('put', { act, fail });
		return {
			write: (cell, done) =>
				this.#call('write', {
					act: () => (put === null ? setImmediate(done) : put.write(cell, () => this.#run(done))),
					fail: (error) => {
						fail(error);
						if (!this.#plan.done) setImmediate(done);
					},
				}),
			finish: (trailer) =>
				this.#call('finish', {
					act: () => {
						finished = true;
						put?.finish(trailer);
					},
					fail,
				}),
			abort: (reason) =>
				this.#run(() => {
					over = true;
					put?.abort(reason);
				}),
		};
	}

	#get(real: Transport, o: { worker: WorkerRef; request: ShardGetRequest; events: ShardGetEvents }): ShardGet {
		let get: ShardGet | null = null;
		let over = false;
		const hear = (event: () => void) =>
			this.#run(() => {
				if (!over) event();
			});
		this.#breaks.add(() => get?.abort('the connection broke'));
		this.#call('get', {
			act: () => {
				get = real.get(o.worker, o.request, {
					leaves: (leaves) => hear(() => o.events.leaves(leaves)),
					data: (chunk) => {
						// Heard later it would be another's by then.
						const kept = this.#state === 'alive' ? chunk : Buffer.from(chunk);
						hear(() => o.events.data(kept));
					},
					end: () => hear(() => o.events.end()),
					failed: (error) => hear(() => o.events.failed(error)),
				});
			},
			fail: (error) => {
				get?.abort('the connection broke');
				setImmediate(() => hear(() => o.events.failed(error)));
			},
		});
		return {
			pause: () => this.#run(() => get?.pause()),
			resume: () => this.#run(() => get?.resume()),
			abort: (reason) =>
				this.#run(() => {
					over = true;
					get?.abort(reason);
				}),
		};
	}
}
