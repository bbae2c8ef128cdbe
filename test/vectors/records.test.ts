/** Golden receipt, recovery record and trailers, read again from the file, with the offsets of docs/format.md. */

import { createPrivateKey } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { shardRows } from '../../core/codec/layout.ts';
import { decodeTrailer, encodeTrailer, TRAILER_FOOTER_BYTES, type Trailer } from '../../core/codec/trailer.ts';
import { checksum, leafHash, rootOf } from '../../core/crypto/digest.ts';
import { publicKeyFromRaw, rawPublicKey, signReceipt, verifyReceipt } from '../../core/crypto/sign.ts';
import type { ShardId, WorkerId } from '../../core/ids.ts';
import {
	decodeKeysRecord,
	encodeKeysRecord,
	formatKeysFile,
	type KeysRecord,
	keysDigest,
	parseKeysFile,
} from '../../core/model/keys-record.ts';
import { receiptSignedBytes } from '../../core/model/receipt.ts';
import { decodeRecovery, encodeRecovery, type RecoveryRecord } from '../../core/model/recovery.ts';
import { counting, golden, hex, sameId } from './golden.ts';

/** PrivateKeyInfo of an Ed25519 key up to the seed (RFC 8410). */
const PKCS8_PREFIX = Buffer.from('302e020100300506032b657004220420', 'hex');
const signingKey = createPrivateKey({
	key: Buffer.concat([PKCS8_PREFIX, counting(32)]),
	format: 'der',
	type: 'pkcs8',
});
const fields = {
	workerId: sameId<WorkerId>(0x33),
	shardId: sameId<ShardId>(0x44),
	root: counting(32, 0x50),
	cellsBytes: 17_039_360,
	timeMs: 1_700_000_000_000,
};
const recovery: RecoveryRecord = {
	keyGeneration: 2,
	wrappedKey: counting(64, 0x10),
	objectId: sameId(0x55),
	createdAtMs: 1_700_000_000_000,
	manifest: counting(40, 0x70),
};

const keys: KeysRecord = {
	clusterId: sameId(0x66),
	revision: 5,
	keys: [
		{ generation: 1, createdAtMs: 1_700_000_000_000, masterKeyId: 'old', wrapped: counting(64, 0x10) },
		{ generation: 3, createdAtMs: 1_700_000_001_000, masterKeyId: 'new-2', wrapped: counting(64, 0x80) },
	],
};

function trailerOf(codec: 'replicate' | 'rs-ronomon-6', shardIndex: number): Trailer {
	const k = codec === 'replicate' ? 1 : 4;
	const shape = { codec, k, n: k + 2, cellBytes: 69_632, cells: 6, lastCellBytes: 1_000 };
	const count = shardRows(shape, k === 1 ? 0 : shardIndex);
	const leaves = Buffer.concat(Array.from({ length: count }, (_, row) => leafHash(counting(64, shardIndex + row))));
	return {
		description: {
			...shape,
			clusterId: sameId(0x66),
			versionId: sameId(0x11),
			segment: 3,
			sealId: sameId(0x22),
			encodingId: sameId(0x77),
			shardIndex,
			shardId: sameId(0x44),
		},
		root: rootOf(leaves),
		leaves,
		endRecord: counting(25, 0x90),
		recovery: encodeRecovery(recovery),
	};
}

const trailers = {
	data: trailerOf('rs-ronomon-6', 1),
	parity: trailerOf('rs-ronomon-6', 5),
	copy: trailerOf('replicate', 2),
};

test('records', () => {
	const receipt = signReceipt(fields, signingKey);
	const kept = golden('records', {
		receipt: {
			seed: hex(counting(32)),
			publicKey: hex(rawPublicKey(signingKey)),
			signedBytes: hex(receiptSignedBytes(fields)),
			signature: hex(receipt.signature),
		},
		recovery: hex(encodeRecovery(recovery)),
		recoveryWithoutManifest: hex(encodeRecovery({ ...recovery, manifest: null })),
		dataTrailer: hex(encodeTrailer(trailers.data)),
		parityTrailer: hex(encodeTrailer(trailers.parity)),
		copyTrailer: hex(encodeTrailer(trailers.copy)),
		keys: hex(encodeKeysRecord(keys)),
		keysDigest: hex(keysDigest(keys)),
		keysFile: formatKeysFile(keys),
	});
	const bytes = (text: string) => Buffer.from(text, 'hex');
	const publicKey = publicKeyFromRaw(bytes(kept.receipt.publicKey));
	expect(verifyReceipt({ ...fields, signature: bytes(kept.receipt.signature) }, publicKey)).toBe(true);
	expect(decodeRecovery(bytes(kept.recovery))).toEqual(recovery);
	expect(decodeRecovery(bytes(kept.recoveryWithoutManifest))).toEqual({ ...recovery, manifest: null });
	expect(decodeTrailer(bytes(kept.dataTrailer))).toEqual(trailers.data);
	expect(decodeTrailer(bytes(kept.parityTrailer))).toEqual(trailers.parity);
	expect(decodeTrailer(bytes(kept.copyTrailer))).toEqual(trailers.copy);
	expect(decodeKeysRecord(bytes(kept.keys))).toEqual(keys);
	expect(parseKeysFile(kept.keysFile)).toEqual(keys);
});

describe('offsets as docs/format.md says them', () => {
	test('of a trailer', () => {
		const { data } = trailers;
		const bytes = encodeTrailer(data);
		expect([0, 1, 2, 3].map((at) => bytes.readUInt8(at))).toEqual([1, 1, 4, 6]);
		expect([4, 8, 12, 16].map((at) => bytes.readUInt32LE(at))).toEqual([69_632, 6, 1_000, 3]);
		expect(bytes.readUInt16LE(20)).toBe(1);
		const ids = [22, 38, 54, 70, 86].map((at) => new Set(bytes.subarray(at, at + 16)));
		expect(ids).toEqual([0x66, 0x11, 0x22, 0x77, 0x44].map((byte) => new Set([byte])));
		expect(bytes.subarray(102, 134).equals(data.root)).toBe(true);
		expect(bytes.readUInt32LE(134)).toBe(2 * 32);
		const afterLeaves = 138 + 64;
		expect(bytes.readUInt32LE(afterLeaves)).toBe(25);
		expect(bytes.subarray(afterLeaves + 4, afterLeaves + 29).equals(data.endRecord)).toBe(true);
		const recoveryAt = afterLeaves + 29;
		expect(bytes.readUInt32LE(recoveryAt)).toBe(data.recovery.length);
		const footer = recoveryAt + 4 + data.recovery.length;
		expect(footer).toBe(bytes.length - TRAILER_FOOTER_BYTES);
		expect(TRAILER_FOOTER_BYTES).toBe(28);
		expect(bytes.readUInt32LE(footer)).toBe(bytes.length);
		expect(bytes.subarray(footer + 4, footer + 20).equals(checksum(bytes.subarray(0, footer)))).toBe(true);
		expect(bytes.subarray(footer + 20).toString('latin1')).toBe('distroS1');
		expect(encodeTrailer(trailers.copy).readUInt8(1)).toBe(0);
	});

	test('of a recovery record', () => {
		const bytes = encodeRecovery(recovery);
		expect(bytes.readUInt8(0)).toBe(1);
		expect(bytes.readUInt32LE(1)).toBe(2);
		expect(bytes.subarray(5, 69).equals(recovery.wrappedKey)).toBe(true);
		expect(hex(bytes.subarray(69, 85))).toBe(recovery.objectId);
		expect(bytes.readBigUInt64LE(85)).toBe(1_700_000_000_000n);
		expect(bytes.readUInt32LE(93)).toBe(40);
		expect(bytes.length).toBe(97 + 40);
	});

	test('of a keys record', () => {
		const bytes = encodeKeysRecord(keys);
		expect(bytes.readUInt8(0)).toBe(1);
		expect(hex(bytes.subarray(1, 17))).toBe(keys.clusterId);
		expect(bytes.readBigUInt64LE(17)).toBe(5n);
		expect(bytes.readUInt32LE(25)).toBe(2);
		expect(bytes.readUInt32LE(29)).toBe(1);
		expect(bytes.readBigUInt64LE(33)).toBe(1_700_000_000_000n);
		expect(bytes.readUInt32LE(41)).toBe(3);
		expect(bytes.subarray(45, 48).toString()).toBe('old');
		expect(hex(bytes.subarray(48, 112))).toBe(hex(counting(64, 0x10)));
		expect(bytes.readUInt32LE(112)).toBe(3);
		expect(bytes.length).toBe(112 + 16 + 5 + 64);
	});

	test('of a receipt', () => {
		const bytes = receiptSignedBytes(fields);
		expect(bytes.subarray(0, 18).toString('latin1')).toBe('distro receipt v1\0');
		expect(hex(bytes.subarray(18, 34))).toBe(fields.workerId);
		expect(hex(bytes.subarray(34, 50))).toBe(fields.shardId);
		expect(bytes.subarray(50, 82).equals(fields.root)).toBe(true);
		expect(bytes.readBigUInt64LE(82)).toBe(17_039_360n);
		expect(bytes.readBigUInt64LE(90)).toBe(1_700_000_000_000n);
		expect(bytes.length).toBe(98);
	});
});
