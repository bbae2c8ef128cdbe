/**
 * Golden vectors: what this release writes must be, byte for byte, what the first one wrote. `UPDATE_VECTORS=1` writes
 * the files anew (`npm run format` after it); a changed file in a commit is a changed format, and needs a new version.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import type { Random } from '../../core/ports.ts';

export type Golden = string | number | boolean | null | readonly Golden[] | { readonly [name: string]: Golden };

/** Compares with `<name>.json` beside this file and answers what stands there. */
export function golden<T extends { readonly [name: string]: Golden }>(name: string, made: T): T {
	const file = join(import.meta.dirname, `${name}.json`);
	if (process.env.UPDATE_VECTORS === '1') writeFileSync(file, `${JSON.stringify(made, null, 2)}\n`);
	const kept = JSON.parse(readFileSync(file, 'utf8')) as T;
	expect(made).toEqual(kept);
	return kept;
}

/** The bytes first, first + 1, first + 2, …: easy to make in any language. */
export function counting(count: number, first = 0): Buffer {
	return Buffer.from(Array.from({ length: count }, (_, i) => (first + i) & 0xff));
}

/** Hands out counting bytes that go on from call to call. */
export function countingRandom(first: number): Random {
	let next = first;
	return {
		bytes: (count) => {
			const bytes = counting(count, next);
			next += count;
			return bytes;
		},
	};
}

/** The id of 16 equal bytes. */
export function sameId<T extends string>(byte: number): T {
	return Buffer.alloc(16, byte).toString('hex') as T;
}

export function hex(bytes: Buffer): string {
	return bytes.toString('hex');
}
