/** Limits of real processes: full disks, memory, API keys. */

import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { describe, expect, test } from 'vitest';
import { cluster, explain, getHash, type HttpError, isIntact, put, putStream, type Stored } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { startCluster, until } from '../support/cluster.ts';

const random = seededRandom('limits');
const SOAK = process.env.SOAK === '1';

describe('disks that fill up', () => {
	test('all of them: 507, what is there stays readable, and room given back is used again', async () => {
		const c = await startCluster({ workers: 4, env: { CAPACITY: '100Mi', DISK_RESERVE: '0' } });
		try {
			const stored: Stored[] = [];
			let refused: HttpError | null = null;
			while (refused === null && stored.length < 100) {
				try {
					stored.push(await put(c.http, random.bytes(9_000_000)));
				} catch (error) {
					refused = error as HttpError;
				}
			}
			expect(refused?.status).toBe(507);
			expect(stored.length).toBeGreaterThan(5);
			for (const object of stored) expect(await isIntact(c.http, object)).toBe(true);
			await until(async () => (await cluster(c.http)).queues.intents === 0, { what: 'the refused upload to be gone' });
		} finally {
			await c.remove();
		}
	});

	test('one of them: its shard goes to a spare worker', async () => {
		const c = await startCluster({ workers: 7, env: { DISK_RESERVE: '0' } });
		try {
			// One worker comes back with a volume that has no room.
			await c.kill('worker-7');
			const probe = await put(c.http, random.bytes(5_000_000));
			expect((await explain(c.http, probe.id)).health).toBe('healthy');
			await c.start('worker-7');
			for (let i = 0; i < 10; i++) {
				const stored = await put(c.http, random.bytes(3_000_000));
				expect((await explain(c.http, stored.id)).health).toBe('healthy');
				expect(await isIntact(c.http, stored)).toBe(true);
			}
		} finally {
			await c.remove();
		}
	});
});

test('eight large files up and down at once: resident memory stays bounded', async () => {
	const size = SOAK ? 1_000_000_000 : 250_000_000;
	const c = await startCluster();
	try {
		const first = await Promise.all(Array.from({ length: 8 }, () => putStream(c.http, { size, chunked: false })));
		const ids = first.map(({ body, sha256 }) => ({
			id: (JSON.parse(body) as { object_id: string }).object_id,
			sha256,
		}));
		await Promise.all([
			...ids.map(async ({ id, sha256 }) => expect(await getHash(c.http, id)).toBe(sha256)),
			...Array.from({ length: 8 }, async () =>
				expect((await putStream(c.http, { size, chunked: true })).status).toBe(201),
			),
		]);
		for (const { name, role, pid } of c.processes()) {
			const peak = Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;
			process.stdout.write(`  peak ${name}: ${Math.round(peak)} MiB\n`);
			expect(peak, name).toBeLessThan(role === 'orchestrator' ? 256 : 192);
		}
		await until(async () => (await cluster(c.http)).budget.used_bytes === 0, { what: 'the budget to be given back' });
	} finally {
		await c.remove();
	}
});

describe('API keys', () => {
	const keys = (dataDir: string, ...args: string[]) =>
		execFileSync(process.execPath, [resolve(import.meta.dirname, '../../orchestrator/keys.ts'), ...args], {
			env: { ...process.env, DATA_DIR: join(dataDir, 'orchestrator-1') },
			encoding: 'utf8',
		});

	test('scopes, revocation, and none needed for health', async () => {
		const c = await startCluster({ workers: 1, env: { AUTH: 'off' } });
		const make = (scope: string) =>
			/dk_[0-9a-f]+_[0-9a-f]+/.exec(keys(c.dataDir, 'create', '--scope', scope, '--label', scope))?.[0] as string;
		const [read, write, admin] = [make('read'), make('write'), make('admin')];
		await c.stop();
		const guarded = await startCluster({ dataDir: c.dataDir, workers: 1, env: { AUTH: 'keys' } });
		try {
			const call = (method: string, path: string, key: string | null, body?: string) =>
				fetch(`${guarded.http}${path}`, {
					method,
					body,
					headers: key === null ? {} : { authorization: `Bearer ${key}` },
				});
			const none = await call('GET', '/objects', null);
			expect([none.status, none.headers.get('www-authenticate')]).toEqual([401, 'Bearer']);
			expect(none.headers.get('content-type')).toBe('application/problem+json');
			expect((await call('GET', '/objects', `${read}0`)).status).toBe(401);
			expect((await call('GET', '/objects', read)).status).toBe(200);
			expect((await call('POST', '/objects', read, 'x')).status).toBe(403);
			expect((await call('POST', '/objects', write, 'x')).status).toBe(201);
			expect((await call('GET', '/cluster', write)).status).toBe(403);
			expect((await call('GET', '/cluster', admin)).status).toBe(200);
			expect((await call('GET', '/healthz', null)).status).toBe(200);
			keys(guarded.dataDir, 'revoke', read.split('_')[1] as string);
			await until(async () => (await call('GET', '/objects', read)).status === 401, {
				what: 'the revoked key to be refused',
			});
			expect(guarded.logs()).not.toContain(write.split('_')[2]);
		} finally {
			await guarded.remove();
		}
	});

	test('beyond loopback it does not start without a key', async () => {
		await expect(startCluster({ workers: 1, env: { HTTP_HOST: '0.0.0.0' } })).rejects.toThrow(/no API key: make one/);
	});
});
