/** Audits against workers that answer as a test tells them, on a clock that is moved by hand. */

import { beforeEach, describe, expect, test } from 'vitest';
import { answerAudit } from '../core/crypto/audit.ts';
import { leafHash, rootOf } from '../core/crypto/digest.ts';
import { newSigningKey, rawPublicKey } from '../core/crypto/sign.ts';
import { DistroError } from '../core/errors.ts';
import {
	type EncodingId,
	newId,
	type ObjectId,
	type SealId,
	type ShardId,
	type VersionId,
	type WorkerId,
} from '../core/ids.ts';
import { SMALL_CELL_BYTES } from '../core/limits.ts';
import type { AuditAnswer, AuditQuestion } from '../core/model/audit.ts';
import type { WorkerState } from '../core/model/health.ts';
import type { AuditOutcome } from '../core/model/history.ts';
import type { Segment } from '../core/model/segment.ts';
import { ManualClock, seededRandom } from '../test/support/clock.ts';
import { type AuditDeps, auditJob, type DrawnShard } from './audit.ts';
import type { Finding } from './store.ts';

const random = seededRandom('audits');
const HOUR_MS = 60 * 60_000;
const CELLS = 5;

class TestWorker {
	readonly workerId = newId<WorkerId>(random);
	readonly key = newSigningKey();
	state: WorkerState = 'ready';
	readonly shard: DrawnShard;
	readonly questions: AuditQuestion[] = [];
	/** In place of the truth. */
	answers: (question: AuditQuestion) => Promise<AuditAnswer>;
	readonly #cells = Array.from({ length: CELLS }, (_, row) => random.bytes(row === CELLS - 1 ? 100 : SMALL_CELL_BYTES));

	constructor() {
		const leaves = Buffer.concat(this.#cells.map(leafHash));
		const shardId = newId<ShardId>(random);
		const segment: Segment = {
			codec: 'replicate',
			k: 1,
			n: 1,
			cellBytes: SMALL_CELL_BYTES,
			cells: CELLS,
			lastCellBytes: 100,
			index: 0,
			sealId: newId<SealId>(random),
			encodingId: newId<EncodingId>(random),
			endRecord: Buffer.alloc(25),
			roots: rootOf(leaves),
			because: '',
			placements: [{ shardIndex: 0, workerId: this.workerId, shardId }],
		};
		const [objectId, versionId] = [newId<ObjectId>(random), newId<VersionId>(random)];
		this.shard = { objectId, versionId, segment, shardIndex: 0, shardId };
		this.answers = this.truth;
	}

	readonly truth = async (question: AuditQuestion): Promise<AuditAnswer> => {
		const cell = this.#cells[question.row] as Buffer;
		const leaves = Buffer.concat(this.#cells.map(leafHash));
		return answerAudit(question, { workerId: this.workerId, cell, leaves }, this.key);
	};

	readonly refuse = (kind: ConstructorParameters<typeof DistroError>[0]) => {
		this.answers = () => Promise.reject(new DistroError(kind, `it says ${kind}`));
	};
}

let clock: ManualClock;
let workers: TestWorker[];
let outcomes: Map<WorkerId, AuditOutcome[]>;
let found: Omit<Finding, 'foundAtMs'>[];
let deps: AuditDeps;

beforeEach(() => {
	clock = new ManualClock();
	workers = [new TestWorker(), new TestWorker(), new TestWorker()];
	outcomes = new Map();
	found = [];
	const of = (workerId: WorkerId) => workers.find((worker) => worker.workerId === workerId);
	deps = {
		workers: {
			rows: () =>
				workers.map(({ workerId, key, state }) => ({ row: { workerId, receiptKey: rawPublicKey(key) }, state })),
			ref: (workerId) => ({ workerId, address: 'memory:1' }),
		},
		transport: {
			audit: (ref, question) => {
				const worker = of(ref.workerId) as TestWorker;
				worker.questions.push(question);
				return worker.answers(question);
			},
		},
		store: {
			segments: async (versionId) => {
				const worker = workers.find(({ shard }) => shard.versionId === versionId);
				return worker === undefined ? [] : [worker.shard.segment];
			},
		},
		findings: {
			add: async (findings) => void found.push(...findings),
			has: () => false,
		},
		drawShard: async (workerId) => of(workerId)?.shard ?? null,
		clock,
		random,
		perHour: 60,
		onOutcome: (workerId, outcome) => {
			outcomes.set(workerId, [...(outcomes.get(workerId) ?? []), outcome]);
		},
	};
});

const outcomesOf = (index: number) => outcomes.get((workers[index] as TestWorker).workerId) ?? [];
const first = () => workers[0] as TestWorker;
const lease = { name: 'audit', fencing: 1 };

/** Lets so much time go by as the job's own waits and those of its audits say. */
async function run(ms: number, changed: Partial<AuditDeps> = {}, stopping = new AbortController()): Promise<void> {
	const job = auditJob({ ...deps, ...changed });
	const untilMs = clock.nowMs() + ms;
	while (clock.nowMs() < untilMs && !stopping.signal.aborted) {
		let over = false;
		const step = job.step(stopping.signal, lease, false).finally(() => {
			over = true;
		});
		step.catch(() => {});
		for (;;) {
			for (let i = 0; i < 30 && !over; i++) await new Promise((done) => setImmediate(done));
			if (over) break;
			clock.advance(100);
		}
		clock.advance(Math.max(1, await step));
	}
}

test('each worker is asked about as often as it should be, for cells at random, with a new nonce each time', async () => {
	await run(4 * HOUR_MS);
	for (const [index, worker] of workers.entries()) {
		expect(outcomesOf(index).length).toBeGreaterThan(200);
		expect(outcomesOf(index).length).toBeLessThan(280);
		expect(new Set(outcomesOf(index))).toEqual(new Set(['ok']));
		expect(new Set(worker.questions.map(({ row }) => row)).size).toBe(CELLS);
		const nonces = worker.questions.map(({ nonce }) => nonce.toString('hex'));
		expect(new Set(nonces).size).toBe(nonces.length);
		expect(nonces[0]).toHaveLength(64);
	}
	expect(found).toEqual([]);
});

test('none at all when so told', async () => {
	await run(2 * HOUR_MS, { perHour: 0 });
	expect(outcomes.size).toBe(0);
});

test('asked for, each worker is asked at once, also where audits are off', async () => {
	for (const perHour of [0, 60]) {
		outcomes.clear();
		const job = auditJob({ ...deps, perHour });
		expect(await job.step(new AbortController().signal, lease, true)).toBeGreaterThan(0);
		expect([...outcomes.values()]).toEqual([['ok'], ['ok'], ['ok']]);
	}
});

const lies: [string, (answer: AuditAnswer) => AuditAnswer][] = [
	['another cell', (answer) => ({ ...answer, cell: random.bytes(answer.cell.length) })],
	['a cell cut short', (answer) => ({ ...answer, cell: answer.cell.subarray(1) })],
	['another path', (answer) => ({ ...answer, path: answer.path.map(() => random.bytes(32)) })],
	['no path', (answer) => ({ ...answer, path: [] })],
	['more leaves', (answer) => ({ ...answer, leaves: CELLS + 1 })],
	['another signature', (answer) => ({ ...answer, signature: random.bytes(64) })],
	['no signature', (answer) => ({ ...answer, signature: Buffer.alloc(0) })],
];
test.each(lies)('%s: corrupt, at the first time', async (_what, lie) => {
	const worker = first();
	worker.answers = async (question) => lie(await worker.truth(question));
	await run(3 * 60_000);
	expect(outcomesOf(0)[0]).toBe('corrupt');
	expect(found[0]).toMatchObject({ shardId: worker.shard.shardId, workerId: worker.workerId, kind: 'corrupt' });
	expect(found[0]?.detail).toMatch(/^audit: /);
	expect(found.every(({ workerId }) => workerId === worker.workerId)).toBe(true);
	expect(outcomesOf(1)).toEqual(outcomesOf(1).map(() => 'ok'));
});

test('a worker that says itself that a shard is corrupt is believed', async () => {
	first().refuse('corrupt');
	await run(3 * 60_000);
	expect(outcomesOf(0)[0]).toBe('corrupt');
	expect(found[0]).toMatchObject({ kind: 'corrupt', detail: 'audit: it says corrupt' });
});

describe('missing', () => {
	test('is asked for once more, and then it is a finding', async () => {
		const worker = first();
		worker.refuse('not_found');
		await run(3 * 60_000);
		expect(outcomesOf(0)[0]).toBe('missing');
		expect(worker.questions.length).toBe(2 * outcomesOf(0).length);
		expect(found[0]).toMatchObject({ shardId: worker.shard.shardId, workerId: worker.workerId, kind: 'missing' });
	});

	test.each([
		['there after all', 'ok', null],
		['offline', 'offline', 'unavailable'],
		['too slow to say', 'timeout', 'timeout'],
	] as const)('when it is %s the second time: %s, and no finding', async (_what, outcome, kind) => {
		const worker = first();
		worker.answers = (question) => {
			if (worker.questions.length % 2 === 1) return Promise.reject(new DistroError('not_found', 'no such shard'));
			return kind === null ? worker.truth(question) : Promise.reject(new DistroError(kind, 'later'));
		};
		await run(HOUR_MS);
		expect(new Set(outcomesOf(0))).toEqual(new Set([outcome]));
		expect(found).toEqual([]);
	});
});

test.each(['not_found', 'corrupt'] as const)(
	'%s of a shard that is placed there no more says nothing',
	async (kind) => {
		const worker = first();
		worker.refuse(kind);
		const elsewhere = { ...worker.shard.segment, placements: [{ ...worker.shard.segment.placements[0] }] };
		Object.assign(elsewhere.placements[0] as object, { shardId: newId<ShardId>(random) });
		await run(HOUR_MS, { store: { segments: async () => [elsewhere as Segment] } });
		await run(HOUR_MS, { store: { segments: async () => [] } });
		expect(worker.questions.length).toBeGreaterThan(100);
		expect(outcomesOf(0)).toEqual([]);
		expect(found).toEqual([]);
	},
);

test('timeout and offline are told apart, and are never findings', async () => {
	const kinds = { timeout: 'timeout', unavailable: 'offline', internal: 'offline' } as const;
	for (const [kind, outcome] of Object.entries(kinds)) {
		outcomes.clear();
		first().refuse(kind as keyof typeof kinds);
		await run(HOUR_MS);
		expect(new Set(outcomesOf(0))).toEqual(new Set([outcome]));
	}
	expect(found).toEqual([]);
});

test('a shard of a newer release, or a worker of an older one, says nothing of either', async () => {
	first().refuse('unsupported');
	await run(HOUR_MS);
	expect(first().questions.length).toBeGreaterThan(10);
	expect([outcomesOf(0), found]).toEqual([[], []]);
});

test('who is away is offline, and is not called', async () => {
	for (const [index, state] of (['suspect', 'lost', 'draining'] as const).entries()) {
		(workers[index] as TestWorker).state = state;
	}
	await run(HOUR_MS);
	expect(workers.map(({ questions }) => questions.length > 0)).toEqual([false, false, true]);
	expect(outcomesOf(0)[0]).toBe('offline');
	expect(outcomesOf(1)[0]).toBe('offline');
	expect(new Set(outcomesOf(2))).toEqual(new Set(['ok']));
});

test('after a bad answer it is asked often, until enough good ones came', async () => {
	const worker = first();
	worker.answers = async (question) => {
		if (worker.questions.length > 10) return worker.truth(question);
		return Promise.reject(new DistroError('corrupt', 'rotten'));
	};
	await run(10 * 60_000);
	expect(outcomesOf(0).filter((outcome) => outcome === 'corrupt')).toHaveLength(10);
	expect(outcomesOf(0).length).toBeGreaterThanOrEqual(40);
	expect(outcomesOf(0).length).toBeLessThan(60);
	expect(outcomesOf(1).length).toBeLessThan(20);
});

test('a worker without shards, and a shard that is known to be wrong, are left alone', async () => {
	await run(HOUR_MS, { drawShard: async () => null });
	await run(HOUR_MS, { findings: { ...deps.findings, has: () => true } });
	expect(outcomes.size).toBe(0);
	expect(first().questions).toEqual([]);
});

test('a finding that can not be written is told, and found again', async () => {
	first().refuse('corrupt');
	let refused = 0;
	const add = async () => {
		refused++;
		throw new DistroError('unavailable', 'the metadata store is away');
	};
	const running = run(HOUR_MS, { findings: { has: () => false, add } });
	await expect(running).rejects.toMatchObject({ kind: 'unavailable' });
	expect(refused).toBe(1);
	expect(outcomesOf(0)).toEqual([]);
	await run(3 * 60_000);
	expect(found.length).toBeGreaterThan(0);
});

test('stopped while it waits to ask again: over at once, and nothing is concluded', async () => {
	const stopping = new AbortController();
	const worker = first();
	worker.answers = async () => {
		stopping.abort();
		throw new DistroError('not_found', 'no such shard');
	};
	await run(HOUR_MS, {}, stopping);
	expect(worker.questions).toHaveLength(1);
	expect(outcomesOf(0)).toEqual([]);
	expect(found).toEqual([]);
});
