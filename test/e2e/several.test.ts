/** `make run METADATA=supabase ORCHESTRATORS=3`: started, broken, left by its supervisor and started again as people do it. */

import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { isAlive, readClusterFile } from '../../hack/cluster-file.ts';
import { cluster, isIntact, put, type Stored } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';

const HACK = resolve(import.meta.dirname, '../../hack');
const random = seededRandom('several');
const env = { METADATA: 'supabase', ORCHESTRATORS: '3' };
let c: TestCluster;
const stored: Stored[] = [];

beforeAll(async () => {
	c = await startCluster({ workers: 3, env });
});
afterAll(() => c?.remove());

async function putByEach(): Promise<void> {
	for (const http of c.orchestrators)
		stored.push(await put(http, random.bytes(100)), await put(http, random.bytes(90_000)));
}

async function expectIntactByEach(): Promise<void> {
	for (const http of c.orchestrators) {
		// An orchestrator that has just started waits for its workers, but not for ever; and what another one heard may be known
		// a moment before where the worker is by now.
		const places = new Map(c.processes().map(({ name, grpc }) => [name, grpc]));
		const allReady = async () =>
			(await cluster(http)).workers.every(
				({ name, state, address }) => state === 'ready' && address === places.get(name),
			);
		await until(allReady, { what: `${http} to hear all workers` });
		for (const object of stored) expect(await isIntact(http, object), `${object.size} bytes by ${http}`).toBe(true);
	}
}

function secrets(): string[] {
	const { password, jwt } = JSON.parse(readFileSync(join(c.dataDir, 'postgres', 'secrets.json'), 'utf8'));
	const files = ['orchestrator-1/master.key', 'postgrest/service.key'];
	return [password, jwt, ...files.map((file) => readFileSync(join(c.dataDir, file), 'utf8').trim())];
}

test('what one orchestrator stores the others serve, and each knows all workers', async () => {
	expect(c.processes().map(({ name, role }) => [name, role])).toEqual([
		['postgres', 'postgres'],
		['postgrest', 'postgrest'],
		...[1, 2, 3].map((i) => [`orchestrator-${i}`, 'orchestrator']),
		...[1, 2, 3].map((i) => [`worker-${i}`, 'worker']),
	]);
	await putByEach();
	await expectIntactByEach();
	for (const http of c.orchestrators) {
		expect((await cluster(http)).workers.map(({ state }) => state)).toEqual(['ready', 'ready', 'ready']);
	}
});

test('secrets are for the owner alone, and in no argument, no log, and no environment that does not need them', () => {
	for (const file of ['orchestrator-1/master.key', 'postgrest/service.key', 'postgres/secrets.json']) {
		expect(statSync(join(c.dataDir, file)).mode & 0o777, file).toBe(0o600);
	}
	const [password, , master] = secrets() as [string, string, string];
	for (const { role, pid } of c.processes()) {
		const of = (file: string) => readFileSync(`/proc/${pid}/${file}`, 'latin1');
		for (const secret of secrets()) expect(of('cmdline'), role).not.toContain(secret);
		expect(of('environ'), role).not.toContain(master);
		expect(of('environ').includes(password), role).toBe(role === 'postgrest');
	}
	for (const secret of secrets()) expect(c.logs()).not.toContain(secret);
});

function keys(args: string[], more: NodeJS.ProcessEnv = {}) {
	return spawnSync(process.execPath, [join(HACK, 'keys.ts'), ...args], {
		env: { PATH: process.env.PATH, HOME: process.env.HOME, DISTRO_NO_DOTENV: '1', DATA_DIR: c.dataDir, ...more },
		encoding: 'utf8',
	});
}

test('npm run keys makes and revokes keys for all of them, and says when there is no database yet', async () => {
	const made = keys(['create', '--scope', 'read', '--label', 'for all']);
	const [, keyId = 'none'] = /^dk_([0-9a-f]{16})_/.exec(made.stdout) ?? [];
	expect(keys(['list']).stdout).toContain(keyId);
	expect(keys(['revoke', keyId]).stdout).toContain('revoked');
	expect(keys(['list'], { METADATA: 'supabase', DATA_DIR: join(c.dataDir, 'none') })).toMatchObject({
		status: 1,
		stderr: expect.stringContaining('make run METADATA=supabase once'),
	});
});

test.each(['postgrest', 'postgres', 'orchestrator-2'])('%s was killed: make start brings it back', async (name) => {
	await c.kill(name);
	const output = execFileSync(process.execPath, [join(HACK, 'start.ts')], {
		env: { PATH: process.env.PATH, DISTRO_NO_DOTENV: '1', DATA_DIR: c.dataDir, NAME: name },
		encoding: 'utf8',
	});
	expect(output).toBe(`${name} is ready\n`);
	for (const http of c.orchestrators) {
		await until(async () => (await fetch(`${http}/readyz`)).ok, { what: `${http} to be ready` });
	}
	await putByEach();
	await expectIntactByEach();
});

test('after the supervisor was killed all of them end, and the next one serves the same data, as after Ctrl-C', async () => {
	const { supervisor, processes } = readClusterFile(c.dataDir) as NonNullable<ReturnType<typeof readClusterFile>>;
	const secretsBefore = secrets();
	process.kill(supervisor, 'SIGKILL');
	// In the order of the list: the orchestrators have ended before the database, so that they could give back their leases.
	for (const { name, role, pid } of processes) {
		await until(() => !isAlive(pid), { what: `${name} to end` });
		if (role === 'postgrest')
			expect(processes.filter((one) => one.role === 'orchestrator' && isAlive(one.pid))).toEqual([]);
	}
	for (let round = 0; round < 2; round++) {
		c = await startCluster({ workers: 3, env, dataDir: c.dataDir });
		await expectIntactByEach();
		await putByEach();
		const running = c.processes();
		await c.stop();
		for (const { name, pid } of running) expect(isAlive(pid), name).toBe(false);
	}
	// Stopped, a key can be made all the same: beyond loopback nothing starts without one.
	const [, keyId = 'none'] =
		/^dk_([0-9a-f]{16})_/.exec(keys(['create', '--scope', 'admin', '--label', 'first']).stdout) ?? [];
	expect(keys(['list']).stdout).toContain(keyId);
	expect(keys(['revoke', keyId]).stdout).toContain('revoked');
	expect(secrets()).toEqual(secretsBefore);
});

test('several orchestrators on SQLite are refused in a sentence', () => {
	const run = (more: NodeJS.ProcessEnv) =>
		spawnSync(process.execPath, [join(HACK, 'run.ts')], {
			env: { PATH: process.env.PATH, DISTRO_NO_DOTENV: '1', DATA_DIR: join(c.dataDir, 'none'), ...more },
			encoding: 'utf8',
			timeout: 30_000,
		});
	const needed = 'ORCHESTRATORS=3 needs METADATA=supabase: metadata in SQLite are one orchestrator’s own';
	for (const more of [{}, { METADATA: 'sqlite' }]) {
		expect(run({ ORCHESTRATORS: '3', ...more })).toMatchObject({
			status: 1,
			stderr: `the environment is not right:\n  - ${needed}\n`,
		});
	}
	expect(run({ METADATA: 'postgres' }).stderr).toContain('METADATA must be one of sqlite, supabase');
});
