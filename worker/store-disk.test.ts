/** The disk adapter: the contract, crash points at every file call, failing disks, and volumes that are not what they should be. */

import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { decodeTrailer, trailerOffset } from '../core/codec/trailer.ts';
import type { ErrorKind } from '../core/errors.ts';
import { newId, type ShardId, type WorkerId } from '../core/ids.ts';
import { SMALL_CELL_BYTES, TRAILER_MAX_BYTES } from '../core/limits.ts';
import { alignedBuffer } from '../platform/memory-pool.ts';
import { ManualClock, seededRandom } from '../test/support/clock.ts';
import { describeShardStore } from './store.contract.ts';
import { type MadeShard, makeShard, putShard, readCells } from './store.fixtures.ts';
import type { ShardStore } from './store.ts';
import { type DiskShardStore, type DiskStoreOptions, type FileCalls, openDiskStore } from './store-disk.ts';
import { failingFiles, interceptFiles, PowerCutDisk, type Survival } from './store-disk-faults.ts';

const random = seededRandom('disk store');
const workerId = newId<WorkerId>(random);
const made: string[] = [];

function newFolder(): string {
	const folder = fs.mkdtempSync(join(tmpdir(), 'distro-volume-'));
	made.push(folder);
	return folder;
}

afterEach(() => {
	for (const folder of made.splice(0)) fs.rmSync(folder, { recursive: true, force: true });
});

function open(dataDir: string, options: Partial<DiskStoreOptions> = {}): Promise<DiskShardStore> {
	return openDiskStore({ dataDir, workerId, clock: new ManualClock(), reserveBytes: 0, ...options });
}

const failing = (kind: ErrorKind) => expect.objectContaining({ name: 'DistroError', kind });

/** A shard whose file lies in the same folder as the others'. */
const neighbour = () => makeShard(random, { cells: 2, shardId: `ab${newId<ShardId>(random).slice(2)}` as ShardId });

async function idsOf(store: ShardStore): Promise<ShardId[]> {
	const listed = await store.list({ after: null, limit: 100 });
	return listed.map(({ shardId }) => shardId);
}

function filesUnder(folder: string): string[] {
	return fs
		.readdirSync(folder, { withFileTypes: true, recursive: true })
		.filter((entry) => entry.isFile())
		.map(({ name }) => name);
}

function removeFiles(folder: string): void {
	for (const entry of fs.readdirSync(folder, { withFileTypes: true, recursive: true })) {
		if (entry.isFile()) fs.rmSync(join(entry.parentPath, entry.name));
	}
}

describeShardStore('disk', async ({ clock, roomBytes, trashKeepMs }) => {
	const dataDir = newFolder();
	const options = { clock, capacityBytes: roomBytes, trashKeepMs };
	let store = await open(dataDir, options);
	const sentinel = join(dataDir, 'volume.json');
	return {
		store,
		reopen: async () => {
			await store.close();
			store = await open(dataDir, options);
			return store;
		},
		nowMs: () => {
			// The file system's own time may be a tick behind the system's.
			const probe = join(dataDir, 'probe');
			fs.writeFileSync(probe, '.');
			return Math.floor(fs.statSync(probe).mtimeMs);
		},
		setOnline: (online) => {
			if (online) fs.renameSync(`${sentinel}.away`, sentinel);
			else fs.renameSync(sentinel, `${sentinel}.away`);
		},
		trashed: () => filesUnder(join(dataDir, 'trash')) as ShardId[],
		temporary: () => filesUnder(join(dataDir, 'tmp')).length,
		dispose: () => store.close(),
	};
});

/** What a scenario was promised. */
interface Promises {
	readonly stored: Set<ShardId>;
	readonly deleting: Set<ShardId>;
	readonly deleted: Set<ShardId>;
}

/** Two puts at once into one folder, a delete, and one more put. Goes on after failures. */
async function scenario(
	store: ShardStore,
	shards: readonly MadeShard[],
	promises: Promises,
	forGood = false,
): Promise<void> {
	const [first, second, third] = shards as [MadeShard, MadeShard, MadeShard];
	const put = (shard: MadeShard) =>
		putShard(store, shard, { pieceBytes: SMALL_CELL_BYTES }).then(
			() => promises.stored.add(shard.shardId),
			() => {},
		);
	await Promise.all([put(first), put(second)]);
	promises.deleting.add(first.shardId);
	await store.delete([first.shardId], { forGood }).then(
		() => promises.deleted.add(first.shardId),
		() => {},
	);
	await put(third);
}

/** Each shard is whole or not there; promised ones are there, deleted ones are not. */
async function expectKept(store: ShardStore, shards: readonly MadeShard[], promises: Promises): Promise<void> {
	const listed = await idsOf(store);
	for (const shard of shards) {
		const { shardId, cells } = shard;
		if (promises.stored.has(shardId) && !promises.deleting.has(shardId)) expect(listed).toContain(shardId);
		if (promises.deleted.has(shardId)) expect(listed).not.toContain(shardId);
		if (listed.includes(shardId)) {
			const trailer = await store.trailer(shardId);
			expect(trailer.equals(shard.trailer)).toBe(true);
			expect(decodeTrailer(trailer)).toEqual(shard.parts);
			expect((await readCells(store, shardId, { offset: 0, length: cells.length })).equals(cells)).toBe(true);
		} else {
			await expect(store.open(shardId)).rejects.toEqual(failing('not_found'));
		}
	}
	for (const shardId of listed) expect(shards.map((shard) => shard.shardId)).toContain(shardId);
}

const nothingPromised = (): Promises => ({ stored: new Set(), deleting: new Set(), deleted: new Set() });

describe('crash points', () => {
	test.each([false, true])(
		'a delete (for good: %j) asked again after a kill in the middle is durable',
		async (forGood) => {
			const dataDir = newFolder();
			const shard = neighbour();
			const before = await open(dataDir);
			await putShard(before, shard, { pieceBytes: SMALL_CELL_BYTES });
			await before.close();
			const disk = new PowerCutDisk(dataDir, { cutAt: Number.POSITIVE_INFINITY, done: false });
			// Killed when it has moved the file away and syncs: nobody hears of it any more.
			const killed = await open(dataDir, { files: { ...disk.files, fsync: (() => {}) as never } });
			killed.delete([shard.shardId], { forGood });
			await expect.poll(() => filesUnder(join(dataDir, 'shards'))).toEqual([]);
			const store = await open(dataDir, { files: disk.files });
			await store.delete([shard.shardId], { forGood });
			await disk.settle('only what was synced');
			expect(filesUnder(join(dataDir, 'shards'))).toEqual([]);
		},
	);

	const survivals: Survival[] = ['only what was synced', 'names before bytes'];
	const cases = survivals.flatMap((survival) =>
		[false, true].flatMap((done) =>
			// What is deleted for good has the same calls of puts: once is enough.
			[0, 1e9].map((directFromBytes) => ({ survival, done, directFromBytes, forGood: directFromBytes > 0 })),
		),
	);
	test.each(cases)(
		'unsynced pages dropped at a power cut, at each file call: $survival, done $done, direct from $directFromBytes bytes, for good $forGood',
		async ({ survival, done, directFromBytes, forGood }) => {
			let stored = 0;
			let points = 0;
			const dataDir = newFolder();
			await (await open(dataDir)).close();
			for (let cutAt = 1; ; cutAt++) {
				const disk = new PowerCutDisk(dataDir, { cutAt, done });
				const store = await open(dataDir, { files: disk.files, directFromBytes });
				const shards = [neighbour(), neighbour(), neighbour()];
				const promises = nothingPromised();
				const ended = await Promise.race([
					scenario(store, shards, promises, forGood).then(() => true),
					disk.cut.then(() => false),
				]);
				await disk.settle(survival);
				const again = await open(dataDir);
				await expectKept(again, shards, promises);
				expect(filesUnder(join(dataDir, 'tmp'))).toEqual([]);
				const trash = filesUnder(join(dataDir, 'trash'));
				expect(trash).toEqual(forGood ? [] : expect.arrayContaining([...promises.deleted]));
				stored += promises.stored.size;
				points++;
				await again.close();
				removeFiles(join(dataDir, 'shards'));
				fs.rmSync(join(dataDir, 'trash'), { recursive: true });
				fs.mkdirSync(join(dataDir, 'trash'));
				if (ended) break;
			}
			// The scenario has three puts and a delete: each of its calls was a crash point, and some puts were promised.
			expect(points).toBeGreaterThan(35);
			expect(stored).toBeGreaterThan(0.9 * points);
		},
		120_000,
	);

	test.each([0, 1e9])(
		'an error from each file call (direct from %i bytes): nothing half, nothing promised that is not there, no room lost',
		async (directFromBytes) => {
			const capacityBytes = 4 * 1024 * 1024;
			const dataDir = newFolder();
			await (await open(dataDir)).close();
			for (let at = 1; ; at++) {
				const { files, heal } = failingFiles(at, 'EIO');
				const clock = new ManualClock();
				const store = await open(dataDir, { files, capacityBytes, directFromBytes, clock });
				const shards = [neighbour(), neighbour(), neighbour()];
				const promises = nothingPromised();
				await scenario(store, shards, promises);
				const calls = heal();
				// A volume that failed to keep a folder is back by then.
				clock.advance(5_000);
				await expectKept(store, shards, promises);
				const stats = await store.stats();
				const listed = await store.list({ after: null, limit: 10 });
				const fileBytes = trailerOffset(shards[0]?.cells.length ?? 0) + (shards[0]?.trailer.length ?? 0);
				expect(stats).toMatchObject({ shards: listed.length, bytesUsed: listed.length * fileBytes });
				expect(stats.bytesFree).toBe(capacityBytes - stats.bytesUsed);
				await store.close();
				const again = await open(dataDir);
				await expectKept(again, shards, promises);
				expect(filesUnder(join(dataDir, 'tmp'))).toEqual([]);
				await again.close();
				removeFiles(join(dataDir, 'shards'));
				if (calls < at) {
					expect(promises.stored.size).toBe(3);
					break;
				}
			}
		},
	);
});

describe('past the page cache', () => {
	test.each([
		['a whole number of blocks', { cells: 20, lastCellBytes: SMALL_CELL_BYTES }],
		['an end in the middle of a block', { cells: 20, lastCellBytes: 4096 * 3 + 17 }],
		['less than a block', { cells: 1, lastCellBytes: 100 }],
	])('%s', async (_, shape) => {
		const opens: unknown[] = [];
		const shard = makeShard(random, shape);
		const files = interceptFiles((call) => {
			if (call.name === 'open' && String(call.args[0]).endsWith(`tmp/${shard.shardId}`)) opens.push(call.args[1]);
			call.proceed();
		});
		const store = await open(newFolder(), { files, directFromBytes: 0 });
		await putShard(store, shard);
		expect(opens).toEqual([expect.any(Number), 'r+']);
		expect((await readCells(store, shard.shardId, { offset: 0, length: shard.cells.length })).equals(shard.cells)).toBe(
			true,
		);
		expect((await store.trailer(shard.shardId)).equals(shard.trailer)).toBe(true);
		await store.close();
	});

	test('a file system, or memory, that can’t: through it', async () => {
		for (const refused of ['open', 'write'] as const) {
			let refusals = 0;
			const files = interceptFiles((call) => {
				const direct = call.name === 'open' ? typeof call.args[1] === 'number' : true;
				if (call.name === refused && direct && refusals++ === 0) call.fail('EINVAL');
				else call.proceed();
			});
			const store = await open(newFolder(), { files, directFromBytes: 0 });
			const shard = makeShard(random, { cells: 9 });
			await putShard(store, shard);
			expect(refusals).toBeGreaterThan(0);
			expect((await store.trailer(shard.shardId)).equals(shard.trailer)).toBe(true);
			await store.close();
		}
	});

	test('a write that ends in the middle of a block', async () => {
		const dataDir = newFolder();
		const shard = makeShard(random, { cells: 9 });
		let short = 0;
		const files = interceptFiles((call) => {
			if (call.name !== 'write' || short++ > 0) return call.proceed();
			// As a device does that has taken a part.
			const [, bytes, at, , position] = call.args as [number, Buffer, number, number, number];
			const fd = fs.openSync(join(dataDir, 'tmp', shard.shardId), 'r+');
			const written = fs.writeSync(fd, bytes, at, 5_000, position);
			fs.closeSync(fd);
			call.answer(written);
		});
		const store = await open(dataDir, { files, directFromBytes: 0 });
		await putShard(store, shard);
		expect((await readCells(store, shard.shardId, { offset: 0, length: shard.cells.length })).equals(shard.cells)).toBe(
			true,
		);
		expect((await store.trailer(shard.shardId)).equals(shard.trailer)).toBe(true);
		await store.close();
	});

	test('given up in the middle of the change to the page cache: every file is closed once', async () => {
		const opened: unknown[] = [];
		const closed: unknown[] = [];
		const held: (() => void)[] = [];
		const files = interceptFiles((call) => {
			if (call.name === 'close') closed.push(call.args[0]);
			const proceed = () =>
				call.proceed((fd) => {
					if (call.name === 'open' && fd !== undefined) opened.push(fd);
				});
			if (call.name === 'open' && call.args[1] === 'r+') held.push(proceed);
			else proceed();
		});
		const dataDir = newFolder();
		const store = await open(dataDir, { files, directFromBytes: 0 });
		const shard = makeShard(random);
		const maxBytes = shard.cells.length;
		const writer = await store.create({ shardId: shard.shardId, maxBytes, deadlineMs: 1_000 });
		const written = new Promise((done) => writer.write(shard.cells, done));
		expect(held.length).toBe(1);
		const aborted = writer.abort();
		held[0]?.();
		await Promise.all([written, aborted]);
		expect(opened.length).toBe(2);
		expect(closed.toSorted()).toEqual(opened.toSorted());
		expect(filesUnder(join(dataDir, 'tmp'))).toEqual([]);
		await store.close();
	});
});

describe('failing disks', () => {
	test('an error from the sync of the file is not acknowledged, and a second commit is no way around it', async () => {
		const files = interceptFiles((call) => {
			if (call.name === 'fsync') call.fail('EIO');
			else call.proceed();
		});
		const store = await open(newFolder(), { files });
		const shard = makeShard(random);
		const writer = await store.create({ shardId: shard.shardId, maxBytes: shard.cells.length, deadlineMs: 1_000 });
		await new Promise((done) => writer.write(shard.cells, done));
		await expect(writer.commit(shard.trailer)).rejects.toEqual(failing('unavailable'));
		await expect(writer.commit(shard.trailer)).rejects.toEqual(failing('canceled'));
		await writer.abort();
		await expect(store.open(shard.shardId)).rejects.toEqual(failing('not_found'));
		expect(await store.stats()).toMatchObject({ shards: 0, bytesUsed: 0 });
		await store.close();
	});

	test('after an error from the sync of a folder nothing in that folder is acknowledged any more', async () => {
		const folders = new Set<unknown>();
		let broken = 1;
		const files = interceptFiles((call) => {
			if (call.name === 'open' && call.args[1] === 'r') call.proceed((fd) => folders.add(fd));
			// As Linux does it: the error is told once, and the next sync says that all is well.
			else if (call.name === 'fsync' && folders.has(call.args[0]) && broken-- > 0) call.fail('EIO');
			else call.proceed();
		});
		const store = await open(newFolder(), { files });
		const outcomes = await Promise.allSettled([putShard(store, neighbour()), putShard(store, neighbour())]);
		expect(outcomes.map(({ status }) => status)).toEqual(['rejected', 'rejected']);
		await expect(putShard(store, neighbour())).rejects.toEqual(failing('unavailable'));
		// Of a name that is not there nobody knows whether it would come back.
		await expect(store.delete([neighbour().shardId])).rejects.toEqual(failing('unavailable'));
		await store.close();
	});

	test('after an error from the sync of a folder the volume is offline, until it keeps that folder again', async () => {
		const folders = new Set<unknown>();
		let isBroken = false;
		const files = interceptFiles((call) => {
			const done =
				call.name === 'open' && String(call.args[0]).endsWith('/ab') ? (fd: unknown) => folders.add(fd) : undefined;
			if (call.name === 'close') folders.delete(call.args[0]);
			if (call.name === 'fsync' && isBroken && folders.has(call.args[0])) call.fail('EIO');
			else call.proceed(done);
		});
		const clock = new ManualClock();
		const dataDir = newFolder();
		const store = await open(dataDir, { files, clock });
		const [kept, late, begun] = [neighbour(), neighbour(), neighbour()];
		await putShard(store, kept);
		const { shardId, cells } = begun;
		const writer = await store.create({ shardId, maxBytes: cells.length, deadlineMs: 100_000 });
		await new Promise((done) => writer.write(cells, done));
		isBroken = true;
		await expect(store.delete([kept.shardId])).rejects.toEqual(failing('unavailable'));
		for (let i = 0; i < 4; i++) {
			await expect(store.stats()).rejects.toEqual(failing('unavailable'));
			await expect(store.list({ after: null, limit: 10 })).rejects.toEqual(failing('unavailable'));
			await expect(store.delete([kept.shardId])).rejects.toEqual(failing('unavailable'));
			await expect(putShard(store, late)).rejects.toEqual(failing('unavailable'));
			clock.advance(5_000);
		}
		isBroken = false;
		expect(await store.stats()).toMatchObject({ shards: 0 });
		// It was begun on a folder that failed since.
		await expect(writer.commit(begun.trailer)).rejects.toEqual(failing('unavailable'));
		await store.delete([kept.shardId, begun.shardId]);
		await putShard(store, late);
		expect(await idsOf(store)).toEqual([late.shardId]);
		expect(filesUnder(join(dataDir, 'shards'))).toEqual([late.shardId]);
		await store.close();
	});

	test('a disk that takes and gives a few bytes at a time', async () => {
		const few = (args: readonly unknown[]) => args.with(3, Math.min(args[3] as number, 10_007));
		const files: FileCalls = interceptFiles((call) => call.proceed());
		const stingy = {
			...files,
			write: (...args: unknown[]) => (fs.write as unknown as (...all: unknown[]) => void)(...few(args)),
			read: (...args: unknown[]) => (fs.read as unknown as (...all: unknown[]) => void)(...few(args)),
		} as FileCalls;
		const store = await open(newFolder(), { files: stingy });
		const shard = makeShard(random, { cells: 2 });
		await putShard(store, shard);
		const range = { offset: 1, length: shard.cells.length - 1 };
		expect((await readCells(store, shard.shardId, range)).equals(shard.cells.subarray(1))).toBe(true);
		expect(await store.trailer(shard.shardId)).toEqual(shard.trailer);
		await store.close();
	});

	test.each(['ENOSPC', 'EDQUOT'])('%s while writing: exhausted, and the room comes back', async (code) => {
		let full = true;
		const files = interceptFiles((call) => {
			if (full && call.name === 'write') call.fail(code);
			else call.proceed();
		});
		const store = await open(newFolder(), { files, capacityBytes: 1_000_000 });
		const shard = makeShard(random);
		await expect(putShard(store, shard)).rejects.toEqual(failing('exhausted'));
		expect((await store.stats()).bytesFree).toBe(1_000_000);
		full = false;
		await putShard(store, shard);
		await store.close();
	});

	test('the reserve stays free', async () => {
		const volumeBytes = 1_000 * 4_096;
		const reserveBytes = 500 * 4_096;
		const files = {
			...interceptFiles((call) => call.proceed()),
			statfs: (_path: unknown, done: (error: null, stats: object) => void) =>
				setImmediate(() => done(null, { blocks: 1_000, bavail: 1_000, bsize: 4_096 })),
		} as unknown as FileCalls;
		const store = await open(newFolder(), { files, reserveBytes });
		expect(await store.stats()).toMatchObject({ bytesTotal: volumeBytes, bytesFree: volumeBytes - reserveBytes });
		const options = { shardId: newId<ShardId>(random), deadlineMs: 1_000 };
		const mostBytes = volumeBytes - reserveBytes - TRAILER_MAX_BYTES;
		await expect(store.create({ ...options, maxBytes: mostBytes + 1 })).rejects.toEqual(failing('exhausted'));
		await (await store.create({ ...options, maxBytes: mostBytes })).abort();
		await store.close();
	});

	test('a sync that outlasts the deadline: expired', async () => {
		const clock = new ManualClock();
		const files = interceptFiles((call) => {
			if (call.name === 'fsync') clock.advance(6_000);
			call.proceed();
		});
		const store = await open(newFolder(), { files, clock });
		const shard = makeShard(random);
		await expect(putShard(store, shard, { deadlineMs: 5_000 })).rejects.toEqual(failing('expired'));
		await expect(store.open(shard.shardId)).rejects.toEqual(failing('not_found'));
		await store.close();
	});

	// The abort once closed the file under the commit, whose own close then hit whatever had its number by then.
	test.each(['fsync', 'link'] as const)(
		'a delete that meets a commit in its %s: the shard is gone and every file is closed once',
		async (held) => {
			const opened: unknown[] = [];
			const closed: unknown[] = [];
			let reached = () => {};
			let answer = () => {};
			const atHeld = new Promise<void>((resolve) => {
				reached = resolve;
			});
			const files = interceptFiles((call) => {
				if (call.name === 'close') closed.push(call.args[0]);
				if (call.name === held && opened.length === 1) {
					// Done, and its answer waits for the delete to begin.
					answer = () => call.pretend();
					call.proceedInSilence(reached);
				} else {
					call.proceed((fd) => {
						if (call.name === 'open' && fd !== undefined) opened.push(fd);
					});
				}
			});
			const dataDir = newFolder();
			const store = await open(dataDir, { files });
			const shard = makeShard(random);
			const committing = Promise.allSettled([putShard(store, shard)]);
			await atHeld;
			const deleting = store.delete([shard.shardId]);
			setImmediate(() => answer());
			await Promise.all([committing, deleting]);
			await expect(store.open(shard.shardId)).rejects.toEqual(failing('not_found'));
			expect(await store.stats()).toMatchObject({ shards: 0, bytesUsed: 0 });
			expect(filesUnder(join(dataDir, 'tmp'))).toEqual([]);
			expect(closed.toSorted()).toEqual(opened.toSorted());
			await store.close();
		},
	);
});

describe('volumes', () => {
	test('a vanished mount does not answer "not found": it is offline, and unavailable', async () => {
		const dataDir = newFolder();
		const store = await open(dataDir);
		const shard = makeShard(random);
		await putShard(store, shard);
		const writer = await store.create({ shardId: newId<ShardId>(random), maxBytes: 1_000, deadlineMs: 1_000 });
		await new Promise((done) => writer.write(shard.cells, done));
		fs.renameSync(dataDir, `${dataDir}.away`);
		fs.mkdirSync(dataDir);
		await expect(store.open(shard.shardId)).rejects.toEqual(failing('unavailable'));
		await expect(store.trailer(shard.shardId)).rejects.toEqual(failing('unavailable'));
		await expect(putShard(store, makeShard(random))).rejects.toEqual(failing('unavailable'));
		await expect(writer.commit(shard.trailer)).rejects.toEqual(failing('unavailable'));
		await writer.abort();
		await expect(store.delete([shard.shardId])).rejects.toEqual(failing('unavailable'));
		await expect(store.stats()).rejects.toEqual(failing('unavailable'));
		fs.rmdirSync(dataDir);
		fs.renameSync(`${dataDir}.away`, dataDir);
		expect(await store.trailer(shard.shardId)).toEqual(shard.trailer);
		await store.close();
	});

	test('shards without a sentinel are not formatted over', async () => {
		const dataDir = newFolder();
		const store = await open(dataDir);
		await putShard(store, makeShard(random));
		await store.close();
		fs.unlinkSync(join(dataDir, 'volume.json'));
		await expect(open(dataDir)).rejects.toEqual(failing('unavailable'));
	});

	test('a formatting that was cut off is done again', async () => {
		const dataDir = newFolder();
		fs.mkdirSync(join(dataDir, 'shards', '00'), { recursive: true });
		const store = await open(dataDir);
		await putShard(store, makeShard(random));
		await store.close();
	});

	test('another worker’s volume, and another format, are refused', async () => {
		const dataDir = newFolder();
		await (await open(dataDir)).close();
		await expect(open(dataDir, { workerId: newId<WorkerId>(random) })).rejects.toEqual(failing('conflict'));
		const sentinel = join(dataDir, 'volume.json');
		fs.writeFileSync(sentinel, JSON.stringify({ version: 2, workerId }));
		await expect(open(dataDir)).rejects.toMatchObject({
			kind: 'unsupported',
			message: `${sentinel} was written by a newer release (version 2, this one knows 1): run that release`,
		});
		for (const text of ['', '{"version": 1', 'null', '{}', '{"version": "1"}']) {
			fs.writeFileSync(sentinel, text);
			await expect(open(dataDir)).rejects.toEqual(failing('corrupt'));
			expect(fs.readFileSync(sentinel, 'utf8')).toBe(text);
		}
	});

	test('damaged files: corrupt', async () => {
		const dataDir = newFolder();
		const store = await open(dataDir);
		const [short, flipped, empty] = [makeShard(random), makeShard(random), makeShard(random)];
		for (const shard of [short, flipped, empty]) await putShard(store, shard);
		const file = ({ shardId }: MadeShard) => join(dataDir, 'shards', shardId.slice(0, 2), shardId);
		fs.truncateSync(file(short), 4_096);
		fs.truncateSync(file(empty), 0);
		const bytes = fs.readFileSync(file(flipped));
		bytes[bytes.length - 100] = (bytes.at(-100) as number) ^ 1;
		fs.writeFileSync(file(flipped), bytes);
		for (const { shardId } of [short, flipped, empty])
			await expect(store.trailer(shardId)).rejects.toEqual(failing('corrupt'));
		await expect(readCells(store, empty.shardId, { offset: 0, length: 1 })).rejects.toEqual(failing('corrupt'));
		await store.close();
	});

	test('trash goes before its time when its room is needed, oldest first, and counts as room', async () => {
		const dataDir = newFolder();
		// A disk of 3 MiB: what is in shards/, tmp/ and trash/ is what is used.
		const diskBytes = 3 * 1024 * 1024;
		const files = interceptFiles((call) => call.proceed());
		const usedBytes = () =>
			['shards', 'tmp', 'trash'].reduce((sum, folder) => {
				const entries = fs.readdirSync(join(dataDir, folder), { withFileTypes: true, recursive: true });
				const sizes = entries
					.filter((entry) => entry.isFile())
					.map((entry) => fs.statSync(join(entry.parentPath, entry.name)).size);
				return sum + sizes.reduce((a, b) => a + b, 0);
			}, 0);
		files.statfs = ((_path: string, done: (error: null, stats: object) => void) => {
			setImmediate(() => done(null, { blocks: diskBytes, bsize: 1, bavail: diskBytes - usedBytes() }));
		}) as typeof files.statfs;
		const clock = new ManualClock();
		const store = await open(dataDir, { files, clock });
		const old = makeShard(random, { cells: 12 });
		const young = makeShard(random, { cells: 12 });
		await putShard(store, old);
		await store.delete([old.shardId]);
		clock.advance(24 * 60 * 60_000);
		await putShard(store, young);
		await store.delete([young.shardId]);
		// All of it is trash by now, and none of it is in the way.
		expect((await store.stats()).bytesFree).toBe(diskBytes);
		const kept: MadeShard[] = [];
		for (let i = 0; i < 3; i++) {
			const shard = makeShard(random, { cells: 11 });
			await putShard(store, shard);
			kept.push(shard);
		}
		expect(filesUnder(join(dataDir, 'trash'))).not.toContain(old.shardId);
		await expect(putShard(store, makeShard(random, { cells: 16 }))).rejects.toEqual(failing('exhausted'));
		for (const { shardId, cells } of kept) {
			expect((await readCells(store, shardId, { offset: 0, length: cells.length })).equals(cells)).toBe(true);
		}
		await store.close();
	});

	test('what people keep in the trash folder stays', async () => {
		const dataDir = newFolder();
		await (await open(dataDir)).close();
		fs.mkdirSync(join(dataDir, 'trash', 'mine'));
		fs.mkdirSync(join(dataDir, 'trash', '2001-01-01'));
		await (await open(dataDir)).close();
		expect(fs.readdirSync(join(dataDir, 'trash'))).toEqual(['mine']);
	});
});

describe('the list', () => {
	test('a file whose time can’t be read counts as written now, and is listed', async () => {
		const clock = new ManualClock();
		const shard = neighbour();
		const files: FileCalls = {
			...fs,
			stat: ((path: string, done: (error: Error | null, stats?: fs.Stats) => void) =>
				path.endsWith(shard.shardId) ? setImmediate(done, new Error('EIO')) : fs.stat(path, done)) as typeof fs.stat,
		};
		const store = await open(newFolder(), { clock, files });
		await putShard(store, shard);
		clock.advance(5_000);
		const listed = await store.list({ after: null, limit: 10 });
		expect(listed).toEqual([{ shardId: shard.shardId, writtenAtMs: clock.nowMs() }]);
		await store.close();
	});

	test('a mount that vanishes while the list is made: unavailable, and not a shorter list', async () => {
		const dataDir = newFolder();
		let isVanishing = false;
		const files: FileCalls = {
			...fs,
			readdir: ((path: string, done: (error: Error | null, names: string[]) => void) => {
				if (isVanishing && path.endsWith('/ab')) {
					fs.rmSync(join(dataDir, 'volume.json'));
					setImmediate(done, null, []);
				} else fs.readdir(path, done);
			}) as typeof fs.readdir,
		};
		const store = await open(dataDir, { files });
		await putShard(store, neighbour());
		isVanishing = true;
		await expect(store.list({ after: null, limit: 10 })).rejects.toEqual(failing('unavailable'));
	});
});

describe('folders of shards that somebody removed', () => {
	test.each([
		['one', (dataDir: string) => fs.rmSync(join(dataDir, 'shards', 'ab'), { recursive: true })],
		['all of them', (dataDir: string) => fs.rmSync(join(dataDir, 'shards'), { recursive: true })],
	])('%s: its shards are not found, the others are, and new ones are taken', async (_what, remove) => {
		const dataDir = newFolder();
		const store = await open(dataDir);
		const [lost, added, other] = [neighbour(), neighbour(), makeShard(random)];
		await putShard(store, lost);
		remove(dataDir);
		await expect(store.open(lost.shardId)).rejects.toEqual(failing('not_found'));
		expect(await idsOf(store)).toEqual([]);
		await putShard(store, added);
		await putShard(store, other);
		await store.delete([lost.shardId]);
		expect(await idsOf(store)).toEqual([added.shardId, other.shardId].sort());
		await store.close();
		remove(dataDir);
		const again = await open(dataDir);
		await putShard(again, lost);
		expect(await idsOf(again)).toContain(lost.shardId);
		await again.close();
	});

	test('what was in it is deleted all the same', async () => {
		const dataDir = newFolder();
		const store = await open(dataDir);
		fs.rmSync(join(dataDir, 'shards', 'ab'), { recursive: true });
		await store.delete([neighbour().shardId]);
		await store.close();
	});

	test('where nothing is mounted any more none are made', async () => {
		const dataDir = newFolder();
		const store = await open(dataDir);
		const writing = neighbour();
		const putting = putShard(store, writing, {
			beforeCommit: () => {
				fs.rmSync(join(dataDir, 'volume.json'));
				fs.rmSync(join(dataDir, 'shards'), { recursive: true });
			},
		});
		await expect(putting).rejects.toEqual(failing('unavailable'));
		expect(fs.existsSync(join(dataDir, 'shards'))).toBe(false);
		await store.close();
	});
});

describe('reading past the page cache', () => {
	const isDirect = (flags: unknown) => (Number(flags) & (fs.constants.O_DIRECT ?? 0)) !== 0;

	test.each(['open', 'read'] as const)(
		'a file system that can not (%s fails) gives the bytes all the same',
		async (failingCall) => {
			let refused = 0;
			let direct = 0;
			const files = interceptFiles((call) => {
				if (call.name === 'open' && isDirect(call.args[1])) {
					direct++;
					if (failingCall === 'open') {
						refused++;
						return call.fail('EINVAL');
					}
				}
				if (call.name === 'read' && failingCall === 'read' && refused === 0) {
					refused++;
					return call.fail('EINVAL');
				}
				call.proceed();
			});
			const store = await open(newFolder(), { files });
			const shard = makeShard(random, { lastCellBytes: SMALL_CELL_BYTES });
			await putShard(store, shard);
			const reader = await store.open(shard.shardId, { direct: true });
			const buffer = alignedBuffer(SMALL_CELL_BYTES);
			expect(await new Promise((done) => reader.read(0, buffer, done))).toBeNull();
			expect(buffer.equals(shard.cells)).toBe(true);
			expect([direct, refused]).toEqual([1, 1]);
			reader.close();
			await store.close();
		},
	);
});

test('a file whose name can be read and nothing else is corrupt', async () => {
	let broken = false;
	const files = interceptFiles((call) => {
		if (broken && call.name === 'open') call.fail('EIO');
		else call.proceed();
	});
	const store = await open(newFolder(), { files });
	const shard = makeShard(random);
	await putShard(store, shard);
	broken = true;
	await expect(store.open(shard.shardId)).rejects.toEqual(failing('corrupt'));
	await expect(store.trailer(shard.shardId)).rejects.toEqual(failing('corrupt'));
	await store.close();
});
