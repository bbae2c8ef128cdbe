/**
 * MetadataStore: the port behind which the orchestrator keeps what it knows. Adapters: store-sqlite (embedded, one
 * orchestrator), store-supabase (several), store-memory (tests and simulation); all pass store.contract.ts. API keys are
 * not here (api-keys.ts): they change while an orchestrator runs.
 *
 * Every method that changes something is one durable transaction; when it resolves the change survives a power cut.
 * Concurrent calls may share one transaction (group commit), and one call's refusal never harms another's. Rows are
 * one per segment and per shard; no row grows with an object. All times come from the caller as `nowMs`; callers that share a
 * store take them from its clock (store-clock.ts). Calls take effect
 * in the order in which they were made; a read that was made after a write was answered sees it. What may be asked
 * again after a lost answer (begin, commit, abort, repairDone, reencoded, the queues) gives the same result.
 */

import type { Deletion, DeletionEntry, DeletionHead } from '../core/crypto/deletion-log.ts';
import type { EncodingId, ObjectId, ShardId, UploadId, VersionId, WorkerId } from '../core/ids.ts';
import type { WorkerDuty } from '../core/model/health.ts';
import type { KeysRecord, WrappedClusterKey } from '../core/model/keys-record.ts';
import type { ObjectKind } from '../core/model/manifest.ts';
import type { SetCount, SpreadCount } from '../core/model/redundancy-report.ts';
import type { Placement, Segment } from '../core/model/segment.ts';

export interface ObjectRow {
	readonly objectId: ObjectId;
	readonly versionId: VersionId;
	readonly uploadId: UploadId;
	readonly kind: ObjectKind;
	/** Plaintext bytes. */
	readonly sizeBytes: number;
	/** 0 for an inline object. */
	readonly segments: number;
	readonly createdAtMs: number;
	/** Without quotes. */
	readonly etag: string;
	/** Generation of the cluster key that wraps the data key. */
	readonly keyGeneration: number;
	readonly wrappedKey: Buffer;
	/** Sealed manifest (name, content type, sizes, digest). */
	readonly manifest: Buffer;
	/** Sealed bytes of an inline object, else null. */
	readonly inline: Buffer | null;
}

/** A shard that an upload may have put somewhere: named before its first byte leaves. */
export interface IntendedShard {
	readonly shardId: ShardId;
	readonly workerId: WorkerId;
}

export interface IntentRow {
	readonly uploadId: UploadId;
	readonly objectId: ObjectId;
	readonly state: 'open' | 'aborting';
	readonly expiresAtMs: number;
}

export interface Commit {
	readonly object: ObjectRow;
	readonly segments: readonly Segment[];
	/** Shards that were named in the intent but are not placed (failed, replaced): they go to the delete queue. */
	readonly abandoned: readonly IntendedShard[];
	readonly idempotency: Idempotency | null;
	readonly nowMs: number;
}

export interface Idempotency {
	/** Whose key: an API key id, or '' when open. */
	readonly owner: string;
	readonly key: string;
	/** Fingerprint of the request (method, path, headers that matter). */
	readonly fingerprint: string;
	readonly uploadId: UploadId;
	readonly expiresAtMs: number;
}

/** What `claimIdempotency` found: free (now ours), the same request running or finished, or another request. */
export type IdempotencyClaim =
	| { readonly state: 'claimed' }
	| { readonly state: 'running' }
	| { readonly state: 'mismatch' }
	| { readonly state: 'done'; readonly objectId: ObjectId };

export interface WorkerRow {
	readonly workerId: WorkerId;
	/** Unique among workers that are not forgotten: worker-3. */
	readonly name: string;
	readonly address: string;
	readonly zone: string;
	/** Raw Ed25519 public key, 32 bytes, of its receipts. Kept from the first registration; a change is refused. */
	readonly receiptKey: Buffer;
	readonly registeredAtMs: number;
	readonly lastSeenMs: number;
	readonly bytesTotal: number;
	readonly bytesUsed: number;
	readonly shards: number;
	/** What an operator asked of it. Kept by `saveWorker`, changed by `setDuty`. */
	readonly duty: WorkerDuty;
	/** How it behaved so far, as core/model/history.ts writes it; '' when nothing is known. Changed by `saveHistory`. */
	readonly history: string;
}

/** What is known of a worker when it registers or beats. */
export type WorkerSighting = Omit<WorkerRow, 'duty' | 'history'>;

/** What a heartbeat says of a worker that registered before. */
export type WorkerFigures = Pick<WorkerRow, 'workerId' | 'lastSeenMs' | 'bytesTotal' | 'bytesUsed' | 'shards'>;

/** All worker sets with segments and all spreads with objects, from one moment. A set's id is never used for another. */
export interface RedundancyRows {
	readonly sets: readonly SetCount[];
	readonly spreads: readonly SpreadCount[];
}

export interface StoredSegment {
	readonly objectId: ObjectId;
	readonly versionId: VersionId;
	readonly segment: Segment;
}

/** A background job as people steer it and see it: one row for the whole cluster. */
export interface JobRow {
	readonly name: string;
	readonly paused: boolean;
	/** Grows with every request to run now. */
	readonly runs: number;
	/** What its last step told of itself, JSON. */
	readonly state: string;
	readonly updatedAtMs: number;
}

/** What `addFindings` and repair know of a shard. */
export type FindingKind = 'missing' | 'corrupt';

export interface Finding {
	readonly shardId: ShardId;
	readonly workerId: WorkerId;
	readonly kind: FindingKind;
	readonly detail: string;
	readonly foundAtMs: number;
}

export interface RepairItem {
	readonly objectId: ObjectId;
	readonly versionId: VersionId;
	readonly segment: number;
	readonly encodingId: EncodingId;
	readonly shardIndex: number;
	readonly attempts: number;
	/** Not before. */
	readonly dueAtMs: number;
}

/** A shard that a worker has, will have or had, and which rows say so. */
export interface KnownShard {
	readonly shardId: ShardId;
	readonly placed: boolean;
	/** An open intent names it. */
	readonly intended: boolean;
	/** It is in the worker's delete queue. */
	readonly deleting: boolean;
}

/** A rebuilt shard takes the place of what was there (if anything). */
export interface RepairDone {
	readonly item: RepairItem;
	readonly placement: Placement;
	/** Of the cluster key that wraps the data key in the new shard's trailer. */
	readonly keyGeneration: number;
	readonly nowMs: number;
}

/** A segment's new encoding takes the place of the one that it was made from. */
export interface Reencoded {
	readonly objectId: ObjectId;
	readonly versionId: VersionId;
	readonly fromEncodingId: EncodingId;
	/** Same index, seal and cells; another encoding, with all of its shards placed. */
	readonly segment: Segment;
	/** Of the cluster key that wraps the data key in the new shards' trailers. */
	readonly keyGeneration: number;
	readonly nowMs: number;
}

/** The keys record is what volumes keep of it. */
export interface ClusterRow extends KeysRecord {
	readonly createdAtMs: number;
}

/** What needs a generation of the cluster key: figures up to the limit that was asked for. Objects in the trash as well. */
export interface KeyUse {
	readonly generation: number;
	/** Whose data key it wraps in the metadata. */
	readonly objects: number;
	/** Whose trailers have a data key that it wraps. */
	readonly shards: number;
	/** There may be shards of uploads under way, or shards to be deleted, with such trailers; never false for the newest. */
	readonly leftovers: boolean;
}

export interface WrappedDataKeyRow {
	readonly versionId: VersionId;
	readonly keyGeneration: number;
	readonly wrappedKey: Buffer;
}

/** A data key wrapped anew, for an object that still has it as it was. */
export interface RewrappedObject extends WrappedDataKeyRow {
	readonly before: Buffer;
}

/**
 * The right to do one kind of background work, held by one orchestrator at a time. Writes that carry one are refused, as
 * `expired`, in the transaction that would make them, once it has ended or another holder has it: so whoever was stopped
 * and goes on does no harm.
 */
export interface Lease {
	readonly name: string;
	/** Grows with every new holder. */
	readonly fencing: number;
}

/** A segment, and which of its shards have a trailer of the generation that was asked for. */
export interface OldTrailers {
	readonly stored: StoredSegment;
	readonly shardIndexes: readonly number[];
}

/** Who deletes or undeletes (`by` of the deletion log), and when. */
export type DeletedBy = Pick<Deletion, 'by'> & { readonly nowMs: number };

export interface TrashedObject {
	readonly object: ObjectRow;
	readonly deletedAtMs: number;
	/** From then on it is purged, as soon as the job comes by. */
	readonly purgeAtMs: number;
}

export interface TrashPage {
	readonly objects: readonly TrashedObject[];
	/** Pass as `after` for the next page; null at the end. */
	readonly next: string | null;
}

/** An object with everything that belongs to it. */
export interface WholeObject {
	readonly object: ObjectRow;
	readonly trash: Omit<TrashedObject, 'object'> | null;
	readonly segments: readonly Segment[];
}

export interface WholePage {
	readonly objects: readonly WholeObject[];
	readonly next: string | null;
}

/** A shard to delete. */
export interface QueuedDeletion {
	readonly shardId: ShardId;
	/** The worker unlinks it; others it keeps in its own trash for a while. */
	readonly forGood: boolean;
}

/** Of objects, people's only. */
export interface StoreCounts {
	readonly objects: number;
	readonly bytes: number;
	/** Objects in the trash, which are not among `objects`. */
	readonly trashObjects: number;
	readonly trashBytes: number;
	readonly intents: number;
	readonly deletions: number;
	readonly repairs: number;
}

export interface ObjectPage {
	readonly objects: readonly ObjectRow[];
	/** Pass as `after` for the next page; null at the end. */
	readonly next: string | null;
}

export interface MetadataStore {
	/** The cluster's own row. The first call on an empty store stores `initial` and returns it; later ones return what is there. */
	initCluster(initial: ClusterRow): Promise<ClusterRow>;
	/** null before `initCluster`. */
	cluster(): Promise<ClusterRow | null>;
	/**
	 * Writes keys that are wrapped anew, or new, if the revision is still this one, and raises it; `conflict` otherwise (a
	 * repeated call may be refused although it was done: look).
	 */
	changeClusterKeys(keys: readonly WrappedClusterKey[], revision: number): Promise<ClusterRow>;
	/**
	 * Removes a generation, and raises the revision. `conflict` when the revision is not this one any more, when anything that
	 * KeyUse counts needs the generation, when it is the newest, and while a worker's volume was not seen to have this revision.
	 */
	dropClusterKey(generation: number, revision: number): Promise<ClusterRow>;
	/** Of all generations, oldest first; each figure is at most `limit`. */
	keyUse(limit: number): Promise<readonly KeyUse[]>;
	/** Notes from when on a generation is not needed any more: what is begun or queued for deletion later can't have it. */
	noteUnusedKeys(): Promise<void>;
	/** These workers' volumes have this revision of the keys. Unknown workers are ignored. */
	sawKeys(workerIds: readonly WorkerId[], revision: number): Promise<void>;
	keysOnVolumes(): Promise<ReadonlyMap<WorkerId, number>>;
	/** Objects, those in the trash as well, whose data key is wrapped by a generation before this one; the oldest first. */
	oldKeyObjects(options: { below: number; limit: number }): Promise<readonly WrappedDataKeyRow[]>;
	/**
	 * Segments with shards whose trailers have a data key wrapped by this generation, of objects in the trash as well. `after`
	 * is `next` of the page before, or null.
	 */
	oldTrailers(
		generation: number,
		options: { after: string | null; limit: number },
	): Promise<{ readonly trailers: readonly OldTrailers[]; readonly next: string | null }>;
	/** Each by compare-and-set; how many were written. */
	rewrapObjects(objects: readonly RewrappedObject[], lease?: Lease): Promise<number>;

	/** The intent of an upload with its first shards. `exists` when that upload was committed already, `unavailable` when one of the workers was just forgotten. */
	begin(intent: {
		uploadId: UploadId;
		objectId: ObjectId;
		shards: readonly IntendedShard[];
		expiresAtMs: number;
	}): Promise<void>;
	/** More shards for an open intent (next segment, replacement). `expired` when it is not open any more, `unavailable` as above. */
	extend(uploadId: UploadId, shards: readonly IntendedShard[]): Promise<void>;
	/** `expired` when it is not open any more. */
	renew(uploadId: UploadId, expiresAtMs: number): Promise<void>;
	/**
	 * If the upload's object exists: that (a repeated commit). Else the intent must be open (`expired` otherwise) and is
	 * deleted in the same transaction that writes object, segments and placements, finishes the idempotency key, queues
	 * missing shards for repair and everything else that the intent named for deletion. Objects without segments (inline)
	 * need no intent. `invalid` for sizes beyond 2^53 - 1 and for placed shards that no intent named, `conflict` when the
	 * idempotency key is another upload's, `unavailable` when the generation of its key was dropped.
	 */
	commit(commit: Commit): Promise<ObjectRow>;
	/** Gives an open intent up: all its shards into the delete queue. No effect when it is not open. Also frees its idempotency key. */
	abort(uploadId: UploadId, nowMs: number): Promise<void>;
	/** Aborts up to `limit` open intents that have expired; returns how many. Expired idempotency keys go as well. */
	expireIntents(nowMs: number, limit: number, lease?: Lease): Promise<number>;
	intents(limit: number): Promise<readonly IntentRow[]>;

	/**
	 * Claims an Idempotency-Key before the upload begins. Expired ones are free. A claim ends with its upload: `abort` and
	 * expiry of the intent free it, `renew` keeps it, `commit` finishes it.
	 */
	claimIdempotency(claim: Idempotency, nowMs: number): Promise<IdempotencyClaim>;

	/** null when there is no such object, or it is in the trash. */
	object(objectId: ObjectId): Promise<ObjectRow | null>;
	/** Object and first segments in one round trip: what a read needs. null when there is no such object. */
	objectWithSegments(
		objectId: ObjectId,
		options: { fromSegment: number; limit: number },
	): Promise<{ object: ObjectRow; segments: readonly Segment[] } | null>;
	/** In order of index, at most `limit`. Also of an object in the trash: who knows the version goes on. */
	segments(versionId: VersionId, options: { fromSegment: number; limit: number }): Promise<readonly Segment[]>;
	/**
	 * People's objects, or those of another kind, without the trash. Newest first, by (createdAtMs, objectId). `after` is `next`
	 * of the page before; `invalid` when it is none.
	 */
	list(options: { limit: number; after: string | null; kind?: ObjectKind }): Promise<ObjectPage>;
	/**
	 * Objects of every kind, those in the trash as well, each with all its segments, in an order of the store's own that stays:
	 * what a snapshot is made of. A page is from one moment, and has up to `limit` objects, fewer when they have more than
	 * `limit` segments. `after` is `next` of the page before, or null.
	 */
	wholeObjects(options: { after: string | null; limit: number }): Promise<WholePage>;
	/**
	 * Into the trash: it leaves its spread, and stays on its worker sets, so that repair and drain go on. With a `purgeAtMs` that
	 * is not after `nowMs` it is purged at once. False when there was none, or it was in the trash already.
	 */
	deleteObject(objectId: ObjectId, options: DeletedBy & { readonly purgeAtMs: number }): Promise<boolean>;
	/** Out of the trash again. False when it was not there. */
	undeleteObject(objectId: ObjectId, options: DeletedBy): Promise<boolean>;
	/** Removes an object that is in the trash before its time. False when it was not there. */
	purgeObject(objectId: ObjectId, options: DeletedBy): Promise<boolean>;
	/**
	 * Purges up to `limit` objects whose time in the trash is over, the oldest first, fewer where they have very many segments;
	 * returns how many: none only when there is none. Their shards are queued for good.
	 */
	purgeTrash(nowMs: number, limit: number, lease?: Lease): Promise<number>;
	/** null when it is not in the trash. */
	trashed(objectId: ObjectId): Promise<TrashedObject | null>;
	/** Those that stay longest first, by (purgeAtMs, objectId). `after` is `next` of the page before; `invalid` when it is none. */
	trash(options: { limit: number; after: string | null }): Promise<TrashPage>;
	/** Entries of the deletion log from number `after` + 1 on. Each was written in the transaction that it tells of. */
	deletionLog(options: { limit: number; after: number }): Promise<readonly DeletionEntry[]>;
	/** As it is kept beside the log. */
	deletionHead(): Promise<DeletionHead>;

	/** Shards to delete on one worker, oldest first. */
	deletions(workerId: WorkerId, limit: number): Promise<readonly QueuedDeletion[]>;
	/** The worker has deleted them (or never had them). */
	deletionsDone(workerId: WorkerId, shardIds: readonly ShardId[], lease?: Lease): Promise<void>;
	/**
	 * What placements, open intents and the delete queue name on this worker, each shard once, sorted by id, after `after` (or
	 * from the start): all there are up to the last one of the page, or to the end where the page is shorter than `limit`.
	 */
	knownShards(workerId: WorkerId, options: { after: ShardId | null; limit: number }): Promise<readonly KnownShard[]>;
	/**
	 * Shards that the worker has and that nothing names: into its delete queue, but for those that a placement or an open intent
	 * names by now. Answers how many of them are in the queue.
	 */
	queueUnknown(workerId: WorkerId, shardIds: readonly ShardId[], nowMs: number, lease?: Lease): Promise<number>;
	/** Counts of the queues, for metrics and tests. */
	counts(): Promise<StoreCounts>;

	/**
	 * Reports what a read, scrub, audit or reconcile saw. The shard's placement is kept and marked; the shard is queued for
	 * repair. Shards that are not placed there are ignored: answers those that are.
	 */
	addFindings(findings: readonly Finding[]): Promise<readonly ShardId[]>;
	/** Open findings of an object's shards, for `explain`. */
	findings(versionId: VersionId): Promise<readonly Finding[]>;
	/** Due items, fewest spare shards first, then oldest. */
	repairs(options: { nowMs: number; limit: number }): Promise<readonly RepairItem[]>;
	/** Not now: try again at `dueAtMs`, attempts + 1. */
	deferRepair(item: RepairItem, dueAtMs: number, lease?: Lease): Promise<void>;
	/**
	 * The rebuilt shard is placed: replaces the old placement of that index (which goes to the delete queue), removes
	 * findings and queue item. `conflict` when the segment or encoding is gone meanwhile, or another shard of the segment is
	 * on that worker by now (the new shard goes to the delete queue then). `unavailable` as for `commit`.
	 * The new shard must have been named by `begin` under its own upload id, which this closes.
	 */
	repairDone(done: RepairDone, uploadId: UploadId, lease?: Lease): Promise<void>;

	/**
	 * The segment is that encoding from now on: code, roots and placements are replaced, what was known to be wrong with the
	 * old shards or missing of them is forgotten, they go to the delete queue, and `was` says how it was cut before. `conflict`
	 * when the object is gone or the segment has another encoding by now (the new shards go to the delete queue then);
	 * `invalid` when shards are lacking or no intent named them. As repairDone it closes the intent of the new shards, and
	 * answers the same when it is asked again.
	 */
	reencoded(done: Reencoded, uploadId: UploadId, lease?: Lease): Promise<void>;

	/**
	 * All worker sets that have segments (those of the trash as well), and all spreads that have objects (without them), from one moment. Kept by the transactions
	 * that change placements and findings: it costs the same for any number of objects. What it costs are the spreads, so
	 * segments of an object should share sets. (Supabase: beyond 5,000 spreads of several sets by pages, each from one moment.)
	 */
	redundancyRows(): Promise<RedundancyRows>;
	/**
	 * Segments of one set, each once, in an order of the store's own that stays while pages are read. `after` is `next` of the
	 * page before, or null. Segments that leave the set meanwhile are left out.
	 */
	segmentsOnSet(
		setId: string,
		options: { after: string | null; limit: number },
	): Promise<{ readonly segments: readonly StoredSegment[]; readonly next: string | null }>;
	/** One segment of the set, near the place that `at` (0 to 1) says: what random samples are drawn from. null when it has none. */
	sampleSet(setId: string, at: number): Promise<StoredSegment | null>;
	/** Objects that have a segment on one of these sets, in the trash or not, at most `limit`, in no order. */
	objectsOnSets(setIds: readonly string[], limit: number): Promise<readonly ObjectId[]>;

	/** Inserts or updates all but the first registration's time, duty and history. `denied` when the id is known with another receipt key; `exists` when another worker id holds the name. */
	saveWorker(worker: WorkerSighting): Promise<void>;
	/** Writes the figures of those that are there; the others are ignored. */
	sawWorkers(seen: readonly WorkerFigures[]): Promise<void>;
	/**
	 * Gives a worker another name while its `lastSeenMs` is still this one: nobody has heard it meanwhile. Answers whether it
	 * has that name now. `exists` when another worker holds it.
	 */
	renameWorker(workerId: WorkerId, to: { name: string; lastSeenMs: number }): Promise<boolean>;
	workers(): Promise<readonly WorkerRow[]>;
	/** False when there is no such worker. */
	setDuty(workerId: WorkerId, duty: WorkerDuty): Promise<boolean>;
	/** No effect on a worker that is not there. */
	saveHistory(workerId: WorkerId, history: string, lease?: Lease): Promise<void>;
	/**
	 * Removes a worker and its delete queue, and remembers that it was forgotten. `conflict` while a placement names it, good or marked, or an intent: what comes
	 * of that would be placed on nobody, or deleted by nobody. False when there was none.
	 */
	forgetWorker(workerId: WorkerId, nowMs: number): Promise<boolean>;
	/** When it was forgotten last, also after it came back; null: never. What it had by then no row names. */
	forgottenAt(workerId: WorkerId): Promise<number | null>;

	/** Those that were ever paused, asked to run, or told their state, by name. */
	jobs(): Promise<readonly JobRow[]>;
	pauseJob(name: string, paused: boolean, nowMs: number): Promise<void>;
	/** Asks for a run now, paused or not. */
	requestRun(name: string, nowMs: number): Promise<void>;
	saveJobState(name: string, state: string, nowMs: number, lease?: Lease): Promise<void>;

	/**
	 * Takes a lease, or keeps it: its holder gets the same number again while it lasts, and `ttlMs` more. Null while
	 * another has it. `holder` is one process of one orchestrator. The store's own clock counts, never a caller's.
	 */
	acquireLease(name: string, options: { holder: string; ttlMs: number }): Promise<Lease | null>;
	/** Ends it now, if it is still that one. */
	releaseLease(lease: Lease): Promise<void>;

	/** The store's own time of day. */
	nowMs(): Promise<number>;

	/** Waits for what is under way, then closes. */
	close(): Promise<void>;
}
