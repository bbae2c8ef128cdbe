/**
 * What a container runs: `node hack/entry.ts ROLE [arguments]`. It becomes the role's own process, with the role's node
 * flags and environment, so that there is one process and signals reach it as process 1.
 */

import { join } from 'node:path';
import { ROOT } from './environment.ts';
import { NODE_OPTIONS_OF } from './node-options.ts';

const PLAIN = { flags: [], env: {} };
const ROLES = {
	orchestrator: { main: 'orchestrator/main.ts', options: NODE_OPTIONS_OF.orchestrator },
	worker: { main: 'worker/main.ts', options: NODE_OPTIONS_OF.worker },
	keys: { main: 'orchestrator/keys.ts', options: PLAIN },
	move: { main: 'orchestrator/move.ts', options: PLAIN },
	restore: { main: 'orchestrator/restore.ts', options: PLAIN },
	init: { main: 'hack/init.ts', options: PLAIN },
	migrate: { main: 'hack/migrate.ts', options: PLAIN },
} as const;

const [role = '', ...rest] = process.argv.slice(2);
if (!Object.hasOwn(ROLES, role) || process.execve === undefined) {
	process.stderr.write(`usage: ${Object.keys(ROLES).join(' | ')}, on Node 24\n`);
	process.exit(2);
}
const { main, options } = ROLES[role as keyof typeof ROLES];
const args = [process.execPath, ...options.flags, join(ROOT, main), ...rest];
// What the deployment says about memory allocation and threads goes before what we found best.
process.execve(process.execPath, args, { ...options.env, ...process.env });
