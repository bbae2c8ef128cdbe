import { expect, test } from 'vitest';
import { systemRandom } from '../platform/clock.ts';
import { checkApiKey, createApiKey } from './admin-keys.ts';
import type { ApiKeyRow, ApiKeyStore } from './api-keys.ts';
import { givenKeyRow, withGivenKey } from './given-key.ts';

function memoryKeys(): ApiKeyStore {
	const rows: ApiKeyRow[] = [];
	return {
		addApiKey: async (row) => void rows.push(row),
		apiKeys: async () => rows,
		removeApiKey: async () => false,
		close: async () => {},
	};
}

const made = async () => {
	const { key } = await createApiKey(memoryKeys(), { scope: 'admin', label: '' }, systemRandom, 0);
	return key;
};

test('the given key is an admin’s, beside those that are kept, and follows its file', async () => {
	const kept = memoryKeys();
	const { key: keptKey } = await createApiKey(kept, { scope: 'read', label: 'me' }, systemRandom, 1);
	const [first, second] = [await made(), await made()];
	let file = first;
	const keys = withGivenKey(kept, () => file);
	const scopeOf = async (key: string) => checkApiKey(await keys.apiKeys(), key)?.scope;
	expect(await scopeOf(first)).toBe('admin');
	expect(await scopeOf(keptKey)).toBe('read');
	expect(await scopeOf(second)).toBeUndefined();
	file = second;
	expect(await scopeOf(first)).toBeUndefined();
	expect(await scopeOf(second)).toBe('admin');
	file = 'half-writ';
	expect(await scopeOf(second)).toBeUndefined();
	expect(await scopeOf(keptKey)).toBe('read');
});

test('what is no key is refused without being shown', () => {
	const secret = 'dk_0011223344556677_tooshort';
	expect(() => givenKeyRow(secret)).toThrow(
		expect.objectContaining({ kind: 'invalid', message: expect.not.stringContaining('tooshort') }),
	);
});
