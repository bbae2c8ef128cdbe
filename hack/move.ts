/**
 * `npm run move -- --from sqlite --to supabase`: the metadata of the cluster that `make run` starts, while it is stopped.
 * DATA_DIR is that of `make run`. Without SUPABASE_URL it is the PostgreSQL of `make run METADATA=supabase`, which runs for
 * as long as this takes. Beside any other orchestrator: orchestrator/move.ts.
 */

import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { useOrchestratorDataDir } from './environment.ts';
import { startGuard } from './guard.ts';
import { tryLock } from './lock.ts';

useOrchestratorDataDir();
const cluster = dirname(process.env.DATA_DIR ?? '');
const isOfRun = existsSync(join(cluster, 'ca', 'cluster-id'));
const isGiven = (process.env.SUPABASE_URL ?? '') !== '';
try {
	if (isOfRun && !tryLock(join(cluster, 'supervisor.lock'))) {
		throw new Error(`a cluster runs on ${cluster}, or its metadata are being moved: stop it first`);
	}
	const stop = isOfRun && !isGiven ? await startOwnDatabase() : async () => {};
	try {
		await import('../orchestrator/move.ts');
	} finally {
		await stop();
	}
} catch (error) {
	process.stderr.write(`${(error as Error).message}\n`);
	process.exitCode = 1;
}

/** Answers how to stop it. When this process is killed it stops as well. */
async function startOwnDatabase(): Promise<() => Promise<void>> {
	// Loaded only where they are used: they need packages of development.
	const { hasPostgres, startPostgres, startPostgrest } = await import('./dev-database.ts');
	const { POSTGRES, POSTGREST } = await import('./database-members.ts');
	const { migrate } = await import('./migrate.ts');
	const folder = join(cluster, POSTGRES);
	if (!hasPostgres(folder) && !existsSync(join(process.env.DATA_DIR ?? '', 'metadata.db'))) {
		throw new Error(`there is no metadata in ${cluster}: nothing to move`);
	}
	const guard = startGuard();
	const running: { name: string; stop(): Promise<void> }[] = [];
	const stop = async () => {
		for (const { name, stop: end } of running.toReversed()) {
			await end();
			guard.tell(name, null);
		}
		guard.pipe.end();
	};
	try {
		const database = await startPostgres({ folder });
		running.push({ name: POSTGRES, stop: database.stop });
		guard.tell(POSTGRES, database.child.pid ?? null);
		await migrate(database.url);
		const rest = await startPostgrest({ folder, database });
		running.push({ name: POSTGREST, stop: rest.stop });
		guard.tell(POSTGREST, rest.child.pid ?? null);
		Object.assign(process.env, { SUPABASE_URL: rest.url, SUPABASE_KEY: rest.serviceKey, SUPABASE_KEY_FILE: '' });
		return stop;
	} catch (error) {
		await stop();
		throw error;
	}
}
