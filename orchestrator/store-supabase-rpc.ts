/**
 * One call of one Postgres function over the REST interface, with a deadline, and every way it fails as a DistroError
 * whose kind says what to do: `unavailable` and `timeout` may be tried again, all others not.
 *
 * The key goes into headers and nowhere else: no sentence here is made of what a header or an address with a password
 * could have got into. supabase-js reports failures as `{error}` and does not throw; its own repeating stays off.
 */

import { createClient } from '@supabase/supabase-js';
import { DistroError } from '../core/errors.ts';
import type { SupabaseAddress } from './config.ts';
import { Refusal } from './store-supabase-errors.ts';

export type Fetch = typeof globalThis.fetch;

/** `reason` of a `timeout` that the database itself set. */
export const TOO_LONG = 'too_long';

/** Where Supabase's gateway puts PostgREST. A PostgREST of one's own has it at the root. */
const GATEWAY_PATH = '/rest/v1/rpc/';

export class SupabaseRpc {
	readonly #client: ReturnType<typeof createClient>;
	/** For people. */
	readonly host: string;
	/** What `fetch` threw, by the signal of the call: supabase-js keeps only text of it. */
	readonly #thrown = new WeakMap<AbortSignal, unknown>();
	#bare = false;

	/** Throws `invalid` for an address or a key that can't be one. */
	constructor(address: SupabaseAddress, options: { fetch?: Fetch | undefined } = {}) {
		const url = parseUrl(address.url);
		const send = options.fetch ?? globalThis.fetch;
		this.host = url.host;
		this.#client = createClient(url.href, checkedKey(address.key()), {
			auth: { persistSession: false, autoRefreshToken: false, detectSessionInUrl: false },
			global: {
				fetch: async (input, init) => {
					const headers = new Headers(init?.headers);
					const key = checkedKey(address.key());
					headers.set('apikey', key);
					headers.set('authorization', `Bearer ${key}`);
					const target = this.#bare ? String(input).replace(GATEWAY_PATH, '/rpc/') : input;
					try {
						return await send(target, { ...init, headers });
					} catch (error) {
						if (init?.signal) this.#thrown.set(init.signal, error);
						throw error;
					}
				},
			},
		});
	}

	/**
	 * Finds out what answers at the address, and tells the schema's number. Throws `invalid` (no Supabase there), `denied`
	 * (wrong key), `unsupported` (no schema), `unavailable`, `timeout`.
	 */
	async schema(timeoutMs: number): Promise<number> {
		try {
			return (await this.call('distro_schema', {}, { timeoutMs })) as number;
		} catch (error) {
			if (!(error instanceof DistroError && error.kind === 'invalid')) throw error;
			this.#bare = true;
			return (await this.call('distro_schema', {}, { timeoutMs })) as number;
		}
	}

	async call(name: string, args: object, options: { timeoutMs: number }): Promise<unknown> {
		const signal = AbortSignal.timeout(options.timeoutMs);
		const { data, error, status } = await this.#client
			.rpc(name as never, args as never)
			.retry(false)
			.abortSignal(signal);
		if (error === null) {
			if (data === null) throw this.#notSupabase(status);
			return data;
		}
		if (status === 0) throw this.#unreachable(signal, options.timeoutMs);
		throw this.#refused(status, error);
	}

	#unreachable(signal: AbortSignal, timeoutMs: number): DistroError {
		const thrown = this.#thrown.get(signal);
		if (thrown instanceof DistroError) return thrown;
		if (signal.aborted) {
			return new DistroError('timeout', `the metadata database did not answer within ${timeoutMs} ms`);
		}
		const { cause } = (thrown ?? {}) as { cause?: { code?: string } };
		const code = cause?.code ?? 'no connection';
		return new DistroError('unavailable', `the metadata database cannot be reached (${code})`);
	}

	#refused(status: number, error: { code?: string; message?: string; details?: string | null }): DistroError {
		const { code = '', message = '' } = error;
		if (code === 'PT409' && message === 'moved') {
			return new DistroError('denied', 'the metadata in this database was moved away, or is half-moved');
		}
		if (code === 'PT409') return new Refusal(message, error.details ?? '');
		if (code === 'PGRST202') {
			return new DistroError(
				'unsupported',
				`the metadata database lacks what this release needs: migrate it (make migrate, or supabase db push)`,
			);
		}
		if (code === '42501') {
			return new DistroError('denied', 'SUPABASE_KEY is not a service-role (secret) key: it may not use the metadata');
		}
		if (status === 401 || status === 403) {
			return new DistroError('denied', 'SUPABASE_KEY is refused: it is wrong or was revoked');
		}
		if (code === '57014') {
			return new DistroError('timeout', 'the metadata database took too long', { reason: TOO_LONG });
		}
		if (isPassing(status, code)) {
			return new DistroError('unavailable', `the metadata database is not available (${code || status})`);
		}
		// PostgREST and Postgres always give a code.
		if (!/^(PGRST\w+|[0-9A-Z]{5})$/.test(code) || code === 'PGRST125') return this.#notSupabase(status);
		return new DistroError('internal', `the metadata database failed with ${code}: ${message}`);
	}

	#notSupabase(status: number): DistroError {
		return new DistroError(
			'invalid',
			`SUPABASE_URL: what answers at ${this.host} is no Supabase and no PostgREST (status ${status}): is the address right?`,
		);
	}
}

/** SQLSTATEs and PostgREST codes of a database that is away, starting, full of connections or too slow just now. */
export function isPassing(status: number, code: string): boolean {
	const away = /^(08|53|57|PGRST00)/.test(code) || ['40001', '40P01', '55P03'].includes(code);
	// What stands before the database has codes of its own, and gives no other.
	return away || [408, 429, 502, 503, 504].includes(status) || (status >= 500 && code === '');
}

function parseUrl(text: string): URL {
	const url = URL.canParse(text) ? new URL(text) : null;
	if (url === null || !/^https?:$/.test(url.protocol)) {
		throw new DistroError('invalid', 'SUPABASE_URL must be an address such as https://abcdefgh.supabase.co');
	}
	url.username = '';
	url.password = '';
	return url;
}

/** A key with a line break in it would come back inside the error of whoever builds the header. */
function checkedKey(key: string): string {
	if (/^[\x21-\x7e]+$/.test(key)) return key;
	throw new DistroError(
		'invalid',
		'SUPABASE_KEY must be one word without spaces: copy the service-role (secret) key again',
	);
}
