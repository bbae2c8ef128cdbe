/**
 * Scrubbing as the orchestrator sees it: what workers tell of it with their beats, findings on their way into the metadata,
 * and what each beat is answered. A finding is acknowledged when it is durable, so that a worker repeats it to whoever is
 * left. What people ask for (pause, a pass now) comes from outside and must be the same at every orchestrator.
 */

import type { ShardId, WorkerId } from '../core/ids.ts';
import type { Findings } from './findings.ts';
import type { FindingKind } from './store.ts';

/** Of a worker's text so much is kept. */
const DETAIL_MAX = 300;
/** Findings that one worker may have on their way into the metadata: several times what one tells at once. The rest it tells again. */
const UNDER_WAY_MAX = 1_024;

export interface ScrubReport {
	/** Every shard of the volume was verified or written after this; 0: not yet. */
	readonly sinceMs: number;
	readonly pass: number;
	readonly shardsDone: number;
	readonly shardsTotal: number;
	readonly running: boolean;
}

export interface ScrubFinding {
	readonly shardId: ShardId;
	readonly kind: FindingKind;
	readonly detail: string;
}

export interface ScrubAnswer {
	readonly acknowledged: readonly ShardId[];
	readonly paused: boolean;
	readonly pass: number;
	readonly revision: number;
}

export class ScrubDesk {
	/** `pass`: a larger number than before asks every worker for a new pass now. `revision`: as the wire has it. */
	orders: Omit<ScrubAnswer, 'acknowledged'> = { paused: false, pass: 0, revision: 0 };
	readonly #findings: Pick<Findings, 'add'>;
	readonly #reports = new Map<WorkerId, ScrubReport>();

	constructor(deps: { findings: Pick<Findings, 'add'> }) {
		this.#findings = deps.findings;
	}

	/** For one heartbeat stream: takes each beat's share, and answers it. */
	stream(workerId: WorkerId): (report: ScrubReport, found: readonly ScrubFinding[]) => ScrubAnswer {
		const underWay = new Set<ShardId>();
		let durable: ShardId[] = [];
		return (report, found) => {
			this.#reports.set(workerId, report);
			const fresh = found.filter(({ shardId }) => !underWay.has(shardId)).slice(0, UNDER_WAY_MAX - underWay.size);
			if (fresh.length > 0) {
				const shardIds = fresh.map(({ shardId }) => shardId);
				for (const shardId of shardIds) underWay.add(shardId);
				const findings = fresh.map((finding) => ({
					...finding,
					workerId,
					detail: finding.detail.slice(0, DETAIL_MAX),
				}));
				this.#findings
					.add(findings)
					.then(() => durable.push(...shardIds))
					// Not written: the worker tells it again.
					.catch(() => {})
					.finally(() => {
						for (const shardId of shardIds) underWay.delete(shardId);
					});
			}
			const acknowledged = durable;
			durable = [];
			return { acknowledged, ...this.orders };
		};
	}

	/** Null for a worker that has told nothing since this process began. */
	report(workerId: WorkerId): ScrubReport | null {
		return this.#reports.get(workerId) ?? null;
	}
}
