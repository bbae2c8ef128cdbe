/**
 * Shards that proved missing or corrupt: written to the store (which queues their repair) and remembered, so that the
 * next read does not ask them first. Reports of reads never hold up a read.
 */

import type { ShardId, WorkerId } from '../core/ids.ts';
import type { Clock } from '../core/ports.ts';
import type { Finding, FindingKind, MetadataStore } from './store.ts';

/** Remembered at most; the store knows them all. */
const MAX_REMEMBERED = 10_000;

export class Findings {
	readonly #store: MetadataStore;
	readonly #clock: Clock;
	readonly #onReport: (kind: FindingKind, workerId: WorkerId) => void;
	readonly #remembered = new Set<ShardId>();
	/** Counted and logged already. */
	readonly #told = new Set<ShardId>();

	constructor(deps: { store: MetadataStore; clock: Clock; onReport: (kind: FindingKind, workerId: WorkerId) => void }) {
		this.#store = deps.store;
		this.#clock = deps.clock;
		this.#onReport = deps.onReport;
	}

	/** What a read saw. */
	report(finding: Omit<Finding, 'foundAtMs'>): void {
		if (this.#remembered.has(finding.shardId)) return;
		addBounded(this.#remembered, finding.shardId);
		// Not written, or not placed there any more (the read began before it was moved): nothing is known of it.
		this.add([finding]).catch(() => this.#remembered.delete(finding.shardId));
	}

	/** What scrubbing, audits and reconcile found: durable when it resolves. Of what is not placed there nobody hears. */
	async add(findings: readonly Omit<Finding, 'foundAtMs'>[]): Promise<void> {
		const foundAtMs = this.#clock.nowMs();
		const placed = new Set(await this.#store.addFindings(findings.map((finding) => ({ ...finding, foundAtMs }))));
		for (const { shardId, kind, workerId } of findings) {
			if (!placed.has(shardId)) this.#remembered.delete(shardId);
			else if (this.#remember(shardId)) this.#onReport(kind, workerId);
		}
	}

	/** Whether it is the first time: a shard that was rebuilt elsewhere may be found again until its worker has deleted it. */
	#remember(shardId: ShardId): boolean {
		addBounded(this.#remembered, shardId);
		if (this.#told.has(shardId)) return false;
		addBounded(this.#told, shardId);
		return true;
	}

	has(shardId: ShardId): boolean {
		return this.#remembered.has(shardId);
	}

	/** It was rebuilt elsewhere, or is gone for good. */
	forget(shardId: ShardId): void {
		this.#remembered.delete(shardId);
	}
}

function addBounded(set: Set<ShardId>, shardId: ShardId): void {
	const oldest = set.values().next().value;
	if (set.size >= MAX_REMEMBERED && oldest !== undefined && !set.has(shardId)) set.delete(oldest);
	set.add(shardId);
}
