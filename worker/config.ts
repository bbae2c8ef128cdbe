/** A worker's environment, read once. */

import { DISK_RESERVE_BYTES, MEMORY_BUDGET_MIN_BYTES, SCRUB_PERIOD_MS, SCRUB_RATE_BYTES } from '../core/limits.ts';
import { EnvReader } from '../platform/env.ts';

export interface WorkerConfig {
	readonly dataDir: string;
	readonly name: string;
	readonly zone: string;
	/** Where the zone is read from instead, and looked at again; null: `zone` it is. */
	readonly zoneFile: string | null;
	readonly tlsDir: string;
	/** The authorities that are trusted; null: `ca.crt` in `tlsDir`. */
	readonly tlsCaFile: string | null;
	/** Where this worker gets its certificate; null: somebody puts it into `tlsDir`. */
	readonly enrol: EnrolSettings | null;
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

export interface EnrolSettings {
	/** host:port of orchestrators. */
	readonly address: string;
	/** A projected service-account token. */
	readonly tokenFile: string;
	readonly caFile: string;
}

const MiB = 1024 * 1024;
const DAY_MS = 24 * 60 * 60_000;
const MAX_BYTES = Number.MAX_SAFE_INTEGER;
const ADDRESS = /^[^\s:/@?#]+:\d{1,5}$/;

export function readConfig(env: NodeJS.ProcessEnv): WorkerConfig {
	const reader = new EnvReader(env);
	const config: WorkerConfig = {
		dataDir: reader.required('DATA_DIR', './data/worker-1'),
		name: reader.required('NAME', 'worker-1'),
		zone: reader.text('ZONE', '').trim(),
		zoneFile: reader.optional('ZONE_FILE'),
		tlsDir: reader.required('TLS_DIR', './data/worker-1/tls'),
		tlsCaFile: reader.optional('TLS_CA_FILE'),
		enrol: readEnrol(reader),
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
	if (config.zone !== '' && config.zoneFile !== null) reader.mistake('ZONE and ZONE_FILE are both set: keep one');
	reader.done();
	return config;
}

function readEnrol(reader: EnvReader): EnrolSettings | null {
	const address = reader.optional('ENROL_ADDRESS');
	if (address === null) return null;
	if (!ADDRESS.test(address)) reader.mistake('ENROL_ADDRESS must be host:port, such as orchestrator:9092');
	return {
		address,
		tokenFile: reader.required('ENROL_TOKEN_FILE', '/var/run/secrets/distro/token'),
		caFile: reader.required('TLS_CA_FILE', '/etc/distro/ca/ca.crt'),
	};
}
