/**
 * One restore: from the index of a scan, and maybe a snapshot, to the rows of a fresh store.
 *
 *     version → recoverVersion → roots of what is missing → (every cell read) → begin + commit
 *
 * Everything that is not there afterwards is told, with the reason. A restore that is killed is run again: what was
 * committed is found to be there, since an upload id is the same each time.
 */

import type { KeyObject } from 'node:crypto';
import { openManifest } from '../core/crypto/seal.ts';
import { asDistroError, DistroError } from '../core/errors.ts';
import type { ObjectId, UploadId, VersionId } from '../core/ids.ts';
import type { ObjectKind } from '../core/model/manifest.ts';
import {
	type FoundVersion,
	isSince,
	type KnownVersion,
	type OpenDataKey,
	type RecoveredObject,
	recoverVersion,
} from '../core/model/recover.ts';
import { quorum } from '../core/model/redundancy.ts';
import type { Segment } from '../core/model/segment.ts';
import type { SnapshotObject } from '../core/model/snapshot.ts';
import { type ReadDeps, readObject } from './download.ts';
import type { ScanIndex } from './restore-index.ts';
import { etagOf, type SegmentTrees, withAllRoots } from './restore-segment.ts';
import type { MetadataStore, ObjectRow } from './store.ts';

/** Objects under way at once: commits share transactions, and rebuilding waits for workers. */
const LANES = 16;
/** What a restore names in its intents is placed at once. Where it was killed in between, nobody may delete it but the next one. */
const NEVER_MS = Number.MAX_SAFE_INTEGER;

export type Fate = 'recovered' | 'unconfirmed' | 'not recovered';

/** One line of the full list. */
export interface Told {
	readonly fate: Fate;
	readonly object_id: string | null;
	readonly version_id: string;
	readonly name: string | null;
	readonly size: number | null;
	/** Why it is not there, or what is to be known of it. */
	readonly because?: string;
}

export interface Tally {
	recovered: number;
	bytes: number;
	/** Of them written after the snapshot. */
	since: number;
	/** Of them in the metadata alone. */
	inline: number;
	/** Of them with fewer shards in a segment than an acknowledged upload leaves. */
	doubtful: number;
	unconfirmed: number;
	notRecovered: number;
	/** Snapshots of the cluster's own: in none of the other figures. */
	snapshots: number;
}

export interface RunDeps extends ReadDeps {
	readonly index: ScanIndex;
	readonly openKey: OpenDataKey;
	/** When the snapshot was begun; null without one. */
	readonly snapshotBeganAtMs: number | null;
	/** Every cell is read, and its tag checked. */
	readonly verify: boolean;
	/** Null: nothing is written. */
	readonly target: MetadataStore | null;
	/** How long unconfirmed objects are in the trash at least. */
	readonly trashMs: number;
	readonly onTold: (told: Told) => void;
	readonly onProgress: (done: number) => void;
}

export async function restoreObjects(deps: RunDeps, signal: AbortSignal): Promise<Tally> {
	const run = new Run(deps, signal);
	await run.all();
	return run.tally;
}

class Run {
	readonly tally: Tally = {
		recovered: 0,
		bytes: 0,
		since: 0,
		inline: 0,
		doubtful: 0,
		unconfirmed: 0,
		notRecovered: 0,
		snapshots: 0,
	};
	readonly #deps: RunDeps;
	readonly #signal: AbortSignal;
	#done = 0;

	constructor(deps: RunDeps, signal: AbortSignal) {
		this.#deps = deps;
		this.#signal = signal;
	}

	async all(): Promise<void> {
		const { index } = this.#deps;
		await inLanes(index.versions(), (versionId) => this.#version(versionId));
		await inLanes(index.unseen(), (object) => this.#withoutShards(object));
	}

	async #version(versionId: VersionId): Promise<void> {
		const { index, openKey } = this.#deps;
		const found = index.found(versionId);
		const known = index.known(versionId);
		if (known !== null) index.markSeen(versionId);
		const recovery = recoverVersion(found, { openKey, known });
		if (recovery.object === null) {
			const { objectId, name, because } = recovery;
			// Of what nobody ever acknowledged, and of deletions, some shards may be left.
			this.#tell({ fate: 'not recovered', objectId, versionId, name, size: known?.object.sizeBytes ?? null, because });
		} else {
			try {
				await this.#restore(recovery.object, found, known);
			} catch (thrown) {
				const { kind, message } = asDistroError(thrown);
				// The store's refusal is no property of this object.
				if (!['unrecoverable', 'corrupt', 'exists'].includes(kind)) throw thrown;
				const { objectId, manifest } = recovery.object;
				const { name, sizeBytes: size } = manifest;
				this.#tell({ fate: 'not recovered', objectId, versionId, name, size, because: message });
			}
		}
		this.#progress();
	}

	async #restore(object: RecoveredObject, found: FoundVersion, known: KnownVersion | null): Promise<void> {
		const { index } = this.#deps;
		const { objectId, versionId, manifest } = object;
		let trees: SegmentTrees[] = [];
		for (const segment of object.segments) trees.push(await withAllRoots(this.#deps, segment, this.#signal));
		const etag = known?.object.etag ?? etagOf(versionId, trees, (root) => index.leaves(root));
		if (etag === null) throw new DistroError('corrupt', 'leaves of its data are missing');
		const kind: ObjectKind = manifest.kind ?? 'user';
		const row: ObjectRow = {
			objectId,
			versionId,
			// Of those without a row nobody knows the upload: any that is the same when this is run again.
			uploadId: known?.object.uploadId ?? (versionId as string as UploadId),
			kind,
			sizeBytes: manifest.sizeBytes,
			segments: trees.length,
			createdAtMs: manifest.createdAtMs,
			etag,
			keyGeneration: object.keyGeneration,
			wrappedKey: object.wrappedKey,
			manifest: object.sealedManifest,
			inline: null,
		};
		if (this.#deps.verify) trees = await this.#verified(row, object.dataKey, trees);
		const isNews = known === null && this.#isSince(object, found);
		const fate = known !== null || isNews ? 'recovered' : 'unconfirmed';
		await this.#commit(row, trees, { fate, trash: known?.object.trash ?? null });
		if (kind === 'snapshot') {
			this.tally.snapshots++;
			return;
		}
		const few = trees.find(({ segment }) => segment.placements.length < quorum(segment.n, segment.k));
		const because = this.#because(fate, few);
		const { name, sizeBytes: size } = manifest;
		this.#tell({ fate, objectId, versionId, name, size, because });
		if (fate === 'recovered' && isNews && this.#deps.snapshotBeganAtMs !== null) this.tally.since++;
		if (fate === 'recovered' && few !== undefined) this.tally.doubtful++;
	}

	#because(fate: Fate, few: SegmentTrees | undefined): string | undefined {
		if (fate === 'unconfirmed') return 'older than the snapshot and not in it: it was deleted, or never acknowledged';
		if (few === undefined) return undefined;
		const { n, placements } = few.segment;
		return `${placements.length} of the ${n} shards of segment ${few.segment.index} are there, fewer than an upload that was acknowledged leaves: shards were lost, or it was deleted while workers were away`;
	}

	/** Without a snapshot nothing is older than it: a sealed last end record and the manifest are the proof. */
	#isSince(object: RecoveredObject, found: FoundVersion): boolean {
		const { snapshotBeganAtMs: beganAtMs, index } = this.#deps;
		if (beganAtMs === null || object.manifest.kind === 'snapshot') return true;
		return isSince({ beganAtMs, underWay: (objectId) => index.isUnderWay(objectId) }, object, found.shards);
	}

	/** Reads all of it. Shards that prove bad are not placed. */
	async #verified(row: ObjectRow, dataKey: KeyObject, trees: readonly SegmentTrees[]): Promise<SegmentTrees[]> {
		const segments = trees.map(({ segment }) => segment);
		const sink = { write: () => true, drained: () => {} };
		const whole = { offset: 0, length: row.sizeBytes, sink, signal: this.#signal };
		await readObject(this.#deps, { object: row, dataKey, segments }, whole);
		const { findings } = this.#deps;
		return trees.map(({ segment, rebuilt }) => {
			const placements = segment.placements.filter(({ shardId }) => !findings.has(shardId));
			return { segment: { ...segment, placements }, rebuilt };
		});
	}

	async #commit(
		object: ObjectRow,
		trees: readonly SegmentTrees[],
		o: { fate: Fate; trash: SnapshotObject['trash'] },
	): Promise<void> {
		const { target, clock, trashMs } = this.#deps;
		if (!this.#deps.index.take(object.objectId)) {
			throw new DistroError('exists', 'another version says that it is the same object');
		}
		if (target === null) return;
		const segments = trees.map(({ segment }) => segment);
		const { objectId } = object;
		const nowMs = clock.nowMs();
		const wasThere = await writeObject(target, { object, segments, nowMs });
		// There it is served to nobody, and undelete accepts it.
		const trash = o.fate === 'unconfirmed' ? { deletedAtMs: nowMs, purgeAtMs: nowMs + trashMs } : o.trash;
		if (trash === null) {
			// The run before may have gone by a snapshot, and doubted it.
			if (wasThere) await target.undeleteObject(objectId, { nowMs, by: '' });
			return;
		}
		await target.deleteObject(objectId, { nowMs: trash.deletedAtMs, purgeAtMs: trash.purgeAtMs, by: '' });
	}

	/** Of the snapshot: inline objects are whole in it, of the others nothing is left. */
	async #withoutShards(known: SnapshotObject): Promise<void> {
		const { objectId, versionId, sizeBytes: size, trash } = known;
		const manifest = this.#manifestOf(known);
		const name = manifest?.name ?? null;
		const told = { objectId, versionId, name, size };
		if (known.inline === null) {
			if (known.kind === 'user') {
				const because = 'none of its shards is there: it was deleted since the snapshot, or its workers are lost';
				this.#tell({ fate: 'not recovered', ...told, because });
			}
		} else if (manifest === null) {
			this.#tell({
				fate: 'not recovered',
				...told,
				because: 'its data key does not open with the keys that are there',
			});
		} else {
			const { trash: _, ...row } = known;
			await this.#commit(row, [], { fate: 'recovered', trash });
			this.tally.inline++;
			this.#tell({ fate: 'recovered', ...told });
		}
		this.#progress();
	}

	#manifestOf(known: SnapshotObject) {
		const dataKey = this.#deps.openKey(known.versionId, known);
		try {
			return dataKey === null ? null : openManifest(dataKey, known.manifest);
		} catch {
			return null;
		}
	}

	#tell(told: {
		fate: Fate;
		objectId: ObjectId | null;
		versionId: VersionId;
		name: string | null;
		size: number | null;
		because?: string | undefined;
	}): void {
		const { fate, objectId, versionId, name, size, because } = told;
		if (fate === 'recovered') {
			this.tally.recovered++;
			this.tally.bytes += size ?? 0;
		} else if (fate === 'unconfirmed') this.tally.unconfirmed++;
		else this.tally.notRecovered++;
		const why = because === undefined ? {} : { because };
		this.#deps.onTold({ fate, object_id: objectId, version_id: versionId, name, size, ...why });
	}

	#progress(): void {
		this.#deps.onProgress(++this.#done);
	}
}

/** Answers whether a run before this one had written it. Throws `exists` when another version is there. */
async function writeObject(
	target: MetadataStore,
	o: { object: ObjectRow; segments: readonly Segment[]; nowMs: number },
): Promise<boolean> {
	const { object, segments, nowMs } = o;
	const { uploadId, objectId, versionId } = object;
	let wasThere = false;
	if (segments.length > 0) {
		const shards = segments.flatMap(({ placements }) => placements);
		await target.begin({ uploadId, objectId, shards, expiresAtMs: NEVER_MS }).catch((thrown) => {
			if (asDistroError(thrown).kind !== 'exists') throw thrown;
			wasThere = true;
		});
	}
	await target.commit({ object, segments, abandoned: [], idempotency: null, nowMs }).catch(async (thrown) => {
		if (asDistroError(thrown).kind !== 'exists') throw thrown;
		await target.abort(uploadId, nowMs);
		// That one went by another snapshot, or none, which knows another upload of it.
		const there = (await target.object(objectId)) ?? (await target.trashed(objectId))?.object;
		if (there?.versionId !== versionId) throw thrown;
		wasThere = true;
	});
	return wasThere;
}

/** Each lane takes the next one when it has ended one; the first failure ends all. */
async function inLanes<T>(items: Generator<T>, work: (item: T) => Promise<void>): Promise<void> {
	let failed = false;
	const lane = async () => {
		while (!failed) {
			const next = items.next();
			if (next.done === true) return;
			try {
				await work(next.value);
			} catch (error) {
				failed = true;
				throw error;
			}
		}
	};
	await Promise.all(Array.from({ length: LANES }, lane));
}
