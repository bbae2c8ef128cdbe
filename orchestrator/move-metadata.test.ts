/** Moves between a real SQLite file and a real Postgres behind a real PostgREST. */

import { cpSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { ClusterId, ObjectId, UploadId, WorkerId } from '../core/ids.ts';
import { realClock, seededRandom } from '../test/support/clock.ts';
import { startSupabase, type TestSupabase } from '../test/support/supabase.ts';
import { API_KEYS_FILE, openApiKeys, openApiKeysFile } from './api-keys.ts';
import { openSupabaseApiKeys } from './api-keys-supabase.ts';
import { DeletionLog } from './deletions.ts';
import { giveUpMove, moveMetadata } from './move-metadata.ts';
import type { MoveSide } from './move-side.ts';
import { SqliteMoveSide } from './move-sqlite.ts';
import { openSupabaseMoveSide } from './move-supabase.ts';
import { DERIVED_TABLES, LEFT_TABLES, MOVED_TABLES } from './move-tables.ts';
import { atOnce, begin, Fixtures, NOW_MS, type Upload } from './store.fixtures.ts';
import { checkRedundancy } from './store.recount.ts';
import type { MetadataStore } from './store.ts';
import { openSqliteStore } from './store-sqlite.ts';
import { openMetadataDatabase } from './store-sqlite-schema.ts';
import { openSupabaseStore } from './store-supabase.ts';
import type { Fetch } from './store-supabase-rpc.ts';

const world = { clock: realClock, random: seededRandom('move') };
let supabase: TestSupabase;
let folder: string;
let path: string;
let lines: string[];

beforeAll(async () => {
	supabase = await startSupabase();
});
afterAll(() => supabase?.remove());
beforeEach(async () => {
	await supabase.clear();
	folder = mkdtempSync(join(tmpdir(), 'distro-move-'));
	path = join(folder, 'metadata.db');
	lines = [];
});
afterEach(() => rmSync(folder, { recursive: true }));

const address = () => ({ url: supabase.url, key: () => supabase.key });
const openPostgres = () => openSupabaseStore({ ...world, ...address() });

/** Every row as the file has it. */
function dump(file: string): Record<string, unknown[]> {
	const db = new DatabaseSync(file);
	db.prepare('ATTACH ? AS apart').run(join(dirname(file), API_KEYS_FILE));
	try {
		return Object.fromEntries(
			MOVED_TABLES.map(({ name, key }) => {
				const statement = db.prepare(`SELECT * FROM ${name} ORDER BY ${key.join()}`);
				statement.setReadBigInts(true);
				// Numbers of worker sets are each side's own.
				return [name, statement.all().map(({ set_no: _, spread_no: __, ...row }) => row)];
			}),
		);
	} finally {
		db.close();
	}
}

/** Rows of every kind in a new file; some pages of them where `objects` is large. */
async function seed(file: string, objects: number): Promise<Upload[]> {
	const make = new Fixtures('move');
	const store = await openSqliteStore({ path: file });
	await store.pauseJob('repair', true, NOW_MS);
	await store.requestRun('rebalance', NOW_MS + 1);
	await store.saveJobState('rebalance', '{"at": 0.5}', NOW_MS + 2);
	const workers = Array.from({ length: 6 }, (_, at) => ({
		...make.worker(`worker-${at}`),
		zone: at === 0 ? '' : 'zone-ä',
	}));
	for (const worker of workers) await store.saveWorker({ ...worker, bytesUsed: Number.MAX_SAFE_INTEGER });
	const ids = workers.map(({ workerId }) => workerId);
	await store.setDuty(ids[1] as WorkerId, 'draining');
	await store.saveHistory(ids[2] as WorkerId, '1 2 3');
	const wrapped = [1, 2].map((generation) => make.clusterKey(generation, `m${generation}`));
	await store.initCluster({ clusterId: make.id<ClusterId>(), createdAtMs: NOW_MS, revision: 3, keys: wrapped });
	await store.sawKeys(ids.slice(1), 2);
	const uploads: Upload[] = [];
	const put = async (shape: Parameters<Fixtures['upload']>[1]) => {
		uploads.push(await make.store(store, ids, shape));
	};
	for (let at = 0; at < objects; at++) await put({ segments: at % 3 });
	await put({ segments: 3, missing: [0, 5], sizeBytes: Number.MAX_SAFE_INTEGER });
	await put({ sizeBytes: 2 ** 31 + 1, idempotency: { key: 'Ünïcode "quoted"\n', fingerprint: '' } });
	const empty = make.upload(ids, { segments: 0 });
	await store.commit({ ...empty.commit, object: { ...empty.commit.object, sizeBytes: 0, inline: Buffer.alloc(0) } });
	uploads.push({
		...empty,
		commit: { ...empty.commit, object: { ...empty.commit.object, sizeBytes: 0, inline: Buffer.alloc(0) } },
	});
	await make.store(store, ids, { segments: 2, missing: [1], kind: 'snapshot' });
	const gone = await make.store(store, ids, { segments: 2 });
	await store.deleteObject(gone.objectId, atOnce());
	for (const segments of [0, 2]) {
		const trashed = await make.store(store, ids, { segments, missing: [3] });
		await store.deleteObject(trashed.objectId, { nowMs: NOW_MS, purgeAtMs: NOW_MS + 9, by: 'ä' });
	}
	const found = uploads.find(({ commit }) => commit.segments.length > 0) as Upload;
	const [shard] = found.shards as [Upload['shards'][number]];
	await store.addFindings([{ ...shard, kind: 'corrupt', detail: 'row 3: a\0b', foundAtMs: NOW_MS }]);
	const open = make.upload(ids, { segments: 2 });
	await begin(store, open, NOW_MS + 5);
	for (const owner of ['', 'a', 'B', 'ä']) {
		const claim = { owner, key: '', fingerprint: 'f', uploadId: open.uploadId, expiresAtMs: NOW_MS + 7 };
		await store.claimIdempotency(claim, NOW_MS);
	}
	const formerly = make.worker('formerly');
	await store.saveWorker(formerly);
	await store.forgetWorker(formerly.workerId, NOW_MS);
	await store.close();
	// Opened by an orchestrator it ends what was under way: done once here, later openings change nothing.
	await (await openSqliteStore({ path: file })).close();
	const keys = openApiKeys({ dataDir: dirname(file), clock: realClock });
	for (const scope of ['read', 'admin'] as const) {
		const keyId = make.bytes(8).toString('hex');
		await keys.addApiKey({ keyId, secretHash: make.bytes(32), scope, label: `für ${scope}`, createdAtMs: NOW_MS });
	}
	await keys.close();
	return uploads;
}

type Faults = (call: string) => Promise<void>;

/** The two sides of a direction; `before` hears of every call that changes something, `after` when it took effect. */
async function move(
	to: 'sqlite' | 'supabase',
	options: { replace?: boolean; giveUp?: boolean; file?: string; fetch?: Fetch; before?: Faults; after?: Faults } = {},
) {
	const sqlite = new SqliteMoveSide(options.file ?? path);
	const postgres = await openSupabaseMoveSide(address(), {
		random: world.random,
		retryMaxMs: 5,
		...(options.fetch === undefined ? {} : { fetch: options.fetch }),
	});
	const [from, target] = to === 'sqlite' ? [postgres, sqlite] : [sqlite, postgres];
	const deps = { ...world, from: watched(from, 'from', options), to: watched(target, 'to', options) };
	const say = (line: string) => lines.push(line);
	try {
		if (options.giveUp === true) await giveUpMove({ ...deps, say });
		else return await moveMetadata({ ...deps, say }, { replace: options.replace === true });
	} finally {
		await sqlite.close();
	}
}

function watched(side: MoveSide, name: string, { before, after }: { before?: Faults; after?: Faults }): MoveSide {
	const changing = ['setMark', 'write', 'clear', 'renumber'];
	return new Proxy(side, {
		get: (target, property) => {
			const value = Reflect.get(target, property, target);
			if (typeof value !== 'function') return value;
			if (!changing.includes(String(property))) return value.bind(target);
			return async (...args: unknown[]) => {
				await before?.(`${name}.${String(property)}`);
				const result = await value.apply(target, args);
				await after?.(`${name}.${String(property)}`);
				return result;
			};
		},
	});
}

async function isOpen(open: () => Promise<{ close(): unknown }>): Promise<boolean> {
	try {
		await (await open()).close();
		return true;
	} catch (error) {
		expect(error).toMatchObject({ kind: 'conflict', message: expect.stringMatching(/mov/) });
		return false;
	}
}
const sqliteIsOpen = () => isOpen(async () => openMetadataDatabase(path));
const postgresIsOpen = () => isOpen(openPostgres);

/** All that an orchestrator can read. */
async function contents(store: MetadataStore, uploads: readonly Upload[]) {
	const objects = await Promise.all(
		uploads.map(({ objectId }) => store.objectWithSegments(objectId, { fromSegment: 0, limit: 1_000 })),
	);
	const findings = await Promise.all(uploads.map(({ versionId }) => store.findings(versionId)));
	const workers = await store.workers();
	return {
		objects,
		findings,
		workers,
		redundancy: await checkRedundancy(store),
		jobs: await store.jobs(),
		counts: await store.counts(),
		intents: await store.intents(1_000),
		repairs: await store.repairs({ nowMs: NOW_MS * 2, limit: 1_000 }),
		trash: await store.trash({ limit: 100, after: null }),
		log: await store.deletionLog({ limit: 100, after: 0 }),
		verdict: await new DeletionLog(store).verify(),
		deletions: await Promise.all(workers.map(({ workerId }) => store.deletions(workerId, 1_000))),
		cluster: await store.cluster(),
		keysOnVolumes: await store.keysOnVolumes(),
		keyUse: await store.keyUse(1_000),
	};
}

describe('what is moved', () => {
	const described = (columns: (table: (typeof MOVED_TABLES)[number]) => string[]) =>
		Object.fromEntries(MOVED_TABLES.map((table) => [table.name, columns(table).sort()]));
	const kept = (name: string) => !(name in LEFT_TABLES) && !DERIVED_TABLES.includes(name);

	test('every table and column that SQLite has is named, and of that type', () => {
		const types = { id: 'TEXT', text: 'TEXT', prose: 'TEXT', integer: 'INTEGER', flag: 'INTEGER', bytes: 'BLOB' };
		const schema = [openMetadataDatabase(':memory:'), openApiKeysFile(':memory:')].flatMap((db) => {
			const tables = db.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'");
			const names = tables.all().map(({ name }) => String(name));
			const all = names.filter(kept).map((name) => {
				const columns = db.prepare(`SELECT name || ' ' || type AS text FROM pragma_table_info('${name}')`).all();
				return [name, columns.map(({ text }) => String(text)).sort()];
			});
			db.close();
			return all;
		});
		expect(Object.fromEntries(schema)).toEqual(
			described(({ columns, constant = [], onlySqlite = [] }) => [
				...Object.entries(columns).map(([name, type]) => `${name} ${types[type]}`),
				...[...constant, ...onlySqlite].map((name) => `${name} INTEGER`),
			]),
		);
	});

	test('every table and column that Postgres has is named, and of that type', async () => {
		const types: Record<string, string> = {
			uuid: 'id',
			text: 'text',
			bigint: 'integer',
			integer: 'integer',
			bytea: 'bytes',
			boolean: 'flag',
		};
		const rows = await supabase.sql<{ table: string; column: string; type: string; numbered: boolean }[]>`
			SELECT table_name AS table, column_name AS column, data_type AS type, is_identity = 'YES' AS numbered
				FROM information_schema.columns WHERE table_schema = 'distro'`;
		const schema: Record<string, string[]> = {};
		for (const { table, column, type, numbered } of rows) {
			if (!kept(table)) continue;
			schema[table] ??= [];
			const { onlySupabase = {} } = MOVED_TABLES.find(({ name }) => name === table) ?? {};
			const about = column in onlySupabase ? 'only here' : (types[type] ?? type);
			schema[table].push(`${column} ${about}${numbered ? ' numbered' : ''}`);
		}
		for (const columns of Object.values(schema)) columns.sort();
		expect(schema).toEqual(
			described(({ columns, constant = [], onlySupabase = {}, numbered }) => [
				...Object.entries(columns).map(
					([name, type]) => `${name} ${type === 'prose' ? 'text' : type}${name === numbered ? ' numbered' : ''}`,
				),
				...constant.map((name) => `${name} flag`),
				...Object.keys(onlySupabase).map((name) => `${name} only here`),
			]),
		);
	});

	test('the keys are unique in both', async () => {
		const db = openMetadataDatabase(':memory:');
		const apart = openApiKeysFile(':memory:');
		for (const { name, key, constant, file } of MOVED_TABLES) {
			if (constant !== undefined) continue;
			const info = (file === undefined ? db : apart)
				.prepare(`SELECT name FROM pragma_table_info('${name}') WHERE pk > 0 ORDER BY pk`)
				.all();
			expect(
				info.map((column) => column.name),
				name,
			).toEqual(key);
			const columns = await supabase.sql<{ name: string }[]>`
				SELECT attname AS name FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)
					WHERE indrelid = ${`distro.${name}`}::regclass AND indisprimary ORDER BY array_position(indkey, attnum)`;
			expect(
				columns.map((column) => column.name),
				name,
			).toEqual(key);
		}
		db.close();
	});
});

describe('there and back', () => {
	test('every row, by pages, is the same afterwards, and numbers go on', { timeout: 120_000 }, async () => {
		const uploads = await seed(path, 400);
		const before = dump(path);
		expect(Object.entries(before).filter(([, rows]) => rows.length === 0)).toEqual([]);
		const { moved, rows } = (await move('supabase')) as Awaited<ReturnType<typeof moveMetadata>>;
		expect(moved).toBe('now');
		expect(Object.fromEntries(rows)).toEqual(
			Object.fromEntries(Object.entries(before).map(([name, all]) => [name, all.length])),
		);
		expect(rows.get('placements')).toBeGreaterThan(2_000);
		expect(lines.join('\n')).toMatch(/copied placements: 2,\d\d\d rows, [\d,]+ rows\/s\n/);
		expect(lines.join('\n')).toMatch(/compared placements: 2,\d\d\d rows/);
		expect([await sqliteIsOpen(), await postgresIsOpen()]).toEqual([false, true]);
		expect(await move('supabase')).toMatchObject({ moved: 'before' });

		// Read through the other adapter, and through none.
		const store = await openPostgres();
		const there = await contents(store, uploads);
		expect(there.objects).toEqual(uploads.map(({ commit: { object, segments } }) => ({ object, segments })));
		expect(there.counts.objects).toBe(uploads.length);
		const [exact] =
			await supabase.sql`SELECT sum(size_bytes)::text AS sum, (SELECT sum(bytes + trash_bytes)::text FROM distro.totals) AS total
			FROM distro.objects WHERE kind = 'user'`;
		expect(exact?.total).toBe(exact?.sum);
		expect(BigInt(exact?.sum as string)).toBeGreaterThan(2n ** 53n);

		const keys = openApiKeys({ dataDir: folder, clock: realClock });
		const shared = await openSupabaseApiKeys({ ...world, ...address() });
		expect(await shared.apiKeys()).toEqual(await keys.apiKeys());
		await Promise.all([keys.close(), shared.close()]);

		const second = join(folder, 'second', 'metadata.db');
		await store.close();
		await move('sqlite', { file: second });
		expect([await postgresIsOpen(), await isOpen(async () => openMetadataDatabase(second))]).toEqual([false, true]);
		const after = dump(second);
		// Nothing but what Postgres can't hold.
		const text = (rowsOf: unknown) =>
			JSON.stringify(rowsOf, (_, value) => (typeof value === 'bigint' ? `${value}` : value));
		expect(text(after)).toBe(text(before).replaceAll('a\\u0000b', 'ab'));
		expect(text(before)).toContain('a\\u0000b');

		const again = await openSqliteStore({ path: second });
		expect(await contents(again, uploads)).toEqual(there);
		await again.close();
	});

	test('new rows get new numbers on both sides', async () => {
		const make = new Fixtures('numbers');
		const workers = Array.from({ length: 6 }, () => make.id<WorkerId>());
		await seed(path, 3);
		await move('supabase');
		const postgres = await openPostgres();
		const upload = await make.store(postgres, workers, { missing: [1] });
		await postgres.deleteObject((await make.store(postgres, workers)).objectId, atOnce());
		expect(await postgres.object(upload.objectId)).toEqual(upload.commit.object);
		await postgres.close();
		await move('sqlite', { replace: true });
		const sqlite = await openSqliteStore({ path });
		expect(await sqlite.object(upload.objectId)).toEqual(upload.commit.object);
		const last = await make.store(sqlite, workers, { missing: [2] });
		expect(await sqlite.object(last.objectId)).toEqual(last.commit.object);
		await sqlite.close();
	});

	test('a claim whose request is gone is free after the move, one with an intent is not', async () => {
		await seed(path, 0);
		const make = new Fixtures('claims');
		const db = new DatabaseSync(path);
		db.prepare("INSERT INTO idempotency VALUES ('o', 'lost', 'f', ?, ?, NULL)").run(make.id(), NOW_MS * 2);
		db.close();
		await move('supabase');
		const store = await openPostgres();
		const claim = (owner: string, key: string) =>
			store.claimIdempotency(
				{ owner, key, fingerprint: 'f', uploadId: make.id<UploadId>(), expiresAtMs: NOW_MS * 2 },
				NOW_MS,
			);
		expect(await claim('o', 'lost')).toEqual({ state: 'claimed' });
		expect(await claim('a', '')).toEqual({ state: 'running' });
		await store.close();
	});
});

describe('interrupted', () => {
	const KILLED = new Error('killed');

	/** Runs until change number `at` took effect, counted from 0. Whether there was such a change. */
	async function stopped(to: 'sqlite' | 'supabase', at: number): Promise<boolean> {
		let left = at;
		const stop: Faults = async () => {
			if (left-- === 0) throw KILLED;
		};
		try {
			await move(to, { replace: to === 'sqlite', after: stop });
			return false;
		} catch (error) {
			if (error !== KILLED) throw error;
			return true;
		}
	}

	async function openAndFilled(): Promise<('sqlite' | 'supabase')[]> {
		const open: ('sqlite' | 'supabase')[] = [];
		const [{ filled }] = (await supabase.sql`SELECT exists (SELECT FROM distro.cluster) AS filled`) as unknown as [
			{ filled: boolean },
		];
		if (await sqliteIsOpen()) open.push('sqlite');
		if (filled && (await postgresIsOpen())) open.push('supabase');
		return open;
	}

	test('after any change it goes on, loses nothing, and never are both sides open', {
		timeout: 300_000,
	}, async () => {
		const uploads = await seed(path, 12);
		const template = join(folder, 'template.db');
		cpSync(path, template);
		const reset = { sqlite: async () => {}, supabase: () => supabase.clear() };
		const start = async (to: 'sqlite' | 'supabase') => {
			await reset[to]();
			for (const suffix of ['', '-wal', '-shm']) rmSync(`${path}${suffix}`, { force: true });
			cpSync(template, path);
			await supabase.sql`DELETE FROM distro.move`;
		};
		const expected = await (async () => {
			const store = await openSqliteStore({ path });
			const all = await contents(store, uploads);
			await store.close();
			return { ...all, findings: all.findings.flat().length };
		})();
		for (const to of ['supabase', 'sqlite'] as const) {
			let stops = 0;
			for (let at = 0; ; at++) {
				await start(to);
				if (!(await stopped(to, at))) break;
				stops++;
				expect((await openAndFilled()).length, `${to} ${at}`).toBeLessThan(2);
				await move(to, { replace: to === 'sqlite' });
				expect(await openAndFilled()).toEqual([to]);
				const store = to === 'sqlite' ? await openSqliteStore({ path }) : await openPostgres();
				const all = await contents(store, uploads);
				await store.close();
				expect({ ...all, findings: all.findings.flat().length }).toEqual(expected);
			}
			expect(stops).toBeGreaterThan(15);
			// The way back begins with a file that was moved away.
			if (to === 'supabase') {
				await start('supabase');
				await move('supabase');
				cpSync(path, template);
			}
		}
	});

	test('answers that get lost change nothing', { timeout: 60_000 }, async () => {
		const uploads = await seed(path, 12);
		const was = dump(path);
		let lost = 0;
		const lossy = (): Fetch => {
			let count = 0;
			return async (input, init) => {
				const response = await fetch(input, init);
				if (count++ % 3 !== 2) return response;
				await response.arrayBuffer();
				lost++;
				throw new TypeError('fetch failed', { cause: Object.assign(new Error(), { code: 'UND_ERR_SOCKET' }) });
			};
		};
		await move('supabase', { fetch: lossy() });
		await move('sqlite', { fetch: lossy(), replace: true });
		expect(lost).toBeGreaterThan(20);
		expect({ ...dump(path), findings: 1 }).toEqual({ ...was, findings: 1 });
		expect(uploads.length).toBeGreaterThan(12);
	});

	test('given up, wherever it was: the source is as it was, the target empty', { timeout: 60_000 }, async () => {
		await seed(path, 5);
		const was = dump(path);
		for (const at of [1, 2, 5, 9]) {
			expect(await stopped('supabase', at)).toBe(true);
			await move('supabase', { giveUp: true });
			expect(dump(path)).toEqual(was);
			expect(await sqliteIsOpen()).toBe(true);
			for (const { name } of MOVED_TABLES) {
				expect(await supabase.sql.unsafe(`SELECT FROM distro.${name}`), name).toHaveLength(0);
			}
			const [totals] =
				await supabase.sql`SELECT sum(objects)::int AS objects, sum(bytes)::text AS bytes FROM distro.totals`;
			expect(totals).toEqual({ objects: 0, bytes: '0' });
		}
		// Giving up itself is stopped on the way.
		await stopped('supabase', 9);
		let left = 4;
		const stop: Faults = async () => {
			if (left-- === 0) throw KILLED;
		};
		await expect(move('supabase', { giveUp: true, after: stop })).rejects.toBe(KILLED);
		expect(await openAndFilled()).toEqual([]);
		await move('supabase', { giveUp: true });
		expect(await openAndFilled()).toEqual(['sqlite']);
		await expect(move('supabase', { giveUp: true })).rejects.toMatchObject({ kind: 'conflict' });
		await move('supabase');
		expect(await openAndFilled()).toEqual(['supabase']);
	});
});

describe('a copy that is not like its source', () => {
	test.each([
		['a value', `UPDATE distro.segments SET because = because || ' ' WHERE object_no = 2`, /segments .*differs/],
		['a missing row', `DELETE FROM distro.intent_shards WHERE ctid = '(0,1)'`, /intent_shards .*is missing/],
		[
			'a row too many',
			`INSERT INTO distro.cluster_keys VALUES (9, 'm', '', 1)`,
			/cluster_keys has 2 rows in the source and 3 in the target/,
		],
		['a count', 'UPDATE distro.totals SET bytes = bytes + 1 WHERE slot = 0', /the count of bytes is \d+/],
		[
			'a worker set',
			'UPDATE distro.worker_sets SET segments = segments + 1',
			/the count of segments on worker sets is \d+/,
		],
	])('%s: it is not opened', async (_, change, sentence) => {
		await seed(path, 6);
		const spoil: Faults = async (call) => {
			if (call === 'to.renumber') await supabase.sql.unsafe(change);
		};
		await expect(move('supabase', { before: spoil })).rejects.toMatchObject({
			kind: 'corrupt',
			message: expect.stringMatching(sentence),
		});
		expect([await sqliteIsOpen(), await postgresIsOpen()]).toEqual([false, false]);
		// Again: it is not forgotten.
		await expect(move('supabase')).rejects.toMatchObject({ kind: 'corrupt' });
		await move('supabase', { giveUp: true });
		await supabase.clear();
		await move('supabase');
		expect([await sqliteIsOpen(), await postgresIsOpen()]).toEqual([false, true]);
	});
});

describe('refused, and nothing is changed', () => {
	const refusal = async (to: 'sqlite' | 'supabase', options: Parameters<typeof move>[1] = {}) => {
		const state = async () => ({
			marks: await supabase.sql`SELECT * FROM distro.move`,
			files: existsSync(path),
			objects: (await supabase.sql`SELECT FROM distro.objects`).length,
		});
		const before = await state();
		const error = await move(to, options).then(
			() => null,
			(thrown: unknown) => thrown as Error,
		);
		expect(await state()).toEqual(before);
		expect(error).toMatchObject({ name: 'DistroError' });
		return (error as Error).message;
	};

	test('there is nothing to move', async () => {
		expect(await refusal('supabase')).toBe(`there is no metadata in SQLite (${path}): nothing to move`);
		expect(await refusal('sqlite')).toMatch(/^there is no metadata in Supabase \(127\.0\.0\.1:\d+\): nothing to move$/);
		expect(existsSync(path)).toBe(false);
	});

	test('the source is in use', async () => {
		await seed(path, 1);
		const sqlite = await openSqliteStore({ path });
		expect(await refusal('supabase')).toContain(`another orchestrator uses ${path}`);
		await sqlite.close();
		expect(await sqliteIsOpen()).toBe(true);

		await move('supabase');
		const store = await openPostgres();
		const lease = await store.acquireLease('repair', { holder: 'one', ttlMs: 60_000 });
		expect(await refusal('sqlite', { replace: true })).toMatch(/is in use: an orchestrator holds repair\. Stop every/);
		if (lease !== null) await store.releaseLease(lease);
		await store.close();
		await move('sqlite', { replace: true });
	});

	test('the lease was taken just before the source is marked', async () => {
		await seed(path, 1);
		await move('supabase');
		const store = await openPostgres();
		const take: Faults = async (call) => {
			if (call === 'from.setMark') await store.acquireLease('repair', { holder: 'one', ttlMs: 60_000 });
		};
		expect(await refusal('sqlite', { replace: true, before: take })).toMatch(/is in use/);
		await store.close();
	});

	test('the target has metadata', async () => {
		await seed(path, 1);
		const other = await openPostgres();
		const make = new Fixtures('other');
		await other.initCluster({ clusterId: make.id<ClusterId>(), createdAtMs: NOW_MS, revision: 1, keys: [] });
		await other.close();
		for (const replace of [false, true]) {
			expect(await refusal('supabase', { replace })).toMatch(/is not empty \(cluster\) and no half-finished copy/);
			expect(await sqliteIsOpen()).toBe(true);
		}
	});

	test('the target gets metadata just before it is marked', async () => {
		await seed(path, 1);
		const make = new Fixtures('other');
		const fill: Faults = async (call) => {
			if (call !== 'to.setMark') return;
			const other = await openPostgres();
			await other.initCluster({ clusterId: make.id<ClusterId>(), createdAtMs: NOW_MS, revision: 1, keys: [] });
			await other.close();
		};
		expect(await refusal('supabase', { before: fill })).toMatch(/is not empty \(cluster\)/);
		expect([await sqliteIsOpen(), await postgresIsOpen()]).toEqual([true, true]);
	});

	test('the target is half-moved from elsewhere, or old', async () => {
		await seed(path, 2);
		const copy = join(folder, 'copy', 'metadata.db');
		cpSync(path, copy);
		const stop: Faults = async (call) => {
			if (call === 'to.renumber') throw new Error('stop');
		};
		await expect(move('supabase', { before: stop })).rejects.toThrow('stop');
		expect(await refusal('supabase', { file: copy })).toMatch(
			/is half-moved from SQLite .*To replace what is there, add --replace/,
		);
		expect(await refusal('sqlite', { file: copy })).toMatch(/is half-moved from SQLite/);
		expect(await isOpen(async () => openMetadataDatabase(copy))).toBe(true);
		await move('supabase');
		// What was moved away is no source, and as a target it is replaced only when that was asked for.
		await supabase.sql`DELETE FROM distro.cluster`;
		expect(await refusal('supabase')).toMatch(/was moved to Supabase .* what is here is old/);
		await supabase.sql`INSERT INTO distro.cluster (cluster_id, created_at_ms) VALUES (gen_random_uuid(), 1)`;
		expect(await refusal('sqlite', { replace: true })).toMatch(/was moved to Supabase/);
	});

	test('without --replace the old copy is left alone', async () => {
		await seed(path, 2);
		await move('supabase');
		const was = dump(path);
		expect(await refusal('sqlite')).toMatch(/add --replace/);
		expect(dump(path)).toEqual(was);
		expect(await postgresIsOpen()).toBe(true);
	});

	test('an orchestrator that was forgotten: its writes are refused as unavailable, with the reason', async () => {
		await seed(path, 1);
		await move('supabase');
		const store = await openPostgres();
		const make = new Fixtures('forgotten');
		await move('sqlite', { replace: true });
		const error = await store.acquireLease('repair', { holder: 'x', ttlMs: 1_000 }).catch((thrown: unknown) => thrown);
		expect(error).toMatchObject({ kind: 'unavailable', retryAfterMs: expect.any(Number) });
		expect((error as Error).cause).toMatchObject({ message: expect.stringContaining('moved away') });
		await expect(store.deleteObject(make.id<ObjectId>(), atOnce())).rejects.toMatchObject({ kind: 'unavailable' });
		await store.close();
	});

	test('text that Postgres does not hold: which row', async () => {
		await seed(path, 1);
		const db = new DatabaseSync(path);
		db.prepare("UPDATE workers SET address = ? WHERE name = 'worker-3'").run('a\0b');
		db.close();
		await expect(move('supabase')).rejects.toMatchObject({
			kind: 'invalid',
			message: expect.stringMatching(/cannot be stored: workers .*worker-3/),
		});
	});
});
