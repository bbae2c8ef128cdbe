/** Audits: what is true passes, and nothing else does. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../test/support/clock.ts';
import { newId, type ShardId, type WorkerId } from '../ids.ts';
import { AUDIT_NONCE_BYTES, type AuditAnswer, type AuditQuestion } from '../model/audit.ts';
import { type AuditedShard, answerAudit, auditFault } from './audit.ts';
import { LEAF_BYTES, leafHash, rootOf } from './digest.ts';
import { newSigningKey, publicKeyFromRaw, rawPublicKey } from './sign.ts';

const random = seededRandom('audit');
const SEED = { seed: 20_261_124 };
const key = newSigningKey();
const publicKey = publicKeyFromRaw(rawPublicKey(key));

function flipped(bytes: Buffer, bit: number): Buffer {
	const out = Buffer.from(bytes);
	const at = (bit >> 3) % bytes.length;
	out.writeUInt8(bytes.readUInt8(at) ^ (1 << (bit & 7)), at);
	return out;
}

interface Audited {
	readonly question: AuditQuestion;
	readonly answer: AuditAnswer;
	readonly shard: AuditedShard;
	readonly cells: Buffer[];
	readonly leaves: Buffer;
	readonly workerId: WorkerId;
}

function audited(count: number, row: number): Audited {
	const cells = Array.from({ length: count }, () => random.bytes(64));
	const leaves = Buffer.concat(cells.map(leafHash));
	const workerId = newId<WorkerId>(random);
	const question = { shardId: newId<ShardId>(random), row, nonce: random.bytes(AUDIT_NONCE_BYTES) };
	const answer = answerAudit(question, { workerId, cell: cells[row] as Buffer, leaves }, key);
	const shard = { workerId, root: rootOf(leaves), leaves: count, cellBytes: 64, publicKey };
	return { question, answer, shard, cells, leaves, workerId };
}

const anyShard = fc.integer({ min: 1, max: 256 }).chain((count) => fc.tuple(fc.constant(count), fc.nat(count - 1)));

test('the cell that was asked for is proved', () => {
	fc.assert(
		fc.property(anyShard, ([count, row]) => {
			const { question, answer, shard } = audited(count, row);
			expect(auditFault(question, answer, shard)).toBeNull();
		}),
		SEED,
	);
});

test('no flipped bit passes, wherever it is', () => {
	fc.assert(
		fc.property(anyShard, fc.nat(), ([count, row], bit) => {
			const { question, answer, shard } = audited(count, row);
			const refuses = (changed: Partial<AuditAnswer>) =>
				expect(auditFault(question, { ...answer, ...changed }, shard)).not.toBeNull();
			refuses({ cell: flipped(answer.cell, bit) });
			refuses({ signature: flipped(answer.signature, bit) });
			for (const step of answer.path.keys()) {
				refuses({ path: answer.path.map((hash, i) => (i === step ? flipped(hash, bit) : hash)) });
			}
			expect(auditFault(question, answer, { ...shard, root: flipped(shard.root, bit) })).not.toBeNull();
		}),
		{ ...SEED, numRuns: 50 },
	);
});

test('nor a path that is cut short, too long or in pieces', () => {
	fc.assert(
		fc.property(anyShard, ([count, row]) => {
			const { question, answer, shard } = audited(count, row);
			const refuses = (path: Buffer[]) => expect(auditFault(question, { ...answer, path }, shard)).not.toBeNull();
			refuses([...answer.path, random.bytes(LEAF_BYTES)]);
			if (answer.path.length === 0) return;
			refuses(answer.path.slice(1));
			refuses(answer.path.slice(0, -1));
			refuses([]);
			refuses(answer.path.map((hash) => hash.subarray(1)));
		}),
		SEED,
	);
});

test('nor the answer to another question', () => {
	fc.assert(
		fc.property(fc.integer({ min: 2, max: 256 }), fc.nat(), (count, at) => {
			const row = at % count;
			const { question, answer, shard, cells, leaves, workerId } = audited(count, row);
			const other = (row + 1) % count;
			// Another row of the same shard, told as if it were this one.
			const wrongRow = answerAudit(
				{ ...question, row: other },
				{ workerId, cell: cells[other] as Buffer, leaves },
				key,
			);
			expect(auditFault(question, wrongRow, shard)).not.toBeNull();
			expect(auditFault({ ...question, row: other }, answer, shard)).not.toBeNull();
			// The same cells under another shard id, as copies of one segment have them.
			const wrongShard = answerAudit(
				{ ...question, shardId: newId<ShardId>(random) },
				{ workerId, cell: cells[row] as Buffer, leaves },
				key,
			);
			expect(auditFault(question, wrongShard, shard)).toBe('the signature is not for this answer');
			const replayed = { ...question, nonce: random.bytes(AUDIT_NONCE_BYTES) };
			expect(auditFault(replayed, answer, shard)).toBe('the signature is not for this answer');
			// Another shard altogether, proved to its own root.
			const elsewhere = audited(count, row);
			expect(auditFault(question, elsewhere.answer, shard)).not.toBeNull();
		}),
		{ ...SEED, numRuns: 50 },
	);
});

describe('who answers', () => {
	test('must be the worker that was asked, by its own key', () => {
		const { question, answer, shard, cells, leaves } = audited(5, 3);
		const friend = { workerId: newId<WorkerId>(random), cell: cells[3] as Buffer, leaves };
		expect(auditFault(question, answerAudit(question, friend, key), shard)).not.toBeNull();
		const otherKey = newSigningKey();
		const forged = answerAudit(question, { ...friend, workerId: shard.workerId }, otherKey);
		expect(auditFault(question, forged, shard)).not.toBeNull();
		expect(
			auditFault(question, answer, { ...shard, publicKey: publicKeyFromRaw(rawPublicKey(otherKey)) }),
		).not.toBeNull();
	});

	test('can not change how many cells there are, or how long they are', () => {
		const { question, answer, shard } = audited(5, 4);
		expect(auditFault(question, { ...answer, leaves: 6 }, shard)).toContain('6 cells, not 5');
		expect(auditFault(question, answer, { ...shard, cellBytes: 65 })).toContain('64 bytes, not 65');
		expect(auditFault(question, { ...answer, cell: answer.cell.subarray(1) }, shard)).toContain('63 bytes');
	});

	test('a row that is not there, or a nonce of another length, is refused', () => {
		const { question, cells, leaves, workerId } = audited(5, 4);
		const has = { workerId, cell: cells[4] as Buffer, leaves };
		const invalid = expect.objectContaining({ kind: 'invalid' });
		expect(() => answerAudit({ ...question, row: 5 }, has, key)).toThrow(invalid);
		expect(() => answerAudit({ ...question, nonce: Buffer.alloc(31) }, has, key)).toThrow(invalid);
	});
});
