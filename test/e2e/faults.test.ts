/** Real processes killed, stopped and robbed: what the cluster promises must hold through it. */

import { copyFileSync, existsSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { cluster, explain, get, HttpError, isIntact, put, putStream, type Stored } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';

const random = seededRandom('faults');
const SIZES = [100, 70_000, 300_000, 1_000_000, 5_000_000, 70_000_000];
const WORKERS = ['worker-1', 'worker-2', 'worker-3', 'worker-4', 'worker-5', 'worker-6'];
let c: TestCluster;

beforeAll(async () => {
	c = await startCluster();
});
afterAll(async () => {
	await c?.remove();
});
/** Whatever a test did or failed to do: the next one begins with all of them. */
afterEach(async () => {
	for (const name of ['orchestrator-1', ...WORKERS]) {
		if (c.processes().some((process) => process.name === name)) c.signal(name, 'SIGCONT');
		else await c.start(name);
	}
	await ready(6);
});

async function putAll(): Promise<Stored[]> {
	const stored: Stored[] = [];
	for (const size of SIZES) stored.push(await put(c.http, random.bytes(size)));
	return stored;
}

async function ready(count: number): Promise<void> {
	await until(async () => (await cluster(c.http)).workers.filter(({ state }) => state === 'ready').length === count, {
		what: `${count} workers to be ready`,
	});
}

async function expectIntact(stored: readonly Stored[]): Promise<void> {
	for (const object of stored) expect(await isIntact(c.http, object), `${object.size} bytes`).toBe(true);
}

function pairs(): [string, string][] {
	return WORKERS.flatMap((a, i) => WORKERS.slice(i + 1).map((b): [string, string] => [a, b]));
}

describe('workers killed', () => {
	test('every choice of two: all objects read, new ones are taken, and those read when the two are back', async () => {
		const stored = await putAll();
		for (const { id } of stored) expect((await explain(c.http, id)).health).toBe('healthy');
		const written: Stored[] = [];
		for (const [a, b] of pairs()) {
			await Promise.all([c.kill(a), c.kill(b)]);
			await expectIntact(stored);
			await expectIntact(written);
			for (const size of [100, 70_000, 2_500_000]) written.push(await put(c.http, random.bytes(size)));
			const last = await explain(c.http, (written.at(-1) as Stored).id);
			expect(last.segments[0]?.because).toContain('2 are not ready');
			await Promise.all([c.start(a), c.start(b)]);
			await ready(6);
		}
		await expectIntact([...stored, ...written]);
	});

	test('five of six: writes are refused with 503 and Retry-After, and nothing is left; then they are back without help', async () => {
		const stored = await putAll();
		const before = await cluster(c.http);
		await Promise.all(WORKERS.slice(1).map((name) => c.kill(name)));
		const refused = await put(c.http, random.bytes(100_000)).catch((error: HttpError) => error);
		expect(refused).toBeInstanceOf(HttpError);
		expect((refused as HttpError).status).toBe(503);
		expect(Number((refused as HttpError).headers.get('retry-after'))).toBeGreaterThan(0);
		// Inline objects need no worker.
		expect(await isIntact(c.http, await put(c.http, random.bytes(100)))).toBe(true);
		const read = await get(c.http, (stored[3] as Stored).id).catch((error: HttpError) => error);
		expect((read as HttpError).status).toBe(503);
		for (const name of WORKERS.slice(1)) await c.start(name);
		await ready(6);
		await expectIntact(stored);
		expect((await cluster(c.http)).objects).toBe(before.objects + 1);
	});

	test('in the middle of uploads and downloads', async () => {
		const stored = await putAll();
		const uploads = Array.from({ length: 4 }, () => putStream(c.http, { size: 60_000_000, chunked: false }));
		const downloads = stored.map((object) => isIntact(c.http, object));
		await until(async () => (await cluster(c.http)).budget.used_bytes > 0, { what: 'transfers to be under way' });
		await Promise.all([c.kill('worker-2'), c.kill('worker-5')]);
		expect(await Promise.all(downloads)).toEqual(stored.map(() => true));
		const ids: { id: string; sha256: string }[] = [];
		for (const { status, body, sha256 } of await Promise.all(uploads)) {
			// Taken, or refused because the quorum broke: never taken and lost.
			expect([201, 503]).toContain(status);
			if (status === 201) ids.push({ id: (JSON.parse(body) as { object_id: string }).object_id, sha256 });
		}
		for (const { id, sha256 } of ids) expect(await isIntact(c.http, { id, sha256, size: 0 })).toBe(true);
		await c.start('worker-2');
		await c.start('worker-5');
		await ready(6);
		// What an upload had to leave out is rebuilt by itself.
		await until(async () => (await cluster(c.http)).queues.repairs === 0, {
			what: 'the repair queue to empty',
			timeoutMs: 60_000,
		});
		for (const { id, sha256 } of ids) {
			expect((await explain(c.http, id)).health).toBe('healthy');
			expect(await isIntact(c.http, { id, sha256, size: 0 })).toBe(true);
		}
	});
});

describe('a worker stopped (SIGSTOP)', () => {
	test('holds up neither reads nor writes by more than the hedge', async () => {
		const stored = await putAll();
		c.signal('worker-3', 'SIGSTOP');
		try {
			const before = performance.now();
			await expectIntact(stored);
			const written: Stored[] = [];
			for (const size of [70_000, 1_000_000, 20_000_000]) written.push(await put(c.http, random.bytes(size)));
			await expectIntact(written);
			// Nine transfers; without hedges each would wait for the 10 s and more of a dead connection.
			expect(performance.now() - before).toBeLessThan(20_000);
			await until(
				async () => (await cluster(c.http)).workers.find(({ name }) => name === 'worker-3')?.state === 'suspect',
				{
					what: 'the stopped worker to be suspect',
				},
			);
			await expectIntact([...stored, ...written]);
		} finally {
			c.signal('worker-3', 'SIGCONT');
		}
		await ready(6);
		await until(async () => (await cluster(c.http)).queues.repairs === 0, {
			what: 'the repair queue to empty',
			timeoutMs: 60_000,
		});
	});
});

describe('shard files', () => {
	/** The file of an object's shard with this index. */
	async function shardFile(id: string, index: number): Promise<string> {
		const shard = (await explain(c.http, id)).segments[0]?.shards[index];
		const shardId = shard?.shard_id as string;
		return join(c.dataDir, shard?.worker as string, 'shards', shardId.slice(0, 2), shardId);
	}

	function flip(file: string, at: number): void {
		const bytes = readFileSync(file);
		bytes[at] = (bytes[at] as number) ^ 0x10;
		writeFileSync(file, bytes);
	}

	const damages: [string, (file: string, other: string) => void, string][] = [
		['a flipped bit', (file) => flip(file, 1000), 'corrupt'],
		['cut short', (file) => truncateSync(file, 500), 'corrupt'],
		['deleted', (file) => rmSync(file), 'missing'],
		['swapped with another object’s', (file, other) => copyFileSync(other, file), 'corrupt'],
	];

	test.each(damages)('%s: right bytes come back, explain shows it, and repair mends it', async (_, damage, kind) => {
		for (const size of [70_000, 300_000, 5_000_000]) {
			const stored = await put(c.http, random.bytes(size));
			const other = await put(c.http, random.bytes(size));
			const { segments } = await explain(c.http, stored.id);
			const { k, n } = segments[0] as { k: number; n: number };
			const file = await shardFile(stored.id, 0);
			damage(file, await shardFile(other.id, 0));
			// Which copy is read first is the cluster's choice: damage shows only where it is read.
			if (k === 1) for (let i = 1; i < n - 1; i++) damage(await shardFile(stored.id, i), await shardFile(other.id, i));
			const shardId = basename(file);
			for (let i = 0; i < 8; i++) expect(await isIntact(c.http, stored)).toBe(true);
			const known = async () => {
				// A worker that lagged just now is not read while others will do: until it is, nobody can know.
				expect(await isIntact(c.http, stored)).toBe(true);
				const shards = (await explain(c.http, stored.id)).segments[0]?.shards ?? [];
				const before = shards.find((shard) => shard.shard_id === shardId);
				return before === undefined || before.state === kind;
			};
			if (k > 1) await until(known, { what: 'explain to show the damage, or its repair' });
			await until(async () => (await cluster(c.http)).queues.repairs === 0, { what: 'repair', timeoutMs: 60_000 });
			if (k > 1) {
				const healed = await explain(c.http, stored.id);
				expect(healed.health).toBe('healthy');
				expect(healed.segments[0]?.shards.some((shard) => shard.shard_id === shardId)).toBe(false);
			}
			expect(await isIntact(c.http, stored)).toBe(true);
		}
	});

	test('a vanished volume is offline, not empty: nothing counts as missing', async () => {
		const stored = await putAll();
		const sentinel = join(c.dataDir, 'worker-4', 'volume.json');
		renameSync(sentinel, `${sentinel}.away`);
		renameSync(join(c.dataDir, 'worker-4', 'shards'), join(c.dataDir, 'worker-4', 'shards.away'));
		await expectIntact(stored);
		await until(
			async () => (await cluster(c.http)).workers.find(({ name }) => name === 'worker-4')?.state === 'suspect',
			{
				what: 'the worker to be suspect',
			},
		);
		for (const { id } of stored) {
			for (const { shards } of (await explain(c.http, id)).segments) {
				for (const shard of shards) expect(['ok', 'unreachable']).toContain(shard.state);
			}
		}
		renameSync(join(c.dataDir, 'worker-4', 'shards.away'), join(c.dataDir, 'worker-4', 'shards'));
		renameSync(`${sentinel}.away`, sentinel);
		await ready(6);
		await expectIntact(stored);
	});
});

describe('the orchestrator killed', () => {
	test('mid-upload: nothing half-written is visible, what was acknowledged reads, leftovers go', async () => {
		const stored = await putAll();
		const before = await cluster(c.http);
		const uploads = Array.from({ length: 3 }, () =>
			putStream(c.http, { size: 200_000_000, chunked: true }).catch(() => null),
		);
		await until(async () => (await cluster(c.http)).queues.intents >= 3, { what: 'uploads to be under way' });
		await c.kill('orchestrator-1');
		expect(await Promise.all(uploads)).toEqual([null, null, null]);
		await c.start('orchestrator-1');
		await ready(6);
		const after = await cluster(c.http);
		expect(after.objects).toBe(before.objects);
		await expectIntact(stored);
		// Sooner than by their own time: on a database that is its alone the one before has left them.
		await until(async () => (await cluster(c.http)).queues.intents === 0, { what: 'the intents to expire' });
		await until(async () => (await cluster(c.http)).queues.deletions === 0, { what: 'leftovers to go' });
		await expectIntact(stored);
	});

	test('a wrong MASTER_KEY is noticed at start', async () => {
		const stored = await putAll();
		const key = join(c.dataDir, 'orchestrator-1', 'master.key');
		const right = readFileSync(key, 'utf8');
		await c.kill('orchestrator-1');
		writeFileSync(key, `${random.bytes(32).toString('hex')}\n`);
		writeFileSync(join(c.dataDir, 'start-orchestrator-1'), '');
		const log = () => readFileSync(join(c.dataDir, 'orchestrator-1', 'log'), 'utf8');
		await until(() => log().includes('MASTER_KEY is not the key of this cluster'), { what: 'the sentence in the log' });
		writeFileSync(key, right);
		await until(() => !c.processes().some(({ name }) => name === 'orchestrator-1'), { what: 'it to end' });
		await c.start('orchestrator-1');
		await ready(6);
		await expectIntact(stored);
		expect(existsSync(key)).toBe(true);
	});
});

test('stopped and started again, the same data is served', async () => {
	const stored = await putAll();
	await c.stop();
	c = await startCluster({ dataDir: c.dataDir });
	await ready(6);
	await expectIntact(stored);
});
