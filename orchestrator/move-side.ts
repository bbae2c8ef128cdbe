/**
 * One side of a move of metadata: a database that is read, or filled, table by table. Adapters: move-sqlite.ts,
 * move-supabase.ts; who uses it: move-metadata.ts.
 *
 * While a mark is there no orchestrator starts on that database, and Supabase refuses the writes of those that run.
 */

import { DistroError } from '../core/errors.ts';
import type { MovedTable } from './move-tables.ts';

/** Values as text, whatever the database: ids and bytes in lower-case hexadecimal digits, integers in decimal ones. */
export type MovedRow = readonly (string | null)[];

export type SideKind = 'sqlite' | 'supabase';

export interface MoveMark {
	/** Both sides of one move have the same. */
	readonly moveId: string;
	readonly clusterId: string;
	/** `moving` and `moved`: the source. `clearing` and `copying`: the target. */
	readonly phase: 'moving' | 'moved' | 'clearing' | 'copying';
	/** The other side, for people. */
	readonly other: string;
	readonly beganAtMs: number;
	/** The target's: after which row of which table the copy goes on, JSON. */
	readonly place: string | null;
}

export interface SideState {
	readonly clusterId: string | null;
	readonly mark: MoveMark | null;
	/** Who uses it, as far as that can be seen; empty when nobody does. */
	readonly usedBy: readonly string[];
	/** Tables that have rows. */
	readonly filled: readonly string[];
}

/** Failures are DistroErrors; every call may be repeated when its answer was lost. */
export interface MoveSide {
	readonly kind: SideKind;
	/** For people: what it is and where. */
	readonly name: string;
	/** Changes nothing. */
	state(): Promise<SideState>;
	/**
	 * Sets the mark, or takes it away, if the one of the move `expected` is there (null: none). `conflict` otherwise, and when
	 * it must be `unused` or `empty` and is not. Waits for writes that are under way; later ones are refused.
	 */
	setMark(
		mark: MoveMark | null,
		options: { expected: string | null; unused?: boolean; empty?: boolean },
	): Promise<void>;
	/** In an order of its own, after the row with that key. */
	page(
		table: MovedTable,
		options: { columns: readonly string[]; after: MovedRow | null; limit: number },
	): Promise<MovedRow[]>;
	/** Those of the rows with these keys that are there, in no order. */
	find(table: MovedTable, keys: readonly MovedRow[]): Promise<MovedRow[]>;
	/** Writes rows and the mark's new place in one transaction, if the mark is this move's and at `from`. */
	write(
		table: MovedTable,
		batch: { moveId: string; rows: readonly MovedRow[]; from: string | null; place: string },
	): Promise<void>;
	/** Makes worker sets and spreads of these objects, whose rows are all there, and moves the place as `write` does. */
	derive(batch: { moveId: string; objects: readonly string[]; from: string | null; place: string }): Promise<void>;
	/** Removes up to `limit` rows, while the mark says `clearing`; how many there were. */
	clear(table: MovedTable, options: { moveId: string; limit: number }): Promise<number>;
	/** Removes all that was derived, while the mark says `clearing`. */
	clearDerived(moveId: string): Promise<void>;
	/** Numbers that are given out go on after the highest. */
	renumber(): Promise<void>;
	/** What the database's own counts say, bytes exactly. */
	totals(): Promise<MoveTotals>;
	close(): Promise<void>;
}

export interface MoveTotals {
	readonly objects: string;
	readonly bytes: string;
	readonly deletions: string;
	readonly repairs: string;
	/** Segments of all worker sets, and objects of all spreads. */
	readonly onSets: string;
	readonly onSpreads: string;
}

/** Why no orchestrator may use a database that has a mark. `here` is that database, for people. */
export function closedByMove({ phase, other, beganAtMs }: MoveMark, here: string): DistroError {
	const when = new Date(beganAtMs).toISOString().slice(0, 16).replace('T', ' ');
	switch (phase) {
		case 'moving':
			return new DistroError(
				'conflict',
				`a move of the metadata in ${here} to ${other} has begun (${when} UTC) and is not finished: run the same move again, or give it up with --give-up`,
			);
		case 'moved':
			return new DistroError(
				'conflict',
				`the metadata in ${here} was moved to ${other} (${when} UTC), and what is here is old: start the orchestrator there. To come back, stop every orchestrator and move the metadata back with --replace (docs/supabase.md)`,
			);
		case 'clearing':
		case 'copying':
			return new DistroError(
				'conflict',
				`the metadata in ${here} is half-moved from ${other} (begun ${when} UTC): run the same move again, and it goes on`,
			);
	}
}

export function otherMove(name: string): DistroError {
	return new DistroError('conflict', `${name} was changed by somebody else meanwhile: run the move again`);
}

export function notEmpty(name: string, tables: readonly string[]): DistroError {
	return new DistroError(
		'conflict',
		`${name} is not empty (${tables.join(', ')}) and no half-finished copy of this move: move into an empty one`,
	);
}

export function inUse(name: string, holders: readonly string[]): DistroError {
	return new DistroError(
		'conflict',
		`${name} is in use: an orchestrator holds ${holders.join(', ')}. Stop every orchestrator; after a crash wait half a minute`,
	);
}
