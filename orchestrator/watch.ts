/**
 * Each worker's record: how long it could be reached, how often it was lost, how its audits ended. The policy and
 * placement judge by it. Kept by the orchestrator that audits, so that one process alone changes it.
 */

import type { WorkerId } from '../core/ids.ts';
import { type AuditOutcome, formatHistory, observed } from '../core/model/history.ts';
import type { Clock } from '../core/ports.ts';
import type { ExclusiveJob } from './leases.ts';
import type { MetadataStore } from './store.ts';
import type { WorkerRegistry } from './workers.ts';

/** Records fade over weeks: nothing is lost by writing them seldom. */
const EVERY_MS = 60_000;

export class Watch {
	readonly #store: MetadataStore;
	readonly #workers: WorkerRegistry;
	readonly #clock: Clock;
	readonly #audits = new Map<WorkerId, Partial<Record<AuditOutcome, number>>>();
	/** Reachable when they were looked at last. Who was lost before that has been counted by whoever looked then. */
	readonly #up = new Set<WorkerId>();
	#lookedAtMs: number | null = null;

	constructor(deps: { store: MetadataStore; workers: WorkerRegistry; clock: Clock }) {
		this.#store = deps.store;
		this.#workers = deps.workers;
		this.#clock = deps.clock;
	}

	audited(workerId: WorkerId, outcome: AuditOutcome): void {
		const counts = this.#audits.get(workerId) ?? {};
		this.#audits.set(workerId, { ...counts, [outcome]: (counts[outcome] ?? 0) + 1 });
	}

	readonly job: ExclusiveJob = {
		name: 'watch',
		leaseName: 'audit',
		step: async (_signal, lease) => {
			const nowMs = this.#clock.monotonicMs();
			// A process that was stopped has seen nothing meanwhile.
			const sinceMs = this.#lookedAtMs === null ? 0 : nowMs - this.#lookedAtMs;
			const observedMs = Math.min(2 * EVERY_MS, sinceMs);
			if (sinceMs > observedMs) this.#up.clear();
			this.#lookedAtMs = nowMs;
			for (const { row, state } of this.#workers.rows()) {
				const { workerId } = row;
				const before = this.#workers.history(workerId);
				if (before === null) continue;
				const losses = state === 'lost' && this.#up.delete(workerId) ? 1 : 0;
				const audits = this.#audits.get(workerId) ?? {};
				this.#audits.delete(workerId);
				const isOnline = this.#workers.isReachable(workerId);
				if (isOnline) this.#up.add(workerId);
				const history = formatHistory(observed(before, { observedMs, isOnline, losses, audits }));
				this.#workers.setHistory(workerId, history);
				await this.#store.saveHistory(workerId, history, lease);
			}
			return EVERY_MS;
		},
	};
}
