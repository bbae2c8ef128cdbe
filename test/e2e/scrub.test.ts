/**
 * Real processes and spoiled files that nobody reads: scrubbing alone finds rot, audits alone find rot and what is gone,
 * both lead to repair, and a volume that is away is neither.
 */

import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { decodeTrailer, readTrailerFooter, type Trailer } from '../../core/codec/trailer.ts';
import { cluster, explain, isIntact, put, type Stored } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';

const random = seededRandom('scrub e2e');
const SIZES = [70_000, 300_000, 1_000_000, 5_000_000];

function trailerOf(file: string): Trailer {
	const bytes = readFileSync(file);
	return decodeTrailer(bytes.subarray(bytes.length - readTrailerFooter(bytes).length));
}

/** Sum of a counter over its labels, of those that `labels` says. */
async function metric(http: string, name: string, labels = ''): Promise<number> {
	const text = await (await fetch(`${http}/metrics`)).text();
	const lines = text.split('\n').filter((line) => line.startsWith(`${name}{`) && line.includes(labels));
	return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
}

type Settings = Record<string, string>;
describe.each<[string, Settings]>([
	// At this period it reads a few bytes a day, but for what is asked for.
	['scrubbing', { SCRUB_PERIOD: '3650d', AUDITS_PER_HOUR: '0' }],
	['audits', { SCRUB_PERIOD: '3650d', AUDITS_PER_HOUR: '36000' }],
])('%s', (by, env) => {
	let c: TestCluster;
	beforeAll(async () => {
		c = await startCluster({ env });
	});
	afterAll(() => c?.remove());

	const shardsOf = async (stored: Stored) => (await explain(c.http, stored.id)).segments[0]?.shards ?? [];
	const fileOf = (shard: { worker: string | null; shard_id: string | null }) => {
		const shardId = shard.shard_id as string;
		return join(c.dataDir, shard.worker as string, 'shards', shardId.slice(0, 2), shardId);
	};
	const findings = (kind = '') => metric(c.http, 'distro_shard_findings_total', kind);
	const scrubbed = async () => {
		const workers = c.processes().filter(({ role, name }) => role === 'worker' && name !== 'worker-4');
		const counts = await Promise.all(
			workers.map(({ http }) => metric(http ?? '', 'distro_worker_scrubbed_shards_total')),
		);
		return counts.reduce((sum, count) => sum + count, 0);
	};
	/** How often workers were looked at. */
	const looked = () => (by === 'audits' ? metric(c.http, 'distro_audits_total') : scrubbed());

	const ask = async (what: 'run' | 'pause' | 'resume') => {
		const response = await fetch(`${c.http}/cluster/jobs/scrub/${what}`, { method: 'POST' });
		expect(response.status).toBe(200);
	};
	/** Audits come by themselves. */
	const look = async () => {
		if (by === 'scrubbing') await ask('run');
	};

	const damages: [string, string, (file: string) => void][] = [
		[
			'a flipped bit in every cell',
			'corrupt',
			(file) => {
				const { description, leaves } = trailerOf(file);
				const bytes = readFileSync(file);
				for (let cell = 0; cell < leaves.length / 32; cell++) {
					const at = cell * description.cellBytes + 11;
					bytes[at] = (bytes[at] as number) ^ 0x20;
				}
				writeFileSync(file, bytes);
			},
		],
		...(by === 'scrubbing'
			? []
			: [['a deleted file', 'missing', (file: string) => rmSync(file)] as [string, string, (file: string) => void]]),
	];

	test.each(damages)('%s is found (%s) and mended, and nobody has read the object', async (_what, kind, damage) => {
		for (const size of SIZES) {
			const stored = await put(c.http, random.bytes(size));
			for (const at of [0, -1]) {
				const before = await findings(kind);
				const shard = (await shardsOf(stored)).at(at);
				if (shard === undefined) throw new Error('no shard');
				const file = fileOf(shard);
				const { root, description } = trailerOf(file);
				damage(file);
				await look();
				await until(async () => (await shardsOf(stored)).every(({ shard_id }) => shard_id !== basename(file)), {
					what: `${by} to find it, and repair`,
					timeoutMs: 60_000,
				});
				expect(await findings(kind)).toBeGreaterThan(before);
				expect((await explain(c.http, stored.id)).health).toBe('healthy');
				const rebuilt = (await shardsOf(stored)).find(({ index }) => index === shard.index);
				if (rebuilt === undefined) throw new Error('no rebuilt shard');
				const now = trailerOf(fileOf(rebuilt));
				expect(now.root.equals(root)).toBe(true);
				expect(now.description).toEqual({ ...description, shardId: rebuilt.shard_id });
			}
			expect(await isIntact(c.http, stored)).toBe(true);
		}
		if (by === 'audits') expect(await metric(c.http, 'distro_audits_total', `outcome="${kind}"`)).toBeGreaterThan(0);
	});

	test('a volume that is away is offline: nothing is found, and everything is as before when it is back', async () => {
		const stored: Stored[] = [];
		for (const size of SIZES) stored.push(await put(c.http, random.bytes(size)));
		await until(async () => (await cluster(c.http)).queues.repairs === 0, { what: 'nothing to do' });
		const before = await findings();
		const shards = await Promise.all(stored.map(shardsOf));
		const state = async () => (await cluster(c.http)).workers.find(({ name }) => name === 'worker-4')?.state;
		const folder = join(c.dataDir, 'worker-4');
		renameSync(folder, `${folder}.away`);
		try {
			const first = await looked();
			await until(async () => (await state()) === 'suspect', { what: 'the worker to be suspect' });
			await look();
			await until(async () => (await looked()) > first + 15, { what: 'others to be looked at', timeoutMs: 60_000 });
			if (by === 'audits') {
				await until(async () => (await metric(c.http, 'distro_audits_total', 'outcome="offline"')) > 20, {
					what: 'it to be offline',
				});
			}
			expect(await findings()).toBe(before);
		} finally {
			renameSync(`${folder}.away`, folder);
		}
		await until(async () => (await state()) === 'ready', { what: 'the worker to be back' });
		const second = await looked();
		await look();
		await until(async () => (await looked()) > second + 15, { what: 'all to be looked at', timeoutMs: 60_000 });
		expect(await findings()).toBe(before);
		expect((await cluster(c.http)).queues.repairs).toBe(0);
		const now = await Promise.all(stored.map(shardsOf));
		expect(now.map((list) => list.map(({ shard_id }) => shard_id))).toEqual(
			shards.map((list) => list.map(({ shard_id }) => shard_id)),
		);
		for (const object of stored) expect(await isIntact(c.http, object)).toBe(true);
	});

	if (by === 'scrubbing') {
		test('since when all of it is verified: the beginning of the last pass, as soon as it is over everywhere', async () => {
			await put(c.http, random.bytes(1_000_000));
			const oldest = async () => {
				const response = await fetch(`${c.http}/cluster/redundancy`);
				return Date.parse(((await response.json()) as { oldest_verification: string }).oldest_verification);
			};
			const askedMs = Date.now();
			expect(await oldest()).toBeLessThanOrEqual(askedMs);
			await ask('pause');
			// What is asked for runs all the same.
			await ask('run');
			await until(async () => (await oldest()) > askedMs, { what: 'a pass of every worker', timeoutMs: 60_000 });
			expect(await oldest()).toBeLessThanOrEqual(Date.now());
			await ask('resume');
		});
	}
});
