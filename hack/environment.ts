/** What `make run`, `make start`, `npm run keys` and `npm run move` must agree on: where the data are. */

import { existsSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { loadDotenv } from '../platform/env.ts';

export const ROOT = resolve(import.meta.dirname, '..');
/** The one orchestrator of `make run`; its folder in DATA_DIR has this name. */
export const ORCHESTRATOR = 'orchestrator-1';
/** Their folders in DATA_DIR, with `METADATA=supabase`. */
export const POSTGRES = 'postgres';
export const POSTGREST = 'postgrest';
/** In the folder of PostgreSQL. */
export const POSTGRES_DATA = 'pgdata';
/** In the folder of PostgREST: what SUPABASE_KEY_FILE names with `METADATA=supabase`. */
export const SERVICE_KEY_FILE = 'service.key';

/** Whether the cluster's own PostgreSQL has made its data. */
export function hasPostgres(dataDir: string): boolean {
	return existsSync(join(dataDir, POSTGRES, POSTGRES_DATA));
}

/** The folder of the whole cluster. */
export function clusterDataDir(): string {
	return resolve(process.env.DATA_DIR || join(ROOT, 'data'));
}

/** For commands beside an orchestrator: DATA_DIR becomes the orchestrator's own folder in that of `make run`, or stays it. Answers what it was. */
export function useOrchestratorDataDir(): string {
	loadDotenv();
	const given = clusterDataDir();
	// Who names the orchestrator's own folder means that one.
	const isOrchestrators = basename(given) === ORCHESTRATOR || existsSync(join(given, 'metadata.db'));
	process.env.DATA_DIR = isOrchestrators ? given : join(given, ORCHESTRATOR);
	return given;
}
