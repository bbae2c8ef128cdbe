/** Headers of objects as RFC 9110, 9530, 6266 and 8187 have them, and what else people send. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CONTENT_TYPE_MAX_BYTES, NAME_MAX_BYTES } from '../../core/limits.ts';
import {
	bodyType,
	checkContentType,
	checkName,
	contentDisposition,
	matchesEtag,
	nameInForm,
	parseRange,
	parseReprDigest,
	rangeStillValid,
	wantsSha256,
} from './headers.ts';
import { HttpRefusal } from './problem.ts';

function refusal(ask: () => unknown): unknown {
	try {
		return ask();
	} catch (error) {
		return error instanceof HttpRefusal ? error.problem.status : (error as { kind: string }).kind;
	}
}

describe('Range', () => {
	test.each([
		['bytes=0-0', { offset: 0, length: 1 }],
		['bytes=0-99', { offset: 0, length: 100 }],
		['bytes=0-1000', { offset: 0, length: 100 }],
		['bytes=99-', { offset: 99, length: 1 }],
		['bytes=10-19', { offset: 10, length: 10 }],
		['bytes=-1', { offset: 99, length: 1 }],
		['bytes=-100', { offset: 0, length: 100 }],
		['bytes=-1000', { offset: 0, length: 100 }],
		[` bytes=5-7 `, { offset: 5, length: 3 }],
		[`bytes=0-${'9'.repeat(40)}`, { offset: 0, length: 100 }],
	])('%s of 100 bytes', (header, range) => {
		expect(parseRange(header, 100)).toEqual(range);
	});

	test.each([
		undefined,
		'',
		'bytes=-',
		'bytes=5-2',
		'bytes=0-1,5-6',
		'items=0-1',
		'bytes=a-b',
		'bytes=0-1x',
		'bytes=--1',
		'bytes 0-1',
		'bytes=0x1-2',
	])('%s is ignored: the whole object', (header) => {
		expect(parseRange(header, 100)).toBeNull();
	});

	test.each(['bytes=100-', 'bytes=100-200', 'bytes=-0', `bytes=${'9'.repeat(40)}-`])(
		'%s of 100 bytes: 416',
		(header) => {
			expect(refusal(() => parseRange(header, 100))).toBe(416);
		},
	);

	test('of an empty object there is no range', () => {
		for (const header of ['bytes=0-', 'bytes=0-0', 'bytes=-1']) expect(refusal(() => parseRange(header, 0))).toBe(416);
		try {
			parseRange('bytes=7-', 5);
		} catch (error) {
			expect((error as HttpRefusal).problem.headers).toEqual({ 'content-range': 'bytes */5' });
		}
		expect.assertions(4);
	});

	test('whatever is asked for, what is sent lies inside the object', () => {
		const number = fc.oneof(fc.constant(''), fc.nat(200).map(String));
		fc.assert(
			fc.property(number, number, fc.nat(150), (first, last, sizeBytes) => {
				const range = refusal(() => parseRange(`bytes=${first}-${last}`, sizeBytes));
				if (range === null || range === 416) return;
				const { offset, length } = range as { offset: number; length: number };
				expect(length).toBeGreaterThan(0);
				expect(offset + length).toBeLessThanOrEqual(sizeBytes);
				if (first !== '') expect(offset).toBe(Number(first));
				if (first !== '' && last !== '') expect(offset + length - 1).toBeLessThanOrEqual(Number(last));
			}),
			{ seed: 20_240_630, numRuns: 1_000 },
		);
	});
});

describe('entity tags', () => {
	const etag = 'abc123';

	test('of a list, strong or weak where that is allowed', () => {
		for (const header of ['"abc123"', '"x", "abc123"', '"abc123","y"', '*', ' * ']) {
			expect([header, matchesEtag(header, etag, { weak: false })]).toEqual([header, true]);
		}
		expect(matchesEtag('W/"abc123"', etag, { weak: true })).toBe(true);
		expect(matchesEtag('W/"abc123"', etag, { weak: false })).toBe(false);
		expect(matchesEtag('W/"abc123", "abc123"', etag, { weak: false })).toBe(true);
		for (const header of ['', 'abc123', '"abc"', '"abc1234"', '"ABC123"', '"*"']) {
			expect([header, matchesEtag(header, etag, { weak: true })]).toEqual([header, false]);
		}
	});

	test('If-Range keeps the range for the very same tag only', () => {
		expect(rangeStillValid(undefined, etag)).toBe(true);
		expect(rangeStillValid('"abc123"', etag)).toBe(true);
		for (const header of ['W/"abc123"', '"other"', 'Wed, 21 Oct 2015 07:28:00 GMT', '*', ''])
			expect([header, rangeStillValid(header, etag)]).toEqual([header, false]);
	});
});

describe('digests', () => {
	const digest = Buffer.alloc(32, 7);
	const field = `sha-256=:${digest.toString('base64')}:`;

	test('Repr-Digest', () => {
		expect(parseReprDigest(undefined)).toBeNull();
		expect(parseReprDigest(field)).toEqual(digest);
		expect(parseReprDigest(`sha-512=:AAAA:, ${field}`)).toEqual(digest);
		expect(parseReprDigest(`${field},unixsum=:AAAA:`)).toEqual(digest);
		expect(parseReprDigest('sha-512=:AAAA:')).toBeNull();
		expect(parseReprDigest('')).toBeNull();
	});

	test.each(['sha-256=abc', 'sha-256=::', 'sha-256=:AAAA:', `sha-256=${digest.toString('hex')}`, 'sha-256=:!!!!:'])(
		'%s is invalid',
		(header) => {
			expect(refusal(() => parseReprDigest(header))).toBe('invalid');
		},
	);

	test('Want-Repr-Digest', () => {
		for (const header of ['sha-256', 'sha-256=10', 'sha-512=3, sha-256=1']) expect(wantsSha256(header)).toBe(true);
		for (const header of [undefined, '', 'sha-256=0', 'sha-512=10']) expect(wantsSha256(header)).toBe(false);
	});
});

describe('names and types', () => {
	test('that can be kept', () => {
		expect(checkName(null)).toBeNull();
		expect(checkName('')).toBeNull();
		expect(checkName('ünïcödé 📦/x.txt')).toBe('ünïcödé 📦/x.txt');
		expect(checkName('a'.repeat(NAME_MAX_BYTES))).toHaveLength(NAME_MAX_BYTES);
		expect(checkContentType(undefined)).toBeNull();
		expect(checkContentType('text/plain; charset=utf-8')).toBe('text/plain; charset=utf-8');
	});

	test('of a body: what curl says of any bytes is none', () => {
		expect(bodyType('application/x-www-form-urlencoded')).toBeNull();
		expect(bodyType('Application/X-WWW-form-urlencoded; charset=utf-8')).toBeNull();
		expect(bodyType('application/x-www-form-urlencoded2')).toBe('application/x-www-form-urlencoded2');
		expect(bodyType('image/png')).toBe('image/png');
	});

	test('in a form exactly three characters are escaped', () => {
		expect(nameInForm('say %22hi%22%0D%0A')).toBe('say "hi"\r\n');
		expect(nameInForm('100%25 %20 %0a %2522')).toBe('100%25 %20 %0a %2522');
	});

	test('that can not', () => {
		for (const name of ['é'.repeat(NAME_MAX_BYTES / 2 + 1), 'a\nb', 'a\u0000', '\u007f'])
			expect(refusal(() => checkName(name))).toBe('invalid');
		for (const type of ['x'.repeat(CONTENT_TYPE_MAX_BYTES + 1), 'text/plain\r\nset-cookie: a', 'text/plän'])
			expect(refusal(() => checkContentType(type))).toBe('invalid');
	});

	test('Content-Disposition can be parsed back, and is one line of ASCII', () => {
		expect(contentDisposition(null)).toBe('attachment');
		expect(contentDisposition('../a/b\\c')).toBe(`attachment; filename=".._a_b_c"; filename*=UTF-8''.._a_b_c`);
		expect(contentDisposition(`it's (1) "é".txt`)).toBe(
			`attachment; filename="it's (1) __._txt"; filename*=UTF-8''it%27s%20%281%29%20%22%C3%A9%22.txt`.replace(
				'._txt',
				'_.txt',
			),
		);
		fc.assert(
			fc.property(fc.string({ unit: 'grapheme', minLength: 1, maxLength: 40 }), (name) => {
				if (checkNameOrNull(name) === null) return;
				const header = contentDisposition(name);
				expect(header).toMatch(/^[\x20-\x7e]+$/);
				const [, ascii, encoded] = /^attachment; filename="([^"\\]*)"; filename\*=UTF-8''(\S+)$/.exec(header) ?? [];
				expect(ascii).toBeDefined();
				expect(decodeURIComponent(encoded ?? '')).toBe(name.replace(/[/\\]/g, '_'));
			}),
			{ seed: 20_240_631 },
		);
	});
});

function checkNameOrNull(name: string): string | null {
	return refusal(() => checkName(name)) === name ? name : null;
}
