/**
 * Objects as the HTTP layer sees them: begin an upload, open, list, remove, explain. Thin on purpose: uploads and
 * downloads have files of their own, and what is durable is the store's.
 */

import { openManifest } from '../core/crypto/seal.ts';
import { asDistroError, DistroError } from '../core/errors.ts';
import { newId, type ObjectId, type ShardId, type UploadId } from '../core/ids.ts';
import {
	BUDGET_WAIT_MS,
	INTENT_TTL_MS,
	LARGE_CELL_BYTES,
	SMALL_CELL_BYTES,
	SMALL_OBJECT_BYTES,
	TAG_BYTES,
	UPLOAD_ROW_SLOTS,
} from '../core/limits.ts';
import { type SegmentHealth, segmentHealth, worstHealth } from '../core/model/health.ts';
import type { Manifest } from '../core/model/manifest.ts';
import { largestCode } from '../core/model/redundancy.ts';
import type { Placement, Segment } from '../core/model/segment.ts';
import { Suits } from '../core/model/suits.ts';
import type { MemoryPool } from '../core/ports.ts';
import { type ReadDeps, readObject, SEGMENT_PAGE } from './download.ts';
import type {
	Download,
	ObjectExplanation,
	ObjectInfo,
	Objects,
	TrashedInfo,
	Upload,
	UploadOptions,
} from './objects.types.ts';
import type { Finding, FindingKind, ObjectRow } from './store.ts';
import { type UploadDeps, type UploadMemory, UploadSession } from './upload.ts';

/** Segments read at once for the health of a whole object: a page is some 100 KiB. */
const HEALTH_PAGE = 256;

type ShardState = FindingKind | 'ok' | 'unreachable';

export interface ObjectsDeps extends UploadDeps, ReadDeps {
	readonly pool: MemoryPool;
	/** How long what is deleted can be had back. */
	readonly trashMs: number;
}

export class ObjectService implements Objects {
	readonly #deps: ObjectsDeps;
	readonly #uploads = new Set<UploadSession>();

	constructor(deps: ObjectsDeps) {
		this.#deps = deps;
	}

	async beginUpload(options: UploadOptions, signal: AbortSignal): Promise<{ upload: Upload } | { done: ObjectInfo }> {
		const { store, clock, random } = this.#deps;
		const uploadId = newId<UploadId>(random);
		if (options.idempotency !== null) {
			const nowMs = clock.nowMs();
			// As long as an intent: whoever dies, or loses the store's answer, must not hold the key for a day.
			const claim = await store.claimIdempotency(
				{ ...options.idempotency, uploadId, expiresAtMs: nowMs + INTENT_TTL_MS },
				nowMs,
			);
			if (claim.state === 'done') return { done: await this.info(claim.objectId) };
			if (claim.state === 'running') {
				throw new DistroError('conflict', 'a request with this Idempotency-Key is still running: wait for its answer');
			}
			if (claim.state === 'mismatch') {
				throw new DistroError('invalid', 'this Idempotency-Key was used for another request: choose a new one', {
					reason: 'idempotency_mismatch',
				});
			}
		}
		try {
			const memory = await this.#reserve(options.sizeHintBytes, signal);
			if (signal.aborted) {
				memory?.lease.release();
				throw new DistroError('canceled', 'the client has left');
			}
			const upload = new UploadSession(this.#deps, options, { memory, uploadId });
			this.#uploads.add(upload);
			const forget = () => this.#uploads.delete(upload);
			upload.result.then(forget, forget);
			return { upload };
		} catch (error) {
			// Frees the idempotency key: this request may come again.
			if (options.idempotency !== null) await store.abort(uploadId, clock.nowMs());
			throw asDistroError(error);
		}
	}

	/** The whole working set of an upload of at most `sizeHintBytes`; null for what will be inline. */
	async #reserve(sizeHintBytes: number | null, signal: AbortSignal): Promise<UploadMemory | null> {
		const { workers, policy, pool, inlineMaxBytes } = this.#deps;
		if (sizeHintBytes !== null && sizeHintBytes <= inlineMaxBytes && inlineMaxBytes > 0) return null;
		const small = sizeHintBytes !== null && sizeHintBytes <= SMALL_OBJECT_BYTES;
		const cellBytes = small ? SMALL_CELL_BYTES : LARGE_CELL_BYTES;
		const cells =
			sizeHintBytes === null
				? Number.POSITIVE_INFINITY
				: Math.max(1, Math.ceil(sizeHintBytes / (cellBytes - TAG_BYTES)));
		// Throws `unavailable` or `exhausted` before a byte is read, when nothing safe is possible now.
		const { k, m } = largestCode(sizeHintBytes, workers.policyWorkers(), policy);
		const dataCells = Math.min(cells, k);
		const parityCells = dataCells === 1 ? 0 : m;
		const slots = Math.min(UPLOAD_ROW_SLOTS, Math.ceil(cells / dataCells));
		const sizes = new Array(slots).fill((dataCells + parityCells) * cellBytes);
		const lease = pool.tryAcquire(sizes) ?? (await pool.acquire(sizes, { timeoutMs: BUDGET_WAIT_MS, signal }));
		return { lease, cellBytes, dataCells, parityCells };
	}

	/** Uploads under way, for a graceful stop. */
	get uploading(): number {
		return this.#uploads.size;
	}

	abortUploads(reason: string): void {
		for (const upload of this.#uploads) upload.abort(reason);
	}

	async info(objectId: ObjectId): Promise<ObjectInfo> {
		return await this.#infoOf(await this.#row(objectId));
	}

	async #row(objectId: ObjectId): Promise<ObjectRow> {
		const row = await this.#deps.store.object(objectId);
		// What is the cluster's own is nobody's to read or to delete.
		if (row === null || row.kind !== 'user') throw await this.#notFound(objectId);
		return row;
	}

	/** Who looks for something in the trash learns that it is there. */
	async #notFound(objectId: ObjectId): Promise<DistroError> {
		const trashed = await this.#deps.store.trashed(objectId);
		if (trashed === null) return notFound(objectId);
		const freedAt = new Date(trashed.purgeAtMs).toISOString();
		return new DistroError(
			'not_found',
			`object ${objectId} was deleted and is in the trash until ${freedAt}: POST /objects/${objectId}/undelete brings it back`,
		);
	}

	async #infoOf(row: ObjectRow): Promise<ObjectInfo> {
		const manifest: Manifest = openManifest(await this.#deps.keyring.dataKey(row.versionId, row), row.manifest);
		return infoFrom(row, manifest);
	}

	async open(objectId: ObjectId): Promise<Download> {
		const deps = this.#deps;
		const found = await deps.store.objectWithSegments(objectId, { fromSegment: 0, limit: SEGMENT_PAGE });
		if (found === null || found.object.kind !== 'user') throw await this.#notFound(objectId);
		const { object, segments } = found;
		const dataKey = await deps.keyring.dataKey(object.versionId, object);
		const manifest = openManifest(dataKey, object.manifest);
		if (manifest.sizeBytes !== object.sizeBytes || manifest.segments !== object.segments) {
			throw new DistroError('corrupt', 'the metadata of this object is not what was sealed with it');
		}
		return {
			info: infoFrom(object, manifest),
			read: (options) => readObject(deps, { object, dataKey, segments }, options),
		};
	}

	async remove(objectId: ObjectId, by: string): Promise<{ freedAtMs: number }> {
		const { store, clock, trashMs } = this.#deps;
		const nowMs = clock.nowMs();
		const freedAtMs = nowMs + trashMs;
		await this.#row(objectId);
		const isRemoved = await store.deleteObject(objectId, { nowMs, purgeAtMs: freedAtMs, by });
		if (!isRemoved) throw await this.#notFound(objectId);
		return { freedAtMs };
	}

	async undelete(objectId: ObjectId, by: string): Promise<ObjectInfo> {
		const { store, clock } = this.#deps;
		await store.undeleteObject(objectId, { nowMs: clock.nowMs(), by });
		this.#deps.onMayNotSuit?.();
		return this.info(objectId);
	}

	async purge(objectId: ObjectId, by: string): Promise<void> {
		const { store, clock } = this.#deps;
		if (await store.purgeObject(objectId, { nowMs: clock.nowMs(), by })) return;
		throw new DistroError(
			'not_found',
			`object ${objectId} is not in the trash: delete it first, or it is gone already`,
		);
	}

	async trash(options: {
		limit: number;
		cursor: string | null;
	}): Promise<{ objects: TrashedInfo[]; next: string | null }> {
		const page = await this.#deps.store.trash({ limit: options.limit, after: options.cursor });
		const objects = page.objects.map(async ({ object, deletedAtMs, purgeAtMs }) => {
			return { ...(await this.#infoOf(object)), deletedAtMs, freedAtMs: purgeAtMs };
		});
		return { objects: await Promise.all(objects), next: page.next };
	}

	async list(options: {
		limit: number;
		cursor: string | null;
	}): Promise<{ objects: ObjectInfo[]; next: string | null }> {
		const page = await this.#deps.store.list({ limit: options.limit, after: options.cursor });
		return { objects: await Promise.all(page.objects.map((row) => this.#infoOf(row))), next: page.next };
	}

	async explain(objectId: ObjectId, options: { fromSegment: number; limit: number }): Promise<ObjectExplanation> {
		const { store, workers } = this.#deps;
		const object = await this.#row(objectId);
		const [segments, findings] = await Promise.all([
			store.segments(object.versionId, options),
			store.findings(object.versionId),
		]);
		await workers.find(segments.flatMap(({ placements }) => placements));
		const found = new Map(findings.map((finding) => [finding.shardId, finding]));
		const suits = new Suits(workers.policyWorkers(), this.#deps.policy);
		const explained = segments.map((segment) => this.#explainSegment(segment, { object, found, suits }));
		const last = segments.at(-1);
		const next = last !== undefined && last.index + 1 < object.segments ? last.index + 1 : null;
		return {
			object_id: objectId,
			size: object.sizeBytes,
			stored: object.inline === null ? 'sharded' : 'inline',
			health: await this.#health(object, { explained, found }),
			segments: explained,
			next_segment: next,
		};
	}

	/** The worst of all segments, whichever are shown: read page by page, since no row has the sum of an object. */
	async #health(
		object: ObjectRow,
		known: { explained: readonly { index: number; health: SegmentHealth }[]; found: ReadonlyMap<ShardId, Finding> },
	): Promise<SegmentHealth> {
		const { explained, found } = known;
		const from = explained[0]?.index ?? object.segments;
		let worst = worstHealth(explained.map(({ health }) => health));
		for (let at = 0; at < object.segments && worst !== 'unrecoverable'; ) {
			if (at === from) {
				at += explained.length;
				continue;
			}
			const limit = Math.min(HEALTH_PAGE, at < from ? from - at : object.segments - at);
			const page = await this.#deps.store.segments(object.versionId, { fromSegment: at, limit });
			if (page.length === 0) throw notFound(object.objectId);
			await this.#deps.workers.find(page.flatMap(({ placements }) => placements));
			worst = worstHealth([worst, ...page.map((segment) => this.#segmentHealth(segment, found))]);
			at += page.length;
		}
		return worst;
	}

	#segmentHealth(segment: Segment, found: ReadonlyMap<ShardId, Finding>): SegmentHealth {
		const { n, k, placements } = segment;
		const placed = placements.filter((placement) => this.#shardState(placement, found) === 'ok').length;
		return segmentHealth({ n, k, placed });
	}

	#shardState({ shardId, workerId }: Placement, found: ReadonlyMap<ShardId, Finding>): ShardState {
		const kind = found.get(shardId)?.kind;
		if (kind !== undefined) return kind;
		const state = this.#deps.workers.state(workerId);
		return state === 'lost' || state === 'unknown' || state === 'suspect' ? 'unreachable' : 'ok';
	}

	#explainSegment(segment: Segment, o: { object: ObjectRow; found: ReadonlyMap<ShardId, Finding>; suits: Suits }) {
		const { workers } = this.#deps;
		const { found } = o;
		const { was } = segment;
		const wanted = o.suits.wanted(segment, o.object.sizeBytes);
		const byIndex = new Map(segment.placements.map((placement) => [placement.shardIndex, placement]));
		const shards = Array.from({ length: segment.n }, (_, index) => {
			const placement = byIndex.get(index);
			if (placement === undefined) {
				const detail = 'was left out when the object was written; repair will add it';
				return { index, worker: null, worker_state: 'none', shard_id: null, state: 'missing' as const, detail };
			}
			const finding = found.get(placement.shardId);
			return {
				index,
				worker: workers.name(placement.workerId),
				worker_state: workers.state(placement.workerId),
				shard_id: placement.shardId,
				state: this.#shardState(placement, found),
				...(finding === undefined ? {} : { detail: finding.detail }),
			};
		});
		return {
			index: segment.index,
			n: segment.n,
			k: segment.k,
			because: segment.because,
			was: was === undefined ? null : { ...codeOf(was), until: new Date(was.untilMs).toISOString() },
			wanted: wanted === null ? null : { ...codeOf(wanted.choice), why: wanted.why },
			codec: segment.codec,
			cell_bytes: segment.cellBytes,
			cells: segment.cells,
			health: this.#segmentHealth(segment, found),
			shards,
		};
	}
}

function codeOf({ n, k, because }: { n: number; k: number; because: string }) {
	return { n, k, because };
}

function infoFrom(row: ObjectRow, manifest: Manifest): ObjectInfo {
	return {
		objectId: row.objectId,
		sizeBytes: row.sizeBytes,
		createdAtMs: row.createdAtMs,
		etag: row.etag,
		name: manifest.name,
		contentType: manifest.contentType,
		sha256: manifest.sha256,
	};
}

function notFound(objectId: ObjectId): DistroError {
	return new DistroError('not_found', `there is no object ${objectId}`);
}
