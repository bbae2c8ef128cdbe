/**
 * A cluster as in Kubernetes, without Kubernetes: one orchestrator with an issuer, and workers that have nothing but a
 * volume, the bundle of authorities and a pod's token. What the operator, the kubelet and the API server would write is
 * written by tests.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ClusterId } from '../../core/ids.ts';
import { ROOT } from '../../hack/environment.ts';
import { freePort } from '../../hack/ports.ts';
import { bundleOf, put, type TestSigner, testIssuer, testLeaf, testRoot, writeTls } from './certificates.ts';
import { until } from './cluster.ts';
import { jwksOf, RULES, type TokenSigner, tokenSigner } from './tokens.ts';

export interface Running {
	readonly http: string;
	output(): string;
	isRunning(): boolean;
	end(signal: NodeJS.Signals): Promise<void>;
	/** JSON of a path on its HTTP port, and the status. */
	ask(path: string): Promise<{ status: number; body: Record<string, unknown> }>;
}

export class EnrollingCluster {
	readonly clusterId = 'c'.repeat(32) as ClusterId;
	readonly folder = mkdtempSync(join(tmpdir(), 'distro-enrolling-'));
	readonly tokens: TokenSigner = tokenSigner('key-1');
	readonly bundle = join(this.folder, 'ca.crt');
	readonly enrolDir = join(this.folder, 'enrol');
	readonly issuerDir = join(this.folder, 'issuer');
	root: TestSigner;
	readonly #ports: { readonly http: number; readonly grpc: number; readonly enrol: number };
	readonly #processes: Running[] = [];

	private constructor(root: TestSigner, ports: { http: number; grpc: number; enrol: number }) {
		this.root = root;
		this.#ports = ports;
	}

	static async make(): Promise<EnrollingCluster> {
		const ports = { http: await freePort(), grpc: await freePort(), enrol: await freePort() };
		const cluster = new EnrollingCluster(await testRoot(), ports);
		put(cluster.bundle, bundleOf([cluster.root]));
		mkdirSync(cluster.enrolDir);
		put(join(cluster.enrolDir, 'settings.json'), JSON.stringify(RULES));
		put(join(cluster.enrolDir, 'jwks.json'), jwksOf([cluster.tokens]));
		await cluster.issueOrchestrator();
		return cluster;
	}

	/** Answers the issuer. Both: the orchestrator's own certificate and its issuer, under the authority that is `root` now. */
	async issueOrchestrator(): Promise<TestSigner> {
		const peer = { clusterId: this.clusterId, role: 'orchestrator', id: '1'.repeat(32) } as const;
		writeTls(join(this.folder, 'orchestrator-tls'), await testLeaf(this.root, peer));
		const issuer = await testIssuer(this.root);
		writeTls(this.issuerDir, issuer);
		return issuer;
	}

	async orchestrator(env: Record<string, string> = {}): Promise<Running> {
		const { http, grpc, enrol } = this.#ports;
		return this.#spawn('orchestrator', http, {
			NAME: 'orchestrator-1',
			DATA_DIR: join(this.folder, 'orchestrator'),
			TLS_DIR: join(this.folder, 'orchestrator-tls'),
			TLS_CA_FILE: this.bundle,
			HTTP_HOST: '127.0.0.1',
			GRPC_PORT: String(grpc),
			ENROL_PORT: String(enrol),
			ENROL_DIR: this.enrolDir,
			ISSUER_DIR: this.issuerDir,
			...env,
		});
	}

	/** Where the pod finds its token. */
	writeToken(pod: string, signer = this.tokens): string {
		const path = join(this.folder, `${pod}.token`);
		put(path, `${signer.token(pod)}\n`);
		return path;
	}

	volume(pod: string): string {
		return join(this.folder, pod);
	}

	async worker(pod: string, env: Record<string, string> = {}): Promise<Running> {
		const { grpc, enrol } = this.#ports;
		return this.#spawn('worker', await freePort(), {
			NAME: pod,
			DATA_DIR: this.volume(pod),
			TLS_DIR: join(this.volume(pod), 'tls'),
			TLS_CA_FILE: this.bundle,
			GRPC_HOST: '127.0.0.1',
			GRPC_PORT: '0',
			ORCHESTRATORS: `127.0.0.1:${grpc}`,
			ENROL_ADDRESS: `localhost:${enrol}`,
			...env,
			ENROL_TOKEN_FILE: env.ENROL_TOKEN_FILE ?? this.writeToken(pod),
		});
	}

	async remove(): Promise<void> {
		await Promise.all(this.#processes.map((one) => one.end('SIGKILL')));
		rmSync(this.folder, { recursive: true, force: true });
	}

	/** Resolves when it answers on its HTTP port: it lives, ready or not. */
	async #spawn(role: 'orchestrator' | 'worker', port: number, env: Record<string, string>): Promise<Running> {
		const child: ChildProcess = spawn(process.execPath, [join(ROOT, role, 'main.ts')], {
			env: { PATH: process.env.PATH ?? '', HTTP_PORT: String(port), DISTRO_PARENT_PIPE: '1', ...env },
			stdio: ['pipe', 'pipe', 'pipe'],
		});
		const exited = once(child, 'close');
		let output = '';
		for (const stream of [child.stdout, child.stderr]) {
			stream?.on('data', (text: Buffer) => {
				output += text.toString();
			});
		}
		const http = `http://127.0.0.1:${port}`;
		const running: Running = {
			http,
			output: () => output,
			isRunning: () => child.exitCode === null && child.signalCode === null,
			end: async (signal) => {
				if (child.exitCode === null && child.signalCode === null) child.kill(signal);
				await exited;
			},
			ask: async (path) => {
				const response = await fetch(`${http}${path}`, { signal: AbortSignal.timeout(5_000) });
				return { status: response.status, body: (await response.json()) as Record<string, unknown> };
			},
		};
		this.#processes.push(running);
		await until(
			async () => {
				if (!running.isRunning()) throw new Error(`${env.NAME} ended:\n${output}`);
				return (await running.ask('/healthz').catch(() => null))?.status === 200;
			},
			{ what: `${env.NAME} to live` },
		);
		return running;
	}
}
