/**
 * Snapshots: the metadata written as an object of the cluster's own onto its workers, so that they survive the machine
 * that has them. Sealed, placed, repaired and audited like any object, with a copy on nearly every worker, up to seven. Restore finds them by their trailers (restore-snapshot.ts); nothing here reads them.
 *
 * Page by page: no more than a page of objects is in memory. Objects that are committed or deleted meanwhile may be in it or
 * not; what was committed before it began is.
 */

import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createDeflate } from 'node:zlib';
import { openManifest } from '../core/crypto/seal.ts';
import { asDistroError, DistroError } from '../core/errors.ts';
import { CODEC_MAX_M } from '../core/limits.ts';
import { encodeKeysRecord } from '../core/model/keys-record.ts';
import { SNAPSHOT_MAGIC, SnapshotEncoder } from '../core/model/snapshot.ts';
import type { ApiKeyStore } from './api-keys.ts';
import type { SnapshotView } from './cluster.types.ts';
import type { ExclusiveJob } from './leases.ts';
import { ObjectService, type ObjectsDeps } from './objects.ts';
import type { Upload, UploadOptions } from './objects.types.ts';
import type { Lease, MetadataStore, ObjectRow } from './store.ts';

const PAGE = 200;
/** Records go into the compression in pieces of about this size. */
const CHUNK_BYTES = 64 * 1024;
/** Uploads under way that a snapshot names. */
const UNDER_WAY_MAX = 100_000;
const HOUR_MS = 60 * 60_000;
const DAY_MS = 24 * HOUR_MS;
/** The newest are kept, and one of each of the last days. */
const KEPT_NEWEST = 24;
const KEPT_DAYS = 7;
/** Without a worker that takes shards it is looked again after this. */
const NOBODY_MS = 10_000;
/** And with nothing to do. */
const LOOK_MS = 60_000;
const SEGMENTS_PAGE = 256;

export interface SnapshotDeps extends ObjectsDeps {
	readonly apiKeys: ApiKeyStore;
	/** 0: only when it is asked for. */
	readonly periodMs: number;
	readonly onWritten: (snapshot: { objects: number; sizeBytes: number }) => void;
}

export function snapshotJob(deps: SnapshotDeps): ExclusiveJob {
	const { store, clock, periodMs } = deps;
	let last: { object_id: string; objects: number; size: number } | null = null;
	return {
		name: 'snapshot',
		state: () => (last === null ? {} : { last }),
		step: async (signal, lease, asked = false) => {
			const nowMs = clock.nowMs();
			const [newest] = (await store.list({ limit: 1, after: null, kind: 'snapshot' })).objects;
			const sinceMs = newest?.createdAtMs ?? (await store.cluster())?.createdAtMs ?? nowMs;
			if (!asked && periodMs === 0) return LOOK_MS;
			// A clock that was set back must not put them off.
			const waitMs = Math.min(periodMs, sinceMs + periodMs - nowMs);
			if (!asked && waitMs > 0) return Math.min(LOOK_MS, waitMs);
			const copies = copiesNow(deps);
			if (copies === 0) {
				if (asked) throw new DistroError('unavailable', 'no worker can take a snapshot now');
				return NOBODY_MS;
			}
			const written = await writeSnapshot(deps, { copies, signal });
			last = { object_id: written.objectId, objects: written.objects, size: written.sizeBytes };
			deps.onWritten(written);
			await dropOldSnapshots(store, { nowMs: clock.nowMs(), lease });
			return Math.max(1, Math.min(LOOK_MS, periodMs === 0 ? LOOK_MS : periodMs));
		},
	};
}

/**
 * As many as there are workers that take shards, up to what a code can have. Of four and more one is left out: a copy must have
 * somewhere to go when a worker is drained or lost.
 */
function copiesNow({ workers }: SnapshotDeps): number {
	const ready = workers.policyWorkers().filter(({ state }) => state === 'ready').length;
	return Math.min(1 + CODEC_MAX_M, ready > 3 ? ready - 1 : ready);
}

export async function writeSnapshot(
	deps: SnapshotDeps,
	o: { copies: number; signal: AbortSignal },
): Promise<{ objectId: string; objects: number; sizeBytes: number }> {
	const { upload, options } = await beginUpload(deps, o);
	const encoder = new SnapshotEncoder();
	try {
		await pipeline(Readable.from(chunks(deps, encoder)), createDeflate(), intoUpload(upload), { signal: o.signal });
	} catch (thrown) {
		upload.abort('the snapshot failed');
		// What the upload failed with says more.
		await upload.result.catch((error) => {
			if (asDistroError(error).kind !== 'canceled') throw error;
		});
		throw asDistroError(thrown);
	}
	// Known only now, as its size is: the manifest is sealed at the end.
	options.name = String(encoder.objects);
	upload.end();
	const { objectId, sizeBytes } = await upload.result;
	return { objectId, objects: encoder.objects, sizeBytes };
}

/** Fewer copies where not all workers have room. */
async function beginUpload(deps: SnapshotDeps, o: { copies: number; signal: AbortSignal }) {
	const { tolerate, dataLossPerYear } = deps.policy;
	for (let copies = o.copies; ; copies--) {
		const policy = { tolerate, dataLossPerYear, fixed: { dataShards: 1, parityShards: copies - 1 } };
		// In the metadata it would be lost with them.
		const service = new ObjectService({ ...deps, policy, inlineMaxBytes: 0 });
		const options: UploadOptions & { name: string | null } = {
			sizeHintBytes: null,
			name: null,
			contentType: null,
			expectedSha256: null,
			wantSha256: false,
			idempotency: null,
			kind: 'snapshot',
		};
		try {
			const begun = await service.beginUpload(options, o.signal);
			if ('upload' in begun) return { upload: begun.upload, options };
			throw new DistroError('internal', 'a snapshot without a key was there already');
		} catch (error) {
			const { kind } = asDistroError(error);
			if (copies <= 1 || (kind !== 'unavailable' && kind !== 'exhausted')) throw error;
		}
	}
}

function intoUpload(upload: Upload) {
	return async (compressed: AsyncIterable<Buffer>): Promise<void> => {
		const write = (chunk: Buffer) =>
			new Promise<void>((resolve) => {
				upload.drained = resolve;
				if (upload.write(chunk)) resolve();
			});
		let failed: unknown = null;
		upload.result.catch((error) => {
			failed = error;
		});
		await write(SNAPSHOT_MAGIC);
		for await (const chunk of compressed) {
			await write(chunk);
			if (failed !== null) throw failed;
		}
	};
}

async function* chunks(deps: SnapshotDeps, encoder: SnapshotEncoder): AsyncGenerator<Buffer> {
	let waiting: Buffer[] = [];
	let bytes = 0;
	for await (const record of records(deps, encoder)) {
		waiting.push(record);
		bytes += record.length;
		if (bytes < CHUNK_BYTES) continue;
		yield Buffer.concat(waiting);
		waiting = [];
		bytes = 0;
	}
	yield Buffer.concat(waiting);
}

async function* records(deps: SnapshotDeps, encoder: SnapshotEncoder): AsyncGenerator<Buffer> {
	const { store, clock, apiKeys } = deps;
	const beganAtMs = clock.nowMs();
	const cluster = await store.cluster();
	if (cluster === null) throw new DistroError('internal', 'a snapshot of no cluster');
	const { clusterId, createdAtMs } = cluster;
	yield encoder.add({ is: 'cluster', clusterId, createdAtMs, beganAtMs, keys: encodeKeysRecord(cluster) });
	for (const { bytesTotal: _total, bytesUsed: _used, shards: _shards, ...worker } of await store.workers()) {
		yield encoder.add({ is: 'worker', ...worker });
	}
	for (const key of await apiKeys.apiKeys()) yield encoder.add({ is: 'api key', ...key });
	// Before the objects: whichever of them is committed meanwhile was under way, or begins later.
	for (const { objectId } of await store.intents(UNDER_WAY_MAX)) yield encoder.add({ is: 'under way', objectId });
	for (let after: string | null = null; ; ) {
		const page = await store.wholeObjects({ after, limit: PAGE });
		for (const { object, trash, segments } of page.objects) {
			yield encoder.add({ is: 'object', object: { ...object, trash } });
			for (const segment of segments) yield encoder.add({ is: 'segment', segment });
		}
		if (page.next === null) break;
		after = page.next;
	}
	yield encoder.add({ is: 'deletion log', ...(await store.deletionHead()) });
	yield encoder.end();
}

/** For good: what is old of the metadata is of no use to anybody. */
async function dropOldSnapshots(store: MetadataStore, o: { nowMs: number; lease: Lease }): Promise<void> {
	const { nowMs } = o;
	for (const { objectId } of outlived(await allSnapshots(store), nowMs)) {
		await store.deleteObject(objectId, { nowMs, purgeAtMs: nowMs, by: '' });
	}
}

async function allSnapshots(store: MetadataStore): Promise<readonly ObjectRow[]> {
	const all: ObjectRow[] = [];
	for (let after: string | null = null; ; ) {
		const page = await store.list({ limit: PAGE, after, kind: 'snapshot' });
		all.push(...page.objects);
		if (page.next === null) return all;
		after = page.next;
	}
}

/** Of snapshots, newest first, those that are not kept. */
export function outlived<T extends { readonly createdAtMs: number }>(snapshots: readonly T[], nowMs: number): T[] {
	const days = new Set<number>();
	return snapshots.filter(({ createdAtMs }, at) => {
		const day = Math.floor(createdAtMs / DAY_MS);
		const isFirst = !days.has(day);
		days.add(day);
		const isKept = at < KEPT_NEWEST || (isFirst && nowMs - createdAtMs < KEPT_DAYS * DAY_MS);
		return !isKept;
	});
}

/** Newest first. */
export async function viewSnapshots(
	deps: Pick<SnapshotDeps, 'store' | 'workers' | 'keyring'>,
): Promise<readonly SnapshotView[]> {
	const { store, workers, keyring } = deps;
	const views: SnapshotView[] = [];
	for (const row of await allSnapshots(store)) {
		const { versionId, objectId, createdAtMs, sizeBytes } = row;
		const { name } = openManifest(await keyring.dataKey(versionId, row), row.manifest);
		const bad = new Set((await store.findings(versionId)).map(({ shardId }) => shardId));
		let [shards, healthy, copies] = [0, 0, Number.POSITIVE_INFINITY];
		for (let from = 0; from < row.segments; from += SEGMENTS_PAGE) {
			for (const segment of await store.segments(versionId, { fromSegment: from, limit: SEGMENTS_PAGE })) {
				const good = segment.placements.filter(
					({ shardId, workerId }) => !bad.has(shardId) && workers.isReachable(workerId),
				);
				shards += segment.n;
				healthy += good.length;
				copies = Math.min(copies, good.length);
			}
		}
		views.push({
			object_id: objectId,
			created_at: new Date(createdAtMs).toISOString(),
			objects: Number(name ?? 0),
			size: sizeBytes,
			shards,
			shards_healthy: healthy,
			copies: Number.isFinite(copies) ? copies : 0,
		});
	}
	return views;
}
