/**
 * Thousands of objects stored, deleted and had back, while workers are away: in the end the disks have what the metadata
 * says, to the shard, and nothing of what was purged is left anywhere.
 */

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Cluster, cluster, explain, HttpError, isIntact, put, type Stored } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';

const OBJECTS = 5_000;
/** Of each fifteen objects, by their place: five are deleted, and of these one or two had back; in all a third and a tenth. */
const isDeleted = (at: number) => at % 3 === 0;
const isUndeleted = (at: number) => isDeleted(at) && at % 10 < 3;
const isPurgedByHand = (at: number) => isDeleted(at) && !isUndeleted(at) && at % 70 === 3;
const SIZES = [5_000, 5_000, 5_000, 9_000, 5_000, 30_000, 5_000, 70_000, 5_000, 100, 5_000, 4_097, 5_000, 150_000];
const LANES = 12;
const CHUNK = 150;
const WORKERS = ['worker-1', 'worker-2', 'worker-3', 'worker-4', 'worker-5', 'worker-6'];
/** Long enough for a chunk. */
const TRASH_PERIOD = '20s';

const pattern = seededRandom('deleting').bytes(400_000);
let c: TestCluster;

beforeAll(async () => {
	c = await startCluster({ env: { TRASH_PERIOD } });
});
afterAll(() => c?.remove());

function bytesOf(at: number): Buffer {
	const from = (at * 41) % 200_000;
	return pattern.subarray(from, from + (SIZES[at % SIZES.length] as number));
}

/** Some at once. */
async function each<T>(items: readonly T[], what: (item: T) => Promise<unknown>): Promise<void> {
	const rest = items.values();
	const lane = async () => {
		for (const item of rest) await what(item);
	};
	await Promise.all(Array.from({ length: LANES }, lane));
}

async function ask(method: string, path: string): Promise<{ status: number; headers: Headers; body: string }> {
	const response = await fetch(`${c.http}${path}`, { method });
	return { status: response.status, headers: response.headers, body: await response.text() };
}

async function json<T>(path: string): Promise<T> {
	const { status, headers, body } = await ask('GET', path);
	if (status !== 200) throw new HttpError(status, body, headers);
	return JSON.parse(body) as T;
}

const queues = async (): Promise<Cluster['queues'] & { trash: number }> => {
	const view = (await cluster(c.http)) as Cluster & { trash: { objects: number } };
	return { ...view.queues, trash: view.trash.objects };
};

test('5,000 objects, a third deleted, a tenth had back, workers away meanwhile: disks and metadata agree to the shard', async () => {
	const stored = new Map<number, Stored>();
	const store = async (at: number) => {
		stored.set(at, await put(c.http, bytesOf(at)));
	};
	const all = Array.from({ length: OBJECTS }, (_, at) => at);
	const idOf = (at: number) => stored.get(at)?.id as string;
	await each(all.slice(0, 4_500), store);
	await c.kill('worker-2');
	c.signal('worker-5', 'SIGSTOP');
	await each(all.slice(4_500), store);

	/** Of what is purged, as far as it was placed before. */
	const purgedShards = new Set<string>();
	for (let from = 0; from < OBJECTS; from += CHUNK) {
		const chunk = all.slice(from, from + CHUNK).filter(isDeleted);
		await each(
			chunk.filter((at) => !isUndeleted(at)),
			async (at) => {
				const { segments } = await explain(c.http, idOf(at));
				for (const { shards } of segments) for (const { shard_id: id } of shards) if (id !== null) purgedShards.add(id);
			},
		);
		await each(chunk, async (at) => expect((await ask('DELETE', `/objects/${idOf(at)}`)).status).toBe(204));
		await each(chunk.filter(isUndeleted), async (at) => {
			const { status, body } = await ask('POST', `/objects/${idOf(at)}/undelete`);
			expect(JSON.parse(body)).toMatchObject({ object_id: idOf(at), size: bytesOf(at).length });
			expect(status).toBe(200);
		});
		await each(chunk.filter(isPurgedByHand), async (at) => {
			expect((await ask('DELETE', `/trash/${idOf(at)}`)).status).toBe(204);
		});
		if (from > OBJECTS / 2) c.signal('worker-5', 'SIGCONT');
	}
	expect(purgedShards.size).toBeGreaterThan(2_000);

	// Purging begins while worker-2 is away; what it has waits for it.
	const deleted = all.filter(isDeleted);
	const undeleted = all.filter(isUndeleted);
	expect([deleted.length, undeleted.length]).toEqual([1_667, 500]);
	await until(async () => (await queues()).trash === 0, { what: 'the trash to be emptied', timeoutMs: 120_000 });
	expect((await queues()).deletions).toBeGreaterThan(100);
	await c.start('worker-2');
	await until(
		async () => {
			const { intents, deletions, repairs } = await queues();
			return intents + deletions + repairs === 0;
		},
		{ what: 'all queues to be empty', timeoutMs: 120_000 },
	);

	const left = all.filter((at) => !isDeleted(at) || isUndeleted(at));
	expect((await cluster(c.http)).objects).toBe(left.length);
	await each([...undeleted, ...left.filter((at) => at % 8 === 1)], async (at) => {
		expect(await isIntact(c.http, stored.get(at) as Stored)).toBe(true);
	});
	await each(
		deleted.filter((at) => !isUndeleted(at) && at % 5 === 0),
		async (at) => {
			expect((await ask('GET', `/objects/${idOf(at)}`)).status).toBe(404);
			expect((await ask('POST', `/objects/${idOf(at)}/undelete`)).status).toBe(404);
		},
	);
	const purged = deleted.length - undeleted.length;
	const verdict = await json('/deletions/verify');
	expect(verdict).toMatchObject({ entries: deleted.length + undeleted.length + purged, intact: true, first_bad: null });

	await c.stop();
	const db = new DatabaseSync(join(c.dataDir, 'orchestrator-1', 'metadata.db'));
	const placed = db
		.prepare('SELECT worker_id AS worker, shard_id AS shard FROM placements JOIN objects USING (object_no)')
		.all() as { worker: string; shard: string }[];
	db.close();
	for (const name of WORKERS) {
		const folder = join(c.dataDir, name);
		const { workerId } = JSON.parse(readFileSync(join(folder, 'worker.json'), 'utf8')) as { workerId: string };
		const expected = placed.filter(({ worker }) => worker === workerId).map(({ shard }) => shard);
		expect(filesIn(join(folder, 'shards')), `shards of ${name}`).toEqual(expected.sort());
		expect(expected.length).toBeGreaterThan(500);
		const trash = filesIn(join(folder, 'trash'));
		expect(
			trash.filter((shard) => purgedShards.has(shard)),
			`trash of ${name}`,
		).toEqual([]);
	}
}, 600_000);

test('the trash as people see it', async () => {
	c = await startCluster({ dataDir: c.dataDir, env: { TRASH_PERIOD: '7d' } });
	await until(async () => (await cluster(c.http)).workers.every(({ state }) => state === 'ready'), {
		what: 'all workers',
	});
	const before = (await cluster(c.http)).objects;
	const answer = await fetch(`${c.http}/objects?name=letter.txt`, {
		method: 'POST',
		body: 'dear friend, '.repeat(2_000),
	});
	const { object_id: id, created_at } = (await answer.json()) as { object_id: string; created_at: string };
	const gone = await ask('DELETE', `/objects/${id}`);
	const freedAt = gone.headers.get('distro-freed-at') as string;
	expect(gone.status).toBe(204);
	expect(Date.parse(freedAt) - Date.now()).toBeGreaterThan(6.9 * 86_400_000);
	const problem = JSON.parse((await ask('GET', `/objects/${id}`)).body) as { status: number; detail: string };
	expect(problem).toMatchObject({ status: 404, detail: expect.stringContaining(freedAt) });
	expect(problem.detail).toContain(`POST /objects/${id}/undelete`);
	for (const [method, path] of [
		['HEAD', `/objects/${id}`],
		['GET', `/download/${id}`],
		['GET', `/objects/${id}/explain`],
		['DELETE', `/objects/${id}`],
	] as const) {
		expect((await ask(method, path)).status).toBe(404);
	}
	const { objects, next } = await json<{ objects: object[]; next: null }>('/trash');
	const deletedAt = new Date(Date.parse(freedAt) - 7 * 86_400_000).toISOString();
	const shown = {
		object_id: id,
		size: 26_000,
		name: 'letter.txt',
		created_at,
		deleted_at: deletedAt,
		freed_at: freedAt,
	};
	expect([objects, next]).toEqual([[expect.objectContaining(shown)], null]);
	expect((await cluster(c.http)).objects).toBe(before);
	expect((await ask('GET', '/metrics')).body).toMatch(/distro_queue_length\{queue="trash",[^}]*\} 1\n/);
	for (let time = 0; time < 2; time++) expect((await ask('POST', `/objects/${id}/undelete`)).status).toBe(200);
	expect((await ask('GET', `/objects/${id}`)).body).toBe('dear friend, '.repeat(2_000));
	expect((await ask('DELETE', `/trash/${id}`)).status).toBe(404);
	await ask('DELETE', `/objects/${id}`);
	expect((await ask('DELETE', `/trash/${id}`)).status).toBe(204);
	expect((await ask('DELETE', `/trash/${id}`)).status).toBe(404);
	expect((await ask('POST', `/objects/${id}/undelete`)).status).toBe(404);
	expect((await json<{ objects: object[] }>('/trash')).objects).toEqual([]);
	expect((await ask('POST', '/objects/nothing/undelete')).status).toBe(400);

	const { entries } = await json<{ entries: number }>('/deletions/verify');
	const log = await json<{ entries: { action: string; object_id: string }[]; next: number | null }>(
		`/deletions?after=${entries - 4}&limit=4`,
	);
	expect(log.entries.map(({ action, object_id }) => [action, object_id])).toEqual(
		['trashed', 'undeleted', 'trashed', 'purged'].map((action) => [action, id]),
	);
	const head = await json<{ head: string }>('/deletions/verify');
	expect(log.entries.at(-1)).toMatchObject({ number: entries, hash: head.head, by: '' });
});

test('an entry of the log that somebody edits in the database is found', async () => {
	await c.stop();
	const path = join(c.dataDir, 'orchestrator-1', 'metadata.db');
	const edit = (statement: string) => {
		const db = new DatabaseSync(path);
		db.exec(statement);
		db.close();
	};
	edit("UPDATE deletion_log SET by_key = 'somebody else' WHERE entry_no = 77");
	c = await startCluster({ dataDir: c.dataDir });
	expect(await json('/deletions/verify')).toMatchObject({ intact: false, first_bad: 77 });
	await c.stop();
	edit("UPDATE deletion_log SET by_key = '' WHERE entry_no = 77; DELETE FROM deletion_log WHERE entry_no > 100");
	c = await startCluster({ dataDir: c.dataDir });
	expect(await json('/deletions/verify')).toMatchObject({ intact: false, first_bad: 101 });
});

function filesIn(folder: string): string[] {
	return readdirSync(folder, { recursive: true, encoding: 'utf8' })
		.map((file) => file.split('/')[1] ?? '')
		.filter((file) => file !== '')
		.sort();
}
