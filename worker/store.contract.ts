/**
 * What every ShardStore must do. `open` opens an empty volume with room for `roomBytes`. What one adapter alone promises
 * (crash points, failing disks) is tested beside that adapter.
 */

import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { trailerOffset } from '../core/codec/trailer.ts';
import type { ErrorKind } from '../core/errors.ts';
import { newId, type ShardId } from '../core/ids.ts';
import { SMALL_CELL_BYTES, TRAILER_MAX_BYTES } from '../core/limits.ts';
import { alignedBuffer } from '../platform/memory-pool.ts';
import { ManualClock, seededRandom } from '../test/support/clock.ts';
import { until } from '../test/support/cluster.ts';
import { makeShard, putShard, readCells } from './store.fixtures.ts';
import type { ShardStore } from './store.ts';

const HOUR_MS = 60 * 60_000;
const DAY_MS = 24 * HOUR_MS;

export interface OpenedShardStore {
	readonly store: ShardStore;
	/** Closes it and opens the same volume again. */
	reopen(): Promise<ShardStore>;
	/** By the clock that says when a shard was written. */
	nowMs(): number;
	/** Takes the sentinel away, or puts it back. */
	setOnline(online: boolean): void;
	/** What lies in the trash. */
	trashed(): readonly ShardId[];
	/** Leftovers of writes: must be none when nothing is written. */
	temporary(): number;
	/** Removes everything. */
	dispose(): Promise<void>;
}

export function describeShardStore(
	name: string,
	open: (options: { clock: ManualClock; roomBytes: number; trashKeepMs: number }) => Promise<OpenedShardStore>,
): void {
	describe(`ShardStore: ${name}`, () => {
		const random = seededRandom('shard store');
		const roomBytes = 4 * 1024 * 1024;
		const trashKeepMs = 7 * DAY_MS;
		let clock: ManualClock;
		let opened: OpenedShardStore;
		let store: ShardStore;

		beforeEach(async () => {
			clock = new ManualClock();
			opened = await open({ clock, roomBytes, trashKeepMs });
			store = opened.store;
		});
		afterEach(() => opened.dispose());

		const all = async () => {
			const listed = await store.list({ after: null, limit: 1_000 });
			return listed.map(({ shardId }) => shardId);
		};
		const failing = (kind: ErrorKind) => expect.objectContaining({ name: 'DistroError', kind });
		const isMissing = (shardId: ShardId) =>
			Promise.all([
				expect(store.open(shardId)).rejects.toEqual(failing('not_found')),
				expect(store.trailer(shardId)).rejects.toEqual(failing('not_found')),
			]);
		const isWhole = async (shard: ReturnType<typeof makeShard>) => {
			expect(await store.trailer(shard.shardId)).toEqual(shard.trailer);
			const range = { offset: 0, length: shard.cells.length };
			expect((await readCells(store, shard.shardId, range)).equals(shard.cells)).toBe(true);
		};

		describe('put', () => {
			test('what was committed is read, whole and by ranges, also after opening again', async () => {
				const shards = [
					makeShard(random, { lastCellBytes: 16 }),
					makeShard(random, { cells: 3, lastCellBytes: SMALL_CELL_BYTES }),
					makeShard(random, { cells: 5, lastCellBytes: 4_096 }),
				];
				for (const shard of shards) await putShard(store, shard, { pieceBytes: 50_001 });
				for (let round = 0; round < 2; round++) {
					for (const shard of shards) {
						await isWhole(shard);
						const range = { offset: Math.floor(shard.cells.length / 3), length: Math.ceil(shard.cells.length / 3) };
						const expected = shard.cells.subarray(range.offset, range.offset + range.length);
						expect((await readCells(store, shard.shardId, range)).equals(expected)).toBe(true);
					}
					expect(await all()).toEqual(shards.map(({ shardId }) => shardId).sort());
					expect(opened.temporary()).toBe(0);
					store = await opened.reopen();
				}
			});

			test('nothing is there before the commit', async () => {
				const shard = makeShard(random);
				await putShard(store, shard, {
					beforeCommit: () => {
						expect(opened.temporary()).toBe(1);
					},
				});
				const other = makeShard(random);
				const writer = await store.create({ shardId: other.shardId, maxBytes: 1_000, deadlineMs: 1_000 });
				await isMissing(other.shardId);
				expect(await all()).toEqual([shard.shardId]);
				await writer.abort();
			});

			test('writes that were under way when the store was closed are gone', async () => {
				const shard = makeShard(random);
				const writer = await store.create({ shardId: shard.shardId, maxBytes: shard.cells.length, deadlineMs: 1_000 });
				await new Promise((done) => writer.write(shard.cells, done));
				store = await opened.reopen();
				await isMissing(shard.shardId);
				expect(opened.temporary()).toBe(0);
				await putShard(store, shard);
				await isWhole(shard);
			});

			test('an id is taken while it is written, and afterwards', async () => {
				const shard = makeShard(random);
				const impostor = makeShard(random, { shardId: shard.shardId });
				const options = { shardId: shard.shardId, maxBytes: shard.cells.length, deadlineMs: 1_000 };
				const writer = await store.create(options);
				await expect(store.create(options)).rejects.toEqual(failing('exists'));
				await new Promise((done) => writer.write(shard.cells, done));
				await writer.commit(shard.trailer);
				await expect(putShard(store, impostor)).rejects.toEqual(failing('exists'));
				await isWhole(shard);
				expect(opened.temporary()).toBe(0);
			});

			test('two creates of one id at once: one of them', async () => {
				const options = { shardId: newId<ShardId>(random), maxBytes: 1_000, deadlineMs: 1_000 };
				const outcomes = await Promise.allSettled([store.create(options), store.create(options)]);
				expect(outcomes.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
			});

			test('after the deadline: expired, and nothing is there', async () => {
				const shard = makeShard(random);
				const late = putShard(store, shard, { deadlineMs: 5_000, beforeCommit: () => clock.advance(5_001) });
				await expect(late).rejects.toEqual(failing('expired'));
				await isMissing(shard.shardId);
				expect(await all()).toEqual([]);
				expect(opened.temporary()).toBe(0);
				await putShard(store, shard, { deadlineMs: 5_000, beforeCommit: () => clock.advance(4_999) });
				await isWhole(shard);
			});

			test('abort takes everything away, twice as well as once', async () => {
				const shard = makeShard(random);
				const before = await store.stats();
				const writer = await store.create({ shardId: shard.shardId, maxBytes: shard.cells.length, deadlineMs: 1_000 });
				await new Promise((done) => writer.write(shard.cells, done));
				await Promise.all([writer.abort(), writer.abort()]);
				await writer.abort();
				await isMissing(shard.shardId);
				expect(opened.temporary()).toBe(0);
				expect(await store.stats()).toEqual(before);
				await expect(writer.commit(shard.trailer)).rejects.toEqual(failing('canceled'));
				expect(await new Promise((done) => writer.write(shard.cells, done))).toEqual(failing('canceled'));
				await isMissing(shard.shardId);
				await putShard(store, shard);
				await isWhole(shard);
			});

			test('an abort that meets a write waits for it', async () => {
				const shard = makeShard(random, { cells: 4 });
				const writer = await store.create({ shardId: shard.shardId, maxBytes: shard.cells.length, deadlineMs: 1_000 });
				let told = 0;
				writer.write(shard.cells, () => {
					told++;
				});
				await writer.abort();
				expect(told).toBe(1);
				expect(opened.temporary()).toBe(0);
			});

			test('abort after a commit changes nothing', async () => {
				const shard = makeShard(random);
				const writer = await store.create({ shardId: shard.shardId, maxBytes: shard.cells.length, deadlineMs: 1_000 });
				await new Promise((done) => writer.write(shard.cells, done));
				await writer.commit(shard.trailer);
				const stats = await store.stats();
				await writer.abort();
				await expect(writer.commit(shard.trailer)).rejects.toEqual(failing('canceled'));
				await isWhole(shard);
				expect(await store.stats()).toEqual(stats);
			});
		});

		describe('room', () => {
			test('figures follow what is stored', async () => {
				const empty = await store.stats();
				expect(empty).toMatchObject({ bytesUsed: 0, shards: 0, bytesFree: roomBytes });
				const shard = makeShard(random, { cells: 3 });
				await putShard(store, shard);
				const fileBytes = trailerOffset(shard.cells.length) + shard.trailer.length;
				const full = { bytesUsed: fileBytes, shards: 1, bytesFree: roomBytes - fileBytes };
				expect(await store.stats()).toMatchObject(full);
				store = await opened.reopen();
				expect(await store.stats()).toMatchObject(full);
				await store.delete([shard.shardId]);
				expect(await store.stats()).toEqual(empty);
			});

			test('what open writers were promised is not promised again', async () => {
				const maxBytes = trailerOffset(roomBytes / 2 - TRAILER_MAX_BYTES);
				const options = () => ({ shardId: newId<ShardId>(random), maxBytes, deadlineMs: 1_000 });
				const first = await store.create(options());
				const second = await store.create(options());
				expect((await store.stats()).bytesFree).toBe(0);
				await expect(store.create({ ...options(), maxBytes: 1 })).rejects.toEqual(failing('exhausted'));
				await first.abort();
				await (await store.create(options())).abort();
				await second.abort();
				expect((await store.stats()).bytesFree).toBe(roomBytes);
			});

			test('a volume that is full refuses, and takes shards again when some are deleted', async () => {
				const shards = Array.from({ length: 60 }, () => makeShard(random, { cells: 2, lastCellBytes: 60_000 }));
				const kept: typeof shards = [];
				let refused = 0;
				for (const shard of shards) {
					await putShard(store, shard).then(
						() => kept.push(shard),
						(error) => {
							expect(error).toEqual(failing('exhausted'));
							refused++;
						},
					);
				}
				expect(refused).toBeGreaterThan(0);
				expect(kept.length).toBeGreaterThan(10);
				for (const shard of kept) await isWhole(shard);
				expect(opened.temporary()).toBe(0);
				await store.delete(kept.slice(0, 2).map(({ shardId }) => shardId));
				await putShard(store, makeShard(random, { cells: 2 }));
			});
		});

		describe('read', () => {
			test('unknown ids are not found', () => isMissing(newId<ShardId>(random)));

			test('bytes behind the end are corrupt, not made up', async () => {
				const shard = makeShard(random);
				await putShard(store, shard);
				const range = { offset: 0, length: trailerOffset(shard.cells.length) + shard.trailer.length + 1 };
				await expect(readCells(store, shard.shardId, range)).rejects.toEqual(failing('corrupt'));
				await expect(readCells(store, shard.shardId, { offset: 1_000_000, length: 1 })).rejects.toEqual(
					failing('corrupt'),
				);
			});
		});

		describe('read past what the system remembers', () => {
			const buffer = alignedBuffer(SMALL_CELL_BYTES);
			const readCell = async (shardId: ShardId, cell: number) => {
				const reader = await store.open(shardId, { direct: true });
				try {
					return await new Promise<Error | null>((done) => reader.read(cell * SMALL_CELL_BYTES, buffer, done));
				} finally {
					reader.close();
				}
			};

			test('gives the same bytes', async () => {
				const shard = makeShard(random, { cells: 3, lastCellBytes: SMALL_CELL_BYTES });
				await putShard(store, shard);
				for (const cell of [2, 0, 1]) {
					buffer.fill(0);
					expect(await readCell(shard.shardId, cell)).toBeNull();
					const expected = shard.cells.subarray(cell * SMALL_CELL_BYTES, (cell + 1) * SMALL_CELL_BYTES);
					expect(buffer.equals(expected)).toBe(true);
				}
			});

			test('bytes behind the end are corrupt, and what is not there is not found', async () => {
				const shard = makeShard(random, { cells: 2, lastCellBytes: 500 });
				await putShard(store, shard);
				expect(await readCell(shard.shardId, 0)).toBeNull();
				expect(await readCell(shard.shardId, 1)).toEqual(failing('corrupt'));
				expect(await readCell(shard.shardId, 9)).toEqual(failing('corrupt'));
				const unknown = newId<ShardId>(random);
				await expect(store.open(unknown, { direct: true })).rejects.toEqual(failing('not_found'));
				opened.setOnline(false);
				await expect(store.open(unknown, { direct: true })).rejects.toEqual(failing('unavailable'));
				opened.setOnline(true);
			});
		});

		test.each(['scrub', 'keys'] as const)(
			'the record %s: the last one, also after opening again, and none while the volume is offline',
			async (name) => {
				const other = name === 'scrub' ? 'keys' : 'scrub';
				expect(await store.loadRecord(name)).toBeNull();
				await store.saveRecord(name, Buffer.from('one'));
				await store.saveRecord(name, Buffer.from('two, longer'));
				await store.saveRecord(other, Buffer.from('other'));
				await store.saveRecord(name, Buffer.from('three'));
				expect((await store.loadRecord(name))?.toString()).toBe('three');
				store = await opened.reopen();
				expect((await store.loadRecord(name))?.toString()).toBe('three');
				expect((await store.loadRecord(other))?.toString()).toBe('other');
				opened.setOnline(false);
				await expect(store.loadRecord(name)).rejects.toEqual(failing('unavailable'));
				await expect(store.saveRecord(name, Buffer.from('four'))).rejects.toEqual(failing('unavailable'));
				opened.setOnline(true);
				expect((await store.loadRecord(name))?.toString()).toBe('three');
				expect(await all()).toEqual([]);
			},
		);

		describe('delete', () => {
			test('moves to the trash, for its time', async () => {
				const [gone, kept] = [makeShard(random), makeShard(random)];
				await putShard(store, gone);
				await putShard(store, kept);
				await store.delete([gone.shardId, newId<ShardId>(random)]);
				await isMissing(gone.shardId);
				await isWhole(kept);
				expect(await all()).toEqual([kept.shardId]);
				expect(opened.trashed()).toEqual([gone.shardId]);
				await store.delete([gone.shardId]);
				expect(opened.trashed()).toEqual([gone.shardId]);
				clock.advance(trashKeepMs - HOUR_MS);
				store = await opened.reopen();
				await isMissing(gone.shardId);
				expect(opened.trashed()).toEqual([gone.shardId]);
				const emptied = () => {
					clock.advance(HOUR_MS);
					return opened.trashed().length === 0;
				};
				await until(emptied, { what: 'the trash to be emptied' });
				await isWhole(kept);
			});

			test('for good: gone at once, and not in the trash; asked again it is the same', async () => {
				const [gone, softly, kept] = [makeShard(random), makeShard(random), makeShard(random)];
				for (const shard of [gone, softly, kept]) await putShard(store, shard);
				await store.delete([softly.shardId]);
				for (let round = 0; round < 2; round++) {
					await store.delete([gone.shardId, newId<ShardId>(random)], { forGood: true });
					await isMissing(gone.shardId);
					expect(await all()).toEqual([kept.shardId]);
					expect(opened.trashed()).toEqual([softly.shardId]);
					expect((await store.stats()).shards).toBe(1);
					store = await opened.reopen();
				}
				await isWhole(kept);
			});

			test('nothing at all is fine', async () => {
				await store.delete([]);
				await store.delete([], { forGood: true });
			});

			test.each([false, true])('a put that comes after its delete (for good: %j) is refused', async (forGood) => {
				const late = makeShard(random);
				await store.delete([late.shardId], { forGood });
				await expect(putShard(store, late)).rejects.toEqual(failing('expired'));
				expect(await all()).toEqual([]);
				expect(opened.temporary()).toBe(0);
			});

			test.each([false, true])('an id that is being written never arrives (for good: %j)', async (forGood) => {
				const shard = makeShard(random);
				const writer = await store.create({ shardId: shard.shardId, maxBytes: shard.cells.length, deadlineMs: 1_000 });
				await new Promise((done) => writer.write(shard.cells, done));
				await store.delete([shard.shardId], { forGood });
				await expect(writer.commit(shard.trailer)).rejects.toEqual(failing('canceled'));
				await writer.abort();
				await isMissing(shard.shardId);
				expect(opened.temporary()).toBe(0);
				expect((await store.stats()).bytesFree).toBe(roomBytes);
			});

			test('an id whose commit is under way is gone when both are over', async () => {
				const shards = Array.from({ length: 20 }, () => makeShard(random));
				await Promise.all(
					shards.map(async (shard) => {
						const { shardId, cells } = shard;
						const writer = await store.create({ shardId, maxBytes: cells.length, deadlineMs: 1_000 });
						await new Promise((done) => writer.write(cells, done));
						const forGood = shardId < '8';
						await Promise.allSettled([writer.commit(shard.trailer), store.delete([shardId], { forGood })]);
						await writer.abort();
					}),
				);
				expect(await all()).toEqual([]);
				expect(opened.temporary()).toBe(0);
				expect(await store.stats()).toMatchObject({ bytesUsed: 0, shards: 0, bytesFree: roomBytes });
			});

			test('a reader that has the shard open reads on', async () => {
				const shard = makeShard(random);
				await putShard(store, shard);
				const reader = await store.open(shard.shardId);
				await store.delete([shard.shardId]);
				const into = Buffer.alloc(shard.cells.length);
				expect(await new Promise((done) => reader.read(0, into, done))).toBeNull();
				expect(into.equals(shard.cells)).toBe(true);
				reader.close();
			});
		});

		test('list goes page by page in order of ids', async () => {
			const shards = Array.from({ length: 23 }, () => makeShard(random));
			for (const shard of shards) await putShard(store, shard);
			const expected = shards.map(({ shardId }) => shardId).sort();
			const found: ShardId[] = [];
			for (;;) {
				const page = await store.list({ after: found.at(-1) ?? null, limit: 5 });
				if (page.length === 0) break;
				expect(page.length).toBeLessThanOrEqual(5);
				found.push(...page.map(({ shardId }) => shardId));
			}
			expect(found).toEqual(expected);
		});

		test('list says when each was written, also after opening again', async () => {
			const startMs = opened.nowMs();
			const [early, late] = [makeShard(random), makeShard(random)];
			await putShard(store, early);
			const betweenMs = opened.nowMs();
			clock.advance(2_000);
			await until(() => opened.nowMs() > betweenMs + 1, { what: 'time to pass' });
			const laterMs = opened.nowMs();
			await putShard(store, late);
			const endMs = opened.nowMs();
			for (let round = 0; round < 2; round++) {
				const listed = await store.list({ after: null, limit: 10 });
				const writtenAtMs = new Map(listed.map((shard) => [shard.shardId, shard.writtenAtMs]));
				expect(writtenAtMs.get(early.shardId)).toBeGreaterThanOrEqual(startMs);
				expect(writtenAtMs.get(early.shardId)).toBeLessThanOrEqual(betweenMs);
				expect(writtenAtMs.get(late.shardId)).toBeGreaterThanOrEqual(laterMs);
				expect(writtenAtMs.get(late.shardId)).toBeLessThanOrEqual(endMs);
				store = await opened.reopen();
			}
		});

		test('an offline volume answers unavailable to everything, and never not_found', async () => {
			const shard = makeShard(random);
			await putShard(store, shard);
			opened.setOnline(false);
			const unknown = newId<ShardId>(random);
			const offline = failing('unavailable');
			await expect(store.open(unknown)).rejects.toEqual(offline);
			await expect(store.trailer(unknown)).rejects.toEqual(offline);
			await expect(store.create({ shardId: unknown, maxBytes: 1, deadlineMs: 1_000 })).rejects.toEqual(offline);
			await expect(store.delete([shard.shardId])).rejects.toEqual(offline);
			await expect(store.list({ after: null, limit: 1 })).rejects.toEqual(offline);
			await expect(store.stats()).rejects.toEqual(offline);
			opened.setOnline(true);
			await isWhole(shard);
			await isMissing(unknown);
		});
	});
}
