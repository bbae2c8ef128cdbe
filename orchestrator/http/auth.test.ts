/** Without keys: people of this machine yes, pages in their browsers no. */

import type { IncomingMessage } from 'node:http';
import { describe, expect, test } from 'vitest';
import { loopbackAuthenticator, requireScope } from './auth.ts';

const check = (method: string, headers: Record<string, string>) =>
	loopbackAuthenticator.check({ method, headers } as unknown as IncomingMessage);

test('each scope includes the ones before it, and a refusal says what the key may', () => {
	requireScope({ owner: 'a', scope: 'admin' }, 'write');
	requireScope({ owner: 'a', scope: 'write' }, 'read');
	expect(() => requireScope({ owner: 'a', scope: 'read' }, 'write')).toThrow('may read only,');
	expect(() => requireScope({ owner: 'a', scope: 'write' }, 'admin')).toThrow('may read and write,');
});

describe('open on loopback', () => {
	test.each(['localhost', 'localhost:8080', '127.0.0.1:8080', '[::1]:8080', '192.0.2.7'])('%s may', async (host) => {
		expect(await check('DELETE', { host })).toEqual({ owner: '', scope: 'admin' });
	});

	test.each(['evil.example', 'evil.example:8080', 'localhost.evil.example', '127.0.0.1.evil.example', ''])(
		'a name that anyone can point here may not: %s',
		async (host) => {
			await expect(check('GET', { host })).rejects.toMatchObject({ problem: { status: 403 } });
		},
	);

	test('pages of other sites may not change anything', async () => {
		const host = 'localhost:8080';
		for (const site of ['cross-site', 'same-site']) {
			const posted = check('POST', { host, 'sec-fetch-site': site });
			await expect(posted).rejects.toMatchObject({ problem: { status: 403 } });
		}
		for (const site of ['same-origin', 'none']) await check('POST', { host, 'sec-fetch-site': site });
	});
});
