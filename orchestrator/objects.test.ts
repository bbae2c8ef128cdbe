/** What `explain` says of objects too large for one page. */

import { beforeEach, expect, test, vi } from 'vitest';
import type { Segment } from '../core/model/segment.ts';
import { type MemoryCluster, memoryCluster } from '../test/support/memory-cluster.ts';
import { atOnce, Fixtures, NOW_MS, type Upload } from './store.fixtures.ts';

const SEGMENTS = 600;
let cluster: MemoryCluster;
let upload: Upload;

beforeEach(async () => {
	cluster = await memoryCluster({ workers: 7 });
	upload = await new Fixtures('explain').store(cluster.store, cluster.workerIds, { segments: SEGMENTS });
});

async function lose(segment: number, shardIndexes: readonly number[]): Promise<void> {
	const placements = upload.commit.segments[segment]?.placements ?? [];
	const lost = placements.filter(({ shardIndex }) => shardIndexes.includes(shardIndex));
	await cluster.store.addFindings(
		lost.map((shard) => ({ ...shard, kind: 'missing', detail: 'test', foundAtMs: NOW_MS })),
	);
}

/** Health as each page says it. */
async function healths(): Promise<Set<string>> {
	const said = new Set<string>();
	for (const fromSegment of [0, 1, 255, 256, 590, SEGMENTS - 1, SEGMENTS, SEGMENTS + 1]) {
		const { health, segments } = await cluster.objects.explain(upload.objectId, { fromSegment, limit: 10 });
		expect(segments.map(({ index }) => index)).toEqual(
			Array.from({ length: Math.max(0, Math.min(10, SEGMENTS - fromSegment)) }, (_, i) => fromSegment + i),
		);
		said.add(health);
	}
	return said;
}

test('health is that of the whole object, whichever page is asked for', async () => {
	expect(await healths()).toEqual(new Set(['healthy']));
	await lose(595, [2]);
	expect(await healths()).toEqual(new Set(['at_risk']));
	await lose(300, [0, 1, 2]);
	expect(await healths()).toEqual(new Set(['unrecoverable']));
});

test('a worker that is away counts in every segment', async () => {
	cluster.leave(6);
	expect(await healths()).toEqual(new Set(['healthy']));
	cluster.leave(3);
	expect(await healths()).toEqual(new Set(['at_risk']));
});

test('each segment is read once, in pages, and no more where nothing can be worse', async () => {
	const read = vi.spyOn(cluster.store, 'segments');
	await cluster.objects.explain(upload.objectId, { fromSegment: 300, limit: 10 });
	const pages: Segment[][] = await Promise.all(read.mock.results.map(({ value }) => value));
	const indexes = pages.flatMap((page) => page.map(({ index }) => index)).sort((a, b) => a - b);
	expect(indexes).toEqual(Array.from({ length: SEGMENTS }, (_, i) => i));
	expect(Math.max(...pages.map((page) => page.length))).toBeLessThanOrEqual(256);
	await lose(0, [0, 1, 2]);
	read.mockClear();
	await cluster.objects.explain(upload.objectId, { fromSegment: 0, limit: 10 });
	expect(read).toHaveBeenCalledTimes(1);
});

test('an object that is deleted meanwhile is not found', async () => {
	vi.spyOn(cluster.store, 'findings').mockImplementation(async () => {
		await cluster.store.deleteObject(upload.objectId, atOnce());
		return [];
	});
	const explained = cluster.objects.explain(upload.objectId, { fromSegment: 0, limit: 10 });
	await expect(explained).rejects.toMatchObject({ kind: 'not_found' });
});
