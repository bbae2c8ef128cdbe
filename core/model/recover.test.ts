/**
 * Objects found again from random heaps of trailers: some shards lost, some there twice, of several encodings, of uploads
 * that never ended, forged ones among them. The model knows what was written; what comes back must be just that.
 */

import { createSecretKey, type KeyObject } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../test/support/clock.ts';
import { plainBytes } from '../codec/layout.ts';
import { LEAF_BYTES } from '../crypto/digest.ts';
import { segmentKey } from '../crypto/keys.ts';
import { cellAd, sealEndRecord, sealManifest } from '../crypto/seal.ts';
import {
	type EncodingId,
	newId,
	type ObjectId,
	type SealId,
	type ShardId,
	type VersionId,
	type WorkerId,
} from '../ids.ts';
import { SEGMENT_CELLS, SMALL_CELL_BYTES, TAG_BYTES } from '../limits.ts';
import type { Manifest } from './manifest.ts';
import { type FoundShard, type FoundVersion, isSince, type KnownVersion, recoverVersion } from './recover.ts';
import type { RecoveryRecord } from './recovery.ts';
import type { Segment, SegmentShape } from './segment.ts';

const random = seededRandom('recover');
const workers = Array.from({ length: 12 }, () => newId<WorkerId>(random));
const CREATED_MS = 1_700_000_000_000;

interface Encoding {
	readonly k: number;
	readonly n: number;
	/** Indexes that are still somewhere. */
	readonly kept: readonly number[];
	/** Of them such that are on two workers: moved, and not deleted yet. */
	readonly twice: readonly number[];
}

interface Written {
	readonly found: FoundVersion;
	readonly known: KnownVersion;
	readonly dataKey: KeyObject;
	readonly objectId: ObjectId;
	readonly manifest: Manifest;
	/** By segment: roots by encoding. */
	readonly roots: readonly ReadonlyMap<EncodingId, Buffer>[];
}

const wrappedBy = (generation: number) => ({ keyGeneration: generation, wrappedKey: Buffer.alloc(64, generation) });

/** `segments` from the first to the last, each as its encodings; `lastCells` of the last one. */
function write(segments: readonly (readonly Encoding[])[], lastCells: number): Written {
	const dataKey = createSecretKey(random.bytes(32));
	const versionId = newId<VersionId>(random);
	const objectId = newId<ObjectId>(random);
	const shards: FoundShard[] = [];
	const known: Segment[] = [];
	const roots: Map<EncodingId, Buffer>[] = [];
	let sizeBytes = 0;
	for (const [index, encodings] of segments.entries()) {
		const isLast = index === segments.length - 1;
		const sealId = newId<SealId>(random);
		const cells = isLast ? lastCells : SEGMENT_CELLS;
		const lastCellBytes = isLast ? TAG_BYTES + 1000 : SMALL_CELL_BYTES;
		const key = segmentKey({ dataKey, segment: index, sealId });
		const ad = cellAd({ versionId, segment: index, sealId });
		const endRecord = sealEndRecord(key, ad, { cells, lastCellBytes, lastSegment: isLast });
		roots.push(new Map());
		for (const { k, n, kept, twice } of encodings) {
			const encodingId = newId<EncodingId>(random);
			const codec = k === 1 ? 'replicate' : 'rs-ronomon-6';
			const shape: SegmentShape = { codec, k, n, cellBytes: SMALL_CELL_BYTES, cells, lastCellBytes };
			const own = k === 1 ? Buffer.concat(new Array(n).fill(random.bytes(32))) : random.bytes(32 * n);
			roots[index]?.set(encodingId, own);
			if (known.length === index) {
				sizeBytes += plainBytes(shape);
				known.push({
					...shape,
					index,
					sealId,
					encodingId,
					endRecord,
					roots: own,
					because: 'as before',
					placements: [],
				});
			}
			const place = (shardIndex: number, worker: number): FoundShard => ({
				...shape,
				segment: index,
				sealId,
				encodingId,
				shardIndex,
				shardId: newId<ShardId>(random),
				workerId: workers[worker % workers.length] as WorkerId,
				root: own.subarray(shardIndex * LEAF_BYTES, (shardIndex + 1) * LEAF_BYTES),
				endRecord,
				writtenAtMs: CREATED_MS,
			});
			for (const shardIndex of kept) shards.push(place(shardIndex, shardIndex));
			for (const shardIndex of twice) if (kept.includes(shardIndex)) shards.push(place(shardIndex, shardIndex + n));
		}
	}
	const manifest: Manifest = {
		name: 'a name',
		contentType: null,
		sizeBytes,
		segments: segments.length,
		sha256: null,
		createdAtMs: CREATED_MS,
	};
	const sealed = sealManifest(dataKey, manifest, random);
	const record: RecoveryRecord = { ...wrappedBy(1), objectId, createdAtMs: CREATED_MS, manifest: null };
	const hasLast = shards.some(({ segment }) => segment === segments.length - 1);
	const recoveries = [...(shards.length > 0 ? [record] : []), ...(hasLast ? [{ ...record, manifest: sealed }] : [])];
	const object = {
		kind: 'user' as const,
		objectId,
		versionId,
		uploadId: newId<never>(random),
		sizeBytes,
		segments: segments.length,
		createdAtMs: CREATED_MS,
		etag: 'e',
		...wrappedBy(1),
		manifest: sealed,
		inline: null,
		trash: null,
	};
	const found = { versionId, shards, recoveries };
	return { found, known: { object, segments: known }, dataKey, objectId, manifest, roots };
}

const codes = fc.constantFrom([1, 1], [1, 3], [2, 3], [4, 6], [3, 5]);
const encoding = codes.chain(([k, n]) => {
	const indexes = Array.from({ length: n as number }, (_, index) => index);
	return fc.record({
		k: fc.constant(k as number),
		n: fc.constant(n as number),
		kept: fc.subarray(indexes),
		twice: fc.subarray(indexes),
	});
});
const heap = fc.record({
	segments: fc.array(fc.array(encoding, { minLength: 1, maxLength: 3 }), { minLength: 1, maxLength: 3 }),
	lastCells: fc.integer({ min: 4, max: SEGMENT_CELLS }),
	isKnown: fc.boolean(),
	/** The heap in any order. */
	order: fc.integer({ min: 0, max: 1_000 }),
});

const isWhole = ({ kept, k }: Encoding) => kept.length >= k;

function inAnyOrder<T>(items: readonly T[], order: number): T[] {
	const shuffled = [...items];
	for (let at = shuffled.length - 1, seed = order; at > 0; at--, seed = (seed * 31 + 7) % 10_007) {
		const other = seed % (at + 1);
		[shuffled[at], shuffled[other]] = [shuffled[other] as T, shuffled[at] as T];
	}
	return shuffled;
}

function recover(written: Written, o: { isKnown: boolean; shards?: readonly FoundShard[] }) {
	const { found, dataKey, known } = written;
	return recoverVersion(
		{ ...found, shards: o.shards ?? found.shards },
		{ openKey: (_, { keyGeneration }) => (keyGeneration === 1 ? dataKey : null), known: o.isKnown ? known : null },
	);
}

describe('from trailers to an object', () => {
	test('it comes back exactly where each segment has k shards of one encoding, and is what was written', () => {
		fc.assert(
			fc.property(heap, ({ segments, lastCells, isKnown, order }) => {
				const written = write(segments, lastCells);
				const { found, manifest, objectId, roots } = written;
				const { object } = recover(written, { isKnown, shards: inAnyOrder(found.shards, order) });
				expect(object !== null).toBe(segments.every((encodings) => encodings.some(isWhole)));
				if (object === null) return;
				expect(object).toMatchObject({ objectId, manifest, keyGeneration: 1 });
				expect(object.segments).toHaveLength(segments.length);
				for (const [index, segment] of object.segments.entries()) {
					const { encodingId, placements, n, k } = segment;
					const there = found.shards.filter((shard) => shard.encodingId === encodingId && shard.segment === index);
					const indexes = placements.map(({ shardIndex }) => shardIndex);
					// Each index once, in order, all of the one encoding, and all that there are of it.
					expect(indexes).toEqual([...new Set(there.map(({ shardIndex }) => shardIndex))].sort((a, b) => a - b));
					for (const { shardId, shardIndex, workerId } of placements) {
						expect(there).toContainEqual(expect.objectContaining({ shardId, shardIndex, workerId }));
					}
					expect(placements.length).toBeGreaterThanOrEqual(k);
					// None has more to spare.
					const spares = (segments[index] ?? []).filter(isWhole).map((each) => each.kept.length - each.k);
					expect(placements.length - k).toBe(Math.max(...spares));
					const right = roots[index]?.get(encodingId) as Buffer;
					for (let at = 0; at < n; at++) {
						const root = segment.roots.subarray(at * LEAF_BYTES, (at + 1) * LEAF_BYTES);
						const isToBeRebuilt = segment.missing.includes(at);
						if (!isToBeRebuilt) expect(root.equals(right.subarray(at * LEAF_BYTES, (at + 1) * LEAF_BYTES))).toBe(true);
						if (isToBeRebuilt) expect(indexes).not.toContain(at);
					}
				}
			}),
			{ numRuns: 300, seed: 6 },
		);
	});

	test('shards of others, forged end records and trailers that say another length change nothing', () => {
		fc.assert(
			fc.property(heap, fc.integer({ min: 1, max: 6 }), ({ segments, lastCells, isKnown, order }, forged) => {
				const written = write(segments, lastCells);
				const other = write(segments, lastCells);
				const { shards } = written.found;
				const lies: FoundShard[] = shards.slice(0, forged).flatMap((shard) => [
					// What another object's end record says of its own.
					{
						...(other.found.shards.find(({ segment }) => segment === shard.segment) ?? shard),
						shardId: newId<ShardId>(random),
						endRecord: random.bytes(25),
					},
					{ ...shard, endRecord: random.bytes(25), encodingId: newId<EncodingId>(random), k: 1, n: 1 },
					{ ...shard, encodingId: newId<EncodingId>(random), lastCellBytes: shard.lastCellBytes - 1, k: 1, n: 1 },
				]);
				const honest = recover(written, { isKnown });
				const lied = recover(written, { isKnown, shards: inAnyOrder([...shards, ...lies], order) });
				expect(lied.object?.segments.map(({ encodingId }) => encodingId)).toEqual(
					honest.object?.segments.map(({ encodingId }) => encodingId),
				);
				expect(
					lied.object?.segments.flatMap(({ placements }) => placements.map(({ shardIndex }) => shardIndex)),
				).toEqual(honest.object?.segments.flatMap(({ placements }) => placements.map(({ shardIndex }) => shardIndex)));
			}),
			{ numRuns: 200, seed: 6 },
		);
	});

	test('an object without its last segment, or of other sizes than were sealed, is not taken for a whole one', () => {
		const all = [{ k: 2, n: 3, kept: [0, 1, 2], twice: [] }];
		const written = write([all, all], 4);
		const first = written.found.shards.filter(({ segment }) => segment === 0);
		expect(recover(written, { isKnown: false, shards: first })).toMatchObject({
			object: null,
			because: expect.stringContaining('segment 1'),
		});
		const manifest = { ...written.manifest, sizeBytes: written.manifest.sizeBytes - 1 };
		const recoveries = [
			{ ...(written.found.recoveries[0] as RecoveryRecord), manifest: sealManifest(written.dataKey, manifest, random) },
		];
		const changed = { ...written, found: { ...written.found, recoveries } };
		expect(recover(changed, { isKnown: false }).object).toBe(null);
	});

	test('shards that were moved are placed on workers of their own', () => {
		const written = write([[{ k: 2, n: 3, kept: [0, 1, 2], twice: [] }]], 4);
		const [a, b, c] = written.found.shards as [FoundShard, FoundShard, FoundShard];
		// 0 was moved to where 1 had been, and 1 away; both old files are there still.
		const moved = [
			a,
			{ ...a, workerId: b.workerId, shardId: newId<ShardId>(random) },
			b,
			{ ...b, workerId: workers[7] as WorkerId, shardId: newId<ShardId>(random) },
			c,
		];
		for (let order = 0; order < 40; order++) {
			const { object } = recover(written, { isKnown: false, shards: inAnyOrder(moved, order) });
			const on = object?.segments[0]?.placements.map(({ workerId }) => workerId);
			expect(new Set(on).size).toBe(3);
		}
	});

	test('of two roots that are told for one index the known one counts, and else that of most copies', () => {
		const written = write([[{ k: 2, n: 3, kept: [0, 1, 2], twice: [] }]], 4);
		const [a] = written.found.shards as [FoundShard];
		const lie = { ...a, root: random.bytes(32), shardId: newId<ShardId>(random), workerId: workers[9] as WorkerId };
		const known = recover(written, { isKnown: true, shards: [lie, lie, ...written.found.shards] });
		expect(known.object?.segments[0]?.placements[0]?.shardId).toBe(a.shardId);
		const again = { ...a, shardId: newId<ShardId>(random), workerId: workers[8] as WorkerId };
		const most = recover(written, { isKnown: false, shards: [lie, again, ...written.found.shards] });
		expect([a.shardId, again.shardId]).toContain(most.object?.segments[0]?.placements[0]?.shardId);
	});

	test('the oldest wrapped key that opens is kept: a trailer needs its generation', () => {
		const written = write([[{ k: 1, n: 2, kept: [0, 1], twice: [] }]], 4);
		const [record] = written.found.recoveries as [RecoveryRecord];
		const recoveries = [3, 2, 1].map((generation) => ({ ...record, ...wrappedBy(generation) }));
		const known = { ...written.known, object: { ...written.known.object, ...wrappedBy(4) } };
		const opens = (from: number) =>
			recoverVersion(
				{ ...written.found, recoveries },
				{ openKey: (_, { keyGeneration }) => (keyGeneration >= from ? written.dataKey : null), known },
			).object?.keyGeneration;
		expect([0, 1, 2, 3, 4].map(opens)).toEqual([1, 1, 2, 3, 4]);
	});
});

describe('written since a snapshot', () => {
	const BEGAN_MS = CREATED_MS + 3_600_000;
	const segments = [[{ k: 2, n: 3, kept: [0, 1, 2], twice: [] }]];
	const since = (o: { writtenAtMs: readonly number[]; underWay?: boolean }) => {
		const written = write(segments, 4);
		const shards = written.found.shards.map((shard, at) => ({ ...shard, writtenAtMs: o.writtenAtMs[at] as number }));
		const { object } = recover(written, { isKnown: false, shards });
		if (object === null) throw new Error('not recovered');
		return isSince({ beganAtMs: BEGAN_MS, underWay: () => o.underWay ?? false }, object, shards);
	};

	test('old shards of an object that the snapshot does not have are no proof', () => {
		expect(since({ writtenAtMs: [CREATED_MS, CREATED_MS, CREATED_MS] })).toBe(false);
		expect(since({ writtenAtMs: [CREATED_MS, CREATED_MS, CREATED_MS], underWay: true })).toBe(true);
	});

	test('a slow upload that ended after it is, one shard that was repaired after it is not', () => {
		expect(since({ writtenAtMs: [BEGAN_MS, BEGAN_MS + 1, CREATED_MS] })).toBe(true);
		expect(since({ writtenAtMs: [BEGAN_MS + 1, CREATED_MS, CREATED_MS] })).toBe(false);
	});
});
