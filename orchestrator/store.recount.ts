/**
 * Test helper: what the kept counts must say, counted anew from objects, placements and findings, through the port only.
 * Sets are named by what they are, since every store has ids of its own.
 */

import { expect } from 'vitest';
import { sealedBytes } from '../core/codec/layout.ts';
import type { ShardId } from '../core/ids.ts';
import type { SetCount } from '../core/model/redundancy-report.ts';
import type { Segment } from '../core/model/segment.ts';
import type { MetadataStore, ObjectRow } from './store.ts';

export interface Redundancy {
	/** By `nameOf`. */
	readonly sets: Readonly<Record<string, { segments: number; bytes: number }>>;
	/** By the names of their sets, sorted and joined by ` + `. */
	readonly spreads: Readonly<Record<string, { objects: number; bytes: number }>>;
}

const PAGE = 1_000;

/** `4 of 6: <worker> <worker> …` */
export function nameOf({ k, n, workers }: Pick<SetCount, 'k' | 'n' | 'workers'>): string {
	return `${k} of ${n}: ${workers.join(' ')}`;
}

/** What the store says of itself. Each id, set and spread may come once. */
export async function reported(store: MetadataStore): Promise<Redundancy> {
	const { sets, spreads } = await store.redundancyRows();
	const names = new Map(sets.map((set) => [set.setId, nameOf(set)]));
	const setRows = sets.map(({ setId, segments, bytes }) => [names.get(setId), { segments, bytes }] as const);
	const spreadRows = spreads.map(({ setIds, objects, bytes }) => {
		const on = setIds.map((setId) => names.get(setId) ?? `the unknown set ${setId}`);
		return [on.sort().join(' + '), { objects, bytes }] as const;
	});
	const found = { sets: Object.fromEntries(setRows), spreads: Object.fromEntries(spreadRows) };
	expect(Object.keys(found.sets)).toHaveLength(sets.length);
	expect(Object.keys(found.spreads)).toHaveLength(spreads.length);
	expect(names.size).toBe(sets.length);
	return found;
}

/** From the rows themselves. */
export async function recounted(store: MetadataStore): Promise<Redundancy> {
	const sets = new Map<string, { segments: number; bytes: number }>();
	const spreads = new Map<string, { objects: number; bytes: number }>();
	const countSets = async ({ versionId, segments: count }: ObjectRow): Promise<ReadonlySet<string>> => {
		const marked = new Set((await store.findings(versionId)).map(({ shardId }) => shardId));
		const on = new Set<string>();
		for (const segment of count === 0 ? [] : await store.segments(versionId, { fromSegment: 0, limit: count })) {
			const name = setOf(segment, marked);
			const { segments, bytes } = sets.get(name) ?? { segments: 0, bytes: 0 };
			sets.set(name, { segments: segments + 1, bytes: bytes + sealedBytes(segment) });
			on.add(name);
		}
		return on;
	};
	for (let after: string | null = null; ; ) {
		const page = await store.list({ limit: PAGE, after });
		for (const object of page.objects) {
			const spread = [...(await countSets(object))].sort().join(' + ');
			const { objects, bytes } = spreads.get(spread) ?? { objects: 0, bytes: 0 };
			spreads.set(spread, { objects: objects + 1, bytes: bytes + object.sizeBytes });
		}
		if (page.next === null) break;
		after = page.next;
	}
	// What is in the trash is on its sets, and on no spread.
	for (let after: string | null = null; ; ) {
		const page = await store.trash({ limit: PAGE, after });
		for (const { object } of page.objects) await countSets(object);
		if (page.next === null) break;
		after = page.next;
	}
	// And so are snapshots, which are nobody's objects.
	for (let after: string | null = null; ; ) {
		const page = await store.list({ limit: PAGE, after, kind: 'snapshot' });
		for (const object of page.objects) await countSets(object);
		if (page.next === null) break;
		after = page.next;
	}
	return { sets: Object.fromEntries(sets), spreads: Object.fromEntries(spreads) };
}

export function setOf(segment: Segment, marked: ReadonlySet<ShardId>): string {
	const good = segment.placements.filter(({ shardId }) => !marked.has(shardId));
	return nameOf({ ...segment, workers: good.map(({ workerId }) => workerId).sort() });
}

/** The counts, and which segments are behind each of them. */
export async function checkRedundancy(store: MetadataStore): Promise<Redundancy> {
	const truth = await recounted(store);
	expect(await reported(store)).toEqual(truth);
	for (const set of (await store.redundancyRows()).sets) {
		const seen = new Set<string>();
		for (let after: string | null = null; ; ) {
			const page = await store.segmentsOnSet(set.setId, { after, limit: 7 });
			for (const { versionId, segment } of page.segments) {
				const marked = new Set((await store.findings(versionId)).map(({ shardId }) => shardId));
				expect(setOf(segment, marked)).toBe(nameOf(set));
				seen.add(`${versionId} ${segment.index}`);
			}
			if (page.next === null) break;
			after = page.next;
		}
		expect(seen.size).toBe(set.segments);
	}
	return truth;
}
