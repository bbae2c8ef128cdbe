/**
 * Identity and certificate of a process in its data folder, for `make run` and compose: the id is made once and kept, the
 * certificate is made anew when little of it is left.
 */

import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Authority } from './authority.ts';
import { ROOT } from './environment.ts';

/** Where the certificate of a data folder is. */
export function tlsFolder(dataDir: string): string {
	return join(dataDir, 'tls');
}

/** `hosts` are names and addresses that the process is dialled by; `tls` is where the certificate goes. */
export async function issueOrchestrator(
	authority: Authority,
	dataDir: string,
	hosts: readonly string[],
	tls = tlsFolder(dataDir),
) {
	mkdirSync(dataDir, { recursive: true, mode: 0o700 });
	const idFile = join(dataDir, 'id');
	if (!existsSync(idFile)) writeFileSync(idFile, randomBytes(16).toString('hex'));
	const id = readFileSync(idFile, 'utf8');
	await authority.issue(tls, { role: 'orchestrator', id, hosts });
}

export async function issueWorker(
	authority: Authority,
	dataDir: string,
	hosts: readonly string[],
	tls = tlsFolder(dataDir),
) {
	mkdirSync(dataDir, { recursive: true, mode: 0o700 });
	// An empty environment: a worker's code gets no master key.
	const command = [join(ROOT, 'worker/init.ts'), dataDir];
	const made = execFileSync(process.execPath, command, { encoding: 'utf8', stdio: 'pipe', env: {} });
	const id = (JSON.parse(made) as { workerId: string }).workerId;
	await authority.issue(tls, { role: 'worker', id, hosts });
}
