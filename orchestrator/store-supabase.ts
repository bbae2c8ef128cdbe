/**
 * MetadataStore on Supabase (or on a Postgres with a PostgREST of one's own), for several orchestrators at once.
 *
 * Every change is one Postgres function (supabase/migrations); many calls share one request and one transaction, each in
 * a sub-transaction of its own (store-supabase-batch.ts). Reads go by keyset pages. Nothing is kept here: another
 * orchestrator may change any row at any time.
 */

import { type DeletionEntry, type DeletionHead, NO_DELETIONS } from '../core/crypto/deletion-log.ts';
import { isId, newId, type ObjectId, type ShardId, type UploadId, type VersionId, type WorkerId } from '../core/ids.ts';
import type { WorkerDuty } from '../core/model/health.ts';
import type { WrappedClusterKey } from '../core/model/keys-record.ts';
import type { ObjectKind } from '../core/model/manifest.ts';
import type { SetCount, SpreadCount } from '../core/model/redundancy-report.ts';
import type { Segment } from '../core/model/segment.ts';
import type { Random } from '../core/ports.ts';
import { refuseMoved } from './move-supabase.ts';
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
	checkCommit,
	checkReencoded,
	cursorOf,
	notAPlace,
	parseCursor,
	parsePlace,
	trashCursorOf,
} from './store-rules.ts';
import { Batches, type StoreCall } from './store-supabase-batch.ts';
import { Breaker } from './store-supabase-breaker.ts';
import { connectSupabase, type SupabaseOptions } from './store-supabase-connect.ts';
import { Refusal, refusalError, type Subject } from './store-supabase-errors.ts';
import * as rows from './store-supabase-rows.ts';
import type { SupabaseRpc } from './store-supabase-rpc.ts';

/** Rows of one page. Objects may carry inline bytes and segments all their roots, so theirs are shorter. */
const PAGE = 1_000;
const OBJECT_PAGE = 250;
const SEGMENT_PAGE = 250;

/** Two lanes keep two of the database's cores busy; more make batches smaller. Leases have one of their own. */
const GROUPED = {
	write: { lanes: 2, maxCalls: 60, deadlineMs: 10_000, timeoutMs: 5_000 },
	read: { lanes: 4, maxCalls: 60, deadlineMs: 5_000, timeoutMs: 2_500 },
};
/** One call that has very many rows. */
const SLOW = { name: 'distro_write_long', lanes: 2, maxCalls: 1, deadlineMs: 180_000, timeoutMs: 120_000 };
const SLOW_CHARS = 1 << 20;
/** One call a request: what the benchmark compares with. */
const SINGLE = {
	write: { ...GROUPED.write, lanes: 32, maxCalls: 1 },
	read: { ...GROUPED.read, lanes: 32, maxCalls: 1 },
};

export interface SupabaseStoreOptions extends SupabaseOptions {
	readonly groupCommit?: boolean;
}

/** Throws as connectSupabase does, and `conflict` while a move of the metadata forbids to use them. */
export async function openSupabaseStore(options: SupabaseStoreOptions): Promise<MetadataStore> {
	const rpc = await connectSupabase(options);
	await refuseMoved(rpc);
	return new SupabaseMetadataStore(rpc, options);
}

class SupabaseMetadataStore implements MetadataStore {
	readonly #writes: Batches;
	readonly #reads: Batches;
	readonly #leases: Batches;
	readonly #slow: Batches;
	readonly #random: Random;

	constructor(rpc: SupabaseRpc, options: SupabaseStoreOptions) {
		const { clock, random } = options;
		const sizes = options.groupCommit === false ? SINGLE : GROUPED;
		const deps = { rpc, breaker: new Breaker({ clock, random }), clock, random };
		this.#slow = new Batches(deps, SLOW);
		this.#writes = new Batches(deps, { name: 'distro_write', ...sizes.write, slow: this.#slow });
		this.#reads = new Batches(deps, { name: 'distro_read', ...sizes.read });
		// A renewal waits for writes under that lease: it must not hold any other row meanwhile.
		this.#leases = new Batches(deps, { name: 'distro_write', ...sizes.write, lanes: 1 });
		this.#random = random;
	}

	async #write(call: StoreCall, subject: Subject = {}): Promise<unknown> {
		try {
			return await ((call.chars ?? 0) > SLOW_CHARS ? this.#slow : this.#writes).run(call);
		} catch (error) {
			if (error instanceof Refusal) throw refusalError(error, subject);
			throw error;
		}
	}

	#read(method: string, args: object): Promise<unknown> {
		return this.#reads.run({ method, args, key: JSON.stringify(args) });
	}

	/** Page by page, each going on after the last row of the one before. */
	async #pages<Row>(
		method: string,
		args: object,
		options: { limit: number; page: number; after: unknown; placeOf: (row: Row) => unknown },
	): Promise<Row[]> {
		const found: Row[] = [];
		let { after } = options;
		while (found.length < options.limit) {
			const limit = Math.min(options.page, options.limit - found.length);
			const page = (await this.#read(method, { ...args, after, limit })) as Row[];
			found.push(...page);
			const last = page.at(-1);
			if (last === undefined || page.length < limit) break;
			after = options.placeOf(last);
		}
		return found;
	}

	async initCluster(initial: ClusterRow): Promise<ClusterRow> {
		const row = await this.#write({ method: 'initCluster', args: rows.clusterArgs(initial), key: '' });
		return rows.toCluster(row as rows.ClusterJson);
	}

	async cluster(): Promise<ClusterRow | null> {
		const row = await this.#read('cluster', {});
		return row === null ? null : rows.toCluster(row as rows.ClusterJson);
	}

	async changeClusterKeys(keys: readonly WrappedClusterKey[], revision: number): Promise<ClusterRow> {
		const args = { keys: keys.map(rows.keyArgs), revision };
		return rows.toCluster((await this.#write({ method: 'changeClusterKeys', args, key: '' })) as rows.ClusterJson);
	}

	async dropClusterKey(generation: number, revision: number): Promise<ClusterRow> {
		const args = { generation, revision };
		return rows.toCluster((await this.#write({ method: 'dropClusterKey', args, key: '' })) as rows.ClusterJson);
	}

	async keyUse(limit: number): Promise<readonly KeyUse[]> {
		const uses = (await this.#read('keyUse', { limit })) as rows.KeyUseJson[];
		return uses.map((use) => ({ ...use, generation: Number(use.generation) }));
	}

	async noteUnusedKeys(): Promise<void> {
		await this.#write({ method: 'noteUnusedKeys', args: {}, key: '' });
	}

	async sawKeys(workerIds: readonly WorkerId[], revision: number): Promise<void> {
		await this.#write({ method: 'sawKeys', args: { workers: workerIds, revision }, key: '' });
	}

	async keysOnVolumes(): Promise<ReadonlyMap<WorkerId, number>> {
		const found = await this.#pages<[WorkerId, string]>(
			'keysOnVolumes',
			{},
			{ limit: Number.POSITIVE_INFINITY, page: PAGE, after: null, placeOf: ([workerId]) => workerId },
		);
		return new Map(found.map(([workerId, revision]) => [workerId, Number(revision)]));
	}

	async oldKeyObjects(options: { below: number; limit: number }): Promise<readonly WrappedDataKeyRow[]> {
		return ((await this.#read('oldKeyObjects', options)) as rows.WrappedDataKeyJson[]).map(rows.toWrappedDataKey);
	}

	async oldTrailers(
		generation: number,
		options: { after: string | null; limit: number },
	): Promise<{ readonly trailers: readonly OldTrailers[]; readonly next: string | null }> {
		const after = options.after === null ? null : parsePlace(options.after);
		// One more than asked for tells whether there is another page.
		const found = await this.#pages<[rows.StoredSegmentJson, number[]]>(
			'oldTrailers',
			{ generation },
			{
				limit: options.limit + 1,
				page: SEGMENT_PAGE,
				after: after === null ? null : [after.objectNo, after.segment],
				placeOf: ([{ place }]) => place,
			},
		);
		const page = found.slice(0, options.limit);
		const isLast = page.length === found.length;
		return {
			trailers: page.map(([stored, shardIndexes]) => ({ stored: rows.toStoredSegment(stored), shardIndexes })),
			next: isLast ? null : (page.at(-1)?.[0].place.join('.') ?? null),
		};
	}

	async rewrapObjects(objects: readonly RewrappedObject[], lease?: Lease): Promise<number> {
		const args = { objects: objects.map(rows.rewrappedArgs) };
		return Number(await this.#write({ method: 'rewrapObjects', args, key: objects[0]?.versionId ?? '', lease }));
	}

	async begin(intent: {
		uploadId: UploadId;
		objectId: ObjectId;
		shards: readonly IntendedShard[];
		expiresAtMs: number;
	}): Promise<void> {
		const { uploadId } = intent;
		const args = { ...intent, shards: rows.pairs(intent.shards) };
		await this.#write({ method: 'begin', args, key: uploadId }, { uploadId });
	}

	async extend(uploadId: UploadId, shards: readonly IntendedShard[]): Promise<void> {
		const args = { uploadId, shards: rows.pairs(shards) };
		await this.#write({ method: 'extend', args, key: uploadId }, { uploadId });
	}

	async renew(uploadId: UploadId, expiresAtMs: number): Promise<void> {
		await this.#write({ method: 'renew', args: { uploadId, expiresAtMs }, key: uploadId }, { uploadId });
	}

	async commit(commit: Commit): Promise<ObjectRow> {
		const { uploadId, objectId } = commit.object;
		checkCommit(commit);
		const args = rows.commitArgs(commit);
		const chars = 1_000 + 1_500 * commit.segments.length + 2 * (commit.object.inline?.length ?? 0);
		const known = await this.#write({ method: 'commit', args, key: uploadId, chars }, { uploadId, objectId });
		return known === null ? commit.object : rows.toObject(known as rows.ObjectJson);
	}

	async abort(uploadId: UploadId, nowMs: number): Promise<void> {
		await this.#write({ method: 'abort', args: { uploadId, nowMs }, key: uploadId });
	}

	async expireIntents(nowMs: number, limit: number, lease?: Lease): Promise<number> {
		return (await this.#write({ method: 'expireIntents', args: { nowMs, limit }, key: '', lease })) as number;
	}

	async intents(limit: number): Promise<readonly IntentRow[]> {
		const found = await this.#pages<rows.IntentJson>(
			'intents',
			{},
			{ limit, page: PAGE, after: null, placeOf: ({ expiresAtMs, uploadId }) => [expiresAtMs, uploadId] },
		);
		return found.map(rows.toIntent);
	}

	async claimIdempotency(claim: Idempotency, nowMs: number): Promise<IdempotencyClaim> {
		const { owner, key, fingerprint, uploadId, expiresAtMs } = claim;
		const texts = { owner: rows.storable(owner), key: rows.storable(key), fingerprint: rows.storable(fingerprint) };
		const args = { ...texts, uploadId, expiresAtMs, nowMs };
		return (await this.#write({ method: 'claimIdempotency', args, key: uploadId })) as IdempotencyClaim;
	}

	async object(objectId: ObjectId): Promise<ObjectRow | null> {
		if (!isId(objectId)) return null;
		const row = await this.#read('object', { objectId });
		return row === null ? null : rows.toObject(row as rows.ObjectJson);
	}

	async objectWithSegments(
		objectId: ObjectId,
		options: { fromSegment: number; limit: number },
	): Promise<{ object: ObjectRow; segments: readonly Segment[] } | null> {
		if (!isId(objectId)) return null;
		const found = await this.#read('objectWithSegments', { objectId, ...options });
		if (found === null) return null;
		const { object, segments } = found as { object: rows.ObjectJson; segments: rows.SegmentJson[] };
		return { object: rows.toObject(object), segments: segments.map(rows.toSegment) };
	}

	async segments(versionId: VersionId, options: { fromSegment: number; limit: number }): Promise<readonly Segment[]> {
		const found = (await this.#read('segments', { versionId, ...options })) as rows.SegmentJson[];
		return found.map(rows.toSegment);
	}

	async list(options: { limit: number; after: string | null; kind?: ObjectKind }): Promise<ObjectPage> {
		const after = options.after === null ? null : parseCursor(options.after);
		// One more than asked for tells whether there is another page.
		const found = await this.#pages<rows.ObjectJson>(
			'list',
			{ kind: options.kind ?? 'user' },
			{
				limit: options.limit + 1,
				page: OBJECT_PAGE,
				after: after === null ? null : [after.atMs, after.objectId],
				placeOf: ({ createdAtMs, objectId }) => [createdAtMs, objectId],
			},
		);
		const objects = found.slice(0, options.limit).map(rows.toObject);
		const last = objects.at(-1);
		return { objects, next: last === undefined || found.length <= options.limit ? null : cursorOf(last) };
	}

	async wholeObjects(options: { after: string | null; limit: number }): Promise<WholePage> {
		const { after } = options;
		if (after !== null && !/^\d{1,18}$/.test(after)) throw notAPlace();
		const limit = Math.min(options.limit, OBJECT_PAGE);
		const found = (await this.#read('wholeObjects', { after: after ?? '0', limit })) as rows.WholeJson[];
		// A page that ends early because of its segments is not the last one: only an empty one is.
		return { objects: found.map(rows.toWhole), next: found.at(-1)?.place ?? null };
	}

	deleteObject(objectId: ObjectId, options: DeletedBy & { purgeAtMs: number }): Promise<boolean> {
		return this.#dispose('deleteObject', objectId, options);
	}

	undeleteObject(objectId: ObjectId, options: DeletedBy): Promise<boolean> {
		return this.#dispose('undeleteObject', objectId, options);
	}

	purgeObject(objectId: ObjectId, options: DeletedBy): Promise<boolean> {
		return this.#dispose('purgeObject', objectId, options);
	}

	async #dispose(method: string, objectId: ObjectId, options: DeletedBy): Promise<boolean> {
		if (!isId(objectId)) return false;
		const args = { ...options, by: rows.storable(options.by), objectId, callId: newId(this.#random) };
		return (await this.#write({ method, args, key: objectId })) as boolean;
	}

	async purgeTrash(nowMs: number, limit: number, lease?: Lease): Promise<number> {
		return (await this.#write({ method: 'purgeTrash', args: { nowMs, limit }, key: '', lease })) as number;
	}

	async trashed(objectId: ObjectId): Promise<TrashedObject | null> {
		if (!isId(objectId)) return null;
		const row = await this.#read('trashed', { objectId });
		return row === null ? null : rows.toTrashed(row as rows.TrashedJson);
	}

	async trash(options: { limit: number; after: string | null }): Promise<TrashPage> {
		const after = options.after === null ? null : parseCursor(options.after);
		// One more than asked for tells whether there is another page.
		const found = await this.#pages<rows.TrashedJson>(
			'trash',
			{},
			{
				limit: options.limit + 1,
				page: OBJECT_PAGE,
				after: after === null ? null : [after.atMs, after.objectId],
				placeOf: ({ purgeAtMs, objectId }) => [purgeAtMs, objectId],
			},
		);
		const objects = found.slice(0, options.limit).map(rows.toTrashed);
		const last = objects.at(-1);
		return { objects, next: last === undefined || found.length <= options.limit ? null : trashCursorOf(last) };
	}

	async deletionLog(options: { limit: number; after: number }): Promise<readonly DeletionEntry[]> {
		const { limit, after } = options;
		const placeOf = ({ number }: rows.DeletionJson) => number;
		const found = await this.#pages<rows.DeletionJson>('deletionLog', {}, { limit, page: PAGE, after, placeOf });
		return found.map(rows.toDeletion);
	}

	async deletionHead(): Promise<DeletionHead> {
		const row = await this.#read('deletionHead', {});
		return row === null ? NO_DELETIONS : rows.toDeletionHead(row as rows.DeletionHeadJson);
	}

	async deletions(workerId: WorkerId, limit: number): Promise<readonly QueuedDeletion[]> {
		const found = await this.#pages<[string, ShardId, boolean]>(
			'deletions',
			{ workerId },
			{ limit, page: PAGE, after: null, placeOf: ([itemNo]) => itemNo },
		);
		return found.map(([, shardId, forGood]) => ({ shardId, forGood }));
	}

	async deletionsDone(workerId: WorkerId, shardIds: readonly ShardId[], lease?: Lease): Promise<void> {
		await this.#write({ method: 'deletionsDone', args: { workerId, shardIds }, key: workerId, lease });
	}

	async knownShards(
		workerId: WorkerId,
		options: { after: ShardId | null; limit: number },
	): Promise<readonly KnownShard[]> {
		const found = await this.#pages<rows.KnownShardJson>(
			'knownShards',
			{ workerId },
			{ limit: options.limit, page: PAGE, after: options.after, placeOf: ([shardId]) => shardId },
		);
		return found.map(rows.toKnownShard);
	}

	async queueUnknown(workerId: WorkerId, shardIds: readonly ShardId[], nowMs: number, lease?: Lease): Promise<number> {
		const args = { workerId, shardIds, nowMs };
		return (await this.#write({ method: 'queueUnknown', args, key: workerId, lease })) as number;
	}

	async counts(): Promise<StoreCounts> {
		const counts = (await this.#read('counts', {})) as Record<keyof StoreCounts, string>;
		return {
			objects: Number(counts.objects),
			bytes: Number(counts.bytes),
			trashObjects: Number(counts.trashObjects),
			trashBytes: Number(counts.trashBytes),
			intents: Number(counts.intents),
			deletions: Number(counts.deletions),
			repairs: Number(counts.repairs),
		};
	}

	async addFindings(findings: readonly Finding[]): Promise<readonly ShardId[]> {
		const key = findings[0]?.shardId ?? '';
		const args = { findings: findings.map(rows.findingArgs) };
		return (await this.#write({ method: 'addFindings', args, key })) as ShardId[];
	}

	async findings(versionId: VersionId): Promise<readonly Finding[]> {
		const found = await this.#pages<rows.FindingJson>(
			'findings',
			{ versionId },
			{ limit: Number.POSITIVE_INFINITY, page: PAGE, after: null, placeOf: ({ shardId }) => shardId },
		);
		return found.map(rows.toFinding);
	}

	async repairs(options: { nowMs: number; limit: number }): Promise<readonly RepairItem[]> {
		const found = await this.#pages<rows.RepairJson>(
			'repairs',
			{ nowMs: options.nowMs },
			{ limit: options.limit, page: PAGE, after: null, placeOf: ({ place }) => place },
		);
		return found.map(rows.toRepair);
	}

	async deferRepair(item: RepairItem, dueAtMs: number, lease?: Lease): Promise<void> {
		await this.#write({ method: 'deferRepair', args: { item, dueAtMs }, key: item.objectId, lease });
	}

	async repairDone(done: RepairDone, uploadId: UploadId, lease?: Lease): Promise<void> {
		const { item, placement, keyGeneration, nowMs } = done;
		const { shardId, workerId } = placement;
		const args = { item, uploadId, shardId, workerId, keyGeneration, nowMs };
		const answer = await this.#write({ method: 'repairDone', args, key: uploadId, lease }, { uploadId });
		if (answer !== null) throw refusalError({ word: (answer as { refused: string }).refused, detail: '' }, {});
	}

	async reencoded(done: Reencoded, uploadId: UploadId, lease?: Lease): Promise<void> {
		checkReencoded(done);
		const args = { ...rows.reencodedArgs(done), uploadId };
		const answer = await this.#write({ method: 'reencoded', args, key: uploadId, lease }, { uploadId });
		if (answer !== null) throw refusalError({ word: (answer as { refused: string }).refused, detail: '' }, {});
	}

	async redundancyRows(): Promise<RedundancyRows> {
		const sets = new Map<string, SetCount>();
		const spreads: SpreadCount[] = [];
		let after: string | null = null;
		do {
			const page = (await this.#read('redundancyRows', { after })) as rows.RedundancyJson;
			const found = rows.toRedundancy(page);
			for (const set of found.sets) if (!sets.has(set.setId)) sets.set(set.setId, set);
			spreads.push(...found.spreads);
			after = page.next ?? null;
		} while (after !== null);
		return { sets: [...sets.values()], spreads };
	}

	async segmentsOnSet(
		setId: string,
		options: { after: string | null; limit: number },
	): Promise<{ readonly segments: readonly StoredSegment[]; readonly next: string | null }> {
		const after = options.after === null ? null : parsePlace(options.after);
		if (!isId(setId)) return { segments: [], next: null };
		// One more than asked for tells whether there is another page.
		const found = await this.#pages<rows.StoredSegmentJson>(
			'segmentsOnSet',
			{ setId },
			{
				limit: options.limit + 1,
				page: SEGMENT_PAGE,
				after: after === null ? null : [after.objectNo, after.segment],
				placeOf: ({ place }) => place,
			},
		);
		const page = found.slice(0, options.limit);
		const isLast = page.length === found.length;
		return { segments: page.map(rows.toStoredSegment), next: isLast ? null : (page.at(-1)?.place.join('.') ?? null) };
	}

	async sampleSet(setId: string, at: number): Promise<StoredSegment | null> {
		if (!isId(setId)) return null;
		const row = await this.#read('sampleSet', { setId, at });
		return row === null ? null : rows.toStoredSegment(row as rows.StoredSegmentJson);
	}

	async objectsOnSets(setIds: readonly string[], limit: number): Promise<readonly ObjectId[]> {
		return (await this.#read('objectsOnSets', { setIds: setIds.filter(isId), limit })) as ObjectId[];
	}

	async saveWorker(worker: WorkerSighting): Promise<void> {
		const { workerId, name } = worker;
		await this.#write({ method: 'saveWorker', args: rows.workerArgs(worker), key: workerId }, { name });
	}

	async sawWorkers(seen: readonly WorkerFigures[]): Promise<void> {
		if (seen.length > 0) await this.#write({ method: 'sawWorkers', args: { seen }, key: '' });
	}

	async renameWorker(workerId: WorkerId, to: { name: string; lastSeenMs: number }): Promise<boolean> {
		const name = rows.storable(to.name);
		const args = { workerId, name, lastSeenMs: to.lastSeenMs };
		return (await this.#write({ method: 'renameWorker', args, key: workerId }, { name })) as boolean;
	}

	async workers(): Promise<readonly WorkerRow[]> {
		const found = await this.#pages<rows.WorkerJson>(
			'workers',
			{},
			{ limit: Number.POSITIVE_INFINITY, page: PAGE, after: null, placeOf: ({ name }) => name },
		);
		return found.map(rows.toWorker);
	}

	async setDuty(workerId: WorkerId, duty: WorkerDuty): Promise<boolean> {
		return (await this.#write({ method: 'setDuty', args: { workerId, duty }, key: workerId })) as boolean;
	}

	async saveHistory(workerId: WorkerId, history: string, lease?: Lease): Promise<void> {
		const args = { workerId, history: rows.storable(history) };
		await this.#write({ method: 'saveHistory', args, key: workerId, lease });
	}

	async forgetWorker(workerId: WorkerId, nowMs: number): Promise<boolean> {
		const args = { workerId, nowMs, callId: newId(this.#random) };
		// Its delete queue may be long.
		const call = { method: 'forgetWorker', args, key: workerId, chars: SLOW_CHARS + 1 };
		return (await this.#write(call)) as boolean;
	}

	async forgottenAt(workerId: WorkerId): Promise<number | null> {
		const atMs = await this.#read('forgottenAt', { workerId });
		return atMs === null ? null : Number(atMs);
	}

	async jobs(): Promise<readonly JobRow[]> {
		const found = await this.#pages<rows.JobJson>(
			'jobs',
			{},
			{ limit: Number.POSITIVE_INFINITY, page: PAGE, after: null, placeOf: ({ name }) => name },
		);
		return found.map(rows.toJob);
	}

	async pauseJob(name: string, paused: boolean, nowMs: number): Promise<void> {
		await this.#write({ method: 'pauseJob', args: { name: rows.storable(name), paused, nowMs }, key: name });
	}

	async requestRun(name: string, nowMs: number): Promise<void> {
		const args = { name: rows.storable(name), nowMs, callId: newId(this.#random) };
		await this.#write({ method: 'requestRun', args, key: name });
	}

	async saveJobState(name: string, state: string, nowMs: number, lease?: Lease): Promise<void> {
		const args = { name: rows.storable(name), state: rows.storable(state), nowMs };
		await this.#write({ method: 'saveJobState', args, key: name, lease });
	}

	async acquireLease(name: string, options: { holder: string; ttlMs: number }): Promise<Lease | null> {
		const fencing = await this.#leases.run({ method: 'acquireLease', args: { name, ...options }, key: name });
		return fencing === null ? null : { name, fencing: Number(fencing) };
	}

	async releaseLease({ name, fencing }: Lease): Promise<void> {
		await this.#leases.run({ method: 'releaseLease', args: { name, fencing: String(fencing) }, key: name });
	}

	async nowMs(): Promise<number> {
		return (await this.#read('clock', {})) as number;
	}

	async close(): Promise<void> {
		await Promise.all([this.#writes.close(), this.#reads.close(), this.#leases.close()]);
		await this.#slow.close();
	}
}
