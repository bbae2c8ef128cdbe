/** The environment of `make run`, read once; every mistake is named at once. */

import { EnvReader } from '../platform/env.ts';
import { LOOPBACK } from './ports.ts';

export interface RunSettings {
	readonly orchestrators: number;
	readonly workers: number;
	/** `own`: a PostgreSQL and PostgREST in DATA_DIR. `given`: what SUPABASE_URL names. */
	readonly metadata: 'sqlite' | 'own' | 'given';
	readonly httpHost: string;
	/** The first of each; 0: any free ones. */
	readonly httpPort: number;
	readonly grpcPort: number;
	readonly workerHttpBase: number;
	readonly workerGrpcBase: number;
}

export function readRunSettings(env: NodeJS.ProcessEnv): RunSettings {
	const reader = new EnvReader(env);
	const settings = {
		// Their ports end before those of the workers begin.
		orchestrators: reader.integer('ORCHESTRATORS', 1, { min: 1, max: 9 }),
		workers: reader.integer('WORKERS', 6, { min: 1, max: 99 }),
		metadata: metadataOf(reader),
		httpHost: reader.text('HTTP_HOST', LOOPBACK),
		httpPort: reader.port('HTTP_PORT', 8080),
		grpcPort: reader.port('GRPC_PORT', 9090),
		workerHttpBase: reader.integer('WORKER_HTTP_BASE', 9100, { min: 0, max: 65_000 }),
		workerGrpcBase: reader.integer('WORKER_GRPC_BASE', 9200, { min: 0, max: 65_000 }),
	};
	if (settings.orchestrators > 1 && settings.metadata === 'sqlite')
		reader.mistake(
			`ORCHESTRATORS=${settings.orchestrators} needs METADATA=supabase: metadata in SQLite are one orchestrator’s own`,
		);
	reader.done();
	return settings;
}

function metadataOf(reader: EnvReader): RunSettings['metadata'] {
	const given = reader.optional('SUPABASE_URL') !== null;
	const wanted = reader.choice('METADATA', given ? 'supabase' : 'sqlite', ['sqlite', 'supabase']);
	if (
		wanted === 'supabase' &&
		!given &&
		(reader.optional('SUPABASE_KEY') ?? reader.optional('SUPABASE_KEY_FILE')) !== null
	) {
		reader.mistake('SUPABASE_KEY is set and SUPABASE_URL is not: set both, or neither (a PostgreSQL of its own)');
	}
	if (wanted === 'supabase') return given ? 'given' : 'own';
	if (given) reader.mistake('METADATA=sqlite and SUPABASE_URL contradict each other: keep one');
	return 'sqlite';
}
