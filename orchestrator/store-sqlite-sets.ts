/**
 * Worker sets and spreads, in SQLite: which segments are cut alike and have their good shards on the same workers, which
 * objects are on the same sets, and how many of both. Every transaction that changes placements or findings moves what it
 * touched, so the counts are those of the rows at any moment. store-sqlite-redundancy.ts reads them.
 *
 * Rows without segments or objects go at once. Inline objects are on no spread: they are what the totals have beyond it.
 */

import { sealedBytes } from '../core/codec/layout.ts';
import type { WorkerId } from '../core/ids.ts';
import type { Segment } from '../core/model/segment.ts';
import type { Sql } from './store-sqlite-sql.ts';

interface SetKey {
	readonly k: number;
	readonly n: number;
	/** In order of id, joined by commas. */
	readonly workers: string;
}

/** How much comes or goes. */
interface Part {
	readonly segments: number;
	readonly bytes: number;
}

function enterSet(sql: Sql, { k, n, workers }: SetKey, { segments, bytes }: Part): number {
	const known = sql.get<{ setNo: number }>(
		`UPDATE worker_sets SET segments = segments + ?, bytes = bytes + ?
			WHERE workers = ? AND k = ? AND n = ? RETURNING set_no AS setNo`,
		segments,
		bytes,
		workers,
		k,
		n,
	);
	if (known !== undefined) return known.setNo;
	const { lastRowId } = sql.run(
		'INSERT INTO worker_sets (k, n, workers, segments, bytes) VALUES (?, ?, ?, ?, ?)',
		k,
		n,
		workers,
		segments,
		bytes,
	);
	return lastRowId;
}

function leaveSet(sql: Sql, setNo: number, { segments, bytes }: Part): void {
	const left = sql.get<{ segments: number }>(
		'UPDATE worker_sets SET segments = segments - ?, bytes = bytes - ? WHERE set_no = ? RETURNING segments',
		segments,
		bytes,
		setNo,
	);
	if (left?.segments === 0) sql.run('DELETE FROM worker_sets WHERE set_no = ?', setNo);
}

function enterSpread(sql: Sql, setNos: Iterable<number>, sizeBytes: number): number {
	const sets = [...new Set(setNos)].sort((a, b) => a - b).join();
	const known = sql.get<{ spreadNo: number }>(
		'UPDATE spreads SET objects = objects + 1, bytes = bytes + ? WHERE sets = ? RETURNING spread_no AS spreadNo',
		sizeBytes,
		sets,
	);
	if (known !== undefined) return known.spreadNo;
	return sql.run('INSERT INTO spreads (sets, objects, bytes) VALUES (?, 1, ?)', sets, sizeBytes).lastRowId;
}

function leaveSpread(sql: Sql, spreadNo: number, sizeBytes: number): void {
	const left = sql.get<{ objects: number }>(
		'UPDATE spreads SET objects = objects - 1, bytes = bytes - ? WHERE spread_no = ? RETURNING objects',
		sizeBytes,
		spreadNo,
	);
	if (left?.objects === 0) sql.run('DELETE FROM spreads WHERE spread_no = ?', spreadNo);
}

/** For a new object, before its rows are written: its spread (null for inline ones, and for what is not counted), and the set of each of its segments. */
export function enterSets(
	sql: Sql,
	object: { sizeBytes: number; isUncounted?: boolean },
	segments: readonly Segment[],
): { spreadNo: number | null; setNos: readonly number[] } {
	if (segments.length === 0) return { spreadNo: null, setNos: [] };
	const keys: string[] = [];
	const parts = new Map<string, SetKey & Part>();
	for (const segment of segments) {
		const { k, n } = segment;
		const workers = joined(segment.placements);
		const key = `${k} ${n} ${workers}`;
		const before = parts.get(key) ?? { segments: 0, bytes: 0 };
		parts.set(key, { k, n, workers, segments: before.segments + 1, bytes: before.bytes + sealedBytes(segment) });
		keys.push(key);
	}
	const setNos = new Map([...parts].map(([key, part]) => [key, enterSet(sql, part, part)]));
	const spreadNo = object.isUncounted === true ? null : enterSpread(sql, setNos.values(), object.sizeBytes);
	return { spreadNo, setNos: keys.map((key) => setNos.get(key) as number) };
}

/** After placements or findings of an object's segments changed. */
export function moveSegments(sql: Sql, objectNo: number, segments: Iterable<number>): void {
	const entered = new Set<number>();
	const left = new Set<number>();
	for (const segment of segments) {
		const { setNo, k, n, bytes } = sql.get(
			`SELECT set_no AS setNo, k, n, (cells - 1) * cell_bytes + last_cell_bytes AS bytes
				FROM segments WHERE object_no = ? AND segment = ?`,
			objectNo,
			segment,
		) as { setNo: number; k: number; n: number; bytes: number };
		const good = sql.all<{ workerId: WorkerId }>(
			`SELECT worker_id AS workerId FROM placements p WHERE object_no = ? AND segment = ?
				AND NOT EXISTS (SELECT 1 FROM findings f WHERE f.shard_id = p.shard_id)`,
			objectNo,
			segment,
		);
		const nowOn = enterSet(sql, { k, n, workers: joined(good) }, { segments: 1, bytes });
		leaveSet(sql, setNo, { segments: 1, bytes });
		if (nowOn === setNo) continue;
		sql.run('UPDATE segments SET set_no = ? WHERE object_no = ? AND segment = ?', nowOn, objectNo, segment);
		entered.add(nowOn);
		left.add(setNo);
	}
	if (entered.size > 0) moveObject(sql, objectNo, { entered, left });
}

/** Only sets that a segment left are looked at again: an object may have thousands of segments. */
function moveObject(
	sql: Sql,
	objectNo: number,
	changed: { entered: ReadonlySet<number>; left: ReadonlySet<number> },
): void {
	const spread = sql.get<{ spreadNo: number; sets: string; sizeBytes: number }>(
		`SELECT spread_no AS spreadNo, sets, size_bytes AS sizeBytes
			FROM objects JOIN spreads USING (spread_no) WHERE object_no = ?`,
		objectNo,
	);
	// In the trash, or no object of people.
	if (spread === undefined) return;
	const { spreadNo, sets, sizeBytes } = spread;
	const setNos = new Set([...sets.split(',').map(Number), ...changed.entered]);
	for (const setNo of changed.left) {
		const another = sql.get('SELECT 1 FROM segments WHERE set_no = ? AND object_no = ?', setNo, objectNo);
		if (another === undefined) setNos.delete(setNo);
	}
	const nowOn = enterSpread(sql, setNos, sizeBytes);
	leaveSpread(sql, spreadNo, sizeBytes);
	if (nowOn !== spreadNo) sql.run('UPDATE objects SET spread_no = ? WHERE object_no = ?', nowOn, objectNo);
}

/** For an object that goes into the trash. */
export function leaveObjectSpread(sql: Sql, objectNo: number): void {
	const { spreadNo, sizeBytes } = sql.get(
		'SELECT spread_no AS spreadNo, size_bytes AS sizeBytes FROM objects WHERE object_no = ?',
		objectNo,
	) as { spreadNo: number | null; sizeBytes: number };
	if (spreadNo !== null) leaveSpread(sql, spreadNo, sizeBytes);
}

/** For one that comes out of it: its segments may be on other sets by now. */
export function enterSpreadAgain(sql: Sql, objectNo: number): void {
	const sets = sql.all<{ setNo: number }>(
		'SELECT DISTINCT set_no AS setNo FROM segments WHERE object_no = ?',
		objectNo,
	);
	if (sets.length === 0) return;
	const { sizeBytes } = sql.get('SELECT size_bytes AS sizeBytes FROM objects WHERE object_no = ?', objectNo) as {
		sizeBytes: number;
	};
	const setNos = sets.map(({ setNo }) => setNo);
	sql.run('UPDATE objects SET spread_no = ? WHERE object_no = ?', enterSpread(sql, setNos, sizeBytes), objectNo);
}

/** For the segments of an object that goes, before its rows do. */
export function leaveSets(sql: Sql, objectNo: number): void {
	const parts = sql.all<Part & { setNo: number }>(
		`SELECT set_no AS setNo, count(*) AS segments, sum((cells - 1) * cell_bytes + last_cell_bytes) AS bytes
			FROM segments WHERE object_no = ? GROUP BY set_no`,
		objectNo,
	);
	for (const part of parts) leaveSet(sql, part.setNo, part);
}

function joined(shards: readonly { workerId: WorkerId }[]): string {
	return shards
		.map(({ workerId }) => workerId)
		.sort()
		.join();
}
