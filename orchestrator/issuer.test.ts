/** Certificates for workers: what they say, and when none is made. */

import { createPublicKey, generateKeyPairSync, X509Certificate } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { ClusterId, WorkerId } from '../core/ids.ts';
import { followChain, parseIdentity, TlsSource } from '../platform/tls.ts';
import { newCertificateKey } from '../platform/x509.ts';
import {
	bundleOf,
	put,
	type TestSigner,
	testIssuer,
	testLeaf,
	testRoot,
	writeTls,
} from '../test/support/certificates.ts';
import { ManualClock } from '../test/support/clock.ts';
import { Issuer } from './issuer.ts';

const HOUR_MS = 60 * 60_000;
const DAY_MS = 24 * HOUR_MS;
const clusterId = 'c'.repeat(32) as ClusterId;
const workerId = 'a'.repeat(32) as WorkerId;
const hosts = ['demo-worker-3.demo-worker.storage.svc'];
const spki = (key = newCertificateKey()) => createPublicKey(key).export({ type: 'spki', format: 'der' });
let folder: string;
let clock: ManualClock;
let root: TestSigner;

beforeEach(async () => {
	folder = mkdtempSync(join(tmpdir(), 'distro-issuer-'));
	clock = new ManualClock(Math.floor(Date.now() / 1000) * 1000);
	root = await testRoot();
});
afterEach(() => rmSync(folder, { recursive: true }));

function open(signer: Pick<TestSigner, 'chain' | 'key'>, lifetimeMs = 30 * DAY_MS) {
	const caFile = join(folder, 'bundle.crt');
	put(caFile, bundleOf([root]));
	const source = new TlsSource(writeTls(join(folder, 'issuer'), signer), { caFile, what: 'ISSUER_DIR' });
	return { source, caFile, issuer: new Issuer({ source, clusterId, lifetimeMs, clock }) };
}

const wanted = (publicKey = spki()) => ({ workerId, name: 'demo-worker-3', publicKey, hosts });

test('a certificate is for that worker, its names and its key, for TLS on both sides, and leads to the authority', async () => {
	const { issuer } = open(await testIssuer(root));
	const key = newCertificateKey();
	const { chain, notAfterMs } = await issuer.issue(wanted(spki(key)));
	const leaf = new X509Certificate(chain);
	expect(parseIdentity(leaf.subjectAltName)).toEqual({
		clusterId,
		role: 'worker',
		id: workerId,
		name: 'demo-worker-3',
	});
	expect(leaf.subjectAltName).toContain(`DNS:${hosts[0]}`);
	expect(leaf.ca).toBe(false);
	expect(leaf.keyUsage?.toSorted()).toEqual(['1.3.6.1.5.5.7.3.1', '1.3.6.1.5.5.7.3.2']);
	expect(leaf.checkPrivateKey(key)).toBe(true);
	expect(notAfterMs).toBe(clock.nowMs() + 30 * DAY_MS);
	expect(Date.parse(leaf.validTo)).toBe(notAfterMs);
	expect(clock.nowMs() - Date.parse(leaf.validFrom)).toBe(5 * 60_000);
	expect(followChain(chain, bundleOf([root]), clock.nowMs()).endMs).toBe(notAfterMs);
});

test('none lasts longer than who signed it, and one that is about to end signs nothing', async () => {
	const notAfterMs = clock.nowMs() + 10 * DAY_MS;
	const { issuer } = open(await testIssuer(root, { notAfterMs }));
	expect((await issuer.issue(wanted())).notAfterMs).toBe(notAfterMs);
	clock.advance(9 * DAY_MS);
	expect((await issuer.issue(wanted())).notAfterMs).toBe(notAfterMs);
	clock.advance(1_000);
	await expect(issuer.issue(wanted())).rejects.toMatchObject({
		kind: 'unavailable',
		message: expect.stringContaining('ends within a day'),
	});
	clock.advance(2 * DAY_MS);
	await expect(issuer.issue(wanted())).rejects.toMatchObject({ kind: 'unavailable' });
});

test('a new issuer in the folder signs from then on', async () => {
	const { source, issuer } = open(await testIssuer(root, { notAfterMs: clock.nowMs() + HOUR_MS }));
	await expect(issuer.issue(wanted())).rejects.toMatchObject({ kind: 'unavailable' });
	const next = await testIssuer(root);
	writeTls(join(folder, 'issuer'), next);
	source.reload();
	const { chain } = await issuer.issue(wanted());
	expect(chain.endsWith(next.chain)).toBe(true);
});

test('an issuer that peers would not trust signs nothing: under another authority, or none at all', async () => {
	const stranger = await testIssuer(await testRoot());
	await expect(open(stranger).issuer.issue(wanted())).rejects.toMatchObject({
		kind: 'unavailable',
		message: expect.stringContaining('ISSUER_DIR'),
	});
	const leaf = await testLeaf(root, { clusterId, role: 'orchestrator', id: '1'.repeat(32) });
	await expect(open(leaf).issuer.issue(wanted())).rejects.toMatchObject({
		kind: 'unavailable',
		message: expect.stringContaining('not of an authority'),
	});
});

test.each([
	['of RSA', generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey],
	['of another curve', generateKeyPairSync('ec', { namedCurve: 'secp384r1' }).publicKey],
	['of Ed25519', generateKeyPairSync('ed25519').publicKey],
	['that is none', null],
])('a public key %s is refused', async (_what, key) => {
	const { issuer } = open(await testIssuer(root));
	const publicKey = key === null ? Buffer.from('no key') : key.export({ type: 'spki', format: 'der' });
	await expect(issuer.issue(wanted(publicKey))).rejects.toMatchObject({ kind: 'invalid' });
});
