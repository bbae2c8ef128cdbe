/**
 * The background job that encodes anew what no longer suits the cluster or the policy (core/model/suits.ts), a segment at a
 * time (reencode.ts).
 *
 * Worker sets say which segments can be meant at all: what breaks a hard rule is seen from a set's code. The rest takes a look
 * at the segments, set by set, once for each change of what would be chosen; how far that is stands in the job's row, where
 * the next orchestrator finds it. A change must last as long as it takes a worker to be lost before anything that is only
 * better is done about it. Repair comes first, always.
 */

import { sealedBytes } from '../core/codec/layout.ts';
import { asDistroError, type DistroError } from '../core/errors.ts';
import { isRepairUrgent } from '../core/model/mending.ts';
import type { PolicyWorker } from '../core/model/redundancy.ts';
import type { SetCount } from '../core/model/redundancy-report.ts';
import { codeTable, Suits } from '../core/model/suits.ts';
import type { Clock } from '../core/ports.ts';
import { backoffMs } from '../core/retry.ts';
import { lastProgress } from './job-control.ts';
import { pause } from './jobs.ts';
import type { ExclusiveJob, JobProgress } from './leases.ts';
import { isNeedless } from './mend.ts';
import { canPlace, type ReencodeDeps, reencodeSegment } from './reencode.ts';
import type { Lease, MetadataStore, StoredSegment } from './store.ts';

export interface ReencodeJobDeps extends ReencodeDeps {
	/** Segments under way at once. */
	readonly lanes: number;
	/** Part of its time that a lane works while people's transfers run, 0 to 1; all of it for what breaks a hard rule. */
	readonly share: number;
	readonly isBusy: () => boolean;
	/** Workers and policy must be the same for so long before anything is encoded anew that is only better then. */
	readonly settleMs: number;
	readonly onOutcome: (outcome: ReencodeOutcome) => void;
}

export interface ReencodeOutcome {
	readonly stored: StoredSegment;
	/** null: done. */
	readonly error: DistroError | null;
}

/** How far the look at all segments is: sets in order of their ids. */
interface Walk {
	/** Of the code table that it is for. */
	readonly key: string;
	/** The set that is looked at, and where in it; null: at its end. */
	readonly setId: string;
	readonly after: string | null;
	/** Segments that don't suit and were not encoded anew: it was not possible, or failed. */
	readonly left: number;
	readonly done: number;
	readonly looked_at: number;
	readonly about: number;
}

/** A row of its own among those of the jobs: every orchestrator counts there. */
const LOOK_AGAIN = 'reencode-look-again';
const TELL_EVERY_MS = 5_000;

/** Tells the job, wherever it runs, that there is something new that may not suit: everything is looked at again. */
export class LookAgain {
	readonly #deps: { readonly store: MetadataStore; readonly clock: Clock };
	#isTelling = false;

	constructor(deps: { store: MetadataStore; clock: Clock }) {
		this.#deps = deps;
	}

	/** After it is there. Many at once are told as one. */
	tell(): void {
		if (this.#isTelling) return;
		this.#isTelling = true;
		const { store, clock } = this.#deps;
		clock.schedule(TELL_EVERY_MS, () => {
			this.#isTelling = false;
			store.requestRun(LOOK_AGAIN, clock.nowMs()).catch(() => this.tell());
		});
	}
}

/** What people see of it; also where another orchestrator goes on. */
export interface ReencodeState extends JobProgress {
	readonly segments_done: number;
	readonly bytes_done: number;
	readonly failed_segments: number;
	/** What it waits for, if anything: repair, or that a change lasts. */
	readonly waiting_for: 'repair' | 'change_to_last' | null;
	readonly walk: Walk | null;
	/** The code table of the last look at everything that left nothing to do, and when that was. */
	readonly suits: string | null;
	readonly suits_at_ms: number;
	/** Of the times that somebody told of objects that may not suit, those that a walk came after. */
	readonly looks_met: number;
	/** Too few workers can take shards of the code that is wanted now. */
	readonly stuck: readonly { readonly wanted: string; readonly segments: number }[];
}

const BATCH = 16;
const PAGE = 128;
/** Pages that one step looks at. */
const PAGES = 16;
const IDLE_MS = 2_000;
const RETRY_BASE_MS = 2_000;
const RETRY_MAX_MS = 10 * 60_000;
/** A pass that could do nothing is repeated after this. */
const LOOK_AGAIN_MS = 15_000;
/** Everything is looked at again because workers were away at most once in so many times `settleMs`. */
const LOOKS_APART = 6;
/** And anyway after this: shards may have moved to a set that was looked at before. */
const LOOK_EVERY_MS = 7 * 24 * 60 * 60_000;
/** As in mend.ts. */
const POLITE_PAUSE_MAX_MS = 10_000;
const FAILED_MAX = 10_000;

/** Segments by the code that is wanted. */
type Stuck = Map<string, number>;

/** What one step goes by. */
interface Look {
	readonly sets: readonly SetCount[];
	readonly now: readonly PolicyWorker[];
	readonly suits: Suits;
	/** New objects get what the cluster is meant to give them. */
	readonly isAsChosenNow: boolean;
}

interface Task {
	readonly stored: StoredSegment;
	readonly isUrgent: boolean;
}

export function reencodeJob(deps: ReencodeJobDeps): ExclusiveJob {
	const reencoder = new Reencoder(deps);
	return {
		name: 'reencode',
		state: () => reencoder.state(),
		step: (signal, lease, asked = false) => reencoder.step({ signal, lease, asked }),
	};
}

interface StepOptions {
	readonly signal: AbortSignal;
	readonly lease: Lease;
	readonly asked: boolean;
}

class Reencoder {
	readonly #deps: ReencodeJobDeps;
	/** Of the lease under which the state was read. */
	#fencing: number | null = null;
	#totals = { segments: 0, bytes: 0, failed: 0 };
	#walk: Walk | null = null;
	#suits: { key: string | null; atMs: number } = { key: null, atMs: 0 };
	/** How often somebody told so, as of now and as of the last walk's beginning. */
	#looksAsked = 0;
	#looksMet = 0;
	#waitingFor: ReencodeState['waiting_for'] = null;
	/** Since when the table is this one. */
	#table = { key: '', sinceMs: 0 };
	/** What can't be encoded anew now; of those that break a rule as of the last step, of the others as of this walk. */
	readonly #stuck: { readonly unsafe: Stuck; readonly walked: Stuck } = { unsafe: new Map(), walked: new Map() };
	/** Walks in a row that left something and could do nothing, and when the next may begin. */
	#vainLooks = 0;
	#nextLookMs = 0;
	/** Where the next page of a set that breaks a rule begins. */
	readonly #cursors = new Map<string, string>();
	readonly #failed = new Map<string, { attempts: number; dueMs: number }>();

	constructor(deps: ReencodeJobDeps) {
		this.#deps = deps;
	}

	state(): ReencodeState {
		return {
			segments_done: this.#totals.segments,
			bytes_done: this.#totals.bytes,
			failed_segments: this.#totals.failed,
			waiting_for: this.#waitingFor,
			walk: this.#walk,
			suits: this.#suits.key,
			suits_at_ms: this.#suits.atMs,
			looks_met: this.#looksMet,
			stuck: [...this.#stuck.unsafe, ...this.#stuck.walked].map(([wanted, segments]) => ({ wanted, segments })),
		};
	}

	async step(options: StepOptions): Promise<number> {
		const { store, workers, policy } = this.#deps;
		await this.#goOn(options.lease);
		const { sets } = await store.redundancyRows();
		await workers.find(sets.flatMap((set) => set.workers.map((workerId) => ({ workerId }))));
		const now = workers.policyWorkers();
		const suits = new Suits(now, policy);
		const alike = now.map((worker) => ({ ...worker, annualFailureRate: undefined }));
		const look: Look = { sets, now, suits, isAsChosenNow: codeTable(alike, policy).key === suits.key };
		this.#notice(look);
		this.#looksAsked = (await store.jobs()).find(({ name }) => name === LOOK_AGAIN)?.runs ?? 0;
		this.#waitingFor = isRepairUrgent(sets, workers.mendWorkers()) ? 'repair' : null;
		if (this.#waitingFor !== null) return IDLE_MS;
		const urgent = await this.#unsafeTasks(look);
		if (urgent.length > 0 && (await this.#run(urgent, options)).done > 0) return 0;
		return this.#step(look, options);
	}

	/** Whoever has the lease newly goes on where the last one was. */
	async #goOn(lease: Lease): Promise<void> {
		if (this.#fencing === lease.fencing) return;
		const last = (await lastProgress(this.#deps.store, 'reencode')) as Partial<ReencodeState>;
		this.#totals = {
			segments: last.segments_done ?? 0,
			bytes: last.bytes_done ?? 0,
			failed: last.failed_segments ?? 0,
		};
		this.#walk = last.walk ?? null;
		this.#suits = { key: last.suits ?? null, atMs: last.suits_at_ms ?? 0 };
		this.#looksMet = last.looks_met ?? 0;
		this.#fencing = lease.fencing;
	}

	#notice({ suits: { key } }: Look): void {
		if (this.#table.key !== key) {
			this.#table = { key, sinceMs: this.#deps.clock.monotonicMs() };
			this.#vainLooks = 0;
			this.#nextLookMs = 0;
		}
	}

	/** A batch of those that break a hard rule, fewest shards to spare first. */
	async #unsafeTasks({ sets, now, suits }: Look): Promise<Task[]> {
		const tasks: Task[] = [];
		this.#stuck.unsafe.clear();
		const unsafe = sets.filter((set) => suits.breaksRules(set));
		for (const set of unsafe.toSorted((a, b) => a.workers.length - a.k - (b.workers.length - b.k))) {
			if (tasks.length >= BATCH) break;
			const after = this.#cursors.get(set.setId) ?? null;
			const page = await this.#deps.store.segmentsOnSet(set.setId, { after, limit: BATCH - tasks.length });
			const due = page.segments.filter((stored) => this.#isDue(stored, { now, suits }, this.#stuck.unsafe));
			// Those that are encoded anew leave the set; the others must not stand in the way of the rest.
			if (page.next === null || due.length === page.segments.length) this.#cursors.delete(set.setId);
			else this.#cursors.set(set.setId, page.next);
			tasks.push(...due.map((stored) => ({ stored, isUrgent: true })));
		}
		return tasks;
	}

	/** Whether it can be encoded anew now, and has not failed a moment ago. What can't be is counted as stuck. */
	#isDue(stored: StoredSegment, { now, suits }: Pick<Look, 'now' | 'suits'>, stuck: Stuck): boolean {
		const wanted = suits.wanted(stored.segment, null);
		if (wanted !== null && canPlace(wanted.choice, now, this.#deps.policy)) {
			return (this.#failed.get(keyOf(stored))?.dueMs ?? 0) <= this.#deps.clock.monotonicMs();
		}
		const { k = 0, m = 0 } = wanted?.choice ?? {};
		const code = wanted === null ? 'anything safe' : `${k}+${m}`;
		stuck.set(code, (stuck.get(code) ?? 0) + 1);
		return false;
	}

	/** The look at everything else: begun when there is a reason, and a part of it. */
	async #step(look: Look, options: StepOptions): Promise<number> {
		const { clock, settleMs } = this.#deps;
		const { key } = look.suits;
		if (this.#walk?.key !== key) this.#walk = null;
		const sets = look.sets
			.filter((set) => look.suits.mayNotSuit(set) && !look.suits.breaksRules(set))
			.toSorted((a, b) => compare(a.setId, b.setId));
		if (this.#walk === null) {
			if (!options.asked && !this.#isLookDue(look)) return IDLE_MS;
			if (!options.asked && clock.monotonicMs() - this.#table.sinceMs < settleMs) {
				this.#waitingFor = 'change_to_last';
				return IDLE_MS;
			}
			const about = sets.reduce((sum, { segments }) => sum + segments, 0);
			this.#walk = { key, setId: '', after: null, left: 0, done: 0, looked_at: 0, about };
			this.#looksMet = this.#looksAsked;
			this.#stuck.walked.clear();
		}
		const { tasks, isEnd } = await this.#look({ ...look, sets });
		const { done, needless } = await this.#run(tasks, options);
		const walk = this.#walk as Walk;
		this.#walk = { ...walk, done: walk.done + done, left: walk.left - done - needless };
		if (options.signal.aborted || !isEnd) return 0;
		return this.#endWalk(this.#walk);
	}

	/** One that ends with nothing left is the last; what failed, or could not be done, is looked for again. */
	#endWalk({ key, left, done }: Walk): number {
		const { clock } = this.#deps;
		this.#walk = null;
		this.#suits = { key: left === 0 ? key : null, atMs: clock.nowMs() };
		if (done > 0 || left === 0) this.#vainLooks = 0;
		else this.#vainLooks++;
		const waitMs = Math.min(RETRY_MAX_MS, LOOK_AGAIN_MS * 2 ** this.#vainLooks);
		this.#nextLookMs = clock.monotonicMs() + (this.#vainLooks === 0 ? 0 : waitMs);
		return done > 0 && left > 0 ? 0 : IDLE_MS;
	}

	#isLookDue({ suits, isAsChosenNow }: Look): boolean {
		const { clock, settleMs } = this.#deps;
		if (this.#suits.key !== suits.key) return clock.monotonicMs() >= this.#nextLookMs;
		const sinceMs = clock.nowMs() - this.#suits.atMs;
		const isAsked = this.#looksAsked > this.#looksMet && isAsChosenNow;
		return sinceMs >= LOOK_EVERY_MS || (isAsked && sinceMs >= LOOKS_APART * settleMs);
	}

	/** From where the walk is: some pages, or until there is enough to do. */
	async #look(look: Look): Promise<{ tasks: Task[]; isEnd: boolean }> {
		const { sets, suits } = look;
		const tasks: Task[] = [];
		let limit = PAGE;
		for (let pages = 0; pages < PAGES && tasks.length < BATCH; pages++) {
			const walk = this.#walk as Walk;
			const { after } = walk;
			const isNext = ({ setId }: SetCount) => setId > walk.setId || (setId === walk.setId && after !== null);
			const set = sets.find(isNext);
			if (set === undefined) return { tasks, isEnd: true };
			const place = set.setId === walk.setId ? after : null;
			const page = await this.#deps.store.segmentsOnSet(set.setId, { after: place, limit });
			const unsuited = page.segments.filter(({ segment }) => suits.wanted(segment, null) !== null);
			if (unsuited.length > BATCH && limit > BATCH) {
				// A step is over soon, so that it can be paused.
				limit = BATCH;
				continue;
			}
			const due = unsuited.filter((stored) => this.#isDue(stored, look, this.#stuck.walked));
			tasks.push(...due.map((stored) => ({ stored, isUrgent: false })));
			this.#walk = {
				...walk,
				setId: set.setId,
				after: page.next,
				left: walk.left + unsuited.length,
				looked_at: walk.looked_at + page.segments.length,
			};
		}
		return { tasks, isEnd: false };
	}

	/** Answers how many are encoded anew, and how many need not be any more. */
	async #run(tasks: readonly Task[], options: StepOptions): Promise<{ done: number; needless: number }> {
		const queue = [...tasks];
		const count = { done: 0, needless: 0, failed: 0 };
		const lane = async () => {
			for (let task = queue.shift(); task !== undefined; task = queue.shift()) {
				if (options.signal.aborted) return;
				count[await this.#reencode(task, options)]++;
			}
		};
		await Promise.all(Array.from({ length: this.#deps.lanes }, lane));
		return count;
	}

	async #reencode({ stored, isUrgent }: Task, { signal, lease }: StepOptions): Promise<'done' | 'needless' | 'failed'> {
		const { clock, share, isBusy, onOutcome } = this.#deps;
		const startedMs = clock.monotonicMs();
		let error: DistroError | null = null;
		try {
			await reencodeSegment(this.#deps, stored, { signal, lease });
			this.#failed.delete(keyOf(stored));
			const { segments, bytes } = this.#totals;
			this.#totals = { ...this.#totals, segments: segments + 1, bytes: bytes + sealedBytes(stored.segment) };
		} catch (thrown) {
			error = asDistroError(thrown);
			if (!signal.aborted) {
				if (!isNeedless(error)) this.#totals = { ...this.#totals, failed: this.#totals.failed + 1 };
				this.#remember(stored);
			}
		}
		onOutcome({ stored, error });
		if (!isUrgent && isBusy()) {
			const tookMs = clock.monotonicMs() - startedMs;
			await pause(clock, Math.min(POLITE_PAUSE_MAX_MS, tookMs * (1 / share - 1)), signal);
		}
		return error === null ? 'done' : isNeedless(error) ? 'needless' : 'failed';
	}

	#remember(stored: StoredSegment): void {
		const { random, clock } = this.#deps;
		const attempts = this.#failed.get(keyOf(stored))?.attempts ?? 0;
		const [oldest] = this.#failed.keys();
		if (this.#failed.size >= FAILED_MAX && oldest !== undefined) this.#failed.delete(oldest);
		const waitMs = RETRY_BASE_MS + backoffMs(attempts, { baseMs: RETRY_BASE_MS, maxMs: RETRY_MAX_MS, random });
		this.#failed.set(keyOf(stored), { attempts: attempts + 1, dueMs: clock.monotonicMs() + waitMs });
	}
}

function keyOf({ versionId, segment }: StoredSegment): string {
	return `${versionId}/${segment.index}`;
}

function compare(a: string, b: string): number {
	return a < b ? -1 : a > b ? 1 : 0;
}
