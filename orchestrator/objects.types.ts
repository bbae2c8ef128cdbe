/** What the HTTP layer needs from the objects service: drawn by the consumer (orchestrator/http). */

import type { ObjectId } from '../core/ids.ts';
import type { ObjectKind } from '../core/model/manifest.ts';
import type { ByteSink } from '../core/ports.ts';

export interface ObjectInfo {
	readonly objectId: ObjectId;
	readonly sizeBytes: number;
	readonly createdAtMs: number;
	/** Without quotes. */
	readonly etag: string;
	readonly name: string | null;
	readonly contentType: string | null;
	/** SHA-256 of the plaintext, when the client sent or asked for one. */
	readonly sha256: Buffer | null;
}

export interface TrashedInfo extends ObjectInfo {
	readonly deletedAtMs: number;
	/** When it is gone for good. */
	readonly freedAtMs: number;
}

export interface UploadOptions {
	/** Content-Length or null: a hint, never trusted. */
	readonly sizeHintBytes: number | null;
	readonly name: string | null;
	readonly contentType: string | null;
	/** From Repr-Digest: `invalid` at the end when the bytes differ, and nothing is stored. */
	readonly expectedSha256: Buffer | null;
	/** Make a SHA-256 (expected or wanted). */
	readonly wantSha256: boolean;
	/** `user` where it is not said. */
	readonly kind?: ObjectKind;
	readonly idempotency: { readonly owner: string; readonly key: string; readonly fingerprint: string } | null;
}

/** One upload: push bytes in, then `end`, then await `result`. */
export interface Upload extends ByteSink {
	/** The body is complete. */
	end(): void;
	/** The client is gone, or the body is bad: nothing is left behind. `result` rejects with `canceled`. */
	abort(reason: string): void;
	/** Resolves when the object is durable. Never rejects unhandled: the caller awaits it. */
	readonly result: Promise<ObjectInfo>;
}

export interface Download {
	readonly info: ObjectInfo;
	/**
	 * Sends plaintext bytes [offset, offset + length) into `sink`, each authenticated before it is written. Resolves after
	 * the last write. Rejects on failure (the caller must then break the connection) or with `canceled` after `signal`.
	 */
	read(options: { offset: number; length: number; sink: ByteSink; signal: AbortSignal }): Promise<void>;
}

export interface ObjectExplanation {
	readonly object_id: string;
	readonly size: number;
	readonly stored: 'inline' | 'sharded';
	readonly health: 'healthy' | 'degraded' | 'at_risk' | 'unrecoverable';
	readonly segments: readonly {
		readonly index: number;
		readonly n: number;
		readonly k: number;
		readonly because: string;
		/** How it was cut before it was encoded anew; null: never. */
		readonly was: { readonly n: number; readonly k: number; readonly because: string; readonly until: string } | null;
		/** How it should be cut for the cluster and the policy as they are by now; null: as it is. */
		readonly wanted: { readonly n: number; readonly k: number; readonly because: string; readonly why: string } | null;
		readonly codec: string;
		readonly cell_bytes: number;
		readonly cells: number;
		readonly health: string;
		readonly shards: readonly {
			readonly index: number;
			readonly worker: string | null;
			readonly worker_state: string;
			readonly shard_id: string | null;
			readonly state: 'ok' | 'missing' | 'corrupt' | 'unreachable';
			readonly detail?: string;
		}[];
	}[];
	readonly next_segment: number | null;
}

export interface Objects {
	/**
	 * Reserves memory (`unavailable`, retryAfterMs) and claims the idempotency key (`conflict` when running, `invalid`
	 * on a mismatch); resolves to the finished object when the same request was answered before.
	 */
	beginUpload(options: UploadOptions, signal: AbortSignal): Promise<{ upload: Upload } | { done: ObjectInfo }>;
	/** `not_found`. */
	info(objectId: ObjectId): Promise<ObjectInfo>;
	/** `not_found`, `unavailable`. Nothing is reserved until `read`. */
	open(objectId: ObjectId): Promise<Download>;
	/** Into the trash; `by` is the caller's API key id, or ''. `not_found`. */
	remove(objectId: ObjectId, by: string): Promise<{ freedAtMs: number }>;
	/** Out of it again; fine for one that is not deleted. `not_found`. */
	undelete(objectId: ObjectId, by: string): Promise<ObjectInfo>;
	/** Out of the trash, for good. `not_found`. */
	purge(objectId: ObjectId, by: string): Promise<void>;
	/** What is in the trash, what stays longest first. `invalid` for a bad cursor. */
	trash(options: { limit: number; cursor: string | null }): Promise<{ objects: TrashedInfo[]; next: string | null }>;
	/** `invalid` for a bad cursor. */
	list(options: { limit: number; cursor: string | null }): Promise<{ objects: ObjectInfo[]; next: string | null }>;
	explain(objectId: ObjectId, options: { fromSegment: number; limit: number }): Promise<ObjectExplanation>;
}
