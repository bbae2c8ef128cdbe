import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
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
