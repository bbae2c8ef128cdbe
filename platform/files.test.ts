import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { createFileDurably } from './files.ts';

const folder = mkdtempSync(join(tmpdir(), 'distro-files-'));

afterEach(() => rmSync(folder, { recursive: true }));

test('a file is made once, whole, with its mode, and never made anew', () => {
	const path = join(folder, 'key');
	expect(createFileDurably(path, 'first', { mode: 0o600 })).toBe(true);
	expect(createFileDurably(path, 'second', { mode: 0o600 })).toBe(false);
	expect(readFileSync(path, 'utf8')).toBe('first');
	expect(statSync(path).mode & 0o777).toBe(0o600);
	expect(readdirSync(folder)).toEqual(['key']);
});
