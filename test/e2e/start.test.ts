/** `make run` and `make start` when something is wrong: what can serve serves, and what is said helps. */

import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { cluster, explain, isIntact, put } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';

const random = seededRandom('start');

/** `make start NAME=…`: what it said, and whether it was well. */
async function makeStart(dataDir: string, name: string): Promise<{ code: number; said: string }> {
	const env = { ...process.env, DATA_DIR: dataDir, NAME: name };
	const script = resolve(import.meta.dirname, '../../hack/start.ts');
	try {
		const { stdout } = await promisify(execFile)(process.execPath, [script], { env });
		return { code: 0, said: stdout };
	} catch (error) {
		const { code, stderr } = error as { code: number; stderr: string };
		return { code, said: stderr };
	}
}

function stateOf(c: TestCluster, name: string): Promise<string | undefined> {
	return cluster(c.http).then(({ workers }) => workers.find((worker) => worker.name === name)?.state);
}

test('workers that can’t start are named, the others serve, and put right they join', async () => {
	const dataDir = mkdtempSync(join(tmpdir(), 'distro-test-'));
	const [noId, noVolume] = [join(dataDir, 'worker-2'), join(dataDir, 'worker-3')];
	mkdirSync(noId);
	writeFileSync(join(noId, 'worker.json'), '{"version": 1}');
	mkdirSync(join(noVolume, 'shards', 'ab'), { recursive: true });
	writeFileSync(join(noVolume, 'shards', 'ab', 'ab'.repeat(16)), 'not ours');
	const c = await startCluster({ dataDir, missing: 2 });
	try {
		expect(c.output()).toMatch(/worker-2 can't start: .*worker\.json holds no worker id/);
		expect(c.output()).toMatch(/worker-3 is down \(exit code 1\): .*no volume\.json/);
		expect(c.output()).toContain('2 of 6 workers are not');
		const stored = await put(c.http, random.bytes(1_000_000));
		expect((await explain(c.http, stored.id)).health).toBe('healthy');
		rmSync(noId, { recursive: true });
		rmSync(noVolume, { recursive: true });
		expect(await makeStart(dataDir, 'worker-2')).toEqual({ code: 0, said: 'worker-2 is ready\n' });
		expect((await makeStart(dataDir, 'worker-3')).code).toBe(0);
		expect(await stateOf(c, 'worker-3')).toBe('ready');
	} finally {
		await c.remove();
	}
});

test('what people must know at the start is said: a key that was made, workers left out, one copy only', async () => {
	const dataDir = mkdtempSync(join(tmpdir(), 'distro-test-'));
	const key = join(dataDir, 'orchestrator-1', 'master.key');
	let c = await startCluster({ dataDir, workers: 2 });
	try {
		await until(() => c.output().includes('Ctrl-C'), { what: 'the words of the start' });
		expect(c.output()).toMatch(`A master key was made: ${key}\nCopy it to a safe place`);
		expect(c.output()).not.toMatch(/durable|not started/);
		for (const name of ['orchestrator-1', 'worker-1', 'worker-2']) {
			expect(statSync(join(dataDir, name)).mode & 0o777).toBe(0o700);
		}
		await c.stop();
		c = await startCluster({ dataDir, workers: 1 });
		await until(() => c.output().includes('Ctrl-C'), { what: 'the words of the second start' });
		expect(c.output()).not.toContain('master key');
		expect(c.output()).toContain('worker-2 has data here and is not started: WORKERS=1\n');
		expect(c.output()).toContain('With one worker nothing is durable');
	} finally {
		await c.remove();
	}
});

test('an emptied folder comes back as a new worker under the old name', async () => {
	const c = await startCluster({ workers: 3 });
	try {
		const stored = await put(c.http, random.bytes(1_000_000));
		const before = (await cluster(c.http)).workers.find(({ name }) => name === 'worker-2');
		await c.kill('worker-2');
		rmSync(join(c.dataDir, 'worker-2'), { recursive: true });
		await c.start('worker-2');
		await until(async () => (await stateOf(c, 'worker-2')) === 'ready', { what: 'the new worker to be ready' });
		const away = (await cluster(c.http)).workers.filter(({ state }) => state !== 'ready');
		expect(away).toMatchObject([{ name: expect.stringMatching(/^worker-2~[0-9a-f]{8}$/), state: 'suspect' }]);
		expect(away[0]?.shards).toBe(before?.shards);
		expect(c.logs()).toContain('took over a name');
		const { health, segments } = await explain(c.http, stored.id);
		expect(health).not.toBe('healthy');
		expect(segments[0]?.shards.filter(({ state }) => state !== 'ok')).toMatchObject([{ worker: away[0]?.name }]);
		expect(await isIntact(c.http, stored)).toBe(true);
	} finally {
		await c.remove();
	}
});

test('make start for no such process says so at once, and leaves nothing behind', async () => {
	const zoneFile = join(mkdtempSync(join(tmpdir(), 'distro-zone-')), 'zone');
	writeFileSync(zoneFile, 'rack-7\n');
	const c = await startCluster({ workers: 1, env: { ZONE_FILE: zoneFile } });
	try {
		// The environment reaches its worker.
		expect((await cluster(c.http)).workers.map(({ zone }) => zone)).toEqual(['rack-7']);
		const before = readdirSync(c.dataDir);
		const startedAt = performance.now();
		const { code, said } = await makeStart(c.dataDir, 'worker-9');
		expect({ code, said }).toEqual({ code: 1, said: 'This cluster has no worker-9, but orchestrator-1, worker-1.\n' });
		expect(performance.now() - startedAt).toBeLessThan(10_000);
		expect(readdirSync(c.dataDir)).toEqual(before);
	} finally {
		await c.remove();
		rmSync(dirname(zoneFile), { recursive: true });
	}
});

test('an orchestrator that can’t start ends it all, and only the reason is said', async () => {
	const dataDir = mkdtempSync(join(tmpdir(), 'distro-test-'));
	try {
		const error = await startCluster({ dataDir, workers: 1, env: { MASTER_KEY: 'abc' } }).catch((thrown) => thrown);
		expect(error.message).toMatch(/orchestrator-1 is down \(exit code 1\): .*MASTER_KEY/s);
		expect(error.message).not.toMatch(/make start|Stopping|did not become ready/);
	} finally {
		rmSync(dataDir, { recursive: true, force: true });
	}
});
