/**
 * An audit: a worker shows that it has one cell of a shard, by the cell itself, the path from its leaf to the root that the
 * metadata know, and a signature that binds both to this worker, this shard and this question. One worker alone can be
 * audited so (Storj, which throws its hashes away, must download from all of a segment's workers).
 *
 * Signed bytes: "distro audit v1\0" | worker id (16) | shard id (16) | row (u32 LE) | leaves (u32 LE) | nonce (32) | leaf (32).
 */

import { ByteWriter } from '../bytes.ts';
import { idBytes, type ShardId, type WorkerId } from '../ids.ts';

export const AUDIT_NONCE_BYTES = 32;

export interface AuditQuestion {
	readonly shardId: ShardId;
	/** Which of the shard's cells. */
	readonly row: number;
	/** AUDIT_NONCE_BYTES, random: no answer of before will do. */
	readonly nonce: Buffer;
}

export interface AuditAnswer {
	readonly cell: Buffer;
	/** Siblings from the leaf up, 32 bytes each. */
	readonly path: readonly Buffer[];
	/** How many leaves the shard has. */
	readonly leaves: number;
	/** Ed25519, 64 bytes, by the key of the worker's receipts. */
	readonly signature: Buffer;
}

const PREFIX = Buffer.from('distro audit v1\0', 'latin1');

export function auditSignedBytes(
	question: AuditQuestion,
	said: { workerId: WorkerId; leaves: number; leaf: Buffer },
): Buffer {
	return new ByteWriter()
		.raw(PREFIX)
		.raw(idBytes(said.workerId))
		.raw(idBytes(question.shardId))
		.u32(question.row)
		.u32(said.leaves)
		.raw(question.nonce)
		.raw(said.leaf)
		.bytes();
}
