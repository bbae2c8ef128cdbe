/** A process's life, seen from outside: real child processes, their output and how they end. */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { until } from '../test/support/cluster.ts';

const LIFECYCLE = join(import.meta.dirname, 'lifecycle.ts');
const children: ChildProcess[] = [];

afterEach(() => {
	for (const child of children.splice(0)) child.kill('SIGKILL');
});

interface Child {
	readonly process: ChildProcess;
	lines(): string[];
	errors(): string;
	/** Its exit code, or the signal that ended it. */
	readonly ended: Promise<number | string>;
}

/** Runs `body` as the start of a process; it says what it does by `say`. */
function run(body: string, env: Record<string, string> = {}): Child {
	const source = `
		import { runProcess } from ${JSON.stringify(LIFECYCLE)};
		import { DistroError } from ${JSON.stringify(join(import.meta.dirname, '../core/errors.ts'))};
		const say = (text) => process.stdout.write(text + '\\n');
		const log = { info: (fields, text) => say('info ' + text), error: (fields, text) => say('error ' + text) };
		const alive = setInterval(() => {}, 1000);
		await runProcess('test', async (lifecycle) => { ${body}; say('started'); return log; });
	`;
	const child = spawn(process.execPath, ['--input-type=module', '--eval', source], {
		env: { PATH: process.env.PATH, ...env },
		stdio: ['pipe', 'pipe', 'pipe'],
	});
	children.push(child);
	let out = '';
	let err = '';
	child.stdout?.on('data', (text: Buffer) => {
		out += text.toString();
	});
	child.stderr?.on('data', (text: Buffer) => {
		err += text.toString();
	});
	return {
		process: child,
		lines: () => out.split('\n').filter((line) => line !== ''),
		errors: () => err,
		ended: once(child, 'close').then(([code, signal]) => code ?? signal),
	};
}

const said = (child: Child, line: string) =>
	until(() => child.lines().includes(line), { what: `"${line}" in ${child.lines()} ${child.errors()}` });

describe('stopping', () => {
	test.each(['SIGTERM', 'SIGINT'] as const)(
		'%s: hooks one after the other, last added first, then exit 0',
		async (signal) => {
			const child = run(`
			for (const name of ['first', 'second', 'third']) lifecycle.onStop(name, async () => {
				say('begin ' + name + ' ' + lifecycle.stopping);
				await new Promise((done) => setTimeout(done, 20));
				say('end ' + name);
			});
		`);
			await said(child, 'started');
			child.process.kill(signal);
			expect(await child.ended).toBe(0);
			expect(child.lines()).toEqual([
				'started',
				'info stopping',
				'begin third true',
				'end third',
				'begin second true',
				'end second',
				'begin first true',
				'end first',
				'info stopped',
			]);
		},
	);

	test('a hook that fails does not keep the others from running', async () => {
		const child = run(`
			lifecycle.onStop('good', () => say('good'));
			lifecycle.onStop('rejects', async () => { throw new Error('no'); });
			lifecycle.onStop('throws', () => { throw new Error('no'); });
		`);
		await said(child, 'started');
		child.process.kill('SIGTERM');
		expect(await child.ended).toBe(0);
		expect(child.lines()).toEqual([
			'started',
			'info stopping',
			'error a stop hook failed',
			'error a stop hook failed',
			'good',
			'info stopped',
		]);
	});

	test('a second signal exits at once', async () => {
		const child = run(`lifecycle.onStop('hangs', () => new Promise(() => say('hanging')))`);
		await said(child, 'started');
		child.process.kill('SIGTERM');
		await said(child, 'hanging');
		child.process.kill('SIGINT');
		expect(await child.ended).toBe(1);
		expect(child.lines()).not.toContain('info stopped');
	});

	test('a hook that hangs is cut off at the deadline', async () => {
		const child = run(`lifecycle.onStop('hangs', () => new Promise(() => say('hanging')))`);
		await said(child, 'started');
		child.process.kill('SIGTERM');
		expect(await child.ended).toBe(1);
		expect(child.lines()).toContain('error stopping took too long');
	});

	test('from inside, as by a signal', async () => {
		const child = run(`
			lifecycle.onStop('one', () => say('one'));
			setTimeout(() => lifecycle.stop('enough'), 10);
		`);
		expect(await child.ended).toBe(0);
		expect(child.lines()).toEqual(['started', 'info stopping', 'one', 'info stopped']);
	});

	test('when the supervisor is gone, if there is one', async () => {
		const supervised = run(`lifecycle.onStop('one', () => say('one'))`, { DISTRO_PARENT_PIPE: '1' });
		const alone = run('');
		await Promise.all([said(supervised, 'started'), said(alone, 'started')]);
		alone.process.stdin?.end();
		supervised.process.stdin?.end();
		expect(await supervised.ended).toBe(0);
		expect(supervised.lines()).toContain('one');
		expect(alone.process.exitCode).toBeNull();
	});
});

describe('starting', () => {
	test('what people can mend is one sentence, without a stack', async () => {
		const child = run(`throw new DistroError('invalid', 'PORT is not right: set PORT=8080')`);
		expect(await child.ended).toBe(1);
		expect(child.errors()).toBe("test can't start: PORT is not right: set PORT=8080\n");
	});

	test('a bug shows its stack', async () => {
		const child = run(`null.nothing`);
		expect(await child.ended).toBe(1);
		expect(child.errors()).toContain('TypeError');
		expect(child.errors()).toContain('    at ');
	});

	test('a signal meanwhile stops what has been started', async () => {
		const child = run(`
			lifecycle.onStop('one', () => say('one'));
			say('half');
			await new Promise(() => {});
		`);
		await said(child, 'half');
		child.process.kill('SIGTERM');
		expect(await child.ended).toBe(0);
		expect(child.lines()).toEqual(['half', 'one']);
	});
});

test.each([
	['an exception', `setTimeout(() => { throw new Error('oh'); }, 10)`],
	['a rejection', `setTimeout(() => Promise.reject(new Error('oh')), 10)`],
])('%s that nobody catches ends the process, and is logged', async (_what, body) => {
	const child = run(body);
	expect(await child.ended).toBe(1);
	expect(child.lines()).toEqual(['started', 'error uncaught exception: this is a bug']);
});
