import { expect, test } from 'vitest';
import { fromAnswer, fromStatus, KIND_ABSENT } from './errors.ts';

function status(code: number, reason?: string, more: object = {}) {
	return { kind: 'Status', code, ...(reason === undefined ? {} : { reason }), message: 'said', ...more };
}

test.each([
	[400, 'BadRequest', 'invalid'],
	[401, 'Unauthorized', 'denied'],
	[403, 'Forbidden', 'denied'],
	[404, 'NotFound', 'not_found'],
	[405, 'MethodNotAllowed', 'unsupported'],
	[409, 'AlreadyExists', 'exists'],
	[409, 'Conflict', 'conflict'],
	[410, 'Expired', 'expired'],
	[415, 'UnsupportedMediaType', 'unsupported'],
	[422, 'Invalid', 'invalid'],
	[429, 'TooManyRequests', 'unavailable'],
	[500, 'InternalError', 'unavailable'],
	[503, 'ServiceUnavailable', 'unavailable'],
	[504, 'Timeout', 'timeout'],
] as const)('%i %s is %s, and keeps its reason and message', (code, reason, kind) => {
	expect(fromAnswer('get pods a/b', { status: code, body: status(code, reason) })).toMatchObject({
		kind,
		reason,
		message: `get pods a/b: ${code} said`,
	});
});

test('when to try again: from the header, else from the Status', () => {
	const details = { details: { retryAfterSeconds: 7 } };
	const body = status(429, 'TooManyRequests', details);
	expect(fromAnswer('x', { status: 429, body, retryAfter: '3' }).retryAfterMs).toBe(3_000);
	expect(fromAnswer('x', { status: 429, body }).retryAfterMs).toBe(7_000);
	expect(fromAnswer('x', { status: 429, body: 'a date is not understood', retryAfter: 'Wed' }).retryAfterMs).toBe(
		undefined,
	);
});

test('a 404 that is no Status means that the kind is absent', () => {
	expect(fromAnswer('x', { status: 404, body: '404 page not found\n' })).toMatchObject({
		kind: 'not_found',
		reason: KIND_ABSENT,
		message: 'x: 404 404 page not found',
	});
});

test('what stands between may answer anything', () => {
	expect(fromAnswer('x', { status: 502, body: '<html>'.repeat(10_000) })).toMatchObject({ kind: 'unavailable' });
	expect(fromAnswer('x', { status: 502, body: '<html>'.repeat(10_000) }).message.length).toBeLessThan(3_000);
	expect(fromAnswer('x', { status: 302, body: null })).toMatchObject({ kind: 'unavailable' });
});

test('an ERROR in a watch has its code inside', () => {
	expect(fromStatus('x', status(410, 'Expired'))).toMatchObject({ kind: 'expired', reason: 'Expired' });
	expect(fromStatus('x', undefined)).toMatchObject({ kind: 'unavailable' });
});
