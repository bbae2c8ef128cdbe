/**
 * The wire against that of each release before: orchestrators and workers of two releases work together while a cluster is
 * upgraded. Fields and methods are added only, keep their numbers and types, and what is not known is passed over.
 */

import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { ROOT } from '../../hack/environment.ts';
import * as cluster from '../../proto/gen/distro/v1/cluster.ts';
import * as shards from '../../proto/gen/distro/v1/shards.ts';
import { FIXTURES, fixtures } from '../fixtures/fixture.ts';

const RULES = {
	version: 'v2',
	modules: [{ path: '.' }],
	breaking: { use: ['WIRE', 'RPC_NO_DELETE', 'SERVICE_NO_DELETE'] },
};

test.each(fixtures().map(({ release }) => release))('no message or method of %s has another meaning now', (release) => {
	const args = ['breaking', '--against', join(FIXTURES, `${release}.binpb`), '--config', JSON.stringify(RULES)];
	// It says what is wrong, and throws then.
	execFileSync(join(ROOT, 'node_modules/.bin/buf'), args, { cwd: join(ROOT, 'proto'), stdio: 'inherit' });
});

interface Message {
	encode(message: unknown): { finish(): Uint8Array };
	decode(bytes: Uint8Array): unknown;
}

const messages = Object.entries({ ...cluster, ...shards }).flatMap(([name, value]) =>
	typeof value === 'object' && 'decode' in value ? [[name, value as unknown as Message] as const] : [],
);
/** Fields 900 to 902: a number, bytes, and eight bytes. */
const UNKNOWN = Buffer.from('a03807aa3803616263b1380102030405060708', 'hex');

describe('fields that only a newer release knows are passed over', () => {
	test('there are messages', () => expect(messages.length).toBeGreaterThan(15));

	test.each(messages)('%s', (_name, message) => {
		const empty = message.decode(new Uint8Array());
		expect(message.decode(UNKNOWN)).toEqual(empty);
		const bytes = message.encode(empty).finish();
		expect(message.decode(Buffer.concat([UNKNOWN, bytes]))).toEqual(message.decode(bytes));
	});
});
