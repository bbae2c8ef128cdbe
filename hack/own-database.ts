/**
 * The PostgreSQL and PostgREST of a cluster of `make run METADATA=supabase` that is stopped, for as long as a command needs
 * them. The caller holds the supervisor's lock.
 */

import { join } from 'node:path';
import { POSTGRES, POSTGREST } from './environment.ts';
import { startGuard } from './guard.ts';

/** Sets the environment that names it, and answers how to stop it. When this process is killed it stops as well. */
export async function startOwnDatabase(cluster: string): Promise<() => Promise<void>> {
	// Loaded only where they are used: they need packages of development.
	const { startPostgres, startPostgrest } = await import('./dev-database.ts');
	const { migrate } = await import('./migrate.ts');
	const folder = join(cluster, POSTGRES);
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
