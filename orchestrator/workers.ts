/**
 * What this orchestrator knows of its workers: who they are, whether their heartbeat stream is open, how full and how
 * fast they are. Policy, placement and reads ask here; the stream handlers (service.ts) and transfers tell it.
 *
 * Who a worker is comes from its certificate. The registry believes a worker's word about its own capacity, never about
 * bytes that it has not proved.
 *
 * Orchestrators share their workers' rows. Each tells the store every few seconds whom it hears, and reads whom the others
 * hear: a row whose `lastSeenMs` is another one than at the last look belongs to a worker that somebody hears. No clock of
 * one is compared with that of another. Where this orchestrator has a stream of its own, that decides.
 */

import type { KeyObject } from 'node:crypto';
import { publicKeyFromRaw, verifyReceipt } from '../core/crypto/sign.ts';
import { asDistroError, DistroError } from '../core/errors.ts';
import type { WorkerId } from '../core/ids.ts';
import {
	HEDGE_DEFAULT_MS,
	HEDGE_MAX_MS,
	HEDGE_MIN_MS,
	LARGE_CELL_BYTES,
	LOST_AFTER_MS,
	SUSPECT_AFTER_MS,
} from '../core/limits.ts';
import { isReachable, type WorkerDuty, type WorkerState, workerState } from '../core/model/health.ts';
import { annualFailureRate, availability, parseHistory, type WorkerHistory } from '../core/model/history.ts';
import type { MendWorker } from '../core/model/mending.ts';
import type { Receipt } from '../core/model/receipt.ts';
import { type PolicyWorker, slowerThanMs } from '../core/model/redundancy.ts';
import type { Clock, WorkerRef } from '../core/ports.ts';
import type { WorkerOutcome } from '../core/transfer/gather.ts';
import type { MetadataStore, WorkerRow } from './store.ts';

/** How long a worker that failed or lagged is passed over while others will do; each time in a row twice as long. */
const PENALTY_MS = 10_000;
const PENALTY_MAX_MS = 10 * 60_000;
/** After it one read at a time tries whether the worker is better; the others go on without it. */
const PROBE_MS = 2_000;
/** Latency that placement sees meanwhile: far off any median. */
const PENALTY_LATENCY_MS = 60_000;
/** How often an orchestrator that shares its metadata tells the others whom it hears, and learns whom they hear. */
export const EXCHANGE_MS = 4_000;
/** And one that has it alone: figures for people, and for its next start. */
export const EXCHANGE_ALONE_MS = 30_000;
/** A worker that others hear was seen to be heard at most this long ago: two exchanges, one of each side, and half of one. */
const HEARD_ELSEWHERE_MS = 2.5 * EXCHANGE_MS;
/** So long after the own stream ended, what others wrote may be of a time before that, and does not count. */
const OWN_WORD_MS = 2.5 * EXCHANGE_MS;
/** A worker that nobody was seen to hear for this long may lose its name, where others may hear it. */
const NAME_FREE_MS = 4 * EXCHANGE_MS;
/** An unknown worker is looked for in the store at most this often. */
const FIND_EVERY_MS = 250;
/** First-byte times kept for the hedge's p95. */
const LATENCY_SAMPLES = 256;
const EWMA_WEIGHT = 0.1;
const MiB = 1024 * 1024;
/** A cell of a large object. */
const CELL_MIB = LARGE_CELL_BYTES / MiB;
/** A latency that nobody has measured again for this long says nothing any more: a slow worker gets another chance. */
const LATENCY_TTL_MS = 30_000;
/** Hedges are at most this share of reads (Dean and Barroso, The Tail at Scale), beyond those against silent workers. */
const HEDGE_SHARE = 0.05;
const HEDGE_BURST = 4;
const SLOW_CACHE_MS = 250;

export interface WorkerStats {
	readonly bytesTotal: number;
	readonly bytesUsed: number;
	readonly bytesFree: number;
	readonly shards: number;
	readonly online: boolean;
}

interface Entry {
	row: WorkerRow;
	ref: WorkerRef;
	history: WorkerHistory;
	receiptKey: KeyObject;
	stats: WorkerStats | null;
	/** Identity of the open stream, or null. */
	stream: object | null;
	lastBeatMs: number;
	/** When the last stream of its own ended. */
	endedAtMs: number;
	/** When it was last seen that another orchestrator hears it. */
	elsewhereAtMs: number;
	/** `lastSeenMs` as the store last had it, and as this orchestrator last wrote it. */
	storedSeenMs: number;
	toldSeenMs: number;
	/** Since when it is known here. */
	addedAtMs: number;
	latencyMs: number | undefined;
	/** What a cell's worth of bytes takes once they come, in milliseconds a MiB. */
	msPerMib: number | undefined;
	measuredAtMs: number;
	/** When a read last got bytes from it. */
	heardAtMs: number;
	penaltyUntilMs: number;
	/** Penalties since it last answered in time. */
	penalties: number;
	/** One read is finding out. */
	probedUntilMs: number;
}

/** One open heartbeat stream. */
export interface Heartbeat {
	beat(stats: WorkerStats): void;
	closed(): void;
}

/** A name went over to a new worker; `formerly` is the row of the one that had it, under its new name. */
export interface NameTaken {
	readonly name: string;
	readonly workerId: WorkerId;
	readonly formerly: WorkerRow;
}

export class WorkerRegistry {
	readonly #store: MetadataStore;
	readonly #clock: Clock;
	readonly #lostAfterMs: number;
	readonly #shared: boolean;
	readonly #onNameTaken: (change: NameTaken) => void;
	readonly #workers = new Map<WorkerId, Entry>();
	readonly #samplesMs: number[] = [];
	#sampleAt = 0;
	#hedgeMs = HEDGE_DEFAULT_MS;
	#hedgeTokens = HEDGE_BURST;
	#slow = { ms: Number.POSITIVE_INFINITY, untilMs: Number.NEGATIVE_INFINITY };

	#reading: Promise<void> | null = null;
	#readAtMs = Number.NEGATIVE_INFINITY;

	/** `shared`: other orchestrators may have the same store. */
	constructor(deps: {
		store: MetadataStore;
		clock: Clock;
		shared?: boolean;
		lostAfterMs?: number;
		onNameTaken?: (change: NameTaken) => void;
	}) {
		this.#store = deps.store;
		this.#clock = deps.clock;
		this.#lostAfterMs = deps.lostAfterMs ?? LOST_AFTER_MS;
		this.#shared = deps.shared ?? false;
		this.#onNameTaken = deps.onNameTaken ?? (() => {});
	}

	/** Reads the rows of all workers: at the start those of before, all without a stream; later what others changed. */
	read(): Promise<void> {
		this.#reading ??= this.#read().finally(() => {
			this.#reading = null;
		});
		return this.#reading;
	}

	async #read(): Promise<void> {
		const startedMs = this.#clock.monotonicMs();
		this.#readAtMs = startedMs;
		const rows = await this.#store.workers();
		const there = new Set<WorkerId>();
		for (const row of rows) {
			there.add(row.workerId);
			this.#learn(row);
		}
		for (const [workerId, { stream, addedAtMs }] of this.#workers) {
			// Forgotten by another orchestrator; one that registered meanwhile was not there yet.
			if (!there.has(workerId) && stream === null && addedAtMs < startedMs) this.#workers.delete(workerId);
		}
	}

	#learn(row: WorkerRow): void {
		const known = this.#workers.get(row.workerId);
		if (known === undefined) {
			this.#set(row);
			return;
		}
		const isNews = row.lastSeenMs !== known.storedSeenMs && row.lastSeenMs !== known.toldSeenMs;
		if (isNews) known.elsewhereAtMs = this.#clock.monotonicMs();
		known.storedSeenMs = row.lastSeenMs;
		// With a stream of its own this orchestrator has the newer figures.
		const { lastSeenMs, bytesTotal, bytesUsed, shards } = hasFigures(known) ? known.row : row;
		this.#set({ ...row, lastSeenMs, bytesTotal, bytesUsed, shards });
	}

	/** Reads, and tells whom this orchestrator hears. To be repeated. */
	async exchange(): Promise<void> {
		const startedMs = this.#clock.monotonicMs();
		await this.read();
		const nowMs = this.#clock.nowMs();
		const heard = [...this.#workers.values()].filter(
			(entry) =>
				hasFigures(entry) &&
				this.#clock.monotonicMs() - entry.lastBeatMs <= SUSPECT_AFTER_MS &&
				// Another one has just said so.
				entry.elsewhereAtMs < startedMs,
		);
		if (heard.length === 0) return;
		for (const entry of heard) entry.toldSeenMs = nowMs;
		await this.#store.sawWorkers(
			heard.map(({ row: { workerId, bytesTotal, bytesUsed, shards } }) => ({
				workerId,
				lastSeenMs: nowMs,
				bytesTotal,
				bytesUsed,
				shards,
			})),
		);
	}

	/** Before whatever needs the holders of these shards: those that are not known registered with another orchestrator. */
	async find(placements: readonly { readonly workerId: WorkerId }[]): Promise<void> {
		if (placements.every(({ workerId }) => this.#workers.has(workerId))) return;
		const looked = this.#clock.monotonicMs() - this.#readAtMs < FIND_EVERY_MS;
		if (looked) await this.#reading?.catch(() => {});
		// Without the store the others must do.
		else await this.read().catch(() => {});
	}

	/**
	 * Throws `denied` (another receipt key), `exists` (the name is that of a worker that is heard, or was until just now).
	 * Who is not heard loses it: an emptied volume is a new worker under the old name.
	 */
	async register(worker: {
		workerId: WorkerId;
		name: string;
		address: string;
		zone: string;
		receiptKey: Buffer;
	}): Promise<void> {
		if (!this.#workers.has(worker.workerId)) await this.read();
		const nowMs = this.#clock.nowMs();
		const known = this.#workers.get(worker.workerId);
		const row: WorkerRow = {
			bytesTotal: 0,
			bytesUsed: 0,
			shards: 0,
			registeredAtMs: nowMs,
			duty: 'active',
			history: '',
			...known?.row,
			...worker,
			lastSeenMs: nowMs,
		};
		await this.#freeName(row);
		if (known !== undefined) known.toldSeenMs = nowMs;
		await this.#store.saveWorker(row).catch((error) => {
			// Who is known may come back while the metadata's disk is full: what it has must stay readable.
			if (known === undefined || asDistroError(error).kind !== 'exhausted') throw error;
		});
		this.#set(row);
	}

	/**
	 * Before a worker gets a certificate for its id and its name. Throws `denied` where that id is known with another receipt
	 * key, or under another name: then it is another worker's.
	 */
	async admit({ workerId, name, receiptKey }: { workerId: WorkerId; name: string; receiptKey: Buffer }): Promise<void> {
		if (!this.#workers.has(workerId)) await this.read();
		const row = this.#workers.get(workerId)?.row;
		if (row === undefined) return;
		if (!row.receiptKey.equals(receiptKey)) {
			throw new DistroError('denied', `worker ${workerId} has another receipt key: ${name} has not its volume`);
		}
		// Its name may have gone over to an emptied volume, and this be the volume of before.
		if (row.name !== name && row.name !== withoutName(name, workerId)) {
			throw new DistroError('denied', `worker ${workerId} is ${row.name}, and not ${name}`);
		}
	}

	/** Takes the name from whoever has it and is not heard; the store then refuses it while somebody still has it. */
	async #freeName({ workerId, name }: WorkerRow): Promise<void> {
		const isTaken = ({ row }: Entry) => row.name === name && row.workerId !== workerId;
		if (![...this.#workers.values()].some(isTaken)) return;
		// What is there now decides, and how long it has been so.
		await this.read();
		for (const entry of [...this.#workers.values()].filter(isTaken)) {
			const { row, storedSeenMs } = entry;
			if (!this.#isUnheard(entry)) continue;
			const renamed = withoutName(name, row.workerId);
			if (!(await this.#store.renameWorker(row.workerId, { name: renamed, lastSeenMs: storedSeenMs }))) continue;
			const formerly = { ...row, name: renamed };
			this.#set(formerly);
			this.#onNameTaken({ name, workerId, formerly });
		}
	}

	/** By this orchestrator, nor for a while by any other that may have heard it. */
	#isUnheard({ stream, elsewhereAtMs, addedAtMs, endedAtMs }: Entry): boolean {
		if (stream !== null) return false;
		const sinceMs = Math.max(elsewhereAtMs, addedAtMs, endedAtMs);
		return !this.#shared || this.#clock.monotonicMs() - sinceMs >= NAME_FREE_MS;
	}

	/** Throws `not_found` before `register`, `exists` while another stream of that worker is open. */
	heartbeat(workerId: WorkerId): Heartbeat {
		const entry = this.#workers.get(workerId);
		if (entry === undefined) throw new DistroError('not_found', 'register first');
		if (entry.stream !== null) {
			throw new DistroError(
				'exists',
				`another process already speaks for ${entry.row.name}: is one worker started twice?`,
			);
		}
		const stream = {};
		entry.stream = stream;
		entry.lastBeatMs = this.#clock.monotonicMs();
		entry.penaltyUntilMs = 0;
		entry.penalties = 0;
		return {
			beat: (stats) => {
				if (entry.stream !== stream) return;
				entry.stats = stats;
				entry.lastBeatMs = this.#clock.monotonicMs();
				entry.row = {
					...entry.row,
					lastSeenMs: this.#clock.nowMs(),
					bytesTotal: stats.bytesTotal,
					bytesUsed: stats.bytesUsed,
					shards: stats.shards,
				};
			},
			closed: () => {
				if (entry.stream !== stream) return;
				entry.stream = null;
				entry.endedAtMs = this.#clock.monotonicMs();
			},
		};
	}

	#set(row: WorkerRow): void {
		const known = this.#workers.get(row.workerId);
		const ref: WorkerRef = { workerId: row.workerId, address: row.address };
		if (known !== undefined) {
			known.row = row;
			known.ref = ref;
			known.history = parseHistory(row.history);
			return;
		}
		const nowMs = this.#clock.monotonicMs();
		this.#workers.set(row.workerId, {
			row,
			ref,
			history: parseHistory(row.history),
			receiptKey: publicKeyFromRaw(row.receiptKey),
			stats: null,
			stream: null,
			// How long it was away before this process began nobody knows: the wall clock may have jumped since it was seen.
			lastBeatMs: nowMs,
			endedAtMs: Number.NEGATIVE_INFINITY,
			elsewhereAtMs: Number.NEGATIVE_INFINITY,
			storedSeenMs: row.lastSeenMs,
			toldSeenMs: row.lastSeenMs,
			addedAtMs: nowMs,
			latencyMs: undefined,
			msPerMib: undefined,
			measuredAtMs: 0,
			heardAtMs: Number.NEGATIVE_INFINITY,
			penaltyUntilMs: 0,
			penalties: 0,
			probedUntilMs: Number.NEGATIVE_INFINITY,
		});
	}

	#state(entry: Entry): WorkerState {
		const nowMs = this.#clock.monotonicMs();
		const elsewhere = this.#isHeardElsewhere(entry);
		const heardAtMs = hasFigures(entry) ? entry.lastBeatMs : Math.max(entry.lastBeatMs, entry.elsewhereAtMs);
		const state = workerState({
			streamOpen: entry.stream !== null || elsewhere,
			sinceHeartbeatMs: elsewhere ? 0 : nowMs - heardAtMs,
			duty: entry.row.duty,
			lostAfterMs: this.#lostAfterMs,
		});
		// A worker whose volume is offline says so, by a stream of its own or by a total of nothing.
		const online = elsewhere ? entry.row.bytesTotal > 0 : entry.stats?.online === true;
		return isReachable(state) && !online ? 'suspect' : state;
	}

	/** Another orchestrator hears it, and this one has nothing newer to say. */
	#isHeardElsewhere(entry: Entry): boolean {
		const nowMs = this.#clock.monotonicMs();
		if (hasFigures(entry) || nowMs - entry.endedAtMs < OWN_WORD_MS) return false;
		return nowMs - entry.elsewhereAtMs <= HEARD_ELSEWHERE_MS;
	}

	state(workerId: WorkerId): WorkerState | 'unknown' {
		const entry = this.#workers.get(workerId);
		return entry === undefined ? 'unknown' : this.#state(entry);
	}

	/** Reachable, and not passed over just now because it failed, lagged or is far slower than the others. */
	isGood(workerId: WorkerId): boolean {
		const entry = this.#workers.get(workerId);
		if (entry === undefined || !isReachable(this.#state(entry))) return false;
		const latencyMs = this.#latencyMs(entry);
		return latencyMs === undefined || latencyMs <= this.#slowerThanMs();
	}

	/** The same for a read that would use it: of a worker that was passed over, only one at a time finds out whether it is better. */
	mayRead(workerId: WorkerId): boolean {
		const entry = this.#workers.get(workerId);
		if (entry === undefined || !this.isGood(workerId)) return false;
		const nowMs = this.#clock.monotonicMs();
		if (entry.penalties > 0 && nowMs < entry.probedUntilMs) return false;
		if (entry.penalties > 0) entry.probedUntilMs = nowMs + PROBE_MS;
		return true;
	}

	/**
	 * How long it takes to send a cell, latency and throughput together, as far as that is known now; far off any median for
	 * one that failed.
	 */
	#latencyMs(entry: Entry): number | undefined {
		if (entry.penaltyUntilMs > this.#clock.monotonicMs()) return PENALTY_LATENCY_MS;
		const measuredMs = this.#measuredMs(entry);
		return measuredMs === undefined ? undefined : measuredMs + (entry.msPerMib ?? 0) * CELL_MIB;
	}

	#isFresh(entry: Entry): boolean {
		return this.#clock.monotonicMs() - entry.measuredAtMs < LATENCY_TTL_MS;
	}

	#measuredMs(entry: Entry): number | undefined {
		return this.#isFresh(entry) ? entry.latencyMs : undefined;
	}

	#slowerThanMs(): number {
		const nowMs = this.#clock.monotonicMs();
		if (nowMs >= this.#slow.untilMs) {
			const latenciesMs = [...this.#workers.values()]
				.filter((entry) => isReachable(this.#state(entry)))
				.map((entry) => this.#latencyMs(entry));
			this.#slow = { ms: slowerThanMs(latenciesMs), untilMs: nowMs + SLOW_CACHE_MS };
		}
		return this.#slow.ms;
	}

	ref(workerId: WorkerId): WorkerRef | null {
		return this.#workers.get(workerId)?.ref ?? null;
	}

	name(workerId: WorkerId): string {
		return this.#workers.get(workerId)?.row.name ?? workerId;
	}

	rows(): readonly { row: WorkerRow; state: WorkerState }[] {
		return [...this.#workers.values()].map((entry) => ({ row: entry.row, state: this.#state(entry) }));
	}

	#bytesFree(entry: Entry): number {
		const { bytesTotal, bytesUsed } = entry.row;
		return this.#isHeardElsewhere(entry) ? Math.max(0, bytesTotal - bytesUsed) : (entry.stats?.bytesFree ?? 0);
	}

	/** As the policy sees them. */
	policyWorkers(): readonly PolicyWorker[] {
		return [...this.#workers.values()].map((entry) => ({
			workerId: entry.row.workerId,
			name: entry.row.name,
			zone: entry.row.zone,
			state: this.#state(entry),
			bytesFree: this.#bytesFree(entry),
			latencyMs: this.#latencyMs(entry),
			annualFailureRate: annualFailureRate(entry.history),
			availability: availability(entry.history),
		}));
	}

	/** As mending sees them. */
	mendWorkers(): readonly MendWorker[] {
		return [...this.#workers.values()].map((entry) => {
			const state = this.#state(entry);
			return {
				workerId: entry.row.workerId,
				zone: entry.row.zone,
				state,
				takes: state === 'ready',
				slow: !this.isGood(entry.row.workerId),
				bytesFree: this.#bytesFree(entry),
				bytesTotal: entry.stats?.bytesTotal ?? entry.row.bytesTotal,
			};
		});
	}

	/** Its shards can be read now. */
	isReachable(workerId: WorkerId): boolean {
		const entry = this.#workers.get(workerId);
		return entry !== undefined && isReachable(this.#state(entry));
	}

	/** Null when nobody is called so. */
	called(name: string): WorkerId | null {
		return [...this.#workers.values()].find(({ row }) => row.name === name)?.row.workerId ?? null;
	}

	/** What is known of it as of now, for people. */
	measured(workerId: WorkerId): { latencyMs: number | null; bytesPerS: number | null } {
		const entry = this.#workers.get(workerId);
		if (entry === undefined || !this.#isFresh(entry)) return { latencyMs: null, bytesPerS: null };
		const { latencyMs = null, msPerMib } = entry;
		return { latencyMs, bytesPerS: msPerMib === undefined ? null : (MiB * 1000) / Math.max(msPerMib, 0.01) };
	}

	history(workerId: WorkerId): WorkerHistory | null {
		return this.#workers.get(workerId)?.history ?? null;
	}

	setHistory(workerId: WorkerId, history: string): void {
		const entry = this.#workers.get(workerId);
		if (entry === undefined) return;
		entry.row = { ...entry.row, history };
		entry.history = parseHistory(history);
	}

	/** Throws `not_found`. */
	async setDuty(workerId: WorkerId, duty: WorkerDuty): Promise<void> {
		const entry = this.#workers.get(workerId);
		if (!(await this.#store.setDuty(workerId, duty)) || entry === undefined) {
			throw new DistroError('not_found', `there is no worker ${this.name(workerId)}`);
		}
		entry.row = { ...entry.row, duty };
	}

	/** Throws `conflict` while it can be reached, or has shards that are nowhere else; `not_found`. */
	async forget(workerId: WorkerId): Promise<void> {
		const entry = this.#workers.get(workerId);
		if (entry === undefined) throw new DistroError('not_found', `there is no worker ${workerId}`);
		if (this.isReachable(workerId) || entry.stream !== null) {
			throw new DistroError('conflict', `${entry.row.name} is running: stop it first, or it would come back at once`);
		}
		await this.#store.forgetWorker(workerId, this.#clock.nowMs());
		this.#workers.delete(workerId);
	}

	/** Lower is better: what reads rank their sources by. */
	score(workerId: WorkerId): number {
		const entry = this.#workers.get(workerId);
		return entry === undefined ? Number.POSITIVE_INFINITY : (this.#latencyMs(entry) ?? 1);
	}

	/** What a read saw of a worker (core/transfer/gather.ts). */
	observe(workerId: WorkerId, outcome: WorkerOutcome): void {
		const entry = this.#workers.get(workerId);
		if (entry === undefined) return;
		if ('bytes' in outcome) {
			entry.heardAtMs = this.#clock.monotonicMs();
			if (outcome.tookMs !== null) this.#moved(entry, outcome.bytes, outcome.tookMs);
		} else if ('error' in outcome) this.failed(workerId, outcome.error);
		else if ('laggedMs' in outcome) {
			// Slower than that, by how much nobody knows: left out, the tail would look better than it is.
			this.#measured(entry, outcome.laggedMs);
			if (this.#isSilent(entry)) this.#penalise(entry);
		} else {
			entry.heardAtMs = this.#clock.monotonicMs();
			if (outcome.ms <= this.#hedgeMs) entry.penalties = 0;
			else if (outcome.ms > this.#slowerThanMs()) entry.penalties = Math.max(1, entry.penalties);
			this.#hedgeTokens = Math.min(HEDGE_BURST, this.#hedgeTokens + HEDGE_SHARE);
			this.#measured(entry, outcome.ms);
		}
	}

	#moved(entry: Entry, bytes: number, tookMs: number): void {
		const msPerMib = (tookMs * MiB) / bytes;
		const before = this.#isFresh(entry) ? entry.msPerMib : undefined;
		entry.msPerMib = before === undefined ? msPerMib : before + EWMA_WEIGHT * (msPerMib - before);
	}

	#measured(entry: Entry, ms: number): void {
		// Not the penalty: the average would carry it on for long after its time.
		const before = this.#measuredMs(entry);
		entry.latencyMs = before === undefined ? ms : before + EWMA_WEIGHT * (ms - before);
		entry.measuredAtMs = this.#clock.monotonicMs();
		// The tail of the others: with it one slow worker would make everybody wait for it.
		if (ms > this.#slowerThanMs()) return;
		this.#samplesMs[this.#sampleAt % LATENCY_SAMPLES] = ms;
		if (++this.#sampleAt % LATENCY_SAMPLES !== 0) return;
		const sorted = this.#samplesMs.toSorted((a, b) => a - b);
		const p95Ms = sorted[Math.floor(sorted.length * 0.95)] ?? HEDGE_DEFAULT_MS;
		this.#hedgeMs = Math.min(HEDGE_MAX_MS, Math.max(HEDGE_MIN_MS, 2 * p95Ms));
	}

	/** It sends nobody anything: not just slow to one reader, as everyone is on a busy machine. */
	#isSilent(entry: Entry): boolean {
		return this.#clock.monotonicMs() - entry.heardAtMs > this.#hedgeMs;
	}

	/** Whether a read may leave this worker, which lags. Those that answer nobody are left at once, others within a share. */
	mayHedge(workerId: WorkerId): boolean {
		const entry = this.#workers.get(workerId);
		if (entry === undefined || this.#isSilent(entry)) return true;
		// What still comes of one that is gone or stopped was on its way before.
		if (!isReachable(this.#state(entry))) return true;
		if (this.#hedgeTokens < 1) return false;
		this.#hedgeTokens--;
		return true;
	}

	/** It broke a transfer, or lagged in a write: passed over for a while. A refusal for want of room says nothing about its speed. */
	failed(workerId: WorkerId, error: DistroError): void {
		const entry = this.#workers.get(workerId);
		if (entry === undefined) return;
		if (error.kind === 'timeout' || error.kind === 'unavailable') this.#penalise(entry);
	}

	/** Reads that were under way together are one event. */
	#penalise(entry: Entry): void {
		const nowMs = this.#clock.monotonicMs();
		if (entry.penaltyUntilMs > nowMs) return;
		if (nowMs - entry.penaltyUntilMs > PENALTY_MAX_MS) entry.penalties = 0;
		entry.penaltyUntilMs = nowMs + Math.min(PENALTY_MAX_MS, PENALTY_MS * 2 ** entry.penalties);
		entry.penalties++;
	}

	/** How far behind the others a worker may be in a read before one more is asked. */
	get hedgeMs(): number {
		return this.#hedgeMs;
	}

	verifyReceipt(receipt: Receipt): boolean {
		const entry = this.#workers.get(receipt.workerId);
		return entry !== undefined && verifyReceipt(receipt, entry.receiptKey);
	}
}

/** It has told this orchestrator how it is, on a stream that is open. */
function hasFigures({ stream, stats }: Pick<Entry, 'stream' | 'stats'>): boolean {
	return stream !== null && stats !== null;
}

/** What a worker is called once its name has gone over to another. */
function withoutName(name: string, workerId: WorkerId): string {
	return `${name}~${workerId.slice(0, 8)}`;
}
