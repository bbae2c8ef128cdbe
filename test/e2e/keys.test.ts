/**
 * Every key of a running cluster is rotated, with traffic and a worker away: nothing is unreadable for a moment, what still
 * needs the old key is said, and when nothing does it can go.
 */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { startRequestPath } from '../../hack/cluster-file.ts';
import type { ClusterKeysView } from '../../orchestrator/cluster.types.ts';
import type { JobView } from '../../orchestrator/job-control.ts';
import { isIntact, put, type Stored } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';

const random = seededRandom('rotation');
const [OLD, NEW, OTHER] = ['a1', 'b2', 'c3'].map((byte) => byte.repeat(32)) as [string, string, string];
const WORKERS = 6;
const AWAY = 'worker-6';
const TIMEOUT_MS = 120_000;

let folder: string;
let keyFile: string;
let c: TestCluster;

beforeEach(() => {
	folder = mkdtempSync(join(tmpdir(), 'distro-keys-'));
	keyFile = join(folder, 'master.keys');
});
afterEach(async () => {
	await c?.remove();
	rmSync(folder, { recursive: true, force: true });
});

async function ask<T>(http: string, path: string, method = 'GET'): Promise<{ status: number; body: T; text: string }> {
	const response = await fetch(`${http}${path}`, { method, signal: AbortSignal.timeout(20_000) });
	const text = await response.text();
	return { status: response.status, body: JSON.parse(text) as T, text };
}
const keys = async (http = c.http) => (await ask<ClusterKeysView>(http, '/cluster/keys')).body;
const masterKey = async (id: string, http = c.http) => (await keys(http)).master_keys.find((one) => one.id === id);
const generation = async (number: number) =>
	(await keys()).generations.find((one) => one.generation === number) as ClusterKeysView['generations'][number];
const onVolume = (worker: string) =>
	JSON.parse(readFileSync(join(c.dataDir, worker, 'keys.json'), 'utf8')) as {
		keys: { generation: number; masterKeyId: string }[];
	};

/** Uploads and reads until it is told to stop; whatever fails is an error of the test. */
function traffic(): { stop(): Promise<Stored[]> } {
	const stored: Stored[] = [];
	let isOver = false;
	const client = async (http: string) => {
		while (!isOver) {
			stored.push(await put(http, random.bytes(stored.length % 3 === 0 ? 2_000 : 200_000)));
			const any = stored[Math.floor((stored.length * random.bytes(1).readUInt8()) / 256)] as Stored;
			if (!(await isIntact(http, any))) throw new Error(`object ${any.id} is not what it was`);
		}
	};
	const clients = Promise.all(c.orchestrators.map(client));
	clients.catch(() => {});
	return {
		stop: async () => {
			isOver = true;
			await clients;
			return stored;
		},
	};
}

async function allRead(stored: readonly Stored[]): Promise<void> {
	for (const http of c.orchestrators) {
		for (const one of stored) if (!(await isIntact(http, one))) throw new Error(`object ${one.id} is not what it was`);
	}
}

describe.each([
	{ metadata: 'sqlite', orchestrators: 1 },
	{ metadata: 'supabase', orchestrators: 2 },
])('with $orchestrators on $metadata', ({ metadata, orchestrators }) => {
	test('master key and cluster key', { timeout: 900_000 }, async () => {
		writeFileSync(keyFile, `old:${OLD}`);
		c = await startCluster({
			workers: WORKERS,
			env: {
				MASTER_KEY_FILE: keyFile,
				...(metadata === 'supabase' ? { METADATA: metadata, ORCHESTRATORS: String(orchestrators) } : {}),
			},
		});
		const kept = [await put(c.http, random.bytes(100)), await put(c.http, random.bytes(3_000_000))];
		let running = traffic();
		await until(() => [1, 2, 3, 4, 5, 6].every((n) => onVolume(`worker-${n}`).keys.length === 1), {
			what: 'the keys on every volume',
		});

		// A new master key, read by running orchestrators, while a worker is away.
		await c.kill(AWAY);
		writeFileSync(keyFile, `new:${NEW},old:${OLD}`);
		for (const http of c.orchestrators) {
			await until(async () => (await masterKey('new', http))?.primary === true, {
				timeoutMs: TIMEOUT_MS,
				what: 'the new master key to be taken',
			});
		}
		await until(async () => (await keys()).generations.every((one) => one.master_key_id === 'new'), {
			what: 'the cluster key to be wrapped anew',
		});
		await until(async () => (await masterKey('old'))?.needed_by_volumes.join() === AWAY, {
			timeoutMs: TIMEOUT_MS,
			what: 'the others to have it',
		});
		expect(await masterKey('old')).toMatchObject({ may_drop: false, needed_by_generations: [] });
		expect((await masterKey('old'))?.because).toContain(AWAY);
		expect(onVolume('worker-1').keys[0]?.masterKeyId).toBe('new');
		expect(onVolume(AWAY).keys[0]?.masterKeyId).toBe('old');
		await c.start(AWAY);
		await until(async () => (await masterKey('old'))?.may_drop === true, {
			timeoutMs: TIMEOUT_MS,
			what: 'the old master key to be needed by nobody',
		});
		expect(onVolume(AWAY).keys[0]?.masterKeyId).toBe('new');
		kept.push(...(await running.stop()));

		// What was said is true: without the old one it starts, and reads everything.
		writeFileSync(keyFile, `new:${NEW}`);
		await c.kill('orchestrator-1');
		await c.start('orchestrator-1');
		await allRead(kept);

		// A wrong list: which key is missing.
		writeFileSync(keyFile, `other:${OTHER},old:${OLD}`);
		await c.kill('orchestrator-1');
		writeFileSync(startRequestPath(c.dataDir, 'orchestrator-1'), '');
		const log = join(c.dataDir, 'orchestrator-1', 'log');
		const sentence = /needs master key new \(generation 1 of the cluster key\), and other, old was given/;
		await until(() => sentence.test(readFileSync(log, 'utf8')), { what: 'the sentence' });
		await until(() => !c.processes().some(({ name }) => name === 'orchestrator-1'), { what: 'it to end' });
		writeFileSync(keyFile, `new:${NEW}`);
		await c.start('orchestrator-1');

		// A new generation of the cluster key.
		running = traffic();
		const rotated = await ask<ClusterKeysView>(c.http, '/cluster/keys/rotate', 'POST');
		expect(rotated.status).toBe(200);
		expect(rotated.body.generations.map((one) => one.generation)).toEqual([1, 2]);
		const rewrap = async () =>
			(await ask<{ jobs: JobView[] }>(c.http, '/cluster/jobs')).body.jobs.find(({ name }) => name === 'rewrap');
		await until(
			async () => {
				const { progress } = (await rewrap()) as JobView;
				return progress.generation === 2 && progress.percent === 100 && progress.left_objects === 0;
			},
			{ timeoutMs: TIMEOUT_MS, what: 'all data keys to be wrapped anew' },
		);
		kept.push(...(await running.stop()));
		expect((await generation(1)).shards).toBeGreaterThan(0);
		// Snapshots of the metadata are objects as well.
		expect((await generation(2)).objects).toBeGreaterThanOrEqual(kept.length);
		expect((await generation(1)).objects).toBe(0);
		const refused = await ask<{ detail: string }>(c.http, '/cluster/keys/1', 'DELETE');
		expect(refused.status).toBe(409);
		expect(refused.text).toMatch(/generation 1 can't be dropped: the trailers of \d+ shards have a data key/);
		expect((await ask(c.http, '/cluster/keys/2', 'DELETE')).text).toMatch(/it is the newest/);
		expect((await ask(c.http, '/cluster/keys/3', 'DELETE')).status).toBe(404);
		await allRead(kept);

		// Old trailers written anew, because somebody asks; then it may go.
		expect((await ask(c.http, '/cluster/jobs/renew-trailers/run', 'POST')).status).toBe(200);
		await until(async () => (await generation(1)).shards === 0, { timeoutMs: 300_000, what: 'no old trailers' });
		await until(
			async () => {
				const { status } = await ask(c.http, '/cluster/keys/1', 'DELETE');
				return status === 200;
			},
			{ timeoutMs: TIMEOUT_MS, what: 'the old generation to be dropped' },
		);
		expect((await keys()).generations.map((one) => one.generation)).toEqual([2]);
		await until(
			() =>
				[1, 2, 3, 4, 5, 6].every(
					(n) =>
						onVolume(`worker-${n}`)
							.keys.map((key) => key.generation)
							.join() === '2',
				),
			{ timeoutMs: TIMEOUT_MS, what: 'every volume to have the new record' },
		);
		for (let n = 1; n <= orchestrators; n++) {
			await c.kill(`orchestrator-${n}`);
			await c.start(`orchestrator-${n}`);
		}
		await allRead(kept);
		expect(`${c.logs()} ${c.output()}`).not.toMatch(new RegExp(`${OLD}|${NEW}|${OTHER}`, 'i'));
	});
});
