/** Real processes, and files on their disks that no row names, and rows that no file has: found, and only what may be removed is. */

import { randomBytes } from 'node:crypto';
import { copyFileSync, existsSync, mkdtempSync, readdirSync, rmSync, utimesSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { isIntact, put, type Stored } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';
import { ClusterApi } from '../support/cluster-api.ts';

const random = seededRandom('reconcile e2e');
const HOUR_MS = 60 * 60_000;
// What is gone is to be found by reconcile alone.
const ENV = { SCRUB_PERIOD: '3650d', AUDITS_PER_HOUR: '0' };
const OBJECTS = 120;

interface Job {
	readonly state: string;
	readonly progress: {
		readonly began_at: string;
		readonly ended_at: string | null;
		readonly queued_shards: number;
		readonly missing_shards: number;
		readonly stuck: readonly { readonly worker: string; readonly unknown: number }[];
	};
}

const dataDir = mkdtempSync(join(tmpdir(), 'distro-test-'));
let c: TestCluster;
let api: ClusterApi;
const stored: Stored[] = [];

beforeAll(async () => {
	c = await startCluster({ dataDir, env: ENV });
	api = new ClusterApi(c.http);
	for (let i = 0; i < OBJECTS; i++) stored.push(await put(c.http, random.bytes(6_000 + i)));
});
afterAll(() => c?.remove());

/** A copy of one of its shards under an id that nobody gave out. */
function plant(worker: string, ageMs: number): string {
	const [from] = c.shardFiles(worker) as [string];
	const shardId = randomBytes(16).toString('hex');
	const file = join(dataDir, worker, 'shards', shardId.slice(0, 2), shardId);
	copyFileSync(from, file);
	const atS = (Date.now() - ageMs) / 1000;
	utimesSync(file, atS, atS);
	return file;
}

function isInTrash(worker: string, file: string): boolean {
	const trash = join(dataDir, worker, 'trash');
	return readdirSync(trash).some((day) => existsSync(join(trash, day, basename(file))));
}

async function job(): Promise<Job> {
	const { jobs } = (await (await fetch(`${c.http}/cluster/jobs`)).json()) as { jobs: (Job & { name: string })[] };
	const found = jobs.find(({ name }) => name === 'reconcile');
	if (found === undefined) throw new Error('no such job');
	return found;
}

async function reconcile(): Promise<Job> {
	const { began_at: before } = (await job()).progress;
	await api.runJob('reconcile');
	const isOver = ({ progress, state }: Job) =>
		progress.began_at !== before && progress.ended_at !== null && state !== 'running';
	await until(async () => isOver(await job()), { what: 'reconcile to end', timeoutMs: 60_000 });
	return job();
}

test('orphans go to the trash, the young stay, what is gone is rebuilt, and too much is left alone', async () => {
	const old = [plant('worker-1', 25 * HOUR_MS), plant('worker-2', 1_000 * HOUR_MS)] as [string, string];
	const young = [plant('worker-1', 23 * HOUR_MS), plant('worker-5', 0)];
	const many = Array.from({ length: 10 }, () => plant('worker-3', 25 * HOUR_MS));
	const gone = c.shardFiles('worker-4').slice(0, 3);
	for (const file of gone) rmSync(file);

	const { state, progress } = await reconcile();
	expect(progress).toMatchObject({ queued_shards: 2, missing_shards: 3, stuck: [{ worker: 'worker-3', unknown: 10 }] });
	expect(state).toBe('stuck');
	await until(() => isInTrash('worker-1', old[0]) && isInTrash('worker-2', old[1]), { what: 'the trash' });
	for (const file of old) expect(existsSync(file)).toBe(false);
	for (const file of [...young, ...many]) expect(existsSync(file)).toBe(true);

	const isWhole = async () => {
		const { healthy, objects } = await api.redundancy();
		const { deletions, repairs } = (await api.view()).queues;
		return healthy === objects && deletions + repairs === 0;
	};
	await until(isWhole, { what: 'the lost shards to be rebuilt', timeoutMs: 60_000 });
	for (const file of gone) expect(existsSync(file)).toBe(false);
	const metrics = await api.metrics();
	expect(metrics).toMatch(/^distro_reconcile_stopped_workers\{[^}]*\} 1$/m);
	expect(metrics).toMatch(/^distro_unknown_shards_total\{[^}]*\} 2$/m);
	expect(c.logs()).toContain('too many shards are unknown');

	// Somebody has looked, and allows it.
	await c.stop();
	c = await startCluster({ dataDir, env: { ...ENV, RECONCILE_LIMIT: '100' } });
	api = new ClusterApi(c.http);
	expect(await reconcile()).toMatchObject({
		state: 'idle',
		progress: { queued_shards: 10, missing_shards: 0, stuck: [] },
	});
	await until(() => many.every((file) => isInTrash('worker-3', file)), { what: 'the trash' });
	for (const file of young) expect(existsSync(file)).toBe(true);
	expect(await api.metrics()).toMatch(/^distro_reconcile_stopped_workers\{[^}]*\} 0$/m);
	for (const one of stored.filter((_, i) => i % 10 === 0)) expect(await isIntact(c.http, one)).toBe(true);
	const placed = (await api.view()).workers.reduce((sum, { shards_placed }) => sum + shards_placed, 0);
	const files = (await api.view()).workers.flatMap(({ name }) => c.shardFiles(name));
	expect(files.length).toBe(placed + young.length);
}, 180_000);
