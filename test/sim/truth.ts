/**
 * What is true, seen from above: the disks and the metadata, past every process. The checks of the simulation; each throws a
 * Violation that says what is not as it must be.
 *
 * The heart is one rule: what the metadata places is on its worker's disk, whole and durable, unless a fault destroyed that
 * very shard. From it follows that nothing acknowledged is ever lost, and it shows a bug at the step where it happens, long
 * before anybody reads.
 */

import { createSecretKey } from 'node:crypto';
import { inflateSync } from 'node:zlib';
import { codecFor } from '../../core/codec/erasure-codec.ts';
import {
	cellAt,
	cellLength,
	codedLength,
	rowCells,
	rows,
	shardBytes,
	shardCellLength,
	shardOffset,
} from '../../core/codec/layout.ts';
import { decodeTrailer, readTrailerFooter, trailerOffset } from '../../core/codec/trailer.ts';
import { type DeletionAction, follows, headAfter, NO_DELETIONS } from '../../core/crypto/deletion-log.ts';
import { LEAF_BYTES, leafHash, rootOf } from '../../core/crypto/digest.ts';
import { segmentKey, unwrapKey } from '../../core/crypto/keys.ts';
import { cellAd, createCellDecipher, openInline } from '../../core/crypto/seal.ts';
import { idBytes, type ObjectId, type ShardId, type WorkerId } from '../../core/ids.ts';
import { TAG_BYTES } from '../../core/limits.ts';
import { type KeysRecord, parseKeysFile } from '../../core/model/keys-record.ts';
import { decodeRecovery, type RecoveryRecord } from '../../core/model/recovery.ts';
import type { Placement, Segment } from '../../core/model/segment.ts';
import { SNAPSHOT_MAGIC, SnapshotDecoder } from '../../core/model/snapshot.ts';
import { Cluster } from '../../orchestrator/cluster.ts';
import type { Commit, Lease, ObjectRow, Reencoded } from '../../orchestrator/store.ts';
import type { Running, SimWorker, Site } from './cluster.ts';
import type { Dice } from './dice.ts';
import type { SimFile } from './disk.ts';
import type { StoreCall } from './metadata.ts';
import { Violation } from './world.ts';

interface Verdict {
	readonly version: number;
	readonly key: string;
	/** null: it is what was stored. */
	readonly wrong: string | null;
}

/** As the design has them, written a second time: the reports are not checked by their own code. */
const HEALTHS = ['healthy', 'degraded', 'at_risk', 'unrecoverable'] as const;

function severity({ placed, k, n }: { placed: number; k: number; n: number }): number {
	return placed === n ? 0 : placed < k ? 3 : placed <= k + 1 ? 2 : 1;
}

/** One that takes longer may be of an orchestrator that was paused in the middle. */
const SNAPSHOT_TAKES_MS = 5 * 60_000;

const verdicts = new WeakMap<SimFile, Verdict>();

export class Truth {
	/** Shards that a fault spoilt or removed. */
	readonly damaged = new Set<ShardId>();
	/** Shards that a fault left on a disk, and that no row ever named. */
	readonly planted = new Set<ShardId>();
	/**
	 * A process that slept past its intent's end may have put a shard that nobody knows of, and be killed before it could name
	 * it once more. So few of them may be found beside the planted ones.
	 */
	mayBeLeft = 0;
	/** Those that were to be deleted for good at some time. */
	readonly #purged = new Set<ShardId>();
	readonly #snapshots = new Set<ObjectId>();
	readonly #committedMs = new Map<ObjectId, number>();
	readonly #site: Site;
	readonly #workers = new Map<WorkerId, SimWorker>();

	constructor(site: Site) {
		this.#site = site;
	}

	worker(workerId: WorkerId): SimWorker | null {
		const known = this.#workers.get(workerId) ?? this.#site.workers.find((worker) => worker.workerId === workerId);
		if (known !== undefined) this.#workers.set(workerId, known);
		return known ?? null;
	}

	*segments(): Generator<{ row: ObjectRow; segment: Segment }> {
		for (const { row, segments } of this.#site.data.objects.values()) {
			for (const segment of segments) yield { row, segment };
		}
	}

	/** Whether the shard on the disk is, to the byte, what the metadata says; null: it is. */
	wrongWith(row: ObjectRow, segment: Segment, placement: Placement): string | null {
		const worker = this.worker(placement.workerId);
		if (worker === null || worker.isGone) return 'its worker is gone';
		const file = worker.disk.shard(placement.shardId);
		if (file === null) return 'it is not on the disk';
		const key = `${row.versionId} ${segment.encodingId} ${placement.shardIndex} ${placement.shardId}`;
		const known = verdicts.get(file);
		if (known !== undefined && known.version === file.version && known.key === key) return known.wrong;
		const wrong = file.unreadable ? 'a sector is bad' : wrongBytes(file.content(), { row, segment, placement });
		verdicts.set(file, { version: file.version, key, wrong });
		return wrong;
	}

	isGood(row: ObjectRow, segment: Segment, placement: Placement): boolean {
		return this.wrongWith(row, segment, placement) === null;
	}

	good(row: ObjectRow, segment: Segment): Placement[] {
		return segment.placements.filter((placement) => this.isGood(row, segment, placement));
	}

	#mayBeWrong({ shardId, workerId }: Placement): boolean {
		return this.damaged.has(shardId) || this.worker(workerId)?.isGone !== false;
	}

	/** Whatever holds at any moment, mid-transfer or not. */
	checkPlacements(): void {
		const { data } = this.#site;
		const seen = new Set<ShardId>();
		for (const { row, segment } of this.segments()) {
			const where = `object ${row.objectId} segment ${segment.index} (${segment.k} of ${segment.n})`;
			const holders = new Set(segment.placements.map(({ workerId }) => workerId));
			if (holders.size !== segment.placements.length) throw new Violation(`${where} has two shards on one worker`);
			let good = 0;
			for (const placement of segment.placements) {
				const { shardId, shardIndex } = placement;
				const shard = `${where} shard ${shardIndex} (${shardId})`;
				if (seen.has(shardId)) throw new Violation(`${shard} is placed twice`);
				seen.add(shardId);
				if (data.deletions.has(shardId)) throw new Violation(`${shard} is placed and queued for deletion`);
				const wrong = this.wrongWith(row, segment, placement);
				const worker = this.worker(placement.workerId);
				if (wrong === null) good++;
				if (this.#mayBeWrong(placement)) continue;
				if (wrong !== null) throw new Violation(`${shard} on ${worker?.name}: ${wrong}, and no fault did that`);
				if (worker?.disk.isDurable(shardId) !== true) {
					throw new Violation(`${shard} on ${worker?.name} is placed and would not survive a power cut`);
				}
			}
			if (good < segment.k) throw new Violation(`${where} is lost: only ${good} shards are left of it`);
		}
		for (const { shardId, workerId, kind } of data.findings.values()) {
			const placed = data.placed.get(shardId);
			if (placed === undefined) throw new Violation(`a finding for shard ${shardId}, which is not placed`);
			if (!this.#mayBeWrong({ ...placed, workerId, shardId })) {
				throw new Violation(`shard ${shardId} was found ${kind}, and no fault did that`);
			}
		}
	}

	/** The keys record that a worker's volume would have if the power went now. */
	#keysOn(worker: SimWorker): KeysRecord | null {
		const file = worker.disk.durable('keys.json');
		return file === null ? null : parseKeysFile(file.toString());
	}

	/** Workers whose volumes lack the newest keys. */
	volumesBehind(): string[] {
		const revision = this.#site.data.cluster?.revision;
		const there = this.#site.workers.filter(({ isGone }) => !isGone);
		return there.filter((worker) => this.#keysOn(worker)?.revision !== revision).map(({ name }) => name);
	}

	/** What is needed of keys is there, and what is said of them is true. */
	checkKeys(): void {
		const { data } = this.#site;
		for (const [workerId, noted] of data.keysOnVolumes) {
			const worker = this.worker(workerId);
			if (worker === null || worker.isGone) continue;
			const { revision = 0 } = this.#keysOn(worker) ?? {};
			if (revision < noted)
				throw new Violation(`${worker.name} was seen with revision ${noted} of the keys, and has ${revision}`);
		}
		const generations = new Set(data.cluster?.keys.map(({ generation }) => generation));
		for (const { row, segment } of this.segments()) {
			const where = `object ${row.objectId}`;
			if (!generations.has(row.keyGeneration))
				throw new Violation(`${where} needs generation ${row.keyGeneration}, which was dropped`);
			for (const placement of segment.placements) {
				const { shardId, workerId } = placement;
				if (!this.isGood(row, segment, placement)) continue;
				const content = this.worker(workerId)?.disk.shard(shardId)?.content() as Buffer;
				const { keyGeneration } = recoveryIn(content);
				const noted = data.placed.get(shardId)?.keyGeneration;
				if (noted !== keyGeneration)
					throw new Violation(`the trailer of ${shardId} is of generation ${keyGeneration}, and noted is ${noted}`);
				if (!generations.has(keyGeneration))
					throw new Violation(`the trailer of ${shardId} needs generation ${keyGeneration}, which was dropped`);
			}
		}
	}

	/** Bare disks and the master keys as people have them now: each shard's own data key, by the record on its own volume. */
	checkBareDisks(dice: Dice): void {
		const { master, workers } = this.#site;
		for (const { row, segment } of this.segments()) {
			for (const placement of segment.placements) {
				const worker = this.worker(placement.workerId);
				const content = worker?.disk.shard(placement.shardId)?.content();
				if (worker === null || content === undefined || worker.isGone) continue;
				const volume = dice.pick(workers.filter(({ isGone }) => !isGone)) as SimWorker;
				const record = this.#keysOn(volume);
				const { keyGeneration, wrappedKey } = recoveryIn(content);
				const wrapped = record?.keys.find(({ generation }) => generation === keyGeneration);
				const wrappingKey = wrapped === undefined ? null : master.get(wrapped.masterKeyId);
				if (record === null || wrapped === undefined || wrappingKey === null) {
					throw new Violation(
						`${placement.shardId} can't be opened with the disk of ${volume.name} and the master keys`,
					);
				}
				const context = idBytes(record.clusterId);
				const clusterKey = unwrapKey({ wrappingKey, purpose: 'cluster key', context, wrapped: wrapped.wrapped });
				// Throws when it is not the key.
				unwrapKey({
					wrappingKey: createSecretKey(clusterKey),
					purpose: 'data key',
					context: idBytes(row.versionId),
					wrapped: wrappedKey,
				});
			}
		}
	}

	/** A snapshot that counts as one is whole, and has what was committed long before it was. */
	async checkSnapshots(running: Running, dice: Dice): Promise<void> {
		const { data } = this.#site;
		for (const { row } of data.objects.values()) {
			if (row.kind !== 'snapshot' || this.#snapshots.has(row.objectId)) continue;
			this.#snapshots.add(row.objectId);
			const bytes = await this.read(row, running, dice);
			const decoder = new SnapshotDecoder();
			const has = new Map<ObjectId, number>();
			const records = decoder.push(inflateSync(bytes.subarray(SNAPSHOT_MAGIC.length)));
			for (const record of records) {
				if (record.is === 'object') has.set(record.object.objectId, 0);
				if (record.is === 'segment') {
					const last = [...has.keys()].at(-1) as ObjectId;
					has.set(last, (has.get(last) ?? 0) + 1);
				}
			}
			decoder.finish();
			const committedMs = this.#committedMs.get(row.objectId) ?? 0;
			for (const { row: other, segments } of data.objects.values()) {
				const otherMs = this.#committedMs.get(other.objectId) ?? committedMs;
				if (otherMs < committedMs - SNAPSHOT_TAKES_MS && has.get(other.objectId) !== segments.length) {
					throw new Violation(
						`the snapshot ${row.objectId} lacks object ${other.objectId}, which was there long before`,
					);
				}
			}
		}
	}

	/** After a call of an orchestrator had its effect. */
	checkCall({ method, args }: StoreCall): void {
		const { leases, deletions } = this.#site.data;
		if (method === 'purgeTrash' || method === 'purgeObject') {
			for (const { shardId, forGood } of deletions.values()) if (forGood) this.#purged.add(shardId);
		}
		if (method === 'commit') {
			const { objectId } = (args[0] as Commit).object;
			if (!this.#committedMs.has(objectId)) this.#committedMs.set(objectId, this.#site.world.nowMs);
			for (const { k, n, placements } of (args[0] as Commit).segments) {
				const quorum = Math.min(n, k + Math.max(1, Math.ceil((n - k) / 2)));
				if (placements.length < quorum)
					throw new Violation(`a commit with ${placements.length} shards of ${k} of ${n}`);
			}
		}
		if (method === 'queueUnknown') this.#checkUnknown(args[0] as WorkerId, args[1] as readonly ShardId[]);
		if (method === 'reencoded') {
			const { k, n, placements } = (args[0] as Reencoded).segment;
			if (placements.length < n) throw new Violation(`${placements.length} shards of ${k} of ${n} took over a segment`);
		}
		for (const arg of args) {
			if (typeof arg !== 'object' || arg === null || !('fencing' in arg) || method === 'releaseLease') continue;
			const { name, fencing } = arg as Lease;
			const held = leases.get(name);
			if (held?.fencing !== fencing || held.endsAtMs <= this.#site.world.nowMs) {
				throw new Violation(`${method} was done with a lease of ${name} that had ended`);
			}
		}
	}

	/** What reconcile takes belongs to nobody, and somebody left it there: otherwise rows were lost. */
	#checkUnknown(workerId: WorkerId, shardIds: readonly ShardId[]): void {
		const { deletions, intents, forgotten } = this.#site.data;
		for (const shardId of shardIds.filter((id) => deletions.get(id)?.workerId === workerId)) {
			const where = `shard ${shardId} on ${this.worker(workerId)?.name}`;
			if ([...intents.values()].some(({ shards }) => shards.has(shardId))) {
				throw new Violation(`reconcile takes ${where}, which an open intent names`);
			}
			if (this.planted.has(shardId) || forgotten.has(workerId)) continue;
			if (this.mayBeLeft-- <= 0) throw new Violation(`reconcile takes ${where}, which no fault left there`);
		}
	}

	/** Shards on disks that no row names, but for those of workers of which nothing at all is known: there it stops. */
	unknown(): string[] {
		const { data, workers } = this.#site;
		const { placed, intents, deletions, forgotten } = data;
		const named = new Map<ShardId, WorkerId>();
		for (const [shardId, { workerId }] of deletions) named.set(shardId, workerId);
		for (const [shardId, { workerId }] of placed) named.set(shardId, workerId);
		for (const { shards } of intents.values()) for (const [shardId, workerId] of shards) named.set(shardId, workerId);
		const known = new Set(named.values());
		return workers
			.filter(({ isGone, workerId }) => !isGone && (known.has(workerId) || forgotten.has(workerId)))
			.flatMap(({ disk, workerId }) => disk.shardIds().filter((shardId) => named.get(shardId) !== workerId));
	}

	/** What the cluster API says, against an inventory of the disks and a walk over all objects. */
	async checkReports(running: Running, dice: Dice): Promise<void> {
		const { registry, jobs, scrub } = running;
		const { store, clusterId, data } = this.#site;
		const policy = { tolerate: { workers: 2, zones: 1 }, dataLossPerYear: 1e-9 };
		const cluster = new Cluster({
			clusterId,
			store,
			workers: registry,
			jobs,
			scrub,
			policy,
			pools: [],
			snapshots: async () => [],
		});
		const inventory = new Set(this.#site.workers.flatMap(({ disk, isGone }) => (isGone ? [] : disk.shardIds())));
		const counts = { objects: 0, healthy: 0, degraded: 0, at_risk: 0, unrecoverable: 0, inline: 0, bytes_at_risk: 0 };
		const bySpare = new Map<number, number>();
		const goodOf = ({ placements }: Segment) =>
			placements.filter(({ shardId, workerId }) => {
				// What nobody has found yet counts as there: reports can't know it.
				const isThere = inventory.has(shardId) || this.damaged.has(shardId) || this.worker(workerId)?.isGone;
				return isThere && !data.findings.has(shardId) && registry.isReachable(workerId);
			});
		for (const { row, segments, trash } of data.objects.values()) {
			if (trash !== null || row.kind !== 'user') continue;
			const found = segments.map((segment) => ({ ...segment, placed: goodOf(segment).length }));
			const health = HEALTHS[Math.max(0, ...found.map(severity))] as (typeof HEALTHS)[number];
			counts.objects++;
			counts[health]++;
			if (health === 'at_risk' || health === 'unrecoverable') counts.bytes_at_risk += row.sizeBytes;
			if (segments.length === 0) {
				counts.inline++;
				continue;
			}
			const spare = Math.max(-1, Math.min(...found.map(({ placed, k }) => placed - k)));
			bySpare.set(spare, (bySpare.get(spare) ?? 0) + 1);
		}
		const tolerance = bySpare.size === 0 ? null : Math.max(0, Math.min(...bySpare.keys()));
		const { oldest_verification: _, ...reported } = await cluster.redundancy();
		const expected = {
			...counts,
			by_spare: Object.fromEntries([...bySpare].sort(([a], [b]) => a - b)),
			failure_tolerance: tolerance,
		};
		if (canonical(reported) !== canonical(expected)) {
			throw new Violation(`GET /cluster/redundancy says ${canonical(reported)}, and true is ${canonical(expected)}`);
		}
		const names = registry.rows().map(({ row }) => row.name);
		const stop = dice.some(names, 1 + dice.below(4));
		const reserve = dice.below(3);
		const stopped = new Set(stop.map((name) => registry.called(name)));
		const inTheWay = new Set<ObjectId>();
		for (const { row, segment } of this.segments()) {
			const good = goodOf(segment);
			const isMarked = (shardId: ShardId) => data.findings.has(shardId);
			const holds = segment.placements.some(({ workerId, shardId }) => stopped.has(workerId) && !isMarked(shardId));
			const left = good.filter(({ workerId }) => !stopped.has(workerId)).length;
			if (holds && left < segment.k + reserve) inTheWay.add(row.objectId);
		}
		const answer = await cluster.canStop(stop, reserve);
		const isSame =
			answer.can_stop === (inTheWay.size === 0) &&
			answer.objects.length === Math.min(100, inTheWay.size) &&
			answer.objects.every((objectId) => inTheWay.has(objectId as ObjectId));
		if (!isSame) {
			throw new Violation(
				`canStop(${stop.join()}, ${reserve}) says ${answer.can_stop} and ${answer.objects.length} objects, and true is ${inTheWay.size}`,
			);
		}
	}

	/** The object's bytes from any k shards of each segment, straight from the disks. */
	async read(row: ObjectRow, running: Running, dice: Dice): Promise<Buffer> {
		const dataKey = await running.keyring.dataKey(row.versionId, row);
		if (row.inline !== null) return openInline(dataKey, row.versionId, row.inline);
		const { segments = [] } = this.#site.data.objects.get(row.objectId) ?? {};
		const parts: Buffer[] = [];
		for (const segment of segments) {
			const { k, n, index, sealId } = segment;
			const chosen = dice.some(this.good(row, segment), k);
			const key = segmentKey({ dataKey, segment: index, sealId });
			const ad = cellAd({ versionId: row.versionId, segment: index, sealId });
			const fileOf = ({ workerId, shardId }: Placement) => this.worker(workerId)?.disk.shard(shardId)?.content();
			for (let at = 0; at < rows(segment); at++) {
				const length = codedLength(segment, at);
				const data = Buffer.alloc(k * length);
				const parity = Buffer.alloc((n - k) * length);
				const present: number[] = [];
				for (let shard = 0; shard < k; shard++) if (shardCellLength(segment, shard, at) === 0) present.push(shard);
				for (const placement of chosen) {
					const { shardIndex } = placement;
					const bytes = shardCellLength(segment, shardIndex, at);
					if (bytes === 0) continue;
					const from = shardOffset(segment, at);
					const cell = fileOf(placement)?.subarray(from, from + bytes);
					if (k === 1) cell?.copy(data);
					else if (shardIndex < k) cell?.copy(data, shardIndex * length);
					else cell?.copy(parity, (shardIndex - k) * length);
					present.push(shardIndex);
				}
				if (k > 1) {
					const wanted = Array.from({ length: rowCells(segment, at) }, (_, shard) => shard);
					await codecFor(segment.codec).reconstruct({ k, n, length, data, parity, present, wanted });
				}
				for (let shard = 0; shard < rowCells(segment, at); shard++) {
					const cell = cellAt(segment, k === 1 ? 0 : shard, at);
					const sealed = data.subarray(shard * length, shard * length + cellLength(segment, cell));
					const decipher = createCellDecipher(key, ad, cell);
					parts.push(decipher.update(sealed.subarray(0, sealed.length - TAG_BYTES)));
					decipher.setAuthTag(sealed.subarray(sealed.length - TAG_BYTES));
					decipher.final();
				}
			}
		}
		return Buffer.concat(parts);
	}

	/** The log is a chain, and its last word about each object is what became of it. */
	#checkLog(): void {
		const { data } = this.#site;
		let head = NO_DELETIONS;
		const last = new Map<ObjectId, DeletionAction>();
		for (const entry of data.deletionLog) {
			if (!follows(head, entry)) throw new Violation(`entry ${entry.number} of the log of deletions breaks the chain`);
			head = headAfter(entry);
			const before = last.get(entry.objectId);
			const isPossible = entry.action === 'trashed' ? before !== 'trashed' : before === 'trashed';
			if (!isPossible)
				throw new Violation(`object ${entry.objectId} was ${entry.action} after it was ${before ?? 'made'}`);
			last.set(entry.objectId, entry.action);
		}
		for (const [objectId, action] of last) {
			const stored = data.objects.get(objectId);
			const is = stored === undefined ? 'purged' : stored.trash === null ? 'undeleted' : 'trashed';
			if (is !== action) throw new Violation(`object ${objectId} is ${is}, and the log says ${action}`);
		}
	}

	/** When all is over: every object at its full n, and on the disks nothing else. */
	checkSettled(): void {
		const { workers } = this.#site;
		const placed = new Map<ShardId, string>();
		for (const { row, segment } of this.segments()) {
			const good = this.good(row, segment);
			if (good.length !== segment.n) {
				throw new Violation(`object ${row.objectId} ended with ${good.length} of ${segment.n} shards`);
			}
			for (const { shardId, workerId } of segment.placements) placed.set(shardId, workerId);
		}
		const found = new Set<ShardId>();
		for (const { disk, workerId, isGone, name } of workers) {
			if (isGone) continue;
			for (const shardId of disk.shardIds()) {
				const isKnown = this.#site.data.forgotten.has(workerId) || [...placed.values()].includes(workerId);
				if (this.planted.has(shardId) && !isKnown) continue;
				if (placed.get(shardId) !== workerId) throw new Violation(`shard ${shardId} on ${name} belongs to nobody`);
				found.add(shardId);
			}
			for (const shardId of [...disk.shardIds(), ...disk.trashIds()]) {
				// With a forgotten worker goes its delete queue: what it comes back with goes to its trash.
				if (this.#site.data.forgotten.has(workerId)) continue;
				if (this.#purged.has(shardId)) throw new Violation(`shard ${shardId} on ${name} was purged and is there`);
			}
		}
		for (const [shardId, workerId] of placed)
			if (!found.has(shardId)) throw new Violation(`shard ${shardId} is not on ${workerId}`);
		this.#checkLog();
	}
}

function recoveryIn(content: Buffer): RecoveryRecord {
	const { length } = readTrailerFooter(content);
	return decodeRecovery(decodeTrailer(content.subarray(content.length - length)).recovery);
}

function wrongBytes(content: Buffer, what: { row: ObjectRow; segment: Segment; placement: Placement }): string | null {
	const { row, segment, placement } = what;
	const { shardIndex, shardId } = placement;
	try {
		const { length } = readTrailerFooter(content);
		const trailer = decodeTrailer(content.subarray(content.length - length));
		const d = trailer.description;
		const is = { ...d, root: '' };
		const { codec, k, n, cellBytes, cells, lastCellBytes, sealId, encodingId } = segment;
		const shape = { codec, k, n, cellBytes, cells, lastCellBytes, sealId, encodingId };
		const must = { ...is, ...shape, versionId: row.versionId, segment: segment.index, shardIndex, shardId };
		if (canonical(is) !== canonical(must)) return 'it is another shard';
		const root = segment.roots.subarray(shardIndex * LEAF_BYTES, (shardIndex + 1) * LEAF_BYTES);
		if (!trailer.root.equals(root)) return 'its root is another one';
		const bytes = shardBytes(segment, shardIndex);
		if (content.length !== trailerOffset(bytes) + length) return 'its length is another one';
		const leaves: Buffer[] = [];
		for (let at = 0; at < bytes; at += cellBytes)
			leaves.push(leafHash(content.subarray(at, Math.min(bytes, at + cellBytes))));
		const found = Buffer.concat(leaves);
		if (!found.equals(trailer.leaves) || !rootOf(found).equals(root)) return 'its cells are not what was stored';
		return null;
	} catch (error) {
		return (error as Error).message;
	}
}

function canonical(value: object): string {
	return JSON.stringify(Object.fromEntries(Object.entries(value).toSorted(([a], [b]) => (a < b ? -1 : 1))));
}
