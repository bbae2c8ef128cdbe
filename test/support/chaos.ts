/**
 * Faults for a cluster of real processes, one after another in an order that a seed decides, each written down. Nothing is
 * stopped that the cluster itself does not allow to be stopped (GET /cluster/can-stop), and what it allows is tried: with
 * those workers down every object must read.
 */

import { rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Random } from '../../core/ports.ts';
import { draw, seededRandom } from './clock.ts';
import { type TestCluster, until } from './cluster.ts';
import type { ClusterApi, ClusterState } from './cluster-api.ts';
import { type DamagedShard, Damages } from './damages.ts';
import { flipBit, joined, type Machine } from './machines.ts';
import { fillUp } from './volume.ts';
import { sleep, type Workload } from './workload.ts';

export type Fault = 'kill' | 'pause' | 'orchestrator' | 'flip' | 'folder' | 'full' | 'gone' | 'drain' | 'add';

export interface ChaosOptions {
	readonly c: TestCluster;
	readonly api: ClusterApi;
	readonly workload: Workload;
	readonly seed: string;
	/** Of workers that are added. */
	readonly env: Record<string, string>;
	readonly say: (text: string) => void;
	/** The orchestrator is about to be killed, with all that only its process knows. */
	readonly beforeKill: () => Promise<void>;
}

/** How long the cluster may take for what must come about by itself. */
const PATIENCE_MS = 150_000;
/** A worker is down for at most this; LOST_AFTER lies within. */
const DOWN_MAX_MS = 14_000;
const FULL_MAX_MS = 15_000;
/** A zone that has fewer workers than this loses none for good. */
const ZONE_WORKERS_MIN = 3;
const FLIPS = 3;
/** Faults that were not allowed come again later, but not for ever. */
const POSTPONED_MAX = 60;
const POSTPONED_MS = 500;

export class Chaos {
	readonly machines = new Map<string, Machine>();
	readonly done = new Map<Fault, number>();
	readonly damages: Damages;
	/** Names of workers of whose files some were removed: they can't know. */
	readonly robbed = new Set<string>();
	/** How often can-stop said no. */
	refusals = 0;
	readonly #o: ChaosOptions;
	readonly #random: Random;
	/** Killed, stopped, or on its way back. */
	readonly #down = new Set<string>();
	readonly #leaving = new Set<string>();
	/** What comes back, or leaves, by and by. */
	readonly #later = new Set<Promise<void>>();
	#turn: Promise<unknown> = Promise.resolve();
	#orchestratorDown = false;
	#upAtMs = 0;
	#added = 0;

	constructor(options: ChaosOptions) {
		this.#o = options;
		this.#random = seededRandom(`${options.seed} faults`);
		this.damages = new Damages(options.api);
	}

	add(machine: Machine): void {
		this.machines.set(machine.name, machine);
	}

	/** Whether the orchestrator was down, or not yet back, at some time since then. */
	wasDown(sinceMs: number): boolean {
		return this.#orchestratorDown || this.#upAtMs > sinceMs;
	}

	/** Nothing was done to it that would end it. */
	mustRun(name: string): boolean {
		return !this.#down.has(name) && !this.#leaving.has(name);
	}

	get orchestratorMustRun(): boolean {
		return !this.#orchestratorDown;
	}

	#isUp({ name, pid }: Machine): boolean {
		return this.mustRun(name) && pid() !== null;
	}

	/** Does these in an order of its own, spread evenly over the time. */
	async run(faults: readonly Fault[], windowMs: number): Promise<void> {
		const queue = this.#shuffled(faults);
		const startMs = Date.now();
		let [happened, postponed] = [0, 0];
		for (let fault = queue.shift(); fault !== undefined; fault = queue.shift()) {
			const next = fault;
			const done = await this.#inTurn(() => this.#fault(next)).catch((error: Error) => {
				this.#o.workload.complain(`the fault ${next} failed: ${error.stack}`);
				return false;
			});
			if (done) {
				this.done.set(next, (this.done.get(next) ?? 0) + 1);
				happened++;
				await sleep(startMs + (happened * windowMs) / faults.length - Date.now());
			} else if (postponed++ < POSTPONED_MAX) {
				queue.push(next);
				await sleep(POSTPONED_MS);
			}
		}
	}

	/** Everybody is back who is to come back, has left who is to leave, and what was damaged is mended. */
	async calm(): Promise<void> {
		while (this.#later.size > 0) await Promise.all(this.#later);
		const mended = until(() => this.damages.list().length === 0, {
			what: 'damages to be mended',
			timeoutMs: PATIENCE_MS,
		});
		await mended.catch(({ message }: Error) =>
			this.#o.workload.complain(`${message}: ${JSON.stringify(this.damages.list())}`),
		);
	}

	/** Nothing is stopped while somebody still looks whether everything can be read. */
	#inTurn<T>(action: () => Promise<T>): Promise<T> {
		const result = this.#turn.then(action);
		this.#turn = result.catch(() => {});
		return result;
	}

	#byAndBy(action: () => Promise<void>): void {
		const running: Promise<void> = action()
			.catch((error: Error) => this.#o.workload.complain(`${error.stack}`))
			.finally(() => this.#later.delete(running));
		this.#later.add(running);
	}

	/** False: not allowed, or nothing to do it to, just now. */
	#fault(fault: Fault): Promise<boolean> {
		switch (fault) {
			case 'kill':
				return this.#stopSome(
					fault,
					(machine) => machine.kill(),
					(machine) => machine.start(),
				);
			case 'pause':
				return this.#stopSome(
					fault,
					async (machine) => signal(machine, 'SIGSTOP'),
					async (machine) => signal(machine, 'SIGCONT'),
				);
			case 'orchestrator':
				return this.#killOrchestrator();
			case 'flip':
				return this.#flip();
			case 'folder':
				return this.#removeFolder();
			case 'full':
				return this.#fill();
			case 'gone':
				return this.#loseForGood();
			case 'drain':
				return this.#drain();
			case 'add':
				return this.#join();
		}
	}

	async #stopSome(
		fault: Fault,
		stop: (machine: Machine) => Promise<void>,
		again: (machine: Machine) => Promise<void>,
	): Promise<boolean> {
		const stopped: string[] = [];
		// Sometimes a second one at once.
		while (stopped.length === 0 || (stopped.length < 2 && draw(this.#random) < 0.4)) {
			const machine = this.#pick([...this.machines.values()].filter((one) => this.#isUp(one)));
			if (machine === undefined || !(await this.#mayStop(machine.name))) break;
			const { name } = machine;
			const forMs = draw(this.#random) * DOWN_MAX_MS;
			this.#say(`${fault} ${name} for ${seconds(forMs)}; down: ${[...this.#down].join(' ') || 'none'}`);
			this.#down.add(name);
			stopped.push(name);
			await stop(machine);
			this.#byAndBy(async () => {
				await sleep(forMs);
				await again(machine);
				const isBack = async () => {
					const state = (await this.#worker(name))?.state;
					return state !== undefined && !['suspect', 'lost'].includes(state);
				};
				await until(isBack, { what: `${name} to be back`, timeoutMs: 60_000 });
				this.#down.delete(name);
			});
		}
		if (stopped.length > 0) await this.#expectReadable(`${fault} of ${stopped.join(' and ')}`);
		return stopped.length > 0;
	}

	/** Undefined also while the orchestrator is down. */
	#worker(name: string): Promise<ClusterState['workers'][number] | undefined> {
		return this.#o.api.worker(name).catch(() => undefined);
	}

	/** With what is down now, and with what may be damaged unseen, every object must read. */
	async #expectReadable(after: string): Promise<void> {
		const { workload } = this.#o;
		const complaints = workload.complaints.length;
		const down = [...this.#down].join(' ');
		const held = workload.held().length;
		const good = await workload.readAll();
		if (good >= held && workload.complaints.length === complaints) return;
		workload.complain(`after ${after}, with ${down} down: ${good} of ${held} could be read`);
	}

	/** Asks the cluster. Damage that nobody has found yet counts for one more worker. */
	async #mayStop(name: string): Promise<boolean> {
		const may = await this.#o.api.canStop([...this.#down, name], this.damages.hidden ? 1 : 0);
		if (!may) this.refusals++;
		return may;
	}

	async #killOrchestrator(): Promise<boolean> {
		const { c, beforeKill } = this.#o;
		await beforeKill();
		this.#say('kill orchestrator-1');
		this.#orchestratorDown = true;
		try {
			await c.kill('orchestrator-1');
			await c.start('orchestrator-1');
		} finally {
			this.#upAtMs = Date.now();
			this.#orchestratorDown = false;
		}
		return true;
	}

	/** Good shards of objects that are not damaged already, where they are now. */
	async #shards(): Promise<(DamagedShard & { worker: string; text: string })[]> {
		const all = [];
		for (const { id } of this.#o.workload.held()) {
			const object = this.damages.has(id) ? null : await this.#o.api.explain(id);
			for (const [segment, { k, shards }] of (object?.segments ?? []).entries()) {
				for (const { index, shard_id: shardId, worker, state } of shards) {
					if (shardId === null || worker === null || state !== 'ok') continue;
					all.push({ objectId: id, segment, shardId, worker, text: `${shardId} (shard ${index}, k ${k})` });
				}
			}
		}
		return all;
	}

	async #flip(): Promise<boolean> {
		let flipped = 0;
		for (const shard of this.#shuffled(await this.#shards()).slice(0, 4 * FLIPS)) {
			if (flipped === FLIPS) break;
			const machine = this.machines.get(shard.worker);
			if (machine === undefined || !this.#isUp(machine) || this.damages.has(shard.objectId)) continue;
			// As if its worker were gone, which is more.
			if (!(await this.#mayStop(machine.name)) || !flipBit(machine, shard.shardId, this.#random)) continue;
			this.damages.add(shard);
			this.#say(`flip a bit of ${shard.text} on ${machine.name}`);
			flipped++;
		}
		return flipped > 0;
	}

	async #removeFolder(): Promise<boolean> {
		const machine = this.#pick([...this.machines.values()].filter((one) => this.#isUp(one)));
		if (machine === undefined) return false;
		const shards = (await this.#shards()).filter(({ worker }) => worker === machine.name);
		const found = this.#pick([...Map.groupBy(shards, ({ shardId }) => shardId.slice(0, 2))]);
		if (found === undefined || !(await this.#mayStop(machine.name))) return false;
		const [folder, lost] = found;
		for (const shard of lost) this.damages.add(shard);
		this.robbed.add(machine.name);
		this.#say(`remove shards/${folder} of ${machine.name}, with ${lost.map(({ text }) => text).join(', ')}`);
		rmSync(join(machine.dataDir, 'shards', folder), { recursive: true });
		return true;
	}

	/** A volume has no byte left, for a while. */
	async #fill(): Promise<boolean> {
		const machine = [...this.machines.values()].find(({ small }) => small);
		if (machine === undefined) return false;
		const forMs = draw(this.#random) * FULL_MAX_MS;
		this.#say(`fill the volume of ${machine.name} for ${seconds(forMs)}`);
		const ballast = fillUp(machine.dataDir);
		this.#byAndBy(async () => {
			await sleep(forMs);
			rmSync(ballast, { force: true });
		});
		return true;
	}

	/** Killed, its folder removed; forgotten once the metadata has nothing on it any more. */
	async #loseForGood(): Promise<boolean> {
		const machine = this.#pick(this.#mayLeave());
		if (machine === undefined || !(await this.#mayStop(machine.name))) return false;
		const { name } = machine;
		this.#say(`lose ${name} for good; down: ${[...this.#down].join(' ') || 'none'}`);
		this.#down.add(name);
		this.#leaving.add(name);
		await machine.kill();
		rmSync(machine.dataDir, { recursive: true });
		this.#byAndBy(() => this.#leave(name));
		await this.#expectReadable(`the loss of ${name}`);
		return true;
	}

	async #drain(): Promise<boolean> {
		const { api, workload } = this.#o;
		const machine = this.#pick(this.#mayLeave());
		if (machine === undefined) return false;
		const { name } = machine;
		this.#say(`drain ${name}`);
		this.#leaving.add(name);
		await api.change(name, 'drain');
		this.#byAndBy(async () => {
			await this.#emptied(name, ({ shards_placed: placed, shards }) => {
				return placed === 0 && (shards === 0 || this.robbed.has(name));
			});
			await this.#inTurn(async () => {
				// Nothing is on it: nothing can be in the way.
				if (!(await this.#mayStop(name))) workload.complain(`${name} is drained, and may not be stopped`);
				this.#down.add(name);
				await machine.stop();
				this.#say(`${name} is drained and stopped`);
				await this.#expectReadable(`the drain of ${name}`);
			});
			await this.#leave(name);
		});
		return true;
	}

	async #emptied(name: string, isEmpty: (worker: ClusterState['workers'][number]) => boolean): Promise<void> {
		const empty = async () => {
			const worker = await this.#worker(name);
			return worker !== undefined && isEmpty(worker);
		};
		await until(empty, { what: `${name} to be emptied`, timeoutMs: PATIENCE_MS });
	}

	async #leave(name: string): Promise<void> {
		await this.#emptied(name, ({ shards_placed: placed }) => placed === 0);
		const forget = () =>
			this.#o.api.change(name, 'forget').then(
				() => true,
				() => false,
			);
		await this.#inTurn(async () => {
			await until(forget, { what: `${name} to be forgotten`, timeoutMs: PATIENCE_MS });
			this.machines.delete(name);
			this.#down.delete(name);
			this.#say(`${name} is forgotten`);
		});
	}

	/** Zones that are kept leave placement a choice. */
	#mayLeave(): Machine[] {
		const zones = this.#zones();
		return [...this.machines.values()].filter(
			(one) => !one.small && this.#isUp(one) && (zones.get(one.zone)?.length ?? 0) >= ZONE_WORKERS_MIN,
		);
	}

	#zones(): Map<string, Machine[]> {
		const staying = [...this.machines.values()].filter(({ name }) => !this.#leaving.has(name));
		return Map.groupBy(staying, ({ zone }) => zone);
	}

	async #join(): Promise<boolean> {
		const [smallest] = [...this.#zones()].toSorted(([, a], [, b]) => a.length - b.length);
		if (smallest === undefined) return false;
		const name = `added-${++this.#added}`;
		this.#say(`add ${name} in ${smallest[0]}`);
		this.add(await joined(this.#o.c, { name, zone: smallest[0], env: this.#o.env }));
		return true;
	}

	#say(text: string): void {
		this.#o.say(text);
	}

	#pick<T>(from: readonly T[]): T | undefined {
		return from[Math.floor(draw(this.#random) * from.length)];
	}

	#shuffled<T>(from: readonly T[]): T[] {
		const drawn = from.map((value) => ({ value, at: draw(this.#random) }));
		return drawn.sort((a, b) => a.at - b.at).map(({ value }) => value);
	}
}

function signal({ pid }: Machine, what: NodeJS.Signals): void {
	const running = pid();
	if (running !== null) process.kill(running, what);
}

function seconds(ms: number): string {
	return `${(ms / 1000).toFixed(1)} s`;
}
