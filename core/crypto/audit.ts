/** Answering and checking audits (core/model/audit.ts): pure, with what the worker has read and what the metadata know. */

import { type KeyObject, sign, verify } from 'node:crypto';
import { DistroError } from '../errors.ts';
import type { WorkerId } from '../ids.ts';
import { AUDIT_NONCE_BYTES, type AuditAnswer, type AuditQuestion, auditSignedBytes } from '../model/audit.ts';
import { LEAF_BYTES, leafHash, proofFor, verifyProof } from './digest.ts';

/** `leaves` are the shard's own. Says nothing about whether the cell fits them: that is for who asks. Throws `invalid`. */
export function answerAudit(
	question: AuditQuestion,
	has: { workerId: WorkerId; cell: Buffer; leaves: Buffer },
	privateKey: KeyObject,
): AuditAnswer {
	const leaves = has.leaves.length / LEAF_BYTES;
	if (question.row >= leaves) throw new DistroError('invalid', `a shard of ${leaves} cells has no row ${question.row}`);
	if (question.nonce.length !== AUDIT_NONCE_BYTES) {
		throw new DistroError('invalid', `the nonce of an audit has ${AUDIT_NONCE_BYTES} bytes`);
	}
	const signed = auditSignedBytes(question, { workerId: has.workerId, leaves, leaf: leafHash(has.cell) });
	return {
		cell: has.cell,
		path: proofFor(has.leaves, question.row),
		leaves,
		signature: sign(null, signed, privateKey),
	};
}

/** What must be so, by the metadata and nobody's word. */
export interface AuditedShard {
	readonly workerId: WorkerId;
	readonly root: Buffer;
	readonly leaves: number;
	/** Of the cell in the row that was asked for. */
	readonly cellBytes: number;
	readonly publicKey: KeyObject;
}

/** Null when the answer proves the cell, else what is wrong with it. */
export function auditFault(question: AuditQuestion, answer: AuditAnswer, shard: AuditedShard): string | null {
	const { cell, path, leaves, signature } = answer;
	if (leaves !== shard.leaves) return `it says that the shard has ${leaves} cells, not ${shard.leaves}`;
	if (cell.length !== shard.cellBytes) return `the cell has ${cell.length} bytes, not ${shard.cellBytes}`;
	const leaf = leafHash(cell);
	if (!verifyProof({ leaf, index: question.row, count: leaves, path, root: shard.root })) {
		return `cell ${question.row} does not lead to the root`;
	}
	const signed = auditSignedBytes(question, { workerId: shard.workerId, leaves, leaf });
	return verify(null, signed, shard.publicKey, signature) ? null : 'the signature is not for this answer';
}
