/** Workers, and how people steer jobs, in SQLite. */

import type { WorkerId } from '../core/ids.ts';
import type { WorkerDuty } from '../core/model/health.ts';
import type { JobRow, Lease, WorkerFigures, WorkerRow, WorkerSighting } from './store.ts';
import { nameTaken, otherReceiptKey, stillPlaced } from './store-rules.ts';
import { checkLease } from './store-sqlite-leases.ts';
import { bufferOf, type Sql } from './store-sqlite-sql.ts';

export function saveWorker(sql: Sql, worker: WorkerSighting): void {
	const known = sql.get<{ receiptKey: Uint8Array }>(
		'SELECT receipt_key AS receiptKey FROM workers WHERE worker_id = ?',
		worker.workerId,
	);
	if (known !== undefined && !worker.receiptKey.equals(known.receiptKey)) throw otherReceiptKey(worker.name);
	const named = sql.get('SELECT 1 FROM workers WHERE name = ? AND worker_id <> ?', worker.name, worker.workerId);
	if (named !== undefined) throw nameTaken(worker.name);
	sql.run(
		`INSERT INTO workers (worker_id, name, address, zone, receipt_key, registered_at_ms, last_seen_ms, bytes_total,
				bytes_used, shards) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (worker_id) DO UPDATE SET name = excluded.name, address = excluded.address, zone = excluded.zone,
				last_seen_ms = excluded.last_seen_ms, bytes_total = excluded.bytes_total, bytes_used = excluded.bytes_used,
				shards = excluded.shards`,
		worker.workerId,
		worker.name,
		worker.address,
		worker.zone,
		worker.receiptKey,
		worker.registeredAtMs,
		worker.lastSeenMs,
		worker.bytesTotal,
		worker.bytesUsed,
		worker.shards,
	);
}

export function sawWorkers(sql: Sql, seen: readonly WorkerFigures[]): void {
	for (const { workerId, lastSeenMs, bytesTotal, bytesUsed, shards } of seen) {
		sql.run(
			'UPDATE workers SET last_seen_ms = ?, bytes_total = ?, bytes_used = ?, shards = ? WHERE worker_id = ?',
			lastSeenMs,
			bytesTotal,
			bytesUsed,
			shards,
			workerId,
		);
	}
}

export function renameWorker(sql: Sql, workerId: WorkerId, to: { name: string; lastSeenMs: number }): boolean {
	const { name, lastSeenMs } = to;
	const known = sql.get<{ name: string; lastSeenMs: number }>(
		'SELECT name, last_seen_ms AS lastSeenMs FROM workers WHERE worker_id = ?',
		workerId,
	);
	if (known?.lastSeenMs !== lastSeenMs) return known?.name === name;
	if (sql.get('SELECT 1 FROM workers WHERE name = ? AND worker_id <> ?', name, workerId) !== undefined) {
		throw nameTaken(name);
	}
	sql.run('UPDATE workers SET name = ? WHERE worker_id = ?', name, workerId);
	return true;
}

export function workers(sql: Sql): readonly WorkerRow[] {
	const records = sql.all<Omit<WorkerRow, 'receiptKey'> & { receiptKey: Uint8Array }>(
		`SELECT worker_id AS workerId, name, address, zone, receipt_key AS receiptKey, registered_at_ms AS registeredAtMs,
				last_seen_ms AS lastSeenMs, bytes_total AS bytesTotal, bytes_used AS bytesUsed, shards, duty, history
			FROM workers ORDER BY name`,
	);
	return records.map((record) => ({ ...record, receiptKey: bufferOf(record.receiptKey) }));
}

export function setDuty(sql: Sql, workerId: WorkerId, duty: WorkerDuty): boolean {
	return sql.run('UPDATE workers SET duty = ? WHERE worker_id = ?', duty, workerId).changes > 0;
}

export function saveHistory(sql: Sql, workerId: WorkerId, history: string, lease?: Lease): void {
	checkLease(sql, lease);
	sql.run('UPDATE workers SET history = ? WHERE worker_id = ?', history, workerId);
}

export function forgetWorker(sql: Sql, workerId: WorkerId, nowMs: number): boolean {
	const known = sql.get<{ name: string }>('SELECT name FROM workers WHERE worker_id = ?', workerId);
	if (known === undefined) return false;
	const placed = sql.get(
		`SELECT 1 FROM placements WHERE worker_id = ?1
			UNION ALL SELECT 1 FROM intent_shards WHERE worker_id = ?1 LIMIT 1`,
		workerId,
	);
	if (placed !== undefined) throw stillPlaced(known.name);
	sql.run('DELETE FROM deletions WHERE worker_id = ?', workerId);
	sql.run('DELETE FROM workers WHERE worker_id = ?', workerId);
	sql.run(
		`INSERT INTO forgotten_workers (worker_id, forgotten_at_ms) VALUES (?, ?)
			ON CONFLICT (worker_id) DO UPDATE SET forgotten_at_ms = excluded.forgotten_at_ms`,
		workerId,
		nowMs,
	);
	return true;
}

export function forgottenAt(sql: Sql, workerId: WorkerId): number | null {
	const row = sql.get<{ forgottenAtMs: number }>(
		'SELECT forgotten_at_ms AS forgottenAtMs FROM forgotten_workers WHERE worker_id = ?',
		workerId,
	);
	return row?.forgottenAtMs ?? null;
}

export function jobs(sql: Sql): readonly JobRow[] {
	const records = sql.all<Omit<JobRow, 'paused'> & { paused: number }>(
		'SELECT name, paused, runs, state, updated_at_ms AS updatedAtMs FROM jobs ORDER BY name',
	);
	return records.map((record) => ({ ...record, paused: record.paused !== 0 }));
}

export function pauseJob(sql: Sql, name: string, paused: boolean, nowMs: number): void {
	sql.run(
		`INSERT INTO jobs (name, paused, updated_at_ms) VALUES (?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET paused = excluded.paused, updated_at_ms = excluded.updated_at_ms`,
		name,
		paused ? 1 : 0,
		nowMs,
	);
}

export function requestRun(sql: Sql, name: string, nowMs: number): void {
	sql.run(
		`INSERT INTO jobs (name, runs, updated_at_ms) VALUES (?, 1, ?)
			ON CONFLICT (name) DO UPDATE SET runs = runs + 1, updated_at_ms = excluded.updated_at_ms`,
		name,
		nowMs,
	);
}

export function saveJobState(sql: Sql, name: string, state: string, nowMs: number, lease?: Lease): void {
	checkLease(sql, lease);
	sql.run(
		`INSERT INTO jobs (name, state, updated_at_ms) VALUES (?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET state = excluded.state, updated_at_ms = excluded.updated_at_ms`,
		name,
		state,
		nowMs,
	);
}
