/**
 * API keys: the port behind which they are kept, and its embedded adapter; the one for several orchestrators is in
 * api-keys-supabase.ts, and both pass api-keys.contract.ts.
 *
 * Here they have a small SQLite file of their own, which nobody locks: the command that makes and revokes keys (keys.ts) must
 * work beside a running orchestrator, which owns its metadata alone. Only hashes of secrets are kept (admin-keys.ts).
 */

import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { DistroError } from '../core/errors.ts';
import type { Clock } from '../core/ports.ts';
import { bufferOf, CachedSql, sqliteError } from './store-sqlite-sql.ts';

export const API_KEY_SCOPES = ['read', 'write', 'admin'] as const;
/** Each may do what the ones before it may. */
export type ApiKeyScope = (typeof API_KEY_SCOPES)[number];

export interface ApiKeyRow {
	/** Public part: 16 hexadecimal digits, stands in the key and in logs. */
	readonly keyId: string;
	/** SHA-256 of the secret part, 32 bytes. */
	readonly secretHash: Buffer;
	readonly scope: ApiKeyScope;
	readonly label: string;
	readonly createdAtMs: number;
}

export interface ApiKeyStore {
	/** Durable when it resolves. `exists` when the id is taken. */
	addApiKey(key: ApiKeyRow): Promise<void>;
	/**
	 * Oldest first. At most a second old, so that it can be asked for every request. With `mayBeOld`, at most five minutes
	 * old while they can't be read.
	 */
	apiKeys(options?: { mayBeOld?: boolean }): Promise<readonly ApiKeyRow[]>;
	/** False when there was none. */
	removeApiKey(keyId: string): Promise<boolean>;
	close(): Promise<void>;
}

export const API_KEYS_FILE = 'api-keys.db';
/** Other processes' changes are seen after this at the latest. */
export const API_KEYS_REFRESH_MS = 1_000;
/** Another process may be writing. */
const LOCK_WAIT_MS = 5_000;
const SCHEMA_VERSION = 1;

/** Opens `api-keys.db` in the orchestrator's data folder. Throws `unsupported` when a newer release wrote it. */
export function openApiKeys(options: { dataDir: string; clock: Clock }): ApiKeyStore {
	return new SqliteApiKeys(openApiKeysFile(join(options.dataDir, API_KEYS_FILE)), options.clock);
}

/** Made and migrated if need be. */
export function openApiKeysFile(path: string): DatabaseSync {
	let db: DatabaseSync | null = null;
	try {
		db = new DatabaseSync(path, { timeout: LOCK_WAIT_MS });
		db.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA fullfsync = ON');
		const { version } = db.prepare('SELECT user_version AS version FROM pragma_user_version').get() as {
			version: number;
		};
		if (version > SCHEMA_VERSION) {
			throw new DistroError('unsupported', `${path} was written by a newer release: run that release`);
		}
		// Nothing is written where nothing is new: it must open on a full disk.
		if (version < SCHEMA_VERSION) {
			db.exec(`
				CREATE TABLE IF NOT EXISTS api_keys (
					key_id TEXT PRIMARY KEY,
					secret_hash BLOB NOT NULL,
					scope TEXT NOT NULL CHECK (scope IN ('read', 'write', 'admin')),
					label TEXT NOT NULL,
					created_at_ms INTEGER NOT NULL
				) STRICT, WITHOUT ROWID;
				PRAGMA user_version = ${SCHEMA_VERSION};
			`);
		}
		return db;
	} catch (thrown) {
		db?.close();
		throw sqliteError(thrown);
	}
}

/** On the caller's thread: one small query a second, and writes only from the command. */
class SqliteApiKeys implements ApiKeyStore {
	readonly #db: DatabaseSync;
	readonly #sql: CachedSql;
	readonly #clock: Clock;
	#rows: readonly ApiKeyRow[] = [];
	#readAtMs = Number.NEGATIVE_INFINITY;

	constructor(db: DatabaseSync, clock: Clock) {
		this.#db = db;
		this.#sql = new CachedSql(db);
		this.#clock = clock;
	}

	async addApiKey(key: ApiKeyRow): Promise<void> {
		const { changes } = this.#do(() =>
			this.#sql.run(
				`INSERT INTO api_keys (key_id, secret_hash, scope, label, created_at_ms) VALUES (?, ?, ?, ?, ?)
					ON CONFLICT DO NOTHING`,
				key.keyId,
				key.secretHash,
				key.scope,
				key.label,
				key.createdAtMs,
			),
		);
		this.#readAtMs = Number.NEGATIVE_INFINITY;
		if (changes === 0) throw new DistroError('exists', `API key ${key.keyId} is there already`);
	}

	async apiKeys(): Promise<readonly ApiKeyRow[]> {
		const nowMs = this.#clock.monotonicMs();
		if (nowMs - this.#readAtMs < API_KEYS_REFRESH_MS) return this.#rows;
		const rows = this.#do(() =>
			this.#sql.all<Omit<ApiKeyRow, 'secretHash'> & { secretHash: Uint8Array }>(
				`SELECT key_id AS keyId, secret_hash AS secretHash, scope, label, created_at_ms AS createdAtMs
					FROM api_keys ORDER BY created_at_ms, key_id`,
			),
		);
		this.#rows = rows.map((row) => ({ ...row, secretHash: bufferOf(row.secretHash) }));
		this.#readAtMs = nowMs;
		return this.#rows;
	}

	async removeApiKey(keyId: string): Promise<boolean> {
		const { changes } = this.#do(() => this.#sql.run('DELETE FROM api_keys WHERE key_id = ?', keyId));
		this.#readAtMs = Number.NEGATIVE_INFINITY;
		return changes > 0;
	}

	#do<T>(operation: () => T): T {
		if (!this.#db.isOpen) throw new DistroError('unavailable', 'the API keys are closed');
		try {
			return operation();
		} catch (thrown) {
			throw sqliteError(thrown);
		}
	}

	async close(): Promise<void> {
		this.#readAtMs = Number.NEGATIVE_INFINITY;
		if (this.#db.isOpen) this.#db.close();
	}
}
