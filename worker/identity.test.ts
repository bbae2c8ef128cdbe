/** Who a worker is, as it is kept on its volume. */

import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { rawPublicKey } from '../core/crypto/sign.ts';
import { seededRandom } from '../test/support/clock.ts';
import { makeNewerJson } from '../test/support/newer.ts';
import { loadOrCreateIdentity } from './identity.ts';

const random = seededRandom('identity');
let folder: string;
beforeEach(() => {
	folder = fs.mkdtempSync(join(tmpdir(), 'distro-identity-'));
});
afterEach(() => fs.rmSync(folder, { recursive: true }));

test('it is made once and kept', () => {
	const made = loadOrCreateIdentity(folder, random);
	const kept = loadOrCreateIdentity(folder, random);
	expect(kept.workerId).toBe(made.workerId);
	expect(rawPublicKey(kept.receiptKey).equals(rawPublicKey(made.receiptKey))).toBe(true);
});

test.each<[string, (file: string) => void, { kind: string; message: unknown }]>([
	[
		'of a newer release',
		makeNewerJson,
		{
			kind: 'unsupported',
			message: expect.stringMatching(/worker\.json was written by a newer release .*: run that release$/),
		},
	],
	[
		'damaged',
		(file) => fs.writeFileSync(file, '{'),
		{ kind: 'corrupt', message: expect.stringContaining('worker.json') },
	],
	[
		'without an id',
		(file) => fs.writeFileSync(file, '{"version": 1}'),
		{ kind: 'corrupt', message: expect.stringContaining('no worker id') },
	],
])('%s it is refused, and nothing is changed', (_, change, refusal) => {
	loadOrCreateIdentity(folder, random);
	change(join(folder, 'worker.json'));
	const contents = () => fs.readdirSync(folder).map((name) => [name, fs.readFileSync(join(folder, name), 'utf8')]);
	const before = contents();
	expect(() => loadOrCreateIdentity(folder, random)).toThrow(expect.objectContaining(refusal));
	expect(contents()).toEqual(before);
});
