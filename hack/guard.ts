/** Starts guard.sh, which ends the database when the supervisor was killed and the orchestrators have ended. */

import { spawn } from 'node:child_process';
import { join } from 'node:path';
import type { Writable } from 'node:stream';

export interface Guard {
	/** Orchestrators inherit it: the database outlives them. */
	readonly pipe: Writable;
	/** `pid` null: it is down. */
	tell(name: string, pid: number | null): void;
}

export function startGuard(): Guard {
	const child = spawn('/bin/sh', [join(import.meta.dirname, 'guard.sh')], {
		env: { PATH: process.env.PATH ?? '' },
		// Ctrl-C is for the supervisor.
		detached: true,
		stdio: ['pipe', 'ignore', 'ignore'],
	});
	const pipe = child.stdin;
	// Without it only a killed supervisor leaves something behind.
	child.on('error', () => {});
	pipe.on('error', () => {});
	return {
		pipe,
		tell: (name, pid) => {
			pipe.write(`${name} ${pid ?? ''}\n`);
		},
	};
}
