import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { DEFAULT_POLICY } from '../core/model/redundancy.ts';
import { systemRandom } from '../platform/clock.ts';
import { METADATA_FILE, readConfig } from './config.ts';

let folder: string;

beforeEach(() => {
	folder = mkdtempSync(join(tmpdir(), 'distro-config-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

const read = (dataDir = folder) => readConfig({ DATA_DIR: dataDir }, systemRandom);

test('without MASTER_KEY one is made, once, and kept', () => {
	const first = read();
	expect(first.masterKeyMade).toContain('master.key');
	expect(first.masterKeyMade).not.toContain(readFileSync(join(folder, 'master.key'), 'utf8').trim());
	const second = read();
	expect(second.masterKeyMade).toBeNull();
	expect(second.master.primary.id).toBe(first.master.primary.id);
});

test('where there is metadata a key that is gone is not made anew', () => {
	writeFileSync(join(folder, METADATA_FILE), '');
	expect(() => read()).toThrow(/restore that file, or set MASTER_KEY/);
	expect(readdirSync(folder)).toEqual([METADATA_FILE]);
});

test('a DATA_DIR that can be none is one clear sentence', () => {
	writeFileSync(join(folder, 'file'), '');
	expect(() => read(join(folder, 'file', 'data'))).toThrow(
		expect.objectContaining({ kind: 'invalid', message: expect.stringContaining("can't be used") }),
	);
});

describe('the policy', () => {
	const policy = (env: NodeJS.ProcessEnv) => readConfig({ DATA_DIR: folder, ...env }, systemRandom).policy;

	test('is the default, or what is said', () => {
		expect(policy({})).toEqual(DEFAULT_POLICY);
		expect(policy({ TOLERATE_WORKERS: '3', TOLERATE_ZONES: '0', DATA_LOSS_PER_YEAR: '1e-6' })).toEqual({
			tolerate: { workers: 3, zones: 0 },
			dataLossPerYear: 1e-6,
		});
		expect(policy({ FIXED_REDUNDANCY: '8+3' })).toEqual({
			...DEFAULT_POLICY,
			fixed: { dataShards: 8, parityShards: 3 },
		});
	});

	test.each([
		{ FIXED_REDUNDANCY: '4' },
		{ FIXED_REDUNDANCY: '0+2' },
		{ FIXED_REDUNDANCY: '4+0' },
		{ FIXED_REDUNDANCY: '25+2' },
		{ FIXED_REDUNDANCY: '4+7' },
		{ TOLERATE_WORKERS: '7' },
		{ DATA_LOSS_PER_YEAR: '0' },
		{ DATA_LOSS_PER_YEAR: 'never' },
	])('%j is refused with its name', (env) => {
		expect(() => policy(env)).toThrow(new RegExp(`${Object.keys(env)[0]} must be`));
	});
});

describe('Supabase', () => {
	const base = { MASTER_KEY: 'ab'.repeat(32), SUPABASE_URL: 'https://abc.supabase.co' };
	const config = (env: NodeJS.ProcessEnv) => readConfig({ DATA_DIR: folder, ...env }, systemRandom);

	test('address and key, or neither', () => {
		const { supabase } = config({ ...base, SUPABASE_KEY: 'sb_secret_x' });
		expect([supabase?.url, supabase?.key()]).toEqual([base.SUPABASE_URL, 'sb_secret_x']);
		expect(config({ MASTER_KEY: base.MASTER_KEY }).supabase).toBeNull();
		expect(() => config(base)).toThrow(/SUPABASE_KEY is not/);
		expect(() => config({ MASTER_KEY: base.MASTER_KEY, SUPABASE_KEY: 'sb_secret_x' })).toThrow(/SUPABASE_URL is not/);
	});

	test('the key may be in a file', () => {
		const file = join(folder, 'key');
		writeFileSync(file, 'sb_secret_file\n');
		expect(config({ ...base, SUPABASE_KEY_FILE: file }).supabase?.key()).toBe('sb_secret_file');
	});

	test('a master key is not made: all orchestrators must have the same', () => {
		const env = { SUPABASE_URL: base.SUPABASE_URL, SUPABASE_KEY: 'sb_secret_x' };
		expect(() => config(env)).toThrow(/same MASTER_KEY/);
		expect(readdirSync(folder)).toEqual([]);
	});
});

test('enrolment is off unless it has a port, and then needs its folders', () => {
	const readWith = (env: Record<string, string>) => readConfig({ DATA_DIR: folder, ...env }, systemRandom).enrol;
	expect(readWith({ ENROL_DIR: '/enrol', ISSUER_DIR: '/issuer' })).toBeNull();
	const all = { ENROL_PORT: '9092', ENROL_DIR: '/enrol', ISSUER_DIR: '/issuer' };
	expect(readWith(all)).toEqual({ port: 9092, dir: '/enrol', issuerDir: '/issuer', lifetimeMs: 30 * 24 * 60 * 60_000 });
	expect(() => readWith({ ...all, ENROL_DIR: '' })).toThrow('ENROL_DIR is not set');
	expect(() => readWith({ ...all, ISSUER_DIR: '' })).toThrow('ISSUER_DIR is not set');
	expect(() => readWith({ ...all, ENROL_LIFETIME: '9s' })).toThrow('ENROL_LIFETIME');
});
