/**
 * What a walk over all rows and all disks of a cluster in memory shows: the truth that its reports must agree with. Slow on
 * purpose, and of another making than the counts that it checks.
 */

import { expect } from 'vitest';
import { decodeTrailer } from '../../core/codec/trailer.ts';
import { LEAF_BYTES, leafHash, rootOf } from '../../core/crypto/digest.ts';
import type { VersionId } from '../../core/ids.ts';
import { type RedundancyReport, redundancyReport } from '../../core/model/redundancy-report.ts';
import type { Placement, Segment } from '../../core/model/segment.ts';
import type { MemoryCluster } from './memory-cluster.ts';

type Counted = Pick<RedundancyReport, 'byHealth' | 'bySpare' | 'failureTolerance' | 'objects'>;

/** The report is what the disks say, and no worker has two shards of a segment. Answers the report. */
export async function expectTrue(cluster: MemoryCluster): Promise<RedundancyReport> {
	const { store, workers, workerIds } = cluster;
	// All of one moment: others go on during any wait.
	const rows = store.redundancyRows();
	const truth = inventory(cluster);
	const live = new Set(workerIds.filter((workerId) => workers.isReachable(workerId)));
	const report = redundancyReport(await rows, (workerId) => live.has(workerId));
	expect(report).toMatchObject(truth);
	return report;
}

/** All is whole, and the disks have what the rows say and nothing else. All workers must be there. */
export async function expectNothingElse(cluster: MemoryCluster): Promise<void> {
	const { byHealth, objects } = await expectTrue(cluster);
	expect(byHealth.healthy).toBe(objects);
	expect(await cluster.store.counts()).toMatchObject({ intents: 0, deletions: 0, repairs: 0 });
	const placed = new Map(cluster.workerIds.map((workerId) => [workerId, [] as string[]]));
	for (const { segment } of allSegments(cluster)) {
		for (const { workerId, shardId } of segment.placements) placed.get(workerId)?.push(shardId);
	}
	for (const [workerId, shardIds] of placed) {
		expect([...cluster.transport.shardsOf(workerId).keys()].sort()).toEqual(shardIds.sort());
	}
}

function inventory(cluster: MemoryCluster): Counted {
	const spares = new Map<VersionId, { spare: number; whole: boolean }>();
	for (const { versionId, segment } of allSegments(cluster)) {
		const { k, n, placements } = segment;
		expect(new Set(placements.map(({ workerId }) => workerId)).size).toBe(placements.length);
		expect(new Set(placements.map(({ shardIndex }) => shardIndex)).size).toBe(placements.length);
		const there = placements.filter((placement) => isThere(cluster, { versionId, segment, placement })).length;
		const before = spares.get(versionId) ?? { spare: Number.POSITIVE_INFINITY, whole: true };
		spares.set(versionId, { spare: Math.min(before.spare, there - k), whole: before.whole && there === n });
	}
	const byHealth = { healthy: 0, degraded: 0, at_risk: 0, unrecoverable: 0 };
	const bySpare = new Map<number, number>();
	for (const { spare, whole } of spares.values()) {
		byHealth[whole ? 'healthy' : spare < 0 ? 'unrecoverable' : spare <= 1 ? 'at_risk' : 'degraded']++;
		const shown = Math.max(-1, spare);
		bySpare.set(shown, (bySpare.get(shown) ?? 0) + 1);
	}
	const least = Math.min(...[...spares.values()].map(({ spare }) => spare));
	const failureTolerance = spares.size === 0 ? null : Math.max(0, least);
	return { objects: spares.size, byHealth, bySpare, failureTolerance };
}

/** Its worker answers, and has the very bytes whose root the segment's row has. */
function isThere(
	{ transport }: MemoryCluster,
	{ versionId, segment, placement }: { versionId: VersionId; segment: Segment; placement: Placement },
): boolean {
	const { workerId, shardId, shardIndex } = placement;
	const shard = transport.faultsOf(workerId).dead ? undefined : transport.shardsOf(workerId).get(shardId);
	if (shard === undefined) return false;
	const { description, root } = decodeTrailer(shard.trailer);
	const { encodingId, index } = segment;
	expect(description).toMatchObject({ shardId, shardIndex, encodingId, segment: index, versionId });
	const leaves: Buffer[] = [];
	for (let at = 0; at < shard.bytes.length; at += segment.cellBytes) {
		leaves.push(leafHash(shard.bytes.subarray(at, at + segment.cellBytes)));
	}
	const stored = segment.roots.subarray(shardIndex * LEAF_BYTES, (shardIndex + 1) * LEAF_BYTES);
	return root.equals(stored) && rootOf(Buffer.concat(leaves)).equals(stored);
}

function allSegments({ metadata }: MemoryCluster): { versionId: VersionId; segment: Segment }[] {
	return [...metadata.objects.values()].flatMap(({ row: { versionId }, segments }) =>
		segments.map((segment) => ({ versionId, segment })),
	);
}
