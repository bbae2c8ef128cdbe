/**
 * What goes wrong, and what operators do meanwhile. Each fault ends by itself after a while, or when all faults end; what
 * destroys shards never takes more of a segment than it was made to stand.
 */

import { type MasterKeyring, parseMasterKeys } from '../../core/crypto/keys.ts';
import { asDistroError } from '../../core/errors.ts';
import { newId, type ShardId } from '../../core/ids.ts';
import { DEFAULT_POLICY, type RedundancyPolicy } from '../../core/model/redundancy.ts';
import type { Random } from '../../core/ports.ts';
import { seededRandom } from '../support/clock.ts';
import { type Running, type SimOrchestrator, SimWorker, type Site } from './cluster.ts';
import type { Dice } from './dice.ts';
import { DISK_BYTES, SimFile } from './disk.ts';
import type { Truth } from './truth.ts';

/** Longer than any upload lives: two volumes must not go while one is on its way. */
const BETWEEN_LOSSES_MS = 180_000;
const WORKERS_MAX = 11;
const POLICIES: readonly RedundancyPolicy[] = [
	DEFAULT_POLICY,
	{ ...DEFAULT_POLICY, tolerate: { workers: 1, zones: 0 } },
	{ ...DEFAULT_POLICY, tolerate: { workers: 3, zones: 1 } },
	{ ...DEFAULT_POLICY, fixed: { dataShards: 2, parityShards: 2 } },
	{ ...DEFAULT_POLICY, fixed: { dataShards: 1, parityShards: 2 } },
];

export class Faults {
	readonly #site: Site;
	readonly #truth: Truth;
	readonly #dice: Dice;
	readonly #random: Random;
	readonly #ends = new Set<() => void>();
	readonly #beginUpload: () => void;
	#haveEnded = false;
	#lastLossMs = Number.NEGATIVE_INFINITY;
	#hosts = 0;

	constructor(site: Site, truth: Truth, beginUpload: () => void) {
		this.#site = site;
		this.#beginUpload = beginUpload;
		this.#truth = truth;
		this.#dice = site.world.dice.fork('faults');
		this.#random = seededRandom(`${site.seed} left shards`);
	}

	/** All that can happen, with how often; a run has some of them. */
	readonly all: readonly (readonly [number, string])[] = [
		[3, 'kill a worker'],
		[3, 'cut the power of a worker'],
		[1, 'cut the power of all workers'],
		[3, 'pause a worker'],
		[2, 'kill an orchestrator'],
		[3, 'pause an orchestrator'],
		[3, 'cut a link'],
		[2, 'cut a worker off'],
		[2, 'slow a link down'],
		[3, 'lose messages'],
		[3, 'break a connection'],
		[2, 'repeat requests'],
		[2, 'lose answers of the metadata'],
		[4, 'rot'],
		[1, 'spoil a sector'],
		[2, 'delete a shard file'],
		[3, 'leave a shard'],
		[2, 'slow a disk down'],
		[2, 'fill a disk'],
		[2, 'take a mount away'],
		[1, 'fail a sync'],
		[1, 'turn a clock'],
		[1, 'lose a worker for good'],
		[2, 'add a worker'],
		[2, 'cordon'],
		[2, 'uncordon'],
		[2, 'drain'],
		[1, 'cancel-drain'],
		[2, 'forget'],
		[1, 'pause a job'],
		[1, 'run a job'],
		[2, 'edit the policy'],
		[1, 'rotate the master key'],
		[2, 'rotate the cluster key'],
		[3, 'drop old keys'],
	];

	/** Answers whether there was anything to do. */
	begin(what: string): boolean {
		const { network, world, orchestrators } = this.#site;
		const dice = this.#dice;
		const worker = dice.pick(this.#site.workers.filter(({ node }) => node !== null));
		const orchestrator = dice.pick(orchestrators.filter(({ node }) => node !== null));
		const [from, to] = dice.some([worker?.host ?? '', orchestrator?.host ?? '']) as [string, string];
		switch (what) {
			case 'kill a worker':
			case 'cut the power of a worker': {
				if (worker === undefined) return false;
				world.tell(worker.name);
				worker.kill({ power: what !== 'kill a worker' });
				this.#later(dice.chance(0.2) ? 150_000 : 40_000, () => worker.start());
				return true;
			}
			case 'cut the power of all workers':
				for (const each of this.#site.workers) {
					each.kill({ power: true });
					this.#later(20_000, () => each.start());
				}
				return true;
			case 'pause a worker': {
				const node = worker?.node;
				if (!node) return false;
				world.tell(node.name);
				node.pause();
				network.dropIfStill(node);
				this.#later(dice.chance(0.2) ? 120_000 : 20_000, () => node.resume());
				return true;
			}
			case 'kill an orchestrator':
				if (orchestrator === undefined) return false;
				orchestrator.kill({ isSilent: dice.chance(0.3) });
				this.#later(60_000, () => orchestrator.start());
				return true;
			case 'pause an orchestrator': {
				const node = orchestrator?.node;
				if (!node) return false;
				world.tell(node.name);
				// Sometimes in the middle of an upload, for longer than its intent lasts.
				const inUpload = dice.chance(0.6);
				if (inUpload) this.#beginUpload();
				world.at(inUpload ? dice.between(0.5, 20) : 0, () => {
					if (this.#haveEnded) return;
					node.pause();
					network.dropIfStill(node);
					this.#later(inUpload || dice.chance(0.3) ? 400_000 : 50_000, () => node.resume());
				});
				return true;
			}
			case 'cut a link':
				network.block(from, to, true);
				if (dice.chance(0.7)) network.block(to, from, true);
				this.#later(40_000, () => {
					network.block(from, to, false);
					network.block(to, from, false);
				});
				return true;
			case 'cut a worker off': {
				if (worker === undefined) return false;
				const links = orchestrators.flatMap(({ host }) => [
					[host, worker.host],
					[worker.host, host],
				]) as [string, string][];
				for (const [near, far] of links) network.block(near, far, true);
				this.#later(dice.chance(0.3) ? 150_000 : 30_000, () => {
					for (const [near, far] of links) network.block(near, far, false);
				});
				return true;
			}
			case 'slow a link down':
				return this.#change(network.link(from, to), { slowMs: dice.between(20, 4_000) }, { slowMs: 0 });
			case 'lose messages':
				return this.#change(network.link(from, to), { loss: dice.between(0.01, 0.2) }, { loss: 0 });
			case 'break a connection':
				for (let i = dice.below(5); i >= 0; i--) network.breakOne(dice);
				return true;
			case 'repeat requests':
				return this.#change(network.link(from, to), { twice: 0.5 }, { twice: 0 });
			case 'lose answers of the metadata':
				if (orchestrator === undefined) return false;
				return this.#change(
					orchestrator.faults,
					{ loss: dice.between(0.05, 1), slowMs: dice.between(0, 500) },
					{ loss: 0, slowMs: 0 },
				);
			case 'rot':
			case 'spoil a sector':
			case 'delete a shard file':
				return this.#destroy(what);
			case 'leave a shard':
				return this.#plant(worker);
			case 'slow a disk down':
				return worker !== undefined && this.#change(worker.disk, { slowMs: dice.between(50, 2_000) }, { slowMs: 0 });
			case 'fill a disk':
				return (
					worker !== undefined &&
					this.#change(worker.disk, { capacityBytes: dice.below(8 * 1024 * 1024) }, { capacityBytes: DISK_BYTES })
				);
			case 'take a mount away':
				return worker !== undefined && this.#change(worker.disk, { online: false }, { online: true });
			case 'fail a sync':
				if (worker === undefined) return false;
				worker.disk.failingSyncs = 1 + dice.below(3);
				this.#later(40_000, () => {
					worker.disk.failingSyncs = 0;
				});
				return true;
			case 'turn a clock': {
				const node = dice.chance(0.5) ? worker?.node : orchestrator?.node;
				if (!node) return false;
				node.skewMs = dice.between(-20_000, 20_000);
				return true;
			}
			case 'lose a worker for good':
				return this.#loseForGood();
			case 'add a worker': {
				if (this.#site.workers.filter(({ isGone }) => !isGone).length >= WORKERS_MAX) return false;
				// Sometimes an emptied volume under an old name.
				const isFree = (name: string) => this.#site.workers.every((other) => other.isGone || other.name !== name);
				const old = dice.pick(this.#site.workers.filter(({ isGone, name }) => isGone && isFree(name)));
				this.addWorker(dice.chance(0.5) ? old?.name : undefined);
				return true;
			}
			case 'cordon':
			case 'uncordon':
			case 'drain':
			case 'cancel-drain':
			case 'forget': {
				const { running } = dice.pick(orchestrators) as SimOrchestrator;
				// Some are only down, and come back with what they had.
				const rows = running?.registry.rows() ?? [];
				const row = dice.pick(
					rows.filter(({ row: { workerId } }) => what !== 'forget' || this.#truth.worker(workerId)?.node === null),
				)?.row;
				if (!running || row === undefined) return false;
				const busy = running.registry.rows().filter(({ row: { duty } }) => duty !== 'active').length;
				if ((what === 'cordon' || what === 'drain') && busy >= 3) return false;
				world.tell(row.name);
				running.node.run(
					() =>
						void running.cluster.changeDuty(row.name, what).then(
							() => world.tell(`${what} ${row.name}: done`),
							(error) => world.tell(`${what} ${row.name}: ${(error as Error).message}`),
						),
				);
				return true;
			}
			case 'pause a job':
			case 'run a job': {
				const { running } = dice.pick(orchestrators) as SimOrchestrator;
				const job = dice.pick([
					'expire-intents',
					'deletions',
					'repair',
					'drain',
					'rebalance',
					'reencode',
					'audit',
					'reconcile',
					'scrub',
					'rewrap',
					'renew-trailers',
				]) as string;
				if (!running) return false;
				world.tell(job);
				const ask = (how: 'pause' | 'resume' | 'run') => {
					for (const { running: now } of orchestrators) {
						now?.node.run(() => void now.cluster.askJob(job, how).catch(() => {}));
					}
				};
				ask(what === 'run a job' ? 'run' : 'pause');
				if (what === 'pause a job') this.#later(60_000, () => ask('resume'));
				return true;
			}
			case 'edit the policy':
				this.#site.policy = dice.pick(POLICIES) as RedundancyPolicy;
				world.tell(JSON.stringify(this.#site.policy));
				// It is read at the start.
				for (const each of orchestrators) {
					each.kill({ isSilent: false });
					this.#later(20_000, () => each.start());
				}
				return true;
			case 'rotate the master key':
				this.#site.master = masterKeys([this.#newKey(), ...this.#site.master.keys.map(({ key }) => key.export())]);
				return true;
			case 'rotate the cluster key':
				return this.#withKeys((running) => running.clusterKeys.rotate());
			case 'drop old keys':
				return this.#withKeys((running) => this.#dropKeys(running));
			default:
				throw new Error(`no fault ${what}`);
		}
	}

	#newKey(): Buffer {
		return Buffer.from(Array.from({ length: 32 }, () => this.#dice.below(256)));
	}

	#withKeys(what: (running: Running) => Promise<unknown>): boolean {
		const { running } = this.#dice.pick(this.#site.orchestrators) as SimOrchestrator;
		if (!running) return false;
		const { world } = this.#site;
		running.node.run(
			() =>
				void what(running).then(
					() => world.tell('keys: done'),
					(error) => {
						const { kind, message } = asDistroError(error);
						world.tell(`keys: ${message}`);
						if (kind === 'internal') world.fail(error);
					},
				),
		);
		return true;
	}

	/** Master keys that the API says may go, and one generation: asked for as people do, or whatever the API says. */
	async #dropKeys(running: Running): Promise<void> {
		const { clusterKeys, store, keyring, cluster } = running;
		if (this.#dice.chance(0.3)) await cluster.askJob('renew-trailers', 'run');
		const view = await clusterKeys.view();
		const needless = new Set(view.master_keys.filter(({ may_drop }) => may_drop).map(({ id }) => id));
		const { master, world } = this.#site;
		const kept = master.keys.filter(({ id }) => !needless.has(id));
		if (kept.length < master.keys.length) {
			world.tell(`${master.keys.length - kept.length} master keys go`);
			this.#site.master = masterKeys(kept.map(({ key }) => key.export()));
		}
		const { generation } = this.#dice.pick(view.generations) as (typeof view.generations)[number];
		if (this.#dice.chance(0.5)) await clusterKeys.drop(generation);
		else keyring.learn(await store.dropClusterKey(generation, view.revision));
		world.tell(`generation ${generation} goes`);
	}

	addWorker(name?: string): SimWorker {
		const count = ++this.#hosts;
		const zone = ['a', 'b', 'c'][count % 3] as string;
		const worker = new SimWorker(this.#site, { host: `worker-${count}`, name: name ?? `worker-${count}`, zone });
		this.#site.workers.push(worker);
		worker.start();
		return worker;
	}

	/** Until it is `well` again. */
	#change<T extends object>(thing: T, to: Partial<T>, well: Partial<T>): boolean {
		this.#site.world.tell(JSON.stringify(to));
		Object.assign(thing, to);
		this.#later(40_000, () => Object.assign(thing, well));
		return true;
	}

	/** Within so many milliseconds, or when all faults end. */
	#later(mostMs: number, end: () => void): void {
		const once = () => {
			if (this.#ends.delete(once)) end();
		};
		this.#ends.add(once);
		this.#site.world.at(this.#dice.between(mostMs / 50, mostMs), once);
	}

	/** Segments as they would be with these shards gone: each must still have k that are good. */
	#mayLose(isLost: (shard: { shardId: ShardId; workerId: string }) => boolean, spare: 0 | 1): boolean {
		for (const { row, segment } of this.#truth.segments()) {
			const good = this.#truth.good(row, segment);
			const left = good.filter((placement) => !isLost(placement)).length;
			if (left < segment.k + (left === good.length ? spare : 0)) return false;
		}
		return true;
	}

	#destroy(what: string): boolean {
		const placed = [...this.#truth.segments()].flatMap(({ segment }) => segment.placements);
		const shard = this.#dice.pick(placed);
		const worker = shard === undefined ? null : this.#truth.worker(shard.workerId);
		if (shard === undefined || worker === null || worker.isGone) return false;
		if (!this.#mayLose(({ shardId }) => shardId === shard.shardId, 0)) return false;
		const { disk } = worker;
		const done =
			what === 'rot'
				? disk.rot(shard.shardId)
				: what === 'spoil a sector'
					? disk.spoilSector(shard.shardId)
					: disk.remove(shard.shardId);
		if (done) this.#truth.damaged.add(shard.shardId);
		if (done) this.#site.world.tell(`${shard.shardId} on ${worker.name}`);
		return done;
	}

	/** Of a write that nobody knows of any more; how old it looks is up to the clock. */
	#plant(worker: SimWorker | undefined): boolean {
		if (worker === undefined || worker.isGone) return false;
		const file = new SimFile();
		file.write(0, this.#random.bytes(100 + this.#dice.below(10_000)));
		file.syncedBytes = file.sizeBytes;
		file.writtenAtMs = this.#site.world.nowMs - this.#dice.below(10_000);
		const shardId = newId<ShardId>(this.#random);
		worker.disk.plant(shardId, file);
		this.#truth.planted.add(shardId);
		this.#site.world.tell(`${shardId} on ${worker.name}`);
		return true;
	}

	#loseForGood(): boolean {
		const { world, workers } = this.#site;
		if (world.nowMs - this.#lastLossMs < BETWEEN_LOSSES_MS) return false;
		const left = workers.filter(({ isGone }) => !isGone);
		const worker = this.#dice.pick(left);
		// What is being moved onto it goes as well: of others one shard more must be left.
		if (worker === undefined || left.length < 7) return false;
		if (!this.#mayLose(({ workerId }) => workerId === worker.workerId, 1)) return false;
		this.#lastLossMs = world.nowMs;
		world.tell(worker.name);
		worker.kill({ power: true });
		worker.isGone = true;
		return true;
	}

	/** Everything works again; what is destroyed stays so. */
	endAll(): void {
		this.#haveEnded = true;
		for (const end of [...this.#ends]) end();
		this.#site.network.heal();
		for (const orchestrator of this.#site.orchestrators) {
			orchestrator.node?.resume();
			orchestrator.start();
		}
		for (const worker of this.#site.workers) {
			worker.node?.resume();
			worker.start();
		}
	}
}

function masterKeys(keys: readonly Buffer[]): MasterKeyring {
	return parseMasterKeys(keys.map((key) => `k${key.subarray(0, 4).toString('hex')}:${key.toString('hex')}`).join());
}
