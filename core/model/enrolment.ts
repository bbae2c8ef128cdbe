/**
 * What a worker asks for when it wants a certificate: its id, and the public key that the certificate is to be for. Signed
 * with the receipt key of its volume, so that an id that somebody has heard of is of no use to him.
 *
 * Signed bytes: "distro enrolment v1\0" | worker id (16) | public key (SubjectPublicKeyInfo, DER).
 */

import { idBytes, type WorkerId } from '../ids.ts';

export interface Enrolment {
	readonly workerId: WorkerId;
	/** SubjectPublicKeyInfo, DER. */
	readonly publicKey: Buffer;
	/** Of the receipt key that signed: Ed25519, 32 bytes. */
	readonly receiptKey: Buffer;
	/** Ed25519, 64 bytes. */
	readonly signature: Buffer;
}

const PREFIX = Buffer.from('distro enrolment v1\0', 'latin1');

export function enrolmentSignedBytes({ workerId, publicKey }: Pick<Enrolment, 'workerId' | 'publicKey'>): Buffer {
	return Buffer.concat([PREFIX, idBytes(workerId), publicKey]);
}
