/**
 * API keys as people hold them: `dk_<key id>_<secret>`, 16 and 64 hexadecimal digits. The id finds the row; the secret is
 * shown once and kept only as its SHA-256, which is enough for 256 random bits.
 */

import { createHash, timingSafeEqual } from 'node:crypto';
import type { Random } from '../core/ports.ts';
import type { ApiKeyRow, ApiKeyScope, ApiKeyStore } from './api-keys.ts';

const KEY_ID_BYTES = 8;
const SECRET_BYTES = 32;
const API_KEY = /^dk_([0-9a-f]{16})_([0-9a-f]{64})$/;
/** Compared with when no row has the id, so that an unknown id takes as long as a wrong secret. */
const NO_HASH = Buffer.alloc(32);

/** `key` is to be shown once and never kept. */
export async function createApiKey(
	store: ApiKeyStore,
	{ scope, label }: { scope: ApiKeyScope; label: string },
	random: Random,
	nowMs: number,
): Promise<{ key: string; row: ApiKeyRow }> {
	const keyId = random.bytes(KEY_ID_BYTES).toString('hex');
	const secret = random.bytes(SECRET_BYTES);
	const row: ApiKeyRow = { keyId, secretHash: hashOf(secret), scope, label, createdAtMs: nowMs };
	await store.addApiKey(row);
	return { key: `dk_${keyId}_${secret.toString('hex')}`, row };
}

/** Null when it does not look like a key. */
export function parseApiKey(text: string): { keyId: string; secret: Buffer } | null {
	const [, keyId, secret] = API_KEY.exec(text) ?? [];
	return keyId === undefined || secret === undefined ? null : { keyId, secret: Buffer.from(secret, 'hex') };
}

/** The key's row, or null for anything that is no key of ours. How long it takes says nothing about secrets. */
export function checkApiKey(rows: readonly ApiKeyRow[], text: string): ApiKeyRow | null {
	const parsed = parseApiKey(text);
	if (parsed === null) return null;
	const row = rows.find(({ keyId }) => keyId === parsed.keyId) ?? null;
	const equal = timingSafeEqual(hashOf(parsed.secret), row?.secretHash ?? NO_HASH);
	return equal ? row : null;
}

/** What is kept of a key's secret. */
export function hashOf(secret: Buffer): Buffer {
	return createHash('sha256').update(secret).digest();
}
