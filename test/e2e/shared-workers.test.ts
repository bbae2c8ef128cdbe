/** Two orchestrators on one database, and a worker that knows only one of them. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { cluster, explain, isIntact, put, type Stored } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';
import { type ExtraWorker, joinWorker } from '../support/extra-worker.ts';

const random = seededRandom('shared workers');
const folder = mkdtempSync(join(tmpdir(), 'distro-shared-'));
const dataDir = join(folder, 'lone');
let c: TestCluster;
let lone: ExtraWorker;
let stored: Stored;

beforeAll(async () => {
	c = await startCluster({ workers: 2, env: { METADATA: 'supabase', ORCHESTRATORS: '2' } });
});
afterAll(async () => {
	await lone?.stop();
	await c?.remove();
	rmSync(folder, { recursive: true, force: true });
});

const second = () => c.orchestrators[1] as string;
const statesOf = async (http: string, name: RegExp) =>
	(await cluster(http)).workers.filter((worker) => name.test(worker.name)).map(({ state }) => state);
const seenAs = (http: string, state: string, name = /^lone$/) =>
	until(async () => String(await statesOf(http, name)) === state, { timeoutMs: 60_000, what: `lone to be ${state}` });

test('the other orchestrator uses it: it writes to it, and both read', async () => {
	lone = await joinWorker(c, { name: 'lone', dataDir });
	await seenAs(second(), 'ready');
	stored = await put(second(), random.bytes(300_000));
	const { segments, health } = await explain(second(), stored.id);
	expect(segments[0]?.shards.map(({ worker }) => worker).sort()).toEqual(['lone', 'worker-1', 'worker-2']);
	expect(health).toBe('healthy');
	for (const http of c.orchestrators) expect(await isIntact(http, stored)).toBe(true);
});

test('when it goes the other orchestrator sees it, and an orchestrator that starts finds all of them', async () => {
	await lone.stop();
	await seenAs(second(), 'suspect');
	for (const http of c.orchestrators) expect(await isIntact(http, stored)).toBe(true);
	lone = await joinWorker(c, { name: 'lone', dataDir });
	await c.kill('orchestrator-2');
	await c.start('orchestrator-2');
	await seenAs(second(), 'ready');
	expect((await explain(second(), stored.id)).health).toBe('healthy');
});

test('with an emptied folder it comes back by the other orchestrator, under its old name for all', async () => {
	await lone.stop();
	rmSync(dataDir, { recursive: true });
	lone = await joinWorker(c, { name: 'lone', dataDir, env: { ORCHESTRATORS: c.process('orchestrator-2').grpc } });
	for (const http of c.orchestrators) {
		await seenAs(http, 'ready');
		expect(await statesOf(http, /^lone~[0-9a-f]{8}$/)).toEqual(['suspect']);
		expect(await isIntact(http, stored)).toBe(true);
	}
	expect(c.logs()).toContain('took over a name');
});
