/**
 * Draws the shards that are audited: a worker set that the worker is in, by how many segments it has, then a segment of it
 * at random. Sets are few and change slowly, so they are remembered for a while.
 */

import type { SetCount } from '../core/model/redundancy-report.ts';
import type { Clock, Random } from '../core/ports.ts';
import type { AuditDeps } from './audit.ts';
import type { MetadataStore } from './store.ts';

export type SampledStore = Pick<MetadataStore, 'redundancyRows' | 'sampleSet'>;

const SETS_TTL_MS = 5_000;

export function shardDrawer(deps: { store: SampledStore; clock: Clock; random: Random }): AuditDeps['drawShard'] {
	const { store, clock, random } = deps;
	const share = () => random.bytes(4).readUInt32LE() / 2 ** 32;
	let sets: readonly SetCount[] = [];
	let readAtMs = Number.NEGATIVE_INFINITY;
	return async (workerId) => {
		if (clock.monotonicMs() - readAtMs > SETS_TTL_MS) {
			({ sets } = await store.redundancyRows());
			readAtMs = clock.monotonicMs();
		}
		const its = sets.filter(({ workers }) => workers.includes(workerId));
		let at = share() * its.reduce((sum, { segments }) => sum + segments, 0);
		for (const { setId, segments } of its) {
			at -= segments;
			if (at >= 0) continue;
			const sample = await store.sampleSet(setId, share());
			const placed = sample?.segment.placements.find((placement) => placement.workerId === workerId);
			if (sample === null || placed === undefined) {
				// Its segments are on another set by now, as after a repair.
				readAtMs = Number.NEGATIVE_INFINITY;
				return null;
			}
			return { ...sample, shardIndex: placed.shardIndex, shardId: placed.shardId };
		}
		return null;
	};
}
