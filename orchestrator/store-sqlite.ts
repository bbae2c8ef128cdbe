/**
 * MetadataStore on SQLite, the embedded default, for one orchestrator. The database lives in a thread of its own
 * (store-sqlite-thread.ts); this side only gathers the calls of one turn of the event loop into one message.
 *
 * Messages are v8-serialized by hand and transferred: `postMessage` of a Buffer would copy all the memory that the Buffer
 * is a view of. Buffers of an answer share the memory of one message.
 */

import { deserialize, serialize } from 'node:v8';
import { Worker } from 'node:worker_threads';
import { DistroError } from '../core/errors.ts';
import type { ObjectId, ShardId, UploadId, VersionId, WorkerId } from '../core/ids.ts';
import type { WorkerDuty } from '../core/model/health.ts';
import type { WrappedClusterKey } from '../core/model/keys-record.ts';
import type { ObjectKind } from '../core/model/manifest.ts';
import type {
	ClusterRow,
	Commit,
	DeletedBy,
	Finding,
	Idempotency,
	IntendedShard,
	Lease,
	MetadataStore,
	ObjectRow,
	Reencoded,
	RepairDone,
	RepairItem,
	RewrappedObject,
	WorkerFigures,
	WorkerSighting,
} from './store.ts';
import { storeClosed } from './store-rules.ts';
import type { Answer, Call, MethodName, Methods, PlainError } from './store-sqlite-batch.ts';
import type { FromThread, ToThread } from './store-sqlite-thread.ts';

type Rest<F> = F extends (sql: never, ...args: infer Args) => unknown ? Args : never;
type Result<F> = F extends (...args: never) => infer Value ? Exclude<Value, DistroError> : never;

/** Who runs calls on the database: a thread, or (in tests) the caller itself. */
export interface CallRunner {
	run(method: MethodName, args: readonly unknown[]): Promise<unknown>;
	/** After what is under way. Idempotent. */
	close(): Promise<void>;
}

/**
 * Opens the database file at `path` and owns it until `close`. Throws `conflict` when another orchestrator has it,
 * `unsupported` when a newer release wrote it, `corrupt` when it is no database. `onFailed` hears once that the thread
 * died: every call fails from then on, and only a new process helps.
 */
export async function openSqliteStore(options: {
	path: string;
	onFailed?: (error: DistroError) => void;
}): Promise<MetadataStore> {
	return new SqliteMetadataStore(await ThreadRunner.open(options.path, options.onFailed ?? (() => {})));
}

export class SqliteMetadataStore implements MetadataStore {
	readonly #runner: CallRunner;

	constructor(runner: CallRunner) {
		this.#runner = runner;
	}

	#call<Name extends MethodName>(method: Name, ...args: Rest<Methods[Name]>): Promise<Result<Methods[Name]>> {
		return this.#runner.run(method, args) as Promise<Result<Methods[Name]>>;
	}

	initCluster(initial: ClusterRow) {
		return this.#call('initCluster', initial);
	}

	cluster() {
		return this.#call('cluster');
	}

	changeClusterKeys(keys: readonly WrappedClusterKey[], revision: number) {
		return this.#call('changeClusterKeys', keys, revision);
	}

	dropClusterKey(generation: number, revision: number) {
		return this.#call('dropClusterKey', generation, revision);
	}

	keyUse(limit: number) {
		return this.#call('keyUse', limit);
	}

	noteUnusedKeys() {
		return this.#call('noteUnusedKeys');
	}

	sawKeys(workerIds: readonly WorkerId[], revision: number) {
		return this.#call('sawKeys', workerIds, revision);
	}

	keysOnVolumes() {
		return this.#call('keysOnVolumes');
	}

	oldKeyObjects(options: { below: number; limit: number }) {
		return this.#call('oldKeyObjects', options);
	}

	oldTrailers(generation: number, options: { after: string | null; limit: number }) {
		return this.#call('oldTrailers', generation, options);
	}

	rewrapObjects(objects: readonly RewrappedObject[], lease?: Lease) {
		return this.#call('rewrapObjects', objects, lease);
	}

	begin(intent: { uploadId: UploadId; objectId: ObjectId; shards: readonly IntendedShard[]; expiresAtMs: number }) {
		return this.#call('begin', intent);
	}

	extend(uploadId: UploadId, shards: readonly IntendedShard[]) {
		return this.#call('extend', uploadId, shards);
	}

	renew(uploadId: UploadId, expiresAtMs: number) {
		return this.#call('renew', uploadId, expiresAtMs);
	}

	async commit(commit: Commit): Promise<ObjectRow> {
		return (await this.#call('commit', commit)) ?? commit.object;
	}

	abort(uploadId: UploadId, nowMs: number) {
		return this.#call('abort', uploadId, nowMs);
	}

	expireIntents(nowMs: number, limit: number, lease?: Lease) {
		return this.#call('expireIntents', nowMs, limit, lease);
	}

	intents(limit: number) {
		return this.#call('intents', limit);
	}

	claimIdempotency(claim: Idempotency, nowMs: number) {
		return this.#call('claimIdempotency', claim, nowMs);
	}

	object(objectId: ObjectId) {
		return this.#call('object', objectId);
	}

	objectWithSegments(objectId: ObjectId, options: { fromSegment: number; limit: number }) {
		return this.#call('objectWithSegments', objectId, options);
	}

	segments(versionId: VersionId, options: { fromSegment: number; limit: number }) {
		return this.#call('segments', versionId, options);
	}

	list(options: { limit: number; after: string | null; kind?: ObjectKind }) {
		return this.#call('list', options);
	}

	wholeObjects(options: { after: string | null; limit: number }) {
		return this.#call('wholeObjects', options);
	}

	deleteObject(objectId: ObjectId, options: DeletedBy & { purgeAtMs: number }) {
		return this.#call('deleteObject', objectId, options);
	}

	undeleteObject(objectId: ObjectId, options: DeletedBy) {
		return this.#call('undeleteObject', objectId, options);
	}

	purgeObject(objectId: ObjectId, options: DeletedBy) {
		return this.#call('purgeObject', objectId, options);
	}

	purgeTrash(nowMs: number, limit: number, lease?: Lease) {
		return this.#call('purgeTrash', nowMs, limit, lease);
	}

	trashed(objectId: ObjectId) {
		return this.#call('trashed', objectId);
	}

	trash(options: { limit: number; after: string | null }) {
		return this.#call('trash', options);
	}

	deletionLog(options: { limit: number; after: number }) {
		return this.#call('deletionLog', options);
	}

	deletionHead() {
		return this.#call('deletionHead');
	}

	deletions(workerId: WorkerId, limit: number) {
		return this.#call('deletions', workerId, limit);
	}

	deletionsDone(workerId: WorkerId, shardIds: readonly ShardId[], lease?: Lease) {
		return this.#call('deletionsDone', workerId, shardIds, lease);
	}

	knownShards(workerId: WorkerId, options: { after: ShardId | null; limit: number }) {
		return this.#call('knownShards', workerId, options);
	}

	queueUnknown(workerId: WorkerId, shardIds: readonly ShardId[], nowMs: number, lease?: Lease) {
		return this.#call('queueUnknown', workerId, shardIds, nowMs, lease);
	}

	counts() {
		return this.#call('counts');
	}

	addFindings(findings: readonly Finding[]) {
		return this.#call('addFindings', findings);
	}

	findings(versionId: VersionId) {
		return this.#call('findings', versionId);
	}

	repairs(options: { nowMs: number; limit: number }) {
		return this.#call('repairs', options);
	}

	deferRepair(item: RepairItem, dueAtMs: number, lease?: Lease) {
		return this.#call('deferRepair', item, dueAtMs, lease);
	}

	async repairDone(done: RepairDone, uploadId: UploadId, lease?: Lease): Promise<void> {
		await this.#call('repairDone', done, uploadId, lease);
	}

	async reencoded(done: Reencoded, uploadId: UploadId, lease?: Lease): Promise<void> {
		await this.#call('reencoded', done, uploadId, lease);
	}

	redundancyRows() {
		return this.#call('redundancyRows');
	}

	segmentsOnSet(setId: string, options: { after: string | null; limit: number }) {
		return this.#call('segmentsOnSet', setId, options);
	}

	sampleSet(setId: string, at: number) {
		return this.#call('sampleSet', setId, at);
	}

	objectsOnSets(setIds: readonly string[], limit: number) {
		return this.#call('objectsOnSets', setIds, limit);
	}

	saveWorker(worker: WorkerSighting) {
		return this.#call('saveWorker', worker);
	}

	sawWorkers(seen: readonly WorkerFigures[]) {
		return this.#call('sawWorkers', seen);
	}

	renameWorker(workerId: WorkerId, to: { name: string; lastSeenMs: number }) {
		return this.#call('renameWorker', workerId, to);
	}

	workers() {
		return this.#call('workers');
	}

	setDuty(workerId: WorkerId, duty: WorkerDuty) {
		return this.#call('setDuty', workerId, duty);
	}

	saveHistory(workerId: WorkerId, history: string, lease?: Lease) {
		return this.#call('saveHistory', workerId, history, lease);
	}

	forgetWorker(workerId: WorkerId, nowMs: number) {
		return this.#call('forgetWorker', workerId, nowMs);
	}

	forgottenAt(workerId: WorkerId) {
		return this.#call('forgottenAt', workerId);
	}

	jobs() {
		return this.#call('jobs');
	}

	pauseJob(name: string, paused: boolean, nowMs: number) {
		return this.#call('pauseJob', name, paused, nowMs);
	}

	requestRun(name: string, nowMs: number) {
		return this.#call('requestRun', name, nowMs);
	}

	saveJobState(name: string, state: string, nowMs: number, lease?: Lease) {
		return this.#call('saveJobState', name, state, nowMs, lease);
	}

	acquireLease(name: string, options: { holder: string; ttlMs: number }) {
		return this.#call('acquireLease', name, options);
	}

	releaseLease(lease: Lease) {
		return this.#call('releaseLease', lease);
	}

	nowMs() {
		return this.#call('nowMs');
	}

	close() {
		return this.#runner.close();
	}
}

interface Waiting {
	readonly resolve: (value: unknown) => void;
	readonly reject: (error: DistroError) => void;
}

class ThreadRunner implements CallRunner {
	readonly #thread: Worker;
	readonly #waiting = new Map<number, Waiting>();
	readonly #exited: Promise<void>;
	readonly #onFailed: (error: DistroError) => void;
	#unsent: Call[] = [];
	#nextId = 0;
	/** Why calls are refused, or null while they are not. */
	#refusal: DistroError | null = null;

	static async open(path: string, onFailed: (error: DistroError) => void): Promise<ThreadRunner> {
		const thread = new Worker(new URL('./store-sqlite-thread.ts', import.meta.url), {
			name: 'metadata',
			workerData: { path },
		});
		const opened = await new Promise<FromThread>((resolve, reject) => {
			thread.once('message', resolve);
			thread.once('error', reject);
		});
		if ('failed' in opened) throw errorOf(opened.failed);
		return new ThreadRunner(thread, onFailed);
	}

	private constructor(thread: Worker, onFailed: (error: DistroError) => void) {
		this.#thread = thread;
		this.#onFailed = onFailed;
		thread.on('message', (answers: Uint8Array) => this.#settle(deserialize(answers) as Answer[]));
		thread.on('error', (cause) => {
			this.#fail(new DistroError('unavailable', 'the metadata thread died; restart this process', { cause }));
		});
		this.#exited = new Promise((resolve) => {
			thread.once('exit', () => {
				const unexpected = this.#refusal === null || this.#waiting.size > 0;
				if (unexpected) this.#fail(new DistroError('unavailable', 'the metadata thread ended; restart this process'));
				resolve();
			});
		});
	}

	run(method: MethodName, args: readonly unknown[]): Promise<unknown> {
		if (this.#refusal !== null) return Promise.reject(this.#refusal);
		return new Promise((resolve, reject) => {
			const id = this.#nextId++;
			this.#waiting.set(id, { resolve, reject });
			// Whatever else this turn of the event loop asks for goes along.
			if (this.#unsent.push({ id, method, args }) === 1) setImmediate(() => this.#send());
		});
	}

	#send(): void {
		const calls = this.#unsent;
		if (calls.length === 0) return;
		this.#unsent = [];
		const bytes = serialize(calls) as Buffer<ArrayBuffer>;
		this.#thread.postMessage(bytes satisfies ToThread, [bytes.buffer]);
	}

	#settle(answers: readonly Answer[]): void {
		for (const { id, value, error } of answers) {
			const waiting = this.#waiting.get(id);
			this.#waiting.delete(id);
			if (error === undefined) waiting?.resolve(value);
			else waiting?.reject(errorOf(error));
		}
	}

	#fail(error: DistroError): void {
		if (this.#refusal === null) this.#onFailed(error);
		this.#refusal = error;
		for (const { reject } of this.#waiting.values()) reject(error);
		this.#waiting.clear();
	}

	async close(): Promise<void> {
		if (this.#refusal === null) {
			this.#refusal = storeClosed();
			this.#send();
			this.#thread.postMessage('close' satisfies ToThread);
		}
		await this.#exited;
	}
}

function errorOf({ kind, message, reason, retryAfterMs }: PlainError): DistroError {
	return new DistroError(kind, message, { reason, retryAfterMs });
}
