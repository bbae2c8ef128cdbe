/**
 * A disk with a page cache, under the real DiskShardStore: names and bytes that were not synced are lost, torn or kept by
 * chance when the power goes; it rots, fills up, slows down, fails to sync, and its mount vanishes.
 */

import { constants } from 'node:fs';
import type { ShardId } from '../../core/ids.ts';
import type { FileCalls } from '../../worker/store-disk.ts';
import type { Dice } from './dice.ts';
import type { SimNode, World } from './world.ts';

export const ROOT = '/volume';
export const DISK_BYTES = 2 ** 31;
const BLOCK_BYTES = 4096;

export class SimFile {
	bytes = Buffer.alloc(0);
	sizeBytes = 0;
	/** All before it survives. */
	syncedBytes = 0;
	/** A bad sector: reading it fails. */
	unreadable = false;
	/** Changes with its content. */
	version = 0;
	writtenAtMs = 0;

	write(at: number, from: Buffer): void {
		const end = at + from.length;
		if (end > this.bytes.length) {
			const grown = Buffer.alloc(Math.max(end, 2 * this.bytes.length));
			this.bytes.copy(grown, 0, 0, this.sizeBytes);
			this.bytes = grown;
		}
		from.copy(this.bytes, at);
		this.sizeBytes = Math.max(this.sizeBytes, end);
		this.version++;
	}

	content(): Buffer {
		return this.bytes.subarray(0, this.sizeBytes);
	}
}

class Folder {
	names = new Map<string, SimFile | Folder>();
	/** As they survive. */
	synced = new Map<string, SimFile | Folder>();
	/** Which of its syncs that was: one that began before has nothing to add. */
	syncedAt = 0;
}

type Done = (error: NodeJS.ErrnoException | null, result?: unknown) => void;

export class SimDisk {
	readonly #world: World;
	readonly #dice: Dice;
	#root = new Folder();
	#folders = new Map<string, Folder>();
	/** Grows with each power cut: calls of before have no effect any more. */
	#powerCuts = 0;
	#syncs = 0;
	/** False: its mount has vanished. */
	online = true;
	slowMs = 0;
	capacityBytes = DISK_BYTES;
	/** The next syncs fail, and what they would have kept is gone from the cache. */
	failingSyncs = 0;

	constructor(world: World, name: string) {
		this.#world = world;
		this.#dice = world.dice.fork(`disk ${name}`);
		const { names } = this.#root;
		for (const folder of ['tmp', 'trash', 'shards']) names.set(folder, new Folder());
		const shards = names.get('shards') as Folder;
		for (let i = 0; i < 256; i++) shards.names.set(i.toString(16).padStart(2, '0'), new Folder());
		shards.synced = new Map(shards.names);
		names.set('volume.json', new SimFile());
		this.#root.synced = new Map(names);
		this.#index();
	}

	#index(): void {
		this.#folders = new Map();
		const add = (path: string, folder: Folder) => {
			this.#folders.set(path, folder);
			for (const [name, entry] of folder.names) if (entry instanceof Folder) add(`${path}/${name}`, entry);
		};
		add(ROOT, this.#root);
	}

	/** A file of the volume's root as it would be if the power went now; null: it would not be there. */
	durable(name: string): Buffer | null {
		const file = this.#root.synced.get(name);
		return file instanceof SimFile && file.syncedBytes === file.sizeBytes ? file.content() : null;
	}

	/** The file of a shard as processes see it. */
	shard(shardId: ShardId): SimFile | null {
		const found = this.#shardFolder(shardId).names.get(shardId);
		return found instanceof SimFile ? found : null;
	}

	/** Whether it would be there, whole, if the power went now. */
	isDurable(shardId: ShardId): boolean {
		const file = this.#shardFolder(shardId).synced.get(shardId);
		return file instanceof SimFile && file === this.shard(shardId) && file.syncedBytes === file.sizeBytes;
	}

	#shardFolder(shardId: ShardId): Folder {
		return this.#folders.get(`${ROOT}/shards/${shardId.slice(0, 2)}`) as Folder;
	}

	/** What the worker keeps of deleted shards. */
	trashIds(): ShardId[] {
		const days = [...(this.#root.names.get('trash') as Folder).names.values()];
		return days.flatMap((day) => (day instanceof Folder ? ([...day.names.keys()] as ShardId[]) : []));
	}

	shardIds(): ShardId[] {
		const found: ShardId[] = [];
		for (const folder of (this.#root.names.get('shards') as Folder).names.values()) {
			if (folder instanceof Folder) for (const name of folder.names.keys()) found.push(name as ShardId);
		}
		return found;
	}

	rot(shardId: ShardId): boolean {
		const file = this.shard(shardId);
		if (file === null || file.sizeBytes === 0) return false;
		// Cells, padding or trailer. What is only padding harms nothing.
		const at = this.#dice.below(file.sizeBytes);
		file.bytes = Buffer.from(file.bytes);
		file.bytes[at] = (file.bytes[at] as number) ^ (1 << this.#dice.below(8));
		file.version++;
		return true;
	}

	spoilSector(shardId: ShardId): boolean {
		const file = this.shard(shardId);
		if (file === null) return false;
		file.unreadable = true;
		file.version++;
		return true;
	}

	/** As a process leaves it that is killed before it could tell anybody: whole, durable, and named by no row. */
	plant(shardId: ShardId, file: SimFile): void {
		const folder = this.#shardFolder(shardId);
		folder.names.set(shardId, file);
		folder.synced.set(shardId, file);
	}

	/** Somebody's hand, or a broken file system. */
	remove(shardId: ShardId): boolean {
		const folder = this.#shardFolder(shardId);
		folder.synced.delete(shardId);
		return folder.names.delete(shardId);
	}

	/** Whatever was not synced is there, gone or torn, as it happens. */
	cutPower(): void {
		this.#powerCuts++;
		const settle = (folder: Folder) => {
			const settled = new Map<string, SimFile | Folder>();
			for (const name of new Set([...folder.synced.keys(), ...folder.names.keys()])) {
				const [before, after] = [folder.synced.get(name), folder.names.get(name)];
				const kept = before === after || this.#dice.chance(0.5) ? after : before;
				if (kept === undefined) continue;
				settled.set(name, kept);
				if (kept instanceof Folder) settle(kept);
				else this.#tear(kept);
			}
			folder.names = settled;
			folder.synced = new Map(settled);
		};
		settle(this.#root);
		this.#index();
	}

	#tear(file: SimFile): void {
		if (file.sizeBytes === file.syncedBytes) return;
		const lostBytes = this.#dice.below(file.sizeBytes - file.syncedBytes + 1);
		const from = file.sizeBytes - lostBytes;
		if (this.#dice.chance(0.5)) file.sizeBytes = from;
		else file.bytes.fill(0, from, file.sizeBytes);
		file.syncedBytes = file.sizeBytes;
		file.version++;
	}

	#usedBytes(): number {
		let bytes = 0;
		const counted = new Set<SimFile>();
		for (const folder of this.#folders.values()) {
			for (const entry of folder.names.values()) {
				if (!(entry instanceof SimFile) || counted.has(entry)) continue;
				counted.add(entry);
				bytes += entry.sizeBytes;
			}
		}
		return bytes;
	}

	/** Its calls as one process makes them. */
	filesFor(node: SimNode): FileCalls {
		const open = new Map<number, SimFile | Folder>();
		let lastFd = 2;
		/** Answers after the disk's time; `effect` throws codes. */
		const call = (what: { ms: number; done: Done; effect: () => unknown }) => {
			const powerCuts = this.#powerCuts;
			this.#world.at(what.ms * this.#dice.between(0.5, 2) + this.slowMs, () => {
				if (powerCuts !== this.#powerCuts) return;
				let result: unknown;
				let failure: NodeJS.ErrnoException | null = null;
				try {
					result = what.effect();
				} catch (code) {
					if (typeof code !== 'string') throw code;
					failure = Object.assign(new Error(`${code}: simulated`), { code });
				}
				node.run(() => (failure === null ? what.done(null, result) : what.done(failure)));
			});
		};
		const folderOf = (path: string): [Folder, string] => {
			const at = path.lastIndexOf('/');
			const folder = this.online ? this.#folders.get(path.slice(0, at)) : undefined;
			if (folder === undefined) throw 'ENOENT';
			return [folder, path.slice(at + 1)];
		};
		const find = (path: string): SimFile | Folder => {
			if (path === ROOT) return this.#root;
			const [folder, name] = folderOf(path);
			const found = folder.names.get(name);
			if (found === undefined) throw 'ENOENT';
			return found;
		};
		const file = (fd: number): SimFile => {
			const found = open.get(fd);
			if (!this.online || !(found instanceof SimFile)) throw 'EIO';
			return found;
		};
		const calls = {
			open: (path: string, flags: string | number, ...rest: unknown[]) => {
				const done = rest.at(-1) as Done;
				call({
					ms: 0.05,
					done,
					effect: () => {
						const isNew = flags === 'wx' || (typeof flags === 'number' && (flags & constants.O_CREAT) !== 0);
						if (isNew) {
							const [folder, name] = folderOf(path);
							if (folder.names.has(name)) throw 'EEXIST';
							folder.names.set(name, new SimFile());
						}
						open.set(++lastFd, find(path));
						return lastFd;
					},
				});
			},
			write: (fd: number, from: Buffer, offset: number, length: number, position: number, done: Done) =>
				call({
					ms: 0.1,
					done,
					effect: () => {
						const target = file(fd);
						target.writtenAtMs = node.clock.nowMs();
						const freeBytes = this.capacityBytes - this.#usedBytes();
						if (freeBytes < BLOCK_BYTES) throw 'ENOSPC';
						// A short write is no error.
						const most = this.#dice.chance(0.05) ? Math.max(BLOCK_BYTES, length >> 1) : length;
						const count = Math.min(length, most, freeBytes);
						target.write(position, from.subarray(offset, offset + count));
						return count;
					},
				}),
			read: (fd: number, into: Buffer, offset: number, length: number, position: number, done: Done) =>
				call({
					ms: 0.1,
					done,
					effect: () => {
						const source = file(fd);
						if (source.unreadable) throw 'EIO';
						const most = this.#dice.chance(0.05) ? Math.max(BLOCK_BYTES, length >> 1) : length;
						const end = Math.min(source.sizeBytes, position + Math.min(length, most));
						return end <= position ? 0 : source.bytes.copy(into, offset, position, end);
					},
				}),
			fsync: (fd: number, done: Done) => {
				const target = open.get(fd);
				const sizeBytes = target instanceof SimFile ? target.sizeBytes : 0;
				const names = target instanceof Folder ? new Map(target.names) : null;
				const began = ++this.#syncs;
				call({
					ms: 1,
					done,
					effect: () => {
						if (!this.online || target === undefined) throw 'EIO';
						if (this.failingSyncs > 0) {
							this.failingSyncs--;
							// The system drops what it could not write, and a second sync would say that all is well.
							if (target instanceof SimFile) {
								target.bytes.fill(0, target.syncedBytes, target.sizeBytes);
								target.version++;
							}
							throw 'EIO';
						}
						if (target instanceof Folder) {
							if (target.syncedAt < began) target.synced = names as Folder['names'];
							target.syncedAt = Math.max(target.syncedAt, began);
						} else target.syncedBytes = Math.max(target.syncedBytes, sizeBytes);
						return undefined;
					},
				});
			},
			link: (from: string, to: string, done: Done) =>
				call({
					ms: 0.05,
					done,
					effect: () => {
						const [folder, name] = folderOf(to);
						if (folder.names.has(name)) throw 'EEXIST';
						folder.names.set(name, find(from));
					},
				}),
			rename: (from: string, to: string, done: Done) =>
				call({
					ms: 0.05,
					done,
					effect: () => {
						const [source, before] = folderOf(from);
						const [target, after] = folderOf(to);
						target.names.set(after, find(from));
						source.names.delete(before);
					},
				}),
			unlink: (path: string, done: Done) =>
				call({
					ms: 0.05,
					done,
					effect: () => {
						const [folder, name] = folderOf(path);
						if (!folder.names.delete(name)) throw 'ENOENT';
					},
				}),
			mkdir: (path: string, done: Done) =>
				call({
					ms: 0.05,
					done,
					effect: () => {
						const [folder, name] = folderOf(path);
						if (folder.names.has(name)) throw 'EEXIST';
						folder.names.set(name, new Folder());
						this.#index();
					},
				}),
			rmdir: (path: string, done: Done) =>
				call({
					ms: 0.05,
					done,
					effect: () => {
						const [folder, name] = folderOf(path);
						folder.names.delete(name);
						this.#index();
					},
				}),
			close: (fd: number, done: Done) => {
				open.delete(fd);
				call({ ms: 0, done, effect: () => undefined });
			},
			statfs: (_path: string, done: Done) =>
				call({
					ms: 0.05,
					done,
					effect: () => {
						if (!this.online) throw 'EIO';
						const free = Math.max(0, Math.floor((this.capacityBytes - this.#usedBytes()) / BLOCK_BYTES));
						return { bsize: BLOCK_BYTES, blocks: DISK_BYTES / BLOCK_BYTES, bavail: free };
					},
				}),
			fstat: (fd: number, done: Done) => call({ ms: 0.05, done, effect: () => ({ size: file(fd).sizeBytes }) }),
			stat: (path: string, done: Done) =>
				call({
					ms: 0.05,
					done,
					effect: () => {
						const found = find(path);
						return found instanceof SimFile
							? { size: found.sizeBytes, mtimeMs: found.writtenAtMs }
							: { size: 0, mtimeMs: 0 };
					},
				}),
			readdir: (path: string, done: Done) =>
				call({
					ms: 0.02,
					done,
					effect: () => {
						const found = find(path);
						if (!(found instanceof Folder)) throw 'ENOTDIR';
						return [...found.names.keys()];
					},
				}),
			readFile: (path: string, done: Done) =>
				call({
					ms: 0.1,
					done,
					effect: () => {
						const found = find(path);
						if (!(found instanceof SimFile)) throw 'EISDIR';
						return Buffer.from(found.content());
					},
				}),
			writeFile: (path: string, bytes: Buffer, _options: object, done: Done) =>
				call({
					ms: 1,
					done,
					effect: () => {
						const [folder, name] = folderOf(path);
						const written = new SimFile();
						written.write(0, bytes);
						written.syncedBytes = bytes.length;
						written.writtenAtMs = node.clock.nowMs();
						folder.names.set(name, written);
					},
				}),
			access: (path: string, done: Done) =>
				call({
					ms: 0.02,
					done,
					effect: () => {
						find(path);
					},
				}),
		};
		return calls as unknown as FileCalls;
	}
}
