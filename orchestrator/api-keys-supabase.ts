/**
 * API keys in the database that several orchestrators share, so that a key made or revoked beside one of them counts at all.
 *
 * What was read is kept for a second, and for five minutes in case the database goes away: reads of objects go on then
 * (store-remembering.ts), and whoever asks for them must be known.
 */

import { asDistroError, DistroError } from '../core/errors.ts';
import { newId } from '../core/ids.ts';
import type { Clock, Random } from '../core/ports.ts';
import { API_KEYS_REFRESH_MS, type ApiKeyRow, type ApiKeyScope, type ApiKeyStore } from './api-keys.ts';
import { refuseMoved } from './move-supabase.ts';
import { MAX_AGE_MS } from './store-remembering.ts';
import { Batches } from './store-supabase-batch.ts';
import { Breaker } from './store-supabase-breaker.ts';
import { connectSupabase, type SupabaseOptions } from './store-supabase-connect.ts';
import { storable } from './store-supabase-rows.ts';
import type { SupabaseRpc } from './store-supabase-rpc.ts';

const WRITE = { name: 'distro_write', lanes: 1, maxCalls: 60, deadlineMs: 10_000, timeoutMs: 5_000 };
/** Shorter than that of metadata: while the database hangs, a read waits for both. */
const READ = { name: 'distro_read', lanes: 1, maxCalls: 60, deadlineMs: 2_500, timeoutMs: 2_000 };

interface ApiKeyJson {
	readonly keyId: string;
	readonly secretHash: string;
	readonly scope: string;
	readonly label: string;
	readonly createdAtMs: string;
}

/** Throws as connectSupabase does, and `conflict` while a move of the metadata forbids to use them. */
export async function openSupabaseApiKeys(options: SupabaseOptions): Promise<ApiKeyStore> {
	const rpc = await connectSupabase(options);
	await refuseMoved(rpc);
	return new SupabaseApiKeys(rpc, options);
}

class SupabaseApiKeys implements ApiKeyStore {
	readonly #writes: Batches;
	readonly #reads: Batches;
	readonly #clock: Clock;
	readonly #random: Random;
	#rows: readonly ApiKeyRow[] = [];
	#readAtMs = Number.NEGATIVE_INFINITY;
	#reading: { readonly startedMs: number; readonly rows: Promise<readonly ApiKeyRow[]> } | null = null;

	constructor(rpc: SupabaseRpc, { clock, random }: SupabaseOptions) {
		const deps = { rpc, breaker: new Breaker({ clock, random }), clock, random };
		this.#writes = new Batches(deps, WRITE);
		this.#reads = new Batches(deps, READ);
		this.#clock = clock;
		this.#random = random;
	}

	async addApiKey(key: ApiKeyRow): Promise<void> {
		const { keyId, scope, createdAtMs } = key;
		const label = storable(key.label);
		const args = { keyId, scope, label, createdAtMs, secretHash: key.secretHash.toString('base64') };
		const added = await this.#write('addApiKey', args);
		if (!added) throw new DistroError('exists', `API key ${keyId} is there already`);
	}

	async removeApiKey(keyId: string): Promise<boolean> {
		return this.#write('removeApiKey', { keyId: storable(keyId) });
	}

	async #write(method: string, args: { keyId: string }): Promise<boolean> {
		const call = { ...args, callId: newId(this.#random) };
		const done = (await this.#writes.run({ method, args: call, key: args.keyId })) as boolean;
		// What was read before, or is just being read, is old.
		this.#reading = null;
		this.#readAtMs = Number.NEGATIVE_INFINITY;
		return done;
	}

	async apiKeys(options: { mayBeOld?: boolean } = {}): Promise<readonly ApiKeyRow[]> {
		if (this.#clock.monotonicMs() - this.#readAtMs < API_KEYS_REFRESH_MS) return this.#rows;
		try {
			return await this.#read();
		} catch (thrown) {
			const { kind } = asDistroError(thrown);
			const isAway = kind === 'unavailable' || kind === 'timeout';
			const isYoung = this.#clock.monotonicMs() - this.#readAtMs <= MAX_AGE_MS;
			if (options.mayBeOld === true && isAway && isYoung) return this.#rows;
			throw thrown;
		}
	}

	/** One read for all who ask within a second. */
	#read(): Promise<readonly ApiKeyRow[]> {
		const startedMs = this.#clock.monotonicMs();
		const known = this.#reading;
		if (known !== null && startedMs - known.startedMs < API_KEYS_REFRESH_MS) return known.rows;
		const asked = this.#reads.run({ method: 'apiKeys', args: {}, key: '' });
		const reading = { startedMs, rows: asked.then((rows) => (rows as ApiKeyJson[]).map(toApiKey)) };
		this.#reading = reading;
		const end = () => {
			if (this.#reading === reading) this.#reading = null;
		};
		reading.rows.then((rows) => {
			if (this.#reading !== reading) return;
			this.#rows = rows;
			this.#readAtMs = startedMs;
			end();
		}, end);
		return reading.rows;
	}

	async close(): Promise<void> {
		this.#readAtMs = Number.NEGATIVE_INFINITY;
		await Promise.all([this.#writes.close(), this.#reads.close()]);
	}
}

function toApiKey({ secretHash, scope, createdAtMs, ...row }: ApiKeyJson): ApiKeyRow {
	return {
		...row,
		scope: scope as ApiKeyScope,
		secretHash: Buffer.from(secretHash, 'base64'),
		createdAtMs: Number(createdAtMs),
	};
}
