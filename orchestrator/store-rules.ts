/**
 * What every adapter of MetadataStore checks and says in the same way: pure functions, so that an adapter holds only its
 * own storage.
 */

import { DistroError } from '../core/errors.ts';
import { isId, type ObjectId, type ShardId, type UploadId } from '../core/ids.ts';
import type { Segment } from '../core/model/segment.ts';
import type { Commit, Reencoded, TrashedObject } from './store.ts';

/** Refuses, as `invalid`, what no row can hold exactly. */
export function checkCommit({ object, segments }: Commit): void {
	if (!Number.isSafeInteger(object.sizeBytes) || object.sizeBytes < 0) {
		throw new DistroError('invalid', `an object has 0 to ${Number.MAX_SAFE_INTEGER} bytes, not ${object.sizeBytes}`);
	}
	if (segments.length !== object.segments || (segments.length === 0) !== (object.inline !== null)) {
		throw new DistroError('invalid', 'an object has the segments that its row counts, and is inline when it has none');
	}
	for (const [position, segment] of segments.entries()) {
		const indexes = new Set(segment.placements.map(({ shardIndex }) => shardIndex));
		const inRange = segment.placements.every(({ shardIndex }) => shardIndex >= 0 && shardIndex < segment.n);
		if (segment.index !== position || !inRange || indexes.size !== segment.placements.length) {
			throw new DistroError(
				'invalid',
				`segment ${position} is not what can be stored: its shards or its place are wrong`,
			);
		}
	}
}

/** Refuses, as `invalid`, an encoding that is not whole. */
export function checkReencoded({ segment }: Reencoded): void {
	const isWhole = segment.placements.length === segment.n && missingIndexes(segment).length === 0;
	const isApart = new Set(segment.placements.map(({ workerId }) => workerId)).size === segment.n;
	if (!isWhole || !isApart) {
		throw new DistroError('invalid', 'a new encoding takes over with all of its shards, each on a worker of its own');
	}
}

/** Shard indexes of a new segment that repair must add. */
export function missingIndexes(segment: Segment): number[] {
	const placed = new Set(segment.placements.map(({ shardIndex }) => shardIndex));
	return Array.from({ length: segment.n }, (_, index) => index).filter((index) => !placed.has(index));
}

/** The place of a row in lists: opaque to callers. */
export function cursorOf(row: { createdAtMs: number; objectId: ObjectId }): string {
	return `${row.createdAtMs}.${row.objectId}`;
}

export function trashCursorOf({ object, purgeAtMs }: TrashedObject): string {
	return `${purgeAtMs}.${object.objectId}`;
}

/** Of either list. Throws `invalid`. */
export function parseCursor(text: string): { atMs: number; objectId: ObjectId } {
	const [time = '', id = '', ...rest] = text.split('.');
	const atMs = Number(time);
	if (!/^\d{1,16}$/.test(time) || !Number.isSafeInteger(atMs) || !isId(id) || rest.length > 0) {
		throw new DistroError('invalid', 'the cursor is not one that a list gave out: start without one');
	}
	return { atMs, objectId: id as ObjectId };
}

/** The place of a segment in a set's pages, of a store that numbers its objects. Throws `invalid`. */
export function parsePlace(text: string): { objectNo: number; segment: number } {
	const [, objectNo, segment] = /^(\d{1,15})\.(\d{1,15})$/.exec(text) ?? [];
	if (objectNo === undefined || segment === undefined) throw notAPlace();
	return { objectNo: Number(objectNo), segment: Number(segment) };
}

export function notAPlace(): DistroError {
	return new DistroError('invalid', 'the cursor is not one that this set gave out: start without one');
}

export function notOpen(uploadId: UploadId): DistroError {
	return new DistroError('expired', `upload ${uploadId} is not open any more: it expired or was given up; begin again`);
}

export function alreadyCommitted(uploadId: UploadId): DistroError {
	return new DistroError('exists', `upload ${uploadId} was committed already`);
}

export function neverNamed(shardId: ShardId): DistroError {
	return new DistroError('invalid', `shard ${shardId} was not named by the upload's intent for that worker`);
}

export function keyTaken(): DistroError {
	return new DistroError('conflict', 'another upload with this Idempotency-Key came first');
}

export function objectTaken(objectId: ObjectId): DistroError {
	return new DistroError('exists', `object ${objectId} is there already`);
}

export function segmentGone(): DistroError {
	return new DistroError(
		'conflict',
		'the segment was deleted or encoded anew meanwhile; the rebuilt shard will be removed',
	);
}

export function workerTaken(): DistroError {
	return new DistroError(
		'conflict',
		'another shard of the segment is on that worker by now; the new one will be removed',
	);
}

export function otherReceiptKey(name: string): DistroError {
	return new DistroError(
		'denied',
		`worker ${name} is known with another receipt key: its volume is not the one it had`,
	);
}

export function nameTaken(name: string): DistroError {
	return new DistroError('exists', `another worker is called ${name}: give this one its own name`);
}

export function stillPlaced(name: string): DistroError {
	return new DistroError(
		'conflict',
		`${name} still has shards that are not elsewhere, or that a write under way has named: drain it, or let repair and those writes end first`,
	);
}

export function workerForgotten(): DistroError {
	return new DistroError('unavailable', 'a worker that was to take a shard has just been forgotten: try again', {
		retryAfterMs: 1_000,
	});
}

export function leaseLost(name: string): DistroError {
	return new DistroError(
		'expired',
		`the lease ${name} has ended or went to another orchestrator: nothing was written`,
		{
			reason: 'lease_lost',
		},
	);
}

export function generationDropped(generation: number): DistroError {
	return new DistroError(
		'unavailable',
		`generation ${generation} of the cluster key was dropped while this was written: try again`,
	);
}

export function keysChanged(): DistroError {
	return new DistroError('conflict', 'the cluster keys were changed meanwhile: look again');
}

export function generationNeeded(generation: number): DistroError {
	return new DistroError('conflict', `generation ${generation} of the cluster key is still needed`);
}

/** Times of begin and deletion are the callers', that of the note is the store's. */
export const UNUSED_MARGIN_MS = 60_000;

export function storeClosed(): DistroError {
	return new DistroError('unavailable', 'the metadata store is closed');
}
