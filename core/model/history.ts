/**
 * How a worker behaved so far, and what that says about the time to come: pure functions over a small record that the
 * store keeps for each worker. Old behaviour fades, so that a mended machine is trusted again.
 */

export const AUDIT_OUTCOMES = ['ok', 'corrupt', 'missing', 'timeout', 'offline'] as const;
export type AuditOutcome = (typeof AUDIT_OUTCOMES)[number];

export interface WorkerHistory {
	/** How long it was looked at, and reachable meanwhile; both fade, as do all counts. */
	readonly observedMs: number;
	readonly onlineMs: number;
	/** How often it was away for so long that it counted as lost. */
	readonly losses: number;
	readonly audits: Readonly<Record<AuditOutcome, number>>;
}

const YEAR_MS = 8766 * 60 * 60_000;
/** What is twice as old counts half. */
const HALF_LIFE_MS = 30 * 24 * 60 * 60_000;
/** Annual failure rate of a disk or machine that nobody has watched yet. */
export const DEFAULT_AFR = 0.02;
/** Weight of that guess against what was seen: as if it had been watched for so long. */
const PRIOR_YEARS = 2;
/** Shards that proved bad, each as a part of a failed machine: one rotten sector is not a dead disk, ten are near it. */
const LOSSES_PER_BAD_SHARD = 0.1;
const DEFAULT_AVAILABILITY = 0.995;
const PRIOR_AVAILABILITY_MS = 24 * 60 * 60_000;

export const NEW_HISTORY: WorkerHistory = {
	observedMs: 0,
	onlineMs: 0,
	losses: 0,
	audits: { ok: 0, corrupt: 0, missing: 0, timeout: 0, offline: 0 },
};

/** What happened in the last `observedMs`. */
export interface Observation {
	readonly observedMs: number;
	readonly isOnline: boolean;
	readonly losses: number;
	readonly audits: Partial<Readonly<Record<AuditOutcome, number>>>;
}

export function observed(history: WorkerHistory, seen: Observation): WorkerHistory {
	const fade = 0.5 ** (seen.observedMs / HALF_LIFE_MS);
	const audits = Object.fromEntries(
		AUDIT_OUTCOMES.map((outcome) => [outcome, history.audits[outcome] * fade + (seen.audits[outcome] ?? 0)]),
	) as Record<AuditOutcome, number>;
	return {
		observedMs: history.observedMs * fade + seen.observedMs,
		onlineMs: history.onlineMs * fade + (seen.isOnline ? seen.observedMs : 0),
		losses: history.losses * fade + seen.losses,
		audits,
	};
}

/** Failures a year to expect: the default for a new worker, moved by what was seen. */
export function annualFailureRate({ observedMs, losses, audits }: WorkerHistory): number {
	const bad = (audits.corrupt + audits.missing) * LOSSES_PER_BAD_SHARD;
	return (DEFAULT_AFR * PRIOR_YEARS + losses + bad) / (PRIOR_YEARS + observedMs / YEAR_MS);
}

/** Share of the time that it can be reached, 0 to 1. */
export function availability({ observedMs, onlineMs }: WorkerHistory): number {
	return (DEFAULT_AVAILABILITY * PRIOR_AVAILABILITY_MS + onlineMs) / (PRIOR_AVAILABILITY_MS + observedMs);
}

export function formatHistory(history: WorkerHistory): string {
	return JSON.stringify(history);
}

/** What can't be read is as if nothing were known: it is a guess about the future, not data. */
export function parseHistory(text: string): WorkerHistory {
	if (text === '') return NEW_HISTORY;
	try {
		const given = JSON.parse(text) as WorkerHistory;
		const audits = AUDIT_OUTCOMES.map((outcome) => given.audits[outcome]);
		const numbers = [given.observedMs, given.onlineMs, given.losses, ...audits];
		return numbers.every((value) => Number.isFinite(value) && value >= 0) ? given : NEW_HISTORY;
	} catch {
		return NEW_HISTORY;
	}
}
