/**
 * One admin key that the deployment gives (ADMIN_KEY, or ADMIN_KEY_FILE), beside those that are kept: so that a new cluster has
 * one before anybody could make one, and a changed file is a changed key. Nothing of it is stored.
 */

import { DistroError } from '../core/errors.ts';
import { hashOf, parseApiKey } from './admin-keys.ts';
import type { ApiKeyRow, ApiKeyStore } from './api-keys.ts';

/** Throws `invalid` unless it looks like a key, never showing it. */
export function givenKeyRow(text: string): ApiKeyRow {
	const parsed = parseApiKey(text);
	if (parsed === null) {
		throw new DistroError(
			'invalid',
			'ADMIN_KEY must be dk_, 16 hexadecimal digits, _ and 64 hexadecimal digits, as npm run keys makes them',
		);
	}
	return { keyId: parsed.keyId, secretHash: hashOf(parsed.secret), scope: 'admin', label: 'ADMIN_KEY', createdAtMs: 0 };
}

/** `key` is asked each time; what is no key any more counts as none. */
export function withGivenKey(store: ApiKeyStore, key: () => string): ApiKeyStore {
	let text = '';
	let row: ApiKeyRow | null = null;
	return {
		addApiKey: (added) => store.addApiKey(added),
		removeApiKey: (keyId) => store.removeApiKey(keyId),
		close: () => store.close(),
		apiKeys: async (options) => {
			const now = key();
			if (now !== text) {
				text = now;
				row = parseApiKey(now) === null ? null : givenKeyRow(now);
			}
			const kept = await store.apiKeys(options);
			return row === null ? kept : [row, ...kept];
		},
	};
}
