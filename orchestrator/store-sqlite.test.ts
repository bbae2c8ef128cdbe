import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { ObjectId, UploadId, WorkerId } from '../core/ids.ts';
import { describeMetadataStore } from './store.contract.ts';
import { atOnce, begin, Fixtures, NOW_MS } from './store.fixtures.ts';
import { checkRedundancy, reported } from './store.recount.ts';
import { openSqliteStore } from './store-sqlite.ts';
import { openMetadataDatabase } from './store-sqlite-schema.ts';

/** Takes the step back that brought the trash. */
const WITHOUT_TRASH = `
	DROP TABLE deletion_log; DROP TABLE deletion_head;
	DROP TRIGGER objects_in; DROP TRIGGER objects_out; DROP TRIGGER trash_in; DROP TRIGGER trash_out;
	DROP TRIGGER trashed; DROP TRIGGER undeleted;
	DROP INDEX objects_newest; DROP INDEX objects_trash;
	ALTER TABLE objects DROP COLUMN deleted_at_ms;
	ALTER TABLE objects DROP COLUMN purge_at_ms;
	ALTER TABLE deletions DROP COLUMN for_good;
	ALTER TABLE totals DROP COLUMN trash_objects;
	ALTER TABLE totals DROP COLUMN trash_bytes;
	CREATE INDEX objects_newest ON objects (created_at_ms, object_id);
	CREATE TRIGGER objects_in AFTER INSERT ON objects BEGIN
		UPDATE totals SET objects = objects + 1, bytes = bytes + new.size_bytes;
	END;
	CREATE TRIGGER objects_out AFTER DELETE ON objects BEGIN
		UPDATE totals SET objects = objects - 1, bytes = bytes - old.size_bytes;
	END;
`;

describeMetadataStore('sqlite', async () => {
	const folder = await mkdtemp(join(tmpdir(), 'distro-metadata-'));
	const path = join(folder, 'metadata.db');
	let store = await openSqliteStore({ path });
	return {
		store,
		reopen: async () => {
			await store.close();
			store = await openSqliteStore({ path });
			return store;
		},
		dispose: async () => {
			await store.close();
			await rm(folder, { recursive: true });
		},
	};
});

describe('the database file', () => {
	let folder: string;
	let path: string;
	const children = new Set<ChildProcess>();
	const make = new Fixtures('sqlite');
	const workers = Array.from({ length: 6 }, () => make.id<WorkerId>());

	beforeEach(async () => {
		folder = await mkdtemp(join(tmpdir(), 'distro-metadata-'));
		path = join(folder, 'metadata.db');
	});
	afterEach(async () => {
		for (const child of children) child.kill('SIGKILL');
		children.clear();
		await rm(folder, { recursive: true });
	});

	test('objects of very many segments are purged one at a time: nobody else gets the database meanwhile', async () => {
		const store = await openSqliteStore({ path });
		for (const segments of [1_000, 1, 1]) {
			const { objectId } = await make.store(store, workers, { segments, n: 1, k: 1 });
			await store.deleteObject(objectId, { nowMs: NOW_MS, purgeAtMs: NOW_MS + 1_002 - segments, by: '' });
		}
		const purged: number[] = [];
		while (purged.at(-1) !== 0) purged.push(await store.purgeTrash(NOW_MS * 2, 10));
		await store.close();
		expect(purged).toEqual([1, 2, 0]);
	});

	/** A process that writes; `acknowledged` grows by what it prints. */
	function startWriter(seed: string): {
		child: ChildProcess;
		acknowledged: () => ObjectId[];
		exited: Promise<unknown>;
	} {
		const script = fileURLToPath(new URL('./store-sqlite-crash.ts', import.meta.url));
		const child = spawn(process.execPath, [script, path, seed], { stdio: ['ignore', 'pipe', 'inherit'] });
		children.add(child);
		let printed = '';
		child.stdout?.setEncoding('utf8').on('data', (text: string) => {
			printed += text;
		});
		// The last line may have been cut off by the kill.
		return { child, acknowledged: () => printed.split('\n').slice(0, -1) as ObjectId[], exited: once(child, 'close') };
	}

	test('killed while it writes: all that was acknowledged is there, and nothing half', {
		timeout: 60_000,
	}, async () => {
		let expired = 0;
		for (const [round, until] of [20, 150, 400].entries()) {
			const { child, acknowledged, exited } = startWriter(`round ${round}`);
			await expect.poll(() => acknowledged().length, { timeout: 20_000, interval: 5 }).toBeGreaterThan(until);
			child.kill('SIGKILL');
			await exited;

			const store = await openSqliteStore({ path });
			const read = (objectId: ObjectId) => store.objectWithSegments(objectId, { fromSegment: 0, limit: 9 });
			for (const objectId of acknowledged()) expect(await read(objectId)).not.toBeNull();
			const { objects } = await store.list({ limit: 100_000, after: null });
			for (const { objectId } of objects) {
				const segments = (await read(objectId))?.segments ?? [];
				expect(segments.map(({ placements }) => placements.length)).toEqual([5, 5, 5]);
			}
			const intents = await store.intents(100_000);
			expect(await store.counts()).toMatchObject({ objects: objects.length, intents: intents.length });
			expired += await store.expireIntents(NOW_MS * 2, 100_000);
			const { deletions, repairs } = await store.counts();
			expect(repairs).toBe(objects.length * 3);
			// Of an object the three shards that were left out, of an intent all 18: exactly, after any number of crashes.
			expect(deletions).toBe(objects.length * 3 + expired * 18);
			await store.close();
			checkFile(path);
		}
	});

	function checkFile(file: string): void {
		const db = new DatabaseSync(file);
		expect(db.prepare('PRAGMA integrity_check').get()).toEqual({ integrity_check: 'ok' });
		expect(db.prepare('PRAGMA foreign_key_check').all()).toEqual([]);
		db.close();
	}

	test('needs no folder for temporary files', () => {
		const db = openMetadataDatabase(path);
		expect(db.prepare('PRAGMA temp_store').get()).toEqual({ temp_store: 2 });
		db.close();
	});

	test('one process owns it, until it dies', { timeout: 30_000 }, async () => {
		const { child, acknowledged, exited } = startWriter('owner');
		await expect.poll(() => acknowledged().length, { timeout: 20_000, interval: 5 }).toBeGreaterThan(0);
		await expect(openSqliteStore({ path })).rejects.toMatchObject({
			kind: 'conflict',
			message: expect.stringContaining(`another orchestrator uses ${path}`),
		});
		child.kill('SIGKILL');
		await exited;
		const store = await openSqliteStore({ path });
		await expect(openSqliteStore({ path })).rejects.toMatchObject({ kind: 'conflict' });
		await store.close();
	});

	test('of a newer release it is refused and left alone', async () => {
		await (await openSqliteStore({ path })).close();
		const db = new DatabaseSync(path);
		db.exec('UPDATE schema_version SET version = 9999');
		db.close();
		for (let count = 0; count < 2; count++) {
			await expect(openSqliteStore({ path })).rejects.toMatchObject({
				kind: 'unsupported',
				message: expect.stringContaining('newer release'),
			});
		}
	});

	test('from before there were worker sets: what is in it is counted, and counting goes on', async () => {
		let store = await openSqliteStore({ path });
		await store.saveWorker(make.worker('worker-1'));
		const uploads = [];
		for (let at = 0; at < 12; at++) {
			const shape = { segments: at % 4, k: 3 + (at % 2), missing: at % 3 === 0 ? [at % 6] : [], sizeBytes: 1_000 + at };
			uploads.push(await make.store(store, workers, shape));
		}
		const marked = uploads.flatMap(({ commit }) =>
			commit.segments.slice(1).flatMap(({ placements }) => placements[2] ?? []),
		);
		await store.addFindings(marked.map((shard) => ({ ...shard, kind: 'missing', detail: '', foundAtMs: NOW_MS })));
		const before = [await reported(store), await store.workers(), await store.counts()];
		await store.close();
		const db = new DatabaseSync(path);
		db.exec(`${WITHOUT_TRASH}
			ALTER TABLE objects DROP COLUMN kind;
			DROP TABLE forgotten_workers; DROP INDEX placements_worker; DROP INDEX intent_shards_worker; DROP INDEX deletions_shard;
			DROP TABLE move; DROP TABLE jobs; DROP TABLE worker_sets; DROP TABLE spreads; DROP INDEX segments_set;
			ALTER TABLE segments DROP COLUMN was;
			ALTER TABLE segments DROP COLUMN set_no;
			ALTER TABLE objects DROP COLUMN spread_no;
			ALTER TABLE workers DROP COLUMN duty;
			ALTER TABLE workers DROP COLUMN history;
			DROP TABLE keys_on_volumes; DROP INDEX placements_generation; DROP INDEX objects_generation;
			ALTER TABLE cluster DROP COLUMN revision;
			ALTER TABLE cluster_keys DROP COLUMN created_at_ms;
			ALTER TABLE cluster_keys DROP COLUMN unused_since_ms;
			ALTER TABLE intents DROP COLUMN began_at_ms;
			ALTER TABLE placements DROP COLUMN key_generation;
			UPDATE schema_version SET version = 2`);
		db.close();
		store = await openSqliteStore({ path });
		expect([await reported(store), await store.workers(), await store.counts()]).toEqual(before);
		await checkRedundancy(store);
		await make.store(store, workers, { segments: 2 });
		for (const { objectId } of uploads.slice(0, 7)) await store.deleteObject(objectId, atOnce());
		await checkRedundancy(store);
		await store.close();
		checkFile(path);
	});

	test('that is none is refused', async () => {
		await writeFile(path, 'x'.repeat(10_000));
		await expect(openSqliteStore({ path })).rejects.toMatchObject({ kind: 'corrupt' });
		await expect(openSqliteStore({ path: join(folder, 'none', 'metadata.db') })).rejects.toMatchObject({
			kind: 'unavailable',
		});
	});

	test('a claim without an intent is free after a restart, one with an intent is not', async () => {
		let store = await openSqliteStore({ path });
		const upload = make.upload(workers);
		const claim = (key: string, uploadId: UploadId) =>
			store.claimIdempotency({ owner: '', key, fingerprint: 'f', uploadId, expiresAtMs: NOW_MS + 9 }, NOW_MS);
		await claim('begun', upload.uploadId);
		await begin(store, upload);
		await claim('lost', make.id<UploadId>());
		await store.close();
		store = await openSqliteStore({ path });
		expect(await claim('begun', make.id<UploadId>())).toEqual({ state: 'running' });
		expect(await claim('lost', make.id<UploadId>())).toEqual({ state: 'claimed' });
		await store.close();
	});

	test('leases end with the process that held them, and their numbers go on', async () => {
		let store = await openSqliteStore({ path });
		const first = await store.acquireLease('repair', { holder: 'a', ttlMs: 3_600_000 });
		await store.close();
		store = await openSqliteStore({ path });
		const second = await store.acquireLease('repair', { holder: 'b', ttlMs: 3_600_000 });
		expect(second?.fencing).toBe((first?.fencing ?? 0) + 1);
		await store.close();
	});

	test('what was being written ends with its process: its intents expire at once', async () => {
		let store = await openSqliteStore({ path });
		const upload = make.upload(workers);
		await store.begin({
			uploadId: upload.uploadId,
			objectId: upload.objectId,
			shards: upload.shards,
			expiresAtMs: NOW_MS * 2,
		});
		expect(await store.expireIntents(NOW_MS, 10)).toBe(0);
		await store.close();
		store = await openSqliteStore({ path });
		expect(await store.expireIntents(NOW_MS, 10)).toBe(1);
		expect(await store.counts()).toMatchObject({ intents: 0, deletions: upload.shards.length });
		await store.close();
	});
});
