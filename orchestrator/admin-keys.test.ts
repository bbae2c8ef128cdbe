import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Clock } from '../core/ports.ts';
import { checkApiKey, createApiKey, parseApiKey } from './admin-keys.ts';
import { type ApiKeyStore, openApiKeys } from './api-keys.ts';
import { Fixtures, NOW_MS } from './store.fixtures.ts';
import { openSqliteStore } from './store-sqlite.ts';

let folder: string;
let store: ApiKeyStore;
let nowMs: number;
const clock: Clock = { nowMs: () => nowMs, monotonicMs: () => nowMs, schedule: () => () => {} };
const random = new Fixtures('api keys');

beforeEach(async () => {
	folder = await mkdtemp(join(tmpdir(), 'distro-keys-'));
	nowMs = NOW_MS;
	store = openApiKeys({ dataDir: folder, clock });
});
afterEach(async () => {
	await store.close();
	await rm(folder, { recursive: true });
});

const make = (label = 'ci') => createApiKey(store, { scope: 'write', label }, random, nowMs);

describe('API keys', () => {
	test('a key opens its row, and only with its own secret', async () => {
		const { key, row } = await make();
		const other = await make('other');
		expect(key).toMatch(/^dk_[0-9a-f]{16}_[0-9a-f]{64}$/);
		const rows = await store.apiKeys();
		expect(rows).toHaveLength(2);
		expect(checkApiKey(rows, key)).toEqual(row);
		const mixed = `${key.slice(0, 20)}${other.key.slice(20)}`;
		const unknown = `dk_${'0'.repeat(16)}_${'0'.repeat(64)}`;
		const wrong = [mixed, unknown, '', 'dk_', key.toUpperCase(), `${key} `, `x${key}`, key.slice(0, -1), `${key}\n`];
		for (const text of wrong) expect(checkApiKey(rows, text)).toBeNull();
		expect(parseApiKey(key)?.keyId).toBe(row.keyId);
	});

	test('the secret is nowhere in the folder', async () => {
		const { key } = await make();
		const { secret } = parseApiKey(key) as { secret: Buffer };
		await store.close();
		const bytes = await readFile(join(folder, 'api-keys.db'));
		expect(bytes.includes(secret)).toBe(false);
		expect(bytes.includes(secret.toString('hex'))).toBe(false);
	});

	test('they survive, and leave when removed', async () => {
		const { row } = await make();
		await store.close();
		store = openApiKeys({ dataDir: folder, clock });
		expect(await store.apiKeys()).toEqual([row]);
		await expect(store.addApiKey(row)).rejects.toMatchObject({ kind: 'exists' });
		expect(await store.removeApiKey(row.keyId)).toBe(true);
		expect(await store.removeApiKey(row.keyId)).toBe(false);
		expect(await store.apiKeys()).toEqual([]);
		await store.close();
		await expect(store.apiKeys()).rejects.toMatchObject({ kind: 'unavailable' });
	});

	test('changes by another process are seen within a second, and the file is not read more often', async () => {
		const other = openApiKeys({ dataDir: folder, clock });
		expect(await other.apiKeys()).toEqual([]);
		const { row } = await make();
		nowMs += 999;
		expect(await other.apiKeys()).toEqual([]);
		nowMs += 1;
		expect(await other.apiKeys()).toEqual([row]);
		await other.close();
	});

	test('a file of a newer release is refused', async () => {
		const db = new DatabaseSync(join(folder, 'api-keys.db'));
		db.exec('PRAGMA user_version = 2');
		db.close();
		expect(() => openApiKeys({ dataDir: folder, clock })).toThrow(expect.objectContaining({ kind: 'unsupported' }));
	});

	test('the command makes, lists and revokes beside a running orchestrator', async () => {
		const metadata = await openSqliteStore({ path: join(folder, 'metadata.db') });
		const command = async (...args: string[]) => {
			const script = fileURLToPath(new URL('./keys.ts', import.meta.url));
			const env = { ...process.env, DATA_DIR: folder };
			return (await promisify(execFile)(process.execPath, [script, ...args], { env })).stdout;
		};
		const [key = ''] = (await command('create', '--scope', 'read', '--label', 'grafana')).split('\n');
		const row = checkApiKey(await store.apiKeys(), key);
		expect(row).toMatchObject({ scope: 'read', label: 'grafana' });
		const keyId = row?.keyId ?? '';
		const listed = await command('list');
		expect(listed).toContain(keyId);
		expect(listed).not.toContain(key.slice(-64));
		await command('revoke', keyId);
		nowMs += 1_000;
		expect(checkApiKey(await store.apiKeys(), key)).toBeNull();
		for (const wrong of [['revoke', keyId], ['create', '--scope', 'root', '--label', 'x'], ['create'], []]) {
			await expect(command(...wrong)).rejects.toMatchObject({ code: 1 });
		}
		await metadata.close();
	});
});
