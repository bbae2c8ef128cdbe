/**
 * What a move of metadata moves: every table of both databases, with its key and its columns. The two sides make their SQL
 * from this, and a test fails when a schema has a table or a column that is not named here.
 *
 * Rows of a table may refer to those of tables before it, never of later ones.
 */

import { API_KEYS_FILE } from './api-keys.ts';

/** `prose` is for people: what Postgres can't hold (NUL) is left out of it. */
export type ColumnType = 'id' | 'integer' | 'text' | 'prose' | 'bytes' | 'flag';

export interface MovedTable {
	readonly name: string;
	/** Unique; pages go by it. */
	readonly key: readonly [string, ...string[]];
	/** The key's as well. */
	readonly columns: Readonly<Record<string, ColumnType>>;
	/** Of the key: numbers that the database gives out, and goes on with after the highest. */
	readonly numbered?: string;
	/** Columns that say nothing: their default is their only value. */
	readonly constant?: readonly string[];
	/** In SQLite a file of its own beside the others'. */
	readonly file?: string;
	/** Columns that one side lacks. What moved rows get in Postgres; in SQLite it is the default. */
	readonly onlySupabase?: Readonly<Record<string, string | null>>;
	readonly onlySqlite?: readonly string[];
	/** Rows of a page, where a thousand could be many megabytes. */
	readonly pageRows?: number;
}

export const PAGE_ROWS = 1_000;

export const MOVED_TABLES: readonly MovedTable[] = [
	{
		name: 'cluster',
		key: ['cluster_id'],
		columns: { cluster_id: 'id', created_at_ms: 'integer', revision: 'integer' },
		constant: ['one'],
	},
	{
		name: 'cluster_keys',
		key: ['generation'],
		columns: {
			generation: 'integer',
			created_at_ms: 'integer',
			master_key_id: 'text',
			wrapped: 'bytes',
			unused_since_ms: 'integer',
		},
	},
	{
		name: 'workers',
		key: ['worker_id'],
		columns: {
			worker_id: 'id',
			name: 'text',
			address: 'text',
			zone: 'text',
			receipt_key: 'bytes',
			registered_at_ms: 'integer',
			last_seen_ms: 'integer',
			bytes_total: 'integer',
			bytes_used: 'integer',
			shards: 'integer',
			duty: 'text',
			history: 'text',
		},
	},
	{
		name: 'keys_on_volumes',
		key: ['worker_id'],
		columns: { worker_id: 'id', revision: 'integer' },
	},
	{
		name: 'forgotten_workers',
		key: ['worker_id'],
		columns: { worker_id: 'id', forgotten_at_ms: 'integer' },
	},
	{
		name: 'objects',
		key: ['object_no'],
		columns: {
			object_no: 'integer',
			object_id: 'id',
			version_id: 'id',
			upload_id: 'id',
			size_bytes: 'integer',
			segments: 'integer',
			created_at_ms: 'integer',
			etag: 'text',
			key_generation: 'integer',
			wrapped_key: 'bytes',
			manifest: 'bytes',
			inline: 'bytes',
			deleted_at_ms: 'integer',
			purge_at_ms: 'integer',
			kind: 'text',
		},
		numbered: 'object_no',
		onlySqlite: ['spread_no'],
		onlySupabase: { spread_id: null },
		// An inline object may have 64 KiB.
		pageRows: 100,
	},
	{
		name: 'segments',
		key: ['object_no', 'segment'],
		columns: {
			object_no: 'integer',
			segment: 'integer',
			codec: 'text',
			k: 'integer',
			n: 'integer',
			cell_bytes: 'integer',
			cells: 'integer',
			last_cell_bytes: 'integer',
			seal_id: 'id',
			encoding_id: 'id',
			end_record: 'bytes',
			roots: 'bytes',
			because: 'prose',
			was: 'prose',
		},
		onlySqlite: ['set_no'],
		onlySupabase: { set_id: '0'.repeat(32) },
		pageRows: 500,
	},
	{
		name: 'placements',
		key: ['object_no', 'segment', 'shard_index'],
		columns: {
			object_no: 'integer',
			segment: 'integer',
			shard_index: 'integer',
			shard_id: 'id',
			worker_id: 'id',
			key_generation: 'integer',
		},
	},
	{
		name: 'intents',
		key: ['upload_id'],
		columns: { upload_id: 'id', object_id: 'id', expires_at_ms: 'integer', began_at_ms: 'integer' },
	},
	{
		name: 'intent_shards',
		key: ['upload_id', 'shard_id'],
		columns: { upload_id: 'id', shard_id: 'id', worker_id: 'id' },
	},
	{
		name: 'idempotency',
		key: ['owner', 'key'],
		columns: {
			owner: 'text',
			key: 'text',
			fingerprint: 'text',
			upload_id: 'id',
			expires_at_ms: 'integer',
			object_id: 'id',
		},
		// Whoever claimed is gone: a claim without an intent is free at once.
		onlySupabase: { claimed_at_ms: '0' },
	},
	{
		name: 'deletions',
		key: ['item_no'],
		columns: { item_no: 'integer', worker_id: 'id', shard_id: 'id', queued_at_ms: 'integer', for_good: 'flag' },
		numbered: 'item_no',
	},
	{
		name: 'deletion_log',
		key: ['entry_no'],
		columns: {
			entry_no: 'integer',
			object_id: 'id',
			action: 'text',
			at_ms: 'integer',
			by_key: 'text',
			hash: 'bytes',
		},
	},
	{
		name: 'deletion_head',
		key: ['entries'],
		columns: { entries: 'integer', hash: 'bytes' },
		constant: ['one'],
	},
	{
		name: 'findings',
		key: ['shard_id'],
		columns: {
			shard_id: 'id',
			object_no: 'integer',
			worker_id: 'id',
			kind: 'text',
			detail: 'prose',
			found_at_ms: 'integer',
		},
	},
	{
		name: 'repairs',
		key: ['item_no'],
		columns: {
			item_no: 'integer',
			object_no: 'integer',
			segment: 'integer',
			shard_index: 'integer',
			spares: 'integer',
			attempts: 'integer',
			due_at_ms: 'integer',
		},
		numbered: 'item_no',
	},
	{
		name: 'jobs',
		key: ['name'],
		columns: { name: 'text', paused: 'flag', runs: 'integer', state: 'text', updated_at_ms: 'integer' },
	},
	{
		name: 'api_keys',
		key: ['key_id'],
		columns: { key_id: 'text', secret_hash: 'bytes', scope: 'text', label: 'text', created_at_ms: 'integer' },
		file: API_KEYS_FILE,
	},
];

/** Made anew in the target from what was moved there: each side names worker sets in a way of its own. */
export const DERIVED_TABLES: readonly string[] = ['worker_sets', 'spreads'];

/** Tables that stay, and why. */
export const LEFT_TABLES: Readonly<Record<string, string>> = {
	totals: 'triggers count what is written; compared at the end',
	leases: 'their holders are gone',
	removals: 'their callers are gone',
	deletion_notes: 'empty but while a transaction runs',
	move: 'the mark of the move itself',
	schema_version: 'the schema of that database alone',
};

export function columnsOf(table: MovedTable): readonly string[] {
	return Object.keys(table.columns);
}
