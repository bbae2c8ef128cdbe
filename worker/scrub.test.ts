/** Scrubbing, above a volume in memory and one on a disk, on a clock that is moved by hand. */

import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { encodeTrailer } from '../core/codec/trailer.ts';
import { DistroError } from '../core/errors.ts';
import { newId, type ShardId, type WorkerId } from '../core/ids.ts';
import { LARGE_CELL_BYTES, SMALL_CELL_BYTES } from '../core/limits.ts';
import { alignedBuffer } from '../platform/memory-pool.ts';
import { ManualClock, seededRandom } from '../test/support/clock.ts';
import { newerShard } from '../test/support/newer.ts';
import { Scrubber, type ScrubDeps } from './scrub.ts';
import { type MadeShard, makeShard, putShard } from './store.fixtures.ts';
import type { ShardStore } from './store.ts';
import { openDiskStore } from './store-disk.ts';
import { MemoryShardStore, MemoryVolume } from './store-memory.ts';

const MiB = 1024 * 1024;
const HOUR_MS = 60 * 60_000;
const PERIOD_MS = 100 * HOUR_MS;
const random = seededRandom('scrub');
const buffer = alignedBuffer(LARGE_CELL_BYTES);

/** Knows whether somebody waits for it: what a file system does takes none of its time. */
class WaitedClock extends ManualClock {
	waiting = 0;

	override schedule(delayMs: number, callback: () => void): () => void {
		let over = false;
		const end = () => {
			if (!over) this.waiting--;
			over = true;
		};
		this.waiting++;
		const cancel = super.schedule(delayMs, () => {
			end();
			callback();
		});
		return () => {
			end();
			cancel();
		};
	}
}

/** A volume whose files a test can spoil. */
interface Volume {
	open(clock: ManualClock): Promise<ShardStore>;
	/** The file's bytes as they are to be. */
	change(shardId: ShardId, change: (file: Buffer) => Buffer): void;
	setOnline(online: boolean): void;
	dispose(): void;
}

function memoryVolume(): Volume {
	const volume = new MemoryVolume();
	return {
		open: async (clock) => new MemoryShardStore({ volume, clock, capacityBytes: 64 * MiB, reserveBytes: 0 }),
		change: (shardId, change) => {
			volume.shards.set(shardId, change(Buffer.from(volume.shards.get(shardId) as Buffer)));
		},
		setOnline: (online) => {
			volume.online = online;
		},
		dispose: () => {},
	};
}

function diskVolume(): Volume {
	const dataDir = fs.mkdtempSync(join(tmpdir(), 'distro-scrub-'));
	const workerId = newId<WorkerId>(random);
	const away = `${dataDir}.away`;
	return {
		open: (clock) => openDiskStore({ dataDir, workerId, clock, reserveBytes: 0 }),
		change: (shardId, change) => {
			const file = join(dataDir, 'shards', shardId.slice(0, 2), shardId);
			fs.writeFileSync(file, change(fs.readFileSync(file)));
		},
		// The whole mount goes, and not only its sentinel.
		setOnline: (online) => (online ? fs.renameSync(away, dataDir) : fs.renameSync(dataDir, away)),
		dispose: () => {
			for (const folder of [dataDir, away]) fs.rmSync(folder, { recursive: true, force: true });
		},
	};
}

const flip = (at: number) => (file: Buffer) => {
	file[at] = (file[at] as number) ^ 4;
	return file;
};

describe.each([
	['memory', memoryVolume],
	['disk', diskVolume],
])('scrubbing a volume: %s', (_name, make) => {
	let clock: WaitedClock;
	let volume: Volume;
	let store: ShardStore;
	let scrub: Scrubber;
	let outcomes: string[];
	let warnings: string[];

	beforeEach(async () => {
		clock = new WaitedClock();
		volume = make();
		// The volume's own timers are not what is waited for.
		store = await volume.open(new ManualClock());
		outcomes = [];
		warnings = [];
	});
	afterEach(async () => {
		await scrub?.stop();
		await store.close();
		volume.dispose();
	});

	function start(parts: Partial<ScrubDeps> = {}): void {
		scrub = new Scrubber({
			store,
			pool: { usedBytes: 0 },
			clock,
			random,
			buffer,
			periodMs: PERIOD_MS,
			ceiling: 1024 * MiB,
			onShard: (outcome) => outcomes.push(outcome),
			log: { info: () => {}, warn: (_fields, text) => warnings.push(text) },
			...parts,
		});
		scrub.start();
	}

	async function put(count: number, cells = 3): Promise<MadeShard[]> {
		const shards = Array.from({ length: count }, () => makeShard(random, { cells }));
		for (const shard of shards) await putShard(store, shard);
		return shards.toSorted((a, b) => (a.shardId < b.shardId ? -1 : 1));
	}

	/** Lets time go by, in steps, until it is so. */
	async function pass(condition: () => boolean, options: { stepMs?: number; what: string }): Promise<void> {
		const deadline = Date.now() + 20_000;
		while (!condition()) {
			if (Date.now() > deadline) throw new Error(`waited in vain for ${options.what}`);
			if (clock.waiting > 0) clock.advance(options.stepMs ?? 60_000);
			await new Promise((done) => setImmediate(done));
		}
	}

	const complete = () => pass(() => scrub.report().sinceMs > 0, { what: 'a complete pass' });
	const now = (number = 1) => scrub.heard({ acknowledged: [], paused: false, pass: number, revision: 0 });

	test('a sound volume: every shard once, nothing found, and the next pass a period later', async () => {
		const shards = await put(12);
		const startedMs = clock.nowMs();
		start();
		await complete();
		const report = scrub.report();
		expect(outcomes).toEqual(shards.map(() => 'ok'));
		expect(report).toMatchObject({ findings: [], shardsDone: 12, shardsTotal: 12, running: false, pass: 0 });
		expect(report.sinceMs - startedMs).toBeGreaterThanOrEqual(0);
		expect(report.sinceMs - startedMs).toBeLessThanOrEqual(HOUR_MS + 60_000);
		await pass(() => clock.nowMs() > report.sinceMs + PERIOD_MS - 2 * HOUR_MS, {
			stepMs: HOUR_MS,
			what: 'time to pass',
		});
		expect(outcomes).toHaveLength(12);
		await pass(() => scrub.report().sinceMs > report.sinceMs, { what: 'another pass' });
		expect(outcomes).toHaveLength(24);
		expect(scrub.report().sinceMs - report.sinceMs).toBeGreaterThanOrEqual(PERIOD_MS);
	});

	test('it takes most of the period, evenly; and what somebody waits for goes at the ceiling', async () => {
		await put(40, 1);
		start();
		await pass(() => scrub.report().running, { what: 'the pass to begin' });
		const beganMs = clock.nowMs();
		await pass(() => outcomes.length >= 20, { what: 'half of it' });
		const halfMs = clock.nowMs() - beganMs;
		await complete();
		const wholeMs = clock.nowMs() - beganMs;
		// Ids are random, and few here: about.
		expect(wholeMs / PERIOD_MS).toBeGreaterThan(0.7);
		expect(wholeMs / PERIOD_MS).toBeLessThan(0.95);
		expect(halfMs / wholeMs).toBeGreaterThan(0.25);
		expect(halfMs / wholeMs).toBeLessThan(0.75);
		now();
		await pass(() => outcomes.length >= 80, { stepMs: 10, what: 'the pass that was asked for' });
		expect(clock.nowMs() - beganMs - wholeMs).toBeLessThan(60_000);
	});

	test('never faster than the ceiling', async () => {
		await put(5, 4);
		start({ ceiling: MiB });
		now();
		await pass(() => scrub.report().running, { stepMs: 1, what: 'the pass to begin' });
		const beganMs = clock.nowMs();
		await pass(() => !scrub.report().running, { stepMs: 10, what: 'its end' });
		const bytes = 5 * (3 * SMALL_CELL_BYTES + 4096);
		expect(clock.nowMs() - beganMs).toBeGreaterThanOrEqual((bytes / MiB) * 1000);
	});

	const damages: [string, (shard: MadeShard, other: MadeShard) => (file: Buffer) => Buffer, RegExp][] = [
		['one flipped bit', () => flip(SMALL_CELL_BYTES + 5), /^cells 1 of 3$/],
		['two cells', () => (file) => flip(2 * SMALL_CELL_BYTES)(flip(0)(file)), /^cells 0, 2 of 3$/],
		['neighbours', () => (file) => flip(2 * SMALL_CELL_BYTES)(flip(SMALL_CELL_BYTES)(file)), /^cells 1–2 of 3$/],
		['a bit of the trailer', () => (file) => flip(file.length - 60)(file), /checksum/],
		['cut short', () => (file) => file.subarray(0, 500), /trailer/],
		['empty', () => () => Buffer.alloc(0), /too short/],
		[
			'another shard’s file',
			(_shard, other) => () => Buffer.concat([other.cells, padding(other), other.trailer]),
			/another shard/,
		],
		[
			'bytes lost in the middle',
			() => (file) => Buffer.concat([file.subarray(0, 4096), file.subarray(8192)]),
			/^cells 0–2 of 3$/,
		],
		[
			'a root that its leaves do not have',
			(shard) => (file) => {
				const trailer = encodeTrailer({ ...shard.parts, root: Buffer.alloc(32, 1) });
				return Buffer.concat([file.subarray(0, file.length - trailer.length), trailer]);
			},
			/its root/,
		],
	];
	test.each(damages)('%s is found, and which cells', async (_what, damage, detail) => {
		const shards = await put(4);
		const [, bad, other] = shards as [MadeShard, MadeShard, MadeShard];
		volume.change(bad.shardId, damage(bad, other));
		start();
		await complete();
		const [found, ...more] = scrub.report().findings;
		expect(found).toMatchObject({ shardId: bad.shardId, kind: 'corrupt', detail: expect.stringMatching(detail) });
		expect(more).toEqual([]);
		expect(outcomes).toEqual(['ok', 'corrupt', 'ok', 'ok']);
	});

	test('findings are told until they are acknowledged, also after a restart', async () => {
		const shards = await put(3);
		for (const { shardId } of shards.slice(1)) volume.change(shardId, flip(7));
		start();
		await complete();
		const ids = () => scrub.report().findings.map(({ shardId }) => shardId);
		expect(ids()).toEqual(shards.slice(1).map(({ shardId }) => shardId));
		await scrub.stop();
		start();
		await pass(() => ids().length === 2, { what: 'what was found before' });
		scrub.heard({ acknowledged: [ids()[0] as ShardId], paused: false, pass: 0, revision: 0 });
		expect(ids()).toEqual([shards[2]?.shardId]);
		await scrub.stop();
		start();
		await pass(() => scrub.report().sinceMs > 0, { what: 'the record' });
		expect(ids()).toEqual([shards[2]?.shardId]);
	});

	test('after a restart it goes on where it was', async () => {
		const shards = await put(20, 1);
		start();
		await pass(() => outcomes.length >= 8, { what: 'a part of it' });
		const { shardsDone } = scrub.report();
		await scrub.stop();
		const done = outcomes.length;
		await store.close();
		store = await volume.open(new ManualClock());
		start();
		await pass(() => scrub.report().running, { stepMs: 1, what: 'the record' });
		expect(scrub.report()).toMatchObject({ shardsDone, shardsTotal: 20 });
		await complete();
		expect(outcomes).toHaveLength(shards.length);
		expect(scrub.report().shardsDone).toBe(20);
		expect(done).toBeLessThan(20);
	});

	test('a record that nobody can read costs a new pass', async () => {
		await put(2);
		for (const record of ['', '{"version": 0}', '{"version": 1, "after": "x"}', 'null']) {
			await store.saveRecord('scrub', Buffer.from(record));
			start();
			await complete();
			await scrub.stop();
		}
		expect(outcomes).toHaveLength(8);
	});

	test('a record of a newer release is not written over: scrubbing waits until it is gone', async () => {
		const record = '{"version": 2, "findings": "somewhere else"}';
		await put(2);
		await store.saveRecord('scrub', Buffer.from(record));
		start();
		now();
		await pass(() => warnings.includes('scrubbing waits'), { what: 'it to say so' });
		const untilMs = clock.nowMs() + HOUR_MS;
		await pass(() => clock.nowMs() > untilMs, { what: 'an hour' });
		await scrub.stop();
		expect((await store.loadRecord('scrub'))?.toString()).toBe(record);
		expect([outcomes, warnings]).toEqual([[], ['scrubbing waits']]);
		await store.saveRecord('scrub', Buffer.from(''));
		start();
		await complete();
		expect(outcomes).toEqual(['ok', 'ok']);
	});

	test('a volume that is gone is offline: nothing is found, nothing is complete, and it goes on when it is back', async () => {
		const shards = await put(6, 1);
		volume.change((shards[5] as MadeShard).shardId, flip(3));
		start();
		await pass(() => outcomes.length >= 2, { what: 'a part of it' });
		volume.setOnline(false);
		const done = outcomes.length;
		await pass(() => warnings.includes('scrubbing waits'), { what: 'it to notice' });
		const untilMs = clock.nowMs() + 2 * PERIOD_MS;
		await pass(() => clock.nowMs() > untilMs, { stepMs: HOUR_MS, what: 'two periods' });
		expect(scrub.report()).toMatchObject({ findings: [], sinceMs: 0 });
		expect(outcomes).toHaveLength(done);
		// Said once, not every five seconds.
		expect(warnings).toHaveLength(1);
		volume.setOnline(true);
		await complete();
		expect(scrub.report().findings).toHaveLength(1);
		expect(outcomes).toEqual(['ok', 'ok', 'ok', 'ok', 'ok', 'corrupt']);
	});

	test('paused it reads nothing, and then it goes on', async () => {
		await put(5, 1);
		start();
		scrub.heard({ acknowledged: [], paused: true, pass: 0, revision: 0 });
		const untilMs = clock.nowMs() + 2 * PERIOD_MS;
		await pass(() => clock.nowMs() > untilMs, { stepMs: HOUR_MS, what: 'two periods' });
		expect(outcomes).toEqual([]);
		scrub.heard({ acknowledged: [], paused: false, pass: 0, revision: 0 });
		await complete();
		expect(outcomes).toHaveLength(5);
	});

	test('a pass that is asked for runs although others are paused, until it is paused itself', async () => {
		await put(6, 1);
		start({ ceiling: SMALL_CELL_BYTES });
		const orders = (paused: boolean, number: number) =>
			scrub.heard({ acknowledged: [], paused, pass: number, revision: 0 });
		await pass(() => clock.waiting > 0, { what: 'it to wait' });
		orders(true, 0);
		orders(true, 1);
		await pass(() => outcomes.length === 6 && !scrub.report().running, { stepMs: 100, what: 'the pass' });
		orders(true, 2);
		await pass(() => outcomes.length >= 8, { stepMs: 100, what: 'a part of another' });
		orders(false, 2);
		orders(true, 2);
		const done = outcomes.length;
		const untilMs = clock.nowMs() + HOUR_MS;
		await pass(() => clock.nowMs() > untilMs, { what: 'an hour' });
		expect(outcomes.length - done).toBeLessThanOrEqual(1);
		expect(scrub.report().running).toBe(true);
		orders(false, 2);
		await pass(() => !scrub.report().running, { what: 'its end' });
		expect(outcomes).toHaveLength(12);
	});

	test('what an orchestrator says that has not heard of the last change changes nothing', async () => {
		await put(6, 1);
		start({ ceiling: SMALL_CELL_BYTES });
		const orders = (revision: number, paused: boolean, number: number) =>
			scrub.heard({ acknowledged: [], paused, pass: number, revision });
		await pass(() => clock.waiting > 0, { what: 'it to wait' });
		orders(1, true, 0);
		orders(2, true, 1);
		// One that still knows of neither, and then of the first only.
		for (let i = 0; i < 3; i++) {
			orders(0, false, 0);
			orders(2, true, 1);
			orders(1, true, 0);
			orders(2, true, 1);
		}
		await pass(() => outcomes.length === 6 && !scrub.report().running, { stepMs: 100, what: 'the pass' });
	});

	test('a pass that is asked for begins at once, from the beginning, once for each number', async () => {
		const shards = await put(6, 1);
		start();
		await pass(() => outcomes.length >= 3, { what: 'half a pass' });
		const askedMs = clock.nowMs();
		volume.change((shards[0] as MadeShard).shardId, flip(3));
		now(7);
		now(7);
		await pass(() => scrub.report().sinceMs >= askedMs, { stepMs: 10, what: 'the pass' });
		expect(clock.nowMs() - askedMs).toBeLessThan(60_000);
		expect(scrub.report()).toMatchObject({ pass: 7, shardsDone: 6, running: false });
		expect(scrub.report().findings).toHaveLength(1);
		const done = outcomes.length;
		await scrub.stop();
		start();
		await pass(() => scrub.report().pass === 7, { what: 'the record' });
		now(7);
		now(6);
		await pass(() => clock.nowMs() > askedMs + HOUR_MS, { what: 'an hour' });
		expect(outcomes).toHaveLength(done);
		now(8);
		await pass(() => scrub.report().pass === 8 && !scrub.report().running, { stepMs: 10, what: 'another pass' });
		expect(outcomes).toHaveLength(done + 6);
	});

	test('a shard that is deleted meanwhile is not missing, one whose name stays is', async () => {
		const shards = await put(5, 1);
		const [first, second, third] = shards.map(({ shardId }) => shardId) as [ShardId, ShardId, ShardId];
		const trailer = store.trailer.bind(store);
		store.trailer = async (shardId) => {
			if (shardId === first) await store.delete([shardId]);
			if (shardId === third) throw new DistroError('not_found', 'no such file');
			return trailer(shardId);
		};
		start();
		await complete();
		expect(outcomes).toEqual(['gone', 'ok', 'missing', 'ok', 'ok']);
		expect(scrub.report().findings).toMatchObject([{ shardId: third, kind: 'missing' }]);
		expect(second).toBeDefined();
	});

	test('a shard that can not be reached while others can is missing; when nothing can, nothing is', async () => {
		const shards = await put(4, 1);
		const bad = (shards[1] as MadeShard).shardId;
		const trailer = store.trailer.bind(store);
		let everything = true;
		store.trailer = async (shardId) => {
			if (everything || shardId === bad) throw new DistroError('unavailable', 'the volume fails: EMFILE');
			return trailer(shardId);
		};
		start();
		await pass(() => scrub.report().running, { what: 'the pass to begin' });
		const untilMs = clock.nowMs() + 10 * 60_000;
		await pass(() => clock.nowMs() > untilMs, { stepMs: 5_000, what: 'ten minutes' });
		expect(scrub.report()).toMatchObject({ findings: [], shardsDone: 0, sinceMs: 0 });
		everything = false;
		await complete();
		expect(outcomes).toEqual(['ok', 'missing', 'ok', 'ok']);
		expect(scrub.report().findings).toMatchObject([{ shardId: bad, kind: 'missing', detail: /EMFILE/ }]);
	});

	test('of shards that a newer release wrote nothing is said, not even that they are verified', async () => {
		const [first, second] = (await put(3)) as [MadeShard, MadeShard];
		for (const { shardId } of [first, second]) volume.change(shardId, newerShard);
		start();
		now();
		await pass(() => warnings.length > 0, { what: 'the pass to end' });
		expect(outcomes).toEqual(['unknown', 'unknown', 'ok']);
		expect(warnings).toEqual(['a newer release wrote these shards, and only it can verify them']);
		expect(scrub.report()).toMatchObject({ findings: [], shardsDone: 3, running: false, sinceMs: 0 });
		await scrub.stop();
		await store.delete([first.shardId, second.shardId]);
		start();
		now(2);
		await complete();
		expect(outcomes.slice(3)).toEqual(['ok']);
	});

	test('a shard that can not be reached is missing also where all others are of a newer release', async () => {
		const shards = await put(3, 1);
		const bad = (shards[1] as MadeShard).shardId;
		for (const { shardId } of shards) if (shardId !== bad) volume.change(shardId, newerShard);
		const trailer = store.trailer.bind(store);
		store.trailer = async (shardId) => {
			if (shardId === bad) throw new DistroError('unavailable', 'the volume fails: EMFILE');
			return trailer(shardId);
		};
		start();
		await pass(() => outcomes.length === 3, { what: 'the pass' });
		expect(outcomes).toEqual(['unknown', 'missing', 'unknown']);
	});

	test('no more is looked for than somebody hears of', async () => {
		const shards = await put(300, 1);
		for (const { shardId } of shards) volume.change(shardId, flip(3));
		start();
		now();
		await pass(() => outcomes.length === 256, { stepMs: 10, what: 'as many as are kept' });
		const untilMs = clock.nowMs() + HOUR_MS;
		await pass(() => clock.nowMs() > untilMs, { what: 'an hour' });
		expect(outcomes).toHaveLength(256);
		const heard = scrub.report().findings.map(({ shardId }) => shardId);
		scrub.heard({ acknowledged: heard, paused: false, pass: 1, revision: 0 });
		await pass(() => scrub.report().sinceMs > 0, { stepMs: 10, what: 'the rest' });
		expect(outcomes).toHaveLength(300);
		expect(scrub.report().findings).toHaveLength(44);
	});

	test('transfers go first, and can not keep it from going on', async () => {
		await put(10, 2);
		const pool = { usedBytes: 0 };
		start({ pool });
		now();
		await pass(() => !scrub.report().running && scrub.report().pass === 1, { stepMs: 1, what: 'a pass alone' });
		const aloneMs = clock.nowMs() - scrub.report().sinceMs;
		pool.usedBytes = 1;
		now(2);
		await pass(() => !scrub.report().running && scrub.report().pass === 2, {
			stepMs: 1,
			what: 'a pass beside transfers',
		});
		const besideMs = clock.nowMs() - scrub.report().sinceMs;
		expect(besideMs - aloneMs).toBeGreaterThan(20 * 80);
		expect(besideMs).toBeLessThan(20 * 200);
	});

	test('stopped in the middle of a shard it lets go, and the shard is read again', async () => {
		await put(1, 20);
		start({ ceiling: 4096 });
		now();
		await pass(() => scrub.report().running, { what: 'the pass to begin' });
		await scrub.stop();
		expect(outcomes).toEqual([]);
		start();
		await complete();
		expect(outcomes).toEqual(['ok']);
	});
});

function padding({ cells }: MadeShard): Buffer {
	return Buffer.alloc((4096 - (cells.length % 4096)) % 4096);
}
