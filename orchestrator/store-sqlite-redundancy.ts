/** What worker sets and spreads tell, in SQLite: the counts, and which segments and objects are behind them. */

import type { ObjectId, VersionId, WorkerId } from '../core/ids.ts';
import type { SetCount } from '../core/model/redundancy-report.ts';
import type { Segment } from '../core/model/segment.ts';
import type { RedundancyRows, StoredSegment } from './store.ts';
import { parsePlace } from './store-rules.ts';
import { segmentsOf } from './store-sqlite-objects.ts';
import type { Sql } from './store-sqlite-sql.ts';

/** Sums may pass 2^53: figures for people, so rounding is fine. */
export function redundancyRows(sql: Sql): RedundancyRows {
	const sets = sql.all<Omit<SetCount, 'workers'> & { workers: string }>(
		`SELECT CAST(set_no AS TEXT) AS setId, k, n, workers, segments, CAST(bytes AS REAL) AS bytes FROM worker_sets`,
	);
	const spreads = sql.all<{ sets: string; objects: number; bytes: number }>(
		'SELECT sets, objects, CAST(bytes AS REAL) AS bytes FROM spreads',
	);
	const inline = sql.get(
		`SELECT objects - (SELECT coalesce(sum(objects), 0) FROM spreads) AS objects,
				CAST(bytes - (SELECT coalesce(sum(bytes), 0) FROM spreads) AS REAL) AS bytes FROM totals`,
	) as { objects: number; bytes: number };
	return {
		sets: sets.map((set) => ({ ...set, workers: set.workers === '' ? [] : (set.workers.split(',') as WorkerId[]) })),
		spreads: [
			...(inline.objects === 0 ? [] : [{ ...inline, setIds: [] }]),
			...spreads.map(({ sets: setNos, objects, bytes }) => ({ setIds: setNos.split(','), objects, bytes })),
		],
	};
}

/** Null for an id that this store never gave out. */
function setNoOf(setId: string): number | null {
	return /^\d{1,15}$/.test(setId) ? Number(setId) : null;
}

interface Place {
	readonly objectNo: number;
	readonly segment: number;
}

export function storedSegment(sql: Sql, { objectNo, segment }: Place): StoredSegment {
	const ids = sql.get(
		'SELECT object_id AS objectId, version_id AS versionId FROM objects WHERE object_no = ?',
		objectNo,
	) as { objectId: ObjectId; versionId: VersionId };
	const [stored] = segmentsOf(sql, objectNo, { fromSegment: segment, limit: 1 }) as [Segment];
	return { ...ids, segment: stored };
}

export function segmentsOnSet(
	sql: Sql,
	setId: string,
	options: { after: string | null; limit: number },
): { segments: readonly StoredSegment[]; next: string | null } {
	// Objects are numbered from 1.
	const after = parsePlace(options.after ?? '0.0');
	// One more than asked for tells whether there is another page.
	const places = sql.all<Place>(
		`SELECT object_no AS objectNo, segment FROM segments INDEXED BY segments_set
			WHERE set_no = ? AND (object_no, segment) > (?, ?) ORDER BY object_no, segment LIMIT ?`,
		setNoOf(setId),
		after.objectNo,
		after.segment,
		options.limit + 1,
	);
	const page = places.slice(0, options.limit);
	const last = page.at(-1);
	return {
		segments: page.map((place) => storedSegment(sql, place)),
		next: last === undefined || places.length <= options.limit ? null : `${last.objectNo}.${last.segment}`,
	};
}

/**
 * The object that is near `at` by number, and of its segments the one near the rest of `at`. So objects are about equally
 * likely, and segments within one.
 */
export function sampleSet(sql: Sql, setId: string, at: number): StoredSegment | null {
	const setNo = setNoOf(setId);
	const objects = sql.get(
		`SELECT (SELECT object_no FROM segments WHERE set_no = ?1 ORDER BY object_no LIMIT 1) AS first,
			(SELECT object_no FROM segments WHERE set_no = ?1 ORDER BY object_no DESC LIMIT 1) AS last`,
		setNo,
	) as Range | { first: null };
	if (objects.first === null) return null;
	const object = placeIn(objects, at);
	const { objectNo } = sql.get(
		'SELECT object_no AS objectNo FROM segments WHERE set_no = ? AND object_no >= ? ORDER BY object_no LIMIT 1',
		setNo,
		object.whole,
	) as Place;
	const segments = sql.get(
		'SELECT min(segment) AS first, max(segment) AS last FROM segments WHERE set_no = ? AND object_no = ?',
		setNo,
		objectNo,
	) as Range;
	const { segment } = sql.get(
		`SELECT segment FROM segments WHERE set_no = ? AND object_no = ? AND segment >= ? ORDER BY segment LIMIT 1`,
		setNo,
		objectNo,
		placeIn(segments, object.rest).whole,
	) as Place;
	return storedSegment(sql, { objectNo, segment });
}

interface Range {
	readonly first: number;
	readonly last: number;
}

function placeIn({ first, last }: Range, at: number): { whole: number; rest: number } {
	const place = Math.min(Math.max(at, 0), 1) * (last - first + 1);
	const whole = Math.min(Math.floor(place), last - first);
	return { whole: first + whole, rest: place - whole };
}

export function objectsOnSets(sql: Sql, setIds: readonly string[], limit: number): readonly ObjectId[] {
	const found = new Map<number, ObjectId>();
	for (const setId of setIds) {
		let after = 0;
		while (found.size < limit) {
			// From object to object: one of thousands of segments is one step as well.
			const next = sql.get<{ objectNo: number; objectId: ObjectId }>(
				`SELECT object_no AS objectNo, object_id AS objectId FROM segments INDEXED BY segments_set
					JOIN objects USING (object_no) WHERE set_no = ? AND object_no > ? ORDER BY object_no LIMIT 1`,
				setNoOf(setId),
				after,
			);
			if (next === undefined) break;
			found.set(next.objectNo, next.objectId);
			after = next.objectNo;
		}
	}
	return [...found.values()];
}
