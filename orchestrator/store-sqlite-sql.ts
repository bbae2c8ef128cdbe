/**
 * Statements on one SQLite database, prepared once each, and SQLite's failures as DistroErrors.
 *
 * SQL text is always a constant of this code base; what comes from outside is only ever bound. That also bounds the cache.
 */

import type { DatabaseSync, StatementSync } from 'node:sqlite';
import { DistroError, type ErrorKind } from '../core/errors.ts';

export type SqlValue = null | number | string | Uint8Array;

/** What tables are written against: small enough for tests to wrap with faults. */
export interface Sql {
	/** How many rows it changed, and the last row id it gave out. */
	run(statement: string, ...values: SqlValue[]): { changes: number; lastRowId: number };
	/** The first row. Integers beyond 2^53 - 1 throw. */
	get<Row>(statement: string, ...values: SqlValue[]): Row | undefined;
	all<Row>(statement: string, ...values: SqlValue[]): Row[];
	/** Whether a transaction is open. SQLite ends one by itself when the disk is full. */
	readonly inTransaction: boolean;
}

interface Prepared {
	readonly statement: StatementSync;
	/** Names of the result's columns. */
	readonly names: readonly string[];
}

export class CachedSql implements Sql {
	readonly #db: DatabaseSync;
	readonly #prepared = new Map<string, Prepared>();

	constructor(db: DatabaseSync) {
		this.#db = db;
	}

	#prepare(text: string): Prepared {
		let prepared = this.#prepared.get(text);
		if (prepared === undefined) {
			const statement = this.#db.prepare(text);
			const names = statement.columns().map(({ name }) => name);
			// Rows as node:sqlite makes them are dictionaries: slow to make, to copy and to serialize.
			statement.setReturnArrays(true);
			prepared = { statement, names };
			this.#prepared.set(text, prepared);
		}
		return prepared;
	}

	run(text: string, ...values: SqlValue[]): { changes: number; lastRowId: number } {
		const { changes, lastInsertRowid } = this.#prepare(text).statement.run(...values);
		return { changes: Number(changes), lastRowId: Number(lastInsertRowid) };
	}

	get<Row>(text: string, ...values: SqlValue[]): Row | undefined {
		const { statement, names } = this.#prepare(text);
		const row = statement.get(...values) as unknown as SqlValue[] | undefined;
		return row === undefined ? undefined : (rowOf(names, row) as Row);
	}

	all<Row>(text: string, ...values: SqlValue[]): Row[] {
		const { statement, names } = this.#prepare(text);
		const rows = statement.all(...values) as unknown as SqlValue[][];
		return rows.map((row) => rowOf(names, row) as Row);
	}

	get inTransaction(): boolean {
		return this.#db.isTransaction;
	}
}

function rowOf(names: readonly string[], values: readonly SqlValue[]): Record<string, SqlValue> {
	const row: Record<string, SqlValue> = {};
	for (let index = 0; index < names.length; index++) row[names[index] as string] = values[index] as SqlValue;
	return row;
}

/** SQLite hands blobs out as Uint8Array. */
export function bufferOf(bytes: Uint8Array): Buffer {
	return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Primary result codes of SQLite (sqlite.org/rescode.html) that mean something to a caller. */
const KINDS: Readonly<Record<number, { kind: ErrorKind; text: string }>> = {
	5: { kind: 'unavailable', text: 'the database is locked by another process' },
	8: { kind: 'unavailable', text: 'the database cannot be written: look at its permissions and its file system' },
	10: { kind: 'unavailable', text: 'the disk of the database failed' },
	11: { kind: 'corrupt', text: 'the database is damaged: restore it from a snapshot' },
	13: { kind: 'exhausted', text: 'the disk of the database is full: make room' },
	14: { kind: 'unavailable', text: 'the database file cannot be opened: look at its folder and permissions' },
	26: { kind: 'corrupt', text: 'the file is not a SQLite database' },
};

/** What SQLite threw, as a DistroError; others (DistroErrors too) pass unchanged. */
export function sqliteError(thrown: unknown): unknown {
	if (!(thrown instanceof Error) || !('errcode' in thrown) || typeof thrown.errcode !== 'number') return thrown;
	const known = KINDS[thrown.errcode & 0xff];
	if (known === undefined) return thrown;
	return new DistroError(known.kind, `${known.text} (${thrown.message})`, { cause: thrown });
}
