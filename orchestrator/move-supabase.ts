/**
 * The Supabase side of a move of metadata: the function `distro_move` (supabase/migrations), with the address and the key
 * that orchestrators have. A call whose answer was lost is repeated; the functions see to it that this is safe.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { asDistroError, DistroError } from '../core/errors.ts';
import type { Random } from '../core/ports.ts';
import { backoffMs } from '../core/retry.ts';
import type { SupabaseAddress } from './config.ts';
import {
	closedByMove,
	inUse,
	type MovedRow,
	type MoveMark,
	type MoveSide,
	type MoveTotals,
	notEmpty,
	otherMove,
	type SideState,
} from './move-side.ts';
import { columnsOf, DERIVED_TABLES, MOVED_TABLES, type MovedTable } from './move-tables.ts';
import { connectSupabase } from './store-supabase-connect.ts';
import { Refusal } from './store-supabase-errors.ts';
import { storable } from './store-supabase-rows.ts';
import type { Fetch, SupabaseRpc } from './store-supabase-rpc.ts';

/** Longer than the function's own limit. */
const TIMEOUT_MS = 60_000;
const MAX_TRIES = 8;
const RETRY_BASE_MS = 200;
const RETRY_MAX_MS = 5_000;
const TABLES = MOVED_TABLES.map(({ name }) => name);

/** Throws what `connectSupabase` throws. */
export async function openSupabaseMoveSide(
	address: SupabaseAddress,
	options: { random: Random; fetch?: Fetch; retryMaxMs?: number },
): Promise<MoveSide> {
	const { random, retryMaxMs, ...net } = options;
	return new SupabaseMoveSide(await connectSupabase({ ...address, ...net }), { random, retryMaxMs });
}

/** For an orchestrator that starts. Throws `conflict` while a move of the metadata forbids to use them. */
export async function refuseMoved(rpc: SupabaseRpc): Promise<void> {
	const { mark } = toState(await call(rpc, { action: 'state', tables: [] }));
	if (mark !== null) throw closedByMove(mark, nameOf(rpc));
}

class SupabaseMoveSide implements MoveSide {
	readonly kind = 'supabase';
	readonly name: string;
	readonly #rpc: SupabaseRpc;
	readonly #random: Random;
	readonly #retryMaxMs: number;

	constructor(rpc: SupabaseRpc, options: { random: Random; retryMaxMs?: number | undefined }) {
		this.#rpc = rpc;
		this.name = nameOf(rpc);
		this.#random = options.random;
		this.#retryMaxMs = options.retryMaxMs ?? RETRY_MAX_MS;
	}

	async #call(action: string, args: object = {}): Promise<unknown> {
		for (let attempt = 0; ; attempt++) {
			try {
				return await call(this.#rpc, { action, ...args });
			} catch (thrown) {
				const error = asDistroError(thrown);
				if (error instanceof Refusal) throw this.#refusal(error);
				if ((error.kind !== 'unavailable' && error.kind !== 'timeout') || attempt + 1 >= MAX_TRIES) throw error;
				await sleep(backoffMs(attempt, { baseMs: RETRY_BASE_MS, maxMs: this.#retryMaxMs, random: this.#random }));
			}
		}
	}

	#refusal({ word, detail, message }: Refusal): DistroError {
		switch (word) {
			case 'other_move':
				return otherMove(this.name);
			case 'not_empty':
				return notEmpty(this.name, JSON.parse(detail) as string[]);
			case 'in_use':
				return inUse(this.name, JSON.parse(detail) as string[]);
			default:
				return new DistroError('internal', `${message} ${detail}`);
		}
	}

	async state(): Promise<SideState> {
		return toState(await this.#call('state', { tables: TABLES }));
	}

	async setMark(
		mark: MoveMark | null,
		options: { expected: string | null; unused?: boolean; empty?: boolean },
	): Promise<void> {
		const { expected, unused = false, empty = false } = options;
		await this.#call('setMark', { mark: toJson(mark), expected, unused, tables: empty ? TABLES : [] });
	}

	async page(
		table: MovedTable,
		options: { columns: readonly string[]; after: MovedRow | null; limit: number },
	): Promise<MovedRow[]> {
		return (await this.#call('page', { table: table.name, key: table.key, ...options })) as MovedRow[];
	}

	async find(table: MovedTable, keys: readonly MovedRow[]): Promise<MovedRow[]> {
		const args = { table: table.name, key: table.key, columns: columnsOf(table), keys };
		return (await this.#call('find', args)) as MovedRow[];
	}

	async write(
		table: MovedTable,
		batch: { moveId: string; rows: readonly MovedRow[]; from: string | null; place: string },
	): Promise<void> {
		const added = Object.entries(table.onlySupabase ?? {});
		const values = added.map(([, value]) => value);
		const columns = [...columnsOf(table), ...added.map(([column]) => column)];
		const rows = batch.rows.map((row) => [...row.map((value) => checked(table, row, value)), ...values]);
		await this.#call('write', { ...batch, table: table.name, columns, rows });
	}

	async derive(batch: {
		moveId: string;
		objects: readonly string[];
		from: string | null;
		place: string;
	}): Promise<void> {
		await this.#call('derive', batch);
	}

	async clearDerived(moveId: string): Promise<void> {
		await this.#call('clearDerived', { moveId, tables: DERIVED_TABLES });
	}

	async clear(table: MovedTable, options: { moveId: string; limit: number }): Promise<number> {
		return (await this.#call('clear', { table: table.name, ...options })) as number;
	}

	async renumber(): Promise<void> {
		const numbered = MOVED_TABLES.flatMap((table) =>
			table.numbered === undefined ? [] : [[table.name, table.numbered]],
		);
		await this.#call('renumber', { numbered });
	}

	async totals(): Promise<MoveTotals> {
		return (await this.#call('totals')) as MoveTotals;
	}

	async close(): Promise<void> {}
}

function nameOf(rpc: SupabaseRpc): string {
	return `Supabase (${rpc.host})`;
}

async function call(rpc: SupabaseRpc, args: object): Promise<unknown> {
	const { ok } = (await rpc.call('distro_move', { call: args }, { timeoutMs: TIMEOUT_MS })) as { ok: unknown };
	return ok;
}

function checked(table: MovedTable, row: MovedRow, value: string | null): string | null {
	if (value === null) return null;
	try {
		return storable(value);
	} catch (cause) {
		throw new DistroError('invalid', `${(cause as Error).message}: ${table.name} ${JSON.stringify(row)}`, { cause });
	}
}

type MarkJson = Omit<MoveMark, 'beganAtMs'> & { readonly beganAtMs: string };

function toState(answer: unknown): SideState {
	const state = answer as Omit<SideState, 'mark'> & { readonly mark: MarkJson | null };
	const mark = state.mark === null ? null : { ...state.mark, beganAtMs: Number(state.mark.beganAtMs) };
	return { ...state, mark };
}

function toJson(mark: MoveMark | null): MarkJson | null {
	return mark === null ? null : { ...mark, beganAtMs: String(mark.beganAtMs) };
}
