/**
 * The processes of a development cluster, each with what it takes to start it. Orchestrators and workers are here, the
 * database's are in database-members.ts.
 *
 * Secrets reach the processes by their environment or by files, never by arguments.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import type { Writable } from 'node:stream';
import type { Authority } from './authority.ts';
import type { ClusterProcess } from './cluster-file.ts';
import type { Watch } from './dev-database.ts';
import { ROOT } from './environment.ts';
import { issueOrchestrator, issueWorker, tlsFolder } from './identities.ts';
import { NODE_OPTIONS_OF } from './node-options.ts';
import { LOOPBACK } from './ports.ts';

const HOSTS = ['localhost', LOOPBACK];
const READY_ASK_MS = 1_000;

export interface Member {
	/** As cluster.json shows it. */
	readonly shown: Omit<ClusterProcess, 'pid'>;
	/** Makes its folder, identity and certificate, unless good ones are there. */
	prepare(): Promise<void>;
	/** Starts it; one that others need to start is ready when this resolves. Throws what a person should read. */
	launch(watch: Watch): Promise<ChildProcess>;
	isReady(): Promise<boolean>;
	/** Ends it in order. */
	readonly stopSignal: NodeJS.Signals;
}

export interface OrchestratorOptions {
	readonly authority: Authority;
	readonly folder: string;
	readonly name: string;
	readonly httpHost: string;
	readonly http: number;
	readonly grpc: number;
	/** Where the metadata and the master key are, unless the environment says so. */
	readonly env: Record<string, string>;
	/** Held open for as long as it lives. */
	readonly heldPipe: Writable | null;
}

export function orchestratorMember(o: OrchestratorOptions): Member {
	// Who listens everywhere is reached here.
	const host = ['0.0.0.0', '::'].includes(o.httpHost) ? LOOPBACK : o.httpHost;
	const http = `http://${host.includes(':') ? `[${host}]` : host}:${o.http}`;
	const env = { HTTP_HOST: o.httpHost, HTTP_PORT: String(o.http), GRPC_PORT: String(o.grpc), ...o.env };
	return nodeMember({
		shown: { name: o.name, role: 'orchestrator', http, grpc: `${LOOPBACK}:${o.grpc}`, dataDir: o.folder },
		env,
		heldPipe: o.heldPipe,
		prepare: () => issueOrchestrator(o.authority, o.folder, HOSTS),
	});
}

export interface WorkerOptions {
	readonly authority: Authority;
	readonly folder: string;
	readonly name: string;
	readonly http: number;
	readonly grpc: number;
	/** host:port of each. */
	readonly orchestrators: readonly string[];
	/** Where its certificate is, if not in its folder. */
	readonly tlsDir?: string;
}

export function workerMember(o: WorkerOptions): Member {
	const http = `http://${LOOPBACK}:${o.http}`;
	const tlsDir = o.tlsDir ?? tlsFolder(o.folder);
	const env = {
		HTTP_HOST: LOOPBACK,
		HTTP_PORT: String(o.http),
		GRPC_PORT: String(o.grpc),
		ORCHESTRATORS: o.orchestrators.join(),
		TLS_DIR: tlsDir,
	};
	return nodeMember({
		shown: { name: o.name, role: 'worker', http, grpc: `${LOOPBACK}:${o.grpc}`, dataDir: o.folder },
		env,
		heldPipe: null,
		prepare: () => issueWorker(o.authority, o.folder, HOSTS, tlsDir),
	});
}

function nodeMember(o: {
	shown: Member['shown'] & { role: 'orchestrator' | 'worker'; http: string };
	env: Record<string, string>;
	heldPipe: Writable | null;
	prepare: () => Promise<void>;
}): Member {
	const { role, name, dataDir, http } = o.shown;
	const { flags, env } = NODE_OPTIONS_OF[role];
	return {
		shown: o.shown,
		prepare: o.prepare,
		launch: async ({ onSpawn, onOutput }) => {
			const child = spawn(process.execPath, [...flags, join(ROOT, role, 'main.ts')], {
				env: {
					...inherited(role),
					...env,
					DATA_DIR: dataDir,
					NAME: name,
					TLS_DIR: tlsFolder(dataDir),
					GRPC_HOST: LOOPBACK,
					...o.env,
					DISTRO_PARENT_PIPE: '1',
				},
				// A group of its own: Ctrl-C reaches the supervisor only, which stops the others in order.
				detached: true,
				stdio: ['pipe', 'pipe', 'pipe', ...(o.heldPipe === null ? [] : [o.heldPipe])],
			});
			onSpawn(child.pid ?? null);
			child.stdout?.on('data', onOutput);
			child.stderr?.on('data', onOutput);
			return child;
		},
		isReady: async () => {
			try {
				const response = await fetch(`${http}/readyz`, { signal: AbortSignal.timeout(READY_ASK_MS) });
				await response.arrayBuffer();
				return response.ok;
			} catch {
				return false;
			}
		},
		stopSignal: 'SIGTERM',
	};
}

/** What a process may see of this one's environment: a worker must not get the master key. */
export function inherited(role: 'orchestrator' | 'worker'): Record<string, string> {
	const common = ['PATH', 'HOME', 'LANG', 'TZ', 'LOG_LEVEL', 'NODE_EXTRA_CA_CERTS'];
	const workerOnly = ['ZONE', 'ZONE_FILE', 'DISK_RESERVE', 'CAPACITY', 'SCRUB_PERIOD', 'SCRUB_RATE'];
	const orchestratorOnly = [
		'MASTER_KEY',
		'MASTER_KEY_FILE',
		'ADMIN_KEY',
		'ADMIN_KEY_FILE',
		'SUPABASE_URL',
		'SUPABASE_KEY',
		'SUPABASE_KEY_FILE',
		'MEMORY_BUDGET',
		'INLINE_MAX',
		'MAX_OBJECT',
		'AUTH',
		'WORKER_CONNECTIONS',
		'LOST_AFTER',
		'TRASH_PERIOD',
		'SNAPSHOT_PERIOD',
		'REPAIR_LANES',
		'REPAIR_SHARE',
		'AUDITS_PER_HOUR',
		'RECONCILE_PERIOD',
		'RECONCILE_LIMIT',
		'TOLERATE_WORKERS',
		'TOLERATE_ZONES',
		'DATA_LOSS_PER_YEAR',
		'FIXED_REDUNDANCY',
	];
	const names = [...common, ...(role === 'orchestrator' ? orchestratorOnly : workerOnly)];
	return Object.fromEntries(
		names.flatMap((name) => (process.env[name] === undefined ? [] : [[name, process.env[name] as string]])),
	);
}
