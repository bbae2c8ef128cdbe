/** Runs every test and ends with one line: `N passed, N failed` (and `, N skipped`). `--soak`: the long scenarios in full. */

import { resolve } from 'node:path';
import { startVitest } from 'vitest/node';

const soak = process.argv.includes('--soak');
if (soak) process.env.SOAK = '1';
const filters = process.argv.slice(2).filter((argument) => !argument.startsWith('--'));
const vitest = await startVitest('test', soak ? ['test/e2e'] : filters, {
	root: resolve(import.meta.dirname, '..'),
	watch: false,
});
let passed = 0;
let failed = vitest.state.getUnhandledErrors().length;
let skipped = 0;
for (const module of vitest.state.getTestModules()) {
	// A file that can't even be loaded has no tests to count.
	failed += module.errors().length;
	for (const test of module.children.allTests()) {
		const { state } = test.result();
		if (state === 'passed') passed++;
		else if (state === 'skipped') skipped++;
		else failed++;
	}
}
await vitest.close();
process.stdout.write(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}\n`);
process.exit(failed > 0 || passed === 0 ? 1 : 0);
