/** `.env` and DATA_DIR mean the same to every command, whichever comes first. */

import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';

const ROOT = resolve(import.meta.dirname, '..');
let root: string;

beforeEach(() => {
	// A checkout of its own, so that it may have a `.env`.
	root = mkdtempSync(join(tmpdir(), 'distro-root-'));
	for (const name of ['hack', 'platform']) cpSync(join(ROOT, name), join(root, name), { recursive: true });
	for (const name of ['core', 'orchestrator', 'package.json']) symlinkSync(join(ROOT, name), join(root, name));
});
afterEach(() => rmSync(root, { recursive: true }));

function run(script: string, args: string[], env: Record<string, string> = {}): string {
	const { DATA_DIR: _, DISTRO_NO_DOTENV: __, ...rest } = process.env;
	const options = { cwd: root, env: { ...rest, ...env }, encoding: 'utf8', stdio: 'pipe' } as const;
	try {
		return execFileSync(process.execPath, [join(root, script), ...args], options);
	} catch (error) {
		return (error as { stderr: string }).stderr;
	}
}

const create = ['create', '--scope', 'read', '--label', 'x'];

test('make start looks where .env says that the data are', () => {
	writeFileSync(join(root, '.env'), 'DATA_DIR=elsewhere\n');
	expect(run('hack/start.ts', ['worker-1'])).toContain(`No cluster runs on ${join(root, 'elsewhere')}`);
	expect(run('hack/start.ts', ['worker-1'], { DATA_DIR: 'here' })).toContain(
		`No cluster runs on ${join(root, 'here')}`,
	);
});

test('npm run keys makes them where the orchestrator of make run looks, also before its first start', () => {
	writeFileSync(join(root, '.env'), 'DATA_DIR=elsewhere\n');
	expect(run('hack/keys.ts', create)).toMatch(/^dk_/);
	expect(run('hack/keys.ts', create, { DATA_DIR: 'given' })).toMatch(/^dk_/);
	rmSync(join(root, '.env'));
	expect(run('hack/keys.ts', create)).toMatch(/^dk_/);
	for (const folder of ['elsewhere', 'given', 'data']) {
		expect(existsSync(join(root, folder, 'orchestrator-1', 'api-keys.db')), folder).toBe(true);
	}
	// The orchestrator's own folder means that one.
	expect(run('hack/keys.ts', ['list'], { DATA_DIR: 'given/orchestrator-1' })).toContain('"x"');
});

test('beside one orchestrator DATA_DIR is its own, and the folder of a whole cluster is refused', () => {
	expect(run('orchestrator/keys.ts', create)).toContain('DATA_DIR is not set');
	expect(run('orchestrator/keys.ts', create, { DATA_DIR: 'own' })).toMatch(/^dk_/);
	expect(existsSync(join(root, 'own', 'api-keys.db'))).toBe(true);
	mkdirSync(join(root, 'whole', 'ca'), { recursive: true });
	writeFileSync(join(root, 'whole', 'ca', 'cluster-id'), '');
	expect(run('orchestrator/keys.ts', create, { DATA_DIR: 'whole' })).toContain('DATA_DIR=whole/orchestrator-1');
	expect(existsSync(join(root, 'whole', 'api-keys.db'))).toBe(false);
});
