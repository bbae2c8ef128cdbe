/**
 * Upgrade: this release, as real processes, on data that each release before it wrote (test/fixtures), with the metadata in
 * SQLite and in PostgreSQL. And the way back: what a newer release wrote is refused or left alone, and stays as it is.
 */

import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { newId, type UploadId } from '../../core/ids.ts';
import { hasPostgres } from '../../hack/environment.ts';
import { migrate } from '../../hack/migrate.ts';
import { checkRedundancy } from '../../orchestrator/store.recount.ts';
import type { MetadataStore } from '../../orchestrator/store.ts';
import { openSqliteStore } from '../../orchestrator/store-sqlite.ts';
import { openSupabaseStore } from '../../orchestrator/store-supabase.ts';
import { type Fixture, fixtures, restoreRows, unpack } from '../fixtures/fixture.ts';
import type { Cluster, Explained } from '../support/client.ts';
import { realClock, seededRandom } from '../support/clock.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';
import type { ClusterState } from '../support/cluster-api.ts';
import { makeNewerJson, newerShard } from '../support/newer.ts';
import { migrateBefore, startSupabase, type TestSupabase } from '../support/supabase.ts';

const random = seededRandom('upgrade');
const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

/** The API, with the key that the release before gave out. */
class Api {
	readonly #c: TestCluster;
	readonly #headers: Record<string, string>;

	constructor(c: TestCluster, { apiKey }: Fixture) {
		this.#c = c;
		this.#headers = { authorization: `Bearer ${apiKey}` };
	}

	fetch(path: string, init: RequestInit & { headers?: Record<string, string> } = {}): Promise<Response> {
		return fetch(`${this.#c.http}${path}`, { ...init, headers: { ...this.#headers, ...init.headers } });
	}

	async ask<T>(path: string, init: RequestInit = {}): Promise<T> {
		const response = await this.fetch(path, init as { headers?: Record<string, string> });
		if (!response.ok) throw new Error(await response.text());
		return (await response.json()) as T;
	}

	async bytes(id: string): Promise<Buffer> {
		const response = await this.fetch(`/objects/${id}`);
		if (!response.ok) throw new Error(await response.text());
		return Buffer.from(await response.arrayBuffer());
	}

	async store(bytes: Buffer): Promise<string> {
		const init = { method: 'POST', body: new Uint8Array(bytes) };
		return (await this.ask<{ object_id: string }>('/objects', init)).object_id;
	}

	view(): Promise<Omit<Cluster, 'workers'> & Pick<ClusterState, 'workers'>> {
		return this.ask('/cluster');
	}

	explain(id: string): Promise<Explained> {
		return this.ask(`/objects/${id}/explain?limit=100`);
	}

	settled(): Promise<void> {
		return until(
			async () => {
				const { queues, workers } = await this.view();
				return (
					queues.intents + queues.deletions + queues.repairs === 0 &&
					workers.every(({ shards, shards_placed }) => shards === shards_placed)
				);
			},
			{ timeoutMs: 60_000, what: 'empty queues, and the disks to have what the metadata says' },
		);
	}
}

/** Where the metadata are, with the rows of that release. */
interface Place {
	readonly env: Record<string, string>;
	openStore(): Promise<MetadataStore>;
	remove(): Promise<void>;
}

async function inSqlite(_: Fixture, dataDir: string): Promise<Place> {
	const path = join(dataDir, 'orchestrator-1/metadata.db');
	return { env: {}, openStore: () => openSqliteStore({ path }), remove: async () => {} };
}

async function inSupabase(fixture: Fixture, dataDir: string): Promise<Place> {
	const supabase: TestSupabase = await startSupabase({ migrated: false });
	try {
		await migrateBefore(supabase, `20261124${String(fixture.supabaseSchema + 1).padStart(6, '0')}`);
		await restoreRows(fixture, supabase.sql);
		await migrate(supabase.postgresUrl);
		// It has not heard of the tables yet.
		await supabase.stopRest();
		await supabase.startRest();
	} catch (error) {
		await supabase.remove();
		throw error;
	}
	const folder = join(dataDir, 'orchestrator-1');
	for (const file of readdirSync(folder).filter((name) => /\.db/.test(name))) rmSync(join(folder, file));
	const { url, key } = supabase;
	const masterKey = readFileSync(join(folder, 'master.key'), 'utf8').trim();
	return {
		env: { SUPABASE_URL: url, SUPABASE_KEY: key, MASTER_KEY: masterKey },
		openStore: () => openSupabaseStore({ url, key: () => key, clock: realClock, random }),
		remove: () => supabase.remove(),
	};
}

function newFolder(): string {
	return mkdtempSync(join(tmpdir(), 'distro-test-'));
}

const places = { SQLite: inSqlite, PostgreSQL: inSupabase };
const cases = fixtures().flatMap((fixture) =>
	Object.entries(places).map(([name, open]) => [fixture.release, name, { fixture, open }] as const),
);

describe.each(cases)('data of %s, with its metadata in %s', (_release, _place, { fixture, open }) => {
	const dataDir = newFolder();
	let place: Place | null = null;
	let c: TestCluster | null = null;
	let api: Api;

	beforeAll(async () => {
		unpack(fixture, dataDir);
		place = await open(fixture, dataDir);
		c = await startCluster({ dataDir, env: { AUTH: 'keys', AUDITS_PER_HOUR: '0', ...place.env } });
		api = new Api(c, fixture);
	});
	afterAll(async () => {
		await c?.remove();
		await place?.remove();
		rmSync(dataDir, { recursive: true, force: true });
	});

	test('it is the same cluster, with what was said to its workers and jobs', async () => {
		expect(hasPostgres(dataDir)).toBe(false);
		const { workers, queues, objects } = await api.view();
		expect(objects).toBe(fixture.objects.length);
		expect(workers.find(({ name }) => name === fixture.cordoned)?.state).toBe('cordoned');
		const { jobs } = await api.ask<{ jobs: { name: string; state: string }[] }>('/cluster/jobs');
		expect(jobs.find(({ name }) => name === 'repair')?.state).toBe('paused');
		expect(queues.repairs).toBe(fixture.queues.repairs);
		const { segments } = await api.explain(fixture.rotten.object);
		const shards = segments.flatMap((segment) => segment.shards);
		expect(shards.find(({ shard_id }) => shard_id === fixture.rotten.shard)?.state).toBe('corrupt');
		expect((await fetch(`${c?.http}/objects`)).status).toBe(401);
	});

	test('every object reads with its checksum, name, type, digest and ETag, and is coded as it was', async () => {
		const listed = await api.ask<{ objects: { object_id: string; name: string | null; size: number }[] }>('/objects');
		expect(new Set(listed.objects.map(({ object_id }) => object_id))).toEqual(
			new Set(fixture.objects.map(({ id }) => id)),
		);
		for (const object of fixture.objects) {
			const response = await api.fetch(`/objects/${object.id}`, { headers: { 'want-repr-digest': 'sha-256=1' } });
			expect(response.status).toBe(200);
			expect(sha256(Buffer.from(await response.arrayBuffer()))).toBe(object.sha256);
			expect(response.headers.get('etag')).toBe(object.etag);
			if (object.contentType !== null) expect(response.headers.get('content-type')).toBe(object.contentType);
			if (object.reprDigest !== null) expect(response.headers.get('repr-digest')).toBe(object.reprDigest);
			const { name, size } = listed.objects.find(({ object_id }) => object_id === object.id) ?? {};
			expect({ name, size }).toEqual({ name: object.name, size: object.size });
			const { stored, segments } = await api.explain(object.id);
			expect({ stored, codes: segments.map(({ k, n }) => `${k}+${n - k}`) }).toEqual({
				stored: object.stored,
				codes: object.codes,
			});
			if (object.size < 2) continue;
			const part = await api.fetch(`/objects/${object.id}`, { headers: { range: `bytes=1-${object.size - 1}` } });
			expect([part.status, (await part.arrayBuffer()).byteLength]).toEqual([206, object.size - 1]);
		}
		for (const id of fixture.deleted) expect((await api.fetch(`/objects/${id}`)).status).toBe(404);
	});

	test('what was under way is finished: deletions, the upload that nobody ends, the repair, once the worker takes shards again', async () => {
		// Six workers have six shards of everything: without one of them there is nowhere to put another.
		await api.ask(`/cluster/workers/${fixture.cordoned}/uncordon`, { method: 'POST' });
		await api.ask('/cluster/jobs/repair/resume', { method: 'POST' });
		await api.settled();
		expect((await api.explain(fixture.rotten.object)).health).toBe('healthy');
		expect((await api.view()).objects).toBe(fixture.objects.length);
	});

	test('and it goes on: new objects, deletions of old ones', async () => {
		const stored = new Map<string, string>();
		for (const size of [0, 300, 90_000, 2 << 20]) {
			const bytes = random.bytes(size);
			stored.set(await api.store(bytes), sha256(bytes));
		}
		for (const { id, sha256: sum } of fixture.objects.slice(1)) stored.set(id, sum);
		const [gone] = fixture.objects;
		expect((await api.fetch(`/objects/${gone?.id}`, { method: 'DELETE' })).ok).toBe(true);
		await api.settled();
		for (const [id, sum] of stored) expect(sha256(await api.bytes(id))).toBe(sum);
		expect((await api.fetch(`/objects/${gone?.id}`)).status).toBe(404);
	});

	test('its counts are those of its rows, and its keys of requests are free again', async () => {
		await c?.stop();
		const store = await (place as Place).openStore();
		try {
			await checkRedundancy(store);
			for (const key of fixture.idempotencyKeys.slice(1)) {
				const claim = { owner: '', key, fingerprint: '0'.repeat(64), uploadId: newId<UploadId>(random) };
				const nowMs = Date.now();
				expect(await store.claimIdempotency({ ...claim, expiresAtMs: nowMs + 1_000 }, nowMs)).toEqual({
					state: 'claimed',
				});
			}
		} finally {
			await store.close();
		}
	});
});

describe('what a newer release wrote', () => {
	const [fixture] = fixtures().slice(-1) as [Fixture];
	let dataDir: string;
	let c: TestCluster | null = null;
	const newDataDir = () => {
		dataDir = newFolder();
		unpack(fixture, dataDir);
	};
	afterEach(async () => {
		await c?.stop();
		c = null;
		rmSync(dataDir, { recursive: true, force: true });
	});

	/** Of all that is stored: what each start makes anew left out. */
	const contents = (folder: string) => {
		const names = readdirSync(join(dataDir, folder), { recursive: true, encoding: 'utf8' }).sort();
		return names
			.filter((name) => !/^(log|tls|tmp)(\/|$)/.test(name) && statSync(join(dataDir, folder, name)).isFile())
			.map((name) => `${name} ${sha256(readFileSync(join(dataDir, folder, name)))}`);
	};

	test.each([
		['metadata.db', 'UPDATE schema_version SET version = 200'],
		['api-keys.db', 'PRAGMA user_version = 200'],
	])('%s: no orchestrator starts on it, and it stays as it is', async (file, change) => {
		newDataDir();
		const path = join(dataDir, 'orchestrator-1', file);
		const db = new DatabaseSync(path);
		db.exec(change);
		db.close();
		const before = contents('orchestrator-1').filter((line) => line.startsWith(file));
		const refused = await startCluster({ dataDir, workers: 1 }).catch((error: Error) => error);
		expect(refused).toBeInstanceOf(Error);
		const { message } = refused as Error;
		expect(message).toContain(`${path} was written by a newer release`);
		expect(message).toContain('run that release');
		expect(message).not.toMatch(/^\s+at /m);
		expect(contents('orchestrator-1').filter((line) => line.startsWith(file))).toEqual(before);
	});

	test('workers: those whose folder is newer do not start, the others serve, and nothing is taken for damage', async () => {
		newDataDir();
		const [volume, identity, scrub, shards] = ['worker-1', 'worker-4', 'worker-5', 'worker-6'] as const;
		makeNewerJson(join(dataDir, volume, 'volume.json'));
		makeNewerJson(join(dataDir, identity, 'worker.json'));
		writeFileSync(join(dataDir, scrub, 'scrub.json'), '{"version":200}\n');
		const files = readdirSync(join(dataDir, shards, 'shards'), { recursive: true, encoding: 'utf8' })
			.filter((name) => name.length > 30)
			.map((name) => join(dataDir, shards, 'shards', name));
		expect(files.length).toBeGreaterThan(2);
		for (const file of files) writeFileSync(file, newerShard(readFileSync(file)));
		const before = new Map([volume, identity, shards].map((name) => [name, contents(name)]));

		c = await startCluster({ dataDir, env: { AUTH: 'keys', AUDITS_PER_HOUR: '100000' }, missing: 2 });
		const api = new Api(c, fixture);
		for (const file of [`${volume}/volume.json`, `${identity}/worker.json`])
			expect(c.output()).toContain(`${join(dataDir, file)} was written by a newer release`);
		await until(() => /scrub\.json of this volume was written by a newer release/.test(logOf(scrub)), {
			what: 'scrubbing to say why it waits',
		});

		// Everybody reads them: scrubbing, audits, and reads that decode since two workers are away.
		await api.ask('/cluster/jobs/scrub/run', { method: 'POST' });
		await until(() => /only it can verify them/.test(logOf(shards)), { what: 'the newer shards to be scrubbed' });
		await until(async () => (await audits()) > 20, { what: 'audits' });
		for (const { id, sha256: sum } of fixture.objects) {
			const read = await api.bytes(id).catch((error: Error) => error);
			// Where k others can not be read it says so: nobody guesses.
			if (read instanceof Error) expect(read.message).toMatch(/can be read now/);
			else expect(sha256(read)).toBe(sum);
		}
		const states = (await Promise.all(fixture.objects.map(({ id }) => api.explain(id)))).flatMap(({ segments }) =>
			segments.flatMap(({ shards: all }) => all.filter(({ worker }) => worker === shards)),
		);
		expect(states.map(({ state }) => state)).toEqual(files.map(() => 'ok'));
		expect(new Set(states.map(({ shard_id }) => shard_id))).toEqual(new Set(files.map((file) => basename(file))));
		expect((await api.view()).queues.repairs).toBe(fixture.queues.repairs);
		await c.stop();
		expect(readFileSync(join(dataDir, scrub, 'scrub.json'), 'utf8')).toBe('{"version":200}\n');
		expect(contents(volume)).toEqual(before.get(volume));
		expect(contents(identity)).toEqual(before.get(identity));
		const shardLines = (lines: readonly string[] = []) => lines.filter((line) => line.startsWith('shards/'));
		expect(shardLines(contents(shards))).toEqual(shardLines(before.get(shards)));

		function logOf(name: string): string {
			return readFileSync(join(dataDir, name, 'log'), 'utf8');
		}
		async function audits(): Promise<number> {
			const lines = (await (await api.fetch('/metrics')).text()).split('\n');
			const counts = lines.filter((line) => line.startsWith('distro_audits_total{'));
			return counts.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
		}
	});
});
