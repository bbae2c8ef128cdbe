/** A real cluster for tests: the processes of `make run` on free ports and a temporary folder, to be killed and broken. */

import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { type ClusterProcess, isAlive, readClusterFile, startRequestPath } from '../../hack/cluster-file.ts';

const ROOT = resolve(import.meta.dirname, '../..');

/** An orchestrator or a worker. */
export type NodeProcess = ClusterProcess & { readonly http: string; readonly grpc: string };

export interface TestCluster {
	/** Of the first orchestrator. */
	readonly http: string;
	/** Of all orchestrators, also of those that are down. */
	readonly orchestrators: readonly string[];
	readonly dataDir: string;
	processes(): readonly ClusterProcess[];
	process(name: string): NodeProcess;
	signal(name: string, signal: NodeJS.Signals): void;
	/** SIGKILL, and waits until it is gone. */
	kill(name: string): Promise<void>;
	/** Starts it again and waits until it is ready. */
	start(name: string): Promise<void>;
	/** Ctrl-C; the data stays. */
	stop(): Promise<void>;
	/** Stops and removes everything. */
	remove(): Promise<void>;
	/** Files of all shards of a worker. */
	shardFiles(name: string): string[];
	/** Everything that all processes have logged. */
	logs(): string;
	/** What `make run` has said. */
	output(): string;
}

/** Throws, with what was said, when processes other than as many as `missing` did not start. */
export async function startCluster(
	options: { workers?: number; env?: Record<string, string>; dataDir?: string; missing?: number } = {},
): Promise<TestCluster> {
	const dataDir = options.dataDir ?? mkdtempSync(join(tmpdir(), 'distro-test-'));
	const env = {
		PATH: process.env.PATH ?? '',
		HOME: process.env.HOME ?? '/tmp',
		DATA_DIR: dataDir,
		HTTP_PORT: '0',
		GRPC_PORT: '0',
		WORKER_HTTP_BASE: '0',
		WORKER_GRPC_BASE: '0',
		WORKERS: String(options.workers ?? 6),
		DISTRO_NO_DOTENV: '1',
		...options.env,
	};
	const child: ChildProcess = spawn(process.execPath, [join(ROOT, 'hack/run.ts')], {
		env,
		stdio: ['ignore', 'pipe', 'pipe'],
	});
	let output = '';
	child.stdout?.on('data', (text: Buffer) => {
		output += text.toString();
	});
	child.stderr?.on('data', (text: Buffer) => {
		output += text.toString();
	});
	await until(
		() => {
			if (child.exitCode !== null) throw new Error(`the cluster did not start:\n${output}`);
			// One of a supervisor that was killed may be there still.
			return readClusterFile(dataDir)?.supervisor === child.pid;
		},
		{ timeoutMs: 60_000, what: 'the cluster to be ready' },
	);
	const processes = () => readClusterFile(dataDir)?.processes ?? [];
	const find = (name: string): ClusterProcess => {
		const found = processes().find((candidate) => candidate.name === name);
		if (found === undefined) throw new Error(`${name} does not run`);
		return found;
	};
	const isNode = (found: ClusterProcess): found is NodeProcess => found.http !== undefined && found.grpc !== undefined;
	const findNode = (name: string): NodeProcess => {
		const found = find(name);
		if (!isNode(found)) throw new Error(`${name} is a database`);
		return found;
	};
	const stop = async () => {
		if (child.exitCode !== null || child.signalCode !== null) return;
		const exited = new Promise((done) => child.once('exit', done));
		child.kill('SIGINT');
		await exited;
	};
	// `make run` goes on without the workers that don't start.
	const missing = (readClusterFile(dataDir)?.members.length ?? 0) - processes().length;
	if (missing !== (options.missing ?? 0)) {
		await stop();
		throw new Error(`${missing} processes did not start:\n${output}`);
	}
	return {
		http: findNode('orchestrator-1').http,
		orchestrators: processes().flatMap((one) => (one.role === 'orchestrator' && isNode(one) ? [one.http] : [])),
		dataDir,
		processes,
		process: findNode,
		signal: (name, signal) => {
			process.kill(find(name).pid, signal);
		},
		kill: async (name) => {
			const { pid } = find(name);
			process.kill(pid, 'SIGKILL');
			await until(() => !isAlive(pid), { what: `${name} to be gone` });
			await until(() => !processes().some((candidate) => candidate.name === name), {
				what: `${name} to leave the list`,
			});
		},
		start: async (name) => {
			writeFileSync(startRequestPath(dataDir, name), '');
			await until(() => processes().some((candidate) => candidate.name === name), { what: `${name} to be started` });
			const started = find(name);
			// A database is in the list once it answers.
			if (isNode(started)) await until(() => isReady(started.http), { what: `${name} to be ready` });
		},
		stop,
		remove: async () => {
			await stop();
			rmSync(dataDir, { recursive: true, force: true });
		},
		shardFiles: (name) => {
			const shards = join(dataDir, name, 'shards');
			return readdirSync(shards, { recursive: true, encoding: 'utf8' })
				.filter((file) => file.length > 30)
				.map((file) => join(shards, file));
		},
		logs: () =>
			readdirSync(dataDir)
				.map((name) => join(dataDir, name, 'log'))
				.filter((log) => existsSync(log))
				.map((log) => readFileSync(log, 'utf8'))
				.join(''),
		output: () => output,
	};
}

async function isReady(http: string): Promise<boolean> {
	try {
		return (await fetch(`${http}/readyz`, { signal: AbortSignal.timeout(2000) })).ok;
	} catch {
		return false;
	}
}

/** Waits for a condition, never for a time. */
export async function until(
	condition: () => boolean | Promise<boolean>,
	options: { timeoutMs?: number; what: string },
): Promise<void> {
	const deadline = Date.now() + (options.timeoutMs ?? 30_000);
	while (!(await condition())) {
		if (Date.now() > deadline) throw new Error(`waited in vain for ${options.what}`);
		await new Promise((done) => setTimeout(done, 25));
	}
}
