/** API keys in a real Postgres behind a real PostgREST: also when it is away, or its answers get lost. */

import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { Clock } from '../core/ports.ts';
import { realClock, seededRandom } from '../test/support/clock.ts';
import { type FaultyFetch, faultyFetch } from '../test/support/faulty-fetch.ts';
import { startSupabase, type TestSupabase } from '../test/support/supabase.ts';
import { createApiKey } from './admin-keys.ts';
import { describeApiKeys } from './api-keys.contract.ts';
import type { ApiKeyStore } from './api-keys.ts';
import { openSupabaseApiKeys } from './api-keys-supabase.ts';

const random = seededRandom('api keys in a database');
let supabase: TestSupabase;
beforeAll(async () => {
	supabase = await startSupabase();
});
afterAll(() => supabase?.remove());

const address = () => ({ url: supabase.url, key: () => supabase.key, random });

describeApiKeys('supabase', async () => {
	await supabase.clear();
	return {
		open: (clock) => openSupabaseApiKeys({ ...address(), clock }),
		bytes: async () => {
			const rows = await supabase.sql`SELECT to_jsonb(k) AS row, k.secret_hash AS hash FROM distro.api_keys k`;
			return Buffer.concat(rows.flatMap(({ row, hash }) => [Buffer.from(JSON.stringify(row)), hash as Buffer]));
		},
		dispose: async () => {},
	};
});

describe('the database fails', () => {
	let net: FaultyFetch;
	let store: ApiKeyStore;
	let aheadMs: number;
	const clock: Clock = {
		nowMs: () => realClock.nowMs() + aheadMs,
		monotonicMs: () => realClock.monotonicMs() + aheadMs,
		schedule: realClock.schedule,
	};
	const make = () => createApiKey(store, { scope: 'read', label: 'x' }, random, clock.nowMs());

	beforeEach(async () => {
		await supabase.clear();
		aheadMs = 0;
		net = faultyFetch();
		store = await openSupabaseApiKeys({ ...address(), clock, fetch: net.fetch });
	});
	afterEach(() => store.close());

	test('lost answers: made once, removed once, and said so', async () => {
		net.loseAnswers(2);
		const { row } = await make();
		expect(await store.apiKeys()).toEqual([row]);
		net.loseAnswers(2);
		expect(await store.removeApiKey(row.keyId)).toBe(true);
		expect(await store.removeApiKey(row.keyId)).toBe(false);
	});

	test('away: keys of the last five minutes count for reads, and for nothing else; then for nothing', async () => {
		const { row } = await make();
		expect(await store.apiKeys()).toEqual([row]);
		net.loseRequests(Number.POSITIVE_INFINITY);
		aheadMs += 4 * 60_000;
		await expect(store.apiKeys()).rejects.toMatchObject({ kind: 'unavailable' });
		expect(await store.apiKeys({ mayBeOld: true })).toEqual([row]);
		aheadMs += 61_000;
		await expect(store.apiKeys({ mayBeOld: true })).rejects.toMatchObject({ kind: 'unavailable' });
		net.loseRequests(0);
		aheadMs += 10_000;
		expect(await store.apiKeys()).toEqual([row]);
	});

	test('many at once are one question', async () => {
		const { row } = await make();
		net.takeCount();
		const asked = await Promise.all(Array.from({ length: 100 }, () => store.apiKeys()));
		expect(asked.every((rows) => rows.length === 1 && rows[0]?.keyId === row.keyId)).toBe(true);
		expect(net.takeCount()).toBe(1);
	});
});
