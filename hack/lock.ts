/**
 * One owner a folder: SQLite's lock on a small file in it. The kernel drops it when the owner dies, however it dies, and no
 * process number that was given out again can be taken for the owner.
 */

import { DatabaseSync } from 'node:sqlite';

/** Held for as long as this process lives. */
const held: DatabaseSync[] = [];

/** False: another process has it. Throws where the file can't be written. */
export function tryLock(path: string): boolean {
	const db = new DatabaseSync(path, { timeout: 0 });
	try {
		db.exec('PRAGMA journal_mode = OFF; BEGIN EXCLUSIVE');
	} catch (error) {
		db.close();
		const busy = 'errcode' in (error as Error) && (error as Error & { errcode: number }).errcode === 5;
		if (busy) return false;
		throw error;
	}
	held.push(db);
	return true;
}
