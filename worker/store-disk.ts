/**
 * ShardStore on a folder: one file per shard, whole and durable or not there.
 *
 *     volume.json            the sentinel: without it the volume is offline (a vanished mount), never "not found"
 *     tmp/<id>               on its way; emptied at start
 *     shards/<2 hex>/<id>    cells | zeros to 4 KiB | trailer
 *     trash/<day>/<id>       deleted, and not for good; kept for a while, or until its room is needed
 *     scrub.json             how far scrubbing has come
 *     keys.json              the cluster's wrapped keys (docs/format.md)
 *
 * A shard is written to tmp, synced, linked to its place, and its folder synced, in that order. Concurrent syncs of one
 * folder are shared. It trusts no length of a file that has no sound trailer.
 */

import fs, { constants } from 'node:fs';
import { join } from 'node:path';
import { decodeTrailer, readTrailerFooter, TRAILER_FOOTER_BYTES, trailerOffset } from '../core/codec/trailer.ts';
import { DistroError } from '../core/errors.ts';
import { isId, type ShardId, type WorkerId } from '../core/ids.ts';
import { TRAILER_MAX_BYTES } from '../core/limits.ts';
import type { Clock } from '../core/ports.ts';
import { readVersionedJson, syncFolder, writeFileDurably } from '../platform/files.ts';
import { IDENTITY_FILE } from './identity.ts';
import { RecentlyDeleted } from './recently-deleted.ts';
import type { ListedShard, RecordName, ShardReader, ShardStore, ShardWriter, StoreStats } from './store.ts';

/**
 * Shards from this size on are written past the page cache: filling it was two fifths of a worker's CPU time in large
 * uploads. Smaller ones cost calls, not bytes.
 */
const DIRECT_MIN_BYTES = 1024 * 1024;
/** O_DIRECT wants memory, offsets and lengths in multiples of the device's block, which is at most this. */
const DIRECT_ALIGN_BYTES = 4096;
const DIRECT_WRITE = constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY | (constants.O_DIRECT ?? 0);
const DIRECT_READ = constants.O_RDONLY | (constants.O_DIRECT ?? 0);

const SENTINEL = 'volume.json';
const RECORD_FILE: Record<RecordName, string> = { scrub: 'scrub.json', keys: 'keys.json' };
const VERSION = 1;
const STATFS_MS = 1_000;
/** With less than this free each put looks for itself: a shard refused at once goes elsewhere, one that fails half-way is left out. */
const STATFS_ALWAYS_BYTES = 1024 * 1024 * 1024;
const DAY_MS = 24 * 60 * 60_000;
const TRASH_KEEP_MS = 7 * DAY_MS;
const PURGE_EVERY_MS = 60 * 60_000;
/** A volume that failed to keep a folder is offline for so long at least, and then tried again this often. */
const RECOVER_EVERY_MS = 5_000;
const PROBE = '.probe';
const RECLAIM_MARGIN_BYTES = 64 * 1024 * 1024;

/** The calls of node:fs that an open store makes: tests put faults, and the simulation a whole disk, in their place. */
export type FileCalls = Pick<
	typeof fs,
	| 'open'
	| 'write'
	| 'read'
	| 'fsync'
	| 'link'
	| 'rename'
	| 'unlink'
	| 'mkdir'
	| 'rmdir'
	| 'close'
	| 'statfs'
	| 'fstat'
	| 'stat'
	| 'readdir'
	| 'readFile'
	| 'writeFile'
	| 'access'
>;

export interface DiskStoreOptions {
	readonly dataDir: string;
	readonly workerId: WorkerId;
	readonly clock: Clock;
	/** Bytes that are kept free on the volume. */
	readonly reserveBytes: number;
	/** The most bytes that shards may use; absent: what the volume has. */
	readonly capacityBytes?: number;
	readonly trashKeepMs?: number;
	/** Shards that may get this large are written past the page cache. */
	readonly directFromBytes?: number;
	readonly files?: FileCalls;
}

/** Opens the volume, or formats an empty folder. Throws `unavailable` (its mount is gone), `conflict` (another worker's), `unsupported` (of a newer release). */
export async function openDiskStore(options: DiskStoreOptions): Promise<DiskShardStore> {
	const { dataDir, workerId } = options;
	const sentinel = join(dataDir, SENTINEL);
	if (!fs.existsSync(sentinel)) {
		// Empty folders are a formatting that was cut off.
		if (hasFiles(join(dataDir, 'shards'))) {
			throw new DistroError(
				'unavailable',
				`${dataDir} has shards and no ${SENTINEL}: mount the right volume, or restore the file`,
			);
		}
		for (const folder of ['tmp', 'trash', 'shards']) fs.mkdirSync(join(dataDir, folder), { recursive: true });
		for (let i = 0; i < 256; i++) fs.mkdirSync(join(dataDir, 'shards', hexByte(i)), { recursive: true });
		syncFolder(join(dataDir, 'shards'));
		writeFileDurably(sentinel, `${JSON.stringify({ version: VERSION, workerId })}\n`, { mode: 0o644 });
	}
	const volume = readVersionedJson(sentinel, { newest: VERSION });
	if (volume.workerId !== workerId) {
		throw new DistroError(
			'conflict',
			`${dataDir} belongs to worker ${volume.workerId}, and ${IDENTITY_FILE} says ${workerId}`,
		);
	}
	const store = new DiskShardStore(options);
	await store.load();
	return store;
}

export class DiskShardStore implements ShardStore {
	readonly #dataDir: string;
	readonly #clock: Clock;
	readonly #reserveBytes: number;
	readonly #capacityBytes: number;
	readonly #trashKeepMs: number;
	readonly #directFromBytes: number;
	readonly #files: FileCalls;
	readonly #folders = new Map<string, FolderSync>();
	/** Folders whose sync failed: the volume is offline until it keeps them again. */
	readonly #failed = new Set<string>();
	#recovering: Promise<void> | null = null;
	#recoverAtMs = Number.NEGATIVE_INFINITY;
	#shards = 0;
	#usedBytes = 0;
	/** Room that open writers were promised. */
	#promisedBytes = 0;
	#space: { atMs: number; totalBytes: number; freeBytes: number } | null = null;
	/** Bytes of the trash by day: they count as free, since they go when their room is needed. */
	readonly #trashBytes = new Map<string, number>();
	#reclaiming: Promise<void> | null = null;
	readonly #writing = new Map<ShardId, DiskWriter>();
	readonly #deleted: RecentlyDeleted;
	#cancelPurge: () => void = () => {};

	constructor(options: DiskStoreOptions) {
		this.#dataDir = options.dataDir;
		this.#clock = options.clock;
		this.#reserveBytes = options.reserveBytes;
		this.#capacityBytes = options.capacityBytes ?? Number.POSITIVE_INFINITY;
		this.#trashKeepMs = options.trashKeepMs ?? TRASH_KEEP_MS;
		this.#directFromBytes = options.directFromBytes ?? DIRECT_MIN_BYTES;
		this.#files = options.files ?? fs;
		this.#deleted = new RecentlyDeleted(options.clock);
	}

	/** Counts what is there, and removes leftovers and old trash. */
	async load(): Promise<void> {
		// Whatever was on its way when the process ended was never acknowledged.
		for (const name of await this.#names('tmp')) await this.#unlink(this.#path('tmp', name));
		for (let i = 0; i < 256; i++) {
			for (const name of await this.#shardNames(hexByte(i), { restore: true })) {
				this.#shards++;
				this.#usedBytes += await this.#sizeOf(this.#path('shards', hexByte(i), name));
			}
		}
		await this.purgeTrash(this.#clock.nowMs());
		for (const day of await this.#trashDays()) {
			let bytes = 0;
			for (const name of await this.#names('trash', day)) bytes += await this.#sizeOf(this.#path('trash', day, name));
			this.#trashBytes.set(day, bytes);
		}
		this.#purgeLater();
	}

	/** Oldest first; what is no day is somebody's and stays. */
	async #trashDays(): Promise<string[]> {
		const names = await this.#names('trash');
		return names.filter((name) => !Number.isNaN(Date.parse(name))).sort();
	}

	#purgeLater(): void {
		this.#cancelPurge = this.#clock.schedule(PURGE_EVERY_MS, () => {
			// A failure leaves the trash for the next time.
			this.purgeTrash(this.#clock.nowMs())
				.catch(() => {})
				.finally(() => this.#purgeLater());
		});
	}

	/** Removes the trash of days that ended more than the keeping time ago. */
	async purgeTrash(nowMs: number): Promise<void> {
		for (const day of await this.#trashDays()) {
			if (Date.parse(day) + DAY_MS + this.#trashKeepMs > nowMs) continue;
			for (const name of await this.#names('trash', day)) await this.#unlink(this.#path('trash', day, name));
			await this.#asked<void>((done) => this.#files.rmdir(this.#path('trash', day), done));
			this.#trashBytes.delete(day);
		}
	}

	/** Removes trash before its time, oldest first, until about `bytes` more are free. Who comes meanwhile waits for the same. */
	#reclaim(bytes: number): Promise<void> {
		this.#reclaiming ??= this.#reclaimNow(bytes).finally(() => {
			this.#reclaiming = null;
			this.#space = null;
		});
		return this.#reclaiming;
	}

	async #reclaimNow(bytes: number): Promise<void> {
		let freedBytes = 0;
		for (const day of await this.#trashDays()) {
			for (const name of await this.#names('trash', day)) {
				if (freedBytes >= bytes) return;
				const file = this.#path('trash', day, name);
				const size = await this.#sizeOf(file);
				await this.#unlink(file);
				freedBytes += size;
				this.#trashBytes.set(day, Math.max(0, (this.#trashBytes.get(day) ?? 0) - size));
			}
		}
	}

	async create(options: { shardId: ShardId; maxBytes: number; deadlineMs: number }): Promise<ShardWriter> {
		const { shardId, maxBytes } = options;
		await this.#online();
		const neededBytes = trailerOffset(maxBytes) + TRAILER_MAX_BYTES;
		const { freeBytes } = await this.#measure();
		if (freeBytes - this.#promisedBytes < neededBytes) {
			throw new DistroError('exhausted', 'the volume has no room for this shard');
		}
		const shortBytes = neededBytes + this.#promisedBytes + this.#reserveBytes - (this.#space?.freeBytes ?? 0);
		// A margin, so that not every put of a full volume has to look for trash.
		if (shortBytes > 0) await this.#reclaim(shortBytes + RECLAIM_MARGIN_BYTES);
		this.#deleted.refuse(shardId);
		if (this.#writing.has(shardId)) throw new DistroError('exists', `shard ${shardId} is being written`);
		this.#promisedBytes += neededBytes;
		const writer = new DiskWriter({
			files: this.#files,
			temporary: this.#path('tmp', shardId),
			direct: maxBytes >= this.#directFromBytes,
			final: this.#file(shardId),
			folder: this.#folder(shardId),
			remakeFolder: () => this.#remakeFolder(shardId.slice(0, 2)),
			expiresAtMs: this.#clock.monotonicMs() + options.deadlineMs,
			clock: this.#clock,
			ended: (bytes) => {
				this.#writing.delete(shardId);
				this.#promisedBytes -= neededBytes;
				if (bytes === null) return;
				this.#shards++;
				this.#usedBytes += bytes;
				if (this.#space !== null) this.#space.freeBytes -= bytes;
			},
		});
		this.#writing.set(shardId, writer);
		try {
			await writer.open();
		} catch (error) {
			await writer.abort();
			throw error;
		}
		return writer;
	}

	async open(shardId: ShardId, options: { direct?: boolean } = {}): Promise<ShardReader> {
		if (options.direct === true) {
			const fd = await this.#openFile(shardId, DIRECT_READ).catch((error) => {
				// The file system can't.
				if ((error.cause as NodeJS.ErrnoException | undefined)?.code !== 'EINVAL') throw error;
				return null;
			});
			if (fd !== null) return this.#reader(shardId, { fd, direct: true });
		}
		return this.#reader(shardId, { fd: await this.#openFile(shardId, 'r'), direct: false });
	}

	#reader(shardId: ShardId, opened: { fd: number; direct: boolean }): ShardReader {
		const files = this.#files;
		let { fd, direct } = opened;
		return {
			read: (offset, into, done) => {
				let at = 0;
				const leaveDirect = () => {
					const again = (plain: number) => {
						files.close(fd, () => {});
						fd = plain;
						direct = false;
						more();
					};
					this.#openFile(shardId, 'r').then(again, done);
				};
				const more = () =>
					files.read(fd, into, at, into.length - at, offset + at, (error, count) => {
						// A file that was cut short ends at no multiple of anything, and some devices take no memory like this.
						if (direct && (error as NodeJS.ErrnoException | null)?.code === 'EINVAL') return leaveDirect();
						if (error !== null) return done(unreadable(error, shardId));
						at += count;
						if (at === into.length) return done(null);
						if (count === 0) return done(new DistroError('corrupt', `shard ${shardId} is shorter than it must be`));
						more();
					});
				more();
			},
			close: () => files.close(fd, () => {}),
		};
	}

	#openFile(shardId: ShardId, flags: 'r' | number): Promise<number> {
		return new Promise((resolve, reject) => {
			this.#files.open(this.#file(shardId), flags, (error, fd) => {
				if (error === null) resolve(fd);
				else if (error.code !== 'ENOENT') reject(unreadable(error, shardId));
				else {
					const missing = () => reject(new DistroError('not_found', `there is no shard ${shardId}`));
					this.#online().then(missing, reject);
				}
			});
		});
	}

	async trailer(shardId: ShardId): Promise<Buffer> {
		const fd = await this.#openFile(shardId, 'r');
		try {
			const size = await new Promise<number>((resolve, reject) => {
				this.#files.fstat(fd, (error, stats) => (error === null ? resolve(stats.size) : reject(foreign(error))));
			});
			// One read is enough for all but the longest trailers.
			const last = await this.#readEnd(fd, { shardId, size, bytes: TRAILER_FOOTER_BYTES });
			const { length } = readTrailerFooter(last);
			const trailer = await this.#readEnd(fd, { shardId, size, bytes: length });
			decodeTrailer(trailer);
			return trailer;
		} finally {
			this.#files.close(fd, () => {});
		}
	}

	#readEnd(fd: number, end: { shardId: ShardId; size: number; bytes: number }): Promise<Buffer> {
		const into = Buffer.alloc(end.bytes);
		if (end.bytes > end.size) return Promise.reject(new DistroError('corrupt', 'the file is too short for a trailer'));
		return new Promise((resolve, reject) => {
			this.#files.read(fd, into, 0, end.bytes, end.size - end.bytes, (error, count) => {
				if (error !== null) reject(unreadable(error, end.shardId));
				else if (count < end.bytes) reject(new DistroError('corrupt', 'the file is too short for a trailer'));
				else resolve(into);
			});
		});
	}

	async delete(shardIds: readonly ShardId[], options: { forGood?: boolean } = {}): Promise<void> {
		await this.#online();
		const day = options.forGood === true ? null : new Date(this.#clock.nowMs()).toISOString().slice(0, 10);
		const folders = new Set<FolderSync>();
		if (day !== null) {
			const trash = this.#path('trash', day);
			folders.add(this.#folderAt(trash));
			if (await this.#makeFolder(trash)) folders.add(this.#folderAt(this.#path('trash')));
		}
		const emptied = new Map<FolderSync, ShardId>();
		for (const shardId of shardIds) {
			// Whatever is still on its way for a deleted id must never arrive.
			this.#deleted.add(shardId);
			await this.#writing.get(shardId)?.abort();
			const file = this.#file(shardId);
			// Of before the move: one whose sync fails meanwhile must not vouch for it afterwards.
			const folder = this.#folder(shardId);
			try {
				const size = await this.#sizeOf(file);
				await (day === null ? this.#unlink(file) : this.#rename(file, this.#path('trash', day, shardId)));
				this.#shards--;
				this.#usedBytes -= size;
				if (day !== null) this.#trashBytes.set(day, (this.#trashBytes.get(day) ?? 0) + size);
				folder.removed();
			} catch (error) {
				if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw foreign(error as Error);
			}
			// Also where it is gone already: whoever moved it away may have been killed before it was durable.
			if (folder.mayComeBack) emptied.set(folder, shardId);
		}
		await Promise.all([...folders].map((folder) => folder.sync()));
		await Promise.all([...emptied].map(([folder, shardId]) => this.#syncEmptied(folder, shardId)));
	}

	/** Where somebody removed the folder it is made anew: what was in it must not come back either. */
	async #syncEmptied(folder: FolderSync, shardId: ShardId): Promise<void> {
		try {
			await folder.sync();
		} catch (error) {
			const { cause } = error as DistroError;
			if ((cause as NodeJS.ErrnoException | undefined)?.code !== 'ENOENT') throw error;
			await this.#remakeFolder(shardId.slice(0, 2));
			await folder.sync();
		}
	}

	/** One of the folders of shards, where somebody removed it. */
	async #remakeFolder(folder: string): Promise<void> {
		await this.#online();
		await this.#makeFolder(this.#path('shards'));
		await this.#makeFolder(this.#path('shards', folder));
		await this.#folderAt(this.#path('shards')).sync();
		await this.#folderAt(this.#dataDir).sync();
	}

	/** Whether it was not there before. */
	#makeFolder(path: string): Promise<boolean> {
		return new Promise((resolve, reject) => {
			this.#files.mkdir(path, (error) => {
				if (error === null) resolve(true);
				else if (error.code === 'EEXIST') resolve(false);
				else reject(foreign(error));
			});
		});
	}

	#rename(from: string, to: string): Promise<void> {
		return this.#asked((done) => this.#files.rename(from, to, done));
	}

	#unlink(path: string): Promise<void> {
		return this.#asked((done) => this.#files.unlink(path, done));
	}

	async #sizeOf(path: string): Promise<number> {
		const { size } = await this.#asked<fs.Stats>((done) => this.#files.stat(path, done));
		return size;
	}

	#names(...folder: string[]): Promise<string[]> {
		return this.#asked((done) => this.#files.readdir(this.#path(...folder), done));
	}

	/** Of the files in one folder of shards; none where somebody removed it, which `restore` makes good: its shards are lost. */
	async #shardNames(folder: string, options: { restore?: boolean } = {}): Promise<string[]> {
		try {
			return (await this.#names('shards', folder)).filter(isId);
		} catch (error) {
			if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw foreign(error as Error);
			if (options.restore === true) await this.#remakeFolder(folder);
			else await this.#online();
			return [];
		}
	}

	/** Rejects with the system's own error. */
	#asked<T>(call: (done: (error: NodeJS.ErrnoException | null, result?: T) => void) => void): Promise<T> {
		return new Promise((resolve, reject) => {
			call((error, result) => (error === null || error === undefined ? resolve(result as T) : reject(error)));
		});
	}

	async list(options: { after: ShardId | null; limit: number }): Promise<readonly ListedShard[]> {
		await this.#online();
		const { after, limit } = options;
		const found: ListedShard[] = [];
		const first = after === null ? 0 : Number.parseInt(after.slice(0, 2), 16);
		for (let i = first; i < 256 && found.length < limit; i++) {
			const names = (await this.#shardNames(hexByte(i))).sort() as ShardId[];
			const wanted = names.filter((name) => after === null || name > after).slice(0, limit - found.length);
			found.push(...(await this.#listed(wanted)));
		}
		// Under a mount that has vanished meanwhile lie other folders, or empty ones.
		await this.#online();
		return found;
	}

	/** When the file was written last: links and renames keep that. */
	async #listed(shardIds: readonly ShardId[]): Promise<ListedShard[]> {
		const listed: ListedShard[] = [];
		for (const shardId of shardIds) {
			const stats = this.#asked<fs.Stats>((done) => this.#files.stat(this.#file(shardId), done));
			const writtenAtMs = await stats.then(
				({ mtimeMs }) => Math.floor(mtimeMs),
				() => this.#clock.nowMs(),
			);
			listed.push({ shardId, writtenAtMs });
		}
		return listed;
	}

	async loadRecord(name: RecordName): Promise<Buffer | null> {
		await this.#online();
		return this.#asked<Buffer>((done) => this.#files.readFile(this.#path(RECORD_FILE[name]), done)).catch((error) => {
			if (error.code === 'ENOENT') return null;
			throw foreign(error);
		});
	}

	async saveRecord(name: RecordName, record: Buffer): Promise<void> {
		// Where nothing is mounted any more nothing must be written.
		await this.#online();
		const file = this.#path(RECORD_FILE[name]);
		try {
			await this.#asked<void>((done) =>
				this.#files.writeFile(`${file}.new`, record, { flush: true, mode: 0o644 }, done),
			);
			await this.#rename(`${file}.new`, file);
		} catch (error) {
			throw foreign(error as Error);
		}
		await this.#folderAt(this.#dataDir).sync();
	}

	async stats(): Promise<StoreStats> {
		await this.#online();
		const { totalBytes, freeBytes } = await this.#measure();
		return {
			bytesTotal: totalBytes,
			bytesFree: Math.max(0, freeBytes - this.#promisedBytes),
			bytesUsed: this.#usedBytes,
			shards: this.#shards,
		};
	}

	async close(): Promise<void> {
		this.#cancelPurge();
		await Promise.all([...this.#writing.values()].map((writer) => writer.abort()));
	}

	/** Throws `unavailable` when the sentinel is gone, or a folder could not be kept. */
	async #online(): Promise<void> {
		await new Promise<void>((resolve, reject) => {
			this.#files.access(this.#path(SENTINEL), (error) => {
				if (error === null) resolve();
				else reject(new DistroError('unavailable', `the volume is offline: ${SENTINEL} is gone`, { cause: error }));
			});
		});
		if (this.#failed.size === 0) return;
		if (this.#recovering === null && this.#clock.monotonicMs() >= this.#recoverAtMs) {
			this.#recoverAtMs = this.#clock.monotonicMs() + RECOVER_EVERY_MS;
			this.#recovering = this.#recover().finally(() => {
				this.#recovering = null;
			});
		}
		await this.#recovering;
		if (this.#failed.size > 0) {
			throw new DistroError('unavailable', 'the volume is offline: it could not keep a folder, and still can’t');
		}
	}

	#failedToKeep(path: string): void {
		this.#failed.add(path);
		this.#recoverAtMs = this.#clock.monotonicMs() + RECOVER_EVERY_MS;
	}

	/**
	 * As a new start would do it, once the folder takes something and keeps it: whoever waited for the syncs that failed is
	 * refused all the same. A name that was taken out before may come back at a power cut; reconcile finds it.
	 */
	async #recover(): Promise<void> {
		for (const path of this.#failed) {
			const probe = join(path, PROBE);
			try {
				await this.#asked<void>((done) => this.#files.writeFile(probe, Buffer.alloc(0), { flush: true }, done));
				await new FolderSync(path, this.#files, () => {}).sync();
				await this.#unlink(probe);
			} catch (error) {
				// Somebody removed it: it is made anew when it is needed.
				if ((error as NodeJS.ErrnoException).code !== 'ENOENT') return;
			}
			this.#folders.delete(path);
			this.#failed.delete(path);
		}
	}

	/** Size of the volume and what shards may still take of it, at most a second old where there is plenty. */
	#measure(): Promise<{ totalBytes: number; freeBytes: number }> {
		const nowMs = this.#clock.monotonicMs();
		const known = this.#space;
		if (known !== null && known.freeBytes >= STATFS_ALWAYS_BYTES && nowMs - known.atMs < STATFS_MS) {
			return Promise.resolve(this.#limited(known));
		}
		return new Promise((resolve, reject) => {
			this.#files.statfs(this.#dataDir, (error, stats) => {
				if (error !== null) return reject(foreign(error));
				const space = { atMs: nowMs, totalBytes: stats.blocks * stats.bsize, freeBytes: stats.bavail * stats.bsize };
				this.#space = space;
				resolve(this.#limited(space));
			});
		});
	}

	#limited(space: { totalBytes: number; freeBytes: number }): { totalBytes: number; freeBytes: number } {
		const onDiskBytes = [...this.#trashBytes.values()].reduce((sum, bytes) => sum + bytes, space.freeBytes);
		return {
			totalBytes: Math.min(space.totalBytes, this.#capacityBytes),
			freeBytes: Math.max(0, Math.min(onDiskBytes - this.#reserveBytes, this.#capacityBytes - this.#usedBytes)),
		};
	}

	#path(...parts: string[]): string {
		return join(this.#dataDir, ...parts);
	}

	#file(shardId: ShardId): string {
		return this.#path('shards', shardId.slice(0, 2), shardId);
	}

	#folder(shardId: ShardId): FolderSync {
		return this.#folderAt(this.#path('shards', shardId.slice(0, 2)));
	}

	#folderAt(path: string): FolderSync {
		let folder = this.#folders.get(path);
		if (folder === undefined) {
			folder = new FolderSync(path, this.#files, () => this.#failedToKeep(path));
			this.#folders.set(path, folder);
		}
		return folder;
	}
}

/**
 * Syncs one folder; calls that come while one runs share the next. Once a sync has failed every later one does: the system
 * tells of lost pages once, and a second sync would say that all is well. Its store is offline then, until another one takes
 * its place.
 */
class FolderSync {
	readonly #path: string;
	readonly #files: FileCalls;
	#failure: DistroError | null = null;
	#running: Promise<void> | null = null;
	#next: Promise<void> | null = null;
	/** Names taken out of it; those before this process count as one. */
	#removals = 1;
	#syncedRemovals = 0;

	readonly #onFailed: () => void;

	constructor(path: string, files: FileCalls, onFailed: () => void) {
		this.#path = path;
		this.#files = files;
		this.#onFailed = onFailed;
	}

	/** A name was taken out. */
	removed(): void {
		this.#removals++;
	}

	/** A name that was taken out would be there again after a power cut. */
	get mayComeBack(): boolean {
		return this.#syncedRemovals < this.#removals;
	}

	sync(): Promise<void> {
		if (this.#failure !== null) return Promise.reject(this.#failure);
		if (this.#running === null) {
			this.#running = this.#run().finally(() => {
				this.#running = null;
			});
			return this.#running;
		}
		// What was linked after the running sync began needs another one.
		this.#next ??= this.#running
			.catch(() => {})
			.then(() => {
				this.#next = null;
				return this.sync();
			});
		return this.#next;
	}

	#run(): Promise<void> {
		const files = this.#files;
		const removals = this.#removals;
		return new Promise((resolve, reject) => {
			files.open(this.#path, 'r', (openError, fd) => {
				if (openError !== null) return reject(foreign(openError));
				files.fsync(fd, (error) => {
					files.close(fd, () => {});
					if (error === null || error === undefined) {
						this.#syncedRemovals = removals;
						return resolve();
					}
					this.#failure = foreign(error);
					this.#onFailed();
					reject(this.#failure);
				});
			});
		});
	}
}

interface DiskWriterParts {
	readonly files: FileCalls;
	readonly temporary: string;
	/** Past the page cache, as far as the file system and the buffers allow. */
	readonly direct: boolean;
	readonly final: string;
	readonly folder: FolderSync;
	readonly remakeFolder: () => Promise<void>;
	/** On the monotonic clock. */
	readonly expiresAtMs: number;
	readonly clock: Clock;
	/** Once: bytes of the file when it is a shard now, else null. */
	readonly ended: (bytes: number | null) => void;
}

class DiskWriter implements ShardWriter {
	readonly #o: DiskWriterParts;
	#fd: number | null = null;
	#direct = false;
	#bytes = 0;
	#state: 'writing' | 'committing' | 'ended' = 'writing';
	/** What is under way: an abort waits for it, and never pulls the file from under it. */
	#pending: Promise<void> = Promise.resolve();
	#aborting: Promise<void> | null = null;

	constructor(parts: DiskWriterParts) {
		this.#o = parts;
	}

	open(): Promise<void> {
		const opened = new Promise<void>((resolve, reject) => {
			const open = (direct: boolean) =>
				this.#o.files.open(this.#o.temporary, direct ? DIRECT_WRITE : 'wx', 0o600, (error, fd) => {
					// The file system can't (it may have made the file all the same).
					if (direct && error?.code === 'EINVAL') this.#o.files.unlink(this.#o.temporary, () => open(false));
					else if (error !== null) reject(foreign(error));
					else {
						this.#fd = fd;
						this.#direct = direct;
						resolve();
					}
				});
			open(this.#o.direct);
		});
		this.#pending = opened.catch(() => {});
		return opened;
	}

	write(bytes: Buffer, done: (error: Error | null) => void): void {
		if (this.#fd === null || this.#state !== 'writing' || this.#aborting !== null) {
			done(givenUp());
			return;
		}
		this.#pending = new Promise((settled) => {
			this.#append(bytes, (error) => {
				settled();
				done(error);
			});
		});
	}

	#append(bytes: Buffer, done: (error: Error | null) => void): void {
		let at = 0;
		const more = () => {
			if (at === bytes.length) return done(null);
			const rest = bytes.length - at;
			const count = this.#direct ? rest - (rest % DIRECT_ALIGN_BYTES) : rest;
			if (count === 0) return this.#leaveDirect(more, done);
			this.#o.files.write(this.#fd as number, bytes, at, count, this.#bytes, (error, written) => {
				// Memory of a kind that this device does not take.
				if (this.#direct && error?.code === 'EINVAL') return this.#leaveDirect(more, done);
				if (error !== null) return done(foreign(error));
				at += written;
				this.#bytes += written;
				more();
			});
		};
		more();
	}

	/** From here on through the page cache: a file's end is no multiple of anything. */
	#leaveDirect(next: () => void, failed: (error: Error) => void): void {
		const { files, temporary } = this.#o;
		files.open(temporary, 'r+', (error, fd) => {
			if (error !== null) return failed(foreign(error));
			files.close(this.#fd as number, () => {});
			this.#fd = fd;
			this.#direct = false;
			next();
		});
	}

	commit(trailer: Buffer): Promise<void> {
		if (this.#fd === null || this.#state !== 'writing' || this.#aborting !== null) return Promise.reject(givenUp());
		this.#state = 'committing';
		const committed = this.#commit(trailer);
		this.#pending = committed.catch(() => {});
		return committed;
	}

	async #commit(trailer: Buffer): Promise<void> {
		const { files, temporary, final, folder, remakeFolder, clock, expiresAtMs, ended } = this.#o;
		const padding = Buffer.alloc(trailerOffset(this.#bytes) - this.#bytes);
		await new Promise<void>((resolve, reject) => {
			this.#append(Buffer.concat([padding, trailer]), (error) => (error === null ? resolve() : reject(error)));
		});
		const fd = this.#fd as number;
		await new Promise<void>((resolve, reject) => {
			files.fsync(fd, (error) => (error === null || error === undefined ? resolve() : reject(foreign(error))));
		});
		if (this.#aborting !== null) throw givenUp();
		if (clock.monotonicMs() > expiresAtMs) throw new DistroError('expired', 'the deadline of this shard has passed');
		// A link refuses a taken name, which a rename would silently replace.
		await new Promise<void>((resolve, reject) => {
			const link = (mayRemake: boolean) =>
				files.link(temporary, final, (error) => {
					if (error === null) resolve();
					else if (error.code === 'EEXIST') reject(new DistroError('exists', 'this shard id is taken'));
					// Somebody removed the folder: what was in it is lost, what comes need not be.
					else if (error.code === 'ENOENT' && mayRemake) remakeFolder().then(() => link(false), reject);
					else reject(foreign(error));
				});
			link(true);
		});
		files.close(fd, () => {});
		// The temporary name may stay until the next start if this fails: it is only a second name.
		files.unlink(temporary, () => {});
		this.#state = 'ended';
		ended(this.#bytes);
		await folder.sync();
	}

	abort(): Promise<void> {
		this.#aborting ??= this.#abort();
		return this.#aborting;
	}

	async #abort(): Promise<void> {
		await this.#pending;
		// What was linked by then is a shard.
		if (this.#state === 'ended') return;
		this.#state = 'ended';
		const { files, temporary, ended } = this.#o;
		const fd = this.#fd;
		if (fd !== null) await new Promise<void>((resolve) => files.close(fd, () => resolve()));
		await new Promise<void>((resolve) => files.unlink(temporary, () => resolve()));
		ended(null);
	}
}

function givenUp(): DistroError {
	return new DistroError('canceled', 'the shard was given up');
}

/** A sector that can't be read any more is a rotten shard, which is mended; everything else may pass. */
function unreadable(error: Error, shardId: ShardId): DistroError {
	if ((error as NodeJS.ErrnoException).code !== 'EIO') return foreign(error);
	return new DistroError('corrupt', `shard ${shardId} can't be read from its disk`, { cause: error });
}

/** Errors of the file system, as what the caller can do about them. */
function foreign(error: Error): DistroError {
	const { code } = error as NodeJS.ErrnoException;
	if (code === 'ENOSPC' || code === 'EDQUOT')
		return new DistroError('exhausted', 'the volume is full', { cause: error });
	if (code === 'EEXIST') return new DistroError('exists', 'this shard is being written', { cause: error });
	return new DistroError('unavailable', `the volume fails: ${code ?? error.message}`, { cause: error });
}

function hasFiles(folder: string): boolean {
	if (!fs.existsSync(folder)) return false;
	return fs.readdirSync(folder, { withFileTypes: true, recursive: true }).some((entry) => !entry.isDirectory());
}

function hexByte(value: number): string {
	return value.toString(16).padStart(2, '0');
}
