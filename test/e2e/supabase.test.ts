/** A cluster whose metadata is in a real Postgres behind a real PostgREST: what users see while that is away. */

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { cluster, get, isIntact, put, type Stored } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';
import { startSupabase, type TestSupabase } from '../support/supabase.ts';

const random = seededRandom('supabase');
const MASTER = random.bytes(32).toString('hex');
let supabase: TestSupabase;
let c: TestCluster;

beforeAll(async () => {
	supabase = await startSupabase();
	c = await startCluster({ env: { ...environment(), TRASH_PERIOD: '0s' } });
});
afterAll(async () => {
	await c?.remove();
	await supabase?.remove();
});

const environment = () => ({ MASTER_KEY: MASTER, SUPABASE_URL: supabase.url, SUPABASE_KEY: supabase.key });
const statusOf = async (path: string) => (await fetch(`${c.http}${path}`)).status;

const workersReady = () =>
	until(async () => (await cluster(c.http)).workers.every(({ state }) => state === 'ready'), { what: 'all workers' });

describe('a cluster on Supabase', () => {
	test('objects of every kind are written, listed, read and removed', async () => {
		const stored: Stored[] = [];
		for (const size of [0, 1, 4_096, 65_536, 3 << 20]) stored.push(await put(c.http, random.bytes(size)));
		for (const object of stored) expect(await isIntact(c.http, object)).toBe(true);
		const list = (await (await fetch(`${c.http}/objects`)).json()) as { objects: { object_id: string }[] };
		expect(list.objects.map(({ object_id }) => object_id)).toEqual(stored.map(({ id }) => id).reverse());
		for (const { id } of stored) {
			expect((await fetch(`${c.http}/objects/${id}`, { method: 'DELETE' })).ok).toBe(true);
			expect(await statusOf(`/objects/${id}`)).toBe(404);
		}
		await until(async () => (await supabase.sql`SELECT FROM distro.deletions`).length === 0, {
			what: 'the delete queue to be empty',
		});
	});

	test('the same after the orchestrator was killed and started again', async () => {
		const stored = await put(c.http, random.bytes(300_000));
		await c.kill('orchestrator-1');
		await c.start('orchestrator-1');
		await workersReady();
		expect(await isIntact(c.http, stored)).toBe(true);
	});

	test('the database goes away: known objects are read, writes are 503, and it comes back by itself', async () => {
		const known = [await put(c.http, random.bytes(200_000)), await put(c.http, random.bytes(100))];
		const unread = await put(c.http, random.bytes(50_000));
		for (const { id } of known) await get(c.http, id);
		await supabase.stopRest();
		await until(async () => (await statusOf('/readyz')) === 503, { what: 'not to be ready' });
		expect(await statusOf('/healthz')).toBe(200);
		expect(await statusOf('/metrics')).toBe(200);
		for (const object of known) expect(await isIntact(c.http, object)).toBe(true);
		expect(await statusOf(`/objects/${unread.id}`)).toBe(503);
		for (const size of [10, 100_000, 4 << 20]) {
			const response = await fetch(`${c.http}/objects`, { method: 'POST', body: new Uint8Array(size) });
			expect(response.status).toBe(503);
			expect(Number(response.headers.get('retry-after'))).toBeGreaterThan(0);
			expect(await response.text()).not.toContain(supabase.key);
		}
		await supabase.startRest();
		await until(async () => (await statusOf('/readyz')) === 200, { what: 'to be ready again' });
		expect(await isIntact(c.http, await put(c.http, random.bytes(100_000)))).toBe(true);
		expect(await isIntact(c.http, unread)).toBe(true);
		const [left] = await supabase.sql`SELECT count(*)::int AS count FROM distro.intents`;
		expect(left?.count).toBe(0);
	});

	test('neither the key nor the master key is in a log or a metric', async () => {
		const metrics = await (await fetch(`${c.http}/metrics`)).text();
		expect(metrics).toContain('distro_metadata_up{');
		for (const secret of [supabase.key, MASTER]) expect(`${c.logs()}${c.output()}${metrics}`).not.toContain(secret);
	});

	test('with a wrong key it does not start, and says so in one sentence', async () => {
		const key = 'sb_secret_0123456789abcdefghij';
		const failed = await startCluster({ workers: 1, env: { ...environment(), SUPABASE_KEY: key } }).catch(
			(error: unknown) => error as Error,
		);
		const { message } = failed as Error;
		expect(message).toContain('SUPABASE_KEY is refused');
		expect(message).not.toContain(key);
		expect(message).not.toMatch(/^\s+at /m);
	});
});
