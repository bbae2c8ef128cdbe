/**
 * PostgreSQL and PostgREST as members of a development cluster: `make run METADATA=supabase`. Their data and secrets are
 * in DATA_DIR, made at random for it; the master key, which all orchestrators share then, as well.
 *
 * The password and the signing secret are in `postgres/secrets.json`, the service key in `postgrest/service.key`, each
 * for the owner alone.
 */

import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { createFileDurably, writeFileDurably } from '../platform/files.ts';
import { startPostgres, startPostgrest } from './dev-database.ts';
import { hasPostgres, ORCHESTRATOR, POSTGRES, POSTGREST, SERVICE_KEY_FILE } from './environment.ts';
import type { Member } from './members.ts';
import { migrate } from './migrate.ts';
import { freePort, LOOPBACK } from './ports.ts';

export interface DatabaseMembers {
	/** In the order in which they start. */
	readonly members: readonly Member[];
	/** What every orchestrator needs to know of it. */
	readonly orchestratorEnv: Record<string, string>;
}

export async function databaseMembers(dataDir: string): Promise<DatabaseMembers> {
	const folder = join(dataDir, POSTGRES);
	const restFolder = join(dataDir, POSTGREST);
	const keyFile = join(restFolder, SERVICE_KEY_FILE);
	const [port, restPort] = [await freePort(), await freePort()];
	const http = `http://${LOOPBACK}:${restPort}`;
	const postgres: Member = {
		shown: { name: POSTGRES, role: 'postgres', address: `${LOOPBACK}:${port}`, dataDir: folder },
		prepare: async () => {
			mkdirSync(folder, { recursive: true, mode: 0o700 });
		},
		launch: async (watch) => {
			const database = await startPostgres({ folder, port, watch });
			try {
				await migrate(database.url);
			} catch (error) {
				await database.stop();
				throw error;
			}
			return database.child;
		},
		isReady: async () => true,
		// A fast shutdown: sessions are ended.
		stopSignal: 'SIGINT',
	};
	const postgrest: Member = {
		shown: { name: POSTGREST, role: 'postgrest', http, dataDir: restFolder },
		prepare: async () => {
			mkdirSync(restFolder, { recursive: true, mode: 0o700 });
		},
		launch: async (watch) => {
			const rest = await startPostgrest({ folder, database: { port }, port: restPort, watch });
			writeFileDurably(keyFile, `${rest.serviceKey}\n`, { mode: 0o600 });
			return rest.child;
		},
		isReady: async () => true,
		stopSignal: 'SIGTERM',
	};
	// Empty counts as absent: a key of another database may be in the environment.
	const env = { SUPABASE_URL: http, SUPABASE_KEY: '', SUPABASE_KEY_FILE: keyFile };
	return { members: [postgres, postgrest], orchestratorEnv: { ...env, ...masterKeyEnv(dataDir) } };
}

/** All orchestrators need the same one. It lies where the first one's own would be, so that metadata can move. */
function masterKeyEnv(dataDir: string): Record<string, string> {
	if ((process.env.MASTER_KEY || process.env.MASTER_KEY_FILE || '') !== '') return {};
	const folder = join(dataDir, ORCHESTRATOR);
	const path = join(folder, 'master.key');
	if (!existsSync(path)) {
		if (hasPostgres(dataDir) || existsSync(join(folder, 'metadata.db'))) {
			throw new Error(
				`${dataDir} has metadata and no ${path}: restore that file, or set MASTER_KEY to the key that was used; nothing was changed`,
			);
		}
		mkdirSync(folder, { recursive: true, mode: 0o700 });
		createFileDurably(path, `${randomBytes(32).toString('hex')}\n`, { mode: 0o600 });
	}
	return { MASTER_KEY_FILE: path };
}
