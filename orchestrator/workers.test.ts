/** The registry alone: names, and how long an absence is known to last. */

import { beforeEach, expect, test, vi } from 'vitest';
import { DistroError } from '../core/errors.ts';
import type { WorkerId } from '../core/ids.ts';
import { LOST_AFTER_MS } from '../core/limits.ts';
import type { Clock } from '../core/ports.ts';
import { Fixtures } from './store.fixtures.ts';
import type { MetadataStore, WorkerRow } from './store.ts';
import { MemoryMetadataStore } from './store-memory.ts';
import { type NameTaken, WorkerRegistry } from './workers.ts';

const STATS = { bytesTotal: 100, bytesUsed: 10, bytesFree: 90, shards: 1, online: true };
let nowMs: number;
let monotonicMs: number;
let make: Fixtures;
let store: MetadataStore;
let taken: NameTaken[];
const clock: Clock = { nowMs: () => nowMs, monotonicMs: () => monotonicMs, schedule: () => () => {} };

beforeEach(() => {
	nowMs = 1_700_000_000_000;
	monotonicMs = 50;
	make = new Fixtures('workers');
	store = new MemoryMetadataStore();
	taken = [];
});

/** As a process that has just started on the store. */
async function started(): Promise<WorkerRegistry> {
	const registry = new WorkerRegistry({ store, clock, onNameTaken: (change) => taken.push(change) });
	await registry.load();
	return registry;
}

async function join(registry: WorkerRegistry, worker: WorkerRow) {
	await registry.register(worker);
	const heartbeat = registry.heartbeat(worker.workerId);
	heartbeat.beat(STATS);
	return heartbeat;
}

async function storedNames(): Promise<[string, WorkerId][]> {
	return (await store.workers()).map(({ name, workerId }) => [name, workerId]);
}

test('after a restart a silent worker is suspect, and lost only once this process has waited long enough', async () => {
	const worker = make.worker('worker-1');
	await join(await started(), worker);
	// Neither a long stop nor a jump of the wall clock says that it was away.
	nowMs += 100 * LOST_AFTER_MS;
	const registry = await started();
	expect(registry.state(worker.workerId)).toBe('suspect');
	nowMs += 100 * LOST_AFTER_MS;
	monotonicMs += LOST_AFTER_MS;
	expect(registry.state(worker.workerId)).toBe('suspect');
	monotonicMs += 1;
	expect(registry.state(worker.workerId)).toBe('lost');
	await join(registry, worker);
	expect(registry.state(worker.workerId)).toBe('ready');
});

test('a worker on an emptied volume takes over the name of the one that was there', async () => {
	const [before, now] = [make.worker('worker-3'), make.worker('worker-3')];
	const registry = await started();
	(await join(registry, before)).closed();
	await join(registry, now);
	const renamed = `worker-3~${before.workerId.slice(0, 8)}`;
	expect(registry.name(now.workerId)).toBe('worker-3');
	expect(registry.name(before.workerId)).toBe(renamed);
	expect([registry.state(now.workerId), registry.state(before.workerId)]).toEqual(['ready', 'suspect']);
	expect(taken).toMatchObject([{ name: 'worker-3', workerId: now.workerId, formerly: { workerId: before.workerId } }]);
	const names = [
		['worker-3', now.workerId],
		[renamed, before.workerId],
	];
	expect(await storedNames()).toEqual(names);
	// Its own restart changes nothing, and the same holds after ours.
	const again = await started();
	await join(again, now);
	expect(taken).toHaveLength(1);
	expect(await storedNames()).toEqual(names);
});

test('nobody takes the name of a worker that is there, and who comes back without a rival has it again', async () => {
	const [before, now] = [make.worker('worker-3'), make.worker('worker-3')];
	const registry = await started();
	const heartbeat = await join(registry, before);
	await expect(registry.register(now)).rejects.toMatchObject({ kind: 'exists' });
	expect(await storedNames()).toEqual([['worker-3', before.workerId]]);
	heartbeat.closed();
	(await join(registry, now)).closed();
	await join(registry, before);
	expect(registry.name(before.workerId)).toBe('worker-3');
	expect(taken).toHaveLength(2);
});

test('a full disk keeps strangers out, and not who is known', async () => {
	const registry = await started();
	const known = make.worker('worker-1');
	await registry.register(known);
	vi.spyOn(store, 'saveWorker').mockRejectedValue(new DistroError('exhausted', 'the disk is full'));
	await registry.register({ ...known, address: '127.0.0.1:99' });
	expect(registry.ref(known.workerId)?.address).toBe('127.0.0.1:99');
	await expect(registry.register(make.worker('worker-2'))).rejects.toMatchObject({ kind: 'exhausted' });
	vi.restoreAllMocks();
});
