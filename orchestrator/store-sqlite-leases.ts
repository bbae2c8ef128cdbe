/** Leases, in SQLite. Only the database's own clock counts, so that the rule is the same as with several orchestrators. */

import type { Lease } from './store.ts';
import { leaseLost } from './store-rules.ts';
import type { Sql } from './store-sqlite-sql.ts';

const NOW_MS = `CAST(unixepoch('subsec') * 1000 AS INTEGER)`;

export function acquireLease(sql: Sql, name: string, options: { holder: string; ttlMs: number }): Lease | null {
	const { holder, ttlMs } = options;
	const { changes } = sql.run(
		`INSERT INTO leases (name, holder, fencing, ends_at_ms) VALUES (?1, ?2, 1, ${NOW_MS} + ?3)
			ON CONFLICT (name) DO UPDATE SET
				fencing = fencing + CASE WHEN holder = ?2 AND ends_at_ms > ${NOW_MS} THEN 0 ELSE 1 END,
				holder = ?2, ends_at_ms = ${NOW_MS} + ?3
			WHERE holder = ?2 OR ends_at_ms <= ${NOW_MS}`,
		name,
		holder,
		ttlMs,
	);
	if (changes === 0) return null;
	return sql.get<Lease>('SELECT name, fencing FROM leases WHERE name = ?', name) as Lease;
}

export function releaseLease(sql: Sql, { name, fencing }: Lease): void {
	sql.run('UPDATE leases SET ends_at_ms = 0 WHERE name = ? AND fencing = ?', name, fencing);
}

/** Throws `expired` unless it still lasts. In the transaction of what it protects. */
export function checkLease(sql: Sql, lease: Lease | undefined): void {
	if (lease === undefined) return;
	const { name, fencing } = lease;
	const lasts = sql.get(
		`SELECT 1 FROM leases WHERE name = ? AND fencing = ? AND ends_at_ms > ${NOW_MS}`,
		name,
		fencing,
	);
	if (lasts === undefined) throw leaseLost(name);
}
