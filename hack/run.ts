/**
 * `make run`: orchestrators and WORKERS workers as separate processes on loopback, with mTLS from a development authority in
 * DATA_DIR, and with METADATA=supabase a PostgreSQL and a PostgREST there. It starts them, waits until all are ready, and
 * says where to go. A process that does not start, or dies, stays down until `make start NAME=…`. Ctrl-C stops all of them.
 */

import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { loadDotenv } from '../platform/env.ts';
import { openAuthority } from './authority.ts';
import { type ClusterProcess, isAlive, readClusterFile, removeClusterFile } from './cluster-file.ts';
import { clusterDataDir, ORCHESTRATOR } from './environment.ts';
import { startGuard } from './guard.ts';
import { tryLock } from './lock.ts';
import { type Member, orchestratorMember, workerMember } from './members.ts';
import { port } from './ports.ts';
import { type RunSettings, readRunSettings } from './run-settings.ts';
import { Supervisor, say } from './supervisor.ts';

/** An orchestrator has ten seconds, and the database waits for it. */
const OUTLIVED_TIMEOUT_MS = 15_000;
const POLL_MS = 100;

loadDotenv();
const dataDir = clusterDataDir();
const masterKey = join(dataDir, ORCHESTRATOR, 'master.key');
const hadMasterKey = existsSync(masterKey);
const { settings, supervisor, members } = await prepare().catch((error: Error) => {
	process.stderr.write(`${error.message}\n`);
	process.exit(1);
});
// The terminal may be gone: the processes are stopped in order all the same.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => supervisor.stop(0));
const missing = await supervisor.startAll();
if (missing !== null) {
	welcome(missing);
	supervisor.serve();
}

async function prepare(): Promise<{ settings: RunSettings; supervisor: Supervisor; members: readonly Member[] }> {
	const settings = readRunSettings(process.env);
	takeFolder();
	await outlived(readClusterFile(dataDir)?.processes ?? []);
	warnOfLeftOut(settings);
	const own = settings.metadata === 'own';
	const guard = own ? startGuard() : null;
	// Loaded only where it is used: it needs packages of development.
	const database = own ? await (await import('./database-members.ts')).databaseMembers(dataDir) : null;
	const nodes = await nodeMembers(settings, { heldPipe: guard?.pipe ?? null, env: database?.orchestratorEnv ?? {} });
	const members = [...(database?.members ?? []), ...nodes];
	return { settings, supervisor: new Supervisor({ dataDir, members, guard }), members };
}

function takeFolder(): void {
	try {
		mkdirSync(dataDir, { recursive: true });
		if (tryLock(join(dataDir, 'supervisor.lock'))) return;
	} catch (error) {
		throw new Error(`DATA_DIR ${dataDir} can't be used: ${(error as Error).message}. Or choose another.`);
	}
	const { supervisor: pid } = readClusterFile(dataDir) ?? {};
	const how = pid !== undefined && isAlive(pid) ? ` (kill -INT ${pid})` : '';
	throw new Error(
		`DATA_DIR ${dataDir} can't be used: a cluster runs on it already: stop that one first${how}. Or choose another.`,
	);
}

/** Processes whose supervisor was killed stop by themselves; until then they have the data and the ports. */
async function outlived(processes: readonly ClusterProcess[]): Promise<void> {
	const deadline = Date.now() + OUTLIVED_TIMEOUT_MS;
	const running = () => processes.filter(({ pid }) => isAlive(pid));
	if (running().length > 0) say(`Waiting for ${running().length} processes of the cluster before to stop`);
	while (running().length > 0 && Date.now() < deadline) await sleep(POLL_MS);
	removeClusterFile(dataDir);
}

/** Fewer workers than before, or other metadata: what they have is there, and can't be read until they are back. */
function warnOfLeftOut({ workers, metadata }: RunSettings): void {
	const names = readdirSync(dataDir)
		.filter((name) => Number(/^worker-(\d+)$/.exec(name)?.[1]) > workers)
		.filter((name) => existsSync(join(dataDir, name, 'worker.json')))
		.sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
	const have = names.length === 1 ? 'has data here and is' : 'have data here and are';
	if (names.length > 0) say(`${names.join(', ')} ${have} not started: WORKERS=${workers}`);
	const sqlite = join(dataDir, ORCHESTRATOR, 'metadata.db');
	if (metadata !== 'sqlite' && existsSync(sqlite))
		say(`${sqlite} has metadata that are not served: METADATA=sqlite does`);
	const postgres = join(dataDir, 'postgres', 'pgdata');
	if (metadata !== 'own' && existsSync(postgres))
		say(`${postgres} has metadata that are not served: METADATA=supabase does`);
}

async function nodeMembers(
	{ orchestrators, workers, httpHost, httpPort, grpcPort, workerHttpBase, workerGrpcBase }: RunSettings,
	database: Pick<Parameters<typeof orchestratorMember>[0], 'heldPipe' | 'env'>,
): Promise<Member[]> {
	const authority = await openAuthority(join(dataDir, 'ca'));
	const after = (base: number, index: number) => (base === 0 ? 0 : base + index);
	const members: Member[] = [];
	for (let i = 0; i < orchestrators; i++) {
		const name = `orchestrator-${i + 1}`;
		const grpc = await port(after(grpcPort, i), 'GRPC_PORT');
		const http = await port(after(httpPort, i), 'HTTP_PORT', httpHost);
		const folder = join(dataDir, name);
		members.push(orchestratorMember({ authority, folder, name, httpHost, http, grpc, ...database }));
	}
	const all = members.flatMap(({ shown }) => shown.grpc ?? []);
	for (let i = 1; i <= workers; i++) {
		const name = `worker-${i}`;
		const http = await port(after(workerHttpBase, i), 'WORKER_HTTP_BASE');
		const grpc = await port(after(workerGrpcBase, i), 'WORKER_GRPC_BASE');
		members.push(workerMember({ authority, folder: join(dataDir, name), name, http, grpc, orchestrators: all }));
	}
	return members;
}

function welcome(missing: readonly Member[]): void {
	const urls = members.flatMap(({ shown }) =>
		shown.role === 'orchestrator' && shown.http !== undefined ? shown.http : [],
	);
	const [http = ''] = urls;
	const down = (['orchestrator', 'worker'] as const).flatMap((role) => {
		const count = missing.filter(({ shown }) => shown.role === role).length;
		const all = role === 'worker' ? settings.workers : settings.orchestrators;
		return count === 0 ? [] : [`${count} of ${all} ${role}s ${count === 1 ? 'is' : 'are'} not`];
	});
	const notes = [
		...(settings.workers === 1 ? ['With one worker nothing is durable: what it loses is lost.'] : []),
		...(existsSync(masterKey) && !hadMasterKey
			? [`A master key was made: ${masterKey}\nCopy it to a safe place: nothing can be read without it.`]
			: []),
	];
	say(`
Distro is ready: ${[urls.join(' '), ...down].join(', but ')}

  curl -X POST ${http}/upload -F "file=@./upload/payload.txt"
  curl -X GET ${http}/download/<object_id> -o ./download/output.txt
  curl ${http}/cluster

Processes and ports: ${join(dataDir, 'cluster.json')}. Ctrl-C stops all of them.
${notes.map((note) => `\n${note}\n`).join('')}`);
}
