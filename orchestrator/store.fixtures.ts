/**
 * Made-up rows for tests and benchmarks of metadata stores: repeatable from a seed, shaped like the real ones.
 */

import { createHash } from 'node:crypto';
import type { EncodingId, ObjectId, SealId, ShardId, UploadId, VersionId, WorkerId } from '../core/ids.ts';
import type { WrappedClusterKey } from '../core/model/keys-record.ts';
import type { ObjectKind } from '../core/model/manifest.ts';
import type { Segment } from '../core/model/segment.ts';
import type { Commit, IntendedShard, MetadataStore, Reencoded, RepairItem, WorkerRow } from './store.ts';

export interface Upload {
	/** Every shard of the upload, segment by segment, also those that the commit leaves out. */
	readonly shards: readonly IntendedShard[];
	readonly commit: Commit;
	readonly uploadId: UploadId;
	readonly objectId: ObjectId;
	readonly versionId: VersionId;
}

export interface UploadShape {
	/** 0: inline. */
	readonly segments?: number;
	readonly k?: number;
	readonly n?: number;
	/** Shard indexes of every segment that are not placed. */
	readonly missing?: readonly number[];
	readonly nowMs?: number;
	readonly sizeBytes?: number;
	readonly kind?: ObjectKind;
	readonly idempotency?: { readonly key: string; readonly fingerprint: string };
}

export interface Reencoding {
	readonly done: Reencoded;
	readonly uploadId: UploadId;
	readonly shards: readonly IntendedShard[];
}

export const NOW_MS = 1_760_000_000_000;

/** A deletion that leaves nothing in the trash. */
export function atOnce(nowMs = NOW_MS): { nowMs: number; purgeAtMs: number; by: string } {
	return { nowMs, purgeAtMs: nowMs, by: '' };
}

export class Fixtures {
	/** State of a SplitMix-like generator: fast, so that benchmarks don't measure it. */
	#state: number;

	constructor(seed: string) {
		this.#state = createHash('sha256').update(seed).digest().readUInt32LE();
	}

	bytes(count: number): Buffer {
		const words = new Int32Array(Math.ceil(count / 4));
		for (let index = 0; index < words.length; index++) {
			this.#state = (this.#state + 0x9e3779b9) | 0;
			let word = this.#state ^ (this.#state >>> 16);
			word = Math.imul(word, 0x21f0aaad);
			word = Math.imul(word ^ (word >>> 15), 0x735a2d97);
			words[index] = word ^ (word >>> 15);
		}
		return Buffer.from(words.buffer, 0, count);
	}

	id<T extends string>(): T {
		return this.bytes(16).toString('hex') as T;
	}

	worker(name: string): WorkerRow {
		return {
			workerId: this.id<WorkerId>(),
			name,
			address: '127.0.0.1:9201',
			zone: 'zone-a',
			receiptKey: this.bytes(32),
			registeredAtMs: NOW_MS,
			lastSeenMs: NOW_MS,
			bytesTotal: 2 ** 41 + 1,
			bytesUsed: 2 ** 33 + 1,
			shards: 12,
			duty: 'active',
			history: '',
		};
	}

	clusterKey(generation: number, masterKeyId: string): WrappedClusterKey {
		return { generation, createdAtMs: NOW_MS + generation, masterKeyId, wrapped: this.bytes(64) };
	}

	/** Shards go to workers in turn, one each. */
	upload(workers: readonly WorkerId[], shape: UploadShape = {}): Upload {
		const {
			segments: count = 1,
			k = 4,
			n = 6,
			missing = [],
			nowMs = NOW_MS,
			sizeBytes = 65_536,
			kind = 'user',
		} = shape;
		const shards: IntendedShard[] = [];
		const segments = Array.from({ length: count }, (_, index): Segment => {
			const all = Array.from({ length: n }, (_, shardIndex) => ({
				shardIndex,
				workerId: workers[shardIndex % workers.length] as WorkerId,
				shardId: this.id<ShardId>(),
			}));
			shards.push(...all.map(({ shardId, workerId }) => ({ shardId, workerId })));
			return {
				index,
				codec: 'rs-ronomon-6',
				k,
				n,
				cellBytes: 69_632,
				cells: 17,
				lastCellBytes: 4_097,
				sealId: this.id<SealId>(),
				encodingId: this.id<EncodingId>(),
				endRecord: this.bytes(48),
				roots: this.bytes(32 * n),
				because: `${k}+${n - k}: any ${n - k} of ${n} workers may fail`,
				placements: all.filter(({ shardIndex }) => !missing.includes(shardIndex)),
			};
		});
		const uploadId = this.id<UploadId>();
		const objectId = this.id<ObjectId>();
		const versionId = this.id<VersionId>();
		const commit: Commit = {
			object: {
				objectId,
				versionId,
				uploadId,
				kind,
				sizeBytes,
				segments: count,
				createdAtMs: nowMs,
				etag: this.id(),
				keyGeneration: 1,
				wrappedKey: this.bytes(64),
				manifest: this.bytes(150),
				inline: count === 0 ? this.bytes(80) : null,
			},
			segments,
			abandoned: [],
			idempotency:
				shape.idempotency === undefined
					? null
					: { ...shape.idempotency, owner: 'owner', uploadId, expiresAtMs: nowMs + 1_000 },
			nowMs,
		};
		return { shards, commit, uploadId, objectId, versionId };
	}

	/** An upload's segment in another encoding, one shard on each of these workers, from the first on. */
	reencoding(upload: Upload, o: { segment?: number; k: number; n: number; workers: readonly WorkerId[] }): Reencoding {
		const { k, n } = o;
		const from = upload.commit.segments[o.segment ?? 0] as Segment;
		const placements = Array.from({ length: n }, (_, shardIndex) => ({
			shardIndex,
			workerId: o.workers[shardIndex] as WorkerId,
			shardId: this.id<ShardId>(),
		}));
		const { objectId, versionId, commit } = upload;
		const done: Reencoded = {
			objectId,
			versionId,
			fromEncodingId: from.encodingId,
			segment: {
				...from,
				codec: k === 1 ? 'replicate' : 'rs-ronomon-6',
				k,
				n,
				encodingId: this.id<EncodingId>(),
				roots: this.bytes(32 * n),
				because: `${k}+${n - k} by now`,
				placements,
			},
			keyGeneration: 1,
			nowMs: commit.nowMs + 5,
		};
		return { done, uploadId: this.id<UploadId>(), shards: placements };
	}

	/** Begun and committed. */
	async store(store: MetadataStore, workers: readonly WorkerId[], shape: UploadShape = {}): Promise<Upload> {
		const upload = this.upload(workers, shape);
		await begin(store, upload);
		await store.commit(upload.commit);
		return upload;
	}
}

export function begin(store: MetadataStore, upload: Upload, expiresAtMs = upload.commit.nowMs + 1_000): Promise<void> {
	const { uploadId, objectId, shards } = upload;
	return store.begin({ uploadId, objectId, shards, expiresAtMs });
}

/** The queue item that a shard of an upload's segment must have. */
export function itemOf(upload: Upload, segment: number, shardIndex: number): Omit<RepairItem, 'attempts' | 'dueAtMs'> {
	const { encodingId } = upload.commit.segments[segment] as Segment;
	return { objectId: upload.objectId, versionId: upload.versionId, segment, encodingId, shardIndex };
}
