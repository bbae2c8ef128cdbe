/** What `make run`, `make start` and `npm run keys` must agree on: where the data are. */

import { join, resolve } from 'node:path';

export const ROOT = resolve(import.meta.dirname, '..');
/** The one orchestrator of `make run`; its folder in DATA_DIR has this name. */
export const ORCHESTRATOR = 'orchestrator-1';
/** In the folder of PostgREST: what SUPABASE_KEY_FILE names with `METADATA=supabase`. */
export const SERVICE_KEY_FILE = 'service.key';

/** The folder of the whole cluster. */
export function clusterDataDir(): string {
	return resolve(process.env.DATA_DIR || join(ROOT, 'data'));
}
