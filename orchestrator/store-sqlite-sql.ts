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

export class CachedSql implements Sql {
	readonly #db: DatabaseSync;
	readonly #statements = new Map<string, StatementSync>();

	constructor(db: DatabaseSync) {
		this.#db = db;
	}

	#prepared(text: string): StatementSync {
		let statement = this.#statements.get(text);
		if (statement === undefined) {
			statement = this.#db.prepare(text);
			this.#statements.set(text, statement);
		}
		return statement;
	}

	run(text: string, ...values: SqlValue[]): { changes: number; lastRowId: number } {
		const { changes, lastInsertRowid } = this.#prepared(text).run(...values);
		return { changes: Number(changes), lastRowId: Number(lastInsertRowid) };
	}

	get<Row>(text: string, ...values: SqlValue[]): Row | undefined {
		return this.#prepared(text).get(...values) as Row | undefined;
	}

	all<Row>(text: string, ...values: SqlValue[]): Row[] {
		return this.#prepared(text).all(...values) as Row[];
	}

	get inTransaction(): boolean {
		return this.#db.isTransaction;
	}
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
