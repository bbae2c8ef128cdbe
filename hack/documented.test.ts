/** What the README tells people to type works in a fresh clone. */

import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { expect, test } from 'vitest';
import { ROOT } from './environment.ts';

test('the first calls find their files and folders in the repository', () => {
	const readme = readFileSync(join(ROOT, 'README.md'), 'utf8');
	const [upload = '', payload = ''] = /curl -X POST \S+\/upload -F "file=@\.\/(\S+)"/.exec(readme) ?? [];
	const [download = '', output = ''] = /curl -X GET \S+\/download\/<object_id> -o \.\/(\S+)/.exec(readme) ?? [];
	const [start = ''] = /\n## Start\n[\s\S]*?\n## /.exec(readme) ?? [];
	expect(start).toContain(upload);
	expect(start).toContain(download);
	expect(start).not.toContain('mkdir');
	expect(readFileSync(join(ROOT, payload)).length).toBeGreaterThan(0);
	// The folder is there, and what comes down is nobody's change.
	expect(readFileSync(join(ROOT, dirname(output), '.gitignore'), 'utf8')).toBe('*\n!.gitignore\n');
});
