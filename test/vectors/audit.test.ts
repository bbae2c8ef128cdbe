/** Golden audits, checked again from the file, with the offsets of docs/format.md. */

import { createPrivateKey } from 'node:crypto';
import { expect, test } from 'vitest';
import { answerAudit, auditFault } from '../../core/crypto/audit.ts';
import { LEAF_BYTES, leafHash, rootOf } from '../../core/crypto/digest.ts';
import { publicKeyFromRaw, rawPublicKey } from '../../core/crypto/sign.ts';
import type { ShardId, WorkerId } from '../../core/ids.ts';
import { type AuditQuestion, auditSignedBytes } from '../../core/model/audit.ts';
import { counting, golden, hex, sameId } from './golden.ts';

/** PrivateKeyInfo of an Ed25519 key up to the seed (RFC 8410). */
const PKCS8_PREFIX = Buffer.from('302e020100300506032b657004220420', 'hex');
const signingKey = createPrivateKey({ key: Buffer.concat([PKCS8_PREFIX, counting(32)]), format: 'der', type: 'pkcs8' });
const workerId = sameId<WorkerId>(0x33);
const cells = Array.from({ length: 7 }, (_, i) => counting(100 * i + 16, i));
const leaves = Buffer.concat(cells.map(leafHash));
const questionOf = (row: number): AuditQuestion => ({
	shardId: sameId<ShardId>(0x44),
	row,
	nonce: counting(32, 0xa0),
});
/** One leaf alone, the first, the middle, and the odd one at the end. */
const asked = [
	{ row: 0, of: 1 },
	{ row: 0, of: 7 },
	{ row: 3, of: 7 },
	{ row: 6, of: 7 },
];

test('audits', () => {
	const kept = golden('audit', {
		seed: hex(counting(32)),
		publicKey: hex(rawPublicKey(signingKey)),
		answers: asked.map(({ row, of }) => {
			const question = questionOf(row);
			const cell = cells[row] as Buffer;
			const has = { workerId, cell, leaves: leaves.subarray(0, of * LEAF_BYTES) };
			const answer = answerAudit(question, has, signingKey);
			return {
				row,
				leaves: answer.leaves,
				cellBytes: cell.length,
				path: answer.path.map(hex),
				root: hex(rootOf(has.leaves)),
				signedBytes: hex(auditSignedBytes(question, { workerId, leaves: of, leaf: leafHash(cell) })),
				signature: hex(answer.signature),
			};
		}),
	});
	const bytes = (text: string) => Buffer.from(text, 'hex');
	const publicKey = publicKeyFromRaw(bytes(kept.publicKey));
	for (const { row, leaves: count, cellBytes, path, root, signature } of kept.answers) {
		const answer = { cell: cells[row] as Buffer, path: path.map(bytes), leaves: count, signature: bytes(signature) };
		const shard = { workerId, root: bytes(root), leaves: count, cellBytes, publicKey };
		expect(auditFault(questionOf(row), answer, shard)).toBeNull();
	}
});

test('offsets as docs/format.md says them', () => {
	const leaf = leafHash(cells[3] as Buffer);
	const bytes = auditSignedBytes(questionOf(3), { workerId, leaves: 7, leaf });
	expect(bytes.subarray(0, 16).toString('latin1')).toBe('distro audit v1\0');
	expect(hex(bytes.subarray(16, 32))).toBe(workerId);
	expect(hex(bytes.subarray(32, 48))).toBe(sameId(0x44));
	expect(bytes.readUInt32LE(48)).toBe(3);
	expect(bytes.readUInt32LE(52)).toBe(7);
	expect(bytes.subarray(56, 88).equals(counting(32, 0xa0))).toBe(true);
	expect(bytes.subarray(88).equals(leaf)).toBe(true);
	expect(bytes.length).toBe(120);
});
