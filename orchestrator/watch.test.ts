import { expect, test } from 'vitest';
import { annualFailureRate, DEFAULT_AFR, parseHistory } from '../core/model/history.ts';
import { ManualClock } from '../test/support/clock.ts';
import { memoryCluster } from '../test/support/memory-cluster.ts';
import { Watch } from './watch.ts';

test('uptime, losses and audits are kept, once each, and the policy hears of them', async () => {
	const cluster = await memoryCluster({ workers: 3, lostAfterMs: 0 });
	const clock = new ManualClock();
	let watch = new Watch({ ...cluster, clock });
	const lease = await cluster.store.acquireLease('audit', { holder: 'test', ttlMs: 600_000 });
	const look = async () => {
		clock.advance(60_000);
		if (lease === null) throw new Error('no lease');
		await watch.job.step(new AbortController().signal, lease);
	};
	await look();
	cluster.die(2);
	const [first, second] = cluster.workerIds;
	if (first === undefined || second === undefined) throw new Error('no workers');
	watch.audited(first, 'ok');
	watch.audited(second, 'corrupt');
	watch.audited(second, 'corrupt');
	await look();
	await look();
	// Nor once more by the next process.
	watch = new Watch({ ...cluster, clock });
	await look();
	await look();
	const histories = (await cluster.store.workers()).map(({ history }) => parseHistory(history));
	expect(histories.map(({ losses }) => losses > 0.9)).toEqual([false, false, true]);
	expect(histories[2]?.losses).toBeLessThan(1.1);
	expect(histories.map(({ observedMs, onlineMs }) => onlineMs / observedMs > 0.9)).toEqual([true, true, false]);
	expect(histories[0]?.audits.ok).toBeCloseTo(1, 3);
	expect(histories[1]?.audits.corrupt).toBeCloseTo(2, 3);
	const rates = cluster.workers.policyWorkers().map((worker) => worker.annualFailureRate ?? 0);
	expect(rates[0]).toBeLessThanOrEqual(DEFAULT_AFR);
	expect(rates[1]).toBeGreaterThan(2 * DEFAULT_AFR);
	expect(rates[2]).toBe(annualFailureRate(parseHistory((await cluster.store.workers())[2]?.history ?? '')));
});
