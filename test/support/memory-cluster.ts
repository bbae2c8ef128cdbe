/**
 * An object service without processes: metadata and workers in memory, so that transfers are tested whole and in
 * milliseconds. What an orchestrator leaves behind can be handed to another one, after it or beside it.
 */

import { parseMasterKeys } from '../../core/crypto/keys.ts';
import { type ClusterId, newId, type UploadId, type WorkerId } from '../../core/ids.ts';
import { UPLOAD_ROW_SLOTS } from '../../core/limits.ts';
import { DEFAULT_POLICY, largestCode } from '../../core/model/redundancy.ts';
import type { ByteSink, Clock, MemoryPool, ShardTransport } from '../../core/ports.ts';
import { Findings } from '../../orchestrator/findings.ts';
import { Keyring } from '../../orchestrator/keyring.ts';
import { ObjectService, type ObjectsDeps } from '../../orchestrator/objects.ts';
import type { ObjectInfo, Upload, UploadOptions } from '../../orchestrator/objects.types.ts';
import { MemoryMetadata, MemoryMetadataStore } from '../../orchestrator/store-memory.ts';
import { UploadSession } from '../../orchestrator/upload.ts';
import { type Heartbeat, WorkerRegistry } from '../../orchestrator/workers.ts';
import { ArenaPool } from '../../platform/memory-pool.ts';
import { realClock, seededRandom } from './clock.ts';
import { MemoryTransport } from './memory-transport.ts';

const MiB = 1024 * 1024;
const ROOMY = { bytesTotal: 1024 * MiB, bytesUsed: 0, bytesFree: 1024 * MiB, shards: 0, online: true };

/** Workers in memory sign nothing. */
class TrustingRegistry extends WorkerRegistry {
	override verifyReceipt(): boolean {
		return true;
	}
}

export const PLAIN_UPLOAD: UploadOptions = {
	sizeHintBytes: null,
	name: null,
	contentType: null,
	expectedSha256: null,
	wantSha256: false,
	idempotency: null,
};

export interface MemoryCluster {
	readonly objects: ObjectService;
	readonly deps: ObjectsDeps;
	readonly transport: MemoryTransport;
	readonly pool: MemoryPool;
	readonly store: MemoryMetadataStore;
	/** What is in it, of all orchestrators. */
	readonly metadata: MemoryMetadata;
	readonly workers: WorkerRegistry;
	readonly workerIds: readonly WorkerId[];
	/** Another orchestrator on the same metadata and the same workers: after this one, or beside it. */
	another(): Promise<MemoryCluster>;
	/** The time of day, for all of them, is so much later; nothing that is scheduled notices. */
	later(ms: number): void;
	/** All workers that are there say so: they do it before each upload, and must whenever seconds may have passed. */
	beat(): void;
	/** One more worker joins. */
	join(zone?: string): Promise<void>;
	/** Its heartbeat streams close. */
	leave(index: number): void;
	/** And it answers nothing. */
	die(index: number): void;
	/** Its heartbeat streams are open again, and it answers. */
	comeBack(index: number): void;
	upload(bytes: Buffer, options?: Partial<UploadOptions>): Promise<ObjectInfo>;
	/** The same, cut into cells of another size than people's objects have: edges are found with few bytes. */
	uploadInCells(bytes: Buffer, cellBytes: number): Promise<ObjectInfo>;
	download(info: ObjectInfo): Promise<Buffer>;
	/** The first segment's code, and its workers in order of shard index. */
	placed(info: ObjectInfo): Promise<{ n: number; k: number; workers: WorkerId[] }>;
}

interface Options {
	/** Stands between the service and the workers. */
	readonly wrap?: (transport: MemoryTransport) => ShardTransport;
	readonly poolBytes?: number;
	readonly lostAfterMs?: number;
}

/** An orchestrator as its workers see it. */
interface Hearer {
	learn(): Promise<void>;
	hear(index: number): void;
	beat(index: number): void;
	miss(index: number): void;
}

/** What all orchestrators of a cluster share, and what outlives each of them. */
interface Shared {
	readonly clusterId: ClusterId;
	readonly metadata: MemoryMetadata;
	readonly transport: MemoryTransport;
	readonly workerIds: WorkerId[];
	/** Indexes of those whose streams are open. */
	readonly up: Set<number>;
	readonly orchestrators: Hearer[];
	aheadMs: number;
}

export async function memoryCluster(options: Options & { workers: number }): Promise<MemoryCluster> {
	const shared: Shared = {
		clusterId: newId<ClusterId>(seededRandom('memory cluster id')),
		metadata: new MemoryMetadata(),
		transport: new MemoryTransport(),
		workerIds: [],
		up: new Set(),
		orchestrators: [],
		aheadMs: 0,
	};
	const cluster = await orchestrator(shared, options);
	for (let i = 0; i < options.workers; i++) await cluster.join();
	return cluster;
}

async function orchestrator(shared: Shared, options: Options): Promise<MemoryCluster> {
	const { clusterId, transport, workerIds, up } = shared;
	// Ids of two orchestrators must differ.
	const random = seededRandom(`memory cluster ${shared.orchestrators.length}`);
	const clock: Clock = { ...realClock, nowMs: () => realClock.nowMs() + shared.aheadMs };
	const store = new MemoryMetadataStore(shared.metadata, { nowMs: clock.nowMs });
	const keyring = await Keyring.open({ store, master: parseMasterKeys('ab'.repeat(32)), clusterId, clock, random });
	const workers = new TrustingRegistry({
		store,
		clock,
		...(options.lostAfterMs === undefined ? {} : { lostAfterMs: options.lostAfterMs }),
	});
	const pool = new ArenaPool(options.poolBytes ?? 64 * MiB, { clock });
	const findings = new Findings({ store, clock, onReport: () => {} });
	const deps: ObjectsDeps = {
		clusterId,
		store,
		workers,
		transport: options.wrap?.(transport) ?? transport,
		keyring,
		clock,
		random,
		policy: DEFAULT_POLICY,
		inlineMaxBytes: 0,
		trashMs: 0,
		pool,
		findings,
	};
	const objects = new ObjectService(deps);
	const streams: Heartbeat[] = [];
	const hear = (index: number) => {
		const stream = workers.heartbeat(workerIds[index] as WorkerId);
		stream.beat(ROOMY);
		streams[index] = stream;
	};
	await workers.read();
	for (const index of up) hear(index);
	shared.orchestrators.push({
		learn: () => workers.read(),
		hear,
		beat: (index) => streams[index]?.beat(ROOMY),
		miss: (index) => streams[index]?.closed(),
	});
	const setUp = (index: number, isUp: boolean) => {
		if (up.has(index) === isUp) return;
		if (isUp) up.add(index);
		else up.delete(index);
		for (const one of shared.orchestrators) (isUp ? one.hear : one.miss)(index);
	};
	const beat = () => {
		for (const index of up) for (const one of shared.orchestrators) one.beat(index);
	};
	return {
		objects,
		deps,
		transport,
		pool,
		store,
		metadata: shared.metadata,
		workers,
		workerIds,
		another: () => orchestrator(shared, options),
		later: (ms) => {
			shared.aheadMs += ms;
		},
		beat,
		join: async (zone = '') => {
			const workerId = newId<WorkerId>(random);
			const index = workerIds.push(workerId) - 1;
			const receiptKey = random.bytes(32);
			await workers.register({ workerId, name: `worker-${index + 1}`, address: 'memory:1', zone, receiptKey });
			for (const one of shared.orchestrators) await one.learn();
			setUp(index, true);
		},
		leave: (index) => setUp(index, false),
		die: (index) => {
			setUp(index, false);
			transport.faultsOf(workerIds[index] as WorkerId).dead = true;
		},
		comeBack: (index) => {
			transport.faultsOf(workerIds[index] as WorkerId).dead = false;
			setUp(index, true);
		},
		upload: async (bytes, changed = {}) => {
			beat();
			const begun = await objects.beginUpload({ ...PLAIN_UPLOAD, ...changed }, new AbortController().signal);
			if ('done' in begun) return begun.done;
			await pour(bytes, begun.upload);
			begun.upload.end();
			return begun.upload.result;
		},
		uploadInCells: async (bytes, cellBytes) => {
			beat();
			const { k, m } = largestCode(bytes.length, workers.policyWorkers(), deps.policy);
			const sizes = new Array(UPLOAD_ROW_SLOTS).fill((k + m) * cellBytes);
			const lease = await pool.acquire(sizes, { timeoutMs: 1_000 });
			const options = { ...PLAIN_UPLOAD, sizeHintBytes: bytes.length };
			const memory = { lease, cellBytes, dataCells: k, parityCells: m };
			const upload = new UploadSession(deps, options, { memory, uploadId: newId<UploadId>(random) });
			await pour(bytes, upload);
			upload.end();
			return upload.result;
		},
		download: (info) => downloadFrom(objects, info),
		placed: async (info) => {
			const found = await store.objectWithSegments(info.objectId, { fromSegment: 0, limit: 1 });
			const segment = found?.segments[0];
			if (segment === undefined) throw new Error('no segment');
			return { n: segment.n, k: segment.k, workers: segment.placements.map(({ workerId }) => workerId) };
		},
	};
}

export async function downloadFrom(objects: ObjectService, info: ObjectInfo): Promise<Buffer> {
	const parts: Buffer[] = [];
	const sink: ByteSink = {
		write: (chunk) => {
			parts.push(Buffer.from(chunk));
			return true;
		},
		drained: () => {},
	};
	const download = await objects.open(info.objectId);
	await download.read({ offset: 0, length: info.sizeBytes, sink, signal: new AbortController().signal });
	return Buffer.concat(parts);
}

/** In pieces, waiting where the upload says so. */
export async function pour(bytes: Buffer, upload: Upload): Promise<void> {
	for (let at = 0; at < bytes.length; at += 65_536) {
		const drained = new Promise<void>((resolve) => {
			upload.drained = resolve;
		});
		if (!upload.write(Buffer.from(bytes.subarray(at, at + 65_536)))) await drained;
	}
}
