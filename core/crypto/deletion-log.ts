/**
 * The log of deletions as a hash chain: each entry's hash covers its own bytes and the hash before it, so an entry that is
 * edited, removed or moved breaks the chain. Whoever can write to the metadata can make the whole chain anew: that shows
 * only to people who kept a hash of before.
 *
 * Hashed with SHA-256, which Postgres can compute as well (supabase/migrations, docs/format.md §12):
 *
 *     "distro deletion v1\0" | hash before (32) | number (u64 LE) | time (u64 LE) | action (u8) | object id (16) | by, sized
 */

import { createHash } from 'node:crypto';
import { ByteWriter } from '../bytes.ts';
import { idBytes, type ObjectId } from '../ids.ts';

/** A code is never used for something else. */
export const DELETION_ACTIONS = { trashed: 1, undeleted: 2, purged: 3 } as const;
export type DeletionAction = keyof typeof DELETION_ACTIONS;

export interface Deletion {
	readonly objectId: ObjectId;
	readonly action: DeletionAction;
	readonly atMs: number;
	/** An API key id; '' where no key is needed, and for what the cluster does by itself. */
	readonly by: string;
}

export interface DeletionEntry extends Deletion {
	/** From 1. */
	readonly number: number;
	/** 32 bytes. */
	readonly hash: Buffer;
}

/** How long the chain is, and its last hash. */
export interface DeletionHead {
	readonly entries: number;
	readonly hash: Buffer;
}

const PREFIX = Buffer.from('distro deletion v1\0', 'latin1');

/** Of a chain without entries. */
export const NO_DELETIONS: DeletionHead = { entries: 0, hash: Buffer.alloc(32) };

export function nextDeletion(head: DeletionHead, { objectId, action, atMs, by }: Deletion): DeletionEntry {
	const number = head.entries + 1;
	const bytes = new ByteWriter()
		.raw(PREFIX)
		.raw(head.hash)
		.u64(number)
		.u64(atMs)
		.u8(DELETION_ACTIONS[action])
		.raw(idBytes(objectId))
		.sized(Buffer.from(by))
		.bytes();
	return { number, objectId, action, atMs, by, hash: createHash('sha256').update(bytes).digest() };
}

export function headAfter({ number, hash }: DeletionEntry): DeletionHead {
	return { entries: number, hash };
}

/** Whether an entry is what comes after that head, to the bit. */
export function follows(head: DeletionHead, entry: DeletionEntry): boolean {
	if (entry.number !== head.entries + 1 || !Object.hasOwn(DELETION_ACTIONS, entry.action)) return false;
	return nextDeletion(head, entry).hash.equals(entry.hash);
}
