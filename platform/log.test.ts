import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { expect, test } from 'vitest';

const LOG = new URL('./log.ts', import.meta.url).href;

/** A process that logs a line, waits for a word, logs many more and exits. */
function startLogger(): ReturnType<typeof spawn> {
	const script = `
		import { createLogger } from ${JSON.stringify(LOG)};
		const log = createLogger({ role: 'worker', name: 'worker-1', level: 'info' });
		log.info({}, 'first');
		process.stdin.once('data', async () => {
			for (let i = 0; i < 2_000; i++) log.info({ i, filling: 'x'.repeat(100) }, 'line');
			await new Promise((done) => setImmediate(done));
			log.info({}, 'last');
			process.exit(7);
		});`;
	return spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['pipe', 'pipe', 'inherit'] });
}

test('every line comes, in order', async () => {
	const child = startLogger();
	let text = '';
	child.stdout?.on('data', (chunk: Buffer) => {
		text += chunk.toString();
	});
	child.stdin?.write('go');
	expect(await once(child, 'close')).toEqual([7, null]);
	const lines = text.trim().split('\n');
	expect(lines).toHaveLength(2_002);
	expect(JSON.parse(lines[0] as string)).toMatchObject({ level: 'info', role: 'worker', msg: 'first' });
	expect(lines.slice(1, -1).map((line) => (JSON.parse(line) as { i: number }).i)).toEqual([...Array(2_000).keys()]);
});

test('a process whose log nobody reads any more still ends', async () => {
	const child = startLogger();
	await once(child.stdout as NodeJS.ReadableStream, 'data');
	child.stdout?.destroy();
	child.stdin?.write('go');
	expect(await once(child, 'exit')).toEqual([7, null]);
});
