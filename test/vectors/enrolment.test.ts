/** Golden enrolments, checked again from the file, with the offsets of docs/format.md. */

import { createPrivateKey } from 'node:crypto';
import { expect, test } from 'vitest';
import { signEnrolment, verifyEnrolment } from '../../core/crypto/sign.ts';
import type { WorkerId } from '../../core/ids.ts';
import { enrolmentSignedBytes } from '../../core/model/enrolment.ts';
import { counting, golden, hex, sameId } from './golden.ts';

/** PrivateKeyInfo of an Ed25519 key up to the seed (RFC 8410). */
const PKCS8_PREFIX = Buffer.from('302e020100300506032b657004220420', 'hex');
const receiptKey = createPrivateKey({ key: Buffer.concat([PKCS8_PREFIX, counting(32)]), format: 'der', type: 'pkcs8' });
const workerId = sameId<WorkerId>(0x33);
const publicKey = counting(91, 0x10);

test('enrolments', () => {
	const made = signEnrolment({ workerId, publicKey }, receiptKey);
	const kept = golden('enrolment', {
		seed: hex(counting(32)),
		workerId,
		publicKey: hex(publicKey),
		receiptKey: hex(made.receiptKey),
		signedBytes: hex(enrolmentSignedBytes({ workerId, publicKey })),
		signature: hex(made.signature),
	});
	const bytes = (text: string) => Buffer.from(text, 'hex');
	const read = {
		workerId: kept.workerId as WorkerId,
		publicKey: bytes(kept.publicKey),
		receiptKey: bytes(kept.receiptKey),
		signature: bytes(kept.signature),
	};
	expect(verifyEnrolment(read)).toBe(true);
	expect(verifyEnrolment({ ...read, workerId: sameId<WorkerId>(0x34) })).toBe(false);
});

test('offsets as docs/format.md says them', () => {
	const bytes = enrolmentSignedBytes({ workerId, publicKey });
	expect(bytes.subarray(0, 20).toString('latin1')).toBe('distro enrolment v1\0');
	expect(hex(bytes.subarray(20, 36))).toBe(workerId);
	expect(bytes.subarray(36).equals(publicKey)).toBe(true);
});
