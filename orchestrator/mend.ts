/**
 * The background jobs that move shards: repair (what reads and audits found, and what lost workers had), drain, and
 * rebalance. Each step plans anew from the counts by worker set (core/model/mending.ts) and places one batch, most urgent
 * first; so there is no queue that could be wrong, and what a worker's return makes needless is simply not planned again.
 */

import { shardBytes } from '../core/codec/layout.ts';
import { asDistroError, type DistroError } from '../core/errors.ts';
import {
	type MendPlan,
	type MendWorker,
	type Move,
	planDepartures,
	planRebalance,
	type Stuck,
	successor,
} from '../core/model/mending.ts';
import type { RedundancyPolicy } from '../core/model/redundancy.ts';
import type { SetCount } from '../core/model/redundancy-report.ts';
import { backoffMs } from '../core/retry.ts';
import { pause } from './jobs.ts';
import type { ExclusiveJob, JobProgress } from './leases.ts';
import { placeShard, type RepairDeps, type ShardTask } from './repair.ts';
import type { Lease, RepairItem, StoredSegment } from './store.ts';

export interface MendDeps extends RepairDeps {
	readonly policy: RedundancyPolicy;
	/** Shards under way at once. */
	readonly lanes: number;
	/** Part of its time that a lane works while people's transfers run, 0 to 1; all of it for segments with at most one spare. */
	readonly share: number;
	/** People's transfers run just now. */
	readonly isBusy: () => boolean;
	readonly onOutcome: (outcome: MendOutcome) => void;
}

export interface MendOutcome {
	readonly kind: 'found' | 'trailer' | Move['kind'];
	readonly stored: StoredSegment;
	readonly shardIndex: number;
	readonly bytes: number;
	/** null: done. */
	readonly error: DistroError | null;
}

/** What people see of one of these jobs. */
export interface MendState extends JobProgress {
	readonly moved_shards: number;
	readonly moved_bytes: number;
	readonly failed_shards: number;
	/** Shards that are to be moved, by the last plan. */
	readonly waiting_shards: number;
	readonly stuck: readonly { readonly worker: string; readonly why: Stuck['why']; readonly segments: number }[];
}

interface Task extends ShardTask {
	readonly kind: MendOutcome['kind'];
	readonly spare: number;
	/** The queue item that it came from; null: from a plan. */
	readonly item: RepairItem | null;
}

const BATCH = 32;
const RETRY_BASE_MS = 2_000;
const RETRY_MAX_MS = 10 * 60_000;
const IDLE_MS = 1_000;
const REBALANCE_IDLE_MS = 10_000;
/** Workers that hold less than this too much or too little are left alone, unless somebody asks. */
const WORTH_MOVING_BYTES = 8 * 1024 * 1024;
/** A pause for politeness is never longer: the share is of moments, not of hours. */
const POLITE_PAUSE_MAX_MS = 10_000;
/** Segments with at most this many spare shards are not waited for. */
const URGENT_SPARE = 1;
/** Failed segments remembered at most: those beyond are tried again sooner. */
const FAILED_MAX = 10_000;
/** Old trailers are counted exactly up to here. */
const COUNT_MAX = 100_000;

/** What reads, scrubs and audits found, and what lost workers had: fewest spare shards first. */
export function repairJob(deps: MendDeps): ExclusiveJob {
	const mover = new Mover(deps);
	return {
		name: 'repair',
		state: () => mover.state(),
		step: async (signal, lease) => {
			const plan = await mover.plan(({ sets, workers }) => planDepartures('lost', sets, workers));
			const found = await mover.queueTasks(lease);
			const planned = await mover.moveTasks(plan.moves);
			const tasks = [...found, ...planned].toSorted((a, b) => a.spare - b.spare);
			return (await mover.run(tasks, { signal, lease })) > 0 ? 0 : IDLE_MS;
		},
	};
}

/** Everything off draining workers: copied first, then let go. */
export function drainJob(deps: MendDeps): ExclusiveJob {
	const mover = new Mover(deps);
	return {
		name: 'drain',
		state: () => mover.state(),
		step: async (signal, lease) => {
			const plan = await mover.plan(({ sets, workers }) => planDepartures('drain', sets, workers));
			return (await mover.run(await mover.moveTasks(plan.moves), { signal, lease })) > 0 ? 0 : IDLE_MS;
		},
	};
}

/** Mends violations of the zone rule, and evens out what workers hold. Waits for repair and drain, whose moves it would undo. */
export function rebalanceJob(deps: MendDeps): ExclusiveJob {
	const mover = new Mover(deps);
	return {
		name: 'rebalance',
		state: () => mover.state(),
		step: async (signal, lease, asked = false) => {
			const plan = await mover.plan(({ sets, workers }) => {
				const departures = [planDepartures('lost', sets, workers), planDepartures('drain', sets, workers)];
				const isWaiting = departures.some(({ moves }) => moves.length > 0);
				return isWaiting
					? { moves: [], stuck: [] }
					: planRebalance(sets, workers, { policy: deps.policy, leastBytes: asked ? 0 : WORTH_MOVING_BYTES });
			});
			return (await mover.run(await mover.moveTasks(plan.moves), { signal, lease })) > 0 ? 0 : REBALANCE_IDLE_MS;
		},
	};
}

/**
 * When asked: every shard whose trailer has a data key wrapped by an older generation of the cluster key is written anew
 * on its own worker, so that the generation can be dropped. It copies everything that is old, so nobody gets it unasked.
 */
export function renewTrailersJob(deps: MendDeps & { readonly newest: () => number }): ExclusiveJob {
	const mover = new Mover(deps);
	let left = 0;
	return {
		name: 'renew-trailers',
		state: () => ({ ...mover.state(), waiting_shards: left }),
		step: async (signal, lease, asked = false) => {
			const below = deps.newest();
			const uses = await deps.store.keyUse(COUNT_MAX);
			const old = uses.filter(({ generation }) => generation < below);
			left = old.reduce((sum, { shards }) => sum + shards, 0);
			if (!asked || left === 0) return REBALANCE_IDLE_MS;
			if (old.some(({ objects }) => objects > 0)) {
				// A shard gets the data key as its object has it: objects come first.
				await pause(deps.clock, IDLE_MS, signal);
				return 0;
			}
			const tasks = await mover.trailerTasks(
				old.filter(({ shards }) => shards > 0).map(({ generation }) => generation),
				signal,
			);
			return (await mover.run(tasks, { signal, lease })) > 0 ? 0 : REBALANCE_IDLE_MS;
		},
	};
}

class Mover {
	readonly #deps: MendDeps;
	/** Segments whose last try failed. */
	readonly #failed = new Map<string, { attempts: number; dueMs: number }>();
	/** Where the next page of a set begins: beyond those that failed. */
	readonly #cursors = new Map<string, string>();
	#moved = { shards: 0, bytes: 0, failed: 0 };
	#plan: MendPlan = { moves: [], stuck: [] };

	constructor(deps: MendDeps) {
		this.#deps = deps;
	}

	state(): MendState {
		const stuck = new Map<string, { worker: string; why: Stuck['why']; segments: number }>();
		for (const { from, why, set } of this.#plan.stuck) {
			const worker = this.#deps.workers.name(from);
			const { segments } = stuck.get(`${from} ${why}`) ?? { segments: 0 };
			stuck.set(`${from} ${why}`, { worker, why, segments: segments + set.segments });
		}
		return {
			moved_shards: this.#moved.shards,
			moved_bytes: this.#moved.bytes,
			failed_shards: this.#moved.failed,
			waiting_shards: this.#plan.moves.reduce((sum, { segments }) => sum + segments, 0),
			stuck: [...stuck.values()],
		};
	}

	async plan(how: (now: { sets: readonly SetCount[]; workers: readonly MendWorker[] }) => MendPlan): Promise<MendPlan> {
		const { store, workers } = this.#deps;
		const { sets } = await store.redundancyRows();
		// One that just registered elsewhere is not known here yet, and not lost.
		await workers.find(sets.flatMap((set) => set.workers.map((workerId) => ({ workerId }))));
		this.#plan = how({ sets, workers: workers.mendWorkers() });
		return this.#plan;
	}

	/** One batch of what reads, scrubs, audits and uploads left in the queue. */
	async queueTasks(lease: Lease): Promise<Task[]> {
		const { store, clock, workers } = this.#deps;
		const tasks: Task[] = [];
		for (const item of await store.repairs({ nowMs: clock.nowMs(), limit: BATCH })) {
			const [segment] = await store.segments(item.versionId, { fromSegment: item.segment, limit: 1 });
			if (segment === undefined || segment.index !== item.segment || segment.encodingId !== item.encodingId) continue;
			const { objectId, versionId, shardIndex } = item;
			const before = segment.placements.find((placement) => placement.shardIndex === shardIndex)?.workerId;
			const others = segment.placements.filter((placement) => placement.shardIndex !== shardIndex);
			const holders = others.map(({ workerId }) => workerId);
			const marked = new Set((await store.findings(versionId)).map(({ shardId }) => shardId));
			const good = others.filter(({ shardId, workerId }) => !marked.has(shardId) && workers.isReachable(workerId));
			const bytes = shardBytes(segment, shardIndex);
			const mendWorkers = workers.mendWorkers();
			const alsoHeld = before === undefined ? [] : [before];
			const other = successor({ set: { workers: holders }, from: null, workers: mendWorkers, alsoHeld, bytes });
			// Its own worker may take it again (a rotten file on a sound disk), but not while another will do.
			const own = mendWorkers.find(({ workerId, takes }) => workerId === before && takes)?.workerId;
			const to = other ?? own ?? null;
			const spare = good.length - segment.k;
			if (to === null) {
				await this.#defer(item, lease);
				continue;
			}
			tasks.push({
				kind: 'found',
				stored: { objectId, versionId, segment },
				shardIndex,
				to,
				copy: false,
				spare,
				item,
			});
		}
		return tasks;
	}

	/** One batch of the moves, in their order. */
	async moveTasks(moves: readonly Move[]): Promise<Task[]> {
		const tasks: Task[] = [];
		for (const move of moves) {
			if (tasks.length >= BATCH) break;
			const limit = Math.min(BATCH - tasks.length, move.segments);
			tasks.push(...(await this.#tasksOf(move, limit)));
		}
		return tasks;
	}

	async #tasksOf(move: Move, limit: number): Promise<Task[]> {
		const { store, workers, clock } = this.#deps;
		const { kind, set, from, to, spare } = move;
		const at = `${set.setId} ${from}`;
		const { segments, next } = await store.segmentsOnSet(set.setId, { after: this.#cursors.get(at) ?? null, limit });
		const nowMs = clock.monotonicMs();
		const due = segments.filter((stored) => (this.#failed.get(keyOf(stored))?.dueMs ?? 0) <= nowMs);
		// Those that were moved leave the set; whoever failed stays, and must not stand in the way of the rest.
		if (due.length > 0 && due.length === segments.length) this.#cursors.delete(at);
		else if (next === null) this.#cursors.delete(at);
		else this.#cursors.set(at, next);
		// A worker that is back keeps its shards, and so does one that need not be emptied any more.
		const isWanted = () =>
			kind === 'lost' ? !workers.isReachable(from) : kind !== 'drain' || workers.state(from) === 'draining';
		return due.flatMap((stored) => {
			const placement = stored.segment.placements.find(({ workerId }) => workerId === from);
			if (placement === undefined) return [];
			const { shardIndex } = placement;
			return [{ kind, stored, shardIndex, to, copy: kind !== 'lost', spare, item: null, isWanted }];
		});
	}

	/** One batch of shards with trailers of these generations, each onto its own worker, as far as those can be reached. */
	async trailerTasks(generations: readonly number[], signal: AbortSignal): Promise<Task[]> {
		const { store, workers, clock } = this.#deps;
		const takes = new Set(workers.mendWorkers().flatMap((worker) => (worker.takes ? [worker.workerId] : [])));
		const tasks: Task[] = [];
		for (const generation of generations) {
			let after: string | null = null;
			do {
				const page = await store.oldTrailers(generation, { after, limit: BATCH });
				for (const { stored, shardIndexes } of page.trailers) {
					if ((this.#failed.get(keyOf(stored))?.dueMs ?? 0) > clock.monotonicMs()) continue;
					const { k, placements } = stored.segment;
					const own = placements.find(
						({ shardIndex, workerId }) => shardIndexes.includes(shardIndex) && takes.has(workerId),
					);
					if (own === undefined) continue;
					const { shardIndex, workerId: to } = own;
					const spare = placements.filter(({ workerId }) => workers.isReachable(workerId)).length - k;
					tasks.push({ kind: 'trailer', stored, shardIndex, to, copy: true, spare, item: null });
					if (tasks.length === BATCH) return tasks;
				}
				after = page.next;
			} while (after !== null && !signal.aborted);
		}
		return tasks;
	}

	/** Answers how many shards were placed. Of two tasks for one segment the first is done: the second was planned without it. */
	async run(tasks: readonly Task[], options: { signal: AbortSignal; lease: Lease }): Promise<number> {
		const taken = new Set<string>();
		const queue = tasks.filter(({ stored }) => !taken.has(keyOf(stored)) && taken.add(keyOf(stored))).slice(0, BATCH);
		let placed = 0;
		let isBroken = false;
		const lane = async () => {
			try {
				for (let task = queue.shift(); task !== undefined; task = queue.shift()) {
					if (isBroken || options.signal.aborted) return;
					if (await this.#place(task, options)) placed++;
				}
			} catch (error) {
				isBroken = true;
				throw error;
			}
		};
		// All of them end before the step does: the next one has lanes of its own.
		const lanes = await Promise.allSettled(Array.from({ length: this.#deps.lanes }, lane));
		const broken = lanes.find((result) => result.status === 'rejected');
		if (broken !== undefined) throw broken.reason;
		return placed;
	}

	async #place(task: Task, options: { signal: AbortSignal; lease: Lease }): Promise<boolean> {
		const { clock, share, isBusy, onOutcome } = this.#deps;
		const { kind, stored, shardIndex } = task;
		const startedMs = clock.monotonicMs();
		let error: DistroError | null = null;
		try {
			await placeShard(this.#deps, task, options);
			this.#failed.delete(keyOf(stored));
		} catch (thrown) {
			error = asDistroError(thrown);
		}
		const bytes = shardBytes(stored.segment, shardIndex);
		if (error === null) {
			this.#moved = { ...this.#moved, shards: this.#moved.shards + 1, bytes: this.#moved.bytes + bytes };
		} else if (!options.signal.aborted && error.kind !== 'canceled') {
			if (!isNeedless(error)) this.#moved = { ...this.#moved, failed: this.#moved.failed + 1 };
			if (task.item === null) this.#remember(stored);
			else await this.#defer(task.item, options.lease);
		}
		onOutcome({ kind, stored, shardIndex, bytes, error });
		if (task.spare > URGENT_SPARE && isBusy()) {
			const tookMs = clock.monotonicMs() - startedMs;
			await pause(clock, Math.min(POLITE_PAUSE_MAX_MS, tookMs * (1 / share - 1)), options.signal);
		}
		return error === null;
	}

	async #defer(item: RepairItem, lease: Lease): Promise<void> {
		const { store, clock } = this.#deps;
		await store.deferRepair(item, clock.nowMs() + this.#retryMs(item.attempts), lease);
	}

	#remember(stored: StoredSegment): void {
		const attempts = this.#failed.get(keyOf(stored))?.attempts ?? 0;
		const [oldest] = this.#failed.keys();
		if (this.#failed.size >= FAILED_MAX && oldest !== undefined) this.#failed.delete(oldest);
		const dueMs = this.#deps.clock.monotonicMs() + this.#retryMs(attempts);
		this.#failed.set(keyOf(stored), { attempts: attempts + 1, dueMs });
	}

	#retryMs(attempts: number): number {
		const { random } = this.#deps;
		return RETRY_BASE_MS + backoffMs(attempts, { baseMs: RETRY_BASE_MS, maxMs: RETRY_MAX_MS, random });
	}
}

/** Its worker is back, or its object gone or changed: nobody's fault, and nothing is left to do. */
export function isNeedless({ kind }: DistroError): boolean {
	return kind === 'canceled' || kind === 'conflict';
}

function keyOf({ versionId, segment }: StoredSegment): string {
	return `${versionId}/${segment.index}`;
}
