/**
 * Three orchestrators on one database: clients on all of them while one after the other is killed and PostgREST goes away.
 * Whatever was acknowledged is there and the same by each, and nothing else is. SEED chooses another run, FAULTS_S
 * for how many seconds.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import postgres from 'postgres';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Random } from '../../core/ports.ts';
import type { ClusterProcess } from '../../hack/cluster-file.ts';
import { put } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';
import { History, type Verdict } from '../support/history.ts';
import { below, RandomClient } from '../support/random-client.ts';

const SOAK = process.env.SOAK === '1';
const SEED = process.env.SEED ?? 'orchestrators';
const FAULTS_MS = 1_000 * Number(process.env.FAULTS_S ?? (SOAK ? 600 : 60));
/** On a slow machine it takes longer rather than see less. */
const KILLS = Math.round(FAULTS_MS / 10_000);
const LEFTOVERS_TIMEOUT_MS = 300_000;
const CLIENTS = 8;
const BURST = 24;

let c: TestCluster;

beforeAll(async () => {
	c = await startCluster({ workers: 6, env: { METADATA: 'supabase', ORCHESTRATORS: '3', TRASH_PERIOD: '0s' } });
});
afterAll(() => c?.remove());

test(
	'orchestrators killed, PostgREST restarted: what was acknowledged is there by each, and nothing else',
	async () => {
		const history = new History();
		const ended = new AbortController();
		const clients = Array.from(
			{ length: CLIENTS },
			(_, i) => new RandomClient({ history, orchestrators: c.orchestrators, random: seededRandom(`${SEED} ${i}`) }),
		);
		const running = clients.map((client) => client.run(ended.signal));
		const faults = await breakThings(seededRandom(`${SEED} faults`), history).finally(() => ended.abort());
		await Promise.all(running);
		const verdict = await history.check(c.orchestrators);
		const reads = clients.reduce((sum, client) => sum + client.reads, 0);
		const brokenReads = clients.reduce((sum, client) => sum + client.brokenReads, 0);
		process.stdout.write(`${report(verdict, { ...faults, reads, brokenReads })}\n`);
		expect(verdict.violations).toEqual([]);
		// What was done was enough to see something.
		const scale = FAULTS_MS / 60_000;
		expect([faults.kills >= KILLS, faults.restarts]).toEqual([true, 2]);
		expect(verdict.stored).toBeGreaterThan(200 * scale);
		expect(verdict.deleted).toBeGreaterThan(5 * scale);
		expect(verdict.lostAnswers).toBeGreaterThan(2 * scale);
		expect(reads).toBeGreaterThan(200 * scale);
		expect(brokenReads).toBeLessThan(reads / 2);
		expect(verdict.readBack).toBeGreaterThanOrEqual(c.orchestrators.length * (verdict.stored - verdict.deleted - 100));
		expect(new Set(verdict.listed).size).toBe(1);
		if (SOAK) await expectNothingLeft();
	},
	3 * FAULTS_MS + 240_000 + (SOAK ? LEFTOVERS_TIMEOUT_MS : 0),
);

test('one that was stopped in the middle of a job and goes on when another has its lease: its write is refused', async () => {
	const sql = superuser();
	try {
		const lease = async () => (await sql`SELECT holder, fencing::int FROM distro.leases WHERE name = 'deletions'`)[0];
		const waiting = async () => (await sql`SELECT FROM distro.deletions`).length;
		await until(async () => (await waiting()) === 0, { what: 'the delete queue to be empty' });
		const stored = await put(c.http, Buffer.alloc(3_000_000, 'stale'));
		const before = await lease();
		const [stale = ''] = String(before?.holder).split(' ');
		const logBefore = logOf(stale).length;
		// A worker that hangs holds the job between its check of the lease and its write.
		c.signal('worker-2', 'SIGSTOP');
		await fetch(`${c.http}/objects/${stored.id}`, { method: 'DELETE' });
		await until(async () => (await waiting()) === 1, { what: 'all shards but the one of the worker to be deleted' });
		c.signal(stale, 'SIGSTOP');
		// The call to the worker has an end of its own, at about the end of the lease: so that ends a little earlier.
		await sql`UPDATE distro.leases SET expires_at = clock_timestamp() WHERE name = 'deletions'`;
		await until(async () => (await lease())?.fencing > before?.fencing, { what: 'another to hold the lease' });
		c.signal('worker-2', 'SIGCONT');
		c.signal(stale, 'SIGCONT');
		const refused = 'the lease deletions has ended or went to another orchestrator: nothing was written';
		await until(() => logOf(stale).slice(logBefore).includes(refused), { what: 'its write to be refused' });
		await until(async () => (await waiting()) === 0, { what: 'the other one to finish the work' });
		const after = await lease();
		expect([after?.fencing, String(after?.holder).startsWith(stale)]).toEqual([before?.fencing + 1, false]);
	} finally {
		for (const { name } of c.processes()) c.signal(name, 'SIGCONT');
		await sql.end();
	}
});

/** Intents of those that were killed expire, and the workers have the shards of the objects and no others. */
async function expectNothingLeft(): Promise<void> {
	const sql = superuser();
	try {
		const count = async (table: string) => (await sql`SELECT FROM ${sql(`distro.${table}`)}`).length;
		for (const table of ['intents', 'deletions', 'repairs']) {
			await until(async () => (await count(table)) === 0, { what: `no ${table}`, timeoutMs: LEFTOVERS_TIMEOUT_MS });
		}
		const workers = c.processes().filter(({ role }) => role === 'worker');
		const files = workers.reduce((sum, { name }) => sum + c.shardFiles(name).length, 0);
		process.stdout.write(`nothing is left of what was killed: ${files} shards on the workers\n`);
		expect(files).toBe(await count('placements'));
	} finally {
		await sql.end();
	}
}

function logOf(name: string): string {
	return readFileSync(join(c.dataDir, name, 'log'), 'utf8');
}

function superuser(): postgres.Sql {
	const { address, dataDir } = c.processes().find(({ role }) => role === 'postgres') as ClusterProcess;
	const { password } = JSON.parse(readFileSync(join(dataDir, 'secrets.json'), 'utf8')) as { password: string };
	return postgres(`postgres://supabase_admin:${password}@${address}/postgres`, { max: 1, onnotice: () => {} });
}

/** Kills an orchestrator every few seconds and starts it again; PostgREST twice, once while an orchestrator is down too. */
async function breakThings(random: Random, history: History): Promise<{ kills: number; restarts: number }> {
	const startedMs = performance.now();
	const client = new RandomClient({ history, orchestrators: c.orchestrators, random });
	const done = { kills: 0, restarts: 0 };
	const isEnough = () => performance.now() - startedMs >= FAULTS_MS && done.kills >= KILLS && done.restarts === 2;
	while (!isEnough() && history.violations.length === 0) {
		await pause(1_000 + below(random, 2_000));
		const index = below(random, 3);
		const name = `orchestrator-${index + 1}`;
		// Many answers are under way when it dies.
		const burst = Array.from({ length: BURST }, () => client.write(c.orchestrators[index] as string));
		await pause(below(random, 100));
		await c.kill(name);
		await Promise.all(burst);
		done.kills++;
		await pause(below(random, 1_500));
		if (performance.now() - startedMs > ((done.restarts + 1) * FAULTS_MS) / 3 && done.restarts < 2) {
			if (done.restarts === 0) await c.start(name);
			await c.kill('postgrest');
			await pause(1_000 + below(random, 1_000));
			await c.start('postgrest');
			done.restarts++;
			if (done.restarts === 1) continue;
		}
		await c.start(name);
	}
	return done;
}

function report(
	verdict: Verdict,
	more: { kills: number; restarts: number; reads: number; brokenReads: number },
): string {
	const { violations, stored, deleted, lostAnswers, lostAndThere, refused, refusedAndThere, listed, readBack } =
		verdict;
	return [
		`orchestrators (SEED=${SEED}): ${violations.length} violations`,
		`${more.kills} orchestrators killed, PostgREST restarted ${more.restarts} times`,
		`${stored} objects acknowledged, ${deleted} of them deleted; ${refused} writes refused, ${refusedAndThere} of them there`,
		`${lostAnswers} writes without an answer, ${lostAndThere} of them there`,
		`${more.reads} reads compared meanwhile, ${more.brokenReads} broken off or refused`,
		`listed ${listed.join(', ')}; ${readBack} objects (${Math.round(verdict.bytesReadBack / 1e6)} MB) read back in the end`,
	].join('\n  ');
}
