/**
 * Scrubbing: the worker reads all of its shards again, in passes that take about the period each, because rot shows only
 * where somebody looks. What it finds it tells the orchestrators with every heartbeat until one has written it down.
 *
 * A pass goes through the ids in order, so that one id says how far it has come; that, and what nobody has acknowledged
 * yet, is kept on the volume. It goes as fast as the period asks and never faster than the ceiling (a pass that somebody
 * asked for: at the ceiling), and gives way to transfers. It finds shards that are corrupt, and shards whose name is there
 * and whose bytes can't be reached. A file that somebody removed it can't miss: audits do. It finds nothing while the volume is
 * offline, and it mends nothing.
 */

import { asDistroError, DistroError } from '../core/errors.ts';
import { isId, type ShardId } from '../core/ids.ts';
import type { Clock, MemoryPool, Random } from '../core/ports.ts';
import { checkVersion } from '../core/versions.ts';
import type { ShardStore } from './store.ts';
import { type Verdict, verifyShard } from './verify.ts';

/** A pass is planned to end before the next one begins. */
const PLANNED_SHARE = 0.9;
/** The first pass of a volume begins within this: workers that were started together need not read together. */
const FIRST_WITHIN_MS = 60 * 60_000;
const SAVE_EVERY_MS = 30_000;
const AFTER_FAILURE_MS = 5_000;
/** So many are told with one beat, and no more are looked for while nobody hears of them. */
const MAX_FINDINGS = 256;
const PAGE = 64;
/** An older page is read anew: it may name shards that have gone. */
const PAGE_TTL_MS = 10_000;
/** A shard that can't be reached is tried so often before it counts as missing. */
const TRIES = 3;
/** While transfers run each cell waits for them, but not longer than this: scrubbing must end as well. */
const YIELD_MS = 100;
const YIELD_STEP_MS = 20;
/** Longer timers fire at once. */
const MAX_WAIT_MS = 24 * 60 * 60_000;

export interface ScrubFinding {
	readonly shardId: ShardId;
	readonly kind: 'corrupt' | 'missing';
	readonly detail: string;
}

/** What heartbeats carry. */
export interface ScrubReport {
	readonly findings: readonly ScrubFinding[];
	/** Every shard was verified, or written, after this; 0: not yet. */
	readonly sinceMs: number;
	readonly pass: number;
	readonly shardsDone: number;
	readonly shardsTotal: number;
	readonly running: boolean;
}

/** What an orchestrator answers. */
export interface ScrubOrders {
	readonly acknowledged: readonly ShardId[];
	readonly paused: boolean;
	/** A larger number than ever before asks for a new pass now. */
	readonly pass: number;
	/** Orders with a smaller one than heard before are of an orchestrator that has not heard of the last change yet. */
	readonly revision: number;
}

export interface ScrubDeps {
	readonly store: ShardStore;
	/** Its use by others tells whether transfers are under way. */
	readonly pool: Pick<MemoryPool, 'usedBytes'>;
	readonly clock: Clock;
	readonly random: Random;
	/** Page-aligned, LARGE_CELL_BYTES. */
	readonly buffer: Buffer;
	readonly periodMs: number;
	/** Bytes a second, at most. */
	readonly ceiling: number;
	readonly onShard?: (outcome: Verdict['outcome'] | 'missing', bytes: number) => void;
	readonly log: { info(fields: object, text: string): void; warn(fields: object, text: string): void };
}

const VERSION = 1;

/** As it is kept on the volume. */
interface Progress {
	version: typeof VERSION;
	/** The last request that was heard of. */
	pass: number;
	/** When the pass began, or when the next one begins. */
	startMs: number;
	running: boolean;
	/** Somebody waits for it. */
	urgent: boolean;
	after: ShardId | null;
	shardsDone: number;
	shardsTotal: number;
	/** Of those that this pass has read: nothing is known of them. Records of before do not have it. */
	unknown?: number;
	sinceMs: number;
	findings: ScrubFinding[];
}

export class Scrubber {
	readonly #deps: ScrubDeps;
	#progress: Progress | null = null;
	readonly #findings = new Map<ShardId, ScrubFinding>();
	#revision = 0;
	#paused = false;
	#orderedPass = 0;
	#page: { ids: readonly ShardId[]; readAtMs: number } = { ids: [], readAtMs: Number.NEGATIVE_INFINITY };
	#tries = 0;
	#savedAtMs = Number.NEGATIVE_INFINITY;
	/** What keeps it from going on was logged. */
	#told = false;
	#woken = false;
	readonly #stopping = new AbortController();
	#rouse: () => void = () => {};
	#loop: Promise<void> = Promise.resolve();

	constructor(deps: ScrubDeps) {
		this.#deps = deps;
	}

	start(): void {
		this.#loop = this.#run();
	}

	/** Resolves when it touches the volume no more. */
	async stop(): Promise<void> {
		this.#stopping.abort();
		this.#wake();
		await this.#loop;
		// Without it the shards since the last time are read again.
		if (this.#progress !== null) await this.#save(this.#progress).catch(() => {});
	}

	report(): ScrubReport {
		const { sinceMs = 0, pass = 0, shardsDone = 0, shardsTotal = 0, running = false } = this.#progress ?? {};
		return { findings: [...this.#findings.values()], sinceMs, pass, shardsDone, shardsTotal, running };
	}

	heard(orders: ScrubOrders): void {
		const full = this.#findings.size >= MAX_FINDINGS;
		for (const shardId of orders.acknowledged) this.#findings.delete(shardId);
		if (full && orders.acknowledged.length > 0) this.#wake();
		if (orders.revision < this.#revision) return;
		this.#revision = orders.revision;
		// Whoever pauses does not wait for the pass any more; one that is asked for later runs all the same.
		if (orders.paused && !this.#paused && this.#progress !== null) this.#progress.urgent = false;
		const changed = this.#paused && !orders.paused;
		this.#paused = orders.paused;
		const ordered = orders.pass > Math.max(this.#orderedPass, this.#progress?.pass ?? 0);
		if (ordered) this.#orderedPass = orders.pass;
		if (changed || ordered) this.#wake();
	}

	async #run(): Promise<void> {
		const { log } = this.#deps;
		while (!this.#stopping.signal.aborted) {
			let waitMs = AFTER_FAILURE_MS;
			try {
				this.#progress ??= await this.#load();
				waitMs = await this.#step(this.#progress);
				this.#told = false;
			} catch (thrown) {
				const error = asDistroError(thrown);
				// Offline, or failing: what it has to say is said once.
				if (!this.#stopping.signal.aborted && !this.#told) log.warn({ err: error }, 'scrubbing waits');
				this.#told = true;
			}
			await this.#pause(waitMs);
		}
	}

	/** Ends the wait, the next one where none is under way. */
	#wake(): void {
		this.#woken = true;
		this.#rouse();
	}

	async #pause(waitMs: number): Promise<void> {
		if (!this.#woken && waitMs > 0) await this.#sleep(Math.min(waitMs, MAX_WAIT_MS));
		this.#woken = false;
	}

	#sleep(ms: number): Promise<void> {
		if (this.#stopping.signal.aborted) return Promise.resolve();
		return new Promise((resolve) => {
			const cancel = this.#deps.clock.schedule(ms, resolve);
			this.#rouse = () => {
				cancel();
				resolve();
			};
		});
	}

	/** One shard, or a turn from one pass to the next. Answers how long to wait. */
	async #step(progress: Progress): Promise<number> {
		const { store, clock } = this.#deps;
		if (this.#orderedPass > progress.pass) await this.#begin(progress, { pass: this.#orderedPass, urgent: true });
		if ((this.#paused && !progress.urgent) || this.#findings.size >= MAX_FINDINGS) return MAX_WAIT_MS;
		if (!progress.running) {
			const waitMs = progress.startMs - clock.nowMs();
			// A clock that was set back must not stop scrubbing for years.
			if (waitMs > 0 && waitMs <= this.#deps.periodMs) return waitMs;
			await this.#begin(progress, { pass: progress.pass, urgent: false });
		}
		const shardId = await this.#next(progress);
		if (shardId === undefined) {
			await this.#end(progress);
			return 0;
		}
		const startedMs = clock.monotonicMs();
		const verdict = await this.#verify(shardId);
		if (verdict === null) return AFTER_FAILURE_MS;
		progress.after = shardId;
		progress.shardsDone++;
		if (verdict.outcome === 'unknown') progress.unknown = (progress.unknown ?? 0) + 1;
		if (clock.monotonicMs() - this.#savedAtMs > SAVE_EVERY_MS) await this.#save(progress);
		const { bytesUsed } = await store.stats();
		return this.#shareMs(progress, { bytes: verdict.bytes, bytesUsed }) - (clock.monotonicMs() - startedMs);
	}

	async #begin(progress: Progress, { pass, urgent }: { pass: number; urgent: boolean }): Promise<void> {
		const { shards } = await this.#deps.store.stats();
		const startMs = this.#deps.clock.nowMs();
		const begun = { pass, startMs, running: true, urgent, after: null, shardsDone: 0, unknown: 0, shardsTotal: shards };
		Object.assign(progress, begun);
		this.#page = { ids: [], readAtMs: Number.NEGATIVE_INFINITY };
		await this.#save(progress);
		this.#deps.log.info({ shards, asked: urgent }, 'scrubbing begins');
	}

	async #end(progress: Progress): Promise<void> {
		const { shardsDone, startMs, unknown = 0 } = progress;
		const nowMs = this.#deps.clock.nowMs();
		if (unknown > 0)
			this.#deps.log.warn({ shards: unknown }, 'a newer release wrote these shards, and only it can verify them');
		// Where the clock was set back nobody knows when the pass began.
		else if (startMs <= nowMs) progress.sinceMs = startMs;
		progress.running = false;
		progress.urgent = false;
		progress.startMs = Math.max(nowMs, startMs + this.#deps.periodMs);
		await this.#save(progress);
		this.#deps.log.info({ shards: shardsDone, seconds: Math.round((nowMs - startMs) / 1000) }, 'scrubbing has ended');
	}

	/** The id after the last one; undefined at the end. */
	async #next({ after }: Progress): Promise<ShardId | undefined> {
		const { store, clock } = this.#deps;
		const rest = this.#page.ids.filter((id) => after === null || id > after);
		if (rest.length > 0 && clock.monotonicMs() - this.#page.readAtMs < PAGE_TTL_MS) return rest[0];
		const listed = await store.list({ after, limit: PAGE });
		this.#page = { ids: listed.map(({ shardId }) => shardId), readAtMs: clock.monotonicMs() };
		return this.#page.ids[0];
	}

	/** Null: not now. */
	async #verify(shardId: ShardId): Promise<Verdict | null> {
		const { store, buffer, onShard } = this.#deps;
		try {
			const beforeCell = (bytes: number) => this.#beforeCell(bytes);
			const verdict = await verifyShard(store, shardId, { buffer, beforeCell });
			this.#tries = 0;
			if (verdict.outcome === 'corrupt') await this.#found({ shardId, kind: 'corrupt', detail: verdict.detail });
			if (verdict.outcome === 'gone' && (await this.#isListed(shardId))) {
				await this.#found({ shardId, kind: 'missing', detail: 'its name is there and its file is not' });
				onShard?.('missing', 0);
			} else onShard?.(verdict.outcome, verdict.bytes);
			return verdict;
		} catch (thrown) {
			const error = asDistroError(thrown);
			if (this.#stopping.signal.aborted) throw error;
			// Offline, or everything fails: the volume's trouble, and nothing is known of this shard.
			await store.stats();
			// The volume may be back between a try and the look at the others: it is tried again after each look.
			this.#tries = (await this.#othersCanBeRead(shardId)) ? this.#tries + 1 : 0;
			if (this.#tries < TRIES) return null;
			this.#tries = 0;
			await this.#found({ shardId, kind: 'missing', detail: error.message });
			onShard?.('missing', 0);
			return { outcome: 'gone', detail: error.message, bytes: 0 };
		}
	}

	/** Deleted meanwhile: then it is not missing. */
	async #isListed(shardId: ShardId): Promise<boolean> {
		const before = this.#progress?.after ?? null;
		const listed = await this.#deps.store.list({ after: before, limit: PAGE });
		return listed.some((other) => other.shardId === shardId);
	}

	async #othersCanBeRead(shardId: ShardId): Promise<boolean> {
		const { store } = this.#deps;
		for (const other of await store.list({ after: null, limit: PAGE })) {
			if (other.shardId === shardId) continue;
			const error = await store.trailer(other.shardId).then(
				() => null,
				(thrown) => asDistroError(thrown),
			);
			// What a newer release wrote was read, and nothing more can be said of it.
			if (error === null || error.kind === 'unsupported') return true;
		}
		return false;
	}

	async #found(finding: ScrubFinding): Promise<void> {
		this.#findings.set(finding.shardId, finding);
		this.#deps.log.warn(finding, 'a shard is not what was stored');
		if (this.#progress !== null) await this.#save(this.#progress);
	}

	/** Gives way to transfers, and keeps under the ceiling. */
	async #beforeCell(bytes: number): Promise<void> {
		const { pool, ceiling } = this.#deps;
		await this.#sleep((bytes / ceiling) * 1000);
		for (let waitedMs = 0; pool.usedBytes > 0 && waitedMs < YIELD_MS; waitedMs += YIELD_STEP_MS) {
			await this.#sleep(YIELD_STEP_MS);
		}
		if (this.#stopping.signal.aborted) throw new DistroError('canceled', 'this process is stopping');
	}

	/** How long a shard of so many bytes may take, so that the rest is done in time. Ids are random: the last one says how much is left. */
	#shareMs(progress: Progress, volume: { bytes: number; bytesUsed: number }): number {
		const { clock, periodMs } = this.#deps;
		if (progress.urgent || progress.after === null) return 0;
		const restMs = progress.startMs + periodMs * PLANNED_SHARE - clock.nowMs();
		const restBytes = volume.bytesUsed * (1 - Number.parseInt(progress.after.slice(0, 8), 16) / 2 ** 32);
		return restMs <= 0 ? 0 : restMs * Math.min(1, volume.bytes / Math.max(1, restBytes));
	}

	async #load(): Promise<Progress> {
		const { store, clock, random } = this.#deps;
		const record = await store.loadRecord('scrub');
		const kept = record === null ? null : parseProgress(record);
		for (const finding of kept?.findings ?? []) this.#findings.set(finding.shardId, finding);
		if (kept !== null && kept.sinceMs <= clock.nowMs()) return kept;
		const share = random.bytes(4).readUInt32LE() / 2 ** 32;
		return {
			version: VERSION,
			pass: kept?.pass ?? 0,
			startMs: clock.nowMs() + share * Math.min(FIRST_WITHIN_MS, this.#deps.periodMs),
			running: false,
			urgent: false,
			after: null,
			shardsDone: 0,
			shardsTotal: 0,
			sinceMs: 0,
			findings: [],
		};
	}

	async #save(progress: Progress): Promise<void> {
		const record = { ...progress, findings: [...this.#findings.values()] };
		await this.#deps.store.saveRecord('scrub', Buffer.from(`${JSON.stringify(record)}\n`));
		this.#savedAtMs = this.#deps.clock.monotonicMs();
	}
}

/**
 * Null for what is damaged: a new pass costs reading, and nothing else. Throws `unsupported` for that of a newer release,
 * whose findings somebody may still have to hear of.
 */
function parseProgress(record: Buffer): Progress | null {
	try {
		const kept = JSON.parse(record.toString()) as Progress;
		checkVersion(kept.version, { what: 'scrub.json of this volume', newest: VERSION });
		const { pass, startMs, shardsDone, shardsTotal, sinceMs, unknown = 0 } = kept;
		const numbers = [pass, startMs, shardsDone, shardsTotal, sinceMs, unknown];
		const right =
			numbers.every((value) => Number.isFinite(value) && value >= 0) &&
			(kept.after === null || isId(kept.after)) &&
			kept.findings.every(({ shardId, kind }) => isId(shardId) && ['corrupt', 'missing'].includes(kind));
		return right ? kept : null;
	} catch (thrown) {
		if (thrown instanceof DistroError && thrown.kind === 'unsupported') throw thrown;
		return null;
	}
}
