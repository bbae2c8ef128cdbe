/**
 * The SQLite adapter without its thread: faults between any two statements, and random histories compared with the
 * reference in memory.
 */

import type { DatabaseSync } from 'node:sqlite';
import { deserialize, serialize } from 'node:v8';
import { describe, expect, test } from 'vitest';
import { asDistroError, DistroError } from '../core/errors.ts';
import type { ShardId, UploadId, WorkerId } from '../core/ids.ts';
import { atOnce, begin, Fixtures, NOW_MS } from './store.fixtures.ts';
import { compareHistories } from './store.histories.ts';
import type { MetadataStore, RepairItem } from './store.ts';
import { type CallRunner, SqliteMetadataStore } from './store-sqlite.ts';
import { answerReads, answerWrites, type Call, isRead, type MethodName } from './store-sqlite-batch.ts';
import { openMetadataDatabase } from './store-sqlite-schema.ts';
import { CachedSql, type Sql, type SqlValue } from './store-sqlite-sql.ts';

/** Throws at one statement, before or after it took effect. */
class FaultySql implements Sql {
	readonly #inner: Sql;
	#left = Number.POSITIVE_INFINITY;
	#after = false;
	#fired = false;

	constructor(inner: Sql) {
		this.#inner = inner;
	}

	failAt(statement: number, after: boolean): void {
		this.#left = statement;
		this.#after = after;
		this.#fired = false;
	}

	/** Whether the fault came; there is none any more. */
	disarm(): boolean {
		this.#left = Number.POSITIVE_INFINITY;
		return this.#fired;
	}

	#guarded<T>(operation: () => T): T {
		const now = this.#left-- === 0;
		if (!now) return operation();
		this.#fired = true;
		if (this.#after) operation();
		throw new Error('injected');
	}

	run(statement: string, ...values: SqlValue[]) {
		return this.#guarded(() => this.#inner.run(statement, ...values));
	}

	get<Row>(statement: string, ...values: SqlValue[]) {
		return this.#guarded(() => this.#inner.get<Row>(statement, ...values));
	}

	all<Row>(statement: string, ...values: SqlValue[]) {
		return this.#guarded(() => this.#inner.all<Row>(statement, ...values));
	}

	get inTransaction() {
		return this.#inner.inTransaction;
	}
}

/** The caller's own thread; calls of one turn are one batch, as with the real one. */
function inlineRunner(sql: Sql): CallRunner {
	let inbox: { call: Call; resolve: (value: unknown) => void; reject: (error: Error) => void }[] = [];
	let nextId = 0;
	const drain = () => {
		const items = inbox;
		inbox = [];
		const calls = deserialize(serialize(items.map(({ call }) => call))) as Call[];
		const writes = answerWrites(
			sql,
			calls.filter((call) => !isRead(call)),
		);
		const reads = answerReads(sql, calls.filter(isRead));
		for (const answer of [...reads, ...writes]) {
			const item = items.find(({ call }) => call.id === answer.id);
			if (answer.error === undefined) item?.resolve(answer.value);
			else item?.reject(new DistroError(answer.error.kind, answer.error.message));
		}
	};
	return {
		run: (method: MethodName, args) =>
			new Promise((resolve, reject) => {
				if (inbox.push({ call: { id: nextId++, method, args }, resolve, reject }) === 1) queueMicrotask(drain);
			}),
		close: async () => {},
	};
}

function openInline(): { db: DatabaseSync; sql: FaultySql; store: MetadataStore } {
	const db = openMetadataDatabase(':memory:');
	const sql = new FaultySql(new CachedSql(db));
	return { db, sql, store: new SqliteMetadataStore(inlineRunner(sql)) };
}

/** Every row of every table. */
function dump(db: DatabaseSync): string {
	const tables = db.prepare(`SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name`).all() as {
		name: string;
	}[];
	return JSON.stringify(tables.map(({ name }) => [name, db.prepare(`SELECT * FROM ${name}`).all()]));
}

describe('a fault at any statement leaves all or nothing', () => {
	const make = new Fixtures('faults');
	const workers = Array.from({ length: 6 }, () => make.id<WorkerId>());
	const idempotency = { key: 'key', fingerprint: 'f' };

	type Prepared = { act: () => Promise<unknown> };
	const scenarios: Record<string, (store: MetadataStore) => Promise<Prepared>> = {
		begin: async (store) => {
			const upload = make.upload(workers);
			return { act: () => begin(store, upload) };
		},
		commit: async (store) => {
			const upload = make.upload(workers, { segments: 2, missing: [3], idempotency });
			await begin(store, upload);
			return { act: () => store.commit(upload.commit) };
		},
		abort: async (store) => {
			const upload = make.upload(workers);
			await begin(store, upload);
			return { act: () => store.abort(upload.uploadId, NOW_MS) };
		},
		expireIntents: async (store) => {
			for (let count = 0; count < 3; count++) await begin(store, make.upload(workers));
			return { act: () => store.expireIntents(NOW_MS * 2, 10) };
		},
		deleteObject: async (store) => {
			const { objectId } = await make.store(store, workers, { segments: 2, missing: [1] });
			return { act: () => store.deleteObject(objectId, atOnce()) };
		},
		'deleteObject into the trash': async (store) => {
			const { objectId } = await make.store(store, workers, { segments: 2, missing: [1] });
			return { act: () => store.deleteObject(objectId, { nowMs: NOW_MS, purgeAtMs: NOW_MS + 5, by: 'key-1' }) };
		},
		undeleteObject: async (store) => {
			const { objectId } = await make.store(store, workers, { segments: 2 });
			await store.deleteObject(objectId, { nowMs: NOW_MS, purgeAtMs: NOW_MS + 5, by: '' });
			return { act: () => store.undeleteObject(objectId, { nowMs: NOW_MS, by: 'key-1' }) };
		},
		purgeTrash: async (store) => {
			for (let count = 0; count < 2; count++) {
				const { objectId } = await make.store(store, workers, { missing: [1] });
				await store.deleteObject(objectId, { nowMs: NOW_MS, purgeAtMs: NOW_MS + 5, by: '' });
			}
			return { act: () => store.purgeTrash(NOW_MS * 2, 10) };
		},
		addFindings: async (store) => {
			const { shards } = await make.store(store, workers, { segments: 2 });
			const findings = shards.map((shard) => ({ ...shard, kind: 'missing' as const, detail: '', foundAtMs: NOW_MS }));
			return { act: () => store.addFindings(findings) };
		},
		repairDone: async (store) => {
			const upload = await make.store(store, workers, { missing: [0, 1] });
			const { item, uploadId, placement } = await beginRepair(store, make, workers);
			expect(item.objectId).toBe(upload.objectId);
			return { act: () => store.repairDone({ item, placement, keyGeneration: 1, nowMs: NOW_MS }, uploadId) };
		},
		'repairDone after deletion': async (store) => {
			const upload = await make.store(store, workers, { missing: [0] });
			const { item, uploadId, placement } = await beginRepair(store, make, workers);
			await store.deleteObject(upload.objectId, atOnce());
			const done = { item, placement, keyGeneration: 1, nowMs: NOW_MS };
			// It is refused in any case; what counts is that the new shard is to be deleted.
			const refused = (error: unknown) => {
				if (!['conflict', 'expired'].includes(asDistroError(error).kind)) throw error;
			};
			return { act: () => store.repairDone(done, uploadId).catch(refused) };
		},
	};

	test.each(Object.entries(scenarios))('%s', async (_, prepare) => {
		for (const after of [false, true]) {
			for (let at = 0; ; at++) {
				const { db, sql, store } = openInline();
				const { act } = await prepare(store);
				const before = dump(db);
				sql.failAt(at, after);
				const outcome = await act().then(
					() => 'done',
					() => 'refused',
				);
				const fired = sql.disarm();
				if (!fired) {
					expect(outcome).toBe('done');
					expect(at).toBeGreaterThan(3);
					break;
				}
				expect(outcome).toBe('refused');
				expect(db.isTransaction).toBe(false);
				const between = dump(db);
				await act();
				// A COMMIT whose answer was lost may have happened: then nothing is left to do.
				if (between !== before) expect(between).toBe(dump(db));
				expect(dump(db)).not.toBe(before);
				db.close();
			}
		}
	});

	test('the others in the batch are as if it had not been there', async () => {
		for (let at = 0; ; at++) {
			const { db, sql, store } = openInline();
			const uploads = Array.from({ length: 3 }, () => make.upload(workers, { missing: [0] }));
			for (const upload of uploads) await begin(store, upload);
			sql.failAt(at, false);
			const results = await Promise.allSettled(uploads.map(({ commit }) => store.commit(commit)));
			if (!sql.disarm()) break;
			for (const [index, { objectId }] of uploads.entries()) {
				const found = await store.objectWithSegments(objectId, { fromSegment: 0, limit: 9 });
				expect(found !== null).toBe(results[index]?.status === 'fulfilled');
			}
			expect(results.filter(({ status }) => status === 'rejected').length).toBeOneOf([1, 3]);
			db.close();
		}
	});

	test('when SQLite drops the whole transaction, every call of the batch fails', async () => {
		const { db, store } = openInline();
		const sql = new CachedSql(db);
		const first = make.upload(workers);
		await begin(store, first);
		const dropping: Sql = {
			run: (statement, ...values) => {
				// What SQLite does by itself on SQLITE_FULL or SQLITE_IOERR.
				if (statement.includes('INTO segments')) {
					sql.run('ROLLBACK');
					throw new Error('database or disk is full');
				}
				return sql.run(statement, ...values);
			},
			get: (statement, ...values) => sql.get(statement, ...values),
			all: (statement, ...values) => sql.all(statement, ...values),
			get inTransaction() {
				return sql.inTransaction;
			},
		};
		const inline = make.upload(workers, { segments: 0 });
		const answers = answerWrites(dropping, [
			{ id: 1, method: 'commit', args: [inline.commit] },
			{ id: 2, method: 'commit', args: [first.commit] },
			{ id: 3, method: 'commit', args: [inline.commit] },
		]);
		expect(answers.map(({ error }) => error?.kind)).toEqual(['internal', 'internal', 'internal']);
		expect(await store.object(inline.objectId)).toBeNull();
		await store.commit(first.commit);
	});
});

async function beginRepair(store: MetadataStore, make: Fixtures, workers: readonly WorkerId[]) {
	const [item] = (await store.repairs({ nowMs: NOW_MS, limit: 1 })) as [RepairItem];
	const uploadId = make.id<UploadId>();
	const shard = { shardId: make.id<ShardId>(), workerId: workers[0] as WorkerId };
	await store.begin({ uploadId, objectId: item.objectId, shards: [shard], expiresAtMs: NOW_MS + 1 });
	return { item, uploadId, placement: { shardIndex: item.shardIndex, ...shard } };
}

test('random histories: SQLite answers as the reference does', async () => {
	const open = async () => {
		const { db, store } = openInline();
		return { store, check: async () => checkQueues(db) };
	};
	await compareHistories(open, { runs: 60 });
});

/** What must hold in every state: nothing placed is to be deleted, and the kept figures are the true ones. */
function checkQueues(db: DatabaseSync): void {
	const count = (query: string) => (db.prepare(query).get() as { count: number }).count;
	expect(count('SELECT count(*) AS count FROM placements JOIN deletions USING (shard_id)')).toBe(0);
	expect(count('SELECT count(*) AS count FROM findings WHERE shard_id NOT IN (SELECT shard_id FROM placements)')).toBe(
		0,
	);
	expect(
		count('SELECT count(*) AS count FROM intent_shards WHERE upload_id NOT IN (SELECT upload_id FROM intents)'),
	).toBe(0);
	const wrong = count(`
		SELECT count(*) AS count FROM repairs r JOIN segments s USING (object_no, segment)
		WHERE spares <> n - k - (SELECT count(*) FROM repairs WHERE object_no = r.object_no AND segment = r.segment)`);
	expect(wrong).toBe(0);
}
