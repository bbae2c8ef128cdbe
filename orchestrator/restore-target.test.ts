/** Onto what a restore writes: nothing that has objects, in the trash or not, and what is moved aside is kept. */

import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { METADATA_FILE, type OrchestratorConfig } from './config.ts';
import { markRestore } from './restore-mark.ts';
import { openTarget } from './restore-target.ts';
import { Fixtures, NOW_MS } from './store.fixtures.ts';
import type { MetadataStore } from './store.ts';
import { openSqliteStore } from './store-sqlite.ts';

let dataDir: string;
let config: OrchestratorConfig;

beforeEach(() => {
	dataDir = mkdtempSync(join(tmpdir(), 'distro-target-'));
	config = { dataDir, supabase: null } as OrchestratorConfig;
});
afterEach(() => rmSync(dataDir, { recursive: true }));

async function withStore(fill: (store: MetadataStore, fixtures: Fixtures) => Promise<void>): Promise<void> {
	const store = await openSqliteStore({ path: join(dataDir, METADATA_FILE) });
	await fill(store, new Fixtures('restore target'));
	await store.close();
}

async function fillInline(store: MetadataStore, fixtures: Fixtures) {
	const { commit, objectId } = fixtures.upload([], { segments: 0 });
	await store.commit(commit);
	return objectId;
}

async function open(): Promise<number> {
	const target = await openTarget(config, () => {});
	const { objects } = await target.store.counts();
	await target.close();
	return objects;
}

test('a store with objects is refused, and left where it is, also with all of them in the trash', async () => {
	await withStore(async (store, fixtures) => {
		const objectId = await fillInline(store, fixtures);
		await store.deleteObject(objectId, { nowMs: NOW_MS, purgeAtMs: NOW_MS + 1_000, by: '' });
		expect(await store.counts()).toMatchObject({ objects: 0, trashObjects: 1 });
	});
	await expect(open()).rejects.toMatchObject({ kind: 'conflict' });
	expect(readdirSync(dataDir).filter((file) => file.includes('before-restore'))).toEqual([]);
});

test('one that a restore did not finish is gone on with', async () => {
	await withStore(async (store, fixtures) => {
		await markRestore(store, 'running', NOW_MS);
		await fillInline(store, fixtures);
	});
	expect(await open()).toBe(1);
});

test('none, an empty one and a damaged one make room for a fresh one, and are kept', async () => {
	expect(await open()).toBe(0);
	expect(await open()).toBe(0);
	expect(readdirSync(dataDir).some((file) => file.includes('before-restore'))).toBe(true);
	writeFileSync(join(dataDir, METADATA_FILE), 'no database at all, and longer than its header is'.repeat(50));
	expect(await open()).toBe(0);
	expect(readdirSync(dataDir).filter((file) => /before-restore-[^-]+-[^-]+-[^-]+$/.test(file))).toHaveLength(2);
});
