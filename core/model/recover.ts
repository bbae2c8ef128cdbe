/**
 * From what the trailers of an object's shards say back to the object: which segments it had, which encoding of each is
 * still whole enough, and what of it is proved. Pure: no disk, no worker, no store.
 *
 * A trailer is only proof against accidents. What counts here opens with the object's data key: the end records say how
 * many cells each segment has and which is the last, the manifest how long the object is. An object is recovered when all
 * its segments have k shards of one encoding; shards of different encodings never mix.
 */

import type { KeyObject } from 'node:crypto';
import { plainBytes } from '../codec/layout.ts';
import { LEAF_BYTES } from '../crypto/digest.ts';
import { segmentKey } from '../crypto/keys.ts';
import { cellAd, type EndRecord, openEndRecord, openManifest } from '../crypto/seal.ts';
import type { EncodingId, ObjectId, SealId, ShardId, VersionId, WorkerId } from '../ids.ts';
import { SEGMENT_CELLS } from '../limits.ts';
import type { Manifest } from './manifest.ts';
import type { RecoveryRecord } from './recovery.ts';
import type { Placement, Segment, SegmentShape } from './segment.ts';
import type { SnapshotObject } from './snapshot.ts';

/** One shard that a worker has, as its trailer describes it. */
export interface FoundShard extends SegmentShape {
	readonly segment: number;
	readonly sealId: SealId;
	readonly encodingId: EncodingId;
	readonly shardIndex: number;
	readonly shardId: ShardId;
	readonly workerId: WorkerId;
	readonly root: Buffer;
	readonly endRecord: Buffer;
	/** When the worker says that it was written. */
	readonly writtenAtMs: number;
}

/** Everything that was found of one version of an object. */
export interface FoundVersion {
	readonly versionId: VersionId;
	readonly shards: readonly FoundShard[];
	/** Each different one once. */
	readonly recoveries: readonly RecoveryRecord[];
}

/** What a snapshot knew of it. */
export interface KnownVersion {
	readonly object: SnapshotObject;
	readonly segments: readonly Segment[];
}

/** A segment whose shards were found. Roots of shards that were not are `missing`: rebuilding tells them. */
export interface RecoveredSegment extends Segment {
	readonly missing: readonly number[];
}

export interface RecoveredObject {
	readonly objectId: ObjectId;
	readonly versionId: VersionId;
	readonly keyGeneration: number;
	readonly wrappedKey: Buffer;
	readonly dataKey: KeyObject;
	readonly manifest: Manifest;
	readonly sealedManifest: Buffer;
	readonly segments: readonly RecoveredSegment[];
}

/** `because` is for people; `name` where the manifest opened. */
export type Recovery =
	| { readonly object: RecoveredObject }
	| {
			readonly object: null;
			readonly because: string;
			readonly objectId: ObjectId | null;
			readonly name: string | null;
	  };

/** Null when it does not open. */
export type OpenDataKey = (
	versionId: VersionId,
	record: { readonly keyGeneration: number; readonly wrappedKey: Buffer },
) => KeyObject | null;

export function recoverVersion(found: FoundVersion, o: { openKey: OpenDataKey; known: KnownVersion | null }): Recovery {
	const { versionId, recoveries } = found;
	const { known } = o;
	const objectId = known?.object.objectId ?? mostOften(recoveries.map((record) => record.objectId));
	const lost = (because: string, name: string | null = null): Recovery => ({ object: null, because, objectId, name });
	const wrapped = openedKey(found, o);
	if (wrapped === null || objectId === null) return lost('its data key does not open with the keys that are there');
	const { dataKey } = wrapped;
	const opened = openedManifest({ versionId, dataKey, recoveries, known });
	const name = opened?.manifest.name ?? null;

	const bySegment = Map.groupBy(found.shards, (shard) => shard.segment);
	const segments: RecoveredSegment[] = [];
	for (let index = 0, isLast = false; !isLast; index++) {
		const shards = bySegment.get(index) ?? [];
		const proved = provedShards(versionId, dataKey, shards);
		if (proved === null) {
			const there = opened === null ? '' : ` of ${opened.manifest.segments}`;
			return lost(`no shard of segment ${index}${there} was found`, name);
		}
		const segment = chooseEncoding(proved.shards, known?.segments[index] ?? null);
		if (segment === null) return lost(tooFew(index, proved.shards), name);
		segments.push({ ...segment, index });
		isLast = proved.end.lastSegment;
		if (!isLast && proved.end.cells !== SEGMENT_CELLS)
			return lost(`segment ${index} is shorter than one before others`, name);
	}
	if (opened === null) return lost('its manifest was not found, or does not open');
	const { manifest } = opened;
	const sizeBytes = segments.reduce((sum, segment) => sum + plainBytes(segment), 0);
	if (manifest.segments !== segments.length || manifest.sizeBytes !== sizeBytes) {
		return lost(`its segments have ${sizeBytes} bytes, and ${manifest.sizeBytes} were sealed`, name);
	}
	const { keyGeneration, wrappedKey } = wrapped;
	const sealedManifest = opened.sealed;
	return { object: { objectId, versionId, keyGeneration, wrappedKey, dataKey, manifest, sealedManifest, segments } };
}

/**
 * As the oldest trailer that opens has it: the metadata take an object's shards to have what its row has, and a generation that
 * a trailer needs must not be dropped. A key that is wrapped by an old one is wrapped anew in time.
 */
function openedKey({ versionId, recoveries }: FoundVersion, o: { openKey: OpenDataKey; known: KnownVersion | null }) {
	const inTrailers = recoveries.toSorted((a, b) => a.keyGeneration - b.keyGeneration);
	for (const { keyGeneration, wrappedKey } of [...inTrailers, ...(o.known === null ? [] : [o.known.object])]) {
		const dataKey = o.openKey(versionId, { keyGeneration, wrappedKey });
		if (dataKey !== null) return { dataKey, keyGeneration, wrappedKey };
	}
	return null;
}

function openedManifest(o: {
	versionId: VersionId;
	dataKey: KeyObject;
	recoveries: readonly RecoveryRecord[];
	known: KnownVersion | null;
}): { manifest: Manifest; sealed: Buffer } | null {
	const sealed = [o.known?.object.manifest, ...o.recoveries.map(({ manifest }) => manifest)];
	for (const each of sealed) {
		if (each === null || each === undefined) continue;
		const manifest = quietly(() => openManifest(o.dataKey, each));
		if (manifest !== null) return { manifest, sealed: each };
	}
	return null;
}

/** Those whose end record opens under the object's key and says what they say; null when none does. */
function provedShards(
	versionId: VersionId,
	dataKey: KeyObject,
	shards: readonly FoundShard[],
): { end: EndRecord; shards: readonly FoundShard[] } | null {
	const ends = new Map<string, EndRecord | null>();
	let end: EndRecord | null = null;
	const proved = shards.filter((shard) => {
		const { segment, sealId, endRecord } = shard;
		const at = `${sealId} ${endRecord.toString('base64')}`;
		let opened = ends.get(at);
		if (opened === undefined) {
			const key = segmentKey({ dataKey, segment, sealId });
			opened = quietly(() => openEndRecord(key, cellAd({ versionId, segment, sealId }), endRecord));
			ends.set(at, opened);
		}
		if (opened === null || opened.cells !== shard.cells || opened.lastCellBytes !== shard.lastCellBytes) return false;
		end = opened;
		return true;
	});
	return end === null ? null : { end, shards: proved };
}

/** The encoding with the most shards to spare, of those with at least k: the one that was known, where two are alike. */
function chooseEncoding(shards: readonly FoundShard[], known: Segment | null): Omit<RecoveredSegment, 'index'> | null {
	const encodings = [...Map.groupBy(shards, encodingOf).values()]
		.map((each) => ({ first: each[0] as FoundShard, chosen: onePerIndex(each, known) }))
		.filter(({ first, chosen }) => chosen.length >= first.k);
	const best = encodings.sort(
		(a, b) =>
			b.chosen.length - b.first.k - (a.chosen.length - a.first.k) ||
			Number(b.first.encodingId === known?.encodingId) - Number(a.first.encodingId === known?.encodingId) ||
			(a.first.encodingId < b.first.encodingId ? -1 : 1),
	)[0];
	if (best === undefined) return null;
	const { codec, k, n, cellBytes, cells, lastCellBytes, sealId, encodingId, endRecord } = best.first;
	const isKnown = known?.encodingId === encodingId && known.sealId === sealId;
	const roots = isKnown ? known.roots : rootsOf(n, best.chosen);
	const there = new Set(best.chosen.map(({ shardIndex }) => shardIndex));
	const isComplete = isKnown || k === 1;
	const missing = isComplete ? [] : Array.from({ length: n }, (_, index) => index).filter((index) => !there.has(index));
	const because = isKnown ? known.because : `${k}+${n - k} because its shards were found so`;
	const placements = best.chosen.map(
		({ shardIndex, workerId, shardId }): Placement => ({ shardIndex, workerId, shardId }),
	);
	const shape = { codec, k, n, cellBytes, cells, lastCellBytes, sealId, encodingId, endRecord };
	return { ...shape, roots, because, placements, missing };
}

function encodingOf({ encodingId, sealId, codec, k, n, cellBytes, endRecord }: FoundShard): string {
	return [encodingId, sealId, codec, k, n, cellBytes, endRecord.toString('base64')].join(' ');
}

/**
 * In order of index. Of several copies of one index (a shard that was moved, and whose old file was not deleted yet) one that
 * has the root that is known, or else that most have, on a worker of its own if that is possible.
 */
function onePerIndex(shards: readonly FoundShard[], known: Segment | null): FoundShard[] {
	const rootOf = ({ root }: FoundShard) => root.toString('hex');
	const isKnown = known !== null && known.encodingId === shards[0]?.encodingId;
	// Copies have one root.
	const common = shards[0]?.k === 1 ? mostOften(shards.map(rootOf)) : null;
	const rootAt = (index: number, copies: readonly FoundShard[]) =>
		isKnown
			? known.roots.toString('hex', index * LEAF_BYTES, (index + 1) * LEAF_BYTES)
			: (common ?? mostOften(copies.map(rootOf)));
	const taken = new Set<WorkerId>();
	return [...Map.groupBy(shards, ({ shardIndex }) => shardIndex)]
		.map(([index, copies]) => copies.filter((shard) => rootOf(shard) === rootAt(index, copies)))
		.sort((a, b) => a.length - b.length)
		.flatMap((copies) => {
			const chosen = copies.find(({ workerId }) => !taken.has(workerId)) ?? copies[0];
			if (chosen !== undefined) taken.add(chosen.workerId);
			return chosen ?? [];
		})
		.sort((a, b) => a.shardIndex - b.shardIndex);
}

function rootsOf(n: number, chosen: readonly FoundShard[]): Buffer {
	const roots = Buffer.alloc(n * LEAF_BYTES);
	for (const { root, shardIndex, k } of chosen) {
		if (k === 1) for (let index = 0; index < n; index++) root.copy(roots, index * LEAF_BYTES);
		else root.copy(roots, shardIndex * LEAF_BYTES);
	}
	return roots;
}

function tooFew(index: number, shards: readonly FoundShard[]): string {
	const counts = [...Map.groupBy(shards, encodingOf).values()].map((each) => {
		const { k } = each[0] as FoundShard;
		return `${onePerIndex(each, null).length} of the ${k} shards that are needed`;
	});
	return `segment ${index} has ${counts.join(', and in another encoding ')}`;
}

function mostOften<T extends string>(values: readonly T[]): T | null {
	const counts = [...Map.groupBy(values, (value) => value)].map(([value, each]) => ({ value, count: each.length }));
	return counts.sort((a, b) => b.count - a.count || (a.value < b.value ? -1 : 1))[0]?.value ?? null;
}

function quietly<T>(open: () => T): T | null {
	try {
		return open();
	} catch {
		return null;
	}
}

/** Clocks of workers and orchestrators may differ by so much. */
const CLOCKS_DIFFER_MS = 5 * 60_000;

/**
 * Whether an object that a snapshot does not have was written after it. If it was not, it was deleted before, or never
 * acknowledged: there is no proof of its commit.
 */
export function isSince(
	snapshot: { readonly beganAtMs: number; readonly underWay: (objectId: ObjectId) => boolean },
	object: RecoveredObject,
	shards: readonly FoundShard[],
): boolean {
	const sinceMs = snapshot.beganAtMs - CLOCKS_DIFFER_MS;
	if (object.manifest.createdAtMs >= sinceMs || snapshot.underWay(object.objectId)) return true;
	// It may have been slow. Before the last segment's shards were there it was not committed; a repair may have written
	// one of them anew, but hardly k.
	const last = object.segments.at(-1);
	const ids = new Set(last?.placements.map(({ shardId }) => shardId));
	const lateShards = shards.filter(({ shardId, writtenAtMs }) => ids.has(shardId) && writtenAtMs >= sinceMs);
	return last !== undefined && lateShards.length >= last.k;
}
