/**
 * After a new generation of the cluster key: wraps the data keys of older objects by it, in the metadata, page by page. No
 * shard is touched: their trailers keep the older wrapping, and the older generation stays until they are gone (mend.ts renews
 * them when somebody asks).
 */

import { asDistroError, type DistroError } from '../core/errors.ts';
import type { VersionId } from '../core/ids.ts';
import type { Clock } from '../core/ports.ts';
import type { Keyring } from './keyring.ts';
import type { ExclusiveJob, JobProgress } from './leases.ts';
import type { MetadataStore, RewrappedObject } from './store.ts';

const PAGE = 200;
const BETWEEN_PAGES_MS = 20;
const IDLE_MS = 5_000;
/** Counted exactly up to here. */
const COUNT_MAX = 1_000_000;
const COUNT_EVERY_MS = 2_000;
/** Objects that do not open are remembered, so that they don't stand in the way of the others. */
const FAILED_MAX = 1_000;

interface RewrapState extends JobProgress {
	/** The generation that objects are wrapped by when it is done. */
	readonly generation: number;
	readonly rewrapped_objects: number;
	/** Objects that are still wrapped by an older one, at most a million are counted. */
	readonly left_objects: number;
	readonly percent: number;
	readonly stuck: readonly { readonly version_id: VersionId; readonly why: string }[];
}

export function rewrapJob(deps: {
	store: MetadataStore;
	keyring: Pick<Keyring, 'newest' | 'refresh' | 'rewrapped'>;
	clock: Clock;
	onFailed: (versionId: VersionId, error: DistroError) => void;
}): ExclusiveJob {
	const { store, keyring, clock, onFailed } = deps;
	const failed = new Map<VersionId, DistroError>();
	let generation = 0;
	let rewrapped = 0;
	let left = 0;
	let objects = 0;
	let countedMs = Number.NEGATIVE_INFINITY;
	const count = async () => {
		if (clock.monotonicMs() - countedMs < COUNT_EVERY_MS) return;
		const [uses, counts] = await Promise.all([store.keyUse(COUNT_MAX), store.counts()]);
		left = uses.filter((use) => use.generation < generation).reduce((sum, use) => sum + use.objects, 0);
		objects = Math.max(counts.objects, left);
		countedMs = clock.monotonicMs();
	};
	return {
		name: 'rewrap',
		state: (): RewrapState => ({
			generation,
			rewrapped_objects: rewrapped,
			left_objects: left,
			percent: objects === 0 ? 100 : Math.floor((100 * (objects - left)) / objects),
			stuck: [...failed].slice(0, 100).map(([version_id, { message }]) => ({ version_id, why: message })),
		}),
		step: async (_signal, lease) => {
			await keyring.refresh();
			if (keyring.newest !== generation) {
				generation = keyring.newest;
				rewrapped = 0;
				failed.clear();
				countedMs = Number.NEGATIVE_INFINITY;
			}
			const rows = await store.oldKeyObjects({ below: generation, limit: PAGE + failed.size });
			const done: RewrappedObject[] = [];
			for (const row of rows) {
				if (failed.has(row.versionId)) continue;
				try {
					done.push(keyring.rewrapped(row));
				} catch (thrown) {
					if (failed.size >= FAILED_MAX) continue;
					failed.set(row.versionId, asDistroError(thrown));
					onFailed(row.versionId, asDistroError(thrown));
				}
			}
			if (done.length > 0) {
				rewrapped += await store.rewrapObjects(done, lease);
				await count();
				return BETWEEN_PAGES_MS;
			}
			countedMs = Number.NEGATIVE_INFINITY;
			await count();
			await store.noteUnusedKeys();
			return IDLE_MS;
		},
	};
}
