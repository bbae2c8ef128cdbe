/** Small files that must survive a power cut: written beside, synced, renamed, folder synced. */

import { randomUUID } from 'node:crypto';
import { closeSync, fsyncSync, linkSync, openSync, readFileSync, renameSync, unlinkSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import { DistroError } from '../core/errors.ts';
import { checkVersion } from '../core/versions.ts';

export function writeFileDurably(path: string, text: string, options: { mode: number }): void {
	const temporary = `${path}.new`;
	const file = openSync(temporary, 'w', options.mode);
	try {
		writeSync(file, text);
		fsyncSync(file);
	} finally {
		closeSync(file);
	}
	renameSync(temporary, path);
	syncFolder(dirname(path));
}

/** The same, unless the file is there: false then, and nothing is changed. Of several that try at once one makes it. */
export function createFileDurably(path: string, text: string, options: { mode: number }): boolean {
	const temporary = `${path}.${randomUUID()}`;
	writeFileDurably(temporary, text, options);
	try {
		linkSync(temporary, path);
	} catch (error) {
		if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
		throw error;
	} finally {
		unlinkSync(temporary);
	}
	syncFolder(dirname(path));
	return true;
}

/** An object with its `version`. Throws `unsupported` when a newer release wrote it, `corrupt` when it is none of ours. */
export function readVersionedJson(path: string, options: { newest: number }): Record<string, unknown> {
	let read: unknown;
	try {
		read = JSON.parse(readFileSync(path, 'utf8'));
	} catch (error) {
		if (!(error instanceof SyntaxError)) throw error;
	}
	if (typeof read !== 'object' || read === null) throw new DistroError('corrupt', `${path} is damaged: restore it`);
	const record = read as Record<string, unknown>;
	checkVersion(record.version, { what: path, newest: options.newest });
	return record;
}

/** Makes the names in a folder durable. */
export function syncFolder(path: string): void {
	const folder = openSync(path, 'r');
	try {
		fsyncSync(folder);
	} finally {
		closeSync(folder);
	}
}
