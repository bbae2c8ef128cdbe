/** A worker's environment, read once. */

import { DISK_RESERVE_BYTES, MEMORY_BUDGET_MIN_BYTES, SCRUB_PERIOD_MS, SCRUB_RATE_BYTES } from '../core/limits.ts';
import { EnvReader } from '../platform/env.ts';

export interface WorkerConfig {
	readonly dataDir: string;
	readonly name: string;
	readonly zone: string;
	readonly tlsDir: string;
	readonly grpcHost: string;
	readonly grpcPort: number;
	/** What orchestrators dial; null: grpcHost and the port that was bound. */
	readonly advertise: string | null;
	readonly httpHost: string;
	readonly httpPort: number;
	/** host:port of each orchestrator's gRPC service. */
	readonly orchestrators: readonly string[];
	readonly memoryBudgetBytes: number;
	readonly diskReserveBytes: number;
	/** Bytes that this worker may use; null: what the volume has. */
	readonly capacityBytes: number | null;
	/** All shards are read again in about this time. */
	readonly scrubPeriodMs: number;
	/** Bytes a second, at most. */
	readonly scrubRate: number;
	readonly logLevel: string;
}

const MiB = 1024 * 1024;
const DAY_MS = 24 * 60 * 60_000;
const MAX_BYTES = Number.MAX_SAFE_INTEGER;

export function readConfig(env: NodeJS.ProcessEnv): WorkerConfig {
	const reader = new EnvReader(env);
	const config: WorkerConfig = {
		dataDir: reader.required('DATA_DIR', './data/worker-1'),
		name: reader.required('NAME', 'worker-1'),
		zone: zoneOf(reader),
		tlsDir: reader.required('TLS_DIR', './data/worker-1/tls'),
		grpcHost: reader.text('GRPC_HOST', '0.0.0.0'),
		grpcPort: reader.port('GRPC_PORT', 9090),
		advertise: reader.optional('ADVERTISE'),
		httpHost: reader.text('HTTP_HOST', reader.text('GRPC_HOST', '0.0.0.0')),
		httpPort: reader.port('HTTP_PORT', 8080),
		orchestrators: reader
			.required('ORCHESTRATORS', 'orchestrator:9090')
			.split(',')
			.map((address) => address.trim())
			.filter((address) => address !== ''),
		memoryBudgetBytes: reader.size('MEMORY_BUDGET', 48 * MiB, { min: MEMORY_BUDGET_MIN_BYTES, max: MAX_BYTES }),
		diskReserveBytes: reader.size('DISK_RESERVE', DISK_RESERVE_BYTES, { min: 0, max: MAX_BYTES }),
		capacityBytes: reader.optional('CAPACITY') === null ? null : reader.size('CAPACITY', 0, { min: 1, max: MAX_BYTES }),
		scrubPeriodMs: reader.duration('SCRUB_PERIOD', SCRUB_PERIOD_MS, { min: 1_000, max: 3650 * DAY_MS }),
		scrubRate: reader.size('SCRUB_RATE', SCRUB_RATE_BYTES, { min: 4096, max: MAX_BYTES }),
		logLevel: reader.choice('LOG_LEVEL', 'info', ['fatal', 'error', 'warn', 'info', 'debug', 'trace']),
	};
	if (config.advertise === null && ['0.0.0.0', '::'].includes(config.grpcHost)) {
		reader.mistake('ADVERTISE is not set, and nobody can dial every address: for example ADVERTISE=worker-1:9090');
	}
	reader.done();
	return config;
}

/** ZONE, or the content of ZONE_FILE (a downward-API volume). */
function zoneOf(reader: EnvReader): string {
	return reader.secret('ZONE') ?? '';
}
