import { readdirSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { inspect } from 'node:util';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { DistroError } from '../core/errors.ts';
import type { UploadId, WorkerId } from '../core/ids.ts';
import { migrate } from '../hack/migrate.ts';

import { realClock, seededRandom } from '../test/support/clock.ts';
import { type FaultyFetch, faultyFetch } from '../test/support/faulty-fetch.ts';
import { migrateBefore, startSupabase, type TestSupabase } from '../test/support/supabase.ts';
import { describeMetadataStore } from './store.contract.ts';
import { atOnce, begin, Fixtures, NOW_MS, type Upload } from './store.fixtures.ts';
import { compareHistories } from './store.histories.ts';
import { checkRedundancy } from './store.recount.ts';
import type { MetadataStore } from './store.ts';
import { openSupabaseStore } from './store-supabase.ts';
import * as rows from './store-supabase-rows.ts';
import { SCHEMA_VERSION } from './store-supabase-schema.ts';

const world = { clock: realClock, random: seededRandom('supabase') };
let supabase: TestSupabase;
beforeAll(async () => {
	supabase = await startSupabase();
});
afterAll(() => supabase?.remove());

describeMetadataStore('supabase', async () => {
	await supabase.clear();
	const open = () => openSupabaseStore({ ...world, url: supabase.url, key: () => supabase.key });
	let store = await open();
	return {
		store,
		reopen: async () => {
			await store.close();
			store = await open();
			return store;
		},
		dispose: () => store.close(),
	};
});

describe('batches', () => {
	const make = new Fixtures('batches');
	const workers = Array.from({ length: 6 }, () => make.id<WorkerId>());
	let net: FaultyFetch;
	let store: MetadataStore;
	beforeEach(async () => {
		await supabase.clear();
		net = faultyFetch();
		store = await openSupabaseStore({ ...world, url: supabase.url, key: () => supabase.key, fetch: net.fetch });
		net.takeCount();
	});
	afterEach(() => store.close());

	test('one request carries many calls', async () => {
		const uploads = Array.from({ length: 200 }, () => make.upload(workers));
		await Promise.all(uploads.map((upload) => begin(store, upload)));
		expect(net.takeCount()).toBeLessThanOrEqual(8);
		await Promise.all(uploads.map(({ commit }) => store.commit(commit)));
		expect(net.takeCount()).toBeLessThanOrEqual(8);
		const read = await Promise.all(uploads.map(({ objectId }) => store.object(objectId)));
		expect(read).toEqual(uploads.map(({ commit }) => commit.object));
		expect(net.takeCount()).toBeLessThanOrEqual(8);
	});

	test('a batch that Postgres cannot even read harms nobody but the call at fault', async () => {
		const good = Array.from({ length: 5 }, () => make.upload(workers));
		const bad = make.upload(workers);
		const calls = [...good, { ...bad, shards: [{ shardId: '\0' as never, workerId: workers[0] as WorkerId }] }];
		const results = await Promise.allSettled(calls.map((upload) => begin(store, upload)));
		expect(results.map(({ status }) => status)).toEqual([...good.map(() => 'fulfilled'), 'rejected']);
		expect((await store.counts()).intents).toBe(5);
	});

	test('text that Postgres does not hold is refused or made readable', async () => {
		const upload = make.upload(workers, { missing: [1] });
		await begin(store, upload);
		const claim = { owner: '', key: 'a\0b', fingerprint: '', uploadId: upload.uploadId, expiresAtMs: NOW_MS + 1 };
		await expect(store.claimIdempotency(claim, NOW_MS)).rejects.toMatchObject({ kind: 'invalid' });
		const segments = upload.commit.segments.map((segment) => ({ ...segment, because: 'a\0b\ud800' }));
		await store.commit({ ...upload.commit, segments });
		const [shard] = upload.shards as [(typeof upload.shards)[number]];
		await store.addFindings([{ ...shard, kind: 'corrupt', detail: '\0\udc00', foundAtMs: NOW_MS }]);
		expect((await store.segments(upload.versionId, { fromSegment: 0, limit: 1 }))[0]?.because).toBe('ab\ufffd');
		expect((await store.findings(upload.versionId))[0]?.detail).toBe('\ufffd');
	});

	test('an object of 2,000 segments is written and read whole', { timeout: 60_000 }, async () => {
		const upload = make.upload(workers, { segments: 2_000, sizeBytes: 2_000 * 2 ** 26 });
		await begin(store, { ...upload, shards: [] });
		for (let at = 0; at < upload.shards.length; at += 600) {
			await store.extend(upload.uploadId, upload.shards.slice(at, at + 600));
		}
		await store.commit(upload.commit);
		const read = await store.objectWithSegments(upload.objectId, { fromSegment: 0, limit: 2_000 });
		expect(read).toEqual({ object: upload.commit.object, segments: upload.commit.segments });
		expect(await store.deleteObject(upload.objectId, atOnce())).toBe(true);
		expect((await store.counts()).deletions).toBe(12_000);
	});

	test('sets that are not those of the placements are refused', async () => {
		const upload = make.upload(workers, { segments: 2 });
		await begin(store, upload);
		const { sets, ...args } = rows.commitArgs(upload.commit);
		const [[k, n, , segments, bytes]] = sets as [(typeof sets)[number]];
		const wrong = [[k, n, `{${workers.slice(1)}}`, segments, bytes]];
		const calls = supabase.sql.json([{ method: 'commit', args: JSON.parse(JSON.stringify({ ...args, sets: wrong })) }]);
		const [answer] = await supabase.sql`SELECT public.distro_write(${calls}) -> 0 -> 'error' ->> 'message' AS word`;
		expect(answer?.word).toBe('wrong_sets');
		await store.commit(upload.commit);
		await checkRedundancy(store);
	});

	test('spreads of very many, each once, by pages that are not too long', async () => {
		const missing = [[], [0], [1], [2], [3], [4], [5]];
		await Promise.all(missing.map((indexes) => make.store(store, workers, { missing: indexes })));
		const { sets } = await store.redundancyRows();
		await supabase.sql`
			INSERT INTO distro.spreads (spread_id, slot, sets, objects, object_bytes)
				SELECT gen_random_uuid(), 1 + at % 2, array_fill(${sets[0]?.setId as string}::uuid, ARRAY[1 + at % 40]), 1, at
					FROM generate_series(1, 12000) at`;
		await supabase.sql`UPDATE distro.totals SET objects = objects + 12000, bytes = bytes + 72006000 WHERE slot = 0`;
		net.takeCount();
		const found = await store.redundancyRows();
		expect(net.takeCount()).toBeGreaterThanOrEqual(5);
		expect(found.sets).toHaveLength(7);
		expect(found.spreads.map(({ bytes }) => bytes).toSorted((a, b) => a - b)).toEqual(
			[...Array.from({ length: 12_000 }, (_, at) => at + 1), ...missing.map(() => 65_536)].toSorted((a, b) => a - b),
		);
	});

	test('a claim whose request is gone is free after ten minutes, one with an intent is not', async () => {
		const upload = make.upload(workers);
		const claim = (key: string, uploadId: UploadId, nowMs: number) =>
			store.claimIdempotency({ owner: '', key, fingerprint: 'f', uploadId, expiresAtMs: NOW_MS * 2 }, nowMs);
		await claim('begun', upload.uploadId, NOW_MS);
		await claim('lost', make.id<UploadId>(), NOW_MS);
		await begin(store, upload);
		expect(await claim('lost', make.id<UploadId>(), NOW_MS + 599_999)).toEqual({ state: 'running' });
		expect(await claim('lost', make.id<UploadId>(), NOW_MS + 600_000)).toEqual({ state: 'claimed' });
		expect(await claim('begun', make.id<UploadId>(), NOW_MS + 600_000)).toEqual({ state: 'running' });
	});
});

test('random histories: Supabase answers as the reference does', { timeout: 120_000 }, async () => {
	const open = async () => {
		await supabase.clear();
		const store = await openSupabaseStore({ ...world, url: supabase.url, key: () => supabase.key });
		const check = async () => {
			const [wrong] = await supabase.sql`
				SELECT (SELECT count(*)::int FROM distro.placements JOIN distro.deletions USING (shard_id)) AS placed_and_deleted,
					(SELECT count(*)::int FROM distro.findings
						WHERE shard_id NOT IN (SELECT shard_id FROM distro.placements)) AS findings,
					(SELECT count(*)::int FROM distro.intent_shards
						WHERE upload_id NOT IN (SELECT upload_id FROM distro.intents)) AS named,
					(SELECT count(*)::int FROM distro.repairs r JOIN distro.segments s USING (object_no, segment)
						WHERE spares <> n - k - (SELECT count(*) FROM distro.repairs
							WHERE object_no = r.object_no AND segment = r.segment)) AS spares,
					(SELECT count(*) FROM distro.objects) - (SELECT sum(objects + trash_objects) FROM distro.totals) AS objects,
					(SELECT count(*) FROM distro.objects WHERE purge_at_ms IS NOT NULL)
						- (SELECT sum(trash_objects) FROM distro.totals) AS trash,
					(SELECT count(*) FROM distro.deletion_notes) AS notes,
					(SELECT count(*) FROM distro.deletions) - (SELECT sum(deletions) FROM distro.totals) AS deletions,
					(SELECT count(*) FROM (SELECT FROM distro.worker_sets GROUP BY set_id HAVING sum(segments) < 0) s) AS sets,
					(SELECT count(*) FROM (SELECT FROM distro.spreads GROUP BY spread_id HAVING sum(objects) < 0) s) AS spreads`;
			expect(Object.values(wrong ?? {}).map(Number)).toEqual(Array(10).fill(0));
		};
		return { store, check };
	};
	await compareHistories(open, { runs: 12 });
});

describe('who may do what', () => {
	const request = (path: string, key: string | null, body: object | null = null) =>
		fetch(`${supabase.url}/${path}`, {
			method: body === null ? 'GET' : 'POST',
			headers: { 'content-type': 'application/json', ...(key === null ? {} : { authorization: `Bearer ${key}` }) },
			...(body === null ? {} : { body: JSON.stringify(body) }),
		});

	test.each(['distro_write', 'distro_write_long', 'distro_read', 'distro_move', 'distro_schema'])(
		'%s is for the service role only',
		async (name) => {
			const bodies = { distro_schema: {}, distro_move: { call: { action: 'totals' } } };
			const body = bodies[name as keyof typeof bodies] ?? { calls: [] };
			expect((await request(`rpc/${name}`, supabase.key, body)).status).toBe(200);
			expect((await request(`rpc/${name}`, supabase.anonKey, body)).ok).toBe(false);
			expect((await request(`rpc/${name}`, null, body)).ok).toBe(false);
		},
	);

	test('tables are not exposed, have row-level security and no policies; inner functions are closed', async () => {
		for (const key of [supabase.key, supabase.anonKey]) {
			expect((await request('objects', key)).status).toBeGreaterThanOrEqual(400);
			expect((await request('rpc/commit_upload', key, { args: {} })).status).toBe(404);
		}
		const open = await supabase.sql`
			SELECT relname FROM pg_class WHERE relnamespace = 'distro'::regnamespace AND relkind = 'r' AND NOT relrowsecurity`;
		expect(open).toHaveLength(0);
		expect(await supabase.sql`SELECT FROM pg_policies WHERE schemaname = 'distro'`).toHaveLength(0);
		const callable = await supabase.sql`
			SELECT proname FROM pg_proc WHERE (pronamespace = 'distro'::regnamespace OR proname LIKE 'distro%')
				AND (has_function_privilege('anon', oid, 'EXECUTE') OR has_function_privilege('authenticated', oid, 'EXECUTE'))`;
		expect(callable).toHaveLength(0);
		const reachable = await supabase.sql`
			SELECT relname FROM pg_class WHERE relnamespace = 'distro'::regnamespace AND relkind = 'r'
				AND (has_table_privilege('anon', oid, 'SELECT') OR has_table_privilege('authenticated', oid, 'SELECT'))`;
		expect(reachable).toHaveLength(0);
	});
});

describe('opening says in one sentence what is wrong, never the key', () => {
	const refusal = async (options: { url?: string; key?: string }): Promise<DistroError> => {
		const key = options.key ?? supabase.key;
		const error = await openSupabaseStore({ ...world, url: options.url ?? supabase.url, key: () => key }).then(
			() => null,
			(thrown: unknown) => thrown as DistroError,
		);
		expect(error).toBeInstanceOf(DistroError);
		const { kind, message } = error as DistroError;
		expect(message).not.toContain('\n');
		expect(`${message} ${(error as DistroError).stack}`).not.toContain(key);
		return { kind, message } as DistroError;
	};

	test.each([
		[
			'a key of another project',
			'eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.x0Vd5gQyJPZ8xgV2Gr2Yl1yq',
			/wrong/,
		],
		['a new-style key that is not one', 'sb_secret_0123456789abcdefghij', /wrong/],
		['an anonymous key', 'anon', /service-role/],
	])('%s', async (_, given, sentence) => {
		const key = given === 'anon' ? supabase.anonKey : given;
		expect(await refusal({ key })).toMatchObject({ kind: 'denied', message: expect.stringMatching(sentence) });
	});

	test.each(['', 'two words', 'line\nbreak', 'ключ'])('a key that is none: %j', async (key) => {
		const error = await openSupabaseStore({ ...world, url: supabase.url, key: () => key }).catch(
			(thrown: unknown) => thrown,
		);
		expect(error).toMatchObject({ kind: 'invalid', message: expect.stringContaining('SUPABASE_KEY') });
		if (key !== '') expect((error as Error).message).not.toContain(key);
	});

	test.each(['', 'db.example', 'ftp://127.0.0.1'])('an address that is none: %j', async (url) => {
		expect(await refusal({ url })).toMatchObject({ kind: 'invalid', message: expect.stringContaining('SUPABASE_URL') });
	});

	test('nobody at the address', async () => {
		const server = createServer();
		await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
		const { port } = server.address() as AddressInfo;
		await new Promise((done) => server.close(done));
		const message = expect.stringContaining('cannot be reached (ECONNREFUSED)');
		expect(await refusal({ url: `http://127.0.0.1:${port}` })).toMatchObject({ kind: 'unavailable', message });
	});

	test.each([200, 404, 302])('somebody else at the address, who answers %d', async (status) => {
		const server = createServer((request, response) => {
			request.resume();
			response.writeHead(status, { 'content-type': 'text/html' }).end('<html>Welcome</html>');
		});
		await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
		try {
			const { port } = server.address() as AddressInfo;
			const error = await refusal({ url: `http://127.0.0.1:${port}` });
			expect(error).toMatchObject({ kind: 'invalid', message: expect.stringContaining('SUPABASE_URL') });
		} finally {
			server.close();
		}
	});

	test('not migrated, half migrated, migrated by a newer release', async () => {
		const empty = await startSupabase({ migrated: false });
		try {
			const options = { ...world, url: empty.url, key: () => empty.key };
			const sentence = expect.stringContaining('make migrate');
			await expect(openSupabaseStore(options)).rejects.toMatchObject({ kind: 'unsupported', message: sentence });
			const migrations = readdirSync('supabase/migrations').filter((file) => file.endsWith('.sql'));
			// Its number is that of the last one.
			expect(migrations.toSorted().at(-1)).toMatch(new RegExp(`^\\d+${String(SCHEMA_VERSION).padStart(2, '0')}_`));
			expect(await migrate(empty.postgresUrl)).toHaveLength(migrations.length);
			// Without a restart: the migration tells PostgREST.
			await expect
				.poll(() =>
					openSupabaseStore(options).then(
						(store) => store.close(),
						() => 'no',
					),
				)
				.not.toBe('no');
			expect(await Promise.all([migrate(empty.postgresUrl), migrate(empty.postgresUrl)])).toEqual([[], []]);
			const rows = await empty.sql`SELECT version, name FROM supabase_migrations.schema_migrations ORDER BY 1`;
			expect(rows[0]).toEqual({ version: '20261124000001', name: 'tables' });

			const setSchema = (version: number) =>
				empty.sql.unsafe(`CREATE OR REPLACE FUNCTION public.distro_schema() RETURNS integer LANGUAGE sql STABLE
					SET search_path = '' RETURN ${version}`);
			await setSchema(SCHEMA_VERSION + 1);
			const newer = { kind: 'unsupported', message: expect.stringContaining('newer release') };
			await expect(openSupabaseStore(options)).rejects.toMatchObject(newer);
			await expect(migrate(empty.postgresUrl)).rejects.toMatchObject(newer);
			await setSchema(SCHEMA_VERSION - 1);
			await expect(openSupabaseStore(options)).rejects.toMatchObject({ kind: 'unsupported', message: sentence });
		} finally {
			await empty.remove();
		}
	});

	test('a database from before there were worker sets: what is in it is counted, and counting goes on', async () => {
		const old = await startSupabase({ migrated: false });
		try {
			await migrateBefore(old, '20261124000008');
			const make = new Fixtures('before');
			const workers = Array.from({ length: 6 }, () => make.id<WorkerId>());
			const call = async (method: string, args: object) => {
				const calls = old.sql.json([{ method, args: JSON.parse(JSON.stringify(args)) }]);
				const [answer] = await old.sql`SELECT public.distro_write(${calls}) -> 0 ? 'ok' AS ok`;
				expect(answer).toEqual({ ok: true });
			};
			await call('saveWorker', rows.workerArgs(make.worker('worker-1')));
			const uploads: Upload[] = [];
			for (let at = 0; at < 12; at++) {
				const missing = at % 3 === 0 ? [at % 6] : [];
				const upload = make.upload(workers, { segments: at % 4, k: 3 + (at % 2), missing, sizeBytes: 1_000 + at });
				const { uploadId, objectId, commit } = upload;
				await call('begin', { uploadId, objectId, shards: rows.pairs(upload.shards), expiresAtMs: NOW_MS });
				await call('commit', rows.commitArgs(commit));
				uploads.push(upload);
			}
			const marked = uploads.flatMap(({ commit }) =>
				commit.segments.slice(1).flatMap(({ placements }) => placements[2] ?? []),
			);
			const findings = marked.map((shard) =>
				rows.findingArgs({ ...shard, kind: 'missing', detail: '', foundAtMs: NOW_MS }),
			);
			await call('addFindings', { findings });
			expect(await migrate(old.postgresUrl)).toContain('20261124000008_sets');
			await expect
				.poll(() =>
					openSupabaseStore({ ...world, url: old.url, key: () => old.key }).then(
						(store) => store.close(),
						() => 'no',
					),
				)
				.not.toBe('no');
			const store = await openSupabaseStore({ ...world, url: old.url, key: () => old.key });
			const { sets, spreads } = await checkRedundancy(store);
			expect(Object.keys(sets).length).toBeGreaterThan(5);
			expect(Object.values(spreads).reduce((sum, { objects }) => sum + objects, 0)).toBe(12);
			expect(await store.workers()).toMatchObject([{ duty: 'active', history: '' }]);
			await make.store(store, workers, { segments: 2 });
			for (const { objectId } of uploads.slice(0, 7)) await store.deleteObject(objectId, atOnce());
			// Orchestrators of the release before are not restarted yet, and say no sets.
			for (const segments of [0, 1, 5]) {
				const { uploadId, objectId, shards, commit } = make.upload(workers, { segments, missing: [2] });
				const placed = commit.segments.map(({ placements, ...segment }) => ({
					...segment,
					placements: placements.slice(segment.index % 2),
				}));
				const { sets: _, ...args } = rows.commitArgs({ ...commit, segments: placed });
				await store.begin({ uploadId, objectId, shards, expiresAtMs: NOW_MS });
				await call('commit', { ...args, segments: args.segments.map(({ set: _, ...segment }) => segment) });
			}
			// And know of no trash.
			const { objectId } = await make.store(store, workers);
			await call('deleteObject', { objectId, nowMs: NOW_MS, callId: make.id() });
			expect([await store.object(objectId), await store.trashed(objectId)]).toEqual([null, null]);
			await checkRedundancy(store);
			await store.close();
		} finally {
			await old.remove();
		}
	});

	test('a key that is revoked later: 503, and the new one is taken without a restart', async () => {
		let key = supabase.key;
		const store = await openSupabaseStore({ ...world, url: supabase.url, key: () => key });
		key = 'sb_secret_0123456789abcdefghij';
		const refused = await store.counts().catch((thrown: unknown) => thrown);
		expect(refused).toMatchObject({ kind: 'unavailable', retryAfterMs: expect.any(Number) });
		expect((refused as Error).cause).toMatchObject({ message: expect.stringContaining('SUPABASE_KEY is refused') });
		expect(inspect(refused)).not.toContain(key);
		key = supabase.key;
		await expect.poll(() => store.counts().catch(() => null)).not.toBeNull();
		await store.close();
	});
});
