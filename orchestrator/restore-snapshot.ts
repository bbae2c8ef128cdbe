/**
 * The newest snapshot that is whole, found among the shards themselves: its manifest says what it is, sealed by the cluster's
 * own keys, so that nobody's upload passes for one. Its rows go into the index of the restore.
 */

import { PassThrough } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createInflate } from 'node:zlib';
import { openManifest } from '../core/crypto/seal.ts';
import { asDistroError, DistroError } from '../core/errors.ts';
import type { VersionId } from '../core/ids.ts';
import { type OpenDataKey, type RecoveredObject, recoverVersion } from '../core/model/recover.ts';
import { SNAPSHOT_MAGIC, SnapshotDecoder, type SnapshotRecord } from '../core/model/snapshot.ts';
import type { ByteSink } from '../core/ports.ts';
import { type ReadDeps, readObject } from './download.ts';
import type { ScanIndex } from './restore-index.ts';
import { withAllRoots } from './restore-segment.ts';

/** Read at once: records are small, and each costs a row. */
const RECORDS_TOGETHER = 1_000;

export interface FoundSnapshot {
	readonly versionId: VersionId;
	readonly createdAtMs: number;
}

/** What a snapshot has besides objects. */
export interface SnapshotRest {
	readonly cluster: Extract<SnapshotRecord, { is: 'cluster' }>;
	readonly workers: readonly Extract<SnapshotRecord, { is: 'worker' }>[];
	readonly apiKeys: readonly Extract<SnapshotRecord, { is: 'api key' }>[];
	readonly objects: number;
}

/** Newest first, whole or not: of each at least one trailer of its last segment is there. */
export function findSnapshots(index: ScanIndex, openKey: OpenDataKey): FoundSnapshot[] {
	const found: FoundSnapshot[] = [];
	for (const versionId of index.versions()) {
		for (const record of index.recoveries(versionId)) {
			const dataKey = record.manifest === null ? null : openKey(versionId, record);
			if (dataKey === null || record.manifest === null) continue;
			try {
				const { kind, createdAtMs } = openManifest(dataKey, record.manifest);
				if (kind === 'snapshot') found.push({ versionId, createdAtMs });
				break;
			} catch {
				// Another trailer of the same object may have a good one.
			}
		}
	}
	return found.sort((a, b) => b.createdAtMs - a.createdAtMs);
}

/** Reads it into the index. Throws when it is not whole; what of it is in the index then is to be forgotten. */
export async function readSnapshot(
	deps: ReadDeps & { index: ScanIndex; openKey: OpenDataKey },
	versionId: VersionId,
	signal: AbortSignal,
): Promise<SnapshotRest> {
	const { index, openKey } = deps;
	const { object, because } = { because: '', ...recoverVersion(index.found(versionId), { openKey, known: null }) };
	if (object === null) throw new DistroError('unrecoverable', because);
	const bytes = new PassThrough();
	const decoder = new SnapshotDecoder();
	let cluster: SnapshotRest['cluster'] | null = null;
	const workers: Extract<SnapshotRecord, { is: 'worker' }>[] = [];
	const apiKeys: Extract<SnapshotRecord, { is: 'api key' }>[] = [];
	let objects = 0;
	let owner: VersionId | null = null;
	const take = (record: SnapshotRecord) => {
		switch (record.is) {
			case 'cluster':
				cluster = record;
				break;
			case 'worker':
				workers.push(record);
				break;
			case 'api key':
				apiKeys.push(record);
				break;
			case 'object':
				owner = record.object.versionId;
				objects++;
				index.addKnown(record.object);
				break;
			case 'segment':
				if (owner === null) throw new DistroError('corrupt', 'a snapshot has a segment of no object');
				index.addKnownSegment(owner, record);
				break;
			case 'under way':
				index.addUnderWay(record.objectId);
				break;
			case 'deletion log':
			case 'end':
				break;
		}
	};
	const decode = async (inflated: AsyncIterable<Buffer>) => {
		let waiting: SnapshotRecord[] = [];
		const flush = () => {
			index.together(() => {
				for (const record of waiting) take(record);
			});
			waiting = [];
		};
		for await (const chunk of inflated) {
			for (const record of decoder.push(chunk)) waiting.push(record);
			if (waiting.length >= RECORDS_TOGETHER) flush();
		}
		flush();
		decoder.finish();
	};
	const stop = new AbortController();
	const reading = readAll(deps, { object, into: bytes, signal: AbortSignal.any([signal, stop.signal]) }).then(
		() => bytes.end(),
		(error) => bytes.destroy(error),
	);
	try {
		await pipeline(bytes, withoutMagic, createInflate(), decode, { signal });
	} catch (error) {
		throw asDistroError(error);
	} finally {
		// Of one that is not right nobody takes the rest: the memory that it is read with is for the next.
		stop.abort();
		await reading;
	}
	if (cluster === null) throw new DistroError('corrupt', 'a snapshot says of no cluster');
	return { cluster, workers, apiKeys, objects };
}

async function* withoutMagic(bytes: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
	let head: Buffer | null = Buffer.alloc(0);
	for await (const chunk of bytes) {
		if (head === null) {
			yield chunk;
			continue;
		}
		head = Buffer.concat([head, chunk]);
		if (head.length < SNAPSHOT_MAGIC.length) continue;
		if (!head.subarray(0, SNAPSHOT_MAGIC.length).equals(SNAPSHOT_MAGIC)) {
			throw new DistroError('unsupported', 'a snapshot of a format not known here');
		}
		yield head.subarray(SNAPSHOT_MAGIC.length);
		head = null;
	}
}

async function readAll(
	deps: ReadDeps,
	o: { object: RecoveredObject; into: PassThrough; signal: AbortSignal },
): Promise<void> {
	const { object, into, signal } = o;
	const trees = [];
	for (const segment of object.segments) trees.push(await withAllRoots(deps, segment, signal));
	const sink: ByteSink = { write: (chunk) => into.write(chunk), drained: () => {} };
	into.on('drain', () => sink.drained());
	const { objectId, versionId, keyGeneration, wrappedKey, sealedManifest: manifest } = object;
	const { sizeBytes, createdAtMs } = object.manifest;
	const row = { objectId, versionId, uploadId: '' as never, kind: 'snapshot' as const, sizeBytes, createdAtMs };
	await readObject(
		deps,
		{
			object: { ...row, segments: trees.length, etag: '', keyGeneration, wrappedKey, manifest, inline: null },
			dataKey: object.dataKey,
			segments: trees.map(({ segment }) => segment),
		},
		{ offset: 0, length: sizeBytes, sink, signal },
	);
}
