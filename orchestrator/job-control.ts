/**
 * Background jobs as people see and steer them, through the store and so for all orchestrators at once: paused, resumed,
 * run now, and what the last step told.
 */

import { DistroError } from '../core/errors.ts';
import type { Clock } from '../core/ports.ts';
import { JOBS, type JobName } from './job-names.ts';
import type { ExclusiveJob, JobProgress } from './leases.ts';
import type { JobRow, Lease, MetadataStore } from './store.ts';

export interface JobView {
	readonly name: JobName;
	readonly what: string;
	/** `idle`: it looks for work from time to time, and has none now. `stuck`: it has, and can do none of it. */
	readonly state: 'running' | 'idle' | 'stuck' | 'paused';
	readonly updated_at: string | null;
	readonly progress: JobProgress;
}

/** What another orchestrator was asked is known here after this. */
const REFRESH_MS = 1_000;
/** A waiting job looks this often whether it is to run now. */
const LOOK_MS = 1_000;
/** What it tells of itself is written at most this often while it runs. */
const SAVE_EVERY_MS = 2_000;

interface SavedState {
	readonly running: boolean;
	/** The last request to run now that was met: whoever has the lease next must know. */
	readonly served: number;
	readonly progress: JobView['progress'];
}

export class JobControl {
	readonly #store: MetadataStore;
	readonly #clock: Clock;
	#rows: ReadonlyMap<string, JobRow> = new Map();
	#readAtMs = Number.NEGATIVE_INFINITY;
	#reading: Promise<void> | null = null;

	constructor(deps: { store: MetadataStore; clock: Clock }) {
		this.#store = deps.store;
		this.#clock = deps.clock;
	}

	/** What was asked of a job: at most a second old; nothing known is nothing asked. */
	async asked(name: JobName): Promise<Pick<JobRow, 'paused' | 'runs' | 'updatedAtMs'>> {
		if (this.#clock.monotonicMs() - this.#readAtMs >= REFRESH_MS) {
			this.#reading ??= this.#read().finally(() => {
				this.#reading = null;
			});
			await this.#reading;
		}
		return this.#rows.get(name) ?? { paused: false, runs: 0, updatedAtMs: 0 };
	}

	async #read(): Promise<void> {
		const rows = await this.#store.jobs();
		this.#rows = new Map(rows.map((row) => [row.name, row]));
		this.#readAtMs = this.#clock.monotonicMs();
	}

	/** The same job, that pauses, and runs at once, as it was asked. */
	steer(job: ExclusiveJob): ExclusiveJob {
		let seen: { readonly paused: boolean; readonly runs: number } | null = null;
		let served = 0;
		let dueMs = 0;
		let saved = '';
		let savedAtMs = Number.NEGATIVE_INFINITY;
		const { name } = job;
		const save = async (running: boolean, lease: Lease) => {
			const nowMs = this.#clock.monotonicMs();
			const state = JSON.stringify({ running, served, progress: job.state?.() ?? {} } satisfies SavedState);
			if (state === saved || (running && nowMs - savedAtMs < SAVE_EVERY_MS)) return;
			await this.#store.saveJobState(name, state, this.#clock.nowMs(), lease);
			saved = state;
			savedAtMs = nowMs;
		};
		return {
			...job,
			step: async (signal, lease) => {
				const { paused, runs } = await this.asked(name);
				served = Math.max(served, stateOf(this.#rows.get(name)).served);
				// Whoever pauses does not wait any more for what was asked before.
				const isNewlyPaused = paused && seen?.paused === false;
				if (isNewlyPaused) served = Math.max(served, seen?.runs ?? 0);
				seen = { paused, runs };
				const isAsked = runs > served;
				const nowMs = this.#clock.monotonicMs();
				if (!isAsked && paused) {
					if (isNewlyPaused) await save(false, lease);
					return LOOK_MS;
				}
				if (!isAsked && nowMs < dueMs) return Math.min(LOOK_MS, dueMs - nowMs);
				const waitMs = await job.step(signal, lease, isAsked);
				dueMs = this.#clock.monotonicMs() + waitMs;
				// A run that was asked for ends when there is nothing left to do at once.
				if (waitMs > 0) served = Math.max(served, runs);
				await save(waitMs === 0, lease);
				return Math.min(waitMs, LOOK_MS);
			},
		};
	}

	async list(): Promise<readonly JobView[]> {
		await this.#read();
		return (Object.keys(JOBS) as JobName[]).map((name) => {
			const row = this.#rows.get(name);
			const { running, progress } = stateOf(row);
			const state =
				row?.paused === true ? 'paused' : running ? 'running' : (progress.stuck?.length ?? 0) > 0 ? 'stuck' : 'idle';
			const updatedAt = row === undefined ? null : new Date(row.updatedAtMs).toISOString();
			return { name, what: JOBS[name], state, updated_at: updatedAt, progress };
		});
	}

	/** Throws `not_found` for a job that does not exist. */
	async ask(name: string, what: 'pause' | 'resume' | 'run'): Promise<void> {
		if (!Object.hasOwn(JOBS, name)) {
			throw new DistroError('not_found', `there is no job ${name}: there are ${Object.keys(JOBS).join(', ')}`);
		}
		const nowMs = this.#clock.nowMs();
		if (what === 'run') await this.#store.requestRun(name, nowMs);
		else await this.#store.pauseJob(name, what === 'pause', nowMs);
		await this.#read();
	}
}

/** What the last step of a job told, wherever it ran: for one that goes on where another left off. */
export async function lastProgress(store: MetadataStore, name: JobName): Promise<JobProgress> {
	return stateOf((await store.jobs()).find((row) => row.name === name)).progress;
}

function stateOf(row: JobRow | undefined): SavedState {
	const nothing: SavedState = { running: false, served: 0, progress: {} };
	return row === undefined || row.state === '' ? nothing : { ...nothing, ...JSON.parse(row.state) };
}
