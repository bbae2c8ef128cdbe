/** Metadata of a real cluster moved from SQLite to PostgreSQL and back: as people do it, and killed on the way. */

import { spawn } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { isIntact, put, type Stored } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';
import { startSupabase } from '../support/supabase.ts';

const ROOT = resolve(import.meta.dirname, '../..');
const random = seededRandom('move');
const SUPABASE = { METADATA: 'supabase', ORCHESTRATORS: '2' };
let dataDir: string;
let c: TestCluster | null = null;
const stored: Stored[] = [];
const removed: string[] = [];

beforeAll(() => {
	dataDir = mkdtempSync(join(tmpdir(), 'distro-test-'));
});
afterAll(async () => {
	await c?.stop();
	rmSync(dataDir, { recursive: true, force: true });
});

interface Ended {
	readonly code: number | null;
	readonly output: string;
}

function run(script: string, args: readonly string[], env: Record<string, string>) {
	const child = spawn(process.execPath, [join(ROOT, script), ...args], {
		env: { PATH: process.env.PATH ?? '', HOME: process.env.HOME ?? '/tmp', DISTRO_NO_DOTENV: '1', ...env },
		stdio: ['ignore', 'pipe', 'pipe'],
	});
	let output = '';
	for (const stream of [child.stdout, child.stderr]) {
		stream.on('data', (text: Buffer) => {
			output += text.toString();
		});
	}
	const ended = new Promise<Ended>((done) => child.once('close', (code) => done({ code, output })));
	return { child, ended };
}

const move = (...args: string[]) => run('hack/move.ts', args, { DATA_DIR: dataDir }).ended;

async function start(env: Record<string, string> = {}): Promise<TestCluster> {
	c = await startCluster({ dataDir, env });
	return c;
}

async function write({ orchestrators }: TestCluster): Promise<void> {
	for (const size of [0, 100, 50_000, 3 << 20, 20 << 20]) {
		for (const http of orchestrators) stored.push(await put(http, random.bytes(size)));
	}
	const gone = await put(orchestrators[0] as string, random.bytes(70_000));
	await fetch(`${orchestrators[0]}/objects/${gone.id}`, { method: 'DELETE' });
	removed.push(gone.id);
}

async function expectAllThere({ orchestrators }: TestCluster): Promise<void> {
	expect(stored.length).toBeGreaterThan(0);
	for (const http of orchestrators) {
		for (const object of stored) expect(await isIntact(http, object), `${object.size} bytes by ${http}`).toBe(true);
		for (const id of removed) expect((await fetch(`${http}/objects/${id}`)).status).toBe(404);
	}
}

/** Starting fails, and says why. */
async function refusal(env: Record<string, string> = {}): Promise<string> {
	const started = await start(env).catch((error: Error) => error);
	expect(started).toBeInstanceOf(Error);
	return (started as Error).message;
}

test('a cluster that runs is not moved', async () => {
	const cluster = await start();
	await write(cluster);
	expect(await move('--from', 'sqlite', '--to', 'supabase')).toMatchObject({
		code: 1,
		output: expect.stringContaining('stop it first'),
	});
	const orchestrator = run('orchestrator/move.ts', ['--from', 'sqlite', '--to', 'supabase'], {
		DATA_DIR: join(dataDir, 'orchestrator-1'),
	});
	expect((await orchestrator.ended).output).toContain('SUPABASE_URL and SUPABASE_KEY');
	expect(existsSync(join(dataDir, 'postgres'))).toBe(false);
	await expectAllThere(cluster);
	await cluster.stop();
});

test('where the database of its own does not come up it says why and ends', async () => {
	const folder = mkdtempSync(join(tmpdir(), 'distro-move-'));
	for (const path of ['ca/cluster-id', 'orchestrator-1/metadata.db']) {
		mkdirSync(join(folder, dirname(path)), { recursive: true });
		writeFileSync(join(folder, path), '');
	}
	const env = { DATA_DIR: folder, POSTGREST: join(folder, 'nothing') };
	const { code, output } = await run('hack/move.ts', ['--from', 'sqlite', '--to', 'supabase'], env).ended;
	expect({ code, output }).toEqual({ code: 1, output: expect.stringContaining("PostgREST can't start") });
	expect(existsSync(join(folder, 'postgres/pgdata/postmaster.pid'))).toBe(false);
	rmSync(folder, { recursive: true, force: true });
});

test('killed with SIGKILL at any request it goes on, and ends with everything there', async () => {
	const supabase = await startSupabase();
	const folder = mkdtempSync(join(tmpdir(), 'distro-move-'));
	let requests = 0;
	let onRequest = () => {};
	const proxy = createServer(async (request, response) => {
		requests++;
		onRequest();
		const chunks: Buffer[] = [];
		for await (const chunk of request) chunks.push(chunk as Buffer);
		const headers = Object.entries(request.headers).filter(([name]) => /^(authorization|content-type)$/.test(name));
		const answer = await fetch(`${supabase.url}${request.url}`, {
			method: request.method as string,
			headers: headers as [string, string][],
			body: Buffer.concat(chunks),
		});
		response.writeHead(answer.status, { 'content-type': answer.headers.get('content-type') ?? '' });
		response.end(Buffer.from(await answer.arrayBuffer()));
	});
	await new Promise<void>((done) => proxy.listen(0, '127.0.0.1', done));
	try {
		mkdirSync(join(folder, 'orchestrator-1'));
		cpSync(join(dataDir, 'orchestrator-1'), join(folder, 'orchestrator-1'), { recursive: true });
		const { port } = proxy.address() as AddressInfo;
		const env = {
			DATA_DIR: join(folder, 'orchestrator-1'),
			SUPABASE_URL: `http://127.0.0.1:${port}`,
			SUPABASE_KEY: supabase.key,
		};
		const args = ['--from', 'sqlite', '--to', 'supabase'];
		for (const at of [4, 7, 11, 17, 24]) {
			const { child, ended } = run('orchestrator/move.ts', args, env);
			requests = 0;
			onRequest = () => {
				if (requests === at) child.kill('SIGKILL');
			};
			expect((await ended).code, `killed at request ${at}`).toBe(null);
			expect(requests).toBeGreaterThanOrEqual(at);
		}
		onRequest = () => {};
		const { code, output } = await run('orchestrator/move.ts', args, env).ended;
		expect(output).toContain('where it was interrupted');
		expect(output).toMatch(/[\d,]+ rows are in both, each of them equal, and no others in the target\.\n$/);
		expect(output).not.toContain(supabase.key);
		expect(code).toBe(0);
		const [there] =
			await supabase.sql`SELECT count(*)::int AS objects FROM distro.objects WHERE kind = 'user' AND purge_at_ms IS NULL`;
		expect(there?.objects).toBe(stored.length);
	} finally {
		proxy.closeAllConnections();
		proxy.close();
		await supabase.remove();
		rmSync(folder, { recursive: true });
	}
});

test('stopped, moved to PostgreSQL, started there with two orchestrators: everything is read back', async () => {
	expect(await move('--from', 'sqlite', '--to', 'supabase')).toMatchObject({ code: 0 });
	const why = await refusal({ METADATA: 'sqlite' });
	expect(why).toMatch(/was moved to Supabase .*what is here is old: start the orchestrator there/);
	expect(why).not.toMatch(/^\s+at /m);
	const cluster = await start(SUPABASE);
	expect(cluster.orchestrators).toHaveLength(2);
	await expectAllThere(cluster);
	await write(cluster);
	await expectAllThere(cluster);
	// After a stop in order nobody holds a lease.
	await cluster.stop();
});

test('and back: what came meanwhile as well', async () => {
	const old = readFileSync(join(dataDir, 'orchestrator-1', 'metadata.db'));
	expect(await move('--from', 'supabase', '--to', 'sqlite')).toMatchObject({
		code: 1,
		output: expect.stringContaining('add --replace'),
	});
	expect(readFileSync(join(dataDir, 'orchestrator-1', 'metadata.db')).equals(old)).toBe(true);
	expect(await move('--from', 'supabase', '--to', 'sqlite', '--replace')).toMatchObject({ code: 0 });
	expect(await move('--from', 'supabase', '--to', 'sqlite')).toMatchObject({
		code: 0,
		output: expect.stringContaining('Nothing to do'),
	});
	expect(await refusal(SUPABASE)).toContain('was moved to SQLite');
	const cluster = await start();
	await expectAllThere(cluster);
	await write(cluster);
	await expectAllThere(cluster);
	// What was queued for deletion went along.
	await until(
		async () => {
			const { queues } = (await (await fetch(`${cluster.http}/cluster`)).json()) as { queues: { deletions: number } };
			return queues.deletions === 0;
		},
		{ what: 'the delete queue to be empty' },
	);
	await cluster.stop();
});
