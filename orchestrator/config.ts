/** The orchestrator's environment, read once; the master key is made here when none is given. */

import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type MasterKeyring, parseMasterKeys } from '../core/crypto/keys.ts';
import { DistroError } from '../core/errors.ts';
import {
	AUDITS_PER_HOUR,
	CODEC_MAX_K,
	CODEC_MAX_M,
	INLINE_LIMIT_BYTES,
	INLINE_MAX_BYTES,
	LOST_AFTER_MS,
	MEMORY_BUDGET_BYTES,
	MEMORY_BUDGET_MIN_BYTES,
	MEND_LANES,
	MEND_SHARE_PERCENT,
	OBJECT_MAX_BYTES,
	RECONCILE_LIMIT_PERCENT,
	RECONCILE_PERIOD_MS,
	SNAPSHOT_PERIOD_MS,
	SUSPECT_AFTER_MS,
	TRASH_PERIOD_MS,
} from '../core/limits.ts';
import { DEFAULT_POLICY, type RedundancyPolicy } from '../core/model/redundancy.ts';
import type { Random } from '../core/ports.ts';
import { EnvReader } from '../platform/env.ts';
import { createFileDurably } from '../platform/files.ts';
import { givenKeyRow } from './given-key.ts';

export interface OrchestratorConfig {
	readonly dataDir: string;
	/** Where the metadata is kept; null: in a file in `dataDir`. */
	readonly supabase: SupabaseAddress | null;
	readonly name: string;
	readonly tlsDir: string;
	/** The authorities that are trusted; null: `ca.crt` in `tlsDir`. */
	readonly tlsCaFile: string | null;
	/** Workers get their certificates here; null: not from this orchestrator. */
	readonly enrol: EnrolSettings | null;
	readonly httpHost: string;
	readonly httpPort: number;
	readonly grpcHost: string;
	readonly grpcPort: number;
	readonly master: MasterKeyring;
	/** The same, read anew where it comes from a file that may change; throws `invalid`. */
	readonly masterNow: () => MasterKeyring;
	/** A sentence for the log when the key was just made, else null. */
	readonly masterKeyMade: string | null;
	readonly memoryBudgetBytes: number;
	readonly inlineMaxBytes: number;
	readonly maxObjectBytes: number;
	/** `keys`: an API key is needed. `off`: never. `auto`: needed beyond loopback. */
	readonly auth: 'auto' | 'keys' | 'off';
	/** An admin key that counts beside those that are kept, asked for anew each time; null: none. */
	readonly adminKey: (() => string) | null;
	readonly workerConnections: number;
	/** A worker that was away for so long is lost: its shards are rebuilt elsewhere. */
	readonly lostAfterMs: number;
	/** Deleted objects are in the trash for so long; 0: they are gone at once. */
	readonly trashMs: number;
	/** Between snapshots of the metadata; 0: only when they are asked for. */
	readonly snapshotMs: number;
	readonly mendLanes: number;
	/** Part of its time that each lane works while people's transfers run. */
	readonly mendShare: number;
	/** Of each worker; 0: none. */
	readonly auditsPerHour: number;
	readonly reconcilePeriodMs: number;
	/** Of a worker's shards, the part that a reconcile may remove. */
	readonly reconcileLimit: number;
	readonly policy: RedundancyPolicy;
	readonly logLevel: string;
}

export interface EnrolSettings {
	readonly port: number;
	/** Whose tokens are taken: jwks.json and settings.json. */
	readonly dir: string;
	/** The authority that signs: tls.crt and tls.key. */
	readonly issuerDir: string;
	/** Of a certificate; it is renewed after two thirds of it. */
	readonly lifetimeMs: number;
}

/** A Supabase project and its service-role (secret) key, which is asked for anew for every request. */
export interface SupabaseAddress {
	readonly url: string;
	readonly key: () => string;
}

const MAX_LOST_AFTER_MS = 365 * 24 * 60 * 60_000;
const MAX_TRASH_MS = 10 * 365 * 24 * 60 * 60_000;
const MAX_SNAPSHOT_MS = 365 * 24 * 60 * 60_000;
const RECONCILE_MIN_PERIOD_MS = 60_000;
const MAX_BYTES = Number.MAX_SAFE_INTEGER;
const DAY_MS = 24 * 60 * 60_000;
const CERTIFICATE_MS = 30 * DAY_MS;
const CERTIFICATE_MIN_MS = 10_000;

export function readConfig(env: NodeJS.ProcessEnv, random: Random): OrchestratorConfig {
	const reader = new EnvReader(env);
	const dataDir = reader.text('DATA_DIR', './data');
	const given = reader.secretSource('MASTER_KEY');
	const supabase = readSupabase(reader);
	const adminKey = reader.secretSource('ADMIN_KEY');
	if (adminKey !== null) reader.parse(() => givenKeyRow(adminKey()));
	const shared = {
		dataDir,
		supabase,
		name: reader.text('NAME', 'orchestrator-1'),
		tlsDir: reader.text('TLS_DIR', join(dataDir, 'tls')),
		tlsCaFile: reader.optional('TLS_CA_FILE'),
		enrol: readEnrol(reader),
		httpHost: reader.text('HTTP_HOST', '127.0.0.1'),
		httpPort: reader.port('HTTP_PORT', 8080),
		grpcHost: reader.text('GRPC_HOST', reader.text('HTTP_HOST', '127.0.0.1')),
		grpcPort: reader.port('GRPC_PORT', 9090),
		memoryBudgetBytes: reader.size('MEMORY_BUDGET', MEMORY_BUDGET_BYTES, {
			min: MEMORY_BUDGET_MIN_BYTES,
			max: MAX_BYTES,
		}),
		inlineMaxBytes: reader.size('INLINE_MAX', INLINE_MAX_BYTES, { min: 0, max: INLINE_LIMIT_BYTES }),
		maxObjectBytes: reader.size('MAX_OBJECT', OBJECT_MAX_BYTES, { min: 1, max: OBJECT_MAX_BYTES }),
		auth: reader.choice('AUTH', 'auto', ['auto', 'keys', 'off']),
		adminKey,
		workerConnections: reader.integer('WORKER_CONNECTIONS', 2, { min: 1, max: 64 }),
		lostAfterMs: reader.duration('LOST_AFTER', LOST_AFTER_MS, { min: SUSPECT_AFTER_MS, max: MAX_LOST_AFTER_MS }),
		trashMs: reader.duration('TRASH_PERIOD', TRASH_PERIOD_MS, { min: 0, max: MAX_TRASH_MS }),
		snapshotMs: reader.duration('SNAPSHOT_PERIOD', SNAPSHOT_PERIOD_MS, { min: 0, max: MAX_SNAPSHOT_MS }),
		mendLanes: reader.integer('REPAIR_LANES', MEND_LANES, { min: 1, max: 64 }),
		mendShare: reader.integer('REPAIR_SHARE', MEND_SHARE_PERCENT, { min: 1, max: 100 }) / 100,
		auditsPerHour: reader.integer('AUDITS_PER_HOUR', AUDITS_PER_HOUR, { min: 0, max: 100_000 }),
		reconcilePeriodMs: reader.duration('RECONCILE_PERIOD', RECONCILE_PERIOD_MS, {
			min: RECONCILE_MIN_PERIOD_MS,
			max: MAX_LOST_AFTER_MS,
		}),
		reconcileLimit: reader.integer('RECONCILE_LIMIT', RECONCILE_LIMIT_PERCENT, { min: 0, max: 100 }) / 100,
		policy: readPolicy(reader),
		logLevel: reader.choice('LOG_LEVEL', 'info', ['fatal', 'error', 'warn', 'info', 'debug', 'trace']),
	};
	const master = given === null ? null : reader.parse(() => parseMasterKeys(given()));
	reader.done();
	try {
		mkdirSync(dataDir, { recursive: true, mode: 0o700 });
	} catch (cause) {
		throw new DistroError('invalid', `DATA_DIR ${dataDir} can't be used: ${(cause as Error).message}`, { cause });
	}
	if (given !== null && master !== null) {
		let text = given();
		let now = master;
		const masterNow = () => {
			if (given() === text) return now;
			now = parseMasterKeys(given());
			text = given();
			return now;
		};
		return { ...shared, master, masterNow, masterKeyMade: null };
	}
	const kept = keptMasterKey({ dataDir, beyondFolder: supabase !== null }, random);
	const own = parseMasterKeys(kept.text);
	return { ...shared, master: own, masterNow: () => own, masterKeyMade: kept.made };
}

function readEnrol(reader: EnvReader): EnrolSettings | null {
	const lifetimeMs = reader.duration('ENROL_LIFETIME', CERTIFICATE_MS, { min: CERTIFICATE_MIN_MS, max: 3650 * DAY_MS });
	if (reader.optional('ENROL_PORT') === null) return null;
	return {
		port: reader.port('ENROL_PORT', 0),
		dir: reader.required('ENROL_DIR', '/etc/distro/enrol'),
		issuerDir: reader.required('ISSUER_DIR', '/etc/distro/issuer'),
		lifetimeMs,
	};
}

/** `redundancy` of the resource: what new segments must survive, or one (n, k) for all of them. */
function readPolicy(reader: EnvReader): RedundancyPolicy {
	const { tolerate, dataLossPerYear } = DEFAULT_POLICY;
	const adaptive = {
		tolerate: {
			workers: reader.integer('TOLERATE_WORKERS', tolerate.workers, { min: 0, max: CODEC_MAX_M }),
			zones: reader.integer('TOLERATE_ZONES', tolerate.zones, { min: 0, max: CODEC_MAX_M }),
		},
		dataLossPerYear: reader.fraction('DATA_LOSS_PER_YEAR', dataLossPerYear),
	};
	const text = reader.optional('FIXED_REDUNDANCY');
	if (text === null) return adaptive;
	const [, k, m] = /^(\d+)\+(\d+)$/.exec(text) ?? [];
	const fixed = { dataShards: Number(k), parityShards: Number(m) };
	if (
		!(
			fixed.dataShards >= 1 &&
			fixed.dataShards <= CODEC_MAX_K &&
			fixed.parityShards >= 1 &&
			fixed.parityShards <= CODEC_MAX_M
		)
	) {
		reader.mistake(
			`FIXED_REDUNDANCY must be data shards + parity shards, such as 4+2: at most ${CODEC_MAX_K} and from 1 to ${CODEC_MAX_M}`,
		);
	}
	return { ...adaptive, fixed };
}

export const METADATA_FILE = 'metadata.db';

/** null when the environment names none. */
export function readSupabase(reader: EnvReader): SupabaseAddress | null {
	const url = reader.optional('SUPABASE_URL');
	const key = reader.secretSource('SUPABASE_KEY');
	if (url !== null && key !== null) return { url, key };
	if (url !== null)
		reader.mistake(
			'SUPABASE_URL is set and SUPABASE_KEY is not: give the service-role (secret) key, or SUPABASE_KEY_FILE',
		);
	if (key !== null)
		reader.mistake('SUPABASE_KEY is set and SUPABASE_URL is not: set both, or neither (metadata in SQLite)');
	return null;
}

/** Without MASTER_KEY: the one in the data folder, made once; not where the metadata is beyond that folder. */
function keptMasterKey(
	{ dataDir, beyondFolder }: { dataDir: string; beyondFolder: boolean },
	random: Random,
): { text: string; made: string | null } {
	const path = join(dataDir, 'master.key');
	if (existsSync(path)) return { text: readFileSync(path, 'utf8'), made: null };
	if (existsSync(join(dataDir, METADATA_FILE))) {
		// A new one would open nothing, and be taken for the right one later.
		throw new DistroError(
			'denied',
			`${dataDir} has metadata and no master.key: restore that file, or set MASTER_KEY to the key that was used; nothing was changed`,
		);
	}
	if (beyondFolder) {
		throw new DistroError(
			'denied',
			'with SUPABASE_URL every orchestrator needs the same MASTER_KEY (64 hexadecimal digits, openssl rand -hex 32): set it, or MASTER_KEY_FILE',
		);
	}
	const text = random.bytes(32).toString('hex');
	if (!createFileDurably(path, `${text}\n`, { mode: 0o600 })) return { text: readFileSync(path, 'utf8'), made: null };
	return {
		text,
		made: `made a master key and keep it in ${path} (mode 0600): copy it to a safe place, nothing can be read without it`,
	};
}
