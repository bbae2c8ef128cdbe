/** The registry alone: how long an absence is known to last. */

import { beforeEach, expect, test } from 'vitest';
import { LOST_AFTER_MS } from '../core/limits.ts';
import type { Clock } from '../core/ports.ts';
import { Fixtures } from './store.fixtures.ts';
import type { MetadataStore, WorkerRow } from './store.ts';
import { MemoryMetadataStore } from './store-memory.ts';
import { WorkerRegistry } from './workers.ts';

const STATS = { bytesTotal: 100, bytesUsed: 10, bytesFree: 90, shards: 1, online: true };
let nowMs: number;
let monotonicMs: number;
let make: Fixtures;
let store: MetadataStore;
const clock: Clock = { nowMs: () => nowMs, monotonicMs: () => monotonicMs, schedule: () => () => {} };

beforeEach(() => {
	nowMs = 1_700_000_000_000;
	monotonicMs = 50;
	make = new Fixtures('workers');
	store = new MemoryMetadataStore();
});

/** As a process that has just started on the store. */
async function started(): Promise<WorkerRegistry> {
	const registry = new WorkerRegistry({ store, clock });
	await registry.load();
	return registry;
}

async function join(registry: WorkerRegistry, worker: WorkerRow) {
	await registry.register(worker);
	const heartbeat = registry.heartbeat(worker.workerId);
	heartbeat.beat(STATS);
	return heartbeat;
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
