/** Fails when proto/gen is not what `npm run generate` makes of proto/. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

const root = resolve(import.meta.dirname, '..');
const fresh = mkdtempSync(join(tmpdir(), 'distro-generated-'));
try {
	execFileSync('buf', ['generate', '--output', fresh], { cwd: join(root, 'proto'), stdio: 'inherit' });
	const files = (folder: string) =>
		readdirSync(folder, { recursive: true, encoding: 'utf8' })
			.filter((file) => file.endsWith('.ts'))
			.sort();
	const committed = join(root, 'proto/gen');
	const made = join(fresh, 'gen');
	const same =
		files(committed).join() === files(made).join() &&
		files(made).every((file) => readFileSync(join(committed, file)).equals(readFileSync(join(made, file))));
	if (!same) {
		process.stderr.write('proto/gen is not what proto/ generates: run make generate and commit it.\n');
		process.exitCode = 1;
	}
} finally {
	rmSync(fresh, { recursive: true, force: true });
}
