/**
 * One run: a cluster, its clients and what goes wrong, step by step, with checks after each; then all faults end, and the
 * cluster must become whole by itself.
 */

import { openManifest } from '../../core/crypto/seal.ts';
import { isId } from '../../core/ids.ts';
import { Suits } from '../../core/model/suits.ts';
import { Clients, type Wish } from './clients.ts';
import { type Running, SimOrchestrator, Site } from './cluster.ts';
import { Faults } from './faults.ts';
import { Network } from './network.ts';
import { Truth } from './truth.ts';
import { Violation, World } from './world.ts';

export interface RunOptions {
	readonly seed: string;
	readonly steps: number;
	readonly trace?: boolean;
}

export interface RunResult {
	/** Steps that were done. */
	readonly steps: number;
	/** The same for the same seed and steps. */
	readonly hash: string;
	readonly events: number;
	readonly simulatedMs: number;
	readonly counts: Clients['counts'];
	/** null: all was as it must be. */
	readonly failure: { readonly message: string; readonly recent: readonly string[] } | null;
}

const SETTLES_WITHIN_MS = 90 * 60_000;
const OBJECTS_MAX = 30;
const JOB_NAMES = [
	'expire-intents',
	'trash',
	'deletions',
	'repair',
	'drain',
	'rebalance',
	'reencode',
	'audit',
	'reconcile',
	'scrub',
	'rewrap',
	'snapshot',
];

export async function run(options: RunOptions): Promise<RunResult> {
	const world = new World(options.seed, { trace: options.trace ?? false });
	const simulation = new Simulation(world, options.seed);
	const startMs = world.nowMs;
	let failure: RunResult['failure'] = null;
	const onRejection = (error: unknown) => world.fail(error);
	process.on('unhandledRejection', onRejection);
	let steps = 0;
	try {
		await simulation.start();
		while (steps < options.steps) {
			steps++;
			await simulation.step(steps);
		}
		await simulation.settle();
	} catch (error) {
		const { message, stack } = error as Error;
		const text = error instanceof Violation ? message : (stack ?? message);
		world.tell(`FAILED: ${text}`);
		failure = { message: text, recent: world.recent };
	} finally {
		process.off('unhandledRejection', onRejection);
	}
	return {
		steps,
		hash: world.historyHash(),
		events: world.events,
		simulatedMs: world.nowMs - startMs,
		counts: simulation.clients.counts,
		failure,
	};
}

class Simulation {
	readonly clients: Clients;
	readonly #world: World;
	readonly #site: Site;
	readonly #truth: Truth;
	readonly #faults: Faults;
	readonly #chosen: readonly (readonly [number, string])[];
	readonly #trouble: number;

	constructor(world: World, seed: string) {
		this.#world = world;
		this.#site = new Site(world, new Network(world), seed);
		this.#truth = new Truth(this.#site);
		this.#faults = new Faults(this.#site, this.#truth, () => this.clients.store());
		this.clients = new Clients(this.#site);
		const dice = world.dice.fork('run');
		// Each run has some of the faults: all at once would hide each other.
		this.#chosen = this.#faults.all.filter(() => dice.chance(0.5));
		this.#trouble = this.#chosen.length === 0 ? 0 : dice.between(0.2, 0.6);
		this.#truth.mayBeLeft = this.#chosen.some(([, fault]) => fault === 'pause an orchestrator') ? 2 : 0;
		this.#site.onStoreCall = (call) => {
			try {
				this.#truth.checkCall(call);
			} catch (error) {
				world.fail(error);
			}
			world.mention(`${call.method} ${idsIn(call.args).join(' ')}`);
		};
		this.#site.onFailedStep = (job, error) => {
			world.tell(`${job} failed: ${error.kind}: ${error.message}`);
			if (error.kind === 'internal') world.fail(error);
		};
	}

	async start(): Promise<void> {
		const { dice } = this.#world;
		for (let i = 1 + dice.below(3); i > 0; i--) {
			this.#site.orchestrators.push(
				new SimOrchestrator(this.#site, `orchestrator-${this.#site.orchestrators.length + 1}`),
			);
		}
		for (const orchestrator of this.#site.orchestrators) orchestrator.start();
		// Some begin with few, and what they store is encoded anew when more have come.
		const workers = dice.chance(0.3) ? 2 + dice.below(3) : 6 + dice.below(4);
		for (let i = workers; i > 0; i--) this.#faults.addWorker();
		await this.#world.advance(6_000);
	}

	async step(index: number): Promise<void> {
		const world = this.#world;
		const { dice } = world;
		if (dice.chance(this.#trouble)) {
			const what = dice.weighted(this.#chosen);
			world.tell(`step ${index}: ${what}`);
			this.#faults.begin(what);
		} else {
			const { clients } = this;
			const stored = clients.stored;
			const wish = dice.pick(stored);
			const trashed = dice.pick(clients.trashed);
			const what = dice.weighted([
				[stored.length > OBJECTS_MAX ? 0 : 5, 'store'],
				[4, 'read'],
				[stored.length > OBJECTS_MAX ? 6 : 1.5, 'delete'],
				[trashed === undefined ? 0 : 1, 'undelete'],
				[trashed === undefined ? 0 : 0.3, 'purge'],
				[trashed === undefined ? 0 : 0.3, 'read what is deleted'],
			]);
			world.tell(`step ${index}: ${what}`);
			if (what === 'undelete' && trashed !== undefined) clients.undelete(trashed);
			else if (what === 'purge' && trashed !== undefined) clients.purge(trashed);
			else if (what === 'read what is deleted' && trashed !== undefined) clients.read(trashed);
			else if (what === 'store' || wish === undefined) clients.store();
			else if (what === 'read') clients.read(wish);
			else clients.remove(wish);
		}
		const waitMs = dice.weighted([
			[5, dice.between(1, 300)],
			[4, dice.between(300, 3_000)],
			[1, dice.between(3_000, 30_000)],
		]);
		await world.advance(waitMs);
		await this.#check();
	}

	async #check(): Promise<void> {
		const { orchestrators, data } = this.#site;
		const { dice } = this.#world;
		this.#truth.checkPlacements();
		this.#truth.checkKeys();
		for (const { name, objectId, state } of this.clients.wishes) {
			if (objectId === null) continue;
			const stored = data.objects.get(objectId);
			if (state === 'stored' && stored?.trash !== null) throw new Violation(`${name} was stored and is gone`);
			if (state === 'trashed' && stored?.trash === null) throw new Violation(`${name} was deleted and is back`);
			if (state === 'deleted' && stored !== undefined) throw new Violation(`${name} was purged and is back`);
		}
		const up = dice.pick(orchestrators.filter(({ isUp }) => isUp))?.running;
		if (up === undefined || up === null) return;
		await this.#truth.checkReports(up, dice);
		await this.#truth.checkSnapshots(up, dice);
		const wish = dice.pick(this.clients.stored);
		if (wish !== undefined) await this.#checkBytes(wish, up);
	}

	/** Any k of its shards give it back. */
	async #checkBytes({ name, objectId, bytes }: Wish, running: Running): Promise<void> {
		const row = this.#site.data.objects.get(objectId as NonNullable<typeof objectId>)?.row;
		if (row === undefined) throw new Violation(`${name} was stored and is gone`);
		if (!(await this.#truth.read(row, running, this.#world.dice)).equals(bytes)) {
			throw new Violation(`the shards of ${name} give other bytes than were stored`);
		}
	}

	/** All faults have ended: nothing may be left to do after a while, and nothing may be missing. */
	async settle(): Promise<void> {
		const world = this.#world;
		const { data, orchestrators, workers } = this.#site;
		world.tell('all faults end');
		this.#faults.endAll();
		this.clients.lostAnswers = 0;
		while (workers.filter(({ isGone }) => !isGone).length < 7) this.#faults.addWorker();
		await world.advance(30_000);
		for (const job of JOB_NAMES)
			orchestrators[0]?.running?.cluster.askJob(job, 'resume').catch((error) => world.fail(error));
		await this.#askUntilDone();
		await this.#look();
		const endMs = world.nowMs + SETTLES_WITHIN_MS;
		for (let left = this.#waiting(); left !== null; left = this.#waiting()) {
			if (world.nowMs > endMs) throw new Violation(`still not settled: ${left}`);
			await world.advance(10_000);
			await this.#check();
		}
		world.tell('settled');
		for (const { isGone, workerId } of workers) {
			const running = (orchestrators[0] as SimOrchestrator).running as Running;
			if (!isGone || !data.workers.has(workerId)) continue;
			let failure: unknown = null;
			running.cluster.changeDuty(running.registry.name(workerId), 'forget').catch((error) => {
				failure = error;
			});
			await world.advance(5_000);
			if (data.workers.has(workerId)) throw new Violation(`a lost worker can not be forgotten: ${failure}`);
		}
		await world.advance(30_000);
		await this.#dropOldGenerations();
		const left = this.#waiting();
		if (left !== null) throw new Violation(`settled, and then there was ${left}`);
		await this.#check();
		this.#truth.checkSettled();
		this.#truth.checkBareDisks(world.dice);
		for (const wish of this.clients.stored) {
			this.clients.read(wish, { mustWork: true });
			await world.advance(2_000);
			await this.#checkBytes(wish, orchestrators[0]?.running as Running);
		}
		await world.advance(30_000);
		this.#checkIdle();
		await this.#checkNames();
	}

	/** With their trailers written anew nothing needs them any more. */
	async #dropOldGenerations(): Promise<void> {
		const world = this.#world;
		const { cluster, clusterKeys } = (this.#site.orchestrators[0] as SimOrchestrator).running as Running;
		const endMs = world.nowMs + SETTLES_WITHIN_MS;
		let because = '';
		const drop = async () => {
			await cluster.askJob('renew-trailers', 'run');
			const { generations } = await clusterKeys.view();
			because = generations.map((one) => `${one.generation}: ${one.because}`).join('; ');
			for (const { generation, may_drop } of generations) if (may_drop) await clusterKeys.drop(generation);
		};
		while ((this.#site.data.cluster?.keys.length ?? 0) > 1) {
			if (world.nowMs > endMs) throw new Violation(`old generations can not be dropped: ${because}`);
			drop().catch((error) => world.tell(`a generation was not dropped: ${error.message}`));
			await world.advance(20_000);
			await this.#check();
		}
		await world.advance(30_000);
	}

	/** Clients that never got an answer come again, and now get one. */
	async #askUntilDone(): Promise<void> {
		const world = this.#world;
		const { orchestrators } = this.#site;
		for (const { registry, cluster } of orchestrators.flatMap(({ running }) => running ?? [])) {
			const rows = registry.rows();
			const active = () => registry.rows().filter(({ state }) => state === 'ready').length;
			for (const { row } of rows) {
				const isNeeded = row.duty === 'draining' && active() < 7;
				if (row.duty === 'cordoned' || isNeeded) {
					cluster.changeDuty(row.name, row.duty === 'draining' ? 'cancel-drain' : 'uncordon').catch(() => {});
				}
				await world.advance(200);
			}
		}
		// Until what a request of before holds is given up.
		await world.advance(200_000);
		const { wishes } = this.clients;
		for (let round = 0; round < 3; round++) {
			for (const wish of wishes) {
				if (wish.state === 'unknown' && wish.key !== null) this.clients.put(wish);
				if (wish.state === 'deleting') this.clients.remove(wish);
				if (wish.state === 'undeleting') this.clients.undelete(wish);
				if (wish.state === 'purging') this.clients.purge(wish);
				await world.advance(isUncertain(wish) ? 2_000 : 1);
			}
			await world.advance(90_000);
		}
		for (const { state, key, name, underWay } of wishes) {
			if ((state === 'unknown' && key !== null) || ['asked', 'deleting', 'undeleting', 'purging'].includes(state)) {
				throw new Violation(`${name} is still ${state} long after all faults ended (${underWay} under way)`);
			}
		}
	}

	/** A pass of scrubbing finds all that is rotten, and a run of reconcile what is not there at all. */
	async #look(): Promise<void> {
		const world = this.#world;
		const { cluster } = (this.#site.orchestrators[0] as SimOrchestrator).running as Running;
		for (const job of ['scrub', 'reconcile']) cluster.askJob(job, 'run').catch((error) => world.fail(error));
		await world.advance(120_000);
		for (const { row, segment } of this.#truth.segments()) {
			for (const placement of segment.placements) {
				const detail = this.#truth.wrongWith(row, segment, placement);
				if (detail === null || this.#truth.worker(placement.workerId)?.isGone !== false) continue;
				if (this.#site.data.findings.has(placement.shardId)) continue;
				throw new Violation(`neither scrubbing nor reconcile found shard ${placement.shardId}: ${detail}`);
			}
		}
		await world.advance(1_000);
	}

	/** What there is still to do, or null. */
	#waiting(): string | null {
		const { data, orchestrators, workers } = this.#site;
		const { intents, repairs, deletions } = data;
		const gone = new Set(workers.filter(({ isGone }) => isGone).map(({ workerId }) => workerId));
		for (const { host, running } of orchestrators) {
			if (running === null) return `${host} does not start`;
			const away = running.registry
				.rows()
				.filter(({ row, state }) => !gone.has(row.workerId) && (state === 'suspect' || state === 'lost'));
			if (away.length > 0) return `${host} does not hear ${away.map(({ row }) => row.name).join()}`;
		}
		const trashed = [...data.objects.values()].filter(({ trash }) => trash !== null);
		if (trashed.length > 0) return `${trashed.length} objects in the trash`;
		const registry = orchestrators[0]?.running?.registry;
		const suits = registry === undefined ? null : new Suits(registry.policyWorkers(), this.#site.policy);
		if (intents.size > 0) return `${intents.size} intents`;
		if (repairs.size > 0) return `${repairs.size} repairs`;
		const queued = [...deletions.values()].filter(({ workerId }) => !gone.has(workerId));
		if (queued.length > 0) return `${queued.length} deletions`;
		const unknown = this.#truth.unknown();
		if (unknown.length > 0) return `${unknown.length} shards that no row names`;
		const behind = this.#truth.volumesBehind();
		if (behind.length > 0) return `the keys on ${behind.join()}`;
		const newest = data.cluster?.keys.at(-1)?.generation ?? 0;
		const old = [...data.objects.values()].filter(({ row }) => row.keyGeneration < newest);
		if (old.length > 0) return `${old.length} data keys wrapped by an old generation`;
		for (const { row, segment } of this.#truth.segments()) {
			const { placements, n } = segment;
			if (placements.length < n)
				return `segment ${segment.index} of ${row.objectId} with ${placements.length} of ${n} shards`;
			if (placements.some(({ workerId }) => gone.has(workerId))) return `shards on workers that are gone`;
			const draining = placements.some(({ workerId }) => data.workers.get(workerId)?.duty === 'draining');
			if (draining) return 'shards on draining workers';
			// What is in the trash stays as it is.
			const isTrashed = data.objects.get(row.objectId)?.trash !== null;
			const isKept = isTrashed || row.kind !== 'user';
			const wanted = isKept ? undefined : suits?.wanted(segment, row.sizeBytes)?.choice;
			if (wanted !== undefined)
				return `segment ${segment.index} of ${row.objectId} is ${segment.k} of ${n} and not ${wanted.k} of ${wanted.n}`;
		}
		return null;
	}

	/** Nothing is held that nobody uses. */
	#checkIdle(): void {
		for (const { running, host } of this.#site.orchestrators) {
			for (const pool of running?.pools ?? []) {
				if (pool.usedBytes > 0) throw new Violation(`${host} still holds ${pool.usedBytes} bytes of memory`);
			}
			if ((running?.transport.open ?? 0) > 0) throw new Violation(`${host} still has transfers open`);
		}
		for (const { pool, name } of this.#site.workers) {
			if ((pool?.usedBytes ?? 0) > 0) throw new Violation(`${name} still holds ${pool?.usedBytes} bytes of memory`);
		}
	}

	/** One object for each wish, whatever answers were lost. */
	async #checkNames(): Promise<void> {
		const { keyring } = (this.#site.orchestrators[0] as SimOrchestrator).running as Running;
		const names = new Set<string>();
		for (const { row } of this.#site.data.objects.values()) {
			if (row.kind !== 'user') continue;
			const { name } = openManifest(await keyring.dataKey(row.versionId, row), row.manifest);
			const wish = this.clients.wishes.find((other) => other.name === name);
			if (name === null || wish === undefined) throw new Violation(`nobody asked for object ${row.objectId}`);
			if (wish.state === 'deleted' || wish.state === 'trashed') throw new Violation(`${name} was deleted and is there`);
			if (names.has(name)) throw new Violation(`${name} is there twice`);
			names.add(name);
		}
	}
}

/** Somebody waits for an answer. */
function isUncertain({ state }: Wish): boolean {
	return ['unknown', 'deleting', 'undeleting', 'purging'].includes(state);
}

/** All that looks like an id, to follow one through the history. */
function idsIn(value: unknown): string[] {
	if (typeof value === 'string') return isId(value) ? [value] : [];
	if (typeof value !== 'object' || value === null || Buffer.isBuffer(value)) return [];
	return Object.values(value).flatMap(idsIn);
}
