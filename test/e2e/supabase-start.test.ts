/**
 * Orchestrators on a real PostgREST that refuses them: one sentence each, no key in anything they say; and what they share
 * where it does not.
 */

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { ROOT } from '../../hack/environment.ts';
import { migrate } from '../../hack/migrate.ts';
import { freePort } from '../../hack/ports.ts';
import { isIntact, put } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { until } from '../support/cluster.ts';
import { type LoneOrchestrator, loneOrchestrators, type Orchestrators } from '../support/lone-orchestrator.ts';
import { startSupabase, type TestSupabase } from '../support/supabase.ts';

const silentPort = await freePort();

const random = seededRandom('orchestrators on Supabase');
const MASTER = random.bytes(32).toString('hex');
const HOUR_MS = 3_600_000;
let supabase: TestSupabase;
let orchestrators: Orchestrators;
let running: LoneOrchestrator[] = [];

beforeAll(async () => {
	supabase = await startSupabase();
	orchestrators = await loneOrchestrators();
});
afterEach(async () => {
	await Promise.all(running.map((one) => one.stop()));
	running = [];
});
afterAll(async () => {
	orchestrators?.remove();
	await supabase?.remove();
});

const environment = (more: Record<string, string> = {}): Record<string, string> => ({
	MASTER_KEY: MASTER,
	SUPABASE_URL: supabase.url,
	SUPABASE_KEY: supabase.key,
	...more,
});
const start = async (more: Record<string, string> = {}, options?: { wallClockAheadMs: number }) => {
	const one = await orchestrators.start(environment(more), options);
	running.push(one);
	return one;
};
function keys(args: string[], env: Record<string, string>) {
	return spawnSync(process.execPath, [join(ROOT, 'orchestrator/keys.ts'), ...args], {
		env: { PATH: process.env.PATH, ...env },
		encoding: 'utf8',
	});
}

describe('it does not start, and says why in one sentence', () => {
	const expectRefused = async (more: Record<string, string>, sentence: RegExp) => {
		const env = environment(more);
		const { code, output } = await orchestrators.fail(env);
		expect(output).toMatch(sentence);
		expect(output).toMatch(/^orchestrator can't start: [^\n]+\n$/);
		expect(code).toBe(1);
		const command = keys(['list'], env);
		expect(command.stderr).toMatch(sentence);
		expect(command.stderr).toMatch(/^[^\n]+\n$/);
		expect(command.status).toBe(1);
		for (const secret of [env.SUPABASE_KEY as string, MASTER]) {
			expect(`${output}${command.stdout}${command.stderr}`).not.toContain(secret);
		}
	};

	test('a wrong key', () =>
		expectRefused(
			{ SUPABASE_KEY: 'sb_secret_0123456789abcdefghij' },
			/SUPABASE_KEY is refused: it is wrong or was revoked/,
		));

	test('the anonymous key', () => expectRefused({ SUPABASE_KEY: supabase.anonKey }, /not a service-role/));

	test('a key that was revoked', async () => {
		const revoked = supabase.key;
		await supabase.revokeKeys();
		await expectRefused({ SUPABASE_KEY: revoked }, /SUPABASE_KEY is refused: it is wrong or was revoked/);
	});

	test('a database without the schema, and one of an older release', async () => {
		const empty = await startSupabase({ migrated: false });
		try {
			const more = { SUPABASE_URL: empty.url, SUPABASE_KEY: empty.key };
			await expectRefused(more, /lacks what this release needs: migrate it \(make migrate/);
			await migrate(empty.postgresUrl);
			await empty.sql.unsafe(`CREATE OR REPLACE FUNCTION public.distro_schema() RETURNS integer LANGUAGE sql STABLE
				SET search_path = '' RETURN 1`);
			// The migration tells PostgREST, which takes a moment.
			const { code, output } = await orchestrators.fail(environment(more));
			expect(output).toMatch(/^orchestrator can't start: [^\n]+ migrate it \(make migrate, or supabase db push\)\n$/);
			expect(code).toBe(1);
		} finally {
			await empty.remove();
		}
	});

	test.each([
		['no address', 'supabase', /SUPABASE_URL must be an address such as/],
		['a port where nobody listens', `http://127.0.0.1:${silentPort}`, /cannot be reached \(ECONNREFUSED\)/],
		['a host that is none', 'http://nowhere.invalid', /cannot be reached \(\w+\)/],
	])('a wrong URL: %s', (_, SUPABASE_URL, sentence) => expectRefused({ SUPABASE_URL }, sentence));

	test('a wrong URL: a server that is something else', async () => {
		const server = createServer((_, response) => response.writeHead(404).end('<h1>Not here</h1>'));
		await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
		try {
			const SUPABASE_URL = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
			const { code, output } = await orchestrators.fail(environment({ SUPABASE_URL }));
			expect(output).toMatch(/^orchestrator can't start: SUPABASE_URL: what answers at [^\n]+ is no Supabase[^\n]+\n$/);
			expect(code).toBe(1);
			expect(output).not.toContain(supabase.key);
		} finally {
			server.close();
		}
	});
});

test('the key is revoked while it runs: /readyz tells it, what is known is read, and a new key ends it', async () => {
	const folder = mkdtempSync(join(tmpdir(), 'distro-key-'));
	const file = join(folder, 'key');
	writeFileSync(file, supabase.key);
	try {
		const { http, output } = await start({ SUPABASE_KEY: '', SUPABASE_KEY_FILE: file });
		const stored = await put(http, random.bytes(1_000));
		expect(await isIntact(http, stored)).toBe(true);
		const said: string[] = [];
		const ask = async (path: string, init?: RequestInit) => {
			const response = await fetch(`${http}${path}`, init);
			const text = await response.text();
			said.push(text, JSON.stringify([...response.headers]));
			return { status: response.status, text, retryAfter: response.headers.get('retry-after') };
		};
		const before = supabase.key;
		await supabase.revokeKeys();
		await until(async () => (await ask('/readyz')).status === 503, { what: 'not to be ready' });
		await until(async () => (await ask('/readyz')).text.includes('SUPABASE_KEY is refused'), { what: 'the reason' });
		expect((await ask('/healthz')).status).toBe(200);
		expect(/^distro_metadata_up\{.*\} 0$/m.test((await ask('/metrics')).text)).toBe(true);
		expect(await isIntact(http, stored)).toBe(true);
		const refused = await ask('/objects', { method: 'POST', body: 'more' });
		expect(refused.status).toBe(503);
		expect(Number(refused.retryAfter)).toBeGreaterThan(0);
		expect((await ask('/objects')).status).toBe(503);
		writeFileSync(file, supabase.key);
		await until(async () => (await ask('/readyz')).status === 200, { what: 'to be ready again' });
		expect(await isIntact(http, await put(http, random.bytes(1_000)))).toBe(true);
		await ask('/metrics');
		expect(output()).toContain('SUPABASE_KEY is refused');
		for (const secret of [before, supabase.key, MASTER]) {
			expect(output()).not.toContain(secret);
			for (const text of said) expect(text).not.toContain(secret);
		}
	} finally {
		rmSync(folder, { recursive: true });
	}
});

test('API keys are for all orchestrators, within a second, and survive the database for reads', async () => {
	const first = await orchestrators.fail(environment({ AUTH: 'keys' }));
	expect(first).toMatchObject({ code: 1, output: expect.stringContaining('no API key: make one') });
	const made = keys(['create', '--scope', 'write', '--label', 'all'], environment());
	const [key = '', rest = ''] = made.stdout.split('\n', 2);
	const [, keyId = ''] = /^This is key (\w+)/.exec(rest) ?? [];
	const both = [await start({ AUTH: 'keys' }), await start({ AUTH: 'keys' })];
	const ask = async ({ http }: LoneOrchestrator, init: RequestInit = {}, path = '/objects') =>
		(await fetch(`${http}${path}`, { ...init, headers: { authorization: `Bearer ${key}` } })).status;
	const response = await fetch(`${both[0]?.http}/objects`, {
		method: 'POST',
		body: 'for all',
		headers: { authorization: `Bearer ${key}` },
	});
	expect(response.status).toBe(201);
	const { object_id: id } = (await response.json()) as { object_id: string };
	for (const one of both) expect(await ask(one, {}, `/objects/${id}`)).toBe(200);

	await supabase.stopRest();
	for (const one of both) {
		await until(async () => (await ask(one)) === 503, { what: 'lists to be refused' });
		expect(await ask(one, {}, `/objects/${id}`)).toBe(200);
		expect(await ask(one, { method: 'POST', body: 'x' })).toBe(503);
	}
	await supabase.startRest();
	for (const one of both) await until(async () => (await ask(one)) === 200, { what: 'lists again' });

	expect(keys(['revoke', keyId], environment()).stdout).toContain('is revoked');
	for (const one of both)
		await until(async () => (await ask(one)) === 401, { timeoutMs: 5_000, what: 'the revocation' });
	for (const { output } of both) expect(output()).not.toContain(key.slice(-64));
});

test.each([5 * HOUR_MS, -5 * HOUR_MS])(
	'a clock that is %d ms off: intents expire by that of the database',
	async (wallClockAheadMs) => {
		const { http } = await start({}, { wallClockAheadMs });
		const intent = async (inMs: number) => {
			const [row] = await supabase.sql<{ id: string }[]>`
			INSERT INTO distro.intents (upload_id, object_id, expires_at_ms)
				VALUES (gen_random_uuid(), gen_random_uuid(), extract(epoch FROM clock_timestamp()) * 1000 + ${inMs})
				RETURNING upload_id AS id`;
			return row?.id;
		};
		const [over, open] = [await intent(-1_000), await intent(60_000)];
		const left = async () =>
			(await supabase.sql<{ id: string }[]>`SELECT upload_id AS id FROM distro.intents`).map(({ id }) => id);
		await until(async () => !(await left()).includes(over as string), {
			timeoutMs: 60_000,
			what: 'the intent to expire',
		});
		expect(await left()).toContain(open);
		await supabase.sql`DELETE FROM distro.intents`;
		// And an object is as old as the database says.
		const { id } = await put(http, random.bytes(10));
		const list = (await (await fetch(`${http}/objects`)).json()) as {
			objects: { object_id: string; created_at: string }[];
		};
		const createdAtMs = Date.parse(list.objects.find(({ object_id }) => object_id === id)?.created_at ?? '');
		expect(Math.abs(createdAtMs - Date.now())).toBeLessThan(60_000);
	},
);
