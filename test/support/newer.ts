/** Stored things as a release to come might have written them: right in all but their version. */

import { readFileSync, writeFileSync } from 'node:fs';
import { readTrailerFooter, TRAILER_FOOTER_BYTES } from '../../core/codec/trailer.ts';
import { checksum } from '../../core/crypto/digest.ts';

/** Only ever grows, so that this release never knows it. */
const NEWER = 200;

/** A shard's file, or its trailer alone. */
export function newerShard(file: Buffer): Buffer {
	const bytes = Buffer.from(file);
	const { length } = readTrailerFooter(bytes);
	const body = bytes.subarray(bytes.length - length, bytes.length - TRAILER_FOOTER_BYTES);
	body.writeUInt8(NEWER);
	checksum(body).copy(bytes, bytes.length - TRAILER_FOOTER_BYTES + 4);
	return bytes;
}

/** A file such as volume.json. */
export function makeNewerJson(path: string): void {
	const record = JSON.parse(readFileSync(path, 'utf8')) as object;
	writeFileSync(path, JSON.stringify({ ...record, version: NEWER, what: 'nobody knows yet' }));
}
