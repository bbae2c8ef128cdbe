/** Repair against workers in memory: the rebuilt shard is the old one bit for bit, and no worker can hold repair up or misuse it. */

import { expect, test } from 'vitest';
import { decodeTrailer } from '../core/codec/trailer.ts';
import type { ShardId, WorkerId } from '../core/ids.ts';
import { LARGE_CELL_BYTES } from '../core/limits.ts';
import { DEFAULT_POLICY } from '../core/model/redundancy.ts';
import type { Placement } from '../core/model/segment.ts';
import type { Clock } from '../core/ports.ts';
import { realClock, seededRandom } from '../test/support/clock.ts';
import { type MemoryCluster, memoryCluster } from '../test/support/memory-cluster.ts';
import { repairJob } from './mend.ts';
import type { RepairDeps } from './repair.ts';

const random = seededRandom('repair');
/** A hundred times as fast. */
const hurried: Clock = { ...realClock, schedule: (delayMs, callback) => realClock.schedule(delayMs / 100, callback) };

/** An object with one shard lost, and the only worker that can take it. */
async function damaged(): Promise<{ cluster: MemoryCluster; deps: RepairDeps; lost: Placement; spare: WorkerId }> {
	const cluster = await memoryCluster({ workers: 7 });
	const info = await cluster.upload(random.bytes(12 * LARGE_CELL_BYTES));
	const { object, segments } =
		(await cluster.store.objectWithSegments(info.objectId, { fromSegment: 0, limit: 1 })) ?? {};
	const placements = segments?.[0]?.placements ?? [];
	const lost = placements[1];
	const spare = cluster.workerIds.find((id) => placements.every(({ workerId }) => workerId !== id));
	if (lost === undefined || spare === undefined || object === undefined) throw new Error('no placement');
	await cluster.store.addFindings([{ ...lost, kind: 'missing', detail: 'test', foundAtMs: 0 }]);
	const deps = { ...cluster.deps, clock: hurried, transport: cluster.transport };
	return { cluster, deps, lost, spare };
}

async function repairOnce(deps: RepairDeps): Promise<(string | null)[]> {
	const errors: (string | null)[] = [];
	const lease = await deps.store.acquireLease('repair', { holder: 'test', ttlMs: 60_000 });
	if (lease === null) throw new Error('no lease');
	const job = repairJob({
		...deps,
		policy: DEFAULT_POLICY,
		lanes: 1,
		share: 1,
		isBusy: () => false,
		onOutcome: ({ error }) => errors.push(error?.kind ?? null),
	});
	await job.step(new AbortController().signal, lease);
	return errors;
}

test('the rebuilt shard has the cells, the root and the recovery record of the lost one', async () => {
	const { cluster, deps, lost, spare } = await damaged();
	const old = cluster.transport.shardsOf(lost.workerId).get(lost.shardId);
	cluster.transport.shardsOf(lost.workerId).delete(lost.shardId);
	expect(await repairOnce(deps)).toEqual([null]);
	const [[shardId, rebuilt] = []] = [...cluster.transport.shardsOf(spare)];
	expect(rebuilt?.bytes.equals(old?.bytes as Buffer)).toBe(true);
	const [before, after] = [decodeTrailer(old?.trailer as Buffer), decodeTrailer(rebuilt?.trailer as Buffer)];
	expect(after).toEqual({ ...before, description: { ...before.description, shardId: shardId as ShardId } });
	expect(cluster.pool.usedBytes).toBe(0);
});

test('what is in the trash is repaired like everything else, and reads when it is back', async () => {
	const { cluster, deps, lost, spare } = await damaged();
	cluster.transport.shardsOf(lost.workerId).delete(lost.shardId);
	const [row] = (await cluster.store.list({ limit: 1, after: null })).objects;
	if (row === undefined) throw new Error('no object');
	await cluster.store.deleteObject(row.objectId, { nowMs: 1, purgeAtMs: 2, by: '' });
	expect(await repairOnce(deps)).toEqual([null]);
	expect(cluster.transport.shardsOf(spare).size).toBe(1);
	expect((await cluster.store.counts()).repairs).toBe(0);
	const info = await cluster.objects.undelete(row.objectId, '');
	expect((await cluster.download(info)).length).toBe(row.sizeBytes);
	expect((await cluster.objects.explain(row.objectId, { fromSegment: 0, limit: 9 })).health).toBe('healthy');
});

test.each([
	['takes nothing', { frozen: true }, 'timeout'],
	['never sends a receipt', { noReceipt: true }, 'timeout'],
	['sends a receipt too early', { earlyReceipt: true }, 'corrupt'],
	['breaks off', { breakAfterCells: 2 }, 'unavailable'],
] as const)('a target that %s is given up, and nothing is left', async (_, faults, kind) => {
	const { cluster, deps, spare } = await damaged();
	Object.assign(cluster.transport.faultsOf(spare), faults);
	expect(await repairOnce(deps)).toEqual([kind]);
	await expect.poll(() => cluster.pool.usedBytes).toBe(0);
	expect(cluster.transport.open).toBe(0);
	expect(await cluster.store.counts()).toMatchObject({ intents: 0, deletions: 1, repairs: 1 });
});

test('the zones of holders that are away count when a place is chosen', async () => {
	const cluster = await memoryCluster({ workers: 0 });
	for (const zone of ['a', 'a', 'b', 'b', 'c', 'c']) await cluster.join(zone);
	const info = await cluster.upload(random.bytes(12 * LARGE_CELL_BYTES));
	const found = await cluster.store.objectWithSegments(info.objectId, { fromSegment: 0, limit: 1 });
	const lost = found?.segments[0]?.placements.find(({ workerId }) => workerId === cluster.workerIds[0]);
	if (lost === undefined) throw new Error('no placement');
	await cluster.store.addFindings([{ ...lost, kind: 'missing', detail: 'test', foundAtMs: 0 }]);
	for (const index of [2, 3]) cluster.leave(index);
	for (const zone of ['b', 'a']) await cluster.join(zone);
	expect(await repairOnce({ ...cluster.deps, clock: hurried, transport: cluster.transport })).toEqual([null]);
	// Zone b has two already, though nobody of it answers.
	expect((await cluster.placed(info)).workers).toContain(cluster.workerIds[7]);
});
