/**
 * A receipt: a worker's signed statement that one shard is durable. Signed with the Ed25519 key that lives on the
 * worker's volume, so that it stands without the connection it came by (clients hand receipts in at commit).
 *
 * Signed bytes: "distro receipt v1\0" | worker id (16) | shard id (16) | root (32) | cell bytes (u64 LE) |
 * time (u64 LE, ms since 1970).
 */

import { idBytes, type ShardId, type WorkerId } from '../ids.ts';

export interface Receipt {
	readonly workerId: WorkerId;
	readonly shardId: ShardId;
	/** Root of the shard's hash tree, 32 bytes. */
	readonly root: Buffer;
	/** Bytes of cells, without the trailer. */
	readonly cellsBytes: number;
	readonly timeMs: number;
	/** Ed25519, 64 bytes. */
	readonly signature: Buffer;
}

const PREFIX = Buffer.from('distro receipt v1\0', 'latin1');

export function receiptSignedBytes(receipt: Omit<Receipt, 'signature'>): Buffer {
	const numbers = Buffer.alloc(16);
	numbers.writeBigUInt64LE(BigInt(receipt.cellsBytes), 0);
	numbers.writeBigUInt64LE(BigInt(receipt.timeMs), 8);
	return Buffer.concat([PREFIX, idBytes(receipt.workerId), idBytes(receipt.shardId), receipt.root, numbers]);
}
