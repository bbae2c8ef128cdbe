/**
 * `make migrate`: applies supabase/migrations to the database that SUPABASE_DB_URL names, for people without the Supabase
 * CLI. It keeps the same record of what was applied (supabase_migrations.schema_migrations), so both ways may be mixed.
 *
 * Idempotent: what is recorded is left alone. Two at once wait for each other. A database of a newer release is refused.
 */

import { readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import postgres from 'postgres';
import { DistroError } from '../core/errors.ts';
import { SCHEMA_VERSION } from '../orchestrator/store-supabase-schema.ts';

const MIGRATIONS = resolve(import.meta.dirname, '../supabase/migrations');
/** Any number of our own: two migrations at once wait here. */
const LOCK = 7_233_402;

interface Migration {
	readonly version: string;
	readonly name: string;
	readonly text: string;
}

/** Throws `unsupported` when the database is newer, `unavailable` when it can't be reached. Answers what was applied now. */
export async function migrate(url: string): Promise<readonly string[]> {
	const sql = postgres(url, { max: 1, connect_timeout: 15, onnotice: () => {} });
	try {
		return await sql.begin(async (tx) => {
			await tx`SELECT pg_advisory_xact_lock(${LOCK})`;
			await refuseNewer(tx);
			await tx.unsafe(`
				CREATE SCHEMA IF NOT EXISTS supabase_migrations;
				CREATE TABLE IF NOT EXISTS supabase_migrations.schema_migrations (version text PRIMARY KEY);
				ALTER TABLE supabase_migrations.schema_migrations ADD COLUMN IF NOT EXISTS statements text[];
				ALTER TABLE supabase_migrations.schema_migrations ADD COLUMN IF NOT EXISTS name text;
			`);
			const rows = await tx<{ version: string }[]>`SELECT version FROM supabase_migrations.schema_migrations`;
			const known = new Set(rows.map(({ version }) => version));
			const due = readMigrations().filter(({ version }) => !known.has(version));
			for (const { version, name, text } of due) {
				await tx.unsafe(text);
				await tx`INSERT INTO supabase_migrations.schema_migrations (version, name, statements)
					VALUES (${version}, ${name}, ${[text]})`;
			}
			return due.map(({ version, name }) => `${version}_${name}`);
		});
	} catch (error) {
		if (error instanceof DistroError) throw error;
		throw new DistroError('unavailable', `the database could not be migrated: ${reasonOf(error)}`, { cause: error });
	} finally {
		await sql.end({ timeout: 5 });
	}
}

async function refuseNewer(tx: postgres.TransactionSql): Promise<void> {
	const [there] = await tx`SELECT to_regprocedure('public.distro_schema()') AS schema`;
	if (there?.schema === null) return;
	const [found] = await tx<{ version: number }[]>`SELECT public.distro_schema() AS version`;
	const version = found?.version ?? 0;
	if (version <= SCHEMA_VERSION) return;
	throw new DistroError(
		'unsupported',
		`the database was migrated by a newer release (schema ${version}, this one knows ${SCHEMA_VERSION}): run that release`,
	);
}

function readMigrations(): Migration[] {
	return readdirSync(MIGRATIONS)
		.sort()
		.flatMap((file) => {
			const match = /^(\d+)_(.+)\.sql$/.exec(file);
			if (match === null) return [];
			const [, version = '', name = ''] = match;
			return [{ version, name, text: readFileSync(join(MIGRATIONS, file), 'utf8') }];
		});
}

/** Never the URL, which holds the password. */
function reasonOf(error: unknown): string {
	const { code, message } = error as { code?: string; message?: string };
	return message !== undefined && message !== '' ? message : (code ?? 'no reason was given');
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
	const url = process.env.SUPABASE_DB_URL ?? '';
	try {
		if (!/^postgres(ql)?:\/\//.test(url)) {
			throw new DistroError(
				'invalid',
				'SUPABASE_DB_URL must name the database, such as postgres://postgres:PASSWORD@HOST:5432/postgres',
			);
		}
		const applied = await migrate(url);
		const done = applied.length === 0 ? 'nothing to do' : `applied ${applied.join(', ')}`;
		process.stdout.write(`The database is at schema ${SCHEMA_VERSION}: ${done}.\n`);
	} catch (error) {
		process.stderr.write(`${(error as Error).message}\n`);
		process.exitCode = 1;
	}
}
