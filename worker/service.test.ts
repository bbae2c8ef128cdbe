/** The shard service above a volume: what it takes, what it refuses, and that it always gives its memory back. */

import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { encodeTrailer, type Trailer, trailerOffset } from '../core/codec/trailer.ts';
import { auditFault } from '../core/crypto/audit.ts';
import { rootOf } from '../core/crypto/digest.ts';
import { newSigningKey, publicKeyFromRaw, rawPublicKey, verifyReceipt } from '../core/crypto/sign.ts';
import { asDistroError, DistroError, type ErrorKind } from '../core/errors.ts';
import { newId, type ShardId, type WorkerId } from '../core/ids.ts';
import { SEGMENT_CELLS, SMALL_CELL_BYTES } from '../core/limits.ts';
import type { Receipt } from '../core/model/receipt.ts';
import type { ShardGetRequest, ShardPutRequest } from '../core/ports.ts';
import { ArenaPool } from '../platform/memory-pool.ts';
import type { IncomingShard, OutgoingShard, ShardHandlers } from '../platform/shard-server.ts';
import { ManualClock, realClock, seededRandom } from '../test/support/clock.ts';
import { until } from '../test/support/cluster.ts';
import { shardHandlers } from './service.ts';
import { type MadeShard, makeShard } from './store.fixtures.ts';
import type { ShardWriter } from './store.ts';
import { openDiskStore } from './store-disk.ts';
import { MemoryShardStore, MemoryVolume } from './store-memory.ts';

const random = seededRandom('service');
const NO_KEYS = { read: async () => Buffer.alloc(0), write: async () => {} };

test('a put that passes its deadline gives its memory, its room and its file back', async () => {
	const dataDir = mkdtempSync(join(tmpdir(), 'distro-service-'));
	const workerId = newId<WorkerId>(random);
	const store = await openDiskStore({ dataDir, workerId, clock: realClock, reserveBytes: 0 });
	const pool = new ArenaPool(4 * 1024 * 1024, { clock: realClock });
	const handlers = shardHandlers({
		workerId,
		store,
		keys: NO_KEYS,
		pool,
		clock: realClock,
		receiptKey: newSigningKey(),
		authorize: () => {},
		onBytes: () => {},
	});
	const error = await new Promise<DistroError>((failed) => {
		const request = { shardId: newId<ShardId>(random), cellBytes: SMALL_CELL_BYTES, maxBytes: 1000, deadlineMs: 100 };
		const shard = handlers.put(request, {
			accepted: () => {
				expect(pool.usedBytes).toBeGreaterThan(0);
				shard.bytes(Buffer.alloc(10));
			},
			resume: () => {},
			failed,
		});
	});
	expect(error.kind).toBe('expired');
	expect(pool.usedBytes).toBe(0);
	await expect.poll(() => readdirSync(join(dataDir, 'tmp'))).toEqual([]);
	await store.close();
	rmSync(dataDir, { recursive: true, force: true });
});

describe('above a volume in memory', () => {
	const MiB = 1024 * 1024;
	const workerId = newId<WorkerId>(random);
	const receiptKey = newSigningKey();
	let clock: ManualClock;
	let volume: MemoryVolume;
	let store: MemoryShardStore;
	let pool: ArenaPool;
	let handlers: ShardHandlers;
	let moved: Record<'in' | 'out', number>;

	beforeEach(() => {
		clock = new ManualClock();
		volume = new MemoryVolume();
		store = new MemoryShardStore({ volume, clock, capacityBytes: 64 * MiB, reserveBytes: 0 });
		pool = new ArenaPool(2 * MiB, { clock });
		moved = { in: 0, out: 0 };
		handlers = shardHandlers({
			workerId,
			store,
			keys: NO_KEYS,
			pool,
			clock,
			receiptKey,
			authorize: () => {},
			onBytes: (direction, bytes) => {
				moved[direction] += bytes;
			},
		});
	});
	// Whatever a test did: nothing is kept for a transfer that is over.
	afterEach(async () => {
		await until(() => pool.usedBytes === 0 && pool.waiting === 0, { what: 'all memory to come back' });
		await until(() => volume.temporary.size === 0, { what: 'all temporary shards to go' });
		await store.close();
	});

	test('trailers of many shards: as many as one answer holds, and what is wrong with the others', async () => {
		const shards = Array.from({ length: 100 }, () => makeShard(random));
		const [first, second] = shards as [MadeShard, MadeShard];
		for (const made of shards) {
			// As large as trailers get, or nearly.
			const trailer = encodeTrailer({ ...made.parts, recovery: random.bytes(32_000) });
			volume.shards.set(made.shardId, Buffer.concat([made.cells, trailer]));
		}
		const rotten = volume.shards.get(second.shardId) as Buffer;
		rotten[rotten.length - 1] = (rotten[rotten.length - 1] as number) ^ 1;
		const ids = [newId<ShardId>(random), ...shards.map(({ shardId }) => shardId)];
		const found: (Buffer | ErrorKind)[] = [];
		while (found.length < ids.length) {
			const answers = await handlers.trailers(ids.slice(found.length));
			expect(answers.length).toBeGreaterThan(0);
			expect(answers.reduce((bytes, answer) => bytes + answer.length, 0)).toBeLessThan(MiB);
			found.push(...answers);
		}
		expect(found.slice(0, 3)).toEqual(['not_found', await store.trailer(first.shardId), 'corrupt']);
		expect(found.filter((answer) => typeof answer !== 'string')).toHaveLength(99);
		volume.online = false;
		expect(await handlers.trailers([first.shardId, newId<ShardId>(random)])).toEqual(['unavailable', 'unavailable']);
		await expect(handlers.list({ after: null, limit: 10 })).rejects.toMatchObject({ kind: 'unavailable' });
	});

	/** A put as the shard server drives it: waits where it is told to, aborts what fails. */
	class Put {
		failure: DistroError | null = null;
		accepted = false;
		readonly shard: IncomingShard;
		#resume = () => {};

		constructor(request: ShardPutRequest) {
			this.shard = handlers.put(request, {
				accepted: () => {
					this.accepted = true;
				},
				resume: () => this.#resume(),
				failed: (error) => {
					this.failure = error;
					this.#resume();
				},
			});
		}

		async send(bytes: Buffer, pieceBytes = 16_384): Promise<void> {
			for (let at = 0; at < bytes.length && this.failure === null; at += pieceBytes) {
				const resumed = new Promise<void>((resolve) => {
					this.#resume = resolve;
				});
				if (!this.shard.bytes(bytes.subarray(at, at + pieceBytes))) await resumed;
			}
		}

		async finish(trailer: Buffer): Promise<Receipt | DistroError> {
			try {
				return await this.shard.finish(trailer);
			} catch (error) {
				this.shard.abort('it failed');
				return asDistroError(error);
			}
		}
	}

	const requestOf = (made: MadeShard, change: Partial<ShardPutRequest> = {}): ShardPutRequest => ({
		shardId: made.shardId,
		cellBytes: SMALL_CELL_BYTES,
		maxBytes: made.cells.length,
		deadlineMs: 60_000,
		...change,
	});

	async function put(
		made: MadeShard,
		o: { bytes?: Buffer; trailer?: Buffer; pieceBytes?: number; request?: Partial<ShardPutRequest> } = {},
	): Promise<Receipt | DistroError> {
		const putting = new Put(requestOf(made, o.request));
		await putting.send(o.bytes ?? made.cells, o.pieceBytes);
		if (putting.failure !== null) return putting.failure;
		return putting.finish(o.trailer ?? made.trailer);
	}

	async function expectRefused(made: MadeShard, kind: ErrorKind, o: Parameters<typeof put>[1]): Promise<void> {
		expect(await put(made, o)).toMatchObject({ name: 'DistroError', kind });
		expect(volume.shards.size).toBe(0);
		await until(() => pool.usedBytes === 0, { what: 'the memory to come back' });
		// Nothing of it stands in the way of the right one.
		expect(await put(made)).not.toBeInstanceOf(DistroError);
	}

	const lied = (made: MadeShard, change: Partial<Trailer>, description: Partial<Trailer['description']> = {}) =>
		encodeTrailer({ ...made.parts, ...change, description: { ...made.parts.description, ...description } });

	test.each([
		['one byte of a cell', 1, 16, 16_384],
		['one cell, byte by byte', 1, 1_000, 1],
		['cells that end with a piece', 3, SMALL_CELL_BYTES, SMALL_CELL_BYTES],
		['more than the buffers hold, in odd pieces', 40, 777, 50_001],
	])('%s: stored as it came, with a receipt that holds', async (_what, cells, lastCellBytes, pieceBytes) => {
		const made = makeShard(random, { cells, lastCellBytes });
		const receipt = (await put(made, { pieceBytes })) as Receipt;
		expect(receipt).toMatchObject({
			workerId,
			shardId: made.shardId,
			root: made.parts.root,
			cellsBytes: made.cells.length,
			timeMs: clock.nowMs(),
		});
		expect(verifyReceipt(receipt, publicKeyFromRaw(rawPublicKey(receiptKey)))).toBe(true);
		expect(volume.shards.get(made.shardId)?.subarray(0, made.cells.length).equals(made.cells)).toBe(true);
		expect(await handlers.stat(made.shardId)).toEqual(made.trailer);
		expect(moved.in).toBe(made.cells.length);
	});

	test('a trailer that does not fit the bytes is refused, and nothing is kept', async () => {
		const made = makeShard(random, { cells: 3, lastCellBytes: 5_000 });
		const flipped = Buffer.from(made.cells);
		flipped[70_000] = (flipped[70_000] as number) ^ 1;
		const otherLeaves = Buffer.from(made.parts.leaves);
		otherLeaves[40] = (otherLeaves[40] as number) ^ 1;
		const flippedTrailer = Buffer.from(made.trailer);
		flippedTrailer[50] = (flippedTrailer[50] as number) ^ 1;
		const wrong: Record<string, Parameters<typeof put>[1]> = {
			'a flipped bit in a cell': { bytes: flipped },
			'a byte too few': { bytes: made.cells.subarray(0, -1) },
			'a whole cell too few': { bytes: made.cells.subarray(0, SMALL_CELL_BYTES) },
			'no bytes at all': { bytes: Buffer.alloc(0) },
			'other leaves': { trailer: lied(made, { leaves: otherLeaves, root: rootOf(otherLeaves) }) },
			'another root': { trailer: lied(made, { root: Buffer.alloc(32, 1) }) },
			'another shard id': { trailer: lied(made, {}, { shardId: newId<ShardId>(random) }) },
			'another last cell': { trailer: lied(made, {}, { lastCellBytes: 5_001 }) },
			'a trailer cut short': { trailer: made.trailer.subarray(0, -1) },
			'a flipped bit in the trailer': { trailer: flippedTrailer },
			'no trailer': { trailer: Buffer.alloc(0) },
		};
		for (const o of Object.values(wrong)) {
			await expectRefused(made, 'corrupt', o);
			volume.shards.clear();
		}
	});

	test('more bytes than were announced are refused as they come', async () => {
		const made = makeShard(random, { cells: 3, lastCellBytes: 5_000 });
		await expectRefused(made, 'invalid', { bytes: Buffer.concat([made.cells, Buffer.alloc(1)]) });
	});

	test.each([
		['cells of another length', { cellBytes: 4_096 }, 'unsupported'],
		['no bytes', { maxBytes: 0 }, 'invalid'],
		['more than a segment', { maxBytes: SEGMENT_CELLS * SMALL_CELL_BYTES + 1 }, 'invalid'],
	] as const)('%s: refused at once', (_what, change, kind) => {
		expect(() => new Put(requestOf(makeShard(random), change))).toThrow(expect.objectContaining({ kind }));
	});

	test('a taken id, a full volume and one that is offline are refused before the bytes', async () => {
		const made = makeShard(random);
		const refused = async (request: ShardPutRequest): Promise<ErrorKind | undefined> => {
			const putting = new Put(request);
			await until(() => putting.failure !== null || putting.accepted, { what: 'an answer' });
			return putting.failure?.kind;
		};
		const first = new Put(requestOf(made));
		await until(() => first.accepted, { what: 'acceptance' });
		expect(await refused(requestOf(made))).toBe('exists');
		first.shard.abort('enough');
		volume.online = false;
		expect(await refused(requestOf(made))).toBe('unavailable');
		volume.online = true;
		store = new MemoryShardStore({ volume, clock, capacityBytes: 100_000, reserveBytes: 50_000 });
		handlers = shardHandlers({
			workerId,
			store,
			keys: NO_KEYS,
			pool,
			clock,
			receiptKey,
			authorize: () => {},
			onBytes: () => {},
		});
		expect(await refused(requestOf(made))).toBe('exhausted');
		expect(await put(made, { request: { deadlineMs: 1 } })).toMatchObject({ kind: 'exhausted' });
	});

	test('a disk that fails half-way: told once, and everything comes back', async () => {
		const made = makeShard(random, { cells: 30 });
		const create = store.create.bind(store);
		let writes = 0;
		store.create = async (options) => {
			const writer = await create(options);
			return {
				write: (bytes, done) => {
					if (++writes === 2) setImmediate(done, new DistroError('exhausted', 'the volume is full'));
					else writer.write(bytes, done);
				},
				commit: (trailer) => writer.commit(trailer),
				abort: () => writer.abort(),
			} satisfies ShardWriter;
		};
		await expectRefused(made, 'exhausted', {});
	});

	test('a commit that fails: told, and everything comes back', async () => {
		const made = makeShard(random);
		const create = store.create.bind(store);
		store.create = async (options) => {
			const writer = await create(options);
			store.create = create;
			return {
				...bound(writer),
				commit: () => Promise.reject(new DistroError('unavailable', 'the volume fails: EIO')),
			};
		};
		await expectRefused(made, 'unavailable', {});
	});

	test('given up at any moment: nothing is kept', async () => {
		const made = makeShard(random, { cells: 30 });
		for (let pieces = 0; pieces < 130; pieces += 9) {
			const putting = new Put(requestOf(made));
			const sending = putting.send(made.cells.subarray(0, pieces * 16_384));
			if (pieces % 2 === 0) await sending;
			putting.shard.abort('the sender has left');
			putting.shard.abort('twice');
			await expect(putting.shard.finish(made.trailer)).rejects.toMatchObject({ kind: 'canceled' });
			await until(() => pool.usedBytes === 0, { what: 'the memory to come back' });
			expect(putting.failure).toBeNull();
			expect(volume.shards.size).toBe(0);
		}
	});

	test('puts that wait for memory get it one after the other, or give up waiting', async () => {
		const made = Array.from({ length: 6 }, () => makeShard(random, { cells: 10 }));
		const putting = made.map((shard) => new Put(requestOf(shard)));
		await until(() => putting.filter(({ accepted }) => accepted).length === 2, { what: 'as many as have room' });
		expect(pool.waiting).toBe(4);
		putting[5]?.shard.abort('the sender has left');
		await until(() => pool.waiting === 3, { what: 'its place in the queue to go' });
		const outcomes = await Promise.all(
			putting.slice(0, 5).map(async (each, i) => {
				await each.send(made[i]?.cells as Buffer);
				return each.finish(made[i]?.trailer as Buffer);
			}),
		);
		for (const outcome of outcomes) expect(outcome).not.toBeInstanceOf(DistroError);
		expect(volume.shards.size).toBe(5);
	});

	/** A peer that takes what comes, at its own pace. */
	class Taker implements OutgoingShard {
		readonly pieces: Buffer[] = [];
		leavesSeen: Buffer | null = null;
		ended = 0;
		failure: DistroError | null = null;
		gone = false;
		held: ((alive: boolean) => void)[] | null = null;
		onGone = () => {};

		leaves(leaves: Buffer): void {
			this.leavesSeen = Buffer.from(leaves);
		}

		data(bytes: Buffer, sent: (alive: boolean) => void): void {
			if (this.gone) {
				setImmediate(sent, false);
				return;
			}
			if (this.held !== null) {
				this.held.push(sent);
				return;
			}
			this.pieces.push(Buffer.from(bytes));
			setImmediate(() => {
				// It is no longer needed: the worker may fill it with the next bytes now.
				sent(true);
			});
		}

		end(): void {
			this.ended++;
		}

		fail(error: DistroError): void {
			this.failure = error;
		}

		get over(): boolean {
			return this.ended > 0 || this.failure !== null;
		}
	}

	const ask = (
		request: Partial<ShardGetRequest> & { shardId: ShardId; length: number },
		taker = new Taker(),
	): Taker => {
		handlers.get({ offset: 0, wantLeaves: false, ...request }, taker);
		return taker;
	};

	test('ranges of any length, with and without leaves', async () => {
		const made = makeShard(random, { cells: 40, lastCellBytes: 999 });
		await put(made);
		const { shardId, cells } = made;
		for (const [offset, length] of [
			[0, 1],
			[0, cells.length],
			[SMALL_CELL_BYTES, SMALL_CELL_BYTES],
			[12_345, 1_234_567],
			[cells.length - 1, 1],
		] as const) {
			const taker = ask({ shardId, offset, length, wantLeaves: length > 1 });
			await until(() => taker.over, { what: 'the end' });
			expect(taker).toMatchObject({ ended: 1, failure: null });
			expect(Buffer.concat(taker.pieces).equals(cells.subarray(offset, offset + length))).toBe(true);
			expect(taker.leavesSeen?.equals(made.parts.leaves) ?? null).toBe(length > 1 ? true : null);
			await until(() => pool.usedBytes === 0, { what: 'the memory to come back' });
		}
	});

	test.each([
		['an unknown shard', { shardId: newId<ShardId>(random), length: 10 }, 'not_found'],
		['no bytes', { length: 0 }, 'invalid'],
		['bytes behind the end', { length: 3_000_000 }, 'corrupt'],
		['an offset behind the end', { offset: 5_000_000, length: 10 }, 'corrupt'],
	] as const)('%s: refused', async (_what, change, kind) => {
		const made = makeShard(random, { cells: 3 });
		await put(made);
		const taker = ask({ shardId: made.shardId, ...change });
		await until(() => taker.over, { what: 'the end' });
		expect(taker).toMatchObject({ ended: 0, failure: { kind } });
	});

	test('a trailer that rotted is told when leaves are asked for, and memory comes back', async () => {
		const made = makeShard(random);
		await put(made);
		const file = volume.shards.get(made.shardId) as Buffer;
		file[file.length - 40] = (file[file.length - 40] as number) ^ 1;
		const taker = ask({ shardId: made.shardId, length: 10, wantLeaves: true });
		await until(() => taker.over, { what: 'the end' });
		expect(taker.failure?.kind).toBe('corrupt');
	});

	describe('audits', () => {
		const question = (made: MadeShard, row: number) => ({ shardId: made.shardId, row, nonce: random.bytes(32) });
		const audited = (made: MadeShard, cellBytes: number) => ({
			workerId,
			root: made.parts.root,
			leaves: made.parts.leaves.length / 32,
			cellBytes,
			publicKey: publicKeyFromRaw(rawPublicKey(receiptKey)),
		});
		const spoil = (made: MadeShard, at: number) => {
			const file = volume.shards.get(made.shardId) as Buffer;
			file[at] = (file[at] as number) ^ 1;
		};

		test('every cell is proved', async () => {
			const made = makeShard(random, { cells: 7, lastCellBytes: 999 });
			await put(made);
			for (let row = 0; row < 7; row++) {
				const asked = question(made, row);
				const answer = await handlers.audit(asked, { deadlineMs: 1_000 });
				expect(auditFault(asked, answer, audited(made, row === 6 ? 999 : SMALL_CELL_BYTES))).toBeNull();
			}
		});

		test('a rotten cell is not, and the others are', async () => {
			const made = makeShard(random, { cells: 3 });
			await put(made);
			spoil(made, SMALL_CELL_BYTES + 9);
			const faults = [];
			for (const row of [0, 1, 2]) {
				const asked = question(made, row);
				const answer = await handlers.audit(asked, { deadlineMs: 1_000 });
				faults.push(auditFault(asked, answer, audited(made, row === 2 ? 1_000 : SMALL_CELL_BYTES)));
			}
			expect(faults).toEqual([null, 'cell 1 does not lead to the root', null]);
		});

		test('what is not there, not whole or another shard is said so; an offline volume is not empty', async () => {
			const [made, other] = [makeShard(random, { cells: 3 }), makeShard(random)];
			await put(made);
			await put(other);
			const kind = (shardId: ShardId, row = 0) =>
				handlers.audit({ shardId, row, nonce: random.bytes(32) }, { deadlineMs: 1_000 }).then(
					() => null,
					(error: DistroError) => error.kind,
				);
			expect(await kind(newId<ShardId>(random))).toBe('not_found');
			expect(await kind(made.shardId, 3)).toBe('corrupt');
			volume.shards.set(made.shardId, volume.shards.get(other.shardId) as Buffer);
			expect(await kind(made.shardId)).toBe('corrupt');
			spoil(other, trailerOffset(other.cells.length) + 60);
			expect(await kind(other.shardId)).toBe('corrupt');
			volume.online = false;
			expect(await kind(newId<ShardId>(random))).toBe('unavailable');
		});

		test('a disk that takes longer than the deadline: timeout', async () => {
			const made = makeShard(random);
			await put(made);
			const trailer = store.trailer.bind(store);
			store.trailer = (shardId) => {
				clock.advance(1_001);
				return trailer(shardId);
			};
			const late = handlers.audit(question(made, 0), { deadlineMs: 1_000 });
			await expect(late).rejects.toMatchObject({ kind: 'timeout' });
		});
	});

	test('a peer that takes nothing holds two buffers and no more; when it leaves they come back', async () => {
		const made = makeShard(random, { cells: 40 });
		await put(made);
		const taker = new Taker();
		taker.held = [];
		ask({ shardId: made.shardId, length: made.cells.length }, taker);
		await until(() => taker.held?.length === 2, { what: 'two buffers' });
		expect(pool.usedBytes).toBe(MiB);
		expect(moved.out).toBe(0);
		taker.gone = true;
		taker.onGone();
		for (const sent of taker.held) sent(false);
	});

	test('a peer that leaves while it waits for memory leaves the queue', async () => {
		const made = makeShard(random, { cells: 40 });
		await put(made);
		const all = pool.tryAcquire([2 * MiB]);
		const taker = ask({ shardId: made.shardId, length: 100 });
		await until(() => pool.waiting === 1, { what: 'the get to wait' });
		taker.onGone();
		await until(() => pool.waiting === 0, { what: 'its place in the queue to go' });
		all?.release();
	});
});

/** A writer's methods, with their `this`. */
function bound(writer: ShardWriter): ShardWriter {
	return {
		write: (bytes, done) => writer.write(bytes, done),
		commit: (trailer) => writer.commit(trailer),
		abort: () => writer.abort(),
	};
}
