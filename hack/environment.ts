/** What `make run`, `make start` and `npm run keys` must agree on: the `.env` in the root, and where the data are. */

import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';

export const ROOT = resolve(import.meta.dirname, '..');
/** The one orchestrator of `make run`; its folder in DATA_DIR has this name. */
export const ORCHESTRATOR = 'orchestrator-1';

/** What the environment says already goes before what `.env` says. Tests that need none set DISTRO_NO_DOTENV. */
export function loadDotEnv(): void {
	const file = join(ROOT, '.env');
	if (process.env.DISTRO_NO_DOTENV === undefined && existsSync(file)) process.loadEnvFile(file);
}

/** The folder of the whole cluster. */
export function clusterDataDir(): string {
	return resolve(process.env.DATA_DIR || join(ROOT, 'data'));
}
