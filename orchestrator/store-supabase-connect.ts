/** The way in to the database for everything that is kept there: checked once, before anything else is asked. */

import { DistroError } from '../core/errors.ts';
import type { Clock, Random } from '../core/ports.ts';
import { type Fetch, SupabaseRpc } from './store-supabase-rpc.ts';
import { SCHEMA_VERSION } from './store-supabase-schema.ts';

const OPEN_TIMEOUT_MS = 10_000;

export interface SupabaseOptions {
	readonly url: string;
	/** A service-role (secret) key. Asked for every request. */
	readonly key: () => string;
	readonly clock: Clock;
	readonly random: Random;
	readonly fetch?: Fetch;
}

/**
 * Checks address, key and schema. Throws `invalid` (no Supabase there), `denied` (wrong key), `unsupported` (not
 * migrated, or by a newer release), `unavailable`: one sentence each, without the key.
 */
export async function connectSupabase(options: Pick<SupabaseOptions, 'url' | 'key' | 'fetch'>): Promise<SupabaseRpc> {
	const rpc = new SupabaseRpc(options, { fetch: options.fetch });
	const schema = await rpc.schema(OPEN_TIMEOUT_MS);
	if (schema > SCHEMA_VERSION) {
		throw new DistroError(
			'unsupported',
			`the database was migrated by a newer release (schema ${schema}, this one knows ${SCHEMA_VERSION}): run that release`,
		);
	}
	if (schema < SCHEMA_VERSION) {
		throw new DistroError(
			'unsupported',
			`the database has schema ${schema} and this release needs ${SCHEMA_VERSION}: migrate it (make migrate, or supabase db push)`,
		);
	}
	return rpc;
}
