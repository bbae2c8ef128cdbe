/**
 * A real PostgreSQL with a real PostgREST for tests, migrated, in a temporary folder on free ports. Where it can't start
 * the tests fail with the reason.
 */

import { randomBytes } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import postgres from 'postgres';
import { type DevPostgres, type DevPostgrest, startPostgres, startPostgrest } from '../../hack/dev-database.ts';
import { ROOT } from '../../hack/environment.ts';
import { migrate } from '../../hack/migrate.ts';

export interface TestSupabase {
	/** For SUPABASE_URL and SUPABASE_KEY. The address stays the same when PostgREST is started again. */
	readonly url: string;
	readonly key: string;
	/** The keys that were given out are refused from now on; `key` is another one. PostgREST starts again. */
	revokeKeys(): Promise<void>;
	readonly anonKey: string;
	/** As the superuser, past everything. */
	readonly sql: postgres.Sql;
	/** For `migrate`. */
	readonly postgresUrl: string;
	/** Removes all rows. */
	clear(): Promise<void>;
	/** Stops PostgREST: SUPABASE_URL does not answer. */
	stopRest(): Promise<void>;
	startRest(): Promise<void>;
	/** The process of PostgREST, to be stopped and continued. */
	restPid(): number;
	stopPostgres(): Promise<void>;
	startPostgres(): Promise<void>;
	remove(): Promise<void>;
}

export async function startSupabase(options: { durable?: boolean; migrated?: boolean } = {}): Promise<TestSupabase> {
	const { durable = false, migrated = true } = options;
	const folder = mkdtempSync(join(tmpdir(), 'distro-supabase-'));
	let database: DevPostgres | null = null;
	let rest: DevPostgrest | null = null;
	let sql: postgres.Sql | null = null;
	const remove = async () => {
		await sql?.end({ timeout: 1 });
		await rest?.stop();
		await database?.stop();
		rmSync(folder, { recursive: true, force: true });
	};
	try {
		database = await startPostgres({ folder, durable });
		if (migrated) await migrate(database.url);
		rest = await startPostgrest({ folder, database });
		sql = postgres(database.adminUrl, { max: 2, onnotice: () => {} });
	} catch (error) {
		await remove();
		throw error;
	}
	const admin = sql;
	const { port: postgresPort, url: postgresUrl } = database;
	const { url } = rest;
	const port = Number(new URL(url).port);
	let { serviceKey, anonKey } = rest;
	const startRest = async () => {
		rest = await startPostgrest({ folder, database: { port: postgresPort }, port });
	};
	return {
		url,
		get key() {
			return serviceKey;
		},
		get anonKey() {
			return anonKey;
		},
		revokeKeys: async () => {
			await rest?.stop();
			const secrets = join(folder, 'secrets.json');
			const { password } = JSON.parse(readFileSync(secrets, 'utf8')) as { password: string };
			writeFileSync(secrets, JSON.stringify({ password, jwt: randomBytes(32).toString('hex') }));
			await startRest();
			serviceKey = rest?.serviceKey as string;
			anonKey = rest?.anonKey as string;
		},
		sql: admin,
		postgresUrl,
		clear: async () => {
			const tables = await admin<{ name: string }[]>`
				SELECT tablename AS name FROM pg_tables WHERE schemaname = 'distro'`;
			const list = tables.map(({ name }) => `distro.${name}`).join();
			await admin.unsafe(`TRUNCATE ${list} RESTART IDENTITY; INSERT INTO distro.totals (slot) VALUES (0)`);
		},
		stopRest: async () => {
			await rest?.stop();
		},
		startRest,
		restPid: () => rest?.child.pid as number,
		stopPostgres: async () => {
			await database?.stop();
		},
		startPostgres: async () => {
			database = await startPostgres({ folder, durable, port: postgresPort });
		},
		remove,
	};
}

/** As somebody did who has not migrated since. */
export async function migrateBefore({ postgresUrl }: TestSupabase, version: string): Promise<void> {
	const folder = join(ROOT, 'supabase/migrations');
	const sql = postgres(postgresUrl, { max: 1, onnotice: () => {} });
	await sql.unsafe(`
		CREATE SCHEMA supabase_migrations;
		CREATE TABLE supabase_migrations.schema_migrations (version text PRIMARY KEY)`);
	for (const file of readdirSync(folder).sort()) {
		const of = file.slice(0, version.length);
		if (of >= version) continue;
		await sql.unsafe(readFileSync(join(folder, file), 'utf8'));
		await sql`INSERT INTO supabase_migrations.schema_migrations (version) VALUES (${of})`;
	}
	await sql.end();
}
