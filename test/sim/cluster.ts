/** The processes: orchestrators and workers, built of the real parts as their main.ts does, on simulated machines. */

import { createPrivateKey, type KeyObject } from 'node:crypto';
import { type MasterKeyring, parseMasterKeys } from '../../core/crypto/keys.ts';
import { rawPublicKey } from '../../core/crypto/sign.ts';
import { asDistroError, type DistroError } from '../../core/errors.ts';
import { type ClusterId, newId, type WorkerId } from '../../core/ids.ts';
import { LARGE_CELL_BYTES } from '../../core/limits.ts';
import { DEFAULT_POLICY, type RedundancyPolicy } from '../../core/model/redundancy.ts';
import type { Random } from '../../core/ports.ts';
import type { ApiKeyStore } from '../../orchestrator/api-keys.ts';
import { auditJob } from '../../orchestrator/audit.ts';
import { shardDrawer } from '../../orchestrator/audit-draw.ts';
import { Cluster } from '../../orchestrator/cluster.ts';
import { ClusterKeys } from '../../orchestrator/cluster-keys.ts';
import { Findings } from '../../orchestrator/findings.ts';
import { JobControl } from '../../orchestrator/job-control.ts';
import { deletionsJob, expireIntentsJob, type Job, runJobs, trashJob } from '../../orchestrator/jobs.ts';
import { KeyDelivery } from '../../orchestrator/key-delivery.ts';
import { Keyring } from '../../orchestrator/keyring.ts';
import { keysJob } from '../../orchestrator/keys-job.ts';
import { exclusive } from '../../orchestrator/leases.ts';
import { drainJob, rebalanceJob, renewTrailersJob, repairJob } from '../../orchestrator/mend.ts';
import { ObjectService } from '../../orchestrator/objects.ts';
import { reconcileJob } from '../../orchestrator/reconcile.ts';
import { LookAgain, reencodeJob } from '../../orchestrator/reencoding.ts';
import { rewrapJob } from '../../orchestrator/rewrap.ts';
import { ScrubDesk } from '../../orchestrator/scrub.ts';
import { snapshotJob } from '../../orchestrator/snapshots.ts';
import type { MetadataStore } from '../../orchestrator/store.ts';
import { openStoreClock, SYNC_EVERY_MS } from '../../orchestrator/store-clock.ts';
import { MemoryMetadata, MemoryMetadataStore } from '../../orchestrator/store-memory.ts';
import { Watch } from '../../orchestrator/watch.ts';
import { EXCHANGE_MS, type Heartbeat, WorkerRegistry } from '../../orchestrator/workers.ts';
import type { GrpcShardTransport } from '../../platform/shard-transport.ts';
import { VolumeKeys } from '../../worker/keys.ts';
import { Scrubber, type ScrubReport } from '../../worker/scrub.ts';
import { shardHandlers } from '../../worker/service.ts';
import { DiskShardStore } from '../../worker/store-disk.ts';
import { seededRandom } from '../support/clock.ts';
import { ROOT, SimDisk } from './disk.ts';
import { remoteStore, type StoreCall, type StoreFaults } from './metadata.ts';
import type { Connection, Network } from './network.ts';
import { PlainPool } from './pool.ts';
import { SimTransport } from './transport.ts';
import { SimNode, type World } from './world.ts';

const MiB = 1024 * 1024;
export const LOST_AFTER_MS = 60_000;
/** So short that things are purged while everything fails. */
export const TRASH_MS = 60_000;
const HEARTBEAT_MS = 2_000;
const SCRUB_ORDERS_MS = 2_000;
const SCRUB_PERIOD_MS = 30 * 60_000;
const SCRUB_BYTES_PER_SECOND = 20 * MiB;
const AUDITS_PER_HOUR = 60;
const RECONCILE_AGE_MS = 3_000;
const RECONCILE_PERIOD_MS = 60_000;
const SNAPSHOT_PERIOD_MS = 120_000;
const ANSWER_TIMEOUT_MS = 10_000;
/** RFC 8410, up to the key itself. */
const PKCS8_PREFIX = Buffer.from('302e020100300506032b657004220420', 'hex');

const NO_API_KEYS = { apiKeys: async () => [] } as unknown as ApiKeyStore;

/** What all processes of one cluster share. */
export class Site {
	readonly world: World;
	readonly network: Network;
	readonly data = new MemoryMetadata();
	/** Direct, for whoever checks. */
	readonly store: MemoryMetadataStore;
	readonly clusterId: ClusterId;
	/** As every orchestrator reads it from its file. */
	master: MasterKeyring = parseMasterKeys('ab'.repeat(32));
	readonly orchestrators: SimOrchestrator[] = [];
	readonly workers: SimWorker[] = [];
	readonly seed: string;
	/** Read by each orchestrator at its start. */
	policy: RedundancyPolicy = DEFAULT_POLICY;
	onStoreCall: (call: StoreCall) => void = () => {};
	onFailedStep: (job: string, error: DistroError) => void = () => {};

	constructor(world: World, network: Network, seed: string) {
		this.world = world;
		this.network = network;
		this.seed = seed;
		this.store = new MemoryMetadataStore(this.data, { nowMs: () => world.nowMs });
		this.clusterId = newId<ClusterId>(seededRandom(`${seed} cluster`));
	}

	node(host: string, run: number): SimNode {
		const dice = this.world.dice.fork(`machine ${host} ${run}`);
		return new SimNode(this.world, `${host} (${run})`, {
			skewMs: dice.between(-10_000, 10_000),
			rate: dice.between(0.998, 1.002),
		});
	}
}

/** What runs in one orchestrator process. */
export interface Running {
	readonly node: SimNode;
	readonly objects: ObjectService;
	readonly registry: WorkerRegistry;
	readonly cluster: Cluster;
	readonly findings: Findings;
	readonly keyring: Keyring;
	readonly clusterKeys: ClusterKeys;
	/** As this process reaches it. */
	readonly store: MetadataStore;
	readonly pools: readonly PlainPool[];
	readonly transport: SimTransport;
	readonly jobs: JobControl;
	readonly scrub: ScrubDesk;
}

export class SimOrchestrator {
	readonly host: string;
	readonly faults: StoreFaults = { loss: 0, slowMs: 0 };
	node: SimNode | null = null;
	/** Null until it has begun. */
	running: Running | null = null;
	/** What to tell clients whose connections break. */
	readonly onDeath = new Set<() => void>();
	readonly #site: Site;
	#runs = 0;

	constructor(site: Site, host: string) {
		this.#site = site;
		this.host = host;
	}

	/** It would answer now. */
	get isUp(): boolean {
		return this.running !== null && this.node?.state === 'running';
	}

	start(): void {
		if (this.node !== null) return;
		const node = this.#site.node(this.host, ++this.#runs);
		this.node = node;
		const tryToBegin = () => {
			this.#begin(node).catch(() => node.clock.schedule(1_000, tryToBegin));
		};
		tryToBegin();
	}

	async #begin(node: SimNode): Promise<void> {
		const { world, network, clusterId, master, store: inner, seed } = this.#site;
		const random: Random = seededRandom(`${seed} ${node.name}`);
		const store: MetadataStore = remoteStore({
			world,
			node,
			inner,
			dice: world.dice.fork(`store ${node.name}`),
			faults: this.faults,
			onDone: (call) => this.#site.onStoreCall(call),
		});
		// As orchestrators that share their metadata: its time of day.
		const clock = await openStoreClock(store, node.clock);
		const keyring = await Keyring.open({ store, master, clusterId, clock, random });
		const registry = new WorkerRegistry({ store, clock, shared: true, lostAfterMs: LOST_AFTER_MS });
		await registry.read();
		const simulated = new SimTransport(network, {
			host: this.host,
			node,
			dice: world.dice.fork(`transport ${node.name}`),
		});
		const transport = simulated as unknown as GrpcShardTransport;
		const mendPool = new PlainPool(8 * MiB, clock);
		const pool = new PlainPool(24 * MiB, clock);
		const jobControl = new JobControl({ store, clock });
		const findings = new Findings({ store, clock, onReport: () => {} });
		const scrub = new ScrubDesk({ findings });
		const { policy } = this.#site;
		const delivery = new KeyDelivery({
			store,
			workers: registry,
			transport,
			clock,
			record: () => keyring.record,
			refresh: () => keyring.refresh(),
			onFailed: () => {},
		});
		const deps = { clusterId, store, workers: registry, transport, keyring, clock, random, policy, pool, findings };
		const lookAgain = new LookAgain({ store, clock });
		const objects = new ObjectService({
			...deps,
			inlineMaxBytes: 4096,
			trashMs: TRASH_MS,
			onMayNotSuit: () => lookAgain.tell(),
		});
		const cluster = new Cluster({
			clusterId,
			store,
			workers: registry,
			jobs: jobControl,
			scrub,
			policy,
			pools: [pool, mendPool],
			snapshots: async () => [],
		});
		const mendDeps = {
			...deps,
			pool: mendPool,
			lanes: 4,
			share: 0.25,
			isBusy: () => pool.usedBytes > 0,
			onOutcome: () => {},
		};
		const watch = new Watch({ store, workers: registry, clock });
		const holder = `${this.host} ${random.bytes(8).toString('hex')}`;
		const jobs = [
			expireIntentsJob({ store, clock }),
			trashJob({ store, clock, onPurged: () => {}, onHead: () => {} }),
			deletionsJob({ store, workers: registry, transport, onDeleted: () => {} }),
			repairJob(mendDeps),
			drainJob(mendDeps),
			rebalanceJob(mendDeps),
			reencodeJob({ ...mendDeps, settleMs: LOST_AFTER_MS, onOutcome: () => {} }),
			renewTrailersJob({ ...mendDeps, newest: () => keyring.newest }),
			rewrapJob({ store, keyring, clock, onFailed: () => {} }),
			watch.job,
			snapshotJob({
				...deps,
				inlineMaxBytes: 0,
				trashMs: TRASH_MS,
				pool: mendPool,
				apiKeys: NO_API_KEYS,
				periodMs: SNAPSHOT_PERIOD_MS,
				onWritten: () => {},
			}),
			reconcileJob({
				store,
				workers: registry,
				transport,
				findings,
				clock,
				// What is older may be named by an open intent all the same: uploads and repairs take as long.
				ageMs: RECONCILE_AGE_MS,
				periodMs: RECONCILE_PERIOD_MS,
				limit: 1,
				onQueued: () => {},
				onStopped: () => {},
				onSetAside: () => {},
			}),
			auditJob({
				workers: registry,
				transport,
				store,
				findings,
				drawShard: shardDrawer({ store, clock, random }),
				clock,
				random,
				perHour: AUDITS_PER_HOUR,
				onOutcome: (workerId, outcome) => watch.audited(workerId, outcome),
			}),
		];
		const ownJobs: Job[] = [
			{ name: 'workers', step: () => registry.exchange().then(() => EXCHANGE_MS) },
			keysJob({ keyring, masterNow: () => this.#site.master }),
			{ name: 'clock', step: () => clock.sync().then(() => SYNC_EVERY_MS) },
			{
				name: 'scrub orders',
				step: async () => {
					const { paused, runs, updatedAtMs } = await jobControl.asked('scrub');
					scrub.orders = { paused, pass: runs, revision: updatedAtMs };
					return SCRUB_ORDERS_MS;
				},
			},
		];
		runJobs([...ownJobs, ...jobs.map((job) => exclusive(jobControl.steer(job), { store, clock, holder }))], {
			clock,
			onFailed: (job, error) => this.#site.onFailedStep(job, error),
		});
		network.hosts.set(this.host, {
			node,
			accept: (connection) => serveHeartbeat(connection, { registry, scrub, delivery }),
		});
		this.running = {
			node,
			objects,
			registry,
			cluster,
			findings,
			keyring,
			clusterKeys: new ClusterKeys({ store, keyring, workers: registry }),
			store,
			pools: [pool, mendPool],
			transport: simulated,
			jobs: jobControl,
			scrub,
		};
	}

	/** SIGKILL, or the power. */
	kill(how: { isSilent: boolean }): void {
		if (this.node === null) return;
		this.node.kill();
		this.#site.network.dropAll(this.node, how);
		this.node = null;
		this.running = null;
		for (const tell of [...this.onDeath]) tell();
		this.onDeath.clear();
	}
}

interface Registration {
	readonly workerId: WorkerId;
	readonly name: string;
	readonly address: string;
	readonly zone: string;
	readonly receiptKey: Buffer;
}

type Beat = Parameters<Heartbeat['beat']>[0];
type Answering = ReturnType<ScrubDesk['stream']>;

/** An orchestrator's side of a worker's stream: what orchestrator/service.ts does. */
interface HeartbeatServer {
	register(worker: Registration): Promise<void>;
	open(workerId: WorkerId): void;
	beat(stats: Beat, scrubbed: ScrubReport, keysDigest: Buffer): ReturnType<Answering>;
}

const heartbeatServers = new WeakMap<Connection, HeartbeatServer>();

function serveHeartbeat(
	connection: Connection,
	o: { registry: WorkerRegistry; scrub: ScrubDesk; delivery: KeyDelivery },
): void {
	const { registry, scrub, delivery } = o;
	let answering: Answering | null = null;
	let stream: Heartbeat | null = null;
	let workerId: WorkerId | null = null;
	connection.server.onBreak = () => stream?.closed();
	heartbeatServers.set(connection, {
		register: async (worker) => {
			await registry.register(worker);
			workerId = worker.workerId;
			delivery.joined(workerId);
		},
		open: (workerId) => {
			// A call that broke off before it began opens nothing.
			if (connection.server.isClosed) return;
			stream = registry.heartbeat(workerId);
			answering = scrub.stream(workerId);
		},
		beat: (stats, { findings, ...report }, digest) => {
			stream?.beat(stats);
			if (stream !== null && workerId !== null && stats.online) delivery.heard(workerId, digest);
			return answering?.(report, findings) ?? { acknowledged: [], paused: false, pass: 0, revision: 0 };
		},
	});
}

export class SimWorker {
	readonly host: string;
	readonly name: string;
	readonly zone: string;
	readonly workerId: WorkerId;
	readonly disk: SimDisk;
	node: SimNode | null = null;
	pool: PlainPool | null = null;
	/** Machine and disk are no more. */
	isGone = false;
	readonly #site: Site;
	readonly #receiptKey: KeyObject;
	#runs = 0;

	constructor(site: Site, o: { host: string; name: string; zone: string }) {
		this.#site = site;
		this.host = o.host;
		this.name = o.name;
		this.zone = o.zone;
		const random = seededRandom(`${site.seed} ${o.host}`);
		this.workerId = newId<WorkerId>(random);
		const der = Buffer.concat([PKCS8_PREFIX, random.bytes(32)]);
		this.#receiptKey = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' });
		this.disk = new SimDisk(site.world, o.host);
	}

	start(): void {
		if (this.node !== null || this.isGone) return;
		const node = this.#site.node(this.host, ++this.#runs);
		this.node = node;
		const tryToBegin = () => {
			this.#begin(node).catch(() => node.clock.schedule(1_000, tryToBegin));
		};
		tryToBegin();
	}

	async #begin(node: SimNode): Promise<void> {
		const { network } = this.#site;
		const { clock } = node;
		const store = new DiskShardStore({
			dataDir: ROOT,
			workerId: this.workerId,
			clock,
			reserveBytes: MiB,
			directFromBytes: 256 * 1024,
			trashKeepMs: 60 * 60_000,
			files: this.disk.filesFor(node),
		});
		await store.load();
		const pool = new PlainPool(16 * MiB, clock);
		this.pool = pool;
		const keys = new VolumeKeys({ store, clusterId: this.#site.clusterId });
		const handlers = shardHandlers({
			workerId: this.workerId,
			store,
			keys,
			pool,
			clock,
			receiptKey: this.#receiptKey,
			authorize: () => {},
			onBytes: () => {},
		});
		network.hosts.set(this.host, { node, shards: { workerId: this.workerId, handlers } });
		const scrubber = new Scrubber({
			store,
			pool,
			clock,
			random: seededRandom(`${this.#site.seed} scrub ${node.name}`),
			buffer: Buffer.alloc(LARGE_CELL_BYTES),
			periodMs: SCRUB_PERIOD_MS,
			ceiling: SCRUB_BYTES_PER_SECOND,
			log: { info: () => {}, warn: () => {} },
		});
		for (const { host } of this.#site.orchestrators) this.#heartbeats(node, host, { store, keys, scrubber });
		scrubber.start();
	}

	/** As worker/heartbeat.ts does it over gRPC. */
	#heartbeats(
		node: SimNode,
		orchestrator: string,
		o: { store: DiskShardStore; keys: VolumeKeys; scrubber: Scrubber },
	): void {
		const { store, keys, scrubber } = o;
		const { network, world } = this.#site;
		const { clock } = node;
		const dice = world.dice.fork(`heartbeat ${node.name} ${orchestrator}`);
		const connect = () => {
			const connection = network.connect({ host: this.host, node }, orchestrator);
			let isOver = false;
			let cancelBeat = () => {};
			let cancelAnswer = () => {};
			const end = () => {
				if (isOver) return;
				isOver = true;
				cancelBeat();
				cancelAnswer();
				connection.close('client');
				clock.schedule(100 + dice.between(0, 3_000), connect);
			};
			const awaitAnswer = () => {
				cancelAnswer();
				cancelAnswer = clock.schedule(ANSWER_TIMEOUT_MS, end);
			};
			const beat = async () => {
				const stats = await store.stats().then(
					(figures) => ({ ...figures, online: true }),
					() => ({ bytesTotal: 0, bytesUsed: 0, bytesFree: 0, shards: 0, online: false }),
				);
				const digest = stats.online ? await keys.digest() : Buffer.alloc(0);
				if (isOver) return;
				const report = scrubber.report();
				// A volume that is gone proves nothing, not even what was found before.
				const told = stats.online ? report : { ...report, findings: [] };
				connection.toServer(() => {
					const answer = heartbeatServers.get(connection)?.beat(stats, told, digest);
					connection.toClient(() => {
						awaitAnswer();
						if (answer !== undefined) scrubber.heard(answer);
					});
				});
				cancelBeat = clock.schedule(HEARTBEAT_MS, beat);
			};
			connection.client.onBreak = end;
			awaitAnswer();
			const registration: Registration = {
				workerId: this.workerId,
				name: this.name,
				address: `${this.host}:1`,
				zone: this.zone,
				receiptKey: rawPublicKey(this.#receiptKey),
			};
			connection.toServer(() => {
				network.hosts.get(orchestrator)?.accept?.(connection);
				const server = heartbeatServers.get(connection);
				const refuse = () => connection.toClient(end);
				if (server === undefined) refuse();
				else
					server.register(registration).then(() => {
						try {
							server.open(this.workerId);
							connection.toClient(() => void beat());
						} catch {
							refuse();
						}
					}, refuse);
			});
		};
		connect();
	}

	/** SIGKILL keeps the page cache; without power it is lost. */
	kill(how: { power: boolean }): void {
		if (this.node === null) return;
		this.node.kill();
		this.#site.network.dropAll(this.node, { isSilent: how.power });
		this.node = null;
		this.pool = null;
		if (how.power) this.disk.cutPower();
	}
}

export function kindOf(error: unknown): string {
	return asDistroError(error).kind;
}
