/**
 * `npm run move -- --from sqlite --to supabase`: the metadata of the cluster that `make run` starts, while it is stopped.
 * DATA_DIR is that of `make run`. Without SUPABASE_URL it is the PostgreSQL of `make run METADATA=supabase`, which runs for
 * as long as this takes. Beside any other orchestrator: orchestrator/move.ts.
 */

import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { hasPostgres, useOrchestratorDataDir } from './environment.ts';
import { tryLock } from './lock.ts';
import { startOwnDatabase } from './own-database.ts';

useOrchestratorDataDir();
const cluster = dirname(process.env.DATA_DIR ?? '');
const isOfRun = existsSync(join(cluster, 'ca', 'cluster-id'));
const isGiven = (process.env.SUPABASE_URL ?? '') !== '';
try {
	if (isOfRun && !tryLock(join(cluster, 'supervisor.lock'))) {
		throw new Error(`a cluster runs on ${cluster}, or its metadata are being moved: stop it first`);
	}
	const isOwn = isOfRun && !isGiven;
	if (isOwn && !hasPostgres(cluster) && !existsSync(join(process.env.DATA_DIR ?? '', 'metadata.db'))) {
		throw new Error(`there is no metadata in ${cluster}: nothing to move`);
	}
	const stop = isOwn ? await startOwnDatabase(cluster) : async () => {};
	try {
		await import('../orchestrator/move.ts');
	} finally {
		await stop();
	}
} catch (error) {
	process.stderr.write(`${(error as Error).message}\n`);
	process.exitCode = 1;
}
