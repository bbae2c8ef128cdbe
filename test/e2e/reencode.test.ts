/**
 * A cluster that grows, with real processes: what two workers were given is encoded anew for six, while people read it and the
 * orchestrator is killed in the middle of it.
 */

import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { getHash, put, type Stored, sha256 } from '../support/client.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';
import { ClusterApi } from '../support/cluster-api.ts';
import { joined, type Machine, shardsOnDisk, supervised } from '../support/machines.ts';

/** One cell, two, few and many of both sizes of cells, a large one, and one of two segments. */
const SIZES = [5_000, 130_000, 500_000, 2_000_000, 5_000_000, 20_000_000, 75_000_000];
const GROWN_MS = 180_000;

let c: TestCluster;
let api: ClusterApi;
const machines: Machine[] = [];

beforeAll(async () => {
	c = await startCluster({ workers: 2, env: { ZONE: 'zone', LOST_AFTER: '5s', REPAIR_SHARE: '100' } });
	api = new ClusterApi(c.http);
	for (const name of ['worker-1', 'worker-2']) machines.push(supervised(c, name, 'zone'));
}, 120_000);
afterAll(async () => {
	for (const machine of machines) await machine.close();
	await c?.remove();
});

async function codes(stored: readonly Stored[]): Promise<string[]> {
	const explained = await Promise.all(stored.map(({ id }) => api.explain(id)));
	return explained.map((object) =>
		[
			...new Set(object?.segments.map(({ k, n, wanted }) => `${k}+${n - k}${wanted === null ? '' : ' unsuited'}`)),
		].join(),
	);
}

test('two workers become six: every object is cut anew, and read meanwhile', { timeout: 400_000 }, async () => {
	const stored: Stored[] = [];
	for (const size of SIZES) stored.push(await put(c.http, randomBytes(size)));
	const many = Array.from({ length: 30 }, (_, at) => randomBytes(60_000 + 9_000 * at));
	for (const bytes of many) stored.push(await put(c.http, bytes));
	const before = await Promise.all(stored.map(({ id }) => api.explain(id)));
	const old = new Set(
		before.flatMap((object) => object?.segments.flatMap(({ shards }) => shards) ?? []).map(({ shard_id: id }) => id),
	);
	expect(new Set(await codes(stored))).toEqual(new Set(['1+1']));

	let isOver = false;
	let [reads, failures] = [0, [] as string[]];
	let isDown = false;
	const reading = (async () => {
		while (!isOver) {
			for (const { id, sha256 } of stored) {
				if (isOver) return;
				const wasDown = isDown;
				const hash = await getHash(c.http, id).catch((error: Error) => error.message);
				if (hash === sha256) reads++;
				else if (!wasDown && !isDown) failures.push(`${id}: ${hash}`);
				// Whoever comes while nobody is there comes again.
				else await new Promise((done) => setTimeout(done, 100));
			}
		}
	})();
	for (let at = 3; at <= 6; at++) machines.push(await joined(c, { name: `worker-${at}`, zone: 'zone', env: {} }));
	const isHalfWay = async () => {
		const now = await codes(stored);
		return now.some((code) => !code.startsWith('1+1')) && now.some((code) => code.includes('unsuited'));
	};
	await until(isHalfWay, { what: 'the job to be in the middle of it', timeoutMs: GROWN_MS });
	isDown = true;
	await c.kill('orchestrator-1');
	await c.start('orchestrator-1');
	isDown = false;

	let last: string[] = [];
	await until(
		async () => {
			last = await codes(stored);
			return last.every((code) => !code.includes('unsuited') && !code.startsWith('1+1'));
		},
		{ what: 'every object to suit six workers', timeoutMs: GROWN_MS },
	).catch(async ({ message }: Error) => {
		throw new Error(`${message}: ${last.join(' ')}: ${JSON.stringify(await api.progress('reencode'))}`);
	});
	isOver = true;
	await reading;
	expect(failures).toEqual([]);
	expect(reads).toBeGreaterThan(0);
	expect(last.slice(0, SIZES.length)).toEqual(['1+2', '2+2', '4+2', '4+2', '4+2', '4+2', '4+2']);
	const explained = await api.explain((stored[0] as Stored).id);
	expect(explained?.segments[0]?.was).toMatchObject({ n: expect.any(Number), k: 1 });
	for (const { id, sha256 } of stored) expect(await getHash(c.http, id)).toBe(sha256);

	await until(async () => (await api.view()).queues.deletions === 0, { what: 'the old shards to be deleted' });
	const placed = new Map(machines.map(({ name }) => [name, [] as string[]]));
	for (const { id } of stored) {
		for (const { shards } of (await api.explain(id))?.segments ?? []) {
			for (const { worker, shard_id: shardId } of shards) placed.get(worker ?? '')?.push(shardId ?? '');
		}
	}
	for (const machine of machines) {
		const onDisk = shardsOnDisk(machine);
		expect(onDisk.filter((id) => old.has(id))).toEqual([]);
		expect(onDisk.sort()).toEqual(placed.get(machine.name)?.sort());
	}
	expect((await api.redundancy()).healthy).toBe(stored.length);
	expect(many.map(sha256)).toEqual(stored.slice(SIZES.length).map(({ sha256 }) => sha256));
});
