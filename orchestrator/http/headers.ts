/** Request and answer headers of objects: ranges, validators, digests, names. Pure. */

import { DistroError } from '../../core/errors.ts';
import { CONTENT_TYPE_MAX_BYTES, NAME_MAX_BYTES } from '../../core/limits.ts';
import type { ObjectInfo } from '../objects.types.ts';
import { HttpRefusal } from './problem.ts';

export type ByteRange = { readonly offset: number; readonly length: number };

/**
 * The one range of a `Range` header, or null where the whole object is to be sent: no header, another unit, several ranges
 * or malformed (RFC 9110 §14.2 lets a server ignore those). Throws 416 when nothing of the object is asked for.
 */
export function parseRange(header: string | undefined, sizeBytes: number): ByteRange | null {
	const match = /^bytes=(\d*)-(\d*)$/.exec(header?.trim() ?? '');
	if (match === null) return null;
	const [, first = '', last = ''] = match;
	if (first === '' && last === '') return null;
	const refuse = () =>
		new HttpRefusal(416, `the object has ${sizeBytes} bytes: ask for a range inside them`, {
			'content-range': `bytes */${sizeBytes}`,
		});
	if (first === '') {
		const length = Math.min(Number(last), sizeBytes);
		if (length === 0) throw refuse();
		return { offset: sizeBytes - length, length };
	}
	const offset = Number(first);
	if (last !== '' && Number(last) < offset) return null;
	if (offset >= sizeBytes) throw refuse();
	const end = last === '' ? sizeBytes - 1 : Math.min(Number(last), sizeBytes - 1);
	return { offset, length: end - offset + 1 };
}

/** Whether a list of entity tags (If-Match, If-None-Match) names this one. Weak tags match only where that is allowed. */
export function matchesEtag(header: string, etag: string, options: { weak: boolean }): boolean {
	if (header.trim() === '*') return true;
	for (const [, weak, value] of header.matchAll(/(W\/)?"([^"]*)"/g)) {
		if (value === etag && (options.weak || weak === undefined)) return true;
	}
	return false;
}

/** If-Range: only a strong match keeps the range (dates are never equal to a tag). */
export function rangeStillValid(header: string | undefined, etag: string): boolean {
	return header === undefined || header.trim() === `"${etag}"`;
}

/** The sha-256 of a Repr-Digest header (RFC 9530), or null. Throws `invalid`. */
export function parseReprDigest(header: string | undefined): Buffer | null {
	if (header === undefined) return null;
	const match = /(?:^|,)\s*sha-256=:([A-Za-z0-9+/]+=*):/.exec(header);
	if (match === null) {
		if (/(?:^|,)\s*sha-256=/.test(header)) throw new DistroError('invalid', 'Repr-Digest must be sha-256=:<base64>:');
		return null;
	}
	const digest = Buffer.from(match[1] as string, 'base64');
	if (digest.length !== 32) throw new DistroError('invalid', 'the sha-256 in Repr-Digest must have 32 bytes');
	return digest;
}

export function wantsSha256(header: string | undefined): boolean {
	const match = /(?:^|,)\s*sha-256(?:=(\d+))?/.exec(header ?? '');
	return match !== null && match[1] !== '0';
}

/** Throws `invalid` for names that can't be kept. */
export function checkName(name: string | null): string | null {
	if (name === null || name === '') return null;
	if (Buffer.byteLength(name) > NAME_MAX_BYTES)
		throw new DistroError('invalid', `a name has at most ${NAME_MAX_BYTES} bytes`);
	// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
	if (/[\u0000-\u001f\u007f]/.test(name)) throw new DistroError('invalid', 'a name has no control characters');
	return name;
}

export function checkContentType(type: string | undefined): string | null {
	if (type === undefined || type === '') return null;
	if (Buffer.byteLength(type) > CONTENT_TYPE_MAX_BYTES) {
		throw new DistroError('invalid', `Content-Type has at most ${CONTENT_TYPE_MAX_BYTES} bytes`);
	}
	// It will be a header of every answer: what can't be one would make the object unreadable.
	if (!/^[\x20-\x7e]+$/.test(type)) {
		throw new DistroError('invalid', 'Content-Type must be printable ASCII, such as text/plain');
	}
	return type;
}

/** The same for a body that is the object. What `curl --data-binary` says by itself of any bytes says nothing of these. */
export function bodyType(type: string | undefined): string | null {
	const checked = checkContentType(type);
	return checked !== null && /^application\/x-www-form-urlencoded\s*(;|$)/i.test(checked) ? null : checked;
}

/** A file's name as browsers and curl put it into a form: they escape these three characters, and nothing else. */
export function nameInForm(escaped: string): string {
	return escaped.replace(/%(?:22|0A|0D)/g, (code) => decodeURIComponent(code));
}

/** What every answer about an object carries. */
export function objectHeaders(info: ObjectInfo): Record<string, string> {
	return {
		etag: `"${info.etag}"`,
		'last-modified': new Date(info.createdAtMs).toUTCString(),
		'accept-ranges': 'bytes',
		'content-type': info.contentType ?? 'application/octet-stream',
		// What people stored is never run in this origin: a page among it would speak to the API as whoever opened it.
		'x-content-type-options': 'nosniff',
		'content-security-policy': 'sandbox',
		...(info.sha256 === null ? {} : { 'repr-digest': `sha-256=:${info.sha256.toString('base64')}:` }),
	};
}

/** RFC 6266, with RFC 8187 for what is not ASCII. It names a file: what separates folders is taken out. */
export function contentDisposition(name: string | null): string {
	if (name === null) return 'attachment';
	const file = name.replace(/[/\\]/g, '_');
	const ascii = file.replace(/[^\x20-\x7e]|"/g, '_');
	const encoded = encodeURIComponent(file).replace(/['()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
	return `attachment; filename="${ascii}"; filename*=UTF-8''${encoded}`;
}
