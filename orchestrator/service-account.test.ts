/** Tokens: each field that is wrong alone is a refusal, and what is right is taken from all signers that API servers have. */

import { createHmac } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { jwksOf, RULES, tokenSigner } from '../test/support/tokens.ts';
import { parseKeys, parseRules, podOfToken, readAccountFolder } from './service-account.ts';

const POD = 'demo-worker-3';
const NOW_MS = 1_800_000_000_000;
const rsa = tokenSigner('rsa-1');
const ec = tokenSigner('ec-1', 'ES256');
const rules = parseRules(JSON.stringify(RULES));
const keys = parseKeys(jwksOf([rsa, ec]));
const check = (token: string, nowMs = NOW_MS) => podOfToken(token, { rules, keys, nowMs });
const made = (change: { claims?: object; header?: object } = {}, pod = POD) =>
	rsa.token(pod, { ...change, nowMs: NOW_MS });
const denied = (why: string) => expect.objectContaining({ kind: 'denied', message: expect.stringContaining(why) });
const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');

test.each([rsa, ec])('a pod’s token of $algorithm says which pod it is', (signer) => {
	expect(check(signer.token(POD, { nowMs: NOW_MS }))).toBe(POD);
	expect(check(signer.token(POD, { nowMs: NOW_MS, claims: { aud: RULES.audience } }))).toBe(POD);
	expect(check(signer.token('demo-worker-0', { nowMs: NOW_MS }))).toBe('demo-worker-0');
});

test('times have a little play, and no more', () => {
	const token = made();
	expect(check(token, NOW_MS + 629_000)).toBe(POD);
	expect(() => check(token, NOW_MS + 630_000)).toThrow(denied('expired'));
	expect(check(token, NOW_MS - 30_000)).toBe(POD);
	expect(() => check(token, NOW_MS - 31_000)).toThrow(denied('not good yet'));
});

describe('refused', () => {
	test.each([
		['expired', { claims: { exp: NOW_MS / 1000 - 31 } }],
		['expired', { claims: { exp: undefined } }],
		['expired', { claims: { exp: '9999999999' } }],
		['not good yet', { claims: { nbf: 'soon' } }],
		['another issuer', { claims: { iss: 'https://elsewhere' } }],
		['another issuer', { claims: { iss: undefined } }],
		['another audience', { claims: { aud: ['https://kubernetes.default.svc'] } }],
		['another audience', { claims: { aud: [] } }],
		['another audience', { claims: { aud: undefined } }],
		['another service account', { claims: { sub: 'system:serviceaccount:storage:default' } }],
		['another service account', { claims: { sub: 'system:serviceaccount:other:demo-worker' } }],
		['bound to no pod', { claims: { 'kubernetes.io': undefined } }],
		['bound to no pod', { claims: { 'kubernetes.io': { namespace: 'storage' } } }],
		['bound to no pod', { claims: { 'kubernetes.io': { namespace: 'other', pod: { name: POD } } } }],
		['bound to no pod', { claims: { 'kubernetes.io': { namespace: 'storage', pod: { name: [POD] } } } }],
		['its algorithm', { header: { alg: 'none' } }],
		['its algorithm', { header: { alg: 'HS256' } }],
		['its algorithm', { header: { alg: 'ES256' } }],
		['its algorithm', { header: { alg: undefined } }],
		['its algorithm', { header: { crit: ['exp'] } }],
		['its key', { header: { kid: 'unknown' } }],
		['its key', { header: { kid: undefined } }],
		['its key', { header: { kid: '__proto__' } }],
	])('%s: %j', (why, change) => {
		expect(() => check(made(change))).toThrow(denied(why));
	});

	test.each([
		'demo-worker-',
		'demo-worker-03',
		'demo-worker-x',
		'demo-worker-3-evil',
		'demo-worker-12345',
		'other-3',
		'',
	])('a pod called "%s"', (pod) => {
		expect(() => check(made({}, pod))).toThrow(denied('no worker'));
	});

	test('a forged one: signed by nobody, by another key of the same id, or changed after it was signed', () => {
		const [head, body, signature] = made().split('.') as [string, string, string];
		const other = tokenSigner('rsa-1').token(POD, { nowMs: NOW_MS });
		const changed = part({ ...JSON.parse(Buffer.from(body, 'base64url').toString()), sub: 'x' });
		const [, , ofOther] = other.split('.');
		for (const token of [other, `${head}.${body}.`, `${head}.${changed}.${signature}`, `${head}.${body}.${ofOther}`]) {
			expect(() => check(token)).toThrow(denied('signature is wrong'));
		}
		const unsigned = part({ alg: 'none', kid: 'rsa-1' });
		expect(() => check(`${unsigned}.${body}.`)).toThrow(denied('its algorithm'));
	});

	test('the public key as a shared secret', () => {
		const [, body] = made().split('.') as [string, string];
		const text = `${part({ alg: 'HS256', kid: 'rsa-1' })}.${body}`;
		const pem = rsa.publicKey.export({ type: 'spki', format: 'pem' });
		const mac = createHmac('sha256', pem).update(text).digest('base64url');
		expect(() => check(`${text}.${mac}`)).toThrow(denied('its algorithm'));
	});

	test.each(['', '..', 'a.b', 'a.b.c.d', `${part({ kid: 'rsa-1' })}.x`, 'x'.repeat(9000)])(
		'what is none: %.20s',
		(text) => {
			expect(() => check(text)).toThrow(denied(''));
		},
	);
});

test('keys that nothing may be signed with are left out', () => {
	const weak = tokenSigner('weak', 'RS256', 1024);
	const kept = parseKeys(
		JSON.stringify({
			keys: [
				weak.jwk,
				{ ...rsa.jwk, kid: 'for-encryption', use: 'enc' },
				{ ...rsa.jwk, kid: undefined },
				{ ...rsa.jwk, kid: 'pss', alg: 'PS256' },
				{ kty: 'oct', k: 'AAAA', kid: 'secret' },
				{ kty: 'RSA', kid: 'broken', n: 'AQAB' },
				rsa.jwk,
			],
		}),
	);
	expect([...kept.keys()]).toEqual(['rsa-1']);
	expect(() => parseKeys(jwksOf([weak]))).toThrow(expect.objectContaining({ kind: 'invalid' }));
	expect(() => parseKeys('{}')).toThrow(expect.objectContaining({ kind: 'invalid' }));
});

test.each(Object.keys(RULES))('settings without a good "%s" are none', (name) => {
	for (const wrong of [undefined, '', 7, ['a b']]) {
		expect(() => parseRules(JSON.stringify({ ...RULES, [name]: wrong }))).toThrow(`"${name}"`);
	}
});

test('the folder is read anew each time, and one that is not whole is for another try', async () => {
	const folder = mkdtempSync(join(tmpdir(), 'distro-accounts-'));
	try {
		const write = (file: string, text: string) => writeFileSync(join(folder, file), text);
		await expect(readAccountFolder(folder)).rejects.toMatchObject({ kind: 'unavailable' });
		write('settings.json', JSON.stringify(RULES));
		write('jwks.json', jwksOf([rsa]).slice(0, 50));
		await expect(readAccountFolder(folder)).rejects.toMatchObject({ kind: 'unavailable' });
		write('jwks.json', jwksOf([rsa]));
		expect([...(await readAccountFolder(folder)).keys.keys()]).toEqual(['rsa-1']);
		write('jwks.json', jwksOf([ec]));
		expect([...(await readAccountFolder(folder)).keys.keys()]).toEqual(['ec-1']);
	} finally {
		rmSync(folder, { recursive: true });
	}
});
