/**
 * MetadataStore in memory: the reference that store.contract.ts was written against, for tests and the simulation.
 *
 * Each method runs in one go, so that a call is whole or has no effect. It keeps nothing beyond its MemoryMetadata, and
 * is not made for many objects: lists sort all of them.
 */

import { sealedBytes } from '../core/codec/layout.ts';
import {
	type Deletion,
	type DeletionEntry,
	type DeletionHead,
	headAfter,
	NO_DELETIONS,
	nextDeletion,
} from '../core/crypto/deletion-log.ts';
import { isId, type ObjectId, type ShardId, type UploadId, type VersionId, type WorkerId } from '../core/ids.ts';
import type { WorkerDuty } from '../core/model/health.ts';
import type { WrappedClusterKey } from '../core/model/keys-record.ts';
import type { ObjectKind } from '../core/model/manifest.ts';
import type { SetCount, SpreadCount } from '../core/model/redundancy-report.ts';
import type { Segment } from '../core/model/segment.ts';
import type {
	ClusterRow,
	Commit,
	DeletedBy,
	Finding,
	Idempotency,
	IdempotencyClaim,
	IntendedShard,
	IntentRow,
	JobRow,
	KeyUse,
	KnownShard,
	Lease,
	MetadataStore,
	ObjectPage,
	ObjectRow,
	OldTrailers,
	QueuedDeletion,
	RedundancyRows,
	Reencoded,
	RepairDone,
	RepairItem,
	RewrappedObject,
	StoreCounts,
	StoredSegment,
	TrashedObject,
	TrashPage,
	WholePage,
	WorkerFigures,
	WorkerRow,
	WorkerSighting,
	WrappedDataKeyRow,
} from './store.ts';
import {
	alreadyCommitted,
	checkCommit,
	checkReencoded,
	cursorOf,
	generationDropped,
	generationNeeded,
	keysChanged,
	keyTaken,
	leaseLost,
	missingIndexes,
	nameTaken,
	neverNamed,
	notAPlace,
	notOpen,
	objectTaken,
	otherReceiptKey,
	parseCursor,
	segmentGone,
	stillPlaced,
	storeClosed,
	trashCursorOf,
	UNUSED_MARGIN_MS,
	workerForgotten,
	workerTaken,
} from './store-rules.ts';

interface StoredObject {
	readonly row: ObjectRow;
	readonly segments: Segment[];
	/** null: it is not in the trash. */
	trash: { readonly deletedAtMs: number; readonly purgeAtMs: number } | null;
}

interface Intent {
	row: IntentRow;
	readonly beganAtMs: number;
	readonly shards: Map<ShardId, WorkerId>;
}

interface Placed {
	readonly objectId: ObjectId;
	readonly segment: number;
	readonly shardIndex: number;
	readonly workerId: WorkerId;
	/** Of its trailer. */
	readonly keyGeneration: number;
}

/** What survives a store: hand it to another one to open the same data again. */
export class MemoryMetadata {
	cluster: ClusterRow | null = null;
	/** Those in the trash as well. */
	readonly objects = new Map<ObjectId, StoredObject>();
	readonly uploads = new Map<UploadId, ObjectId>();
	readonly versions = new Map<VersionId, ObjectId>();
	readonly placed = new Map<ShardId, Placed>();
	readonly intents = new Map<UploadId, Intent>();
	readonly idempotency = new Map<string, Idempotency & { readonly objectId: ObjectId | null }>();
	/** Oldest first. */
	readonly deletions = new Map<ShardId, QueuedDeletion & IntendedShard & { readonly queuedAtMs: number }>();
	readonly deletionLog: DeletionEntry[] = [];
	readonly findings = new Map<ShardId, Finding>();
	/** Oldest first. */
	readonly repairs = new Map<string, RepairItem>();
	readonly workers = new Map<WorkerId, WorkerRow>();
	readonly forgotten = new Map<WorkerId, number>();
	/** The revision of the keys that a worker's volume was last seen to have. */
	readonly keysOnVolumes = new Map<WorkerId, number>();
	/** By generation of the cluster key. */
	readonly unusedSince = new Map<number, number>();
	readonly jobs = new Map<string, JobRow>();
	readonly leases = new Map<string, { readonly holder: string; readonly fencing: number; readonly endsAtMs: number }>();
}

export class MemoryMetadataStore implements MetadataStore {
	readonly #data: MemoryMetadata;
	/** The store's own clock: leases go by it. */
	readonly #nowMs: () => number;
	#closed = false;

	constructor(data = new MemoryMetadata(), options: { nowMs?: () => number } = {}) {
		this.#data = data;
		this.#nowMs = options.nowMs ?? Date.now;
	}

	get #open(): MemoryMetadata {
		if (this.#closed) throw storeClosed();
		return this.#data;
	}

	async initCluster(initial: ClusterRow): Promise<ClusterRow> {
		const data = this.#open;
		const keys = initial.keys.toSorted((a, b) => a.generation - b.generation);
		data.cluster ??= { ...initial, keys: keys.map(copyKey) };
		return data.cluster;
	}

	async cluster(): Promise<ClusterRow | null> {
		return this.#open.cluster;
	}

	#clusterAt(revision: number): ClusterRow {
		const { cluster } = this.#open;
		if (cluster?.revision !== revision) throw keysChanged();
		return cluster;
	}

	async changeClusterKeys(keys: readonly WrappedClusterKey[], revision: number): Promise<ClusterRow> {
		const cluster = this.#clusterAt(revision);
		const all = new Map(cluster.keys.map((key) => [key.generation, key]));
		for (const key of keys) {
			const createdAtMs = all.get(key.generation)?.createdAtMs ?? key.createdAtMs;
			all.set(key.generation, copyKey({ ...key, createdAtMs }));
		}
		const sorted = [...all.values()].sort((a, b) => a.generation - b.generation);
		this.#data.cluster = { ...cluster, revision: revision + 1, keys: sorted };
		return this.#data.cluster;
	}

	async dropClusterKey(generation: number, revision: number): Promise<ClusterRow> {
		const data = this.#open;
		const cluster = this.#clusterAt(revision);
		const use = this.#keyUse(1).find((one) => one.generation === generation);
		if (use === undefined) throw keysChanged();
		const isNewest = generation === cluster.keys.at(-1)?.generation;
		const haveReported = [...data.workers.keys()].every((workerId) => data.keysOnVolumes.get(workerId) === revision);
		if (isNewest || use.objects > 0 || use.shards > 0 || use.leftovers || !haveReported) {
			throw generationNeeded(generation);
		}
		const keys = cluster.keys.filter((key) => key.generation !== generation);
		data.unusedSince.delete(generation);
		data.cluster = { ...cluster, revision: revision + 1, keys };
		return data.cluster;
	}

	async keyUse(limit: number): Promise<readonly KeyUse[]> {
		return this.#keyUse(limit);
	}

	#keyUse(limit: number): KeyUse[] {
		const { cluster, objects, placed, unusedSince, intents, deletions } = this.#open;
		return (cluster?.keys ?? []).map(({ generation }) => {
			const sinceMs = unusedSince.get(generation);
			const isBefore = (atMs: number) => sinceMs !== undefined && atMs < sinceMs + UNUSED_MARGIN_MS;
			const ofObjects = [...objects.values()].filter(({ row }) => row.keyGeneration === generation);
			const ofShards = [...placed.values()].filter(({ keyGeneration }) => keyGeneration === generation);
			return {
				generation,
				objects: Math.min(limit, ofObjects.length),
				shards: Math.min(limit, ofShards.length),
				leftovers:
					sinceMs === undefined ||
					[...intents.values()].some(({ beganAtMs }) => isBefore(beganAtMs)) ||
					[...deletions.values()].some(({ queuedAtMs }) => isBefore(queuedAtMs)),
			};
		});
	}

	async noteUnusedKeys(): Promise<void> {
		const { cluster, unusedSince } = this.#open;
		const newest = cluster?.keys.at(-1)?.generation;
		for (const { generation, objects, shards } of this.#keyUse(1)) {
			if (generation === newest || objects > 0 || shards > 0) unusedSince.delete(generation);
			else if (!unusedSince.has(generation)) unusedSince.set(generation, this.#nowMs());
		}
	}

	async sawKeys(workerIds: readonly WorkerId[], revision: number): Promise<void> {
		const { workers, keysOnVolumes } = this.#open;
		for (const workerId of workerIds) {
			if (workers.has(workerId)) keysOnVolumes.set(workerId, Math.max(revision, keysOnVolumes.get(workerId) ?? 0));
		}
	}

	async keysOnVolumes(): Promise<ReadonlyMap<WorkerId, number>> {
		return new Map(this.#open.keysOnVolumes);
	}

	async oldKeyObjects(options: { below: number; limit: number }): Promise<readonly WrappedDataKeyRow[]> {
		const rows = [...this.#open.objects.values()].map(({ row }) => row);
		const old = rows.filter(({ keyGeneration }) => keyGeneration < options.below);
		return old
			.sort((a, b) => a.keyGeneration - b.keyGeneration)
			.slice(0, options.limit)
			.map(({ versionId, keyGeneration, wrappedKey }) => ({ versionId, keyGeneration, wrappedKey }));
	}

	async oldTrailers(
		generation: number,
		options: { after: string | null; limit: number },
	): Promise<{ readonly trailers: readonly OldTrailers[]; readonly next: string | null }> {
		const { objects, placed } = this.#open;
		if (options.after !== null && !/^[0-9a-f]{32}\.\d{9}$/.test(options.after)) throw notAPlace();
		const all = [...objects.values()].flatMap(({ row: { objectId, versionId }, segments }) =>
			segments.map((segment): OldTrailers => {
				const old = segment.placements.filter(({ shardId }) => placed.get(shardId)?.keyGeneration === generation);
				return {
					stored: { objectId, versionId, segment },
					shardIndexes: old.map(({ shardIndex }) => shardIndex),
				};
			}),
		);
		const placeOf = ({ stored }: OldTrailers) => `${stored.versionId}.${String(stored.segment.index).padStart(9, '0')}`;
		const rest = all
			.filter((one) => one.shardIndexes.length > 0 && placeOf(one) > (options.after ?? ''))
			.sort((a, b) => compare(placeOf(a), placeOf(b)));
		const trailers = rest.slice(0, options.limit);
		const last = trailers.at(-1);
		return { trailers, next: last === undefined || rest.length <= options.limit ? null : placeOf(last) };
	}

	async rewrapObjects(objects: readonly RewrappedObject[], lease?: Lease): Promise<number> {
		const data = this.#open;
		this.#check(lease);
		for (const { keyGeneration } of objects) this.#checkGeneration(keyGeneration);
		let changed = 0;
		for (const { versionId, before, keyGeneration, wrappedKey } of objects) {
			const stored = data.objects.get(data.versions.get(versionId) as ObjectId);
			if (stored === undefined || !stored.row.wrappedKey.equals(before)) continue;
			const row = copyRow({ ...stored.row, keyGeneration, wrappedKey });
			data.objects.set(row.objectId, { ...stored, row });
			changed++;
		}
		return changed;
	}

	/** Nothing new needs a generation that was dropped. */
	#checkGeneration(generation: number): void {
		const keys = this.#data.cluster?.keys ?? [];
		const isThere = keys.some((key) => key.generation === generation);
		if (!isThere && keys.some((key) => key.generation > generation)) throw generationDropped(generation);
	}

	async begin(intent: {
		uploadId: UploadId;
		objectId: ObjectId;
		shards: readonly IntendedShard[];
		expiresAtMs: number;
	}): Promise<void> {
		const data = this.#open;
		const { uploadId, objectId, expiresAtMs } = intent;
		if (data.uploads.has(uploadId)) throw alreadyCommitted(uploadId);
		this.#checkWorkers(intent.shards);
		if (!data.intents.has(uploadId)) {
			const row: IntentRow = { uploadId, objectId, state: 'open', expiresAtMs };
			data.intents.set(uploadId, { row, beganAtMs: this.#nowMs(), shards: new Map() });
		}
		this.#name(uploadId, intent.shards);
	}

	async extend(uploadId: UploadId, shards: readonly IntendedShard[]): Promise<void> {
		this.#intent(uploadId);
		this.#checkWorkers(shards);
		this.#name(uploadId, shards);
	}

	#checkWorkers(shards: readonly IntendedShard[]): void {
		const { forgotten, workers } = this.#data;
		if (shards.some(({ workerId }) => forgotten.has(workerId) && !workers.has(workerId))) throw workerForgotten();
	}

	#name(uploadId: UploadId, shards: readonly IntendedShard[]): void {
		const intent = this.#intent(uploadId);
		for (const { shardId, workerId } of shards) if (!intent.shards.has(shardId)) intent.shards.set(shardId, workerId);
	}

	#intent(uploadId: UploadId): Intent {
		const intent = this.#open.intents.get(uploadId);
		if (intent === undefined) throw notOpen(uploadId);
		return intent;
	}

	async renew(uploadId: UploadId, expiresAtMs: number): Promise<void> {
		const intent = this.#intent(uploadId);
		intent.row = { ...intent.row, expiresAtMs };
		for (const [at, claim] of this.#data.idempotency) {
			if (claim.uploadId !== uploadId || claim.objectId !== null || claim.expiresAtMs > expiresAtMs) continue;
			this.#data.idempotency.set(at, { ...claim, expiresAtMs });
		}
	}

	async commit(commit: Commit): Promise<ObjectRow> {
		const data = this.#open;
		const { object, idempotency, nowMs } = commit;
		const known = data.uploads.get(object.uploadId);
		if (known !== undefined) {
			const stored = data.objects.get(known);
			if (stored !== undefined) return stored.row;
		}
		checkCommit(commit);
		this.#checkGeneration(object.keyGeneration);
		const intent = data.intents.get(object.uploadId);
		if (intent === undefined && commit.segments.length > 0) throw notOpen(object.uploadId);
		if (idempotency !== null) {
			const claim = data.idempotency.get(claimKey(idempotency));
			if (claim !== undefined && claim.uploadId !== object.uploadId && claim.expiresAtMs > nowMs) throw keyTaken();
		}
		const placed = commit.segments.flatMap((segment) =>
			segment.placements.map((placement) => ({
				...placement,
				objectId: object.objectId,
				segment: segment.index,
				keyGeneration: object.keyGeneration,
			})),
		);
		for (const { shardId, workerId } of placed) {
			if (intent?.shards.get(shardId) !== workerId) throw neverNamed(shardId);
		}
		if (data.objects.has(object.objectId)) throw objectTaken(object.objectId);

		const row = copyRow(object);
		const segments = commit.segments.map(copySegment);
		data.objects.set(row.objectId, { row, segments, trash: null });
		data.uploads.set(row.uploadId, row.objectId);
		data.versions.set(row.versionId, row.objectId);
		for (const placement of placed) data.placed.set(placement.shardId, placement);
		for (const segment of segments) {
			for (const shardIndex of missingIndexes(segment)) this.#queueRepair(row, segment, { shardIndex, dueAtMs: nowMs });
		}
		data.intents.delete(row.uploadId);
		const named = [...(intent?.shards ?? [])].map(([shardId, workerId]) => ({ shardId, workerId }));
		for (const { shardId, workerId } of [...named, ...commit.abandoned]) {
			if (!data.placed.has(shardId)) this.#queueDeletion({ shardId, workerId }, nowMs);
		}
		if (idempotency !== null) {
			data.idempotency.set(claimKey(idempotency), { ...idempotency, uploadId: row.uploadId, objectId: row.objectId });
		}
		return row;
	}

	async abort(uploadId: UploadId, nowMs: number): Promise<void> {
		const data = this.#open;
		this.#discardIntent(uploadId, nowMs);
		for (const [at, claim] of data.idempotency) {
			if (claim.uploadId === uploadId && claim.objectId === null) data.idempotency.delete(at);
		}
	}

	/** Its shards are to be deleted, but for what is placed by now. */
	#discardIntent(uploadId: UploadId, nowMs: number): void {
		const data = this.#data;
		for (const [shardId, workerId] of data.intents.get(uploadId)?.shards ?? []) {
			if (!data.placed.has(shardId)) this.#queueDeletion({ shardId, workerId }, nowMs);
		}
		data.intents.delete(uploadId);
	}

	#queueDeletion({ shardId, workerId }: IntendedShard, nowMs: number, forGood = false): void {
		const queuedAtMs = this.#data.deletions.get(shardId)?.queuedAtMs ?? nowMs;
		this.#data.deletions.set(shardId, { shardId, workerId, forGood, queuedAtMs });
	}

	async expireIntents(nowMs: number, limit: number, lease?: Lease): Promise<number> {
		const data = this.#open;
		this.#check(lease);
		const expired = (await this.intents(Number.POSITIVE_INFINITY)).filter(({ expiresAtMs }) => expiresAtMs <= nowMs);
		for (const { uploadId } of expired.slice(0, limit)) await this.abort(uploadId, nowMs);
		for (const [at, claim] of data.idempotency) if (claim.expiresAtMs <= nowMs) data.idempotency.delete(at);
		return Math.min(expired.length, limit);
	}

	async intents(limit: number): Promise<readonly IntentRow[]> {
		const rows = [...this.#open.intents.values()].map(({ row }) => row);
		return rows.sort((a, b) => a.expiresAtMs - b.expiresAtMs || compare(a.uploadId, b.uploadId)).slice(0, limit);
	}

	async claimIdempotency(claim: Idempotency, nowMs: number): Promise<IdempotencyClaim> {
		const data = this.#open;
		const held = data.idempotency.get(claimKey(claim));
		if (held === undefined || held.expiresAtMs <= nowMs) {
			data.idempotency.set(claimKey(claim), { ...claim, objectId: null });
			return { state: 'claimed' };
		}
		if (held.fingerprint !== claim.fingerprint) return { state: 'mismatch' };
		if (held.objectId !== null) return { state: 'done', objectId: held.objectId };
		return { state: held.uploadId === claim.uploadId ? 'claimed' : 'running' };
	}

	async object(objectId: ObjectId): Promise<ObjectRow | null> {
		return this.#live(objectId)?.row ?? null;
	}

	/** Not in the trash. */
	#live(objectId: ObjectId): StoredObject | undefined {
		const stored = this.#open.objects.get(objectId);
		return stored?.trash === null ? stored : undefined;
	}

	async objectWithSegments(
		objectId: ObjectId,
		options: { fromSegment: number; limit: number },
	): Promise<{ object: ObjectRow; segments: readonly Segment[] } | null> {
		const stored = this.#live(objectId);
		if (stored === undefined) return null;
		return { object: stored.row, segments: pageOf(stored.segments, options) };
	}

	async segments(versionId: VersionId, options: { fromSegment: number; limit: number }): Promise<readonly Segment[]> {
		const objectId = this.#open.versions.get(versionId);
		const stored = objectId === undefined ? undefined : this.#data.objects.get(objectId);
		return pageOf(stored?.segments ?? [], options);
	}

	async list(options: { limit: number; after: string | null; kind?: ObjectKind }): Promise<ObjectPage> {
		const { kind = 'user' } = options;
		const after = options.after === null ? null : parseCursor(options.after);
		const live = [...this.#open.objects.values()].filter(({ trash, row }) => trash === null && row.kind === kind);
		const rows = live.map(({ row }) => row).sort(newestFirst);
		const isAfter = (row: ObjectRow) => after === null || newestFirst(row, { ...after, createdAtMs: after.atMs }) > 0;
		const rest = rows.filter(isAfter);
		const objects = rest.slice(0, options.limit);
		const last = objects.at(-1);
		return { objects, next: last === undefined || rest.length <= options.limit ? null : cursorOf(last) };
	}

	async wholeObjects(options: { after: string | null; limit: number }): Promise<WholePage> {
		const { after, limit } = options;
		if (after !== null && !isId(after)) throw notAPlace();
		const rest = [...this.#open.objects.values()]
			.filter(({ row }) => after === null || row.objectId > after)
			.sort((a, b) => compare(a.row.objectId, b.row.objectId));
		let segmentsBefore = 0;
		const page = rest.slice(0, limit).filter(({ segments }) => {
			segmentsBefore += segments.length;
			return segmentsBefore - segments.length < limit;
		});
		const objects = page.map(({ row, trash, segments }) => ({ object: row, trash, segments: [...segments] }));
		const last = page.at(-1);
		return { objects, next: last === undefined || page.length === rest.length ? null : last.row.objectId };
	}

	async deleteObject(objectId: ObjectId, options: DeletedBy & { purgeAtMs: number }): Promise<boolean> {
		const stored = this.#live(objectId);
		const { nowMs, purgeAtMs, by } = options;
		if (stored === undefined) return false;
		if (purgeAtMs <= nowMs) {
			this.#purge(stored, { nowMs, by });
			return true;
		}
		stored.trash = { deletedAtMs: nowMs, purgeAtMs };
		this.#log({ objectId, action: 'trashed', atMs: nowMs, by });
		return true;
	}

	async undeleteObject(objectId: ObjectId, { nowMs, by }: DeletedBy): Promise<boolean> {
		const stored = this.#open.objects.get(objectId);
		if (stored === undefined || stored.trash === null) return false;
		stored.trash = null;
		this.#log({ objectId, action: 'undeleted', atMs: nowMs, by });
		return true;
	}

	async purgeObject(objectId: ObjectId, options: DeletedBy): Promise<boolean> {
		const stored = this.#open.objects.get(objectId);
		if (stored === undefined || stored.trash === null) return false;
		this.#purge(stored, options);
		return true;
	}

	async purgeTrash(nowMs: number, limit: number, lease?: Lease): Promise<number> {
		const data = this.#open;
		this.#check(lease);
		const due = [...data.objects.values()].filter(({ trash }) => trash !== null && trash.purgeAtMs <= nowMs);
		const batch = due.sort((a, b) => -longestFirst(a, b)).slice(0, limit);
		for (const stored of batch) this.#purge(stored, { nowMs, by: '' });
		return batch.length;
	}

	#purge({ row, segments }: StoredObject, { nowMs, by }: DeletedBy): void {
		const data = this.#data;
		const { objectId } = row;
		for (const { placements } of segments) {
			for (const { shardId, workerId } of placements) {
				data.placed.delete(shardId);
				data.findings.delete(shardId);
				this.#queueDeletion({ shardId, workerId }, nowMs, true);
			}
		}
		for (const [at, item] of data.repairs) if (item.objectId === objectId) data.repairs.delete(at);
		data.uploads.delete(row.uploadId);
		data.versions.delete(row.versionId);
		data.objects.delete(objectId);
		this.#log({ objectId, action: 'purged', atMs: nowMs, by });
	}

	async trashed(objectId: ObjectId): Promise<TrashedObject | null> {
		const stored = this.#open.objects.get(objectId);
		return stored === undefined || stored.trash === null ? null : { object: stored.row, ...stored.trash };
	}

	async trash(options: { limit: number; after: string | null }): Promise<TrashPage> {
		const after = options.after === null ? null : parseCursor(options.after);
		const all = [...this.#open.objects.values()].filter(({ trash }) => trash !== null).sort(longestFirst);
		const rest = all.filter(({ row, trash }) => {
			if (after === null || trash === null) return true;
			return (after.atMs - trash.purgeAtMs || compare(after.objectId, row.objectId)) > 0;
		});
		const objects = rest.slice(0, options.limit).flatMap(({ row, trash }) => (trash ? { object: row, ...trash } : []));
		const last = objects.at(-1);
		return { objects, next: last === undefined || rest.length <= options.limit ? null : trashCursorOf(last) };
	}

	#log(deletion: Deletion): void {
		const { deletionLog } = this.#data;
		const last = deletionLog.at(-1);
		deletionLog.push(nextDeletion(last === undefined ? NO_DELETIONS : headAfter(last), deletion));
	}

	async deletionLog({ limit, after }: { limit: number; after: number }): Promise<readonly DeletionEntry[]> {
		return this.#open.deletionLog.slice(after, after + limit);
	}

	async deletionHead(): Promise<DeletionHead> {
		const last = this.#open.deletionLog.at(-1);
		return last === undefined ? NO_DELETIONS : headAfter(last);
	}

	async deletions(workerId: WorkerId, limit: number): Promise<readonly QueuedDeletion[]> {
		const queue = [...this.#open.deletions.values()].filter((item) => item.workerId === workerId);
		return queue.slice(0, limit).map(({ shardId, forGood }) => ({ shardId, forGood }));
	}

	async deletionsDone(workerId: WorkerId, shardIds: readonly ShardId[], lease?: Lease): Promise<void> {
		const { deletions } = this.#open;
		this.#check(lease);
		for (const shardId of shardIds) if (deletions.get(shardId)?.workerId === workerId) deletions.delete(shardId);
	}

	async knownShards(
		workerId: WorkerId,
		options: { after: ShardId | null; limit: number },
	): Promise<readonly KnownShard[]> {
		const { placed, intents, deletions } = this.#open;
		const known = new Map<ShardId, KnownShard>();
		const add = (shardId: ShardId, holder: WorkerId, how: Partial<KnownShard>) => {
			if (holder !== workerId || (options.after !== null && shardId <= options.after)) return;
			const before = known.get(shardId) ?? { shardId, placed: false, intended: false, deleting: false };
			known.set(shardId, { ...before, ...how });
		};
		for (const [shardId, placement] of placed) add(shardId, placement.workerId, { placed: true });
		for (const { shards } of intents.values()) {
			for (const [shardId, holder] of shards) add(shardId, holder, { intended: true });
		}
		for (const [shardId, item] of deletions) add(shardId, item.workerId, { deleting: true });
		return [...known.values()].sort((a, b) => compare(a.shardId, b.shardId)).slice(0, options.limit);
	}

	async queueUnknown(workerId: WorkerId, shardIds: readonly ShardId[], nowMs: number, lease?: Lease): Promise<number> {
		const { placed, intents, deletions } = this.#open;
		this.#check(lease);
		const isIntended = (shardId: ShardId) =>
			[...intents.values()].some(({ shards }) => shards.get(shardId) === workerId);
		for (const shardId of shardIds) {
			if (placed.has(shardId) || isIntended(shardId) || deletions.has(shardId)) continue;
			this.#queueDeletion({ shardId, workerId }, nowMs);
		}
		return shardIds.filter((shardId) => deletions.get(shardId)?.workerId === workerId).length;
	}

	async counts(): Promise<StoreCounts> {
		const { objects, intents, deletions, repairs } = this.#open;
		const counts = { objects: 0, bytes: 0, trashObjects: 0, trashBytes: 0 };
		for (const { row, trash } of objects.values()) {
			if (row.kind !== 'user') continue;
			counts[trash === null ? 'objects' : 'trashObjects']++;
			counts[trash === null ? 'bytes' : 'trashBytes'] += row.sizeBytes;
		}
		return { ...counts, intents: intents.size, deletions: deletions.size, repairs: repairs.size };
	}

	async addFindings(findings: readonly Finding[]): Promise<readonly ShardId[]> {
		const data = this.#open;
		const added: ShardId[] = [];
		for (const finding of findings) {
			const placed = data.placed.get(finding.shardId);
			const stored = placed === undefined ? undefined : data.objects.get(placed.objectId);
			const segment = stored?.segments[placed?.segment ?? -1];
			if (placed === undefined || stored === undefined || segment === undefined) continue;
			if (placed.workerId !== finding.workerId) continue;
			data.findings.set(finding.shardId, finding);
			this.#queueRepair(stored.row, segment, { shardIndex: placed.shardIndex, dueAtMs: finding.foundAtMs });
			added.push(finding.shardId);
		}
		return added;
	}

	#queueRepair(object: ObjectRow, segment: Segment, due: { shardIndex: number; dueAtMs: number }): void {
		const { objectId, versionId } = object;
		const item = { objectId, versionId, segment: segment.index, encodingId: segment.encodingId, attempts: 0, ...due };
		if (!this.#data.repairs.has(itemKey(item))) this.#data.repairs.set(itemKey(item), item);
	}

	async findings(versionId: VersionId): Promise<readonly Finding[]> {
		const objectId = this.#open.versions.get(versionId);
		const found = [...this.#data.findings.values()].filter(
			({ shardId }) => this.#data.placed.get(shardId)?.objectId === objectId,
		);
		return found.sort((a, b) => compare(a.shardId, b.shardId));
	}

	async repairs(options: { nowMs: number; limit: number }): Promise<readonly RepairItem[]> {
		const items = [...this.#open.repairs.values()];
		const queued = new Map<string, number>();
		for (const { versionId, segment } of items) {
			const at = `${versionId}/${segment}`;
			queued.set(at, (queued.get(at) ?? 0) + 1);
		}
		const spares = ({ objectId, versionId, segment: index }: RepairItem) => {
			const segment = this.#data.objects.get(objectId)?.segments[index];
			return (segment?.n ?? 0) - (segment?.k ?? 0) - (queued.get(`${versionId}/${index}`) ?? 0);
		};
		const due = items.filter(({ dueAtMs }) => dueAtMs <= options.nowMs);
		return due.sort((a, b) => spares(a) - spares(b)).slice(0, options.limit);
	}

	async deferRepair(item: RepairItem, dueAtMs: number, lease?: Lease): Promise<void> {
		const { repairs } = this.#open;
		this.#check(lease);
		const queued = repairs.get(itemKey(item));
		if (queued !== undefined) repairs.set(itemKey(item), { ...queued, attempts: item.attempts + 1, dueAtMs });
	}

	async repairDone(done: RepairDone, uploadId: UploadId, lease?: Lease): Promise<void> {
		const data = this.#open;
		this.#check(lease);
		const { item, placement, keyGeneration, nowMs } = done;
		if (data.placed.has(placement.shardId)) return;
		this.#checkGeneration(keyGeneration);
		const intent = this.#intent(uploadId);
		if (intent.shards.get(placement.shardId) !== placement.workerId) throw neverNamed(placement.shardId);
		const stored = data.objects.get(item.objectId);
		const segment = stored?.segments[item.segment];
		if (stored?.row.versionId !== item.versionId || segment?.encodingId !== item.encodingId) {
			this.#discardIntent(uploadId, nowMs);
			throw segmentGone();
		}
		const { shardIndex } = item;
		if (segment.placements.some((other) => other.workerId === placement.workerId && other.shardIndex !== shardIndex)) {
			this.#discardIntent(uploadId, nowMs);
			throw workerTaken();
		}
		const old = segment.placements.find((other) => other.shardIndex === shardIndex);
		if (old !== undefined) {
			data.placed.delete(old.shardId);
			data.findings.delete(old.shardId);
			this.#queueDeletion(old, nowMs);
		}
		const others = segment.placements.filter((other) => other !== old);
		const placements = [...others, { ...placement, shardIndex }].sort((a, b) => a.shardIndex - b.shardIndex);
		stored.segments[item.segment] = { ...segment, placements };
		const { objectId } = item;
		data.placed.set(placement.shardId, { ...placement, objectId, segment: item.segment, shardIndex, keyGeneration });
		data.repairs.delete(itemKey(item));
		this.#discardIntent(uploadId, nowMs);
	}

	async reencoded(done: Reencoded, uploadId: UploadId, lease?: Lease): Promise<void> {
		const data = this.#open;
		this.#check(lease);
		checkReencoded(done);
		const { objectId, versionId, fromEncodingId, keyGeneration, nowMs } = done;
		const segment = copySegment(done.segment);
		const { index, placements } = segment;
		if (placements.some(({ shardId }) => data.placed.has(shardId))) return;
		this.#checkGeneration(keyGeneration);
		const intent = this.#intent(uploadId);
		for (const { shardId, workerId } of placements) {
			if (intent.shards.get(shardId) !== workerId) throw neverNamed(shardId);
		}
		const stored = data.objects.get(objectId);
		const old = stored?.segments[index];
		if (stored?.row.versionId !== versionId || old?.encodingId !== fromEncodingId) {
			this.#discardIntent(uploadId, nowMs);
			throw segmentGone();
		}
		for (const { shardId, workerId } of old.placements) {
			data.placed.delete(shardId);
			data.findings.delete(shardId);
			this.#queueDeletion({ shardId, workerId }, nowMs);
		}
		for (const [at, item] of data.repairs) {
			if (item.objectId === objectId && item.segment === index) data.repairs.delete(at);
		}
		for (const placement of placements) {
			data.placed.set(placement.shardId, { ...placement, objectId, segment: index, keyGeneration });
		}
		const { codec, k, n, encodingId, roots, because } = segment;
		const was = { k: old.k, n: old.n, because: old.because, untilMs: nowMs };
		stored.segments[index] = { ...old, codec, k, n, encodingId, roots, because, placements, was };
		this.#discardIntent(uploadId, nowMs);
	}

	/** The id says what the set is: who asks for one that no segment is on any more finds nothing. */
	#setIdOf({ k, n, placements }: Segment): string {
		const good = placements.filter(({ shardId }) => !this.#data.findings.has(shardId));
		return JSON.stringify([k, n, good.map(({ workerId }) => workerId).sort(compare)]);
	}

	async redundancyRows(): Promise<RedundancyRows> {
		const sets = new Map<string, SetCount>();
		const spreads = new Map<string, SpreadCount>();
		for (const { row, segments, trash } of this.#open.objects.values()) {
			for (const segment of segments) {
				const setId = this.#setIdOf(segment);
				const [k, n, workers] = JSON.parse(setId) as [number, number, WorkerId[]];
				const { segments: before, bytes } = sets.get(setId) ?? { segments: 0, bytes: 0 };
				sets.set(setId, { setId, k, n, workers, segments: before + 1, bytes: bytes + sealedBytes(segment) });
			}
			if (trash !== null || row.kind !== 'user') continue;
			const setIds = [...new Set(segments.map((segment) => this.#setIdOf(segment)))].sort(compare);
			const key = JSON.stringify(setIds);
			const { objects, bytes } = spreads.get(key) ?? { objects: 0, bytes: 0 };
			spreads.set(key, { setIds, objects: objects + 1, bytes: bytes + row.sizeBytes });
		}
		return { sets: [...sets.values()], spreads: [...spreads.values()] };
	}

	#onSet(setId: string): StoredSegment[] {
		return [...this.#open.objects.values()]
			.flatMap(({ row, segments }) =>
				segments.map((segment) => ({ objectId: row.objectId, versionId: row.versionId, segment })),
			)
			.filter(({ segment }) => this.#setIdOf(segment) === setId)
			.sort((a, b) => compare(a.versionId, b.versionId) || a.segment.index - b.segment.index);
	}

	async segmentsOnSet(
		setId: string,
		options: { after: string | null; limit: number },
	): Promise<{ readonly segments: readonly StoredSegment[]; readonly next: string | null }> {
		const place = options.after === null ? ['', '', '-1'] : /^([0-9a-f]{32})\.(\d+)$/.exec(options.after);
		if (place === null) throw notAPlace();
		const [, version = '', index = ''] = place;
		const rest = this.#onSet(setId).filter(
			({ versionId, segment }) => versionId > version || (versionId === version && segment.index > Number(index)),
		);
		const segments = rest.slice(0, options.limit);
		const last = segments.at(-1);
		const isLast = last === undefined || rest.length <= options.limit;
		return { segments, next: isLast ? null : `${last.versionId}.${last.segment.index}` };
	}

	async sampleSet(setId: string, at: number): Promise<StoredSegment | null> {
		const segments = this.#onSet(setId);
		return segments[Math.min(segments.length - 1, Math.floor(at * segments.length))] ?? null;
	}

	async objectsOnSets(setIds: readonly string[], limit: number): Promise<readonly ObjectId[]> {
		const objects = [...this.#open.objects.values()].filter(({ segments }) =>
			segments.some((segment) => setIds.includes(this.#setIdOf(segment))),
		);
		return objects.slice(0, limit).map(({ row }) => row.objectId);
	}

	async saveWorker(worker: WorkerSighting): Promise<void> {
		const { workers } = this.#open;
		const known = workers.get(worker.workerId);
		if (known !== undefined && !known.receiptKey.equals(worker.receiptKey)) throw otherReceiptKey(worker.name);
		for (const { workerId, name } of workers.values()) {
			if (name === worker.name && workerId !== worker.workerId) throw nameTaken(name);
		}
		const { registeredAtMs, duty, history } = known ?? { ...worker, duty: 'active', history: '' };
		const receiptKey = Buffer.from(worker.receiptKey);
		workers.set(worker.workerId, { ...worker, registeredAtMs, duty, history, receiptKey });
	}

	async sawWorkers(seen: readonly WorkerFigures[]): Promise<void> {
		const { workers } = this.#open;
		for (const { workerId, lastSeenMs, bytesTotal, bytesUsed, shards } of seen) {
			const known = workers.get(workerId);
			if (known !== undefined) workers.set(workerId, { ...known, lastSeenMs, bytesTotal, bytesUsed, shards });
		}
	}

	async renameWorker(workerId: WorkerId, { name, lastSeenMs }: { name: string; lastSeenMs: number }): Promise<boolean> {
		const { workers } = this.#open;
		const known = workers.get(workerId);
		if (known?.lastSeenMs !== lastSeenMs) return known?.name === name;
		for (const other of workers.values()) {
			if (other.name === name && other.workerId !== workerId) throw nameTaken(name);
		}
		workers.set(workerId, { ...known, name });
		return true;
	}

	async workers(): Promise<readonly WorkerRow[]> {
		return [...this.#open.workers.values()].sort((a, b) => compare(a.name, b.name));
	}

	async setDuty(workerId: WorkerId, duty: WorkerDuty): Promise<boolean> {
		const { workers } = this.#open;
		const known = workers.get(workerId);
		if (known !== undefined) workers.set(workerId, { ...known, duty });
		return known !== undefined;
	}

	async saveHistory(workerId: WorkerId, history: string, lease?: Lease): Promise<void> {
		const { workers } = this.#open;
		this.#check(lease);
		const known = workers.get(workerId);
		if (known !== undefined) workers.set(workerId, { ...known, history });
	}

	async forgetWorker(workerId: WorkerId, nowMs: number): Promise<boolean> {
		const { workers, keysOnVolumes, placed, deletions, intents, forgotten } = this.#open;
		const known = workers.get(workerId);
		if (known === undefined) return false;
		const named = [...intents.values()].flatMap(({ shards }) => [...shards.values()]);
		const placements = [...placed.values()].map((placement) => placement.workerId);
		if ([...named, ...placements].includes(workerId)) throw stillPlaced(known.name);
		for (const [shardId, item] of deletions) if (item.workerId === workerId) deletions.delete(shardId);
		workers.delete(workerId);
		forgotten.set(workerId, nowMs);
		keysOnVolumes.delete(workerId);
		return true;
	}

	async forgottenAt(workerId: WorkerId): Promise<number | null> {
		return this.#open.forgotten.get(workerId) ?? null;
	}

	async jobs(): Promise<readonly JobRow[]> {
		return [...this.#open.jobs.values()].sort((a, b) => compare(a.name, b.name));
	}

	#changeJob(name: string, nowMs: number, change: (job: JobRow) => Partial<JobRow>): void {
		const { jobs } = this.#open;
		const job = jobs.get(name) ?? { name, paused: false, runs: 0, state: '', updatedAtMs: nowMs };
		jobs.set(name, { ...job, ...change(job), updatedAtMs: nowMs });
	}

	async pauseJob(name: string, paused: boolean, nowMs: number): Promise<void> {
		this.#changeJob(name, nowMs, () => ({ paused }));
	}

	async requestRun(name: string, nowMs: number): Promise<void> {
		this.#changeJob(name, nowMs, ({ runs }) => ({ runs: runs + 1 }));
	}

	async saveJobState(name: string, state: string, nowMs: number, lease?: Lease): Promise<void> {
		this.#check(lease);
		this.#changeJob(name, nowMs, () => ({ state }));
	}

	async acquireLease(name: string, options: { holder: string; ttlMs: number }): Promise<Lease | null> {
		const { leases } = this.#open;
		const { holder, ttlMs } = options;
		const known = leases.get(name);
		const lasts = known !== undefined && known.endsAtMs > this.#nowMs();
		if (lasts && known.holder !== holder) return null;
		const fencing = (known?.fencing ?? 0) + (lasts ? 0 : 1);
		leases.set(name, { holder, fencing, endsAtMs: this.#nowMs() + ttlMs });
		return { name, fencing };
	}

	async releaseLease({ name, fencing }: Lease): Promise<void> {
		const { leases } = this.#open;
		const known = leases.get(name);
		if (known?.fencing === fencing) leases.set(name, { ...known, endsAtMs: 0 });
	}

	#check(lease: Lease | undefined): void {
		if (lease === undefined) return;
		const known = this.#data.leases.get(lease.name);
		if (known?.fencing !== lease.fencing || known.endsAtMs <= this.#nowMs()) throw leaseLost(lease.name);
	}

	async nowMs(): Promise<number> {
		if (this.#closed) throw storeClosed();
		return this.#nowMs();
	}

	async close(): Promise<void> {
		this.#closed = true;
	}
}

function compare(a: string, b: string): number {
	return a < b ? -1 : a > b ? 1 : 0;
}

function newestFirst(
	a: { createdAtMs: number; objectId: ObjectId },
	b: { createdAtMs: number; objectId: ObjectId },
): number {
	return b.createdAtMs - a.createdAtMs || compare(b.objectId, a.objectId);
}

/** Of what is in the trash. */
function longestFirst(a: StoredObject, b: StoredObject): number {
	return (b.trash?.purgeAtMs ?? 0) - (a.trash?.purgeAtMs ?? 0) || compare(b.row.objectId, a.row.objectId);
}

function pageOf(
	segments: readonly Segment[],
	{ fromSegment, limit }: { fromSegment: number; limit: number },
): Segment[] {
	return segments.slice(fromSegment, fromSegment + limit);
}

function claimKey({ owner, key }: { owner: string; key: string }): string {
	return JSON.stringify([owner, key]);
}

function itemKey({ versionId, encodingId, segment, shardIndex }: RepairItem): string {
	return `${versionId}/${encodingId}/${segment}/${shardIndex}`;
}

/** Callers use their buffers again. */
function copyKey(key: WrappedClusterKey): WrappedClusterKey {
	return { ...key, wrapped: Buffer.from(key.wrapped) };
}

function copyRow(row: ObjectRow): ObjectRow {
	const inline = row.inline === null ? null : Buffer.from(row.inline);
	return { ...row, wrappedKey: Buffer.from(row.wrappedKey), manifest: Buffer.from(row.manifest), inline };
}

function copySegment(segment: Segment): Segment {
	const placements = segment.placements.toSorted((a, b) => a.shardIndex - b.shardIndex);
	return { ...segment, endRecord: Buffer.from(segment.endRecord), roots: Buffer.from(segment.roots), placements };
}
