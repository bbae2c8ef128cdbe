/**
 * Audits: each worker is asked so many times an hour for one cell of a random shard of its own, and must prove it alone,
 * against the root in the metadata (core/crypto/audit.ts). What comes of it is kept apart: `ok`; `corrupt` and `missing` are
 * findings and lead to repair; `timeout` and `offline` say something of the worker and nothing of the shard.
 *
 * It finds what scrubbing can't: files that are gone, and workers that lie. It reads no shard whole and judges nobody.
 */

import { shardCellLength, shardRows } from '../core/codec/layout.ts';
import { auditFault } from '../core/crypto/audit.ts';
import { LEAF_BYTES } from '../core/crypto/digest.ts';
import { publicKeyFromRaw } from '../core/crypto/sign.ts';
import { asDistroError } from '../core/errors.ts';
import type { ObjectId, ShardId, VersionId, WorkerId } from '../core/ids.ts';
import { AUDIT_DEADLINE_MS } from '../core/limits.ts';
import { AUDIT_NONCE_BYTES } from '../core/model/audit.ts';
import type { WorkerState } from '../core/model/health.ts';
import type { AuditOutcome } from '../core/model/history.ts';
import type { Segment } from '../core/model/segment.ts';
import type { Clock, Random, WorkerRef } from '../core/ports.ts';
import type { GrpcShardTransport } from '../platform/shard-transport.ts';
import type { Findings } from './findings.ts';
import { pause } from './jobs.ts';
import type { ExclusiveJob } from './leases.ts';
import type { MetadataStore, WorkerRow } from './store.ts';

const HOUR_MS = 60 * 60_000;
/** A worker that joined is asked after this at the latest. */
const LOOK_EVERY_MS = 5_000;
/** What is missing is asked for once more after this. */
const CONFIRM_MS = 1_000;
/**
 * One bad shard is rarely alone (a folder, a disk): after it a worker is asked so much oftener, until so many answers in a
 * row were good.
 */
const DOUBT_FACTOR = 60;
const DOUBT_AUDITS = 30;

export interface DrawnShard {
	readonly objectId: ObjectId;
	readonly versionId: VersionId;
	readonly segment: Segment;
	readonly shardIndex: number;
	readonly shardId: ShardId;
}

export interface AuditDeps {
	readonly workers: {
		rows(): readonly { row: Pick<WorkerRow, 'workerId' | 'receiptKey'>; state: WorkerState }[];
		ref(workerId: WorkerId): WorkerRef | null;
	};
	readonly transport: Pick<GrpcShardTransport, 'audit'>;
	readonly store: Pick<MetadataStore, 'segments'>;
	readonly findings: Pick<Findings, 'add' | 'has'>;
	/** A random shard of this worker; null when it has none. */
	readonly drawShard: (workerId: WorkerId) => Promise<DrawnShard | null>;
	readonly clock: Clock;
	readonly random: Random;
	/** Of each worker; 0: none at all. */
	readonly perHour: number;
	readonly onOutcome: (workerId: WorkerId, outcome: AuditOutcome) => void;
}

interface Duty {
	dueMs: number;
	/** Good answers that are still wanted before it is asked as seldom as the others. */
	doubt: number;
}

export function auditJob(deps: AuditDeps): ExclusiveJob {
	const { workers, clock, random, perHour, onOutcome } = deps;
	const duties = new Map<WorkerId, Duty>();
	const meanMs = HOUR_MS / Math.max(1, perHour);
	// Uneven, so that nobody can prepare.
	const spread = () => 0.5 + random.bytes(4).readUInt32LE() / 2 ** 32;

	const auditOne = async (worker: Audited, duty: Duty, signal: AbortSignal): Promise<void> => {
		try {
			const outcome = await audit(deps, worker, signal);
			if (outcome === null) return;
			onOutcome(worker.workerId, outcome);
			if (outcome === 'corrupt' || outcome === 'missing') duty.doubt = DOUBT_AUDITS;
			else if (outcome === 'ok' && duty.doubt > 0) duty.doubt--;
		} finally {
			const usualMs = meanMs * spread();
			duty.dueMs = clock.monotonicMs() + (duty.doubt > 0 ? usualMs / DOUBT_FACTOR : usualMs);
		}
	};

	return {
		name: 'audit',
		state: () => ({
			audits_per_hour: perHour,
			workers_in_doubt: [...duties.values()].filter(({ doubt }) => doubt > 0).length,
		}),
		step: async (signal, _lease, asked = false) => {
			if (perHour === 0 && !asked) return HOUR_MS;
			const known = workers.rows();
			for (const workerId of duties.keys()) {
				if (!known.some(({ row }) => row.workerId === workerId)) duties.delete(workerId);
			}
			const nowMs = clock.monotonicMs();
			const due: Promise<void>[] = [];
			for (const { row, state } of known) {
				let duty = duties.get(row.workerId);
				if (duty === undefined) {
					duty = { dueMs: nowMs + meanMs * (spread() - 0.5), doubt: 0 };
					duties.set(row.workerId, duty);
				}
				if (asked || duty.dueMs <= nowMs) due.push(auditOne({ ...row, state }, duty, signal));
			}
			// One that does not answer holds up the others by one deadline, and all of them lose as much.
			const results = await Promise.allSettled(due);
			const failed = results.find((result) => result.status === 'rejected');
			if (failed !== undefined) throw failed.reason;
			const nextMs = Math.min(...[...duties.values()].map(({ dueMs }) => dueMs)) - clock.monotonicMs();
			return Math.max(asked ? 1 : 0, Math.min(LOOK_EVERY_MS, nextMs));
		},
	};
}

interface Audited {
	readonly workerId: WorkerId;
	readonly receiptKey: Buffer;
	readonly state: WorkerState;
}

/** Null when there was nothing to ask for, or nothing that the worker can answer. */
async function audit(deps: AuditDeps, worker: Audited, signal: AbortSignal): Promise<AuditOutcome | null> {
	const ref = deps.workers.ref(worker.workerId);
	if (ref === null || worker.state === 'suspect' || worker.state === 'lost') return 'offline';
	const drawn = await deps.drawShard(worker.workerId);
	// What is known to be wrong is being mended.
	if (drawn === null || deps.findings.has(drawn.shardId)) return null;
	const question = { ref, worker, drawn };
	let { outcome, detail } = await ask(deps, question);
	if (outcome === 'missing') {
		// Deleted or moved since it was drawn, or the moment of a restart: asked again it must say the same.
		await pause(deps.clock, CONFIRM_MS, signal);
		if (signal.aborted) return null;
		({ outcome, detail } = await ask(deps, question));
	}
	if (outcome !== 'missing' && outcome !== 'corrupt') return outcome;
	if (!(await isPlaced(deps, worker.workerId, drawn))) return null;
	await deps.findings.add([
		{ shardId: drawn.shardId, workerId: worker.workerId, kind: outcome, detail: `audit: ${detail}` },
	]);
	return outcome;
}

async function ask(
	deps: AuditDeps,
	{ ref, worker, drawn }: { ref: WorkerRef; worker: Audited; drawn: DrawnShard },
): Promise<{ outcome: AuditOutcome | null; detail: string }> {
	const { transport, random } = deps;
	const { segment, shardIndex, shardId } = drawn;
	const leaves = shardRows(segment, shardIndex);
	const row = random.bytes(4).readUInt32LE() % leaves;
	const question = { shardId, row, nonce: random.bytes(AUDIT_NONCE_BYTES) };
	try {
		const answer = await transport.audit(ref, question, { deadlineMs: AUDIT_DEADLINE_MS });
		const fault = auditFault(question, answer, {
			workerId: worker.workerId,
			root: segment.roots.subarray(shardIndex * LEAF_BYTES, (shardIndex + 1) * LEAF_BYTES),
			leaves,
			cellBytes: shardCellLength(segment, shardIndex, row),
			publicKey: publicKeyFromRaw(worker.receiptKey),
		});
		return fault === null ? { outcome: 'ok', detail: '' } : { outcome: 'corrupt', detail: fault };
	} catch (thrown) {
		const { kind, message } = asDistroError(thrown);
		if (kind === 'not_found') return { outcome: 'missing', detail: message };
		if (kind === 'corrupt') return { outcome: 'corrupt', detail: message };
		// A newer release wrote the shard, or the worker is of an older one: nothing was learnt about either.
		if (kind === 'unsupported') return { outcome: null, detail: message };
		// Whatever else it is, nothing was learnt about the shard.
		return { outcome: kind === 'timeout' ? 'timeout' : 'offline', detail: message };
	}
}

/** Still, or it was deleted or repaired while it was asked for. */
async function isPlaced({ store }: AuditDeps, workerId: WorkerId, drawn: DrawnShard): Promise<boolean> {
	const [segment] = await store.segments(drawn.versionId, { fromSegment: drawn.segment.index, limit: 1 });
	return (
		segment?.placements.some((placed) => placed.shardId === drawn.shardId && placed.workerId === workerId) ?? false
	);
}
