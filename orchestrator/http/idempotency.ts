/** The Idempotency-Key header, and the fingerprint that tells a repeated request from another one. */

import { createHash } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { DistroError } from '../../core/errors.ts';

const KEY_MAX = 255;

/** Throws `invalid`. */
export function idempotencyKeyOf(header: string | undefined): string | null {
	if (header === undefined) return null;
	// A structured string ("…") or the bare value: both are in use.
	const key = /^"(.*)"$/.exec(header.trim())?.[1] ?? header.trim();
	if (key.length === 0 || key.length > KEY_MAX || !/^[\x20-\x7e]+$/.test(key)) {
		throw new DistroError('invalid', `an Idempotency-Key has 1 to ${KEY_MAX} printable ASCII characters`);
	}
	return key;
}

/** Over what makes two requests the same, the bytes apart: those a digest header stands for. */
export function fingerprintOf(
	request: IncomingMessage,
	of: { name: string | null; contentType: string | null; sizeHintBytes: number | null; expectedSha256: Buffer | null },
): string {
	const parts = [
		request.method,
		request.url,
		of.name,
		of.contentType,
		of.sizeHintBytes,
		of.expectedSha256?.toString('hex'),
	];
	return createHash('sha256').update(JSON.stringify(parts)).digest('hex');
}
