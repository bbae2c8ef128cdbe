/** Environments: every mistake at once, secrets from files, and no secret in any sentence. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DistroError } from '../core/errors.ts';
import { EnvReader } from './env.ts';

let folder = '';
beforeAll(() => {
	folder = mkdtempSync(join(tmpdir(), 'distro-env-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function mistakes(reader: EnvReader): string[] {
	try {
		reader.done();
		return [];
	} catch (error) {
		expect(error).toMatchObject({ kind: 'invalid' });
		return (error as Error).message.split('\n  - ').slice(1);
	}
}

test('every mistake is told at once, each with its name', () => {
	const reader = new EnvReader({
		PORT: '70000',
		COUNT: 'many',
		BUDGET: '12 apples',
		MODE: 'fast',
		KEY: 'x',
		KEY_FILE: 'y',
		OTHER_FILE: join(folder, 'absent'),
	});
	reader.required('DATA_DIR', './data');
	expect(reader.port('PORT', 8080)).toBe(8080);
	expect(reader.integer('COUNT', 3, { min: 1, max: 9 })).toBe(3);
	expect(reader.size('BUDGET', 4096, { min: 1, max: 1e9 })).toBe(4096);
	expect(reader.choice('MODE', 'auto', ['auto', 'off'])).toBe('auto');
	reader.secret('KEY');
	expect(reader.secret('OTHER')).toBeNull();
	expect(
		reader.parse(() => {
			throw new DistroError('invalid', 'PARSED is not right');
		}),
	).toBeNull();
	reader.mistake('and one more');
	const told = mistakes(reader);
	expect(told.map((sentence) => sentence.split(' ')[0])).toEqual([
		'DATA_DIR',
		'PORT',
		'COUNT',
		'BUDGET',
		'MODE',
		'KEY',
		'OTHER_FILE',
		'PARSED',
		'and',
	]);
});

test('a right environment has no mistakes', () => {
	const reader = new EnvReader({ PORT: '0', COUNT: '9', BUDGET: '128Mi', MODE: 'off', NAME: 'worker-1', EMPTY: '' });
	expect(reader.port('PORT', 8080)).toBe(0);
	expect(reader.integer('COUNT', 3, { min: 1, max: 9 })).toBe(9);
	expect(reader.size('BUDGET', 1, { min: 1, max: 1e9 })).toBe(128 * 1024 * 1024);
	expect(reader.choice('MODE', 'auto', ['auto', 'off'])).toBe('off');
	expect(reader.required('NAME', 'worker-1')).toBe('worker-1');
	expect(reader.text('EMPTY', 'fallback')).toBe('fallback');
	expect(reader.optional('EMPTY')).toBeNull();
	expect(reader.port('ABSENT', 9090)).toBe(9090);
	expect(reader.parse(() => 7)).toBe(7);
	expect(mistakes(reader)).toEqual([]);
});

test.each(['-1', '1.5', '1e3', '0x10', ' 5', '5 ', '10', 'Infinity', 'NaN'])(
	'%j is no whole number from 1 to 9',
	(text) => {
		const reader = new EnvReader({ COUNT: text });
		reader.integer('COUNT', 3, { min: 1, max: 9 });
		expect(mistakes(reader)).toHaveLength(1);
	},
);

test.each([
	['0', 0],
	['4096', 4096],
	['1Ki', 1024],
	['2Gi', 2 * 1024 ** 3],
	['1Ti', 1024 ** 4],
	['1M', null],
	['1.5Gi', null],
	['-1', null],
	['Mi', null],
	['9999999999Ti', null],
])('the size %s', (text, bytes) => {
	const reader = new EnvReader({ SIZE: text });
	const read = reader.size('SIZE', 7, { min: 0, max: Number.MAX_SAFE_INTEGER });
	expect(read).toBe(bytes ?? 7);
	expect(mistakes(reader)).toHaveLength(bytes === null ? 1 : 0);
});

test('a bug in a parser is not a mistake of the environment', () => {
	const reader = new EnvReader({});
	expect(() =>
		reader.parse(() => {
			throw new TypeError('a bug');
		}),
	).toThrow(TypeError);
});

describe('secrets', () => {
	const secret = 'correct-horse-battery-staple';

	test('from the variable or from the file that it names, trimmed', () => {
		const file = join(folder, 'secret');
		writeFileSync(file, `${secret}\n`);
		expect(new EnvReader({ KEY: ` ${secret} ` }).secret('KEY')).toBe(secret);
		expect(new EnvReader({ KEY_FILE: file }).secret('KEY')).toBe(secret);
		expect(new EnvReader({}).secret('KEY')).toBeNull();
		expect(new EnvReader({ KEY: '', KEY_FILE: file }).secret('KEY')).toBe(secret);
	});

	test('never stand in a sentence, whatever is wrong', () => {
		const file = join(folder, 'secret');
		writeFileSync(file, secret);
		const environments: NodeJS.ProcessEnv[] = [
			{ KEY: secret, KEY_FILE: file },
			{ KEY_FILE: folder },
			{ KEY: secret, PORT: secret, COUNT: secret, SIZE: secret, MODE: secret },
		];
		for (const env of environments) {
			const reader = new EnvReader(env);
			reader.secret('KEY');
			reader.port('PORT', 1);
			reader.integer('COUNT', 1, { min: 0, max: 9 });
			reader.size('SIZE', 1, { min: 0, max: 9 });
			reader.choice('MODE', 'a', ['a', 'b']);
			const told = mistakes(reader);
			expect(told.length).toBeGreaterThan(0);
			expect(told.join()).not.toContain(secret);
		}
	});
});
