/**
 * The SQLite side of a move of metadata. It owns the file as an orchestrator does, so neither can run beside the other; a
 * file that is not there is opened (and made) only when it gets its mark.
 */

import { existsSync, mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { DatabaseSync, StatementSync } from 'node:sqlite';
import type { ShardId } from '../core/ids.ts';
import type { ObjectKind } from '../core/model/manifest.ts';
import type { Segment } from '../core/model/segment.ts';
import { openApiKeysFile } from './api-keys.ts';
import {
	type MovedRow,
	type MoveMark,
	type MoveSide,
	type MoveTotals,
	notEmpty,
	otherMove,
	type SideState,
} from './move-side.ts';
import { type ColumnType, columnsOf, DERIVED_TABLES, MOVED_TABLES, type MovedTable } from './move-tables.ts';
import { segmentsOf } from './store-sqlite-objects.ts';
import { openDatabaseToMove, readMark } from './store-sqlite-schema.ts';
import { enterSets } from './store-sqlite-sets.ts';
import { CachedSql, type Sql, type SqlValue, sqliteError } from './store-sqlite-sql.ts';

/** How a value gets out as text, and in again. */
const AS_TEXT: Readonly<Record<ColumnType, (column: string) => string>> = {
	id: (column) => column,
	text: (column) => column,
	prose: (column) => column,
	integer: (column) => `CAST(${column} AS TEXT)`,
	// hex(NULL) is ''.
	flag: (column) => `iif(${column}, 'true', 'false')`,
	bytes: (column) => `iif(${column} IS NULL, NULL, lower(hex(${column})))`,
};
const FROM_TEXT: Readonly<Record<ColumnType, string>> = {
	id: '?',
	text: '?',
	prose: '?',
	integer: 'CAST(? AS INTEGER)',
	flag: "? = 'true'",
	bytes: 'unhex(?)',
};

const FILES = MOVED_TABLES.flatMap(({ file }) => file ?? []);

export class SqliteMoveSide implements MoveSide {
	readonly kind = 'sqlite';
	readonly name: string;
	readonly #path: string;
	#db: DatabaseSync | null = null;
	readonly #statements = new Map<string, StatementSync>();

	constructor(path: string) {
		this.#path = path;
		this.name = `SQLite (${path})`;
	}

	get #open(): DatabaseSync {
		if (this.#db === null) {
			mkdirSync(dirname(this.#path), { recursive: true, mode: 0o700 });
			this.#db = openDatabaseToMove(this.#path);
			for (const file of FILES) attach(this.#db, join(dirname(this.#path), file));
		}
		return this.#db;
	}

	#prepare(text: string): StatementSync {
		let statement = this.#statements.get(text);
		if (statement === undefined) {
			statement = this.#open.prepare(text);
			statement.setReturnArrays(true);
			this.#statements.set(text, statement);
		}
		return statement;
	}

	#all(text: string, ...values: SqlValue[]): MovedRow[] {
		return this.#prepare(text).all(...values) as unknown as MovedRow[];
	}

	/** All or nothing. */
	#transaction<T>(operation: () => T): T {
		const db = this.#open;
		try {
			db.exec('BEGIN IMMEDIATE');
			const result = operation();
			db.exec('COMMIT');
			return result;
		} catch (thrown) {
			if (db.isTransaction) db.exec('ROLLBACK');
			throw sqliteError(thrown);
		}
	}

	#filled(): string[] {
		return MOVED_TABLES.map(({ name }) => name).filter((name) => this.#all(`SELECT 1 FROM ${name} LIMIT 1`).length > 0);
	}

	async state(): Promise<SideState> {
		if (this.#db === null && !existsSync(this.#path)) return { clusterId: null, mark: null, usedBy: [], filled: [] };
		const [cluster] = this.#all('SELECT cluster_id FROM cluster');
		return { clusterId: cluster?.[0] ?? null, mark: readMark(this.#open), usedBy: [], filled: this.#filled() };
	}

	async setMark(mark: MoveMark | null, options: { expected: string | null; empty?: boolean }): Promise<void> {
		this.#transaction(() => {
			const known = readMark(this.#open);
			if ((known?.moveId ?? null) !== options.expected) throw otherMove(this.name);
			if (options.empty === true && this.#filled().length > 0) throw notEmpty(this.name, this.#filled());
			this.#prepare('DELETE FROM move').run();
			if (mark === null) return;
			const { moveId, clusterId, phase, other, beganAtMs, place } = mark;
			this.#prepare(
				'INSERT INTO move (move_id, cluster_id, phase, other, began_at_ms, place) VALUES (?, ?, ?, ?, ?, ?)',
			).run(moveId, clusterId, phase, other, beganAtMs, place);
		});
	}

	async page(
		table: MovedTable,
		options: { columns: readonly string[]; after: MovedRow | null; limit: number },
	): Promise<MovedRow[]> {
		const key = table.key.join(', ');
		const after = options.after === null ? '' : `WHERE (${key}) > (${marks(table, table.key)})`;
		const statement = `SELECT ${values(table, options.columns)} FROM ${table.name} ${after} ORDER BY ${key} LIMIT ?`;
		const rows = this.#all(statement, ...(options.after ?? []), options.limit);
		return rows.map((row) => row.map((value, at) => readable(table, options.columns[at] as string, value)));
	}

	async find(table: MovedTable, keys: readonly MovedRow[]): Promise<MovedRow[]> {
		const statement = `SELECT ${values(table, columnsOf(table))} FROM ${table.name}
			WHERE (${table.key.join(', ')}) = (${marks(table, table.key)})`;
		return keys.flatMap((key) => this.#all(statement, ...key));
	}

	async write(
		table: MovedTable,
		batch: { moveId: string; rows: readonly MovedRow[]; from: string | null; place: string },
	): Promise<void> {
		const columns = columnsOf(table);
		this.#inPlace(batch, () => {
			// A transaction over two files may end in one of them only, and is done again then.
			const insert = this.#prepare(
				`INSERT ${table.file === undefined ? '' : 'OR REPLACE'} INTO ${table.name} (${columns.join(', ')}) VALUES (${marks(table, columns)})`,
			);
			for (const row of batch.rows) insert.run(...row);
		});
	}

	async derive(batch: {
		moveId: string;
		objects: readonly string[];
		from: string | null;
		place: string;
	}): Promise<void> {
		const sql = new CachedSql(this.#open);
		this.#inPlace(batch, () => {
			for (const objectNo of batch.objects) enterMovedObject(sql, Number(objectNo));
		});
	}

	/** One transaction that also says how far the move is. */
	#inPlace(batch: { moveId: string; from: string | null; place: string }, operation: () => void): void {
		this.#transaction(() => {
			const held = this.#held(batch.moveId, 'copying');
			if (held.place !== batch.from) throw otherMove(this.name);
			operation();
			this.#prepare('UPDATE move SET place = ?').run(batch.place);
		});
	}

	async clear(table: MovedTable, { moveId, limit }: { moveId: string; limit: number }): Promise<number> {
		const key = table.key.join(', ');
		return this.#transaction(() => {
			this.#held(moveId, 'clearing');
			const { changes } = this.#prepare(
				`DELETE FROM ${table.name} WHERE (${key}) IN (SELECT ${key} FROM ${table.name} LIMIT ?)`,
			).run(limit);
			return Number(changes);
		});
	}

	async clearDerived(moveId: string): Promise<void> {
		this.#transaction(() => {
			this.#held(moveId, 'clearing');
			for (const table of DERIVED_TABLES) this.#prepare(`DELETE FROM ${table}`).run();
		});
	}

	#held(moveId: string, phase: MoveMark['phase']): MoveMark {
		const held = readMark(this.#open);
		if (held === null || held.moveId !== moveId || held.phase !== phase) throw otherMove(this.name);
		return held;
	}

	/** Nothing to do: row numbers go on after the highest by themselves. */
	async renumber(): Promise<void> {}

	async totals(): Promise<MoveTotals> {
		const [row = []] = this.#all(`
			SELECT CAST(objects + trash_objects AS TEXT), CAST(bytes + trash_bytes AS TEXT), CAST(deletions AS TEXT), CAST(repairs AS TEXT),
				(SELECT CAST(coalesce(sum(segments), 0) AS TEXT) FROM worker_sets),
				(SELECT CAST(coalesce(sum(objects), 0) AS TEXT) FROM spreads)
				FROM totals`);
		const [objects, bytes, deletions, repairs, onSets, onSpreads] = row as readonly string[] as Six;
		return { objects, bytes, deletions, repairs, onSets, onSpreads };
	}

	async close(): Promise<void> {
		this.#db?.close();
		this.#db = null;
	}
}

type Six = readonly [string, string, string, string, string, string];

/** Worker sets and spread of an object whose rows are there, as if it were written now. */
function enterMovedObject(sql: Sql, objectNo: number): void {
	const object = sql.get(
		'SELECT size_bytes AS sizeBytes, segments, purge_at_ms AS purgeAtMs, kind FROM objects WHERE object_no = ?',
		objectNo,
	) as { sizeBytes: number; segments: number; purgeAtMs: number | null; kind: ObjectKind };
	const marked = sql.all<{ shardId: ShardId }>(
		'SELECT shard_id AS shardId FROM findings WHERE object_no = ?',
		objectNo,
	);
	const bad = new Set(marked.map(({ shardId }) => shardId));
	const segments = segmentsOf(sql, objectNo, { fromSegment: 0, limit: object.segments }).map((segment) => ({
		...segment,
		placements: segment.placements.filter(({ shardId }) => !bad.has(shardId)),
	}));
	const isUncounted = object.purgeAtMs !== null || object.kind !== 'user';
	const { spreadNo, setNos } = enterSets(sql, { ...object, isUncounted }, segments);
	sql.run('UPDATE objects SET spread_no = ? WHERE object_no = ?', spreadNo, objectNo);
	for (const [at, setNo] of setNos.entries()) {
		const { index } = segments[at] as Segment;
		sql.run('UPDATE segments SET set_no = ? WHERE object_no = ? AND segment = ?', setNo, objectNo, index);
	}
}

/** Owned as the first file is, from the first access on. */
function attach(db: DatabaseSync, path: string): void {
	openApiKeysFile(path).close();
	try {
		db.prepare('ATTACH ? AS apart').run(path);
	} catch (thrown) {
		throw sqliteError(thrown);
	}
}

function typeOf(table: MovedTable, column: string): ColumnType {
	return table.columns[column] as ColumnType;
}

/** SQLite's own `replace` takes a NUL for nothing. */
function readable(table: MovedTable, column: string, value: string | null): string | null {
	return value === null || typeOf(table, column) !== 'prose' ? value : value.replaceAll('\0', '');
}

function values(table: MovedTable, columns: readonly string[]): string {
	return columns.map((column) => AS_TEXT[typeOf(table, column)](column)).join(', ');
}

function marks(table: MovedTable, columns: readonly string[]): string {
	return columns.map((column) => FROM_TEXT[typeOf(table, column)]).join(', ');
}
