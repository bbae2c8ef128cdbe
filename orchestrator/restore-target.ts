/**
 * Where a restore writes: a fresh store, SQLite or Supabase. What is there is looked at first: objects of a cluster are never
 * written over, a damaged or empty file is moved aside (and kept), a restore that was killed is gone on with.
 */

import { existsSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { asDistroError, DistroError } from '../core/errors.ts';
import type { ClusterId, WorkerId } from '../core/ids.ts';
import type { WorkerDuty } from '../core/model/health.ts';
import type { KeysRecord } from '../core/model/keys-record.ts';
import type { Clock } from '../core/ports.ts';
import { systemClock, systemRandom } from '../platform/clock.ts';
import { type ApiKeyScope, type ApiKeyStore, openApiKeys } from './api-keys.ts';
import { METADATA_FILE, type OrchestratorConfig } from './config.ts';
import { isHalfRestored, markRestore } from './restore-mark.ts';
import type { SnapshotRest } from './restore-snapshot.ts';
import type { MetadataStore, WorkerSighting } from './store.ts';
import { openSqliteStore } from './store-sqlite.ts';
import type { WorkerRegistry } from './workers.ts';

const LEFT_MAX = 1_000;
/** So long their shards stay on the workers. */
const LEFT_MS = 7 * 24 * 60 * 60_000;

export interface RestoreTarget {
	readonly store: MetadataStore;
	/** Keys of the cluster, workers, API keys; and the mark. Throws `conflict` when another cluster is there. */
	begin(o: {
		clusterId: ClusterId;
		keys: KeysRecord;
		workers: WorkerRegistry;
		snapshot: SnapshotRest | null;
		clock: Clock;
	}): Promise<void>;
	/** All is there: an orchestrator may start. */
	end(): Promise<void>;
	close(): Promise<void>;
}

/** Throws `conflict` when it has objects that no unfinished restore wrote. */
export async function openTarget(config: OrchestratorConfig, say: (line: string) => void): Promise<RestoreTarget> {
	const store = config.supabase === null ? await openFile(config, say) : await openSupabase(config);
	try {
		if ((await stateOf(store)) === 'in use') {
			throw new DistroError(
				'conflict',
				`the metadata store has objects, and no restore that was interrupted: it is in use. Give an empty one (move ${METADATA_FILE} away, or use another database)`,
			);
		}
	} catch (error) {
		await store.close();
		throw error;
	}
	return new Target(store, config);
}

async function stateOf(store: MetadataStore): Promise<'in use' | 'half' | 'empty'> {
	if (await isHalfRestored(store)) return 'half';
	const { objects, trashObjects, intents } = await store.counts();
	return objects + trashObjects + intents > 0 ? 'in use' : 'empty';
}

async function openSupabase({ supabase }: OrchestratorConfig): Promise<MetadataStore> {
	if (supabase === null) throw new DistroError('internal', 'no Supabase');
	const { openSupabaseStore } = await import('./store-supabase.ts');
	return openSupabaseStore({ ...supabase, clock: systemClock, random: systemRandom });
}

async function openFile({ dataDir }: OrchestratorConfig, say: (line: string) => void): Promise<MetadataStore> {
	const path = join(dataDir, METADATA_FILE);
	if (!existsSync(path)) {
		// What is left of one that is gone would be taken for its own.
		moveAside(path, say);
		return openSqliteStore({ path });
	}
	let store: MetadataStore;
	try {
		store = await openSqliteStore({ path });
	} catch (thrown) {
		if (asDistroError(thrown).kind !== 'corrupt') throw thrown;
		moveAside(path, say);
		return openSqliteStore({ path });
	}
	// A damaged one may open, and fail later.
	const state = await stateOf(store).catch((thrown) => {
		if (asDistroError(thrown).kind === 'corrupt') return 'damaged';
		throw thrown;
	});
	if (state === 'half' || state === 'in use') return store;
	await store.close();
	moveAside(path, say);
	return openSqliteStore({ path });
}

function moveAside(path: string, say: (line: string) => void): void {
	const stamp = new Date().toISOString().replaceAll(':', '');
	for (const suffix of ['', '-wal', '-shm', '-journal']) {
		const from = `${path}${suffix}`;
		if (!existsSync(from)) continue;
		const to = `${path}.before-restore-${stamp}${suffix}`;
		renameSync(from, to);
		say(`What was there is kept: ${to}`);
	}
}

class Target implements RestoreTarget {
	readonly store: MetadataStore;
	readonly #config: OrchestratorConfig;

	constructor(store: MetadataStore, config: OrchestratorConfig) {
		this.store = store;
		this.#config = config;
	}

	async begin(o: Parameters<RestoreTarget['begin']>[0]): Promise<void> {
		const { store } = this;
		const { clusterId, keys, workers, snapshot, clock } = o;
		const createdAtMs = snapshot?.cluster.createdAtMs ?? clock.nowMs();
		const cluster = await store.initCluster({ ...keys, createdAtMs });
		const isSame =
			cluster.clusterId === clusterId &&
			keys.keys.every(({ generation, wrapped }) =>
				cluster.keys.some((key) => key.generation === generation && key.wrapped.equals(wrapped)),
			);
		if (!isSame) {
			throw new DistroError(
				'conflict',
				'the metadata store belongs to another cluster, or has other keys: give an empty one',
			);
		}
		await markRestore(store, 'running', clock.nowMs());
		await this.#saveWorkers(workers, snapshot);
		if (snapshot !== null) await this.#saveApiKeys(snapshot, clock);
	}

	/** Those that are there, and those that the snapshot knows: their receipt keys must be those of before. */
	async #saveWorkers(workers: WorkerRegistry, snapshot: SnapshotRest | null): Promise<void> {
		const there = workers.rows().map(({ row }): WorkerSighting => row);
		const ids = new Set<WorkerId>(there.map(({ workerId }) => workerId));
		const away = (snapshot?.workers ?? []).filter(({ workerId }) => !ids.has(workerId));
		for (const worker of there) await this.store.saveWorker(worker);
		for (const { is: _, duty, history, ...worker } of away) {
			const row = { ...worker, bytesTotal: 0, bytesUsed: 0, shards: 0 };
			await this.store.saveWorker(row).catch(async (thrown) => {
				if (asDistroError(thrown).kind !== 'exists') throw thrown;
				// Somebody else has its name by now.
				await this.store.saveWorker({ ...row, name: `${row.name}~${row.workerId.slice(0, 8)}` });
			});
		}
		for (const { workerId, duty, history } of snapshot?.workers ?? []) {
			await this.store.setDuty(workerId, duty as WorkerDuty);
			await this.store.saveHistory(workerId, history);
		}
	}

	async #saveApiKeys(snapshot: SnapshotRest, clock: Clock): Promise<void> {
		const apiKeys = await openKeyStore(this.#config, clock);
		try {
			for (const { is: _, scope, ...key } of snapshot.apiKeys) {
				await apiKeys.addApiKey({ ...key, scope: scope as ApiKeyScope }).catch((thrown) => {
					// It was not lost.
					if (asDistroError(thrown).kind !== 'exists') throw thrown;
				});
			}
		} finally {
			await apiKeys.close();
		}
	}

	async end(): Promise<void> {
		const nowMs = systemClock.nowMs();
		// Of objects that a run before was killed at, and that are not recovered now: a few, which would be kept for ever.
		for (const { uploadId } of await this.store.intents(LEFT_MAX)) await this.store.renew(uploadId, nowMs + LEFT_MS);
		await markRestore(this.store, 'done', nowMs);
	}

	close(): Promise<void> {
		return this.store.close();
	}
}

async function openKeyStore({ supabase, dataDir }: OrchestratorConfig, clock: Clock): Promise<ApiKeyStore> {
	if (supabase === null) return openApiKeys({ dataDir, clock });
	const { openSupabaseApiKeys } = await import('./api-keys-supabase.ts');
	return openSupabaseApiKeys({ ...supabase, clock, random: systemRandom });
}
