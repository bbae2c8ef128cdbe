/**
 * Rows as they cross the REST interface: bytes as base64, 64-bit numbers as text (JSON numbers lose bits), pairs and
 * triples as arrays where there are many.
 */

import { sealedBytes } from '../core/codec/layout.ts';
import type { DeletionAction, DeletionEntry, DeletionHead } from '../core/crypto/deletion-log.ts';
import { DistroError } from '../core/errors.ts';
import type { EncodingId, ObjectId, SealId, ShardId, UploadId, VersionId, WorkerId } from '../core/ids.ts';
import type { WorkerDuty } from '../core/model/health.ts';
import type { WrappedClusterKey } from '../core/model/keys-record.ts';
import type { ObjectKind } from '../core/model/manifest.ts';
import type { CodecId, FormerCode, Segment } from '../core/model/segment.ts';
import type {
	ClusterRow,
	Commit,
	Finding,
	FindingKind,
	IntendedShard,
	IntentRow,
	JobRow,
	KeyUse,
	KnownShard,
	ObjectRow,
	RedundancyRows,
	Reencoded,
	RepairItem,
	RewrappedObject,
	StoredSegment,
	TrashedObject,
	WholeObject,
	WorkerRow,
	WorkerSighting,
	WrappedDataKeyRow,
} from './store.ts';
import { missingIndexes } from './store-rules.ts';

const base64 = (bytes: Buffer) => bytes.toString('base64');
const bytes = (text: string) => Buffer.from(text, 'base64');

/** Postgres holds no NUL and no half of a surrogate pair, and would refuse the whole batch for one. Throws `invalid`. */
export function storable(text: string): string {
	if (text.isWellFormed() && !text.includes('\0')) return text;
	throw new DistroError('invalid', 'text with a NUL or a broken character cannot be stored');
}

/** For text that only people read. */
function readable(text: string): string {
	return text.toWellFormed().replaceAll('\0', '');
}

export function pairs(shards: readonly IntendedShard[]): [ShardId, WorkerId][] {
	return shards.map(({ shardId, workerId }) => [shardId, workerId]);
}

/** Each once: k, n, workers in order as an array of Postgres, segments, bytes. And which segment is on which. */
function setsOf(segments: readonly Segment[]): {
	sets: readonly (readonly [number, number, string, number, number])[];
	setOf: readonly number[];
} {
	const places = new Map<string, number>();
	const sets: [number, number, string, number, number][] = [];
	const setOf = segments.map((segment) => {
		const { k, n, placements } = segment;
		const workers = placements.map(({ workerId }) => workerId).sort();
		const key = `${k} ${n} ${workers}`;
		const place = places.get(key) ?? sets.push([k, n, `{${workers}}`, 0, 0]) - 1;
		places.set(key, place);
		const set = sets[place] as (typeof sets)[number];
		set[3]++;
		set[4] += sealedBytes(segment);
		return place;
	});
	return { sets, setOf };
}

export function commitArgs({ object, segments, abandoned, idempotency, nowMs }: Commit) {
	const { sets, setOf } = setsOf(segments);
	return {
		object: {
			...object,
			etag: storable(object.etag),
			wrappedKey: base64(object.wrappedKey),
			manifest: base64(object.manifest),
			inline: object.inline === null ? null : base64(object.inline),
		},
		sets,
		segments: segments.map(({ placements: _, was: __, ...segment }, at) => ({
			...segment,
			set: setOf[at],
			because: readable(segment.because),
			endRecord: base64(segment.endRecord),
			roots: base64(segment.roots),
		})),
		placements: segments.flatMap(({ index, placements }) =>
			placements.map(({ shardIndex, shardId, workerId }) => [index, shardIndex, shardId, workerId]),
		),
		missing: segments.flatMap((segment) => {
			const missing = missingIndexes(segment);
			const spares = segment.n - segment.k - missing.length;
			return missing.map((shardIndex) => [segment.index, shardIndex, spares]);
		}),
		abandoned: pairs(abandoned),
		idempotency:
			idempotency === null
				? null
				: {
						owner: storable(idempotency.owner),
						key: storable(idempotency.key),
						fingerprint: storable(idempotency.fingerprint),
						expiresAtMs: idempotency.expiresAtMs,
					},
		nowMs,
	};
}

export function reencodedArgs({ segment, nowMs, ...from }: Reencoded) {
	const { placements, index, codec, k, n, encodingId, roots, because } = segment;
	return {
		...from,
		segment: { index, codec, k, n, encodingId, roots: base64(roots), because: readable(because) },
		placements: placements.map(({ shardIndex, shardId, workerId }) => [shardIndex, shardId, workerId]),
		nowMs,
	};
}

export function findingArgs({ shardId, workerId, kind, detail, foundAtMs }: Finding): unknown[] {
	return [shardId, workerId, kind, readable(detail), foundAtMs];
}

export interface ObjectJson {
	readonly objectId: string;
	readonly versionId: string;
	readonly uploadId: string;
	readonly sizeBytes: string;
	readonly segments: string;
	readonly createdAtMs: string;
	readonly etag: string;
	readonly keyGeneration: string;
	readonly wrappedKey: string;
	readonly manifest: string;
	readonly inline: string | null;
	readonly kind: string;
}

export function toObject(row: ObjectJson): ObjectRow {
	return {
		objectId: row.objectId as ObjectId,
		versionId: row.versionId as VersionId,
		uploadId: row.uploadId as UploadId,
		sizeBytes: Number(row.sizeBytes),
		segments: Number(row.segments),
		createdAtMs: Number(row.createdAtMs),
		etag: row.etag,
		keyGeneration: Number(row.keyGeneration),
		wrappedKey: bytes(row.wrappedKey),
		manifest: bytes(row.manifest),
		inline: row.inline === null ? null : bytes(row.inline),
		kind: row.kind as ObjectKind,
	};
}

export interface TrashedJson extends ObjectJson {
	readonly deletedAtMs: string;
	readonly purgeAtMs: string;
}

export function toTrashed(row: TrashedJson): TrashedObject {
	return { object: toObject(row), deletedAtMs: Number(row.deletedAtMs), purgeAtMs: Number(row.purgeAtMs) };
}

export interface DeletionJson {
	readonly number: string;
	readonly objectId: string;
	readonly action: string;
	readonly atMs: string;
	readonly by: string;
	readonly hash: string;
}

export function toDeletion(row: DeletionJson): DeletionEntry {
	return {
		number: Number(row.number),
		objectId: row.objectId as ObjectId,
		action: row.action as DeletionAction,
		atMs: Number(row.atMs),
		by: row.by,
		hash: bytes(row.hash),
	};
}

export interface DeletionHeadJson {
	readonly entries: string;
	readonly hash: string;
}

export function toDeletionHead({ entries, hash }: DeletionHeadJson): DeletionHead {
	return { entries: Number(entries), hash: bytes(hash) };
}

export interface SegmentJson {
	readonly index: string;
	readonly codec: string;
	readonly k: number;
	readonly n: number;
	readonly cellBytes: number;
	readonly cells: number;
	readonly lastCellBytes: number;
	readonly sealId: string;
	readonly encodingId: string;
	readonly endRecord: string;
	readonly roots: string;
	readonly because: string;
	readonly was: FormerCode | null;
	readonly placements: readonly [number, string, string][];
}

export function toSegment({ was, ...row }: SegmentJson): Segment {
	return {
		...row,
		...(was === null ? {} : { was }),
		index: Number(row.index),
		codec: row.codec as CodecId,
		sealId: row.sealId as SealId,
		encodingId: row.encodingId as EncodingId,
		endRecord: bytes(row.endRecord),
		roots: bytes(row.roots),
		placements: row.placements.map(([shardIndex, workerId, shardId]) => ({
			shardIndex,
			workerId: workerId as WorkerId,
			shardId: shardId as ShardId,
		})),
	};
}

export interface WholeJson {
	/** Number of the object: where the next page goes on. */
	readonly place: string;
	readonly object: ObjectJson;
	/** When it was deleted, and when it is purged. */
	readonly trash: readonly [string, string] | null;
	readonly segments: readonly SegmentJson[];
}

export function toWhole({ object, trash, segments }: WholeJson): WholeObject {
	return {
		object: toObject(object),
		trash: trash === null ? null : { deletedAtMs: Number(trash[0]), purgeAtMs: Number(trash[1]) },
		segments: segments.map(toSegment),
	};
}

export interface ClusterJson {
	readonly clusterId: string;
	readonly createdAtMs: string;
	readonly revision: string;
	readonly keys: readonly {
		readonly generation: string;
		readonly createdAtMs: string;
		readonly masterKeyId: string;
		readonly wrapped: string;
	}[];
}

export function keyArgs(key: WrappedClusterKey): object {
	return { ...key, masterKeyId: storable(key.masterKeyId), wrapped: base64(key.wrapped) };
}

export function clusterArgs({ clusterId, createdAtMs, revision, keys }: ClusterRow): object {
	return { clusterId, createdAtMs, revision, keys: keys.map(keyArgs) };
}

export function toCluster(row: ClusterJson): ClusterRow {
	return {
		clusterId: row.clusterId as ClusterRow['clusterId'],
		createdAtMs: Number(row.createdAtMs),
		revision: Number(row.revision),
		keys: row.keys.map(({ generation, createdAtMs, masterKeyId, wrapped }) => ({
			generation: Number(generation),
			createdAtMs: Number(createdAtMs),
			masterKeyId,
			wrapped: bytes(wrapped),
		})),
	};
}

export interface KeyUseJson extends Omit<KeyUse, 'generation'> {
	readonly generation: string;
}

/** Version, generation, wrapped key. */
export type WrappedDataKeyJson = readonly [string, string, string];

export function toWrappedDataKey([versionId, generation, wrapped]: WrappedDataKeyJson): WrappedDataKeyRow {
	return { versionId: versionId as VersionId, keyGeneration: Number(generation), wrappedKey: bytes(wrapped) };
}

export function rewrappedArgs({ versionId, before, keyGeneration, wrappedKey }: RewrappedObject): unknown[] {
	return [versionId, base64(before), keyGeneration, base64(wrappedKey)];
}

export interface IntentJson {
	readonly uploadId: string;
	readonly objectId: string;
	readonly expiresAtMs: string;
}

export function toIntent(row: IntentJson): IntentRow {
	return {
		uploadId: row.uploadId as UploadId,
		objectId: row.objectId as ObjectId,
		state: 'open',
		expiresAtMs: Number(row.expiresAtMs),
	};
}

export interface FindingJson {
	readonly shardId: string;
	readonly workerId: string;
	readonly kind: string;
	readonly detail: string;
	readonly foundAtMs: string;
}

export function toFinding(row: FindingJson): Finding {
	return {
		shardId: row.shardId as ShardId,
		workerId: row.workerId as WorkerId,
		kind: row.kind as FindingKind,
		detail: row.detail,
		foundAtMs: Number(row.foundAtMs),
	};
}

/** Shard, placed, intended, deleting. */
export type KnownShardJson = readonly [string, boolean, boolean, boolean];

export function toKnownShard([shardId, placed, intended, deleting]: KnownShardJson): KnownShard {
	return { shardId: shardId as ShardId, placed, intended, deleting };
}

export interface RepairJson {
	/** Spare shards and number of the item: where the next page goes on. */
	readonly place: readonly [number, string];
	readonly objectId: string;
	readonly versionId: string;
	readonly segment: string;
	readonly encodingId: string;
	readonly shardIndex: number;
	readonly attempts: number;
	readonly dueAtMs: string;
}

export function toRepair(row: RepairJson): RepairItem {
	return {
		objectId: row.objectId as ObjectId,
		versionId: row.versionId as VersionId,
		segment: Number(row.segment),
		encodingId: row.encodingId as EncodingId,
		shardIndex: row.shardIndex,
		attempts: row.attempts,
		dueAtMs: Number(row.dueAtMs),
	};
}

export interface WorkerJson {
	readonly workerId: string;
	readonly name: string;
	readonly address: string;
	readonly zone: string;
	readonly receiptKey: string;
	readonly registeredAtMs: string;
	readonly lastSeenMs: string;
	readonly bytesTotal: string;
	readonly bytesUsed: string;
	readonly shards: string;
	readonly duty: WorkerDuty;
	readonly history: string;
}

export function workerArgs(worker: WorkerSighting): object {
	const { name, address, zone } = worker;
	return {
		...worker,
		name: storable(name),
		address: storable(address),
		zone: storable(zone),
		receiptKey: base64(worker.receiptKey),
	};
}

export function toWorker(row: WorkerJson): WorkerRow {
	return {
		workerId: row.workerId as WorkerId,
		name: row.name,
		address: row.address,
		zone: row.zone,
		receiptKey: bytes(row.receiptKey),
		registeredAtMs: Number(row.registeredAtMs),
		lastSeenMs: Number(row.lastSeenMs),
		bytesTotal: Number(row.bytesTotal),
		bytesUsed: Number(row.bytesUsed),
		shards: Number(row.shards),
		duty: row.duty,
		history: row.history,
	};
}

export interface RedundancyJson {
	/** Id, k, n, workers, segments, bytes. */
	readonly sets: readonly (readonly [string, number, number, string, string, string])[];
	/** Set ids, objects, bytes. */
	readonly spreads: readonly (readonly [string, string, string])[];
	/** `after` of the next page. */
	readonly next: string | null;
}

/** Of an array as Postgres writes it, of ids. */
function elements(array: string): string[] {
	return array === '{}' ? [] : array.slice(1, -1).split(',');
}

/** Sums may pass 2^53: figures for people, so rounding is fine. */
export function toRedundancy({ sets, spreads }: RedundancyJson): RedundancyRows {
	return {
		sets: sets.map(([setId, k, n, workers, segments, bytes]) => ({
			setId,
			k,
			n,
			workers: elements(workers) as WorkerId[],
			segments: Number(segments),
			bytes: Number(bytes),
		})),
		spreads: spreads.map(([sets, objects, bytes]) => ({
			setIds: elements(sets),
			objects: Number(objects),
			bytes: Number(bytes),
		})),
	};
}

export interface StoredSegmentJson {
	/** Numbers of object and segment: where the next page goes on. */
	readonly place: readonly [number, number];
	readonly objectId: string;
	readonly versionId: string;
	readonly segment: SegmentJson;
}

export function toStoredSegment(row: StoredSegmentJson): StoredSegment {
	return {
		objectId: row.objectId as ObjectId,
		versionId: row.versionId as VersionId,
		segment: toSegment(row.segment),
	};
}

export interface JobJson {
	readonly name: string;
	readonly paused: boolean;
	readonly runs: string;
	readonly state: string;
	readonly updatedAtMs: string;
}

export function toJob(row: JobJson): JobRow {
	return { ...row, runs: Number(row.runs), updatedAtMs: Number(row.updatedAtMs) };
}
