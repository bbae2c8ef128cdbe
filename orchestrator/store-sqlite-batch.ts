/**
 * Many calls, one transaction, one fsync: the group commit of the SQLite adapter.
 *
 * Each call runs in its own savepoint, so that its refusal undoes it alone; nothing is answered before the COMMIT has
 * returned. Where the transaction itself fails, every call of it does.
 */

import { asDistroError, DistroError, type ErrorKind } from '../core/errors.ts';
import * as keys from './store-sqlite-keys.ts';
import * as known from './store-sqlite-known.ts';
import * as leases from './store-sqlite-leases.ts';
import * as objects from './store-sqlite-objects.ts';
import * as redundancy from './store-sqlite-redundancy.ts';
import * as reencodings from './store-sqlite-reencodings.ts';
import * as repairs from './store-sqlite-repairs.ts';
import { type Sql, sqliteError } from './store-sqlite-sql.ts';
import * as trash from './store-sqlite-trash.ts';
import * as uploads from './store-sqlite-uploads.ts';
import * as workers from './store-sqlite-workers.ts';

export const READS = {
	cluster: keys.cluster,
	keyUse: keys.keyUse,
	keysOnVolumes: keys.keysOnVolumes,
	oldKeyObjects: keys.oldKeyObjects,
	oldTrailers: keys.oldTrailers,
	intents: uploads.intents,
	object: objects.object,
	objectWithSegments: objects.objectWithSegments,
	segments: objects.segments,
	list: objects.list,
	wholeObjects: objects.wholeObjects,
	trashed: trash.trashed,
	trash: trash.trash,
	deletionLog: trash.deletionLog,
	deletionHead: trash.deletionHead,
	deletions: trash.deletions,
	knownShards: known.knownShards,
	counts: objects.counts,
	findings: repairs.findings,
	repairs: repairs.repairs,
	redundancyRows: redundancy.redundancyRows,
	segmentsOnSet: redundancy.segmentsOnSet,
	sampleSet: redundancy.sampleSet,
	objectsOnSets: redundancy.objectsOnSets,
	workers: workers.workers,
	forgottenAt: workers.forgottenAt,
	jobs: workers.jobs,
	nowMs: () => Date.now(),
};

export const WRITES = {
	initCluster: keys.initCluster,
	changeClusterKeys: keys.changeClusterKeys,
	dropClusterKey: keys.dropClusterKey,
	noteUnusedKeys: keys.noteUnusedKeys,
	sawKeys: keys.sawKeys,
	rewrapObjects: keys.rewrapObjects,
	begin: uploads.begin,
	extend: uploads.extend,
	renew: uploads.renew,
	commit: uploads.commit,
	abort: uploads.abort,
	expireIntents: uploads.expireIntents,
	claimIdempotency: uploads.claimIdempotency,
	deleteObject: trash.deleteObject,
	undeleteObject: trash.undeleteObject,
	purgeObject: trash.purgeObject,
	purgeTrash: trash.purgeTrash,
	deletionsDone: trash.deletionsDone,
	queueUnknown: known.queueUnknown,
	addFindings: repairs.addFindings,
	deferRepair: repairs.deferRepair,
	repairDone: repairs.repairDone,
	reencoded: reencodings.reencoded,
	saveWorker: workers.saveWorker,
	sawWorkers: workers.sawWorkers,
	renameWorker: workers.renameWorker,
	setDuty: workers.setDuty,
	saveHistory: workers.saveHistory,
	forgetWorker: workers.forgetWorker,
	pauseJob: workers.pauseJob,
	requestRun: workers.requestRun,
	saveJobState: workers.saveJobState,
	acquireLease: leases.acquireLease,
	releaseLease: leases.releaseLease,
};

export type Methods = typeof READS & typeof WRITES;
export type MethodName = keyof Methods;

/** One call as it crosses to the thread. */
export interface Call {
	readonly id: number;
	readonly method: MethodName;
	readonly args: readonly unknown[];
}

/** Errors cross as plain data. */
export interface PlainError {
	readonly kind: ErrorKind;
	readonly message: string;
	readonly reason: string | undefined;
	readonly retryAfterMs: number | undefined;
}

export interface Answer {
	readonly id: number;
	readonly value?: unknown;
	readonly error?: PlainError;
}

type Operation = (sql: Sql, ...args: unknown[]) => unknown;

export function isRead({ method }: Call): boolean {
	return method in READS;
}

/** Outside a transaction of this connection: sees committed data only. */
export function answerReads(sql: Sql, calls: readonly Call[]): Answer[] {
	return calls.map(({ id, method, args }) => {
		try {
			return { id, value: (READS[method as keyof typeof READS] as Operation)(sql, ...args) };
		} catch (thrown) {
			return { id, error: plainError(thrown) };
		}
	});
}

export function answerWrites(sql: Sql, calls: readonly Call[]): Answer[] {
	if (calls.length === 0) return [];
	try {
		sql.run('BEGIN IMMEDIATE');
		const answers = calls.map((call) => answerWrite(sql, call));
		sql.run('COMMIT');
		return answers;
	} catch (thrown) {
		const error = plainError(thrown);
		if (sql.inTransaction) sql.run('ROLLBACK');
		return calls.map(({ id }) => ({ id, error }));
	}
}

function answerWrite(sql: Sql, { id, method, args }: Call): Answer {
	sql.run('SAVEPOINT call');
	try {
		const value = (WRITES[method as keyof typeof WRITES] as Operation)(sql, ...args);
		sql.run('RELEASE call');
		return value instanceof DistroError ? { id, error: plainError(value) } : { id, value };
	} catch (thrown) {
		// SQLite gave up the whole transaction (the disk is full, say), and with it the calls before this one.
		if (!sql.inTransaction) throw thrown;
		sql.run('ROLLBACK TO call');
		sql.run('RELEASE call');
		return { id, error: plainError(thrown) };
	}
}

export function plainError(thrown: unknown): PlainError {
	const { kind, message, reason, retryAfterMs } = asDistroError(sqliteError(thrown));
	return { kind, message, reason, retryAfterMs };
}
