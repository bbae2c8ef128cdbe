import { execFile } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Clock } from '../core/ports.ts';
import { checkApiKey } from './admin-keys.ts';
import { describeApiKeys } from './api-keys.contract.ts';
import { type ApiKeyStore, openApiKeys } from './api-keys.ts';
import { NOW_MS } from './store.fixtures.ts';
import { openSqliteStore } from './store-sqlite.ts';

let folder: string;
let store: ApiKeyStore;
let nowMs: number;
const clock: Clock = { nowMs: () => nowMs, monotonicMs: () => nowMs, schedule: () => () => {} };

beforeEach(async () => {
	folder = await mkdtemp(join(tmpdir(), 'distro-keys-'));
	nowMs = NOW_MS;
	store = openApiKeys({ dataDir: folder, clock });
});
afterEach(async () => {
	await store.close();
	await rm(folder, { recursive: true });
});

describeApiKeys('sqlite', async () => {
	const dataDir = await mkdtemp(join(tmpdir(), 'distro-keys-'));
	return {
		open: async (clock) => openApiKeys({ dataDir, clock }),
		bytes: async () => {
			const files = await readdir(dataDir);
			return Buffer.concat(await Promise.all(files.map((file) => readFile(join(dataDir, file)))));
		},
		dispose: () => rm(dataDir, { recursive: true }),
	};
});

describe('API keys', () => {
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
