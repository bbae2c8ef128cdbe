/** One more worker for a running test cluster, with an environment of its own: a small disk, another address, a zone. */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { openAuthority } from '../../hack/authority.ts';
import { ROOT } from '../../hack/environment.ts';
import { issueWorker, tlsFolder } from '../../hack/identities.ts';
import { NODE_OPTIONS_OF } from '../../hack/node-options.ts';
import { freePort } from '../../hack/ports.ts';
import { cluster } from './client.ts';
import { type TestCluster, until } from './cluster.ts';

export interface ExtraWorker {
	readonly name: string;
	/** Of its shard service. */
	readonly grpc: string;
	/** Null when it does not run. */
	pid(): number | null;
	/** SIGKILL, and waits until it is gone. */
	kill(): Promise<void>;
	/** Starts it again on what it has, and waits until the cluster has it. */
	start(): Promise<void>;
	stop(): Promise<void>;
}

interface ExtraOptions {
	readonly name: string;
	readonly dataDir: string;
	/** Where it listens; default: a free port. */
	readonly grpcPort?: number;
	readonly env?: Record<string, string>;
}

/** Starts it and waits until the cluster has it. What it logs is in `log` of its folder. */
export async function joinWorker(c: TestCluster, options: ExtraOptions): Promise<ExtraWorker> {
	const { name, dataDir, grpcPort = await freePort() } = options;
	await issueWorker(await openAuthority(join(c.dataDir, 'ca')), dataDir, ['127.0.0.1']);
	let child = await launch(c, { ...options, grpcPort });
	const end = async (signal: NodeJS.Signals) => {
		if (!isRunning(child)) return;
		const exited = once(child, 'exit');
		child.kill(signal);
		// One that is stopped hears nothing else.
		child.kill('SIGCONT');
		await exited;
	};
	return {
		name,
		grpc: `127.0.0.1:${grpcPort}`,
		pid: () => (isRunning(child) ? (child.pid ?? null) : null),
		kill: () => end('SIGKILL'),
		start: async () => {
			child = await launch(c, { ...options, grpcPort });
		},
		stop: () => end('SIGTERM'),
	};
}

async function launch(
	c: TestCluster,
	{ name, dataDir, grpcPort, env: own }: ExtraOptions & { grpcPort: number },
): Promise<ChildProcess> {
	const { flags, env } = NODE_OPTIONS_OF.worker;
	const log = openSync(join(dataDir, 'log'), 'a');
	const child = spawn(process.execPath, [...flags, join(ROOT, 'worker/main.ts')], {
		env: {
			PATH: process.env.PATH ?? '',
			...env,
			NAME: name,
			DATA_DIR: dataDir,
			TLS_DIR: tlsFolder(dataDir),
			GRPC_HOST: '127.0.0.1',
			GRPC_PORT: String(grpcPort),
			HTTP_PORT: '0',
			ORCHESTRATORS: c.process('orchestrator-1').grpc,
			// It ends with the test, whatever ends that.
			DISTRO_PARENT_PIPE: '1',
			...own,
		},
		stdio: ['pipe', log, 'pipe'],
	});
	closeSync(log);
	let lastWords = '';
	child.stderr?.on('data', (text: Buffer) => {
		lastWords += text.toString();
	});
	await until(
		async () => {
			if (!isRunning(child)) throw new Error(`${name} did not start: ${lastWords}`);
			// Whoever is asked may be down as well.
			const { workers } = await cluster(c.http).catch(() => ({ workers: [] }));
			return workers.some((worker) => worker.name === name && !['suspect', 'lost'].includes(worker.state));
		},
		// A name that another one had goes over when nobody has heard that one for a while.
		{ what: `${name} to join`, timeoutMs: 60_000 },
	);
	return child;
}

function isRunning(child: ChildProcess): boolean {
	return child.exitCode === null && child.signalCode === null;
}
