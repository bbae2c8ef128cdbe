/** An object service without processes: metadata and workers in memory, so that transfers are tested whole and in milliseconds. */

import { parseMasterKeys } from '../../core/crypto/keys.ts';
import { type ClusterId, newId, type WorkerId } from '../../core/ids.ts';
import { DEFAULT_POLICY } from '../../core/model/redundancy.ts';
import type { ByteSink, MemoryPool, ShardTransport } from '../../core/ports.ts';
import { Findings } from '../../orchestrator/findings.ts';
import { Keyring } from '../../orchestrator/keyring.ts';
import { ObjectService, type ObjectsDeps } from '../../orchestrator/objects.ts';
import type { ObjectInfo, Upload, UploadOptions } from '../../orchestrator/objects.types.ts';
import { MemoryMetadataStore } from '../../orchestrator/store-memory.ts';
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
	readonly workers: WorkerRegistry;
	readonly workerIds: readonly WorkerId[];
	/** One more worker joins. */
	join(zone?: string): Promise<void>;
	/** Its heartbeat stream closes. */
	leave(index: number): void;
	/** And it answers nothing. */
	die(index: number): void;
	/** Its heartbeat stream is open again, and it answers. */
	comeBack(index: number): void;
	upload(bytes: Buffer, options?: Partial<UploadOptions>): Promise<ObjectInfo>;
	download(info: ObjectInfo): Promise<Buffer>;
	/** The first segment's code, and its workers in order of shard index. */
	placed(info: ObjectInfo): Promise<{ n: number; k: number; workers: WorkerId[] }>;
}

export async function memoryCluster(options: {
	workers: number;
	/** Stands between the service and the workers. */
	wrap?: (transport: MemoryTransport) => ShardTransport;
	poolBytes?: number;
	lostAfterMs?: number;
}): Promise<MemoryCluster> {
	const random = seededRandom('memory cluster');
	const clock = realClock;
	const clusterId = newId<ClusterId>(random);
	const store = new MemoryMetadataStore();
	const keyring = await Keyring.open({ store, master: parseMasterKeys('ab'.repeat(32)), clusterId, clock, random });
	const workers = new TrustingRegistry({
		store,
		clock,
		...(options.lostAfterMs === undefined ? {} : { lostAfterMs: options.lostAfterMs }),
	});
	const transport = new MemoryTransport();
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
		pool,
		findings,
	};
	const objects = new ObjectService(deps);
	const workerIds: WorkerId[] = [];
	const streams: Heartbeat[] = [];
	const join = async (zone = '') => {
		const workerId = newId<WorkerId>(random);
		workerIds.push(workerId);
		const name = `worker-${workerIds.length}`;
		await workers.register({ workerId, name, address: 'memory:1', zone, receiptKey: random.bytes(32) });
		const stream = workers.heartbeat(workerId);
		stream.beat(ROOMY);
		streams.push(stream);
	};
	for (let i = 0; i < options.workers; i++) await join();
	return {
		objects,
		deps,
		transport,
		pool,
		store,
		workers,
		workerIds,
		join,
		leave: (index) => streams[index]?.closed(),
		die: (index) => {
			streams[index]?.closed();
			transport.faultsOf(workerIds[index] as WorkerId).dead = true;
		},
		comeBack: (index) => {
			const workerId = workerIds[index] as WorkerId;
			transport.faultsOf(workerId).dead = false;
			streams[index] = workers.heartbeat(workerId);
			streams[index]?.beat(ROOMY);
		},
		upload: async (bytes, changed = {}) => {
			const begun = await objects.beginUpload({ ...PLAIN_UPLOAD, ...changed }, new AbortController().signal);
			if ('done' in begun) return begun.done;
			await pour(bytes, begun.upload);
			begun.upload.end();
			return begun.upload.result;
		},
		download: async (info) => {
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
		},
		placed: async (info) => {
			const found = await store.objectWithSegments(info.objectId, { fromSegment: 0, limit: 1 });
			const segment = found?.segments[0];
			if (segment === undefined) throw new Error('no segment');
			return { n: segment.n, k: segment.k, workers: segment.placements.map(({ workerId }) => workerId) };
		},
	};
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
