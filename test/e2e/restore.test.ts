/**
 * The metadata of a real cluster destroyed under load, and brought back from its workers: from a snapshot and what was
 * written since, and from nothing but worker folders and the master key. Whatever was acknowledged and has k shards reads
 * with its checksum and its name.
 */

import { spawn } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Cluster, cluster, explain, isIntact, put, type Stored } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';

const ROOT = resolve(import.meta.dirname, '../..');
const random = seededRandom('restore');
const WORKERS = 6;
const INLINE_MAX = 4096;

interface Kept extends Stored {
	readonly name: string;
}

/** What was acknowledged, by when. */
const before: Kept[] = [];
const since: Kept[] = [];
const trashedBefore: Kept[] = [];
/** After the snapshot, which does not know of it. */
const trashedSince: Kept[] = [];
const shards = new Map<string, { worker: string; shardId: string }[]>();
let masterKey = '';
let dataDir = '';
let bareDir = '';
let supabaseDir = '';
let c: TestCluster | null = null;

const isSharded = ({ size }: Stored) => size > INLINE_MAX;

async function store(http: string, size: number): Promise<Kept> {
	const name = `file ${size} ${random.bytes(3).toString('hex')}.bin`;
	const bytes = random.bytes(size);
	const form = new FormData();
	form.append('file', new Blob([new Uint8Array(bytes)]), name);
	const response = await fetch(`${http}/upload`, { method: 'POST', body: form });
	if (response.status !== 201) throw new Error(await response.text());
	const { object_id: id } = (await response.json()) as { object_id: string };
	const { sha256 } = await import('../support/client.ts');
	return { id, name, size, sha256: sha256(bytes) };
}

const remove = (http: string, { id }: Stored) => fetch(`${http}/objects/${id}`, { method: 'DELETE' });

async function snapshots(http: string): Promise<{ objects: number; copies: number; object_id: string }[]> {
	const answer = (await (await fetch(`${http}/cluster/snapshots`)).json()) as { snapshots: never[] };
	return answer.snapshots;
}

async function runSnapshot(http: string): Promise<void> {
	const { length } = await snapshots(http);
	await fetch(`${http}/cluster/jobs/snapshot/run`, { method: 'POST' });
	await until(async () => (await snapshots(http)).length > length, { what: 'a snapshot' });
}

/** One of a worker folder's shards, by its id. */
function shardFile(folder: string, { worker, shardId }: { worker: string; shardId: string }): string {
	return join(folder, worker, 'shards', shardId.slice(0, 2), shardId);
}

/** Every file with its size and time, but for what a worker writes whenever it runs. */
function tree(folder: string): string[] {
	return readdirSync(folder, { recursive: true, encoding: 'utf8' })
		.filter((path) => statSync(join(folder, path)).isFile() && !/scrub\.json$|supervisor\.lock/.test(path))
		.map((path) => {
			const { size, mtimeMs } = statSync(join(folder, path));
			// A worker that starts makes its keys durable once more: the same bytes, and so the same size.
			return `${relative('.', path)} ${size} ${path.endsWith('keys.json') ? '' : mtimeMs}`;
		})
		.sort();
}

async function restore(folder: string, args: readonly string[], env: Record<string, string> = {}) {
	const child = spawn(process.execPath, [join(ROOT, 'hack/restore.ts'), ...args], {
		env: {
			PATH: process.env.PATH ?? '',
			HOME: process.env.HOME ?? '/tmp',
			DISTRO_NO_DOTENV: '1',
			DATA_DIR: folder,
			...env,
		},
		stdio: ['ignore', 'pipe', 'pipe'],
	});
	let output = '';
	for (const stream of [child.stdout, child.stderr]) {
		stream.on('data', (text: Buffer) => {
			output += text.toString();
		});
	}
	const code = await new Promise<number | null>((done) => child.once('close', done));
	return { code, output };
}

/** A figure of the report. */
function figure(output: string, name: string): number {
	const found = new RegExp(`^ +${name} +([\\d,]+)`, 'm').exec(output);
	if (found === null) throw new Error(`no ${name} in:\n${output}`);
	return Number((found[1] as string).replaceAll(',', ''));
}

async function expectIntact(http: string, objects: readonly Kept[]): Promise<void> {
	expect(objects.length).toBeGreaterThan(0);
	for (const object of objects) {
		expect(await isIntact(http, object), `${object.name} (${object.id})`).toBe(true);
		const { headers } = await fetch(`${http}/download/${object.id}`, { method: 'HEAD' });
		expect(decodeURIComponent(headers.get('content-disposition') ?? '')).toContain(object.name);
	}
}

async function expectWhole(http: string, objects: readonly Kept[]): Promise<void> {
	const report = async () => (await (await fetch(`${http}/cluster/redundancy`)).json()) as Record<string, number>;
	await until(
		async () => {
			const { queues } = await cluster(http);
			const { objects: all, healthy } = await report();
			return queues.repairs === 0 && queues.deletions === 0 && all === healthy;
		},
		{ timeoutMs: 120_000, what: 'everything to be whole again' },
	);
	for (const { id } of objects.filter(isSharded)) expect((await explain(http, id)).health).toBe('healthy');
}

beforeAll(async () => {
	dataDir = mkdtempSync(join(tmpdir(), 'distro-test-'));
	bareDir = mkdtempSync(join(tmpdir(), 'distro-test-'));
	supabaseDir = mkdtempSync(join(tmpdir(), 'distro-test-'));
	c = await startCluster({ dataDir, workers: WORKERS });
	const { http } = c;
	masterKey = readFileSync(join(dataDir, 'orchestrator-1', 'master.key'), 'utf8').trim();
	for (const size of [3, 4096, 5_000, 70_000, 300_000, 1_500_000, 5 << 20, 70 << 20])
		before.push(await store(http, size));
	for (const size of [10, 90_000, 2 << 20]) {
		const gone = await store(http, size);
		trashedBefore.push(gone);
		await remove(http, gone);
	}
	await runSnapshot(http);
	for (const size of [50, 6_000, 400_000, 3 << 20]) since.push(await store(http, size));
	const gone = await store(http, 100_000);
	since.push(gone);
	const late = before.find(({ size }) => size === 300_000) as Kept;
	await remove(http, late);
	trashedSince.push(late);
	before.splice(before.indexOf(late), 1);
	for (const { id } of [...before, ...since].filter(isSharded)) {
		const { segments } = await explain(http, id);
		const found = segments.flatMap((segment) =>
			segment.shards
				.slice(0, segment.n - segment.k)
				.flatMap(({ worker, shard_id: shardId }) => (worker === null || shardId === null ? [] : { worker, shardId })),
		);
		shards.set(id, found);
	}
	// More comes while it dies: what is acknowledged counts.
	let dies = false;
	const load = Array.from({ length: 4 }, async () => {
		while (!dies) {
			try {
				since.push(await store(http, 20_000 + random.bytes(2).readUInt16LE()));
			} catch {
				return;
			}
		}
	});
	const enough = since.length + 12;
	await until(() => since.length >= enough, { what: 'some load' });
	await c.kill('orchestrator-1');
	dies = true;
	await Promise.all(load);
	await c.stop();
	cpSync(dataDir, bareDir, { recursive: true });
	for (const file of readdirSync(join(dataDir, 'orchestrator-1'))) {
		if (file.startsWith('metadata.db')) rmSync(join(dataDir, 'orchestrator-1', file));
	}
	cpSync(dataDir, supabaseDir, { recursive: true });
}, 240_000);

afterAll(async () => {
	await c?.stop();
	for (const folder of [dataDir, bareDir, supabaseDir]) rmSync(folder, { recursive: true, force: true });
});

describe('from a snapshot', () => {
	test('a dry run says what would come back, and changes nothing', async () => {
		const untouched = tree(dataDir);
		const { code, output } = await restore(dataDir, ['--from', 'snapshot', '--dry']);
		expect(output).toContain('nothing was written');
		expect(figure(output, 'recovered')).toBeGreaterThanOrEqual(before.length);
		expect([0, 3]).toContain(code);
		expect(tree(dataDir)).toEqual(untouched);
	});

	test('all that it knows and all shards since come back, with names, and the cluster is whole again', async () => {
		const { code, output } = await restore(dataDir, ['--from', 'snapshot']);
		const sharded = since.filter(isSharded);
		expect([0, 3], output).toContain(code);
		expect(figure(output, 'since the snapshot')).toBeGreaterThanOrEqual(sharded.length);
		expect(figure(output, 'from the metadata')).toBe(before.filter((object) => !isSharded(object)).length + 1);
		expect(figure(output, 'snapshots')).toBe(1);
		expect((await restore(dataDir, ['--from', 'snapshot'])).output).toContain('it is in use');
		c = await startCluster({ dataDir, workers: WORKERS });
		const { http } = c;
		await expectIntact(http, [...before, ...sharded]);
		// The snapshot did not know yet that it was deleted.
		await expectIntact(http, trashedSince);
		for (const { id } of since.filter((object) => !isSharded(object))) {
			expect((await fetch(`${http}/objects/${id}`)).status).toBe(404);
		}
		for (const object of trashedBefore) {
			expect((await fetch(`${http}/objects/${object.id}`)).status).toBe(404);
			expect((await fetch(`${http}/objects/${object.id}/undelete`, { method: 'POST' })).status).toBe(200);
		}
		await expectIntact(http, trashedBefore);
		const [snapshot] = await snapshots(http);
		expect(snapshot).toMatchObject({ copies: WORKERS - 1 });
		expect((await fetch(`${http}/download/${snapshot?.object_id}`)).status).toBe(404);
		await expectWhole(http, [...before, ...sharded]);
		await put(http, random.bytes(100_000));
		await c.stop();
	});
});

describe('from bare disks', () => {
	test('worker folders and the master key are enough, n - k shards of each missing', async () => {
		for (const name of readdirSync(bareDir)) {
			if (!name.startsWith('worker-')) rmSync(join(bareDir, name), { recursive: true });
			else rmSync(join(bareDir, name, 'tls'), { recursive: true, force: true });
		}
		for (const each of shards.values()) for (const shard of each) rmSync(shardFile(bareDir, shard), { force: true });
		const env = { MASTER_KEY: masterKey };
		const wrong = await restore(bareDir, ['--from', 'disks', '--dry'], { MASTER_KEY: 'ab'.repeat(32) });
		expect(wrong).toMatchObject({ code: 1, output: expect.stringContaining('they need master key') });
		const untouched = tree(bareDir);
		expect((await restore(bareDir, ['--from', 'disks', '--dry', '--verify'], env)).output).toContain('A dry run');
		expect(tree(bareDir)).toEqual(untouched);

		const { code, output } = await restore(bareDir, ['--from', 'disks', '--verify'], env);
		const sharded = [...before, ...since].filter(isSharded);
		expect([0, 3], output).toContain(code);
		expect(output).toContain('nobody knows how many');
		expect(figure(output, 'recovered')).toBeGreaterThanOrEqual(sharded.length);
		expect(figure(output, 'with too few shards')).toBeGreaterThanOrEqual(shards.size);
		c = await startCluster({ dataDir: bareDir, workers: WORKERS, env });
		const { http } = c;
		await expectIntact(http, sharded);
		for (const { id } of before.filter((object) => !isSharded(object))) {
			expect((await fetch(`${http}/objects/${id}`)).status).toBe(404);
		}
		const { objects } = (await cluster(http)) as Cluster;
		expect(objects).toBe(figure(output, 'recovered'));
		await expectWhole(http, sharded);
		expect(existsSync(join(bareDir, 'ca', 'ca.crt'))).toBe(true);
		await c.stop();
	});
});

test('into PostgreSQL, from a snapshot', async () => {
	const env = { METADATA: 'supabase' };
	const sharded = since.filter(isSharded);
	const { code, output } = await restore(supabaseDir, ['--from', 'snapshot'], env);
	expect([0, 3], output).toContain(code);
	c = await startCluster({ dataDir: supabaseDir, workers: WORKERS, env });
	const { http } = c;
	await expectIntact(http, [...before, ...sharded, ...trashedSince]);
	for (const { id } of trashedBefore) expect((await fetch(`${http}/objects/${id}`)).status).toBe(404);
	expect((await cluster(http)).objects).toBe(figure(output, 'recovered') - trashedBefore.length);
	await expectWhole(http, [...before, ...sharded]);
	await c.stop();
});
