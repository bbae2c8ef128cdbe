/** One more worker for a running test cluster, with an environment of its own: a small disk, another address. */

import { type ChildProcess, spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { join } from 'node:path';
import { openAuthority } from '../../hack/authority.ts';
import { ROOT } from '../../hack/environment.ts';
import { issueWorker, tlsFolder } from '../../hack/identities.ts';
import { NODE_OPTIONS_OF } from '../../hack/node-options.ts';
import { cluster } from './client.ts';
import { type TestCluster, until } from './cluster.ts';

export interface ExtraWorker {
	readonly name: string;
	/** Of its shard service. */
	readonly grpc: string;
	stop(): Promise<void>;
}

/** Starts it and waits until the cluster has it. `grpc` is where it listens (default: a free port). */
export async function joinWorker(
	c: TestCluster,
	options: { name: string; dataDir: string; grpcPort?: number; env?: Record<string, string> },
): Promise<ExtraWorker> {
	const { name, dataDir, grpcPort = freePort() } = options;
	await issueWorker(await openAuthority(join(c.dataDir, 'ca')), dataDir, ['127.0.0.1']);
	const { flags, env } = NODE_OPTIONS_OF.worker;
	const child: ChildProcess = spawn(process.execPath, [...flags, join(ROOT, 'worker/main.ts')], {
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
			...options.env,
		},
		stdio: ['ignore', 'ignore', 'pipe'],
	});
	let lastWords = '';
	child.stderr?.on('data', (text: Buffer) => {
		lastWords += text.toString();
	});
	await until(
		async () => {
			if (child.exitCode !== null) throw new Error(`${name} did not start: ${lastWords}`);
			return (await cluster(c.http)).workers.some((worker) => worker.name === name && worker.state === 'ready');
		},
		// A name that another one had goes over when nobody has heard that one for a while.
		{ what: `${name} to join`, timeoutMs: 60_000 },
	);
	return {
		name,
		grpc: `127.0.0.1:${grpcPort}`,
		stop: async () => {
			if (child.exitCode !== null || child.signalCode !== null) return;
			const exited = once(child, 'exit');
			child.kill('SIGTERM');
			await exited;
		},
	};
}

/** Below the range that the system gives to outgoing connections, as hack/ports.ts does. */
export function freePort(): number {
	return randomInt(10_000, 32_768);
}
