/**
 * What it takes to restore full redundancy after a worker is lost, and what people who read meanwhile notice of it; and what
 * they notice of a worker whose disk takes a second for everything.
 *
 * Reads come at a fixed rate, whatever the answers do: a load that waits for its answers would hide how slow they are.
 */

import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort } from '../hack/ports.ts';
import { startCluster, type TestCluster, until } from '../test/support/cluster.ts';
import { joinWorker } from '../test/support/extra-worker.ts';
import { slowLink } from '../test/support/slow-link.ts';
import { get, post, repeat, type Target, targetOf } from './load.ts';
import { cpuSeconds } from './processes.ts';

const KiB = 1024;
const MB = 1e6;
const READS_PER_S = 40;
const LOST_AFTER_S = 6;
/** Figures of a window are of so many reads at least. */
const WINDOW_READS = 1_200;

const say = (text: string) => process.stdout.write(`${text}\n`);

interface Window {
	readonly reads: number;
	readonly p50Ms: number;
	readonly p99Ms: number;
	readonly failed: number;
}

/** Reads at a fixed rate until `over` says so, and so many at least. */
async function readFor(
	target: Target,
	ids: readonly string[],
	over: () => boolean | Promise<boolean>,
): Promise<Window> {
	const tookMs: number[] = [];
	let failed = 0;
	const running = new Set<Promise<void>>();
	const startedMs = performance.now();
	for (let i = 0; !(i >= WINDOW_READS && (await over())); i++) {
		const dueMs = startedMs + (i * 1000) / READS_PER_S;
		const waitMs = dueMs - performance.now();
		if (waitMs > 0) await new Promise((done) => setTimeout(done, waitMs));
		// From when it was due: a client that is held up is part of what people notice.
		const read = get(target, ids[(i * 7919) % ids.length] as string).then(
			() => void tookMs.push(performance.now() - dueMs),
			() => void failed++,
		);
		running.add(read);
		void read.then(() => running.delete(read));
	}
	await Promise.all(running);
	tookMs.sort((a, b) => a - b);
	const at = (share: number) => tookMs[Math.min(tookMs.length - 1, Math.floor(tookMs.length * share))] ?? 0;
	return { reads: tookMs.length, p50Ms: at(0.5), p99Ms: at(0.99), failed };
}

function print(what: string, window: Window, before?: Window, hasGoal = true): void {
	const ratio =
		before === undefined
			? ''
			: `   p99 ×${(window.p99Ms / before.p99Ms).toFixed(2)}${hasGoal ? ' (goal: at most 1.2)' : ''}`;
	const failed = window.failed === 0 ? '' : `, ${window.failed} FAILED`;
	say(
		`  ${what.padEnd(34)} ${window.reads} reads${failed}, p50 ${window.p50Ms.toFixed(1)} ms, p99 ${window.p99Ms.toFixed(1)} ms${ratio}`,
	);
}

async function upload(c: TestCluster, count: number, bytes: number): Promise<string[]> {
	const target = targetOf(c.http, 16);
	const ids: string[] = [];
	const body = randomBytes(bytes);
	await repeat(async () => ids.push(await post(target, body)), { atOnce: 16, total: count });
	target.agent.destroy();
	return ids;
}

interface Redundancy {
	readonly objects: number;
	readonly healthy: number;
}

async function json<T>(c: TestCluster, path: string): Promise<T> {
	return (await (await fetch(`${c.http}${path}`)).json()) as T;
}

/** Sum of a counter over its labels. */
async function counter(c: TestCluster, name: string): Promise<number> {
	const text = await (await fetch(`${c.http}/metrics`)).text();
	const lines = text.split('\n').filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
	return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
}

/**
 * `polite`: with four copies, which keep two spare ones after a loss. With three, one is left, and repair goes at full speed
 * whatever people notice.
 */
export async function measureRepair({
	quick,
	withReaders,
	polite = false,
}: {
	quick: boolean;
	withReaders: boolean;
	polite?: boolean;
}): Promise<void> {
	const shards = quick || polite ? 1_000 : 10_000;
	const workers = polite ? 6 : 5;
	const copies = polite ? 4 : 3;
	// One cell each, so all their shards are copies.
	const count = Math.ceil((shards * workers) / copies);
	const env = { LOST_AFTER: `${LOST_AFTER_S}s`, TOLERATE_WORKERS: String(copies - 1) };
	const c = await startCluster({ workers, env });
	try {
		const ids = await upload(c, count, 64 * KiB);
		const target = targetOf(c.http, 64);
		const before = withReaders ? await readFor(target, ids, () => true) : null;
		const placed = (await json<{ workers: { name: string; shards_placed: number }[] }>(c, '/cluster')).workers.find(
			({ name }) => name === 'worker-1',
		)?.shards_placed;
		if (placed === undefined) throw new Error('worker-1 is not there');
		await c.kill('worker-1');
		const movedBefore = await counter(c, 'distro_repaired_bytes_total');
		const pids = c.processes().map(({ pid }) => pid);
		const cpu = () => pids.reduce((sum, pid) => sum + cpuSeconds(pid), 0);
		const cpuBefore = cpu();
		const killedMs = performance.now();
		let wholeMs = 0;
		const isWhole = async () => {
			const { objects, healthy } = await json<Redundancy>(c, '/cluster/redundancy');
			if (objects === healthy && wholeMs === 0) wholeMs = performance.now();
			return objects === healthy;
		};
		let during: Window | null = null;
		if (withReaders) {
			// Only what was read while shards were being rebuilt counts.
			await until(async () => (await counter(c, 'distro_repaired_bytes_total')) > movedBefore, {
				what: 'repair to begin',
				timeoutMs: 60_000,
			});
			let asked = false;
			let whole = false;
			const looking = setInterval(async () => {
				if (asked) return;
				asked = true;
				whole = await isWhole();
				asked = false;
			}, 500);
			during = await readFor(target, ids, () => whole);
			clearInterval(looking);
		} else await until(isWhole, { what: 'all objects to be healthy', timeoutMs: 30 * 60_000 });
		const seconds = (wholeMs - killedMs) / 1000 - LOST_AFTER_S;
		const moved = (await counter(c, 'distro_repaired_bytes_total')) - movedBefore;
		const least = placed * (64 * KiB + 16);
		say(
			`a worker with ${placed} shards (${(least / MB).toFixed(0)} MB) lost, ${withReaders ? 'with' : 'without'} readers:`,
		);
		say(
			`  whole again ${seconds.toFixed(1)} s after it counted as lost: ${(placed / seconds).toFixed(0)} shards/s, ${(least / seconds / MB).toFixed(1)} MB/s, ${(((cpu() - cpuBefore) * 1000) / placed).toFixed(2)} CPU ms a shard, all processes`,
		);
		say(`  written ${(moved / MB).toFixed(0)} MB, ×${(moved / least).toFixed(3)} of what must be`);
		if (before !== null && during !== null) {
			print('64 KiB reads before', before);
			print(polite ? 'during repair that gives way' : 'during repair at full speed', during, before, polite);
		}
		target.agent.destroy();
	} finally {
		await c.remove();
	}
}

export async function measureDrain({ quick }: { quick: boolean }): Promise<void> {
	const shards = quick ? 1_000 : 4_000;
	const workers = 5;
	const c = await startCluster({ workers });
	try {
		const ids = await upload(c, Math.ceil((shards * workers) / 3), 64 * KiB);
		const target = targetOf(c.http, 64);
		const before = await readFor(target, ids, () => true);
		const placed = async () =>
			(await json<{ workers: { name: string; shards_placed: number }[] }>(c, '/cluster')).workers.find(
				({ name }) => name === 'worker-1',
			)?.shards_placed ?? 0;
		const count = await placed();
		const startedMs = performance.now();
		await fetch(`${c.http}/cluster/workers/worker-1/drain`, { method: 'POST' });
		let left = count;
		const looking = setInterval(async () => {
			left = await placed();
		}, 500);
		const during = await readFor(target, ids, () => left === 0);
		clearInterval(looking);
		const seconds = (performance.now() - startedMs) / 1000;
		say(`a worker with ${count} shards drained, with readers: ${(count / seconds).toFixed(0)} shards/s`);
		print('64 KiB reads before', before);
		print('during the drain', during, before);
		target.agent.destroy();
	} finally {
		await c.remove();
	}
}

export async function measureSlowDisk({ quick }: { quick: boolean }): Promise<void> {
	const c = await startCluster({ workers: 5 });
	const dataDir = mkdtempSync(join(tmpdir(), 'distro-slow-'));
	const grpcPort = await freePort();
	const link = await slowLink(() => `127.0.0.1:${grpcPort}`, { bytesPerSecond: Number.POSITIVE_INFINITY });
	const slow = await joinWorker(c, { name: 'slow', dataDir, grpcPort, env: { ADVERTISE: link.address } });
	try {
		const ids = await upload(c, quick ? 500 : 2_000, 256 * KiB);
		const target = targetOf(c.http, 64);
		const before = await readFor(target, ids, () => true);
		link.setDelay(1_000);
		const first = await readFor(target, ids, () => true);
		const second = await readFor(target, ids, () => true);
		say('one of six workers takes a second for every answer, 256 KiB objects at 4+2:');
		print('reads before', before);
		print('from the first read on', first, before);
		print('after that', second, before);
		target.agent.destroy();
	} finally {
		await slow.stop();
		link.close();
		await c.remove();
		rmSync(dataDir, { recursive: true });
	}
}
