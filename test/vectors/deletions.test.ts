/** Golden entries of the log of deletions: their hashes, each over the one before. */

import { expect, test } from 'vitest';
import {
	type Deletion,
	type DeletionHead,
	follows,
	headAfter,
	NO_DELETIONS,
	nextDeletion,
} from '../../core/crypto/deletion-log.ts';
import { golden, hex, sameId } from './golden.ts';

const deletions: readonly Deletion[] = [
	{ objectId: sameId(0x11), action: 'trashed', atMs: 1_700_000_000_000, by: '0123456789abcdef' },
	{ objectId: sameId(0x11), action: 'undeleted', atMs: 1_700_000_000_001, by: '' },
	{ objectId: sameId(0x22), action: 'purged', atMs: 2 ** 53 - 1, by: 'ü' },
];

test('the log of deletions', () => {
	let head: DeletionHead = NO_DELETIONS;
	const entries = deletions.map((deletion) => {
		const entry = nextDeletion(head, deletion);
		expect(follows(head, entry)).toBe(true);
		expect(follows(headAfter(entry), entry)).toBe(false);
		head = headAfter(entry);
		return { ...deletion, number: entry.number, hash: hex(entry.hash) };
	});
	golden('deletions', { entries });
});
