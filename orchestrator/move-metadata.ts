/**
 * Moves the metadata of one cluster from one database into another: copies table by table in batches, compares row by row,
 * and only then closes the source and opens the target. The marks (move-side.ts) carry it over a kill at any moment:
 *
 *     source   –  → moving ─────────────────→ moved
 *     target   –  → (clearing →) copying ───────────→ –
 *
 * At no moment can orchestrators start on both, and the source loses nothing.
 */

import { DistroError } from '../core/errors.ts';
import { newId } from '../core/ids.ts';
import type { Clock, Random } from '../core/ports.ts';
import {
	closedByMove,
	inUse,
	type MovedRow,
	type MoveMark,
	type MoveSide,
	notEmpty,
	type SideState,
} from './move-side.ts';
import { columnsOf, MOVED_TABLES, type MovedTable, PAGE_ROWS } from './move-tables.ts';

export interface MoveDeps {
	readonly from: MoveSide;
	readonly to: MoveSide;
	readonly clock: Clock;
	readonly random: Random;
	/** A line of progress, for people. */
	readonly say: (line: string) => void;
}

export interface MoveResult {
	/** `before`: by an earlier run, and nothing was done now. */
	readonly moved: 'now' | 'before';
	/** Rows compared, by table. */
	readonly rows: ReadonlyMap<string, number>;
}

interface Move extends MoveDeps {
	readonly mark: MoveMark;
}

type Place = readonly [table: string, key: MovedRow];

const OBJECTS = MOVED_TABLES.find(({ name }) => name === 'objects') as MovedTable;
/** Stands for a table in a place: all are copied. */
const DERIVING = 'worker sets';
const DERIVE_SEGMENTS = 1_000;
const SAY_EVERY_MS = 2_000;
/** A key is much shorter than a row. */
const KEY_PAGE_ROWS = 5_000;

/**
 * Throws `conflict` with a sentence that says what to do, and has changed nothing then: the source is in use, empty, or old;
 * the target is neither empty nor this move's half-finished copy. `replace`: a target that is closed (moved away, or
 * half-moved) and of the same cluster is emptied first. Throws `corrupt` when the copy is not like the source.
 */
export async function moveMetadata(deps: MoveDeps, options: { replace?: boolean } = {}): Promise<MoveResult> {
	const { from, to, say } = deps;
	const source = await from.state();
	refuseSource(source, from);
	const target = await to.state();
	if (isDone(source, target)) return { moved: 'before', rows: new Map() };
	const mark = await begin(deps, { source, target, replace: options.replace === true });
	const move: Move = { ...deps, mark };
	// The source is closed after everything was compared, so then only the last step is left.
	if (source.mark?.phase === 'moved') {
		await to.setMark(null, { expected: mark.moveId });
		return { moved: 'now', rows: new Map() };
	}
	await copyAll(move);
	await to.renumber();
	const rows = await compareAll(move);
	await from.setMark({ ...mark, phase: 'moved', other: to.name, place: null }, { expected: mark.moveId });
	await to.setMark(null, { expected: mark.moveId });
	say(`Moved: ${from.name} is closed, start the orchestrators on ${to.name}.`);
	return { moved: 'now', rows };
}

/**
 * Undoes a move that is not finished: empties the target, then opens the source again. Throws `conflict` when there is none
 * between these two, or when all is compared already.
 */
export async function giveUpMove({ from, to, say }: MoveDeps): Promise<void> {
	const { mark } = await from.state();
	if (mark === null || mark.phase !== 'moving') {
		throw new DistroError('conflict', `no move from ${from.name} has begun that could be given up`);
	}
	const { mark: copied } = await to.state();
	// A target without this move's mark was never written to by it.
	if (copied?.moveId === mark.moveId) {
		await to.setMark({ ...copied, phase: 'clearing', place: null }, { expected: mark.moveId });
		await clearAll(to, mark.moveId);
		await to.setMark(null, { expected: mark.moveId });
	}
	await from.setMark(null, { expected: mark.moveId });
	say(`Given up: ${from.name} is as it was, and can be used again.`);
}

function refuseSource({ clusterId, mark, usedBy }: SideState, { name }: MoveSide): void {
	if (mark?.phase === 'clearing' || mark?.phase === 'copying') throw closedByMove(mark, name);
	if (clusterId === null) throw new DistroError('not_found', `there is no metadata in ${name}: nothing to move`);
	if (usedBy.length > 0) throw inUse(name, usedBy);
}

function isDone(source: SideState, target: SideState): boolean {
	return source.mark?.phase === 'moved' && target.mark === null && target.clusterId === source.clusterId;
}

/** Marks both sides, or finds them marked, and answers the target's mark. */
async function begin(
	deps: MoveDeps,
	{ source, target, replace }: { source: SideState; target: SideState; replace: boolean },
): Promise<MoveMark> {
	const { from, to, clock, random } = deps;
	const known = source.mark;
	if (known !== null && target.mark?.moveId === known.moveId) return target.mark;
	if (known?.phase === 'moved') throw closedByMove(known, from.name);
	const isClosed = target.mark !== null && target.mark.clusterId === source.clusterId;
	if (target.mark !== null && !(isClosed && replace)) {
		const hint = isClosed ? ' To replace what is there, add --replace.' : '';
		throw new DistroError('conflict', `${closedByMove(target.mark, to.name).message}.${hint}`);
	}
	if (target.mark === null && target.filled.length > 0) throw notEmpty(to.name, target.filled);

	const clusterId = source.clusterId as string;
	const moveId = known?.moveId ?? newId(random);
	const both = { moveId, clusterId, beganAtMs: known?.beganAtMs ?? clock.nowMs(), place: null };
	if (known === null) {
		await from.setMark({ ...both, phase: 'moving', other: to.name }, { expected: null, unused: true });
	}
	const phase = target.mark === null ? 'copying' : 'clearing';
	const mark: MoveMark = { ...both, phase, other: from.name };
	try {
		await to.setMark(mark, { expected: target.mark?.moveId ?? null, empty: phase === 'copying' });
	} catch (error) {
		// Somebody was faster there. Where even this fails the next run goes on from here.
		const isRefusal = error instanceof DistroError && error.kind === 'conflict';
		if (known === null && isRefusal) await from.setMark(null, { expected: moveId });
		throw error;
	}
	return mark;
}

async function clearAll(to: MoveSide, moveId: string): Promise<void> {
	for (const table of MOVED_TABLES.toReversed()) {
		while ((await to.clear(table, { moveId, limit: PAGE_ROWS })) > 0);
	}
	await to.clearDerived(moveId);
}

async function copyAll({ from, to, mark, clock, say }: Move): Promise<void> {
	const { moveId } = mark;
	if (mark.phase === 'clearing') {
		say(`Emptying ${to.name} of its old copy.`);
		await clearAll(to, moveId);
		await to.setMark({ ...mark, phase: 'copying' }, { expected: moveId });
	}
	let place = mark.place;
	const [reached, reachedKey] = place === null ? [MOVED_TABLES[0]?.name, null] : (JSON.parse(place) as Place);
	if (place !== null) say(`Goes on in ${reached}, where it was interrupted.`);
	const first = reached === DERIVING ? MOVED_TABLES.length : MOVED_TABLES.findIndex(({ name }) => name === reached);
	for (const [at, table] of MOVED_TABLES.slice(first).entries()) {
		const progress = new Progress(`copied ${table.name}`, { clock, say });
		let after: MovedRow | null = at === 0 ? reachedKey : null;
		for (;;) {
			const rows = await pageOf(from, table, after);
			const last = rows.at(-1);
			if (last === undefined) break;
			after = keyOf(table, last);
			const next = JSON.stringify([table.name, after] satisfies Place);
			await to.write(table, { moveId, rows, from: place, place: next });
			place = next;
			progress.add(rows.length);
		}
		progress.end();
	}
	const progress = new Progress('worker sets of objects', { clock, say });
	let after: MovedRow | null = reached === DERIVING ? reachedKey : null;
	for (;;) {
		const objects = await objectsToDerive(to, after);
		const last = objects.at(-1);
		if (last === undefined) break;
		after = [last];
		const next = JSON.stringify([DERIVING, after] satisfies Place);
		await to.derive({ moveId, objects, from: place, place: next });
		place = next;
		progress.add(objects.length);
	}
	progress.end();
}

/** Numbers of the next objects, as many as have about a thousand segments together. */
async function objectsToDerive(to: MoveSide, after: MovedRow | null): Promise<string[]> {
	const columns = ['object_no', 'segments'];
	const rows = (await to.page(OBJECTS, { columns, after, limit: PAGE_ROWS })) as [string, string][];
	const objects: string[] = [];
	let segments = 0;
	for (const [objectNo, count] of rows) {
		if (segments >= DERIVE_SEGMENTS) break;
		segments += Number(count);
		objects.push(objectNo);
	}
	return objects;
}

/** Every row of the source is in the target and equal, and there is no other. How many there are, by table. */
async function compareAll(move: Move): Promise<Map<string, number>> {
	const { to, clock, say } = move;
	const counted = new Map<string, number>();
	let objects = 0;
	let bytes = 0n;
	let onSpreads = 0;
	for (const table of MOVED_TABLES) {
		const progress = new Progress(`compared ${table.name}`, { clock, say });
		const [sizeAt, segmentsAt, purgeAt, kindAt] = ['size_bytes', 'segments', 'purge_at_ms', 'kind'].map((column) =>
			columnsOf(table).indexOf(column),
		) as [number, number, number, number];
		await compareRows(move, table, (rows) => {
			progress.add(rows.length);
			if (table !== OBJECTS) return;
			for (const row of rows) {
				// The cluster's own are in no count and on no spread.
				if (row[kindAt] !== 'user') continue;
				objects++;
				bytes += BigInt(row[sizeAt] as string);
				if (row[segmentsAt] !== '0' && row[purgeAt] === null) onSpreads++;
			}
		});
		// Keys are unique: as many rows, each of them found, are the same rows.
		const there = await countRows(to, table);
		if (there !== progress.rows) {
			throw different(`${table.name} has ${progress.rows} rows in the source and ${there} in the target`);
		}
		counted.set(table.name, there);
		progress.end();
	}
	const rows = (table: string) => `${counted.get(table)}`;
	const totals = await to.totals();
	const counts: [what: string, stored: string, expected: string][] = [
		['objects', totals.objects, `${objects}`],
		['bytes', totals.bytes, `${bytes}`],
		['deletions', totals.deletions, rows('deletions')],
		['repairs', totals.repairs, rows('repairs')],
		['segments on worker sets', totals.onSets, rows('segments')],
		['objects on worker sets', totals.onSpreads, `${onSpreads}`],
	];
	for (const [what, stored, expected] of counts) {
		if (stored !== expected) throw different(`the count of ${what} is ${stored} in the target and must be ${expected}`);
	}
	return counted;
}

async function compareRows(
	{ from, to }: Move,
	table: MovedTable,
	onRows: (rows: readonly MovedRow[]) => void,
): Promise<void> {
	let after: MovedRow | null = null;
	for (;;) {
		const rows = await pageOf(from, table, after);
		const last = rows.at(-1);
		if (last === undefined) return;
		const keys = rows.map((row) => keyOf(table, row));
		const found = new Map((await to.find(table, keys)).map((row) => [JSON.stringify(keyOf(table, row)), row]));
		for (const [at, row] of rows.entries()) {
			const key = JSON.stringify(keys[at]);
			if (JSON.stringify(found.get(key)) !== JSON.stringify(row)) {
				throw different(`${table.name} ${key} ${found.has(key) ? 'differs' : 'is missing'} in the target`);
			}
		}
		onRows(rows);
		after = keyOf(table, last);
	}
}

async function countRows(side: MoveSide, table: MovedTable): Promise<number> {
	let count = 0;
	let after: MovedRow | null = null;
	do {
		const keys: MovedRow[] = await side.page(table, { columns: table.key, after, limit: KEY_PAGE_ROWS });
		count += keys.length;
		after = keys.at(-1) ?? null;
	} while (after !== null);
	return count;
}

function pageOf(side: MoveSide, table: MovedTable, after: MovedRow | null): Promise<MovedRow[]> {
	return side.page(table, { columns: columnsOf(table), after, limit: table.pageRows ?? PAGE_ROWS });
}

function keyOf(table: MovedTable, row: MovedRow): MovedRow {
	const columns = columnsOf(table);
	return table.key.map((column) => row[columns.indexOf(column)] as string | null);
}

function different(what: string): DistroError {
	return new DistroError(
		'corrupt',
		`the copy is not like the source: ${what}. No orchestrator starts on it; give the move up (--give-up) and begin again`,
	);
}

/** Lines with counts and rates, not too many of them. */
class Progress {
	readonly #what: string;
	readonly #clock: Clock;
	readonly #say: (line: string) => void;
	readonly #beganMs: number;
	#saidMs: number;
	rows = 0;

	constructor(what: string, { clock, say }: { clock: Clock; say: (line: string) => void }) {
		this.#what = what;
		this.#clock = clock;
		this.#say = say;
		this.#beganMs = clock.monotonicMs();
		this.#saidMs = this.#beganMs;
	}

	add(rows: number): void {
		this.rows += rows;
		if (this.#clock.monotonicMs() - this.#saidMs >= SAY_EVERY_MS) this.#tell('…');
	}

	end(): void {
		this.#tell('');
	}

	#tell(more: string): void {
		const nowMs = this.#clock.monotonicMs();
		const perSecond = Math.round((this.rows * 1_000) / Math.max(1, nowMs - this.#beganMs));
		const rate = this.rows === 0 ? '' : `, ${perSecond.toLocaleString('en')} rows/s`;
		this.#say(`${this.#what}: ${this.rows.toLocaleString('en')} rows${rate}${more}`);
		this.#saidMs = nowMs;
	}
}
