/**
 * Shards that were deleted a while ago: a put that was on its way all the time, behind a slow link or in a process that was
 * stopped, may come after the delete that was to remove it. It must be refused, or the shard stays for ever: nobody will
 * delete it again. Kept in memory only: a put outlives no connection, and so no restart of this process.
 */

import { DistroError } from '../core/errors.ts';
import type { ShardId } from '../core/ids.ts';
import type { Clock } from '../core/ports.ts';

/** Longer than a connection lives without an answer, and than an upload goes on without its intent. */
const KEEP_MS = 60 * 60_000;
/** About 15 MB. */
const KEPT_MAX = 100_000;

export class RecentlyDeleted {
	readonly #clock: Clock;
	/** Oldest first. */
	readonly #deletedAtMs = new Map<ShardId, number>();

	constructor(clock: Clock) {
		this.#clock = clock;
	}

	add(shardId: ShardId): void {
		const nowMs = this.#clock.monotonicMs();
		this.#deletedAtMs.delete(shardId);
		this.#deletedAtMs.set(shardId, nowMs);
		for (const [oldest, atMs] of this.#deletedAtMs) {
			if (nowMs - atMs < KEEP_MS && this.#deletedAtMs.size <= KEPT_MAX) break;
			this.#deletedAtMs.delete(oldest);
		}
	}

	/** Throws `expired` when it was deleted. */
	refuse(shardId: ShardId): void {
		if (this.#deletedAtMs.has(shardId)) throw new DistroError('expired', `shard ${shardId} was deleted before it came`);
	}
}
