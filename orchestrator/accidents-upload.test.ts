/** Accidents of others, with writes: a try that stops anywhere, and another one to other workers. All of them: docs/testing.md. */

import { describe, expect, test } from 'vitest';
import type { WorkerId } from '../core/ids.ts';
import { SMALL_CELL_BYTES } from '../core/limits.ts';
import { seededRandom } from '../test/support/clock.ts';
import { expectNothingElse } from '../test/support/inventory.ts';
import { type MemoryCluster, memoryCluster, PLAIN_UPLOAD, pour } from '../test/support/memory-cluster.ts';
import { Mortal, STOPS } from '../test/support/mortal.ts';
import { workOff } from '../test/support/work-off.ts';
import { ObjectService } from './objects.ts';
import type { ObjectInfo } from './objects.types.ts';

const random = seededRandom('accidents of uploads');
const IDEMPOTENCY = { owner: '', key: 'once', fingerprint: 'the same request' };
const DAY_MS = 25 * 60 * 60_000;

async function put(objects: ObjectService, bytes: Buffer): Promise<ObjectInfo> {
	const options = { ...PLAIN_UPLOAD, sizeHintBytes: bytes.length, idempotency: IDEMPOTENCY };
	const begun = await objects.beginUpload(options, new AbortController().signal);
	if ('done' in begun) return begun.done;
	const { upload } = begun;
	await Promise.race([pour(bytes, upload).then(() => upload.end()), upload.result]);
	return upload.result;
}

/** Two workers that have a shard of the first try, or any two. */
function someHolders({ transport, workerIds }: MemoryCluster): number[] {
	const holding = [...workerIds.keys()].filter((index) => transport.shardsOf(workerIds[index] as WorkerId).size > 0);
	return [...holding, 0, 1].slice(0, 2);
}

describe('seaweedfs#6445: a retried write with another worker set, then a restart', () => {
	const cases = STOPS.flatMap((what) => [false, true].map((done) => ({ what, done })));

	test.each(cases)(
		'the first try $what in each of its calls (done: $done): one object, of one try',
		async ({ what, done }) => {
			const stoppedIn = new Set<string>();
			for (let at = 1; ; at++) {
				const first = await memoryCluster({ workers: 9, lostAfterMs: 0, poolBytes: 4 * 1024 * 1024 });
				const process = new Mortal({ at, what, done });
				const bytes = random.bytes(4 * SMALL_CELL_BYTES + 1);
				const answers: ObjectInfo[] = [];
				const tried = put(
					new ObjectService({
						...first.deps,
						store: process.store(first.store),
						clock: process.clock(first.deps.clock),
						transport: process.transport(first.transport),
					}),
					bytes,
				).then(
					(info) => answers.push(info),
					() => {},
				);
				await Promise.race([tried, process.stopped]);

				// Two of its workers are gone, so the second try has others.
				const gone = someHolders(first);
				for (const index of gone) first.die(index);
				const second = await first.another();
				await workOff(second);
				second.later(DAY_MS);
				const info = await put(second.objects, bytes);
				process.wake();
				await Promise.race([tried, process.stopped.then(() => (what === 'stands still' ? tried : null))]);

				// All is started again, and those that were gone are back with what they had.
				const third = await first.another();
				for (const index of gone) third.comeBack(index);
				await workOff(third);
				await expectNothingElse(third);
				expect((await third.download(info)).equals(bytes)).toBe(true);
				// An answer that came late is for an object that is there.
				for (const answer of answers) expect((await third.download(answer)).equals(bytes)).toBe(true);
				if (process.calls < at) break;
				stoppedIn.add(process.stoppedIn);
			}
			expect([...stoppedIn]).toEqual(
				expect.arrayContaining(['claimIdempotency', 'begin', 'put', 'write', 'finish', 'commit']),
			);
		},
	);

	test('a worker that keeps its shard and answers for another is left out: its shard goes, also if all is started again', async () => {
		const cluster = await memoryCluster({ workers: 9 });
		const [lying] = cluster.workerIds as [WorkerId];
		cluster.transport.faultsOf(lying).wrongReceipt = true;
		const contents = new Map<ObjectInfo, Buffer>();
		for (let i = 0; i < 6; i++) {
			const bytes = random.bytes(4 * SMALL_CELL_BYTES + 1);
			contents.set(await cluster.upload(bytes, { sizeHintBytes: bytes.length }), bytes);
		}
		expect(cluster.transport.shardsOf(lying).size).toBeGreaterThan(0);
		cluster.transport.faultsOf(lying).wrongReceipt = false;
		const next = await cluster.another();
		await workOff(next);
		await expectNothingElse(next);
		for (const [info, bytes] of contents) expect((await next.download(info)).equals(bytes)).toBe(true);
	});
});
