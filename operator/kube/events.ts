/**
 * Events for people (`kubectl events`): what the operator did and why it waits. Told and forgotten: `tell` never waits and
 * never throws, and an event that can't be written is lost.
 *
 * The same told again within SAME_MS becomes a series of one event, written at most every REWRITE_MS: the API server keeps
 * events for an hour, and etcd must not suffer from a pass that fails every second.
 */

import { asDistroError, type DistroError } from '../../core/errors.ts';
import type { Clock, Random } from '../../core/ports.ts';
import type { KubeClient } from './client.ts';
import type { KubeObject } from './objects.ts';
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
	readonly firstMs: number;
	count: number;
	lastMs: number;
	/** How many of `count` the API server knows. */
	written: number;
	writtenMs: number;
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
		this.#forget(nowMs);
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
			this.#pending.add(known);
		} else if (this.#told.size < REMEMBERED_MAX) {
			const suffix = this.#o.random.bytes(SUFFIX_BYTES).toString('hex');
			const first = {
				regarding,
				text,
				name: `${name.slice(0, NAME_MAX_CHARS - suffix.length - 1)}.${suffix}`,
				firstMs: nowMs,
				count: 1,
				lastMs: nowMs,
				written: 0,
				writtenMs: 0,
			};
			this.#told.set(key, first);
			this.#pending.add(first);
		}
		this.#write();
	}

	/** What is being written is given up after `graceMs`. */
	async stop(graceMs: number): Promise<void> {
		this.#cancelLater();
		for (const told of this.#pending) told.writtenMs = 0;
		this.#write();
		const cancel = this.#o.clock.schedule(graceMs, () => this.#stop.abort());
		await this.#writing;
		cancel();
		this.#stop.abort();
	}

	#forget(nowMs: number): void {
		for (const [key, told] of this.#told) {
			if (nowMs - told.lastMs >= SAME_MS && !this.#pending.has(told)) this.#told.delete(key);
		}
	}

	#write(): void {
		if (this.#writing !== null || this.#stop.signal.aborted) return;
		this.#cancelLater();
		this.#writing = this.#writeAll().finally(() => {
			this.#writing = null;
			const nowMs = this.#o.clock.nowMs();
			const waits = [...this.#pending].map((told) => told.writtenMs + REWRITE_MS - nowMs);
			if (waits.length === 0 || this.#stop.signal.aborted) return;
			this.#cancelLater = this.#o.clock.schedule(Math.max(0, Math.min(...waits)), () => this.#write());
		});
	}

	async #writeAll(): Promise<void> {
		for (const told of [...this.#pending]) {
			const nowMs = this.#o.clock.nowMs();
			if (this.#stop.signal.aborted) return;
			if (nowMs - told.writtenMs < REWRITE_MS) continue;
			this.#pending.delete(told);
			const { count } = told;
			told.writtenMs = nowMs;
			try {
				await this.#writeOne(told);
				told.written = count;
			} catch (thrown) {
				this.#o.onFailure(asDistroError(thrown));
			}
		}
	}

	async #writeOne(told: Told): Promise<void> {
		const { client } = this.#o;
		const options = { timeoutMs: REQUEST_MS, signal: this.#stop.signal };
		const ref = { namespace: told.regarding.metadata.namespace ?? 'default', name: told.name };
		const series = told.count === 1 ? {} : { series: { count: told.count, lastObservedTime: microTime(told.lastMs) } };
		if (told.written > 0) {
			try {
				await client.patch(EVENTS, ref, { ...options, merge: series });
				return;
			} catch (thrown) {
				// The API server has forgotten it: then anew.
				if (asDistroError(thrown).kind !== 'not_found') throw thrown;
			}
		}
		const { apiVersion, kind, metadata } = told.regarding;
		const { namespace, name, uid, resourceVersion } = metadata;
		await client.create(
			EVENTS,
			{
				apiVersion: 'events.k8s.io/v1',
				kind: 'Event',
				metadata: ref,
				...told.text,
				note: told.text.note.slice(0, NOTE_MAX_CHARS),
				regarding: { apiVersion, kind, namespace, name, uid, resourceVersion },
				eventTime: microTime(told.firstMs),
				reportingController: CONTROLLER,
				reportingInstance: this.#o.instance,
				...series,
			},
			options,
		);
	}
}

function microTime(ms: number): string {
	return new Date(ms).toISOString().replace('Z', '000Z');
}
