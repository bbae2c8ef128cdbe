/**
 * `npm run restore -- --from snapshot|disks [--dry]`: brings the metadata of a stopped cluster of `make run` back from its
 * workers. It starts the workers that have a folder in DATA_DIR, as `make run` does, and runs orchestrator/restore.ts beside
 * them. Where the authority is gone it makes a new one of the same cluster. Beside any other cluster: orchestrator/restore.ts.
 *
 * A dry run puts certificates and logs into a temporary folder, and leaves DATA_DIR as it is.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { appendFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseKeysFile } from '../core/model/keys-record.ts';
import { loadDotenv } from '../platform/env.ts';
import { type Authority, openAuthority } from './authority.ts';
import { clusterDataDir, ORCHESTRATOR, ROOT } from './environment.ts';
import { issueOrchestrator } from './identities.ts';
import { tryLock } from './lock.ts';
import { inherited, workerMember } from './members.ts';
import { NODE_OPTIONS_OF } from './node-options.ts';
import { startOwnDatabase } from './own-database.ts';
import { freePort, LOOPBACK } from './ports.ts';
import { readRunSettings } from './run-settings.ts';

const STOP_TIMEOUT_MS = 12_000;
const HOSTS = ['localhost', LOOPBACK];

loadDotenv();
const dataDir = clusterDataDir();
const args = process.argv.slice(2);
const dry = args.includes('--dry');
const temporary = mkdtempSync(join(tmpdir(), 'distro-restore-'));
const children: ChildProcess[] = [];
let stopDatabase = async () => {};
try {
	process.exitCode = await restore();
} catch (error) {
	process.stderr.write(`${(error as Error).message}\n`);
	process.exitCode = 1;
} finally {
	await Promise.all(children.map(end));
	await stopDatabase();
	rmSync(temporary, { recursive: true, force: true });
}

async function restore(): Promise<number> {
	const names = workersHere();
	if (names.length === 0)
		throw new Error(`no worker has a folder with a worker.json in ${dataDir}: nothing to restore from`);
	const lock = join(dataDir, 'supervisor.lock');
	if ((!dry || existsSync(lock)) && !tryLock(lock)) {
		throw new Error(`a cluster runs on ${dataDir}, or its metadata are being moved: stop it first`);
	}
	const authority = await authorityOf(names);
	const folder = join(dataDir, ORCHESTRATOR);
	const own = dry && !existsSync(folder) ? join(temporary, ORCHESTRATOR) : folder;
	const tlsDir = join(dry ? join(temporary, ORCHESTRATOR) : folder, 'tls');
	await issueOrchestrator(authority, dry ? join(temporary, ORCHESTRATOR) : folder, HOSTS, tlsDir);
	if (!dry && readRunSettings(process.env).metadata === 'own') stopDatabase = await startOwnDatabase(dataDir);
	const grpc = await freePort();
	for (const name of names) await startWorker(authority, name, grpc);
	const { flags, env } = NODE_OPTIONS_OF.orchestrator;
	const workers = args.some((arg) => arg.startsWith('--workers')) ? [] : ['--workers', String(children.length)];
	const child = spawn(process.execPath, [...flags, join(ROOT, 'orchestrator/restore.ts'), ...args, ...workers], {
		env: {
			...inherited('orchestrator'),
			...env,
			DATA_DIR: own,
			NAME: ORCHESTRATOR,
			TLS_DIR: tlsDir,
			GRPC_HOST: LOOPBACK,
			GRPC_PORT: String(grpc),
			DISTRO_PARENT_PIPE: '1',
		},
		stdio: ['pipe', 'inherit', 'inherit'],
	});
	// It ends by itself, and what it has begun first.
	for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.kill('SIGTERM'));
	return new Promise((resolve, reject) => {
		child.on('error', reject);
		child.on('close', (code) => resolve(code ?? 1));
	});
}

/** All that have data here, whatever WORKERS says. */
function workersHere(): string[] {
	if (!existsSync(dataDir)) return [];
	return readdirSync(dataDir)
		.filter((name) => /^worker-\d+$/.test(name) && existsSync(join(dataDir, name, 'worker.json')))
		.sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
}

async function authorityOf(names: readonly string[]): Promise<Authority> {
	const folder = join(dataDir, 'ca');
	const ids = new Set(names.flatMap((name) => clusterIdOn(join(dataDir, name)) ?? []));
	const [clusterId] = ids;
	if (ids.size > 1) throw new Error(`the workers in ${dataDir} are of several clusters: ${[...ids].join(', ')}`);
	if (existsSync(join(folder, 'ca.crt'))) {
		const authority = await openAuthority(folder);
		if (clusterId !== undefined && clusterId !== authority.clusterId) {
			throw new Error(
				`${folder} is the authority of cluster ${authority.clusterId}, and the workers are of ${clusterId}: move that folder away`,
			);
		}
		return authority;
	}
	if (clusterId === undefined) {
		throw new Error(
			`there is no authority in ${folder}, and no worker has a keys.json, which says what cluster this is`,
		);
	}
	process.stdout.write(`There is no authority: a new one is made for cluster ${clusterId}\n`);
	return openAuthority(dry ? join(temporary, 'ca') : folder, { clusterId });
}

function clusterIdOn(folder: string): string | null {
	try {
		return parseKeysFile(readFileSync(join(folder, 'keys.json'), 'utf8')).clusterId;
	} catch {
		// Another worker has it.
		return null;
	}
}

async function startWorker(authority: Authority, name: string, orchestrator: number): Promise<void> {
	const folder = join(dataDir, name);
	const outside = join(temporary, name);
	const log = join(dry ? outside : folder, 'log');
	if (dry) mkdirSync(outside);
	const [http, grpc] = [await freePort(), await freePort()];
	const orchestrators = [`${LOOPBACK}:${orchestrator}`];
	const tls = dry ? { tlsDir: join(outside, 'tls') } : {};
	const member = workerMember({ authority, folder, name, http, grpc, orchestrators, ...tls });
	try {
		await member.prepare();
		const onOutput = (text: Buffer) => appendFileSync(log, text);
		children.push(await member.launch({ onSpawn: () => {}, onOutput }));
	} catch (error) {
		// The others may have enough.
		process.stdout.write(`${name} can't start: ${(error as Error).message}\n`);
	}
}

function end(child: ChildProcess): Promise<void> {
	if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
	return new Promise((done) => {
		const timer = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
		child.once('exit', () => {
			clearTimeout(timer);
			done();
		});
		child.kill('SIGTERM');
	});
}
