/**
 * Scatter and gather against workers in memory: every loss pattern, stragglers, take-overs, wrong bytes. What must hold
 * after each: the right bytes or a clear error, every buffer given back, every stream closed.
 */

import { describe, expect, test } from 'vitest';
import { realClock, seededRandom } from '../../test/support/clock.ts';
import { MemoryTransport } from '../../test/support/memory-transport.ts';
import { newerShard } from '../../test/support/newer.ts';
import { codecFor } from '../codec/erasure-codec.ts';
import { cellAt, rowCells, rows, shardBytes, shardRows } from '../codec/layout.ts';
import { encodeTrailer } from '../codec/trailer.ts';
import { DistroError } from '../errors.ts';
import {
	type ClusterId,
	type EncodingId,
	newId,
	type SealId,
	type ShardId,
	type VersionId,
	type WorkerId,
} from '../ids.ts';
import { SMALL_CELL_BYTES as C } from '../limits.ts';
import { quorum } from '../model/redundancy.ts';
import type { Placement, SegmentShape } from '../model/segment.ts';
import { Gather, type GatherSource } from './gather.ts';
import { Scatter, type ScatterResult, type ScatterTarget } from './scatter.ts';

const random = seededRandom('transfer');
const end = Buffer.alloc(25, 1);

interface Stored {
	readonly shape: SegmentShape;
	readonly bytes: Buffer;
	readonly result: ScatterResult;
}

function target(): ScatterTarget {
	const workerId = newId<WorkerId>(random);
	return { worker: { workerId, address: 'memory:1' }, shardId: newId<ShardId>(random) };
}

async function scatterAll(
	transport: MemoryTransport,
	o: {
		k: number;
		n: number;
		bytes: Buffer;
		targets: (ScatterTarget | null)[];
		spares?: ScatterTarget[];
		slots?: number;
	},
): Promise<Stored> {
	const { k, n, bytes, targets } = o;
	const cells = Math.max(1, Math.ceil(bytes.length / C));
	const lastCellBytes = bytes.length - (cells - 1) * C;
	const shape: SegmentShape = {
		codec: k === 1 ? 'replicate' : 'rs-ronomon-6',
		k,
		n,
		cellBytes: C,
		cells,
		lastCellBytes,
	};
	const spares = [...(o.spares ?? [])];
	let failure: DistroError | null = null;
	const free: Buffer[] = Array.from({ length: o.slots ?? 2 }, () => Buffer.alloc(n * C));
	const slotCount = free.length;
	let wake = () => {};
	const scatter = new Scatter({
		transport,
		clock: realClock,
		codec: codecFor(shape.codec),
		k,
		n,
		cellBytes: C,
		maxCells: cells,
		quorum: quorum(n, k),
		targets,
		spare: async () => spares.shift() ?? null,
		verifyReceipt: () => true,
		onFailed: (error) => {
			failure = error;
			wake();
		},
	});
	for (let row = 0; row < rows(shape); row++) {
		while (free.length === 0) {
			await new Promise<void>((resolve) => {
				wake = resolve;
			});
		}
		const slot = free.pop() as Buffer;
		const from = row * k * C;
		const count = bytes.copy(slot, 0, from, Math.min(bytes.length, from + k * C));
		const inRow = rowCells(shape, row);
		await scatter.row({
			data: slot.subarray(0, k * C),
			parity: slot.subarray(k * C),
			cells: inRow,
			lastCellBytes: count - (inRow - 1) * C,
			release: () => {
				slot.fill(0xdd);
				free.push(slot);
				wake();
			},
		});
	}
	const ids = {
		clusterId: newId<ClusterId>(random),
		versionId: newId<VersionId>(random),
		sealId: newId<SealId>(random),
	};
	const encodingId = newId<EncodingId>(random);
	const finishing = scatter.finish({
		shape,
		trailer: ({ shardIndex, shardId, leaves, root }) =>
			encodeTrailer({
				description: { ...shape, ...ids, encodingId, segment: 0, shardIndex, shardId },
				root,
				leaves,
				endRecord: end,
				recovery: Buffer.alloc(0),
			}),
	});
	const result = await finishing.catch((error) => {
		throw failure ?? error;
	});
	await expect.poll(() => free.length).toBe(slotCount);
	await expect.poll(() => transport.open).toBe(0);
	return { shape, bytes, result };
}

function sourcesOf(targets: readonly (ScatterTarget | null)[], placements: readonly Placement[]): GatherSource[] {
	const refs = new Map(targets.flatMap((t) => (t === null ? [] : [[t.shardId, t.worker] as const])));
	return placements.map(({ shardIndex, shardId, workerId }) => ({
		shardIndex,
		shardId,
		worker: refs.get(shardId) ?? { workerId, address: 'memory:1' },
		lastResort: false,
	}));
}

async function gatherAll(
	transport: MemoryTransport,
	stored: Stored,
	o: {
		sources: GatherSource[];
		rows?: [number, number];
		wrongOnce?: number;
		hedgeMs?: number;
		mayHedge?: () => boolean;
		want?: number;
	},
): Promise<{ bytes: Buffer; findings: { shardIndex: number; kind: string }[] }> {
	const { shape, result } = stored;
	const [firstRow, lastRow] = o.rows ?? [0, (o.want === undefined ? rows(shape) : shardRows(shape, o.want)) - 1];
	const slots = Array.from({ length: 2 }, () => Buffer.alloc(shape.n * C));
	const parts: Buffer[] = [];
	const findings: { shardIndex: number; kind: string }[] = [];
	let wrongOnce = o.wrongOnce ?? -1;
	await new Promise<void>((resolve, reject) => {
		const gather = new Gather({
			transport,
			clock: realClock,
			codec: codecFor(shape.codec),
			shape,
			roots: result.roots,
			sources: o.sources,
			firstRow,
			lastRow,
			wanted: (row) => {
				if (o.want !== undefined) return [o.want];
				return shape.k === 1 ? [0] : Array.from({ length: rowCells(shape, row) }, (_, i) => i);
			},
			proved: o.want !== undefined,
			slots,
			hedgeMs: o.hedgeMs ?? 60,
			mayHedge: o.mayHedge ?? (() => true),
			takes: () => true,
			onRow: (row) => {
				if (wrongOnce >= 0 && row.cells[wrongOnce] != null) {
					const wrong = wrongOnce;
					wrongOnce = -1;
					row.release();
					return wrong;
				}
				for (const [i, cell] of row.cells.entries()) {
					if (cell !== null && (o.want !== undefined || cellAt(shape, i, row.index) >= 0))
						parts.push(Buffer.from(cell));
				}
				row.release();
				return -1;
			},
			onEnd: resolve,
			onFailed: reject,
			onFinding: ({ shardIndex, kind }) => findings.push({ shardIndex, kind }),
		});
		gather.start();
	}).finally(() => expect.poll(() => transport.open).toBe(0));
	return { bytes: Buffer.concat(parts), findings };
}

const CODES = [
	[1, 1],
	[1, 3],
	[2, 4],
	[3, 5],
	[4, 6],
] as const;

function sizesFor(k: number): number[] {
	return [16, 17, C - 1, C, C + 17, k * C - 1, k * C, k * C + 17, 5 * k * C + 40].filter(
		(size) => Math.ceil(size / C) >= k,
	);
}

describe('scatter, then gather', () => {
	test.each(CODES)('%i of %i: every size, every loss of up to m shards', async (k, n) => {
		for (const size of sizesFor(k)) {
			const transport = new MemoryTransport();
			const targets = Array.from({ length: n }, target);
			const stored = await scatterAll(transport, { k, n, bytes: random.bytes(size), targets });
			expect(stored.result.placements.length).toBe(n);
			for (const { shardIndex, shardId, workerId } of stored.result.placements) {
				expect(transport.shardsOf(workerId).get(shardId)?.bytes.length).toBe(shardBytes(stored.shape, shardIndex));
			}
			for (let lost = 0; lost < 1 << n; lost++) {
				const left = sourcesOf(targets, stored.result.placements).filter(
					({ shardIndex }) => (lost & (1 << shardIndex)) === 0,
				);
				if (left.length < k) continue;
				const got = await gatherAll(transport, stored, { sources: left });
				expect(got.bytes.equals(stored.bytes)).toBe(true);
			}
		}
	});

	test('every shard is rebuilt bit for bit from any k others', async () => {
		const [k, n] = [4, 6];
		const transport = new MemoryTransport();
		const targets = Array.from({ length: n }, target);
		const stored = await scatterAll(transport, { k, n, bytes: random.bytes(3 * k * C + C + 24), targets });
		for (const { shardIndex, shardId, workerId } of stored.result.placements) {
			const sources = sourcesOf(targets, stored.result.placements).filter((source) => source.shardIndex !== shardIndex);
			const got = await gatherAll(transport, stored, { sources, want: shardIndex });
			expect(got.bytes.equals(transport.shardsOf(workerId).get(shardId)?.bytes as Buffer)).toBe(true);
		}
	});

	test('a single cell is read from one worker, and a range from no more than it needs', async () => {
		const transport = new MemoryTransport();
		const targets = Array.from({ length: 6 }, target);
		const stored = await scatterAll(transport, { k: 4, n: 6, bytes: random.bytes(16 * C), targets });
		const before = transport.gets;
		const sources = sourcesOf(targets, stored.result.placements);
		const got = await gatherAll(transport, stored, { sources, rows: [2, 2] });
		expect(got.bytes.equals(stored.bytes.subarray(8 * C, 12 * C))).toBe(true);
		expect(transport.gets - before).toBe(4);
	});
});

describe('scatter', () => {
	const [k, n] = [4, 6];

	test('a worker that refuses is replaced by a spare, with a new shard id', async () => {
		const transport = new MemoryTransport();
		const targets = Array.from({ length: n }, target);
		const refused = targets[2] as ScatterTarget;
		const spare = target();
		transport.faultsOf(refused.worker.workerId).refusePut = new DistroError('exhausted', 'no room');
		const stored = await scatterAll(transport, { k, n, bytes: random.bytes(20 * C), targets, spares: [spare] });
		expect(stored.result.placements.find(({ shardIndex }) => shardIndex === 2)?.shardId).toBe(spare.shardId);
		expect(stored.result.abandoned).toEqual([{ shardId: refused.shardId, workerId: refused.worker.workerId }]);
		const all = [...targets.filter((t) => t !== refused), spare];
		const got = await gatherAll(transport, stored, { sources: sourcesOf(all, stored.result.placements).slice(1) });
		expect(got.bytes.equals(stored.bytes)).toBe(true);
	});

	test('a frozen worker without a spare is left out, and the segment ends all the same', async () => {
		const transport = new MemoryTransport();
		const targets = Array.from({ length: n }, target);
		transport.faultsOf((targets[1] as ScatterTarget).worker.workerId).frozen = true;
		const stored = await scatterAll(transport, { k, n, bytes: random.bytes(9 * C), targets });
		expect(stored.result.placements.map(({ shardIndex }) => shardIndex)).toEqual([0, 2, 3, 4, 5]);
		expect(stored.result.roots.length).toBe(n * 32);
	});

	test.each([
		['breaks half-way', { breakAfterCells: 3 }],
		['sends no receipt', { noReceipt: true }],
		['signs for something else', { wrongReceipt: true }],
		['is gone', { dead: true }],
	])('a worker that %s is left out', async (_, faults) => {
		const transport = new MemoryTransport();
		const targets = Array.from({ length: n }, target);
		Object.assign(transport.faultsOf((targets[5] as ScatterTarget).worker.workerId), faults);
		const stored = await scatterAll(transport, { k, n, bytes: random.bytes(33 * C + 50), targets });
		expect(stored.result.placements.map(({ shardIndex }) => shardIndex)).toEqual([0, 1, 2, 3, 4]);
	});

	test('fewer than the quorum is an error, and nothing is left open', async () => {
		const transport = new MemoryTransport();
		const targets = Array.from({ length: n }, target);
		for (const t of targets.slice(0, 2)) transport.faultsOf((t as ScatterTarget).worker.workerId).dead = true;
		const failed = scatterAll(transport, { k, n, bytes: random.bytes(8 * C), targets });
		await expect(failed).rejects.toMatchObject({ kind: 'unavailable', retryAfterMs: 5000 });
		await expect.poll(() => transport.open).toBe(0);
	});

	test('when all refuse for want of room the error says so', async () => {
		const transport = new MemoryTransport();
		const targets = Array.from({ length: n }, target);
		for (const t of targets)
			transport.faultsOf((t as ScatterTarget).worker.workerId).refusePut = new DistroError('exhausted', 'full');
		await expect(scatterAll(transport, { k, n, bytes: random.bytes(8 * C), targets })).rejects.toMatchObject({
			kind: 'exhausted',
		});
	});
});

describe('gather', () => {
	const [k, n] = [4, 6];

	async function stored(
		size = 21 * C + 100,
	): Promise<{ transport: MemoryTransport; targets: ScatterTarget[]; segment: Stored }> {
		const transport = new MemoryTransport();
		const targets = Array.from({ length: n }, target);
		const segment = await scatterAll(transport, { k, n, bytes: random.bytes(size), targets });
		return { transport, targets, segment };
	}

	test('a frozen worker is replaced after the hedge', async () => {
		const { transport, targets, segment } = await stored();
		transport.faultsOf((targets[0] as ScatterTarget).worker.workerId).frozen = true;
		const got = await gatherAll(transport, segment, { sources: sourcesOf(targets, segment.result.placements) });
		expect(got.bytes.equals(segment.bytes)).toBe(true);
		expect(got.findings).toEqual([]);
	});

	test('a laggard that may not be hedged is waited for', async () => {
		const { transport, targets, segment } = await stored();
		transport.faultsOf((targets[0] as ScatterTarget).worker.workerId).frozen = true;
		let asked = 0;
		const sources = sourcesOf(targets, segment.result.placements);
		const got = await gatherAll(transport, segment, { sources, hedgeMs: 10, mayHedge: () => ++asked > 3 });
		expect(asked).toBe(4);
		expect(got.bytes.equals(segment.bytes)).toBe(true);
	});

	test('two frozen workers, and one of them also the only other choice: still right', async () => {
		const { transport, targets, segment } = await stored();
		for (const i of [1, 4]) transport.faultsOf((targets[i] as ScatterTarget).worker.workerId).frozen = true;
		const got = await gatherAll(transport, segment, { sources: sourcesOf(targets, segment.result.placements) });
		expect(got.bytes.equals(segment.bytes)).toBe(true);
	});

	test('a frozen worker among slow ones, more than there are spares for: one that lagged is asked again', async () => {
		const { transport, targets, segment } = await stored(5 * C);
		const workers = (targets as ScatterTarget[]).map(({ worker }) => transport.faultsOf(worker.workerId));
		for (const faults of workers) faults.chunkMs = 40;
		Object.assign(workers[0] ?? {}, { frozen: true });
		const sources = sourcesOf(targets, segment.result.placements);
		const got = await gatherAll(transport, segment, { sources, hedgeMs: 20 });
		expect(got.bytes.equals(segment.bytes)).toBe(true);
	});

	test('copies: the first is asked again when the second sends nothing', async () => {
		const transport = new MemoryTransport();
		const targets = Array.from({ length: 2 }, target);
		const segment = await scatterAll(transport, { k: 1, n: 2, bytes: random.bytes(5000), targets });
		transport.faultsOf((targets[0] as ScatterTarget).worker.workerId).chunkMs = 60;
		transport.faultsOf((targets[1] as ScatterTarget).worker.workerId).frozen = true;
		const sources = sourcesOf(targets, segment.result.placements);
		const got = await gatherAll(transport, segment, { sources, hedgeMs: 20 });
		expect(got.bytes.equals(segment.bytes)).toBe(true);
	});

	test('where all workers are slow alike, none is replaced', async () => {
		const { transport, targets, segment } = await stored(5 * C);
		for (const { worker } of targets as ScatterTarget[]) transport.faultsOf(worker.workerId).chunkMs = 100;
		const before = transport.gets;
		const sources = sourcesOf(targets, segment.result.placements);
		const got = await gatherAll(transport, segment, { sources, hedgeMs: 300 });
		expect(got.bytes.equals(segment.bytes)).toBe(true);
		expect(transport.gets - before).toBe(k);
	});

	test('where one is slow among quick ones, it is replaced', async () => {
		const { transport, targets, segment } = await stored(5 * C);
		transport.faultsOf((targets[2] as ScatterTarget).worker.workerId).chunkMs = 400;
		const before = transport.gets;
		const sources = sourcesOf(targets, segment.result.placements);
		const got = await gatherAll(transport, segment, { sources, hedgeMs: 100 });
		expect(got.bytes.equals(segment.bytes)).toBe(true);
		expect(transport.gets - before).toBeGreaterThan(k);
	});

	test('missing, short and wrong shards are found, told apart, and replaced', async () => {
		const { transport, targets, segment } = await stored();
		const shard = (i: number) => {
			const t = targets[i] as ScatterTarget;
			return { map: transport.shardsOf(t.worker.workerId), shardId: t.shardId };
		};
		shard(0).map.delete(shard(0).shardId);
		const wrong = shard(4).map.get(shard(4).shardId);
		if (wrong !== undefined) wrong.bytes[2 * C + 7] = (wrong.bytes[2 * C + 7] as number) ^ 1;
		const got = await gatherAll(transport, segment, { sources: sourcesOf(targets, segment.result.placements) }).catch(
			(e) => e,
		);
		// Two shards are gone: k + 0 are left of those that were not asked yet.
		expect(got.bytes.equals(segment.bytes)).toBe(true);
		expect(got.findings).toEqual([
			{ shardIndex: 0, kind: 'missing' },
			{ shardIndex: 4, kind: 'corrupt' },
		]);
	});

	test('shards that a newer release wrote are read from others, or not now, and are never a finding', async () => {
		const { transport, targets, segment } = await stored();
		const sources = sourcesOf(targets, segment.result.placements);
		const age = ({ worker, shardId }: ScatterTarget) => {
			const kept = transport.shardsOf(worker.workerId).get(shardId);
			if (kept !== undefined) kept.trailer = newerShard(kept.trailer);
		};
		// Asked for the leaves, since shard 0 is gone, they can't give them.
		transport.faultsOf((targets[0] as ScatterTarget).worker.workerId).dead = true;
		age(targets[4] as ScatterTarget);
		const got = await gatherAll(transport, segment, { sources });
		expect(got.bytes.equals(segment.bytes)).toBe(true);
		expect(got.findings).toEqual([]);
		for (const one of targets) age(one);
		await expect(gatherAll(transport, segment, { sources })).rejects.toMatchObject({ kind: 'unavailable' });
	});

	test('a cell that does not open is blamed on its shard, and the row comes again right', async () => {
		const { transport, targets, segment } = await stored();
		const got = await gatherAll(transport, segment, {
			sources: sourcesOf(targets, segment.result.placements),
			wrongOnce: 2,
		});
		expect(got.bytes.equals(segment.bytes)).toBe(true);
		expect(got.findings).toEqual([{ shardIndex: 2, kind: 'corrupt' }]);
	});

	test('copies: the next one is asked when one is wrong or gone', async () => {
		const transport = new MemoryTransport();
		const targets = Array.from({ length: 3 }, target);
		const segment = await scatterAll(transport, { k: 1, n: 3, bytes: random.bytes(5000), targets });
		transport.faultsOf((targets[0] as ScatterTarget).worker.workerId).dead = true;
		const got = await gatherAll(transport, segment, {
			sources: sourcesOf(targets, segment.result.placements),
			wrongOnce: 0,
		});
		expect(got.bytes.equals(segment.bytes)).toBe(true);
		expect(got.findings).toEqual([{ shardIndex: 1, kind: 'corrupt' }]);
	});

	test('fewer than k: unavailable while they are away, unrecoverable when they are gone', async () => {
		const { transport, targets, segment } = await stored();
		const sources = sourcesOf(targets, segment.result.placements);
		for (const t of targets.slice(0, 3)) transport.faultsOf(t.worker.workerId).dead = true;
		await expect(gatherAll(transport, segment, { sources })).rejects.toMatchObject({
			kind: 'unavailable',
			message: expect.stringMatching(/^only 3 of this segment's 6 shards can be read now and 4 are needed: start /),
			// Where and why is for the log.
			cause: expect.objectContaining({ message: expect.stringContaining('shard 0: ') }),
		});
		for (const t of targets.slice(0, 3)) {
			transport.faultsOf(t.worker.workerId).dead = false;
			transport.shardsOf(t.worker.workerId).clear();
		}
		await expect(gatherAll(transport, segment, { sources })).rejects.toMatchObject({
			kind: 'unrecoverable',
			message: expect.stringMatching(
				/^only 3 of this segment's 6 shards can still be read and 4 are needed: the others/,
			),
		});
	});
});
