/** What every ApiKeyStore must do, wherever it keeps them: run by both adapters. */

import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Clock } from '../core/ports.ts';
import { realClock } from '../test/support/clock.ts';
import { checkApiKey, createApiKey, parseApiKey } from './admin-keys.ts';
import type { ApiKeyStore } from './api-keys.ts';
import { Fixtures, NOW_MS } from './store.fixtures.ts';

export interface ApiKeysPlace {
	/** Another handle on the same keys, as another process has it. */
	open(clock: Clock): Promise<ApiKeyStore>;
	/** Everything that is kept, as bytes. */
	bytes(): Promise<Buffer>;
	dispose(): Promise<void>;
}

export function describeApiKeys(name: string, prepare: () => Promise<ApiKeysPlace>): void {
	describe(`ApiKeyStore: ${name}`, () => {
		let place: ApiKeysPlace;
		let store: ApiKeyStore;
		let nowMs: number;
		const clock: Clock = { nowMs: () => nowMs, monotonicMs: () => nowMs, schedule: realClock.schedule };
		const random = new Fixtures('api keys');
		const make = (label = 'ci') => createApiKey(store, { scope: 'write', label }, random, nowMs);

		beforeEach(async () => {
			nowMs = NOW_MS;
			place = await prepare();
			store = await place.open(clock);
		});
		afterEach(async () => {
			await store.close();
			await place.dispose();
		});

		test('a key opens its row, and only with its own secret', async () => {
			const { key, row } = await make();
			const other = await make('other');
			expect(key).toMatch(/^dk_[0-9a-f]{16}_[0-9a-f]{64}$/);
			const rows = await store.apiKeys();
			expect(rows).toHaveLength(2);
			expect(checkApiKey(rows, key)).toEqual(row);
			const mixed = `${key.slice(0, 20)}${other.key.slice(20)}`;
			const unknown = `dk_${'0'.repeat(16)}_${'0'.repeat(64)}`;
			const wrong = [mixed, unknown, '', 'dk_', key.toUpperCase(), `${key} `, `x${key}`, key.slice(0, -1), `${key}\n`];
			for (const text of wrong) expect(checkApiKey(rows, text)).toBeNull();
			expect(parseApiKey(key)?.keyId).toBe(row.keyId);
		});

		test('the secret is not kept', async () => {
			const { key, row } = await make();
			const { secret } = parseApiKey(key) as { secret: Buffer };
			await store.close();
			const bytes = await place.bytes();
			expect(bytes.includes(row.keyId)).toBe(true);
			for (const form of [secret, secret.toString('hex'), secret.toString('base64')]) {
				expect(bytes.includes(form)).toBe(false);
			}
		});

		test('they survive, come oldest first, and leave when removed', async () => {
			const { row } = await make('quotes " and \' and ünïcode');
			nowMs -= 1;
			const { row: older } = await make();
			await store.close();
			store = await place.open(clock);
			expect(await store.apiKeys()).toEqual([older, row]);
			await expect(store.addApiKey(row)).rejects.toMatchObject({ kind: 'exists' });
			expect(await store.removeApiKey(row.keyId)).toBe(true);
			expect(await store.removeApiKey(row.keyId)).toBe(false);
			expect(await store.apiKeys()).toEqual([older]);
			await store.close();
			await expect(store.apiKeys()).rejects.toMatchObject({ kind: 'unavailable' });
		});

		test('changes by another process are seen within a second, and they are not read more often', async () => {
			const other = await place.open(clock);
			expect(await other.apiKeys()).toEqual([]);
			const { row } = await make();
			nowMs += 999;
			expect(await other.apiKeys()).toEqual([]);
			nowMs += 1;
			expect(await other.apiKeys()).toEqual([row]);
			await store.removeApiKey(row.keyId);
			nowMs += 1_000;
			expect(await other.apiKeys()).toEqual([]);
			await other.close();
		});
	});
}
