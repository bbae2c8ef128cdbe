/**
 * `distro init`: the development authority of a cluster in containers, and the identity and certificate of each process.
 *
 * CLUSTER_DIR holds one folder (a volume) for the authority, `ca`, and one for each process: `orchestrator-1`, `worker-1`
 * to `worker-<WORKERS>`. A process gets only its own, so none can read another's key. Run again, it keeps what is good.
 * Where the authority was lost, CLUSTER_ID (it is in the keys.json of every worker) makes a new one of the same cluster.
 */

import { join } from 'node:path';
import { openAuthority } from './authority.ts';
import { ORCHESTRATOR } from './environment.ts';
import { issueOrchestrator, issueWorker } from './identities.ts';

const folder = process.env.CLUSTER_DIR ?? '/cluster';
const workers = Number(process.env.WORKERS ?? '6');
if (!Number.isInteger(workers) || workers < 1) {
	process.stderr.write('WORKERS must be a whole number, such as 6.\n');
	process.exit(2);
}
const local = ['localhost', '127.0.0.1'];
const { CLUSTER_ID: clusterId = '' } = process.env;
if (!/^([0-9a-f]{32})?$/.test(clusterId)) {
	process.stderr.write('CLUSTER_ID must be 32 lower-case hexadecimal digits.\n');
	process.exit(2);
}
const authority = await openAuthority(join(folder, 'ca'), clusterId === '' ? {} : { clusterId });
await issueOrchestrator(authority, join(folder, ORCHESTRATOR), ['orchestrator', ...local]);
for (let i = 1; i <= workers; i++) {
	await issueWorker(authority, join(folder, `worker-${i}`), [`worker-${i}`, ...local]);
}
process.stdout.write(
	`cluster ${authority.clusterId}: an orchestrator and ${workers} workers have their certificates\n`,
);
