/**
 * Brings the cluster's wrapped keys to every worker's volume. Each beat says which keys record the volume has; where that is
 * another than the metadata's, it is written, in the background: to those that are there now, to a new worker right after it
 * registered, and to one that was away when it is back. Which volume was seen to have which revision is kept in the
 * metadata: an old key may go only when all have the newest.
 */

import { asDistroError, DistroError } from '../core/errors.ts';
import type { WorkerId } from '../core/ids.ts';
import { encodeKeysRecord, type KeysRecord, keysDigest } from '../core/model/keys-record.ts';
import type { Clock } from '../core/ports.ts';
import type { GrpcShardTransport } from '../platform/shard-transport.ts';
import type { MetadataStore } from './store.ts';
import type { WorkerRegistry } from './workers.ts';

const WRITE_TIMEOUT_MS = 10_000;
/** Workers that are written to at the same time; the others say so again with their next beat. */
const AT_ONCE = 8;
const RETRY_BASE_MS = 2_000;
const RETRY_MAX_MS = 5 * 60_000;

interface Delivery {
	isUnderWay: boolean;
	failures: number;
	notBeforeMs: number;
	/** As the metadata has it. */
	notedRevision: number;
}

export interface KeyDeliveryDeps {
	readonly store: Pick<MetadataStore, 'sawKeys'>;
	readonly workers: Pick<WorkerRegistry, 'ref'>;
	readonly transport: Pick<GrpcShardTransport, 'writeKeys'>;
	readonly clock: Clock;
	/** What the metadata has, as far as this process knows. */
	readonly record: () => KeysRecord;
	/** Reads the metadata's anew. */
	readonly refresh: () => Promise<void>;
	readonly onFailed: (workerId: WorkerId, error: DistroError) => void;
}

export class KeyDelivery {
	readonly #deps: KeyDeliveryDeps;
	readonly #deliveries = new Map<WorkerId, Delivery>();
	#known: { readonly record: KeysRecord; readonly digest: Buffer } | null = null;
	#underWay = 0;

	constructor(deps: KeyDeliveryDeps) {
		this.#deps = deps;
	}

	/** A worker whose volume is there has a record with this digest; empty: none. Never throws. */
	heard(workerId: WorkerId, digest: Buffer): void {
		const { record, digest: wanted } = this.#current();
		const delivery = this.#deliveryTo(workerId);
		const hasIt = wanted.equals(digest);
		if (hasIt && delivery.notedRevision === record.revision) return;
		if (delivery.isUnderWay || this.#underWay >= AT_ONCE) return;
		if (this.#deps.clock.monotonicMs() < delivery.notBeforeMs) return;
		delivery.isUnderWay = true;
		this.#underWay++;
		this.#bring(workerId, record, hasIt)
			.then(
				() => {
					delivery.failures = 0;
					delivery.notBeforeMs = Number.NEGATIVE_INFINITY;
					delivery.notedRevision = record.revision;
				},
				async (thrown) => {
					const error = asDistroError(thrown);
					// Another orchestrator may have written a newer record, of which this one has not heard yet.
					if (error.kind === 'conflict') {
						await this.#deps.refresh().catch(() => {});
						if (this.#deps.record() !== record) return;
					}
					const waitMs = Math.min(RETRY_MAX_MS, RETRY_BASE_MS * 2 ** delivery.failures++);
					delivery.notBeforeMs = this.#deps.clock.monotonicMs() + waitMs;
					this.#deps.onFailed(workerId, error);
				},
			)
			.finally(() => {
				delivery.isUnderWay = false;
				this.#underWay--;
			});
	}

	/** It registered anew: whatever failed before may work now. */
	joined(workerId: WorkerId): void {
		const delivery = this.#deliveryTo(workerId);
		delivery.failures = 0;
		delivery.notBeforeMs = Number.NEGATIVE_INFINITY;
	}

	async #bring(workerId: WorkerId, record: KeysRecord, hasIt: boolean): Promise<void> {
		const { store, workers, transport } = this.#deps;
		if (!hasIt) {
			const worker = workers.ref(workerId);
			if (worker === null) throw new DistroError('unavailable', 'the worker is gone');
			await transport.writeKeys(worker, encodeKeysRecord(record), { timeoutMs: WRITE_TIMEOUT_MS });
		}
		await store.sawKeys([workerId], record.revision);
	}

	#current(): { readonly record: KeysRecord; readonly digest: Buffer } {
		const record = this.#deps.record();
		if (this.#known?.record !== record) this.#known = { record, digest: keysDigest(record) };
		return this.#known;
	}

	#deliveryTo(workerId: WorkerId): Delivery {
		const known = this.#deliveries.get(workerId);
		if (known !== undefined) return known;
		const fresh = { isUnderWay: false, failures: 0, notBeforeMs: Number.NEGATIVE_INFINITY, notedRevision: 0 };
		this.#deliveries.set(workerId, fresh);
		return fresh;
	}
}
