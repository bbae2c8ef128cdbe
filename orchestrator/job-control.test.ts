/** Jobs that are paused, resumed and run now, through one store and so for all orchestrators. */

import { expect, test } from 'vitest';
import { ManualClock } from '../test/support/clock.ts';
import { JobControl } from './job-control.ts';
import type { JobProgress } from './leases.ts';
import { MemoryMetadataStore } from './store-memory.ts';

async function steered(waits: number[]) {
	const clock = new ManualClock();
	const store = new MemoryMetadataStore(undefined, { nowMs: () => clock.nowMs() });
	const control = new JobControl({ store, clock });
	const other = new JobControl({ store, clock });
	const asked: (boolean | undefined)[] = [];
	let told: JobProgress = {};
	const job = control.steer({
		name: 'repair',
		state: () => ({ steps: asked.length, ...told }),
		step: async (_signal, _lease, isAsked) => {
			asked.push(isAsked);
			return waits.shift() ?? 60_000;
		},
	});
	const lease = await store.acquireLease('repair', { holder: 'test', ttlMs: 3_600_000 });
	if (lease === null) throw new Error('no lease');
	const step = () => job.step(new AbortController().signal, lease);
	/** The same job in another orchestrator, once it has the lease. */
	const elsewhere = () => {
		const there: (boolean | undefined)[] = [];
		const same = new JobControl({ store, clock }).steer({
			name: 'repair',
			step: async (_signal, _lease, isAsked) => {
				there.push(isAsked);
				return 60_000;
			},
		});
		return { asked: there, step: () => same.step(new AbortController().signal, lease) };
	};
	const view = async () => (await other.list()).find(({ name }) => name === 'repair');
	const tell = (more: JobProgress) => {
		told = more;
	};
	return { clock, other, asked, step, elsewhere, view, tell };
}

test('a job runs when it is due, and is looked at often enough to be asked', async () => {
	const it = await steered([0, 60_000]);
	expect(await it.step()).toBe(0);
	expect(await it.step()).toBe(1_000);
	it.clock.advance(30_000);
	expect(await it.step()).toBe(1_000);
	expect(it.asked.length).toBe(2);
	it.clock.advance(30_000);
	await it.step();
	expect(it.asked).toEqual([false, false, false]);
	expect(await it.view()).toMatchObject({ state: 'idle', progress: { steps: 3 } });
});

test('paused through another orchestrator it begins nothing; asked to run, it works until there is nothing left', async () => {
	const it = await steered([60_000, 0, 0, 60_000]);
	await it.step();
	await it.other.ask('repair', 'pause');
	it.clock.advance(120_000);
	await it.step();
	expect(it.asked.length).toBe(1);
	expect(await it.view()).toMatchObject({ state: 'paused' });
	await it.other.ask('repair', 'run');
	it.clock.advance(1_000);
	for (let i = 0; i < 6; i++) {
		await it.step();
		it.clock.advance(1_000);
	}
	expect(it.asked).toEqual([false, true, true, true]);
	await it.other.ask('repair', 'resume');
	it.clock.advance(120_000);
	await it.step();
	expect(it.asked.length).toBe(5);
	expect(await it.view()).toMatchObject({ state: 'idle' });
});

test('paused in the midst of a run that was asked for, it stops, also where the lease goes to another orchestrator', async () => {
	const it = await steered([60_000, 0, 0, 0]);
	await it.step();
	await it.other.ask('repair', 'run');
	it.clock.advance(1_000);
	await it.step();
	await it.other.ask('repair', 'pause');
	it.clock.advance(1_000);
	await it.step();
	await it.step();
	expect(it.asked).toEqual([false, true]);
	const elsewhere = it.elsewhere();
	await elsewhere.step();
	expect(elsewhere.asked).toEqual([]);
});

test('a run that was asked for is done once, whoever has the lease by then', async () => {
	const it = await steered([60_000]);
	const elsewhere = it.elsewhere();
	await it.step();
	await it.other.ask('repair', 'run');
	await elsewhere.step();
	await elsewhere.step();
	expect(elsewhere.asked).toEqual([true]);
	await it.other.ask('repair', 'pause');
	it.clock.advance(120_000);
	await it.step();
	expect(it.asked).toEqual([false]);
});

test('a job that has work and can do none of it is stuck, not idle', async () => {
	const it = await steered([0, 60_000]);
	it.tell({ stuck: [{ why: 'no_worker' }] });
	await it.step();
	await it.step();
	expect(await it.view()).toMatchObject({ state: 'stuck' });
});

test('a job that does not exist is told, with those that do', async () => {
	const it = await steered([]);
	await expect(it.other.ask('toString', 'run')).rejects.toMatchObject({ kind: 'not_found' });
	await expect(it.other.ask('mend', 'run')).rejects.toThrow(/repair, drain/);
});
