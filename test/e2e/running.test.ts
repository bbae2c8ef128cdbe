/** Starting and stopping as people do it: twice, over what is left, with a worker that hangs, after a supervisor was killed. */

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { clusterFilePath, isAlive, readClusterFile } from '../../hack/cluster-file.ts';
import { cluster, isIntact, put } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';

const random = seededRandom('running');
const MASTER_KEY = random.bytes(32).toString('hex');
const RUN = resolve(import.meta.dirname, '../../hack/run.ts');

/** Another supervisor on the same folder, which is expected to end by itself. */
function runAgain(env: Record<string, string>): { status: number | null; stderr: string } {
	const { status, stderr } = spawnSync(process.execPath, [RUN], {
		env: {
			PATH: process.env.PATH ?? '',
			DISTRO_NO_DOTENV: '1',
			HTTP_PORT: '0',
			GRPC_PORT: '0',
			WORKER_HTTP_BASE: '0',
			WORKER_GRPC_BASE: '0',
			...env,
		},
		encoding: 'utf8',
		timeout: 60_000,
	});
	return { status, stderr };
}

describe('one cluster', () => {
	let c: TestCluster;

	beforeEach(async () => {
		c = await startCluster({ env: { MASTER_KEY, TRASH_PERIOD: '0s' } });
	});
	afterEach(() => c.remove());

	test('a second supervisor on its folder is refused, though cluster.json tells nothing', () => {
		const before = readFileSync(clusterFilePath(c.dataDir));
		const { supervisor } = readClusterFile(c.dataDir) as NonNullable<ReturnType<typeof readClusterFile>>;
		expect(runAgain({ DATA_DIR: c.dataDir }).stderr).toContain(`stop that one first (kill -INT ${supervisor}).`);
		writeFileSync(clusterFilePath(c.dataDir), '{"supervis');
		const { status, stderr } = runAgain({ DATA_DIR: c.dataDir });
		writeFileSync(clusterFilePath(c.dataDir), before);
		expect([status, stderr]).toEqual([1, expect.stringMatching(/^DATA_DIR .* a cluster runs on it already: stop/)]);
		expect(stderr).not.toMatch(/\n\s+at /);
	});

	test('workers get no master key, and no process has it among its arguments', () => {
		for (const { pid, role } of c.processes()) {
			const of = (file: string) => readFileSync(`/proc/${pid}/${file}`, 'latin1');
			expect(of('cmdline')).not.toContain(MASTER_KEY);
			expect(of('environ').includes(MASTER_KEY)).toBe(role === 'orchestrator');
		}
	});

	test('uploads whose clients leave at any moment leave no reservation', async () => {
		const { port } = new URL(c.http);
		const headers = (path: string, key: string) =>
			`POST ${path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\nIdempotency-Key: ${key}\r\n`;
		const form = `Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n`;
		for (let round = 0; round < 40; round++) {
			const socket = net.connect(Number(port), '127.0.0.1');
			socket.on('error', () => {});
			await once(socket, 'connect');
			const raw = `${headers('/objects', `raw ${round}`)}\r\n`;
			socket.write((round % 2 === 0 ? raw : headers('/upload', `form ${round}`) + form) + 'x'.repeat(20_000));
			// From before the request is read to well within the upload.
			await new Promise((done) => setTimeout(done, (round / 2) % 10));
			socket.destroy();
		}
		await until(async () => (await cluster(c.http)).budget.used_bytes === 0, { what: 'all memory to be given back' });
		// And the keys are free.
		await put(c.http, random.bytes(100_000), { 'idempotency-key': 'raw 0' });
	});

	test('stopping lets a download finish, though a worker that must delete shards hangs', async () => {
		const deleted = await put(c.http, random.bytes(3_000_000));
		const read = await put(c.http, random.bytes(40_000_000));
		const agent = new http.Agent({ keepAlive: true });
		const response = await new Promise<http.IncomingMessage>((done) => {
			http.get(`${c.http}/objects/${read.id}`, { agent }, done);
		});
		response.once('readable', () => {});
		c.signal('worker-2', 'SIGSTOP');
		try {
			await fetch(`${c.http}/objects/${deleted.id}`, { method: 'DELETE' });
			// The others' queues are empty: the call to this one is under way.
			await until(
				async () => {
					const { deletions } = (await cluster(c.http)).queues;
					return deletions > 0 && deletions <= 1;
				},
				{ what: 'all shards but one to be deleted' },
			);
			const { pid } = c.process('orchestrator-1');
			c.signal('orchestrator-1', 'SIGTERM');
			let bytes = 0;
			for await (const chunk of response) bytes += (chunk as Buffer).length;
			expect([bytes, response.complete]).toEqual([40_000_000, true]);
			await until(() => !isAlive(pid), { what: 'the orchestrator to stop' });
		} finally {
			c.signal('worker-2', 'SIGCONT');
			agent.destroy();
		}
		const log = readFileSync(join(c.dataDir, 'orchestrator-1', 'log'), 'utf8');
		expect(log).toContain('"msg":"stopped"');
		expect(log).not.toContain('took too long');
	});

	test('a stop that waits says for what, and one that does not wait says nothing', async () => {
		const stored = await put(c.http, random.bytes(40_000_000));
		const agent = new http.Agent({ keepAlive: true });
		const response = await new Promise<http.IncomingMessage>((done) => {
			http.get(`${c.http}/objects/${stored.id}`, { agent }, done);
		});
		response.once('readable', () => {});
		const stopped = c.stop();
		try {
			await until(() => c.output().includes('Waiting for transfers under way'), { what: 'what it waits for' });
			response.resume();
			await stopped;
		} finally {
			agent.destroy();
		}
		c = await startCluster({ dataDir: c.dataDir, env: { MASTER_KEY } });
		await c.stop();
		expect(c.output()).toContain('Stopping');
		expect(c.output()).not.toContain('Waiting for transfers');
	});

	test('an orchestrator that comes back is ready once all of its workers are', async () => {
		await c.kill('orchestrator-1');
		await c.start('orchestrator-1');
		expect((await cluster(c.http)).workers.map(({ state }) => state)).toEqual(Array(6).fill('ready'));
	});

	test('after its supervisor was killed the next one waits for the rest, and serves the same data', async () => {
		const stored = await put(c.http, random.bytes(1_000_000));
		const { supervisor, processes } = readClusterFile(c.dataDir) as NonNullable<ReturnType<typeof readClusterFile>>;
		process.kill(supervisor, 'SIGKILL');
		await until(() => !isAlive(supervisor), { what: 'the supervisor to be gone' });
		c = await startCluster({ dataDir: c.dataDir, env: { MASTER_KEY } });
		for (const { name, pid } of processes) await until(() => !isAlive(pid), { what: `the former ${name} to be gone` });
		expect(await isIntact(c.http, stored)).toBe(true);
	});

	test('a worker whose volume was lost comes back under its name', async () => {
		const stored = await put(c.http, random.bytes(5_000_000));
		await c.stop();
		rmSync(join(c.dataDir, 'worker-3'), { recursive: true });
		c = await startCluster({ dataDir: c.dataDir, env: { MASTER_KEY } });
		expect(await isIntact(c.http, stored)).toBe(true);
		const { workers } = await cluster(c.http);
		expect(workers.filter(({ name, state }) => name === 'worker-3' && state === 'ready')).toHaveLength(1);
		expect(workers.filter(({ state }) => state === 'ready')).toHaveLength(6);
	});
});

test('a folder that can be none is one sentence, and leaves nothing', () => {
	const folder = mkdtempSync(join(tmpdir(), 'distro-test-'));
	try {
		writeFileSync(join(folder, 'file'), '');
		const { status, stderr } = runAgain({ DATA_DIR: join(folder, 'file') });
		expect([status, stderr]).toEqual([
			1,
			expect.stringMatching(/^DATA_DIR .*can't be used: .*\. Or choose another\.\n$/),
		]);
		expect(readdirSync(folder)).toEqual(['file']);
	} finally {
		rmSync(folder, { recursive: true });
	}
});

test('a port that is in use is one sentence, from the orchestrator itself too', async () => {
	const folder = mkdtempSync(join(tmpdir(), 'distro-test-'));
	const taken = net.createServer().listen(0, '127.0.0.1');
	await once(taken, 'listening');
	const { port } = taken.address() as net.AddressInfo;
	const c = await startCluster({ workers: 1, dataDir: folder });
	try {
		expect(runAgain({ DATA_DIR: join(folder, 'other'), HTTP_PORT: String(port) })).toEqual({
			status: 1,
			stderr: `Port ${port} is in use: stop what uses it, or set HTTP_PORT to another.\n`,
		});
		await c.kill('orchestrator-1');
		const own = join(folder, 'orchestrator-1');
		const child = spawn(process.execPath, [resolve(import.meta.dirname, '../../orchestrator/main.ts')], {
			env: { PATH: process.env.PATH, DATA_DIR: own, HTTP_PORT: String(port), GRPC_PORT: '0' },
			stdio: ['ignore', 'ignore', 'pipe'],
		});
		const exited = once(child, 'exit');
		let words = '';
		child.stderr.on('data', (text: Buffer) => {
			words += text.toString();
		});
		expect(await exited).toEqual([1, null]);
		expect(words).toMatch(/^orchestrator can't start: HTTP_PORT \d+: can't listen: .*EADDRINUSE[^\n]*\n$/);
	} finally {
		taken.close();
		await c.remove();
	}
});
