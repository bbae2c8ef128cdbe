import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { createFileDurably, readVersionedJson } from './files.ts';

const folder = mkdtempSync(join(tmpdir(), 'distro-files-'));

afterAll(() => rmSync(folder, { recursive: true }));

test('a file is made once, whole, with its mode, and never made anew', () => {
	const path = join(folder, 'key');
	expect(createFileDurably(path, 'first', { mode: 0o600 })).toBe(true);
	expect(createFileDurably(path, 'second', { mode: 0o600 })).toBe(false);
	expect(readFileSync(path, 'utf8')).toBe('first');
	expect(statSync(path).mode & 0o777).toBe(0o600);
	expect(readdirSync(folder)).toEqual(['key']);
});

test('a file with a version: read, of a newer release, or damaged', () => {
	const path = join(folder, 'record.json');
	const read = (text: string) => {
		writeFileSync(path, text);
		return readVersionedJson(path, { newest: 2 });
	};
	expect(read('{"version": 1, "a": 2}')).toEqual({ version: 1, a: 2 });
	expect(read('{"version": 2}')).toEqual({ version: 2 });
	const message = `${path} was written by a newer release (version 3, this one knows 2): run that release`;
	expect(() => read('{"version": 3}')).toThrow(expect.objectContaining({ kind: 'unsupported', message }));
	for (const text of ['', '{"version": 2', '7', 'null', '{}', '{"version": "2"}', '{"version": 1.5}', '{"version": 0}'])
		expect(() => read(text), text).toThrow(expect.objectContaining({ kind: 'corrupt' }));
});
