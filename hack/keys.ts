/**
 * `npm run keys -- …`: the API keys of the cluster that `make run` starts, before its first start as well. DATA_DIR is that of
 * `make run`; the orchestrator's own folder is in it. Where the metadata are in a database, the keys are there: that of a
 * cluster with `METADATA=supabase` is asked while it runs. Beside any other orchestrator: orchestrator/keys.ts.
 */

import { join } from 'node:path';
import { readClusterFile } from './cluster-file.ts';
import { SERVICE_KEY_FILE, useOrchestratorDataDir } from './environment.ts';

const given = useOrchestratorDataDir();
const postgrest = readClusterFile(given)?.processes.find(({ role }) => role === 'postgrest');
const isOwn = (process.env.SUPABASE_URL ?? '') === '';
if (isOwn && postgrest?.http !== undefined) {
	process.env.SUPABASE_URL = postgrest.http;
	process.env.SUPABASE_KEY = '';
	process.env.SUPABASE_KEY_FILE = join(postgrest.dataDir, SERVICE_KEY_FILE);
}
if (isOwn && postgrest === undefined && process.env.METADATA === 'supabase') {
	console.error(
		'With METADATA=supabase the API keys are in the database of the cluster, which does not run: make run, and then again',
	);
	process.exitCode = 1;
} else await import('../orchestrator/keys.ts');
