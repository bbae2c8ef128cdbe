/**
 * Reconcile: once a week each worker's shards are compared with what the metadata knows of it, range by range. What nothing
 * knows goes to the delete queue; what is placed there and is gone is a finding, which queues its repair.
 *
 * Two passes a worker: one counts, and only then one queues. So a run that would remove too much of a worker stops before it
 * has removed anything: more likely than so much waste are metadata that are not the right ones. A page that can't be had
 * ends nothing: the worker's turn comes later. How far a run is stands in the job's row, for whichever orchestrator goes on.
 */

import { asDistroError } from '../core/errors.ts';
import type { ShardId, WorkerId } from '../core/ids.ts';
import type { Clock, WorkerRef } from '../core/ports.ts';
import type { Findings } from './findings.ts';
import { pause } from './jobs.ts';
import type { ExclusiveJob, JobProgress } from './leases.ts';
import { type ComparedRange, compareRange, type RangeDeps } from './reconcile-range.ts';
import type { Lease, MetadataStore, WorkerRow } from './store.ts';

const NAME = 'reconcile';
/** A worker that was away, or did not answer, is tried again after this. */
const AWAY_MS = 60_000;
/** Between two ranges: of a disk's and a database's time this takes little. */
const POLITE_MS = 20;

export interface ReconcileDeps extends RangeDeps {
	readonly store: Pick<MetadataStore, 'knownShards' | 'queueUnknown' | 'forgottenAt' | 'jobs'>;
	readonly workers: {
		rows(): readonly { readonly row: Pick<WorkerRow, 'workerId'> }[];
		ref(workerId: WorkerId): WorkerRef | null;
		isReachable(workerId: WorkerId): boolean;
		name(workerId: WorkerId): string;
	};
	readonly findings: Pick<Findings, 'add'>;
	readonly clock: Clock;
	/** From the beginning of one run to that of the next. */
	readonly periodMs: number;
	/** Of a worker's shards, the part that a run may remove, 0 to 1; one shard always, unless it is 0. */
	readonly limit: number;
	readonly onQueued: (count: number) => void;
	readonly onStopped: (stopped: StoppedWorker) => void;
	/** The worker did not answer, or answered nonsense. */
	readonly onSetAside: (workerId: WorkerId, error: unknown) => void;
}

/** Nothing that is unknown was queued of it, unless more of it came between the two passes. */
export interface StoppedWorker {
	readonly worker: string;
	readonly worker_id: WorkerId;
	readonly why: 'the metadata knows no shard of it' | 'too many shards are unknown';
	readonly shards: number;
	readonly unknown: number;
	/** Of the unknown, how many were queued before it was too much: fewer than the limit. */
	readonly queued: number;
}

interface Turn {
	readonly worker_id: WorkerId;
	readonly pass: 'count' | 'queue';
	/** Where the next range begins. */
	readonly after: ShardId | null;
	readonly shards: number;
	readonly known: number;
	readonly unknown: number;
	/** Unknown ones from before the worker was forgotten: nobody's, however many they are. */
	readonly abandoned: number;
	/** Of the unknown, how many may be queued, and how many are. */
	readonly may: number;
	readonly queued: number;
}

/** What people see of it, and what the next orchestrator goes on with. */
export interface ReconcileState extends JobProgress {
	readonly due_at: string;
	readonly began_at: string | null;
	readonly ended_at: string | null;
	/** Workers up to this id had their turn, or are `away`. */
	readonly done_to: string;
	readonly away: readonly WorkerId[];
	readonly turn: Turn | null;
	readonly compared_shards: number;
	readonly queued_shards: number;
	readonly missing_shards: number;
	readonly stuck: readonly StoppedWorker[];
}

export function reconcileJob(deps: ReconcileDeps): ExclusiveJob {
	const reconciler = new Reconciler(deps);
	return {
		name: NAME,
		state: () => reconciler.state,
		step: (signal, lease, asked = false) => reconciler.step(signal, lease, asked),
	};
}

class Reconciler {
	readonly #deps: ReconcileDeps;
	state: ReconcileState;
	/** Of the lease under which `state` was read. */
	#fencing = 0;
	/** The run under way is the one that was asked for. */
	#isServing = false;
	/** Of workers that did not answer. */
	readonly #tryAtMs = new Map<WorkerId, number>();

	constructor(deps: ReconcileDeps) {
		this.#deps = deps;
		this.state = this.#fresh();
	}

	/** The first run comes a period after the first start. */
	#fresh(): ReconcileState {
		const { clock, periodMs } = this.#deps;
		return {
			due_at: new Date(clock.nowMs() + periodMs).toISOString(),
			began_at: null,
			ended_at: null,
			done_to: '',
			away: [],
			turn: null,
			compared_shards: 0,
			queued_shards: 0,
			missing_shards: 0,
			stuck: [],
		};
	}

	async step(signal: AbortSignal, lease: Lease, asked: boolean): Promise<number> {
		const { clock } = this.#deps;
		if (this.#fencing !== lease.fencing) {
			await this.#load();
			this.#fencing = lease.fencing;
			this.#isServing = false;
		}
		if (asked && !this.#isServing) this.#begin();
		this.#isServing = asked;
		const dueInMs = Date.parse(this.state.due_at) - clock.nowMs();
		const turn = this.state.turn ?? this.#nextTurn();
		if (turn !== null) {
			await this.#compare(turn, lease);
			await pause(clock, POLITE_MS, signal);
			return 0;
		}
		if (this.state.away.length === 0 && this.state.ended_at === null && this.state.began_at !== null) {
			this.state = { ...this.state, ended_at: new Date(clock.nowMs()).toISOString() };
		}
		if (dueInMs > 0) return this.state.away.length > 0 ? Math.min(AWAY_MS, dueInMs) : dueInMs;
		this.#begin();
		return 0;
	}

	async #load(): Promise<void> {
		const row = (await this.#deps.store.jobs()).find(({ name }) => name === NAME);
		const { progress } = row === undefined || row.state === '' ? {} : JSON.parse(row.state);
		this.state = { ...this.#fresh(), ...progress };
	}

	#begin(): void {
		const { clock } = this.#deps;
		// What was stopped stays told until it is looked at again.
		const { stuck } = this.state;
		this.state = { ...this.#fresh(), began_at: new Date(clock.nowMs()).toISOString(), stuck };
		this.#tryAtMs.clear();
	}

	/** Workers in order of their ids; those that are away at their turn come later. */
	#nextTurn(): Turn | null {
		if (this.state.began_at === null) return null;
		const { workers, clock } = this.#deps;
		const ids = workers.rows().map(({ row }) => row.workerId);
		let { done_to } = this.state;
		const away = this.state.away.filter((workerId) => ids.includes(workerId));
		const answers = (workerId: WorkerId) =>
			workers.isReachable(workerId) && (this.#tryAtMs.get(workerId) ?? 0) <= clock.monotonicMs();
		let next: WorkerId | null = null;
		for (const workerId of ids.filter((id) => id > done_to).sort()) {
			if (answers(workerId)) next = workerId;
			else if (!away.includes(workerId)) away.push(workerId);
			if (next !== null) break;
			done_to = workerId;
		}
		next ??= away.find(answers) ?? null;
		const stuck = this.state.stuck.filter(({ worker_id }) => ids.includes(worker_id));
		this.state = { ...this.state, done_to, away, stuck };
		if (next === null) return null;
		const nothing = { after: null, shards: 0, known: 0, unknown: 0, abandoned: 0, may: 0, queued: 0 };
		return { worker_id: next, pass: 'count', ...nothing };
	}

	async #compare(turn: Turn, lease: Lease): Promise<void> {
		const { workers, store } = this.#deps;
		const workerId = turn.worker_id;
		const ref = workers.isReachable(workerId) ? workers.ref(workerId) : null;
		if (ref === null) return this.#setAside(turn);
		const forgottenAtMs = await store.forgottenAt(workerId);
		const isAbandoned = ({ writtenAtMs }: { writtenAtMs: number }) =>
			forgottenAtMs !== null && writtenAtMs < forgottenAtMs;
		const range = await this.#range(turn, ref);
		if (range === null) return;
		if (turn.pass === 'count') await this.#count(turn, range, isAbandoned);
		else await this.#queue(turn, range, { isAbandoned, lease });
	}

	/** Null: the worker did not answer, and has its turn later. */
	async #range(turn: Turn, ref: WorkerRef): Promise<ComparedRange | null> {
		const { transport, ageMs, store, onSetAside } = this.#deps;
		let failure: unknown = null;
		const noted = async <T>(answer: Promise<T>): Promise<T> => {
			try {
				return await answer;
			} catch (error) {
				failure = error;
				throw error;
			}
		};
		const asking: RangeDeps['transport'] = {
			list: (...args) => noted(transport.list(...args)),
			trailers: (...args) => noted(transport.trailers(...args)),
		};
		try {
			return await compareRange({ store, transport: asking, ageMs }, ref, turn.after);
		} catch (error) {
			if (error !== failure) throw error;
			onSetAside(turn.worker_id, asDistroError(error));
			this.#setAside(turn);
			return null;
		}
	}

	async #count(turn: Turn, range: ComparedRange, isAbandoned: (shard: { writtenAtMs: number }) => boolean) {
		const { findings, limit } = this.#deps;
		const { worker_id: workerId } = turn;
		const missing = range.missing.map((shardId) => ({
			shardId,
			workerId,
			kind: 'missing' as const,
			detail: 'reconcile: it is placed there and the worker does not have it',
		}));
		if (missing.length > 0) await findings.add(missing);
		const abandoned = range.unknown.filter(isAbandoned).length;
		const counted: Turn = {
			...turn,
			after: range.end,
			shards: turn.shards + range.shards,
			known: turn.known + range.known,
			unknown: turn.unknown + range.unknown.length - abandoned,
			abandoned: turn.abandoned + abandoned,
		};
		this.state = {
			...this.state,
			turn: counted,
			compared_shards: this.state.compared_shards + range.shards,
			missing_shards: this.state.missing_shards + missing.length,
		};
		if (range.end !== null) return;
		// Of those that are somebody's: a heap of abandoned ones must not vouch for the removal of others.
		const most = limit === 0 ? 0 : Math.max(1, Math.floor((counted.shards - counted.abandoned) * limit));
		const why =
			counted.unknown === 0
				? null
				: counted.known === 0
					? 'the metadata knows no shard of it'
					: counted.unknown > most
						? 'too many shards are unknown'
						: null;
		if (why !== null) this.#stop(counted, why);
		else this.#goes(workerId);
		const may = why === null && counted.unknown > 0 ? most : 0;
		if (may === 0 && counted.abandoned === 0) this.#done(workerId);
		else this.state = { ...this.state, turn: { ...counted, pass: 'queue', after: null, may } };
	}

	async #queue(
		turn: Turn,
		range: ComparedRange,
		how: { isAbandoned: (shard: { writtenAtMs: number }) => boolean; lease: Lease },
	): Promise<void> {
		const { store, clock, onQueued } = this.#deps;
		const queueable = turn.may > 0 ? range.unknown : range.unknown.filter(how.isAbandoned);
		const queued = turn.queued + queueable.filter((shard) => !how.isAbandoned(shard)).length;
		// They have become more since they were counted.
		if (queued > turn.may) {
			this.#stop({ ...turn, unknown: queued }, 'too many shards are unknown');
			return this.#done(turn.worker_id);
		}
		const shardIds = queueable.map(({ shardId }) => shardId);
		if (shardIds.length > 0) {
			const count = await store.queueUnknown(turn.worker_id, shardIds, clock.nowMs(), how.lease);
			onQueued(count);
			this.state = { ...this.state, queued_shards: this.state.queued_shards + count };
		}
		if (range.end === null) this.#done(turn.worker_id);
		else this.state = { ...this.state, turn: { ...turn, after: range.end, queued } };
	}

	#stop({ worker_id, shards, unknown, queued }: Turn, why: StoppedWorker['why']): void {
		const stopped = { worker: this.#deps.workers.name(worker_id), worker_id, why, shards, unknown, queued };
		this.#goes(worker_id);
		this.state = { ...this.state, stuck: [...this.state.stuck, stopped] };
		this.#deps.onStopped(stopped);
	}

	#goes(workerId: WorkerId): void {
		const stuck = this.state.stuck.filter(({ worker_id }) => worker_id !== workerId);
		this.state = { ...this.state, stuck };
	}

	#done(workerId: WorkerId): void {
		const done_to = workerId > this.state.done_to ? workerId : this.state.done_to;
		const away = this.state.away.filter((other) => other !== workerId);
		this.state = { ...this.state, done_to, away, turn: null };
	}

	/** From the start, when it is back. */
	#setAside({ worker_id: workerId }: Turn): void {
		this.#done(workerId);
		this.#tryAtMs.set(workerId, this.#deps.clock.monotonicMs() + AWAY_MS);
		this.state = { ...this.state, away: [...this.state.away, workerId] };
	}
}
