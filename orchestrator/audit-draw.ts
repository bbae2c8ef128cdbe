/**
 * Draws the shards that are audited: a worker set that the worker is in, by how many segments it has, then a segment of it
 * at random. Sets are few and change slowly, so they are remembered for a while.
 */

import type { ObjectId, VersionId, WorkerId } from '../core/ids.ts';
import type { Segment } from '../core/model/segment.ts';
import type { Clock, Random } from '../core/ports.ts';
import type { AuditDeps } from './audit.ts';
import type { MetadataStore, ObjectRow } from './store.ts';

/** Of MetadataStore. */
export interface SampledStore {
	redundancyRows(): Promise<{
		readonly sets: readonly {
			readonly setId: string;
			readonly workers: readonly WorkerId[];
			readonly segments: number;
		}[];
	}>;
	sampleSet(
		setId: string,
		at: number,
	): Promise<{ readonly objectId: ObjectId; readonly versionId: VersionId; readonly segment: Segment } | null>;
}

const SETS_TTL_MS = 60_000;

export function shardDrawer(deps: { store: SampledStore; clock: Clock; random: Random }): AuditDeps['drawShard'] {
	const { store, clock, random } = deps;
	const share = () => random.bytes(4).readUInt32LE() / 2 ** 32;
	let sets: Awaited<ReturnType<SampledStore['redundancyRows']>>['sets'] = [];
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
			if (sample === null || placed === undefined) return null;
			return { ...sample, shardIndex: placed.shardIndex, shardId: placed.shardId };
		}
		return null;
	};
}

const LISTED_PAGE = 100;
const LISTED_TRIES = 30;

/** The same from a store that can't sample: of the newest objects only. */
export function drawListed(deps: {
	store: Pick<MetadataStore, 'list' | 'segments'>;
	random: Random;
}): AuditDeps['drawShard'] {
	const { store, random } = deps;
	const below = (count: number) => random.bytes(4).readUInt32LE() % count;
	return async (workerId) => {
		const page = await store.list({ limit: LISTED_PAGE, after: null });
		const objects = page.objects.filter(({ segments }) => segments > 0);
		for (let i = 0; i < LISTED_TRIES && objects.length > 0; i++) {
			const { objectId, versionId, segments } = objects[below(objects.length)] as ObjectRow;
			const [segment] = await store.segments(versionId, { fromSegment: below(segments), limit: 1 });
			const placed = segment?.placements.find((placement) => placement.workerId === workerId);
			if (segment === undefined || placed === undefined) continue;
			return { objectId, versionId, segment, shardIndex: placed.shardIndex, shardId: placed.shardId };
		}
		return null;
	};
}
