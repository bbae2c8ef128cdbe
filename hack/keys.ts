/**
 * `npm run keys -- …`: the API keys of the cluster that `make run` starts, before its first start as well. DATA_DIR is that of
 * `make run`; the orchestrator's own folder is in it. Where the metadata are in a database, the keys are there: that of a
 * cluster with `METADATA=supabase` is asked while it runs, and started for this where it does not. Beside any other
 * orchestrator: orchestrator/keys.ts.
 */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { readClusterFile } from './cluster-file.ts';
import { hasPostgres, SERVICE_KEY_FILE, useOrchestratorDataDir } from './environment.ts';
import { tryLock } from './lock.ts';
import { startOwnDatabase } from './own-database.ts';

const cluster = useOrchestratorDataDir();
const postgrest = readClusterFile(cluster)?.processes.find(({ role }) => role === 'postgrest');
const isGiven = (process.env.SUPABASE_URL ?? '') !== '';
const isSqlite = existsSync(join(process.env.DATA_DIR ?? '', 'metadata.db'));
const isOwn = (process.env.METADATA || (hasPostgres(cluster) && !isSqlite ? 'supabase' : 'sqlite')) === 'supabase';
let stop = async () => {};
try {
	if (!isGiven && postgrest?.http !== undefined) {
		process.env.SUPABASE_URL = postgrest.http;
		process.env.SUPABASE_KEY = '';
		process.env.SUPABASE_KEY_FILE = join(postgrest.dataDir, SERVICE_KEY_FILE);
	} else if (!isGiven && isOwn) {
		if (!hasPostgres(cluster)) {
			throw new Error(
				'the API keys will be in the database of the cluster, which is not there yet: make run METADATA=supabase once',
			);
		}
		if (!tryLock(join(cluster, 'supervisor.lock'))) {
			throw new Error(`the cluster on ${cluster} is just starting or stopping: try again`);
		}
		stop = await startOwnDatabase(cluster);
	}
	await import('../orchestrator/keys.ts');
} catch (error) {
	process.stderr.write(`${(error as Error).message}\n`);
	process.exitCode = 1;
} finally {
	await stop();
}
