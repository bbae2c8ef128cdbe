/**
 * How whole the data is, and which workers may be stopped: answered from counts by worker set, never by a walk over
 * objects (docs/decisions/0012-counts-by-worker-set.md). Pure.
 *
 * A shard counts while it is good and its worker can be reached now: what is only away may come back, and until then it
 * helps nobody.
 */

import type { WorkerId } from '../ids.ts';
import { type SegmentHealth, segmentHealth, worstHealth } from './health.ts';

/**
 * Segments that are cut alike and whose good shards (placed, and without finding) are on the same workers. There are few
 * of them whatever the number of objects, because placement draws from few sets of workers (placement.ts).
 */
export interface SetCount {
	/** Opaque. */
	readonly setId: string;
	readonly k: number;
	readonly n: number;
	/** In order of id; fewer than n where shards are missing or marked. */
	readonly workers: readonly WorkerId[];
	readonly segments: number;
	/** Data cells of those segments, in bytes: each of their shards has about bytes / k. */
	readonly bytes: number;
}

/** Objects whose segments are on the same sets: all that decides whether they are whole. */
export interface SpreadCount {
	/** Without repetition; none for inline objects. */
	readonly setIds: readonly string[];
	readonly objects: number;
	/** Plaintext. */
	readonly bytes: number;
}

export interface RedundancyReport {
	readonly objects: number;
	/** Of them in the metadata: as durable as that. They count as healthy, and in no `bySpare`. */
	readonly inline: number;
	/** Each object counts once, by its worst segment. */
	readonly byHealth: Readonly<Record<SegmentHealth, number>>;
	/** Objects by spare shards: how many more may go before the worst segment can't be read; -1 stands for all below. */
	readonly bySpare: ReadonlyMap<number, number>;
	/** So many more workers, whichever they are, may go without any object being lost; null when there is nothing. Not below 0. */
	readonly failureTolerance: number | null;
	/** Plaintext bytes of objects that are at risk or worse. */
	readonly bytesAtRisk: number;
}

export function redundancyReport(
	counts: { readonly sets: readonly SetCount[]; readonly spreads: readonly SpreadCount[] },
	isLive: (workerId: WorkerId) => boolean,
): RedundancyReport {
	const sets = new Map(
		counts.sets.map(({ setId, k, n, workers }) => {
			const placed = workers.filter(isLive).length;
			return [setId, { spare: placed - k, health: segmentHealth({ n, k, placed }) }];
		}),
	);
	const byHealth: Record<SegmentHealth, number> = { healthy: 0, degraded: 0, at_risk: 0, unrecoverable: 0 };
	const bySpare = new Map<number, number>();
	let [objects, inline, bytesAtRisk, least] = [0, 0, 0, Number.POSITIVE_INFINITY];
	for (const spread of counts.spreads) {
		objects += spread.objects;
		const on = spread.setIds.flatMap((setId) => sets.get(setId) ?? []);
		const health = worstHealth(on.map((set) => set.health));
		byHealth[health] += spread.objects;
		if (health === 'at_risk' || health === 'unrecoverable') bytesAtRisk += spread.bytes;
		if (on.length === 0) {
			inline += spread.objects;
			continue;
		}
		const spare = Math.max(-1, Math.min(...on.map((set) => set.spare)));
		bySpare.set(spare, (bySpare.get(spare) ?? 0) + spread.objects);
		least = Math.min(least, spare);
	}
	const failureTolerance = Number.isFinite(least) ? Math.max(0, least) : null;
	return { objects, inline, byHealth, bySpare, failureTolerance, bytesAtRisk };
}

/**
 * The sets that stand in the way of stopping these workers now: those of their segments that would be left with fewer
 * than k + reserve shards. None: they may be stopped.
 */
export function setsInTheWay(
	sets: readonly SetCount[],
	request: {
		readonly stop: readonly WorkerId[];
		/** Shards beyond k that must be left. */
		readonly reserve: number;
		readonly isLive: (workerId: WorkerId) => boolean;
	},
): SetCount[] {
	const { stop, reserve, isLive } = request;
	return sets.filter(({ k, workers }) => {
		if (!workers.some((workerId) => stop.includes(workerId))) return false;
		return workers.filter((workerId) => isLive(workerId) && !stop.includes(workerId)).length < k + reserve;
	});
}
