/**
 * Keeps a store like the API server has it: lists, then watches from there on, for ever.
 *
 * client-node's informer goes silent for good after one HTTP 500 or a restarted API server; so the rules here are: every end
 * of a watch leads to another or to a list, and silence is an end too (a half-open connection looks like nothing new).
 * Bookmarks come once a minute, so a watch that brought nothing for longer than SILENCE_MS is dead. Events that were lost
 * on the way are found by the list that comes every RELIST_MS. The shape is client-go's (tools/cache/reflector.go).
 */

import { asDistroError, DistroError } from '../../core/errors.ts';
import type { Clock, Random } from '../../core/ports.ts';
import { backoffMs } from '../../core/retry.ts';
import type { KubeClient, Selection, WatchEvent } from './client.ts';
import type { KubeObject } from './objects.ts';
import type { ListedResource } from './resources.ts';
import type { Store } from './store.ts';
import { wait } from './wait.ts';

export const BACKOFF_BASE_MS = 800;
export const BACKOFF_MAX_MS = 30_000;
export const SILENCE_MS = 150_000;
export const RELIST_MS = 600_000;
/** The server ends a watch after between one and two times this, so that not all of them come back at once. */
const WATCH_SECONDS = 240;
/** A watch that ended sooner than this is not followed by another at once. */
const WORKED_MS = 5_000;
const UINT32 = 0x1_0000_0000;

export interface ReflectorOptions<T extends KubeObject> {
	readonly client: KubeClient;
	readonly resource: ListedResource<T>;
	readonly selection: Selection;
	readonly store: Store<T>;
	readonly clock: Clock;
	readonly random: Random;
	/** Each failure, for the log. The reflector goes on by itself. */
	readonly onFailure: (error: DistroError) => void;
}

export class Reflector<T extends KubeObject> {
	readonly #o: ReflectorOptions<T>;
	readonly #stop = new AbortController();
	#running: Promise<void> | null = null;
	/** Where the next watch goes on; null when a list is due. */
	#version: string | null = null;
	#listedMs = 0;
	#seenMs: number;
	#attempt = 0;

	constructor(options: ReflectorOptions<T>) {
		this.#o = options;
		this.#seenMs = options.clock.monotonicMs();
	}

	/** When the API server last said anything about this kind, by the monotonic clock. */
	get seenMs(): number {
		return this.#seenMs;
	}

	start(): void {
		this.#running ??= this.#run();
	}

	async stop(): Promise<void> {
		this.#stop.abort();
		await this.#running;
	}

	async #run(): Promise<void> {
		const { signal } = this.#stop;
		while (!signal.aborted) {
			try {
				if (this.#version === null || this.#age(this.#listedMs) > RELIST_MS) await this.#list();
				if (await this.#watch()) continue;
			} catch (thrown) {
				if (signal.aborted) return;
				const error = asDistroError(thrown);
				this.#o.onFailure(error);
				// Nothing is known for certain any more but by a list; else the watch goes on where it broke.
				if (error.kind !== 'unavailable' && error.kind !== 'timeout') this.#version = null;
			}
			const { clock, random } = this.#o;
			const limits = { baseMs: BACKOFF_BASE_MS, maxMs: BACKOFF_MAX_MS, random };
			await wait(clock, backoffMs(this.#attempt++, limits), signal);
		}
	}

	async #list(): Promise<void> {
		const { client, resource, selection, store } = this.#o;
		const { items, resourceVersion } = await client.list(resource, selection, { signal: this.#stop.signal });
		this.#seen();
		store.replace(items);
		this.#version = resourceVersion;
		this.#listedMs = this.#seenMs;
	}

	/** Until it ends without an error: whether it lasted. */
	async #watch(): Promise<boolean> {
		const { client, clock, random, resource, selection } = this.#o;
		const startMs = clock.monotonicMs();
		const share = random.bytes(4).readUInt32LE(0) / UINT32;
		const silence = new Silence(clock, this.#stop.signal);
		try {
			const events = client.watch(resource, selection, {
				resourceVersion: this.#version ?? '',
				timeoutSeconds: Math.floor(WATCH_SECONDS * (1 + share)),
				signal: silence.signal,
			});
			for await (const event of events) {
				silence.broken();
				this.#seen();
				this.#attempt = 0;
				this.#take(event);
			}
		} catch (error) {
			throw silence.noticed ? new DistroError('timeout', `watch ${resource.plural}: silent`, { cause: error }) : error;
		} finally {
			silence.end();
		}
		this.#seen();
		if (this.#age(startMs) < WORKED_MS) return false;
		this.#attempt = 0;
		return true;
	}

	#take(event: WatchEvent<T>): void {
		const version = event.type === 'BOOKMARK' ? event.resourceVersion : event.object.metadata.resourceVersion;
		// A watch is in the order of versions: what is not newer was here before, and would turn time back.
		if (this.#version !== null && !isNewer(version, this.#version)) return;
		if (event.type === 'DELETED') this.#o.store.remove(event.object);
		else if (event.type !== 'BOOKMARK') this.#o.store.set(event.object);
		this.#version = version;
	}

	#seen(): void {
		this.#seenMs = this.#o.clock.monotonicMs();
	}

	#age(sinceMs: number): number {
		return this.#o.clock.monotonicMs() - sinceMs;
	}
}

/** Ends a watch that brings nothing. */
class Silence {
	readonly #clock: Clock;
	readonly #control = new AbortController();
	readonly #outer: AbortSignal;
	readonly #onStop = () => this.#control.abort();
	#cancel: () => void;
	noticed = false;

	constructor(clock: Clock, outer: AbortSignal) {
		this.#clock = clock;
		this.#outer = outer;
		outer.addEventListener('abort', this.#onStop, { once: true });
		this.#cancel = this.#schedule();
	}

	get signal(): AbortSignal {
		return this.#control.signal;
	}

	broken(): void {
		this.#cancel();
		this.#cancel = this.#schedule();
	}

	end(): void {
		this.#cancel();
		this.#outer.removeEventListener('abort', this.#onStop);
	}

	#schedule(): () => void {
		return this.#clock.schedule(SILENCE_MS, () => {
			this.noticed = true;
			this.#control.abort();
		});
	}
}

/** Versions are decimal numbers of any length (Kubernetes 1.35 promises so). Others are taken as newer: better twice than never. */
export function isNewer(version: string, than: string): boolean {
	if (!/^\d+$/.test(version) || !/^\d+$/.test(than)) return version !== than;
	return BigInt(version) > BigInt(than);
}
