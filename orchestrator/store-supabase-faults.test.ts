/**
 * The Supabase adapter when things break on the way: a connection killed at any statement, lost answers and requests, a
 * database that is away, stopped or full of others. Every scenario is one call, prepared from a seed.
 */

import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { ClusterId, ObjectId, ShardId, UploadId, WorkerId } from '../core/ids.ts';
import { realClock, seededRandom } from '../test/support/clock.ts';
import { type FaultyFetch, faultyFetch } from '../test/support/faulty-fetch.ts';
import { startSupabase, type TestSupabase } from '../test/support/supabase.ts';
import { atOnce, begin, Fixtures, NOW_MS, type Upload } from './store.fixtures.ts';
import { checkRedundancy, reported } from './store.recount.ts';
import type { Finding, IntendedShard, MetadataStore, RepairItem } from './store.ts';
import { openSupabaseStore } from './store-supabase.ts';

const world = { clock: realClock, random: seededRandom('supabase') };
let supabase: TestSupabase;
let net: FaultyFetch;
let store: MetadataStore;

const open = () => openSupabaseStore({ ...world, url: supabase.url, key: () => supabase.key, fetch: net.fetch });

beforeAll(async () => {
	supabase = await startSupabase();
	await installKiller();
});
afterAll(() => supabase?.remove());
beforeEach(async () => {
	net = faultyFetch();
	await supabase.clear();
	store = await open();
});
afterEach(() => store.close());

/** Ends the connection at one chosen point: before or after any statement that changes a row. */
async function installKiller(): Promise<void> {
	await supabase.sql.unsafe(`
		CREATE SCHEMA chaos;
		CREATE SEQUENCE chaos.step;
		CREATE TABLE chaos.kill (at bigint);
		INSERT INTO chaos.kill VALUES (0);
		CREATE FUNCTION chaos.step() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
		BEGIN
			IF nextval('chaos.step') = (SELECT at FROM chaos.kill) THEN
				PERFORM pg_terminate_backend(pg_backend_pid());
				PERFORM pg_sleep(1);
			END IF;
			RETURN NULL;
		END $$;
		DO $$
		DECLARE name text;
		BEGIN
			FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'distro' LOOP
				EXECUTE format('CREATE TRIGGER kill_before BEFORE INSERT OR UPDATE OR DELETE ON distro.%I
					FOR EACH STATEMENT EXECUTE FUNCTION chaos.step()', name);
				EXECUTE format('CREATE TRIGGER kill_after AFTER INSERT OR UPDATE OR DELETE ON distro.%I
					FOR EACH STATEMENT EXECUTE FUNCTION chaos.step()', name);
			END LOOP;
		END $$;
	`);
}

/** Kills at the given point from now on; 0: never. Answers how many points were passed since the last call. */
async function killAt(point: number): Promise<number> {
	const [row] = await supabase.sql<{ passed: string }[]>`SELECT last_value - 1 AS passed FROM chaos.step`;
	await supabase.sql`UPDATE chaos.kill SET at = ${point === 0 ? 0 : point + 1}`;
	await supabase.sql`SELECT setval('chaos.step', 1)`;
	return Number(row?.passed);
}

/** Every row of every table in one query, but for numbers that only count up; counts are in slots that differ. */
let dumpQuery = '';

async function dump(): Promise<unknown> {
	if (dumpQuery === '') {
		const tables = await supabase.sql<{ name: string }[]>`
			SELECT tablename AS name FROM pg_tables
				WHERE schemaname = 'distro' AND tablename NOT IN ('totals', 'removals', 'worker_sets', 'spreads') ORDER BY 1`;
		// Numbers that are given out, and the database's own time, differ.
		const known = "to_jsonb(t) - 'object_no' - 'item_no' - 'began_at_ms'";
		const rowsOf = (name: string) => `'${name}', (SELECT jsonb_agg(${known} ORDER BY ${known}) FROM distro.${name} t)`;
		dumpQuery = `SELECT jsonb_build_object(${tables.map(({ name }) => rowsOf(name)).join()}) AS tables`;
	}
	const [row] = await supabase.sql.unsafe(dumpQuery);
	return { ...row?.tables, counts: await store.counts(), redundancy: await reported(store) };
}

interface Scenario {
	readonly act: () => Promise<unknown>;
}

type Prepare = (make: Fixtures, workers: WorkerId[]) => Promise<Scenario>;

const idempotency = { key: 'key', fingerprint: 'f' };
const UNTIL_LATER = { nowMs: NOW_MS, purgeAtMs: NOW_MS + 5, by: 'key-1' };
const SCENARIOS: Record<string, Prepare> = {
	initCluster: async (make) => {
		const keys = [1, 2].map((generation) => make.clusterKey(generation, 'm'));
		const row = { clusterId: make.id<ClusterId>(), createdAtMs: NOW_MS, revision: 1, keys };
		return { act: () => store.initCluster(row) };
	},
	begin: async (make, workers) => {
		const upload = make.upload(workers);
		return { act: () => begin(store, upload) };
	},
	extend: async (make, workers) => {
		const upload = make.upload(workers);
		await begin(store, { ...upload, shards: [] });
		return { act: () => store.extend(upload.uploadId, upload.shards) };
	},
	renew: async (make, workers) => {
		const upload = make.upload(workers);
		await begin(store, upload);
		return { act: () => store.renew(upload.uploadId, NOW_MS + 7_000) };
	},
	commit: async (make, workers) => {
		const upload = make.upload(workers, { segments: 2, missing: [3], idempotency });
		await begin(store, upload);
		return { act: () => store.commit(upload.commit) };
	},
	'commit of an inline object': async (make, workers) => {
		const upload = make.upload(workers, { segments: 0, idempotency });
		return { act: () => store.commit(upload.commit) };
	},
	abort: async (make, workers) => {
		const upload = make.upload(workers);
		await begin(store, upload);
		return { act: () => store.abort(upload.uploadId, NOW_MS) };
	},
	expireIntents: async (make, workers) => {
		for (let count = 0; count < 2; count++) await begin(store, make.upload(workers, { n: 5 }));
		return { act: async () => void (await store.expireIntents(NOW_MS * 2, 10)) };
	},
	claimIdempotency: async (make) => {
		const claim = { ...idempotency, owner: '', uploadId: make.id<UploadId>(), expiresAtMs: NOW_MS + 9 };
		return { act: () => store.claimIdempotency(claim, NOW_MS) };
	},
	deleteObject: async (make, workers) => {
		const { objectId } = await make.store(store, workers, { segments: 2, missing: [1] });
		return { act: () => store.deleteObject(objectId, atOnce()) };
	},
	'deleteObject into the trash': async (make, workers) => {
		const { objectId } = await make.store(store, workers, { segments: 2, missing: [1] });
		return { act: () => store.deleteObject(objectId, UNTIL_LATER) };
	},
	undeleteObject: async (make, workers) => {
		const { objectId } = await make.store(store, workers, { segments: 2 });
		await store.deleteObject(objectId, UNTIL_LATER);
		return { act: () => store.undeleteObject(objectId, UNTIL_LATER) };
	},
	purgeObject: async (make, workers) => {
		const { objectId } = await make.store(store, workers, { segments: 2, missing: [1] });
		await store.deleteObject(objectId, UNTIL_LATER);
		return { act: () => store.purgeObject(objectId, UNTIL_LATER) };
	},
	purgeTrash: async (make, workers) => {
		for (let count = 0; count < 2; count++) {
			const { objectId } = await make.store(store, workers, { n: 5 });
			await store.deleteObject(objectId, UNTIL_LATER);
		}
		return { act: async () => void (await store.purgeTrash(NOW_MS * 2, 10)) };
	},
	deletionsDone: async (make, workers) => {
		const upload = await make.store(store, workers, { missing: [0] });
		const gone = upload.shards.slice(0, 1).map(({ shardId }) => shardId);
		return { act: () => store.deletionsDone(workers[0] as WorkerId, gone) };
	},
	queueUnknown: async (make, workers) => {
		const upload = await make.store(store, workers);
		const shardIds = [make.id<ShardId>(), ...upload.shards.map(({ shardId }) => shardId), make.id<ShardId>()];
		return { act: () => store.queueUnknown(workers[0] as WorkerId, shardIds, NOW_MS) };
	},
	addFindings: async (make, workers) => {
		const { shards } = await make.store(store, workers, { segments: 2 });
		const findings = shards
			.slice(4, 8)
			.map((shard) => ({ ...shard, kind: 'missing' as const, detail: '', foundAtMs: NOW_MS }));
		return { act: () => store.addFindings(findings) };
	},
	deferRepair: async (make, workers) => {
		await make.store(store, workers, { missing: [0] });
		const [item] = (await store.repairs({ nowMs: NOW_MS, limit: 1 })) as [RepairItem];
		return { act: () => store.deferRepair(item, NOW_MS + 5) };
	},
	repairDone: async (make, workers) => {
		const upload = await make.store(store, workers, { missing: [1] });
		const { shardId, workerId } = upload.shards[0] as { shardId: ShardId; workerId: WorkerId };
		await store.addFindings([{ shardId, workerId, kind: 'corrupt', detail: '', foundAtMs: NOW_MS }]);
		const items = await store.repairs({ nowMs: NOW_MS, limit: 9 });
		return repairOf(make, items.find(({ shardIndex }) => shardIndex === 0) as RepairItem);
	},
	'repairDone after deletion': async (make, workers) => {
		const upload = await make.store(store, workers, { missing: [1] });
		const [item] = (await store.repairs({ nowMs: NOW_MS, limit: 1 })) as [RepairItem];
		const { act } = await repairOf(make, item);
		await store.deleteObject(upload.objectId, atOnce());
		// A repeated call hears that its upload is closed: refused either way, and the shard is queued.
		return { act: () => act().then(fulfilled, () => 'refused') };
	},
	'repairDone where another shard is': async (make, workers) => {
		await make.store(store, workers, { missing: [1] });
		const [item] = (await store.repairs({ nowMs: NOW_MS, limit: 1 })) as [RepairItem];
		const { act } = await repairOf(make, item, workers[2]);
		return { act: () => act().then(fulfilled, () => 'refused') };
	},
	saveWorker: async (make) => {
		const worker = make.worker('worker-1');
		return { act: () => store.saveWorker(worker) };
	},
	sawWorkers: async (make) => {
		const worker = make.worker('worker-1');
		await store.saveWorker(worker);
		const { workerId } = worker;
		const seen = { workerId, lastSeenMs: NOW_MS + 1, bytesTotal: 7, bytesUsed: 6, shards: 5 };
		return { act: () => store.sawWorkers([seen]) };
	},
	renameWorker: async (make) => {
		const worker = make.worker('worker-1');
		await store.saveWorker(worker);
		return { act: () => store.renameWorker(worker.workerId, { name: 'worker-2', lastSeenMs: NOW_MS }) };
	},
	setDuty: async (make) => {
		const worker = make.worker('worker-1');
		await store.saveWorker(worker);
		return { act: () => store.setDuty(worker.workerId, 'draining') };
	},
	saveHistory: async (make) => {
		const worker = make.worker('worker-1');
		await store.saveWorker(worker);
		return { act: () => store.saveHistory(worker.workerId, '{}') };
	},
	forgetWorker: async (make) => {
		const worker = make.worker('worker-1');
		await store.saveWorker(worker);
		const { objectId } = await make.store(store, [worker.workerId]);
		await store.deleteObject(objectId, atOnce());
		return { act: () => store.forgetWorker(worker.workerId, NOW_MS) };
	},
	pauseJob: async () => {
		await store.requestRun('repair', NOW_MS);
		return { act: () => store.pauseJob('repair', true, NOW_MS + 1) };
	},
	requestRun: async () => {
		await store.requestRun('repair', NOW_MS);
		return { act: () => store.requestRun('repair', NOW_MS + 1) };
	},
	saveJobState: async () => ({ act: () => store.saveJobState('repair', '{"left":1}', NOW_MS) }),
	acquireLease: async () => {
		return { act: () => store.acquireLease('repair', { holder: 'a', ttlMs: 3_600_000 }) };
	},
};

function fulfilled(): never {
	throw new Error('it was not refused');
}

async function repairOf(make: Fixtures, item: RepairItem, workerId = make.id<WorkerId>()): Promise<Scenario> {
	const uploadId = make.id<UploadId>();
	const shard = { shardId: make.id<ShardId>(), workerId };
	const spare = { shardId: make.id<ShardId>(), workerId: make.id<WorkerId>() };
	await store.begin({ uploadId, objectId: item.objectId, shards: [shard, spare], expiresAtMs: NOW_MS + 1_000 });
	const done = { item, placement: { shardIndex: item.shardIndex, ...shard }, keyGeneration: 1, nowMs: NOW_MS };
	return { act: () => store.repairDone(done, uploadId) };
}

/** Rows of leases say until when, which no two runs share. */
function timeless(tables: unknown): unknown {
	return JSON.parse(JSON.stringify(tables, (name, value) => (name === 'expires_at' ? undefined : value)));
}

/** The same rows every time. */
async function prepare(name: string): Promise<Scenario> {
	await supabase.clear();
	const make = new Fixtures(name);
	const workers = Array.from({ length: 6 }, () => make.id<WorkerId>());
	return (SCENARIOS[name] as Prepare)(make, workers);
}

describe.each(Object.keys(SCENARIOS))('%s', (name) => {
	test('killed at any statement: nothing half-done, and the repeated call ends as the first would have', {
		timeout: 120_000,
	}, async () => {
		const { act } = await prepare(name);
		await killAt(0);
		const answer = await act();
		const points = await killAt(0);
		const wanted = timeless(await dump());
		expect(points).toBeGreaterThan(0);
		for (let point = 1; point <= points; point++) {
			const scenario = await prepare(name);
			const before = timeless(await dump());
			let between: unknown = null;
			net.onFailure = async () => {
				net.onFailure = null;
				between = timeless(await dump());
			};
			await killAt(point);
			expect(await scenario.act()).toEqual(answer);
			expect(between).toEqual(before);
			await killAt(0);
			expect(timeless(await dump())).toEqual(wanted);
		}
	});

	test('the answer is lost, twice: the call is answered as if it had come', async () => {
		const { act } = await prepare(name);
		const answer = await act();
		const wanted = timeless(await dump());
		const again = await prepare(name);
		net.loseAnswers(2);
		expect(await again.act()).toEqual(answer);
		expect(timeless(await dump())).toEqual(wanted);
	});
});

describe('the database is away', () => {
	const make = new Fixtures('away');
	const workers = Array.from({ length: 6 }, () => make.id<WorkerId>());
	const counts = async () => (await store.counts()).objects;

	test('requests that do not get through are repeated; the caller does not notice', async () => {
		net.loseRequests(3);
		await make.store(store, workers);
		expect(await counts()).toBe(1);
	});

	test('away for long: 503 with a time to wait, soon without waiting; back again without a restart', {
		timeout: 60_000,
	}, async () => {
		const upload = await make.store(store, workers);
		await supabase.stopRest();
		const refusal = { kind: 'unavailable', retryAfterMs: expect.any(Number) };
		await expect
			.poll(
				async () => {
					const startedMs = performance.now();
					await expect(begin(store, make.upload(workers))).rejects.toMatchObject(refusal);
					return performance.now() - startedMs;
				},
				{ timeout: 20_000 },
			)
			.toBeLessThan(20);
		// Many at once: none of them waits in a queue.
		const startedMs = performance.now();
		const many = await Promise.allSettled(Array.from({ length: 500 }, () => begin(store, make.upload(workers))));
		expect(many.every(({ status }) => status === 'rejected')).toBe(true);
		expect(performance.now() - startedMs).toBeLessThan(3_000);
		await expect(store.object(upload.objectId)).rejects.toMatchObject(refusal);
		await supabase.startRest();
		await expect.poll(() => counts().catch(() => -1), { timeout: 20_000 }).toBe(1);
		await make.store(store, workers);
		expect(await store.counts()).toMatchObject({ objects: 2, intents: 0 });
	});

	test('Postgres itself is away and comes back', { timeout: 60_000 }, async () => {
		await make.store(store, workers);
		await supabase.stopPostgres();
		await expect(begin(store, make.upload(workers))).rejects.toMatchObject({ kind: 'unavailable' });
		await supabase.startPostgres();
		await expect.poll(() => counts().catch(() => -1), { timeout: 30_000 }).toBe(1);
		await make.store(store, workers);
	});

	test('it hangs: calls end at their deadline, and what was begun is not half-done', { timeout: 60_000 }, async () => {
		const upload = make.upload(workers);
		await begin(store, upload);
		process.kill(supabase.restPid(), 'SIGSTOP');
		try {
			const startedMs = performance.now();
			await expect(store.commit(upload.commit)).rejects.toMatchObject({ kind: 'unavailable' });
			expect(performance.now() - startedMs).toBeLessThan(15_000);
		} finally {
			process.kill(supabase.restPid(), 'SIGCONT');
		}
		await expect.poll(() => counts().catch(() => -1), { timeout: 20_000 }).toBeGreaterThanOrEqual(0);
		// Whether the lost commit took effect or not: repeated it is one object.
		await store.commit(upload.commit);
		expect(await store.counts()).toMatchObject({ objects: 1, intents: 0, deletions: 0 });
	});

	test('a call that takes too long for a batch goes on alone, and those beside it do not wait', {
		timeout: 60_000,
	}, async () => {
		const [large, ...others] = await Promise.all(Array.from({ length: 6 }, () => make.store(store, workers)));
		await supabase.sql.unsafe(`
			CREATE FUNCTION chaos.dawdle() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
			BEGIN
				IF OLD.object_id = '${large?.objectId}' THEN PERFORM pg_sleep(4.5); END IF;
				RETURN OLD;
			END $$;
			CREATE TRIGGER dawdle BEFORE DELETE ON distro.objects FOR EACH ROW EXECUTE FUNCTION chaos.dawdle()`);
		try {
			const slow = store.deleteObject(large?.objectId as ObjectId, atOnce());
			const results = await Promise.all(others.map(({ objectId }) => store.deleteObject(objectId, atOnce())));
			expect(results).toEqual(others.map(() => true));
			expect(await store.object(large?.objectId as ObjectId)).not.toBeNull();
			expect(await slow).toBe(true);
		} finally {
			await supabase.sql.unsafe('DROP FUNCTION chaos.dawdle() CASCADE');
		}
		expect(await store.counts()).toMatchObject({ objects: 0, deletions: 36 });
	});

	test('a lock that somebody else holds delays its own calls only', async () => {
		const [stuck, free] = [make.upload(workers), make.upload(workers)];
		await begin(store, stuck);
		const other = await supabase.sql.reserve();
		await other`BEGIN`;
		await other`SELECT FROM distro.intents WHERE upload_id = ${stuck.uploadId} FOR UPDATE`;
		const waiting = store.commit(stuck.commit);
		const second = await open();
		await begin(second, free);
		await second.commit(free.commit);
		await other`ROLLBACK`;
		other.release();
		await waiting;
		await second.close();
		expect(await counts()).toBe(2);
	});
});

describe('two orchestrators', () => {
	const make = new Fixtures('two');
	const workers = Array.from({ length: 6 }, () => make.id<WorkerId>());
	let other: MetadataStore;
	beforeEach(async () => {
		other = await open();
	});
	afterEach(() => other.close());

	test('commit the same uploads at once: each is one object, and none is lost', async () => {
		const uploads = Array.from({ length: 150 }, () => make.upload(workers, { missing: [2] }));
		await Promise.all(uploads.map((upload, at) => begin(at % 2 === 0 ? store : other, upload)));
		const commits = [...uploads, ...uploads.toReversed()];
		const rows = await Promise.all(commits.map(({ commit }, at) => (at < 150 ? store : other).commit(commit)));
		for (const [at, { commit }] of commits.entries()) expect(rows[at]).toEqual(commit.object);
		expect(await other.counts()).toMatchObject({ objects: 150, intents: 0, deletions: 150, repairs: 150 });
		expect(Object.values((await checkRedundancy(store)).spreads)).toMatchObject([{ objects: 150 }]);
	});

	test('findings, repairs and deletions of the same objects at once: the counts stay those of the rows', {
		timeout: 60_000,
	}, async () => {
		const uploads = await Promise.all(Array.from({ length: 40 }, () => make.store(store, workers, { segments: 2 })));
		const calls = uploads.flatMap((upload, at) => {
			const findings = upload.shards.map((shard) => ({ ...shard, kind: 'missing' as const, detail: '', foundAtMs: 1 }));
			const each = [store, other].map((one) => () => one.addFindings(at % 2 === 0 ? findings : findings.toReversed()));
			return at % 3 === 0 ? [...each, () => other.deleteObject(upload.objectId, atOnce())] : each;
		});
		// One call about many objects, in two orders.
		const all = uploads.flatMap(({ shards }) => shards);
		const some = all.map((shard) => ({ ...shard, kind: 'corrupt' as const, detail: '', foundAtMs: 2 }));
		calls.push(
			() => store.addFindings(some),
			() => other.addFindings(some.toReversed()),
		);
		await Promise.all(calls.map((call) => call()));
		const [rows] = await supabase.sql`
			SELECT (SELECT count(*)::int FROM distro.objects) AS objects, (SELECT count(*)::int FROM distro.repairs) AS repairs,
				(SELECT count(*)::int FROM distro.deletions) AS deletions,
				(SELECT count(*)::int FROM distro.findings) AS findings,
				(SELECT count(*)::int FROM distro.repairs WHERE spares <> -4) AS miscounted`;
		expect(rows).toEqual({ objects: 26, repairs: 26 * 12, deletions: 14 * 12, findings: 26 * 12, miscounted: 0 });
		expect(await other.counts()).toMatchObject({ objects: 26, repairs: 26 * 12, deletions: 14 * 12 });
		expect(Object.keys((await checkRedundancy(store)).sets)).toEqual(['4 of 6: ']);
	});

	test('commits, findings, repairs and deletions of everything at once: counts by set are those of the rows', {
		timeout: 120_000,
	}, async () => {
		const newcomers = Array.from({ length: 4 }, () => make.id<WorkerId>());
		const both = [store, other];
		const shape = (at: number) => ({ segments: 1 + (at % 4), k: 3 + (at % 2), missing: at % 3 === 0 ? [at % 6] : [] });
		const old = await Promise.all(Array.from({ length: 60 }, (_, at) => make.store(store, workers, shape(at))));
		const fresh = Array.from({ length: 60 }, (_, at) => make.upload(workers, shape(at)));
		await Promise.all(fresh.map((upload) => begin(store, upload)));
		const mark = ({ shards }: Upload, step: number): Finding[] =>
			shards
				.filter((_, at) => at % 5 === step)
				.map((shard) => ({ ...shard, kind: 'missing', detail: '', foundAtMs: 1 }));
		await Promise.all(old.map((upload, at) => store.addFindings(mark(upload, at % 5))));
		const items = await store.repairs({ nowMs: NOW_MS * 2, limit: 1_000 });
		const repairs = await Promise.all(
			items.map(async (item, at) => {
				const uploadId = make.id<UploadId>();
				const shard = { shardId: make.id<ShardId>(), workerId: newcomers[at % 4] as WorkerId };
				await store.begin({ uploadId, objectId: item.objectId, shards: [shard], expiresAtMs: NOW_MS * 2 });
				return {
					uploadId,
					done: { item, placement: { shardIndex: item.shardIndex, ...shard }, keyGeneration: 1, nowMs: NOW_MS },
				};
			}),
		);
		await Promise.allSettled(
			both.flatMap((one, who) => [
				...fresh.map(({ commit }) => one.commit(commit)),
				...repairs.map(({ done, uploadId }) => one.repairDone(done, uploadId)),
				...old.map((upload, at) => one.addFindings(mark(upload, (at + who) % 5))),
				...old.filter((_, at) => at % 4 === who).map(({ objectId }) => one.deleteObject(objectId, atOnce())),
				...fresh.map(({ uploadId }) => one.abort(uploadId, NOW_MS)),
			]),
		);
		const { objects } = await store.counts();
		expect(objects).toBe(30 + 60);
		const truth = await checkRedundancy(other);
		expect(Object.keys(truth.sets).length).toBeGreaterThan(20);
		// Rows that cancel each other go in the end, and the counts stay.
		const cancelled = async () => {
			await store.expireIntents(0, 1);
			const [row] = await supabase.sql`
				SELECT (SELECT count(*) FROM (SELECT FROM distro.worker_sets GROUP BY set_id HAVING sum(segments) = 0) s)
					+ (SELECT count(*) FROM (SELECT FROM distro.spreads GROUP BY spread_id HAVING sum(objects) = 0) s) AS left`;
			return Number(row?.left);
		};
		await expect.poll(cancelled, { timeout: 20_000, interval: 1 }).toBe(0);
		expect(await reported(store)).toEqual(truth);
	});

	test('rows that somebody else wants in another order: nobody waits for ever, and all calls take effect', async () => {
		const [a, b] = [await make.store(store, workers), await make.store(store, workers)].sort((x, y) =>
			(x.shards[0]?.shardId ?? '') < (y.shards[0]?.shardId ?? '') ? -1 : 1,
		) as [Upload, Upload];
		const finding = ({ shards: [shard] }: Upload): Finding => ({
			...(shard as IntendedShard),
			kind: 'missing',
			detail: '',
			foundAtMs: 1,
		});
		const stranger = await supabase.sql.reserve();
		await stranger`BEGIN`;
		const lock = ({ objectId }: Upload) =>
			stranger`SELECT FROM distro.objects WHERE object_id = ${objectId} FOR NO KEY UPDATE`;
		await lock(b);
		const calls = [store.addFindings([finding(a)]), store.addFindings([finding(b)])];
		await expect
			.poll(async () => (await supabase.sql`SELECT FROM pg_locks WHERE NOT granted`).length)
			.toBeGreaterThan(0);
		await lock(a);
		await stranger`ROLLBACK`;
		stranger.release();
		await Promise.all(calls);
		expect((await store.counts()).repairs).toBe(2);
	});
});
