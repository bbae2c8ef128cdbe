/**
 * `make run`: one orchestrator and WORKERS workers as separate processes on loopback, with mTLS from a development
 * authority in DATA_DIR. It makes identities and certificates, starts, waits until all are ready, and says where to go.
 * A worker that does not start, or dies, stays down until `make start NAME=…`; the others serve. Ctrl-C stops all of them.
 *
 * Secrets reach the processes by their environment or by files, never by arguments.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { appendFileSync, existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { loadDotenv } from '../platform/env.ts';
import { type Authority, openAuthority } from './authority.ts';
import {
	type ClusterProcess,
	isAlive,
	readClusterFile,
	removeClusterFile,
	startRequestPath,
	writeClusterFile,
} from './cluster-file.ts';
import { clusterDataDir, ORCHESTRATOR, ROOT } from './environment.ts';
import { issueOrchestrator, issueWorker, tlsFolder } from './identities.ts';
import { tryLock } from './lock.ts';
import { NODE_OPTIONS_OF } from './node-options.ts';

const READY_TIMEOUT_MS = 60_000;
const STOP_TIMEOUT_MS = 12_000;
/** Whoever waits longer wants to know for what. */
const STOP_PATIENCE_MS = 1_000;
const POLL_MS = 100;
const LOOPBACK = '127.0.0.1';
const HOSTS = ['localhost', LOOPBACK];

interface Member {
	readonly name: string;
	readonly role: 'orchestrator' | 'worker';
	readonly dataDir: string;
	readonly url: string;
	readonly grpcPort: number;
	readonly env: Record<string, string>;
	/** Makes its identity and certificate, unless good ones are there. */
	readonly prepare: () => Promise<void>;
	child: ChildProcess | null;
}

loadDotenv();
const dataDir = clusterDataDir();
const members = await prepare().catch((error) => {
	process.stderr.write(`${(error as Error).message}\n`);
	process.exit(1);
});
let stopping = false;
/** All have been ready once: before that nobody is shown a half-started cluster. */
let started = false;
process.on('SIGINT', stop);
process.on('SIGTERM', stop);
process.on('SIGHUP', stop);
await startAll(members);
watchStartRequests(members);

async function prepare(): Promise<Member[]> {
	try {
		mkdirSync(dataDir, { recursive: true });
		if (!tryLock(join(dataDir, 'supervisor.lock'))) {
			const { supervisor } = readClusterFile(dataDir) ?? {};
			const how = supervisor !== undefined && isAlive(supervisor) ? ` (kill -INT ${supervisor})` : '';
			throw new Error(`a cluster runs on it already: stop that one first${how}`);
		}
	} catch (error) {
		throw new Error(`DATA_DIR ${dataDir} can't be used: ${(error as Error).message}. Or choose another.`);
	}
	await outlived(readClusterFile(dataDir)?.processes ?? []);
	const workers = wholeNumber('WORKERS', 6, 1, 99);
	const httpPort = wholeNumber('HTTP_PORT', 8080, 0, 65_535);
	const grpcPort = wholeNumber('GRPC_PORT', 9090, 0, 65_535);
	const workerHttpBase = wholeNumber('WORKER_HTTP_BASE', 9100, 0, 65_000);
	const workerGrpcBase = wholeNumber('WORKER_GRPC_BASE', 9200, 0, 65_000);
	warnOfLeftOut(workers);
	const authority = await openAuthority(join(dataDir, 'ca'));
	const orchestratorGrpc = await port(grpcPort, 'GRPC_PORT');
	const list: Member[] = [];
	const httpHost = process.env.HTTP_HOST || LOOPBACK;
	const http = await port(httpPort, 'HTTP_PORT', httpHost);
	list.push(orchestrator(authority, { httpHost, http, grpc: orchestratorGrpc }));
	for (let i = 1; i <= workers; i++) {
		list.push(
			worker(authority, i, {
				http: await port(workerHttpBase === 0 ? 0 : workerHttpBase + i, 'WORKER_HTTP_BASE'),
				grpc: await port(workerGrpcBase === 0 ? 0 : workerGrpcBase + i, 'WORKER_GRPC_BASE'),
				orchestrator: `${LOOPBACK}:${orchestratorGrpc}`,
			}),
		);
	}
	return list;
}

/** Fewer workers than before: what they have is there, and can't be read until they are back. */
function warnOfLeftOut(workers: number): void {
	const names = readdirSync(dataDir)
		.filter((name) => Number(/^worker-(\d+)$/.exec(name)?.[1]) > workers)
		.filter((name) => existsSync(join(dataDir, name, 'worker.json')))
		.sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
	if (names.length === 0) return;
	const have = names.length === 1 ? 'has data here and is' : 'have data here and are';
	say(`${names.join(', ')} ${have} not started: WORKERS=${workers}`);
}

/** Processes whose supervisor was killed stop by themselves; until then they have the data and the ports. */
async function outlived(processes: readonly ClusterProcess[]): Promise<void> {
	const deadline = Date.now() + STOP_TIMEOUT_MS;
	const running = () => processes.filter(({ pid }) => isAlive(pid));
	if (running().length > 0) say(`Waiting for ${running().length} processes of the cluster before to stop`);
	while (running().length > 0 && Date.now() < deadline) await sleep(POLL_MS);
	removeClusterFile(dataDir);
}

function orchestrator(authority: Authority, o: { httpHost: string; http: number; grpc: number }): Member {
	const name = ORCHESTRATOR;
	const folder = join(dataDir, name);
	const prepare = () => issueOrchestrator(authority, folder, HOSTS);
	const env = {
		DATA_DIR: folder,
		NAME: name,
		TLS_DIR: tlsFolder(folder),
		HTTP_HOST: o.httpHost,
		HTTP_PORT: String(o.http),
		GRPC_HOST: LOOPBACK,
		GRPC_PORT: String(o.grpc),
	};
	// Who listens everywhere is reached here.
	const host = ['0.0.0.0', '::'].includes(o.httpHost) ? LOOPBACK : o.httpHost;
	const url = `http://${host.includes(':') ? `[${host}]` : host}:${o.http}`;
	return { name, role: 'orchestrator', dataDir: folder, url, grpcPort: o.grpc, env, prepare, child: null };
}

function worker(
	authority: Authority,
	index: number,
	ports: { http: number; grpc: number; orchestrator: string },
): Member {
	const name = `worker-${index}`;
	const folder = join(dataDir, name);
	const prepare = () => issueWorker(authority, folder, HOSTS);
	const env = {
		DATA_DIR: folder,
		NAME: name,
		TLS_DIR: tlsFolder(folder),
		GRPC_HOST: LOOPBACK,
		GRPC_PORT: String(ports.grpc),
		HTTP_HOST: LOOPBACK,
		HTTP_PORT: String(ports.http),
		ORCHESTRATORS: ports.orchestrator,
	};
	const url = `http://${LOOPBACK}:${ports.http}`;
	return { name, role: 'worker', dataDir: folder, url, grpcPort: ports.grpc, env, prepare, child: null };
}

/** What a process may see of this one's environment: a worker must not get the master key. */
function inherited(role: Member['role']): Record<string, string> {
	const common = ['PATH', 'HOME', 'LANG', 'TZ', 'LOG_LEVEL', 'NODE_EXTRA_CA_CERTS'];
	const workerOnly = ['ZONE', 'ZONE_FILE', 'DISK_RESERVE', 'CAPACITY'];
	const orchestratorOnly = [
		'MASTER_KEY',
		'MASTER_KEY_FILE',
		'SUPABASE_URL',
		'SUPABASE_KEY',
		'SUPABASE_KEY_FILE',
		'MEMORY_BUDGET',
		'INLINE_MAX',
		'MAX_OBJECT',
		'AUTH',
		'WORKER_CONNECTIONS',
	];
	const names = [...common, ...(role === 'orchestrator' ? orchestratorOnly : workerOnly)];
	return Object.fromEntries(
		names.flatMap((name) => (process.env[name] === undefined ? [] : [[name, process.env[name] as string]])),
	);
}

/** Resolves when it runs, or never will. Asked again, it may have another folder: identity and certificate come first. */
async function start(member: Member): Promise<void> {
	try {
		await member.prepare();
	} catch (error) {
		const { stderr, message } = error as Error & { stderr?: string };
		say(`${member.name} can't start: ${(stderr || message).trim()}`);
		hintAt(member);
		return;
	}
	if (stopping) return;
	const { flags, env } = NODE_OPTIONS_OF[member.role];
	const log = (text: Buffer) => {
		try {
			appendFileSync(logOf(member), text);
		} catch {
			// A full disk costs lines of the log, and neither this process nor, by a pipe that nobody empties, the child.
		}
	};
	const child = spawn(process.execPath, [...flags, join(ROOT, member.role, 'main.ts')], {
		env: { ...inherited(member.role), ...env, ...member.env, DISTRO_PARENT_PIPE: '1' },
		// A group of its own: Ctrl-C reaches this process only, which stops the others in order.
		detached: true,
		stdio: ['pipe', 'pipe', 'pipe'],
	});
	member.child = child;
	child.stdout.on('data', log);
	let lastWords = '';
	child.stderr.on('data', (text: Buffer) => {
		lastWords = (lastWords + text.toString()).slice(-2000);
		log(text);
	});
	child.on('error', (error) => say(`${member.name} can't be started: ${error.message}`));
	// Not at `exit`: its last words may still be on their way.
	child.on('close', (code, signal) => {
		if (member.child !== child) return;
		member.child = null;
		if (stopping) return;
		const why = signal ?? `exit code ${code}`;
		say(`${member.name} is down (${why})${lastWords === '' ? '' : `: ${lastWords.trim()}`}`);
		hintAt(member);
		save();
	});
}

function hintAt(member: Member): void {
	// Without an orchestrator nothing runs, and there is nobody who would start it again.
	const again = started || member.role === 'worker' ? `; start it again with: make start NAME=${member.name}` : '';
	say(`  its log: ${logOf(member)}${again}`);
}

function logOf(member: Member): string {
	return join(member.dataDir, 'log');
}

async function startAll(all: readonly Member[]): Promise<void> {
	say(`Starting ${all.length} processes on ${dataDir}`);
	const masterKey = join(dataDir, ORCHESTRATOR, 'master.key');
	const hadMasterKey = existsSync(masterKey);
	for (const member of all) await start(member);
	const deadline = Date.now() + READY_TIMEOUT_MS;
	const waiting = new Set(all);
	let ready = 0;
	while (waiting.size > 0 && !stopping) {
		for (const member of waiting) {
			if (member.child === null || Date.now() > deadline) {
				waiting.delete(member);
				if (member.child !== null) say(`${member.name} did not become ready; its log: ${logOf(member)}`);
				if (member.role === 'worker') continue;
				await stop(1);
				return;
			}
			if (await isReady(member)) {
				waiting.delete(member);
				say(`  ready: ${member.name} (${++ready}/${all.length})`);
			}
		}
		await sleep(POLL_MS);
	}
	if (stopping) return;
	started = true;
	save();
	const { url: http } = all[0] as Member;
	const workers = all.length - 1;
	const down = all.length - ready;
	const notes = [
		...(workers === 1 ? ['With one worker nothing is durable: what it loses is lost.'] : []),
		...(existsSync(masterKey) && !hadMasterKey
			? [`A master key was made: ${masterKey}\nCopy it to a safe place: nothing can be read without it.`]
			: []),
	];
	say(`
Distro is ready: ${http}${down > 0 ? `, but ${down} of ${workers} workers ${down === 1 ? 'is' : 'are'} not` : ''}

  curl -X POST ${http}/upload -F "file=@./upload/payload.txt"
  curl -X GET ${http}/download/<object_id> -o ./download/output.txt
  curl ${http}/cluster

Processes and ports: ${join(dataDir, 'cluster.json')}. Ctrl-C stops all of them.
${notes.map((note) => `\n${note}\n`).join('')}`);
}

async function isReady(member: Member): Promise<boolean> {
	try {
		const response = await fetch(`${member.url}/readyz`, { signal: AbortSignal.timeout(1000) });
		await response.arrayBuffer();
		return response.ok;
	} catch {
		return false;
	}
}

/** `make start NAME=…` puts a file here: only this process can be the parent of the one that comes back. */
function watchStartRequests(all: readonly Member[]): void {
	const look = async () => {
		for (const member of all) {
			const request = startRequestPath(dataDir, member.name);
			if (!existsSync(request)) continue;
			rmSync(request, { force: true });
			if (member.child !== null || stopping) continue;
			say(`Starting ${member.name} again`);
			await start(member);
			save();
		}
		setTimeout(look, POLL_MS);
	};
	setTimeout(look, POLL_MS);
}

function save(): void {
	const processes = members.flatMap((member): ClusterProcess[] =>
		member.child?.pid === undefined
			? []
			: [
					{
						name: member.name,
						role: member.role,
						pid: member.child.pid,
						http: member.url,
						grpc: `${LOOPBACK}:${member.grpcPort}`,
						dataDir: member.dataDir,
					},
				],
	);
	if (!started || stopping) return;
	try {
		writeClusterFile(dataDir, { supervisor: process.pid, members: members.map(({ name }) => name), processes });
	} catch (error) {
		say(`cluster.json can't be written: ${(error as Error).message}`);
	}
}

/** Orchestrator first, so that nobody is served by half a cluster; whoever does not stop in time is killed. */
async function stop(code: unknown): Promise<void> {
	if (stopping) {
		for (const member of members) member.child?.kill('SIGKILL');
		process.exit(1);
	}
	stopping = true;
	if (started) {
		say('Stopping');
		const why = 'Waiting for transfers under way; Ctrl-C once more ends them at once';
		setTimeout(() => say(why), STOP_PATIENCE_MS).unref();
	}
	for (const role of ['orchestrator', 'worker'] as const) {
		await Promise.all(members.filter((member) => member.role === role).map(stopOne));
	}
	removeClusterFile(dataDir);
	process.exit(typeof code === 'number' ? code : 0);
}

function stopOne(member: Member): Promise<void> {
	const { child } = member;
	// One that has just ended may still have its last words on their way: it exits only once.
	if (child === null || child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
	return new Promise((done) => {
		const timer = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
		child.once('exit', () => {
			clearTimeout(timer);
			done();
		});
		// A stopped process hears nothing before it goes on.
		child.kill('SIGTERM');
		child.kill('SIGCONT');
	});
}

/**
 * A free port for 0; else that one, if it is free. Free ones come from below the range that the system gives to outgoing
 * connections: between looking and listening nobody else is likely to take one.
 */
async function port(wanted: number, variable: string, host = LOOPBACK): Promise<number> {
	for (let tries = 0; tries < 100; tries++) {
		const candidate = wanted === 0 ? randomInt(10_000, 32_768) : wanted;
		const problem = await whyNot(candidate, host);
		if (problem === null) return candidate;
		if (wanted === 0) continue;
		const why = problem.code === 'EADDRINUSE' ? 'is in use: stop what uses it' : `can't be used (${problem.message})`;
		throw new Error(`Port ${wanted} ${why}, or set ${variable} to another.`);
	}
	throw new Error(`No free port was found for ${variable}.`);
}

function whyNot(candidate: number, host: string): Promise<NodeJS.ErrnoException | null> {
	return new Promise((done) => {
		const probe = createServer();
		probe.once('error', done);
		probe.listen(candidate, host, () => probe.close(() => done(null)));
	});
}

function wholeNumber(name: string, fallback: number, min: number, max: number): number {
	const text = process.env[name];
	if (text === undefined || text === '') return fallback;
	const value = Number(text);
	if (/^\d+$/.test(text) && value >= min && value <= max) return value;
	process.stderr.write(`${name} must be a whole number from ${min} to ${max}.\n`);
	process.exit(1);
}

function sleep(ms: number): Promise<void> {
	return new Promise((done) => setTimeout(done, ms));
}

function say(text: string): void {
	process.stdout.write(`${text}\n`);
}
