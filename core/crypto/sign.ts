/** Ed25519: signing keys, receipts and enrolments. */

import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign, verify } from 'node:crypto';
import { DistroError } from '../errors.ts';
import type { WorkerId } from '../ids.ts';
import { type Enrolment, enrolmentSignedBytes } from '../model/enrolment.ts';
import { type Receipt, receiptSignedBytes } from '../model/receipt.ts';

const RAW_BYTES = 32;
/** SubjectPublicKeyInfo of an Ed25519 key up to the key itself (RFC 8410). */
const SPKI_PREFIX = Buffer.from('302a300506032b6570032100', 'hex');

export function newSigningKey(): KeyObject {
	return generateKeyPairSync('ed25519').privateKey;
}

export function signingKeyToPem(key: KeyObject): string {
	return key.export({ type: 'pkcs8', format: 'pem' }) as string;
}

export function signingKeyFromPem(pem: string): KeyObject {
	const key = createPrivateKey(pem);
	if (key.asymmetricKeyType !== 'ed25519') throw new DistroError('invalid', 'a signing key must be an Ed25519 key');
	return key;
}

/** The 32 bytes of the public part. */
export function rawPublicKey(key: KeyObject): Buffer {
	const publicKey = key.type === 'private' ? createPublicKey(key) : key;
	return publicKey.export({ type: 'spki', format: 'der' }).subarray(SPKI_PREFIX.length);
}

export function publicKeyFromRaw(raw: Buffer): KeyObject {
	if (raw.length !== RAW_BYTES) throw new DistroError('invalid', 'an Ed25519 public key has 32 bytes');
	return createPublicKey({ key: Buffer.concat([SPKI_PREFIX, raw]), format: 'der', type: 'spki' });
}

export function signReceipt(fields: Omit<Receipt, 'signature'>, privateKey: KeyObject): Receipt {
	return { ...fields, signature: sign(null, receiptSignedBytes(fields), privateKey) };
}

export function verifyReceipt(receipt: Receipt, publicKey: KeyObject): boolean {
	return verify(null, receiptSignedBytes(receipt), publicKey, receipt.signature);
}

export function signEnrolment(fields: { workerId: WorkerId; publicKey: Buffer }, receiptKey: KeyObject): Enrolment {
	const signature = sign(null, enrolmentSignedBytes(fields), receiptKey);
	return { ...fields, receiptKey: rawPublicKey(receiptKey), signature };
}

/** Whether it was signed by the receipt key that it names. */
export function verifyEnrolment(enrolment: Enrolment): boolean {
	const key = publicKeyFromRaw(enrolment.receiptKey);
	return verify(null, enrolmentSignedBytes(enrolment), key, enrolment.signature);
}
