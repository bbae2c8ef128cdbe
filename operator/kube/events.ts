/**
 * Events for people (`kubectl events`): what the operator did and why it waits. Told and forgotten: `tell` never waits and
 * never throws, and an event that can't be written is lost.
 *
 * The same told again within SAME_MS becomes a series of one event, written at most every REWRITE_MS: the API server keeps
 * events for an hour, and etcd must not suffer from a pass that fails every second.
 */

import { asDistroError, type DistroError } from '../../core/errors.ts';
import type { Clock, Random } from '../../core/ports.ts';
import type { CallOptions, KubeClient } from './client.ts';
import { type KubeObject, microTime, type ObjectRef } from './objects.ts';
import { EVENTS } from './resources.ts';

export const SAME_MS = 600_000;
export const REWRITE_MS = 30_000;
/** Kinds of event that are remembered or wait to be written. More than this at once are lost. */
export const REMEMBERED_MAX = 1_000;
const REQUEST_MS = 10_000;
/** The API server's limits. */
const NOTE_MAX_CHARS = 1_024;
const NAME_MAX_CHARS = 253;
const SUFFIX_BYTES = 8;
const CONTROLLER = 'distro.dev/operator';

export interface EventText {
	readonly type: 'Normal' | 'Warning';
	/** One word in CamelCase: why. */
	readonly reason: string;
	/** One word in CamelCase: what was being done. */
	readonly action: string;
	readonly note: string;
}

interface Told {
	readonly regarding: KubeObject;
	readonly text: EventText;
	readonly name: string;
	/** For people: by the wall clock. */
	readonly firstMs: number;
	lastMs: number;
	count: number;
	/** By the monotonic clock. */
	toldMs: number;
	/** When it was last written or tried; null: never. */
	triedMs: number | null;
	/** Whether the API server has had it. */
	written: boolean;
}

export interface EventRecorderOptions {
	readonly client: KubeClient;
	readonly clock: Clock;
	readonly random: Random;
	/** The pod. */
	readonly instance: string;
	/** One that was lost, for the log. */
	readonly onFailure: (error: DistroError) => void;
}

export class EventRecorder {
	readonly #o: EventRecorderOptions;
	readonly #told = new Map<string, Told>();
	readonly #stop = new AbortController();
	/** To be written, in this order. */
	readonly #pending = new Set<Told>();
	#writing: Promise<void> | null = null;
	#cancelLater = () => {};

	constructor(options: EventRecorderOptions) {
		this.#o = options;
	}

	tell(regarding: KubeObject, text: EventText): void {
		const nowMs = this.#o.clock.nowMs();
		const toldMs = this.#o.clock.monotonicMs();
		this.#forget(toldMs);
		const { uid, namespace, name } = regarding.metadata;
		const key = JSON.stringify([
			uid ?? [regarding.kind, namespace, name],
			text.type,
			text.reason,
			text.action,
			text.note,
		]);
		const known = this.#told.get(key);
		if (known !== undefined) {
			known.count++;
			known.lastMs = nowMs;
			known.toldMs = toldMs;
			this.#pending.add(known);
		} else if (this.#told.size < REMEMBERED_MAX) {
			const suffix = this.#o.random.bytes(SUFFIX_BYTES).toString('hex');
			const first = {
				regarding,
				text,
				name: `${name.slice(0, NAME_MAX_CHARS - suffix.length - 1)}.${suffix}`,
				firstMs: nowMs,
				lastMs: nowMs,
				count: 1,
				toldMs,
				triedMs: null,
				written: false,
			};
			this.#told.set(key, first);
			this.#pending.add(first);
		}
		this.#write();
	}

	/** Writes what is left; given up after `graceMs`. */
	async stop(graceMs: number): Promise<void> {
		const cancel = this.#o.clock.schedule(graceMs, () => this.#stop.abort());
		await this.#writing;
		for (const told of this.#pending) told.triedMs = null;
		this.#write();
		await this.#writing;
		cancel();
		this.#stop.abort();
		this.#cancelLater();
	}

	#forget(nowMs: number): void {
		for (const [key, told] of this.#told) {
			if (nowMs - told.toldMs >= SAME_MS && !this.#pending.has(told)) this.#told.delete(key);
		}
	}

	#write(): void {
		if (this.#writing !== null || this.#stop.signal.aborted) return;
		this.#cancelLater();
		this.#writing = this.#writeAll().finally(() => {
			this.#writing = null;
			if (this.#pending.size === 0 || this.#stop.signal.aborted) return;
			const waitMs = Math.min(...[...this.#pending].map((told) => this.#leftMs(told)));
			if (waitMs === 0) this.#write();
			else this.#cancelLater = this.#o.clock.schedule(waitMs, () => this.#write());
		});
	}

	async #writeAll(): Promise<void> {
		while (!this.#stop.signal.aborted) {
			const told = [...this.#pending].find((pending) => this.#leftMs(pending) === 0);
			if (told === undefined) return;
			this.#pending.delete(told);
			told.triedMs = this.#o.clock.monotonicMs();
			try {
				await this.#writeOne(told);
				told.written = true;
			} catch (thrown) {
				this.#o.onFailure(asDistroError(thrown));
			}
		}
	}

	/** Until it may be written. */
	#leftMs({ triedMs }: Told): number {
		return triedMs === null ? 0 : Math.max(0, triedMs + REWRITE_MS - this.#o.clock.monotonicMs());
	}

	async #writeOne(told: Told): Promise<void> {
		if (told.written && (await this.#rewrite(told))) return;
		const { regarding, text } = told;
		const { apiVersion, kind, metadata } = regarding;
		const { namespace, name, uid, resourceVersion } = metadata;
		const event = {
			apiVersion: 'events.k8s.io/v1',
			kind: 'Event',
			metadata: refOf(told),
			...text,
			note: text.note.slice(0, NOTE_MAX_CHARS),
			regarding: { apiVersion, kind, namespace, name, uid, resourceVersion },
			eventTime: microTime(told.firstMs),
			reportingController: CONTROLLER,
			reportingInstance: this.#o.instance,
			...seriesOf(told),
		};
		try {
			await this.#o.client.create(EVENTS, event, this.#options());
		} catch (thrown) {
			// Written before, without an answer.
			if (asDistroError(thrown).kind !== 'exists') throw thrown;
			await this.#rewrite(told);
		}
	}

	/** False: the API server has forgotten it. */
	async #rewrite(told: Told): Promise<boolean> {
		try {
			await this.#o.client.patch(EVENTS, refOf(told), { ...this.#options(), merge: seriesOf(told) });
			return true;
		} catch (thrown) {
			if (asDistroError(thrown).kind !== 'not_found') throw thrown;
			return false;
		}
	}

	#options(): CallOptions {
		return { timeoutMs: REQUEST_MS, signal: this.#stop.signal };
	}
}

function refOf({ regarding, name }: Told): ObjectRef & { readonly namespace: string } {
	return { namespace: regarding.metadata.namespace ?? 'default', name };
}

function seriesOf({ count, lastMs }: Told): object {
	return count === 1 ? {} : { series: { count, lastObservedTime: microTime(lastMs) } };
}
