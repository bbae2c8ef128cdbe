/** A worker asks for its certificate, at an enrolment port that behaves as a test tells it. */

import { createPublicKey, type KeyObject, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { newSigningKey, verifyEnrolment } from '../core/crypto/sign.ts';
import type { ClusterId, WorkerId } from '../core/ids.ts';
import type { Clock } from '../core/ports.ts';
import { systemClock, systemRandom } from '../platform/clock.ts';
import { identityUris, type PeerIdentity } from '../platform/tls.ts';
import { keyToPem, makeCertificate, newCertificateKey } from '../platform/x509.ts';
import {
	bundleOf,
	put,
	type TestSigner,
	testIssuer,
	testLeaf,
	testRoot,
	writeTls,
} from '../test/support/certificates.ts';
import { until } from '../test/support/cluster.ts';
import { Enrolment, type EnrolmentDeps } from './enrol.ts';

const clusterId = 'c'.repeat(32) as ClusterId;
const workerId = 'a'.repeat(32) as WorkerId;
const me: PeerIdentity = { clusterId, role: 'worker', id: workerId, name: 'demo-worker-0' };
const receiptKey = newSigningKey();
const HOUR_MS = 60 * 60_000;

interface Asked {
	readonly authorization: string | undefined;
	readonly signed: boolean;
}

let folder: string;
let root: TestSigner;
let issuer: TestSigner;
let server: Server | null;
let asked: Asked[];
let warned: string[];
let open: Enrolment[];
/** What the port answers for a public key. */
let answer: (publicKey: KeyObject) => Promise<string>;

beforeEach(async () => {
	folder = mkdtempSync(join(tmpdir(), 'distro-enrol-'));
	root = await testRoot();
	issuer = await testIssuer(root);
	server = null;
	asked = [];
	warned = [];
	open = [];
	answer = (publicKey) => certificate(publicKey, me);
	put(join(folder, 'ca.crt'), bundleOf([root]));
	put(join(folder, 'token'), 'a.good.token\n');
});
afterEach(() => {
	for (const one of open) one.stop();
	server?.close();
	server?.closeAllConnections();
	rmSync(folder, { recursive: true });
});

async function certificate(
	publicKey: KeyObject,
	peer: PeerIdentity,
	signer = issuer,
	lifeMs = HOUR_MS,
): Promise<string> {
	const made = await makeCertificate(signer, {
		commonName: 'distro worker',
		publicKey,
		notBeforeMs: Date.now() - 1_000,
		notAfterMs: Date.now() + lifeMs,
		uris: identityUris(peer),
	});
	return `${made}${signer.chain}`;
}

/** Answers its address. */
async function serve(peer: PeerIdentity = { clusterId, role: 'orchestrator', id: '1'.repeat(32) }, signer = root) {
	const leaf = await testLeaf(signer, peer);
	server = createServer({ cert: leaf.chain, key: keyToPem(leaf.key) }, async (request, response) => {
		let text = '';
		for await (const chunk of request) text += chunk;
		const fields = JSON.parse(text) as Record<'worker_id' | 'public_key' | 'receipt_key' | 'signature', string>;
		const bytes = (name: keyof typeof fields) => Buffer.from(fields[name], 'base64');
		const publicKey = bytes('public_key');
		asked.push({
			authorization: request.headers.authorization,
			signed: verifyEnrolment({
				workerId: fields.worker_id as WorkerId,
				publicKey,
				receiptKey: bytes('receipt_key'),
				signature: bytes('signature'),
			}),
		});
		try {
			const key = createPublicKey({ key: publicKey, format: 'der', type: 'spki' });
			response.end(JSON.stringify({ certificate: await answer(key) }));
		} catch (error) {
			response.writeHead(403).end(JSON.stringify({ detail: (error as Error).message }));
		}
	});
	server.listen(0, '127.0.0.1');
	await once(server, 'listening');
	return `localhost:${(server.address() as AddressInfo).port}`;
}

function enrolment(address: string, change: Partial<EnrolmentDeps> = {}): Enrolment {
	const one = new Enrolment({
		tlsDir: join(folder, 'tls'),
		address,
		tokenFile: join(folder, 'token'),
		caFile: join(folder, 'ca.crt'),
		identity: { workerId, receiptKey },
		clock: systemClock,
		random: systemRandom,
		log: { info: () => {}, warn: (fields) => warned.push((fields as { reason: string }).reason) },
		...change,
	});
	open.push(one);
	return one;
}

const kept = () => readFileSync(join(folder, 'tls/tls.crt'), 'utf8');

test('it gets one by its token and its receipt key, and keeps it with a key that only it can read', async () => {
	const one = enrolment(await serve());
	expect(one.reason).not.toBeNull();
	await one.start();
	expect(one.reason).toBeNull();
	expect(asked).toEqual([{ authorization: 'Bearer a.good.token', signed: true }]);
	expect(statSync(join(folder, 'tls/tls.key')).mode & 0o777).toBe(0o600);
	expect(statSync(join(folder, 'tls')).mode & 0o777).toBe(0o700);
	// Who has a good one asks nobody.
	one.stop();
	await enrolment('localhost:1').start();
	expect(asked).toHaveLength(1);
});

test('it goes on trying until token, authorities and an orchestrator are there', async () => {
	rmSync(join(folder, 'token'));
	rmSync(join(folder, 'ca.crt'));
	const one = enrolment(await serve());
	const started = one.start();
	await until(() => one.reason?.includes('TLS_CA_FILE') === true, { what: 'the bundle to be missed' });
	put(join(folder, 'ca.crt'), bundleOf([root]));
	await until(() => one.reason?.includes('ENROL_TOKEN_FILE') === true, { what: 'the token to be missed' });
	put(join(folder, 'token'), 'a.late.token');
	await started;
	expect(asked.map(({ authorization }) => authorization)).toEqual(['Bearer a.late.token']);
});

test.each<[string, () => (publicKey: KeyObject) => Promise<string>]>([
	['not for this worker', () => (key) => certificate(key, { ...me, id: 'b'.repeat(32) })],
	['not for this worker', () => (key) => certificate(key, { ...me, role: 'orchestrator' })],
	['another cluster', () => (key) => certificate(key, { ...me, clusterId: 'd'.repeat(32) as ClusterId })],
	['another key', () => async () => certificate(createPublicKey(newCertificateKey()), me)],
	['does not lead', () => async (key) => certificate(key, me, await testIssuer(await testRoot()))],
	['no certificate', () => async () => 'nothing'],
	['403: not you', () => () => Promise.reject(new Error('not you'))],
])('an answer that is no certificate of ours is not kept: %s', async (why, wrong) => {
	const right = answer;
	answer = wrong();
	const one = enrolment(await serve());
	const started = one.start();
	await until(() => warned.length > 0, { what: 'it to be refused' });
	expect(existsSync(join(folder, 'tls'))).toBe(false);
	expect(one.reason).toContain(why);
	answer = right;
	await started;
	expect(new X509Certificate(kept()).checkIssued(new X509Certificate(issuer.certificate))).toBe(true);
});

test.each<[string, () => Promise<[PeerIdentity, TestSigner]>]>([
	['is a worker', async () => [{ clusterId, role: 'worker', id: '1'.repeat(32) }, root]],
	['no authority vouches for', async () => [{ clusterId, role: 'orchestrator', id: '1'.repeat(32) }, await testRoot()]],
])('its token goes to no one who %s', async (_who, peer) => {
	const one = enrolment(await serve(...(await peer())));
	one.start();
	await until(() => warned.length > 0, { what: 'it to be left' });
	expect(asked).toEqual([]);
	expect(one.reason).not.toBeNull();
});

test('who was in a cluster goes to no other, though one authority vouches for both', async () => {
	const ended = await testLeaf(issuer, me, { notAfterMs: Date.now() - 1_000 });
	writeTls(join(folder, 'tls'), ended);
	const one = enrolment(
		await serve({ clusterId: 'd'.repeat(32) as ClusterId, role: 'orchestrator', id: '1'.repeat(32) }),
	);
	one.start();
	await until(() => warned.length > 0, { what: 'it to be left' });
	expect(asked).toEqual([]);
	expect(one.reason).toContain('no orchestrator of this worker’s cluster');
});

test.each(['tls.crt', 'tls.key'])(
	'where it was stopped between its two files (%s of before) it asks again',
	async (file) => {
		const [before, after] = [await testLeaf(issuer, me), await testLeaf(issuer, me)];
		writeTls(join(folder, 'tls'), after);
		writeFileSync(join(folder, 'tls', file), file === 'tls.crt' ? before.chain : keyToPem(before.key));
		await enrolment(await serve()).start();
		expect(asked).toHaveLength(1);
	},
);

test('one that nobody trusts any more is replaced while it runs, also long before its end', async () => {
	const next = await testRoot();
	put(join(folder, 'ca.crt'), bundleOf([root, next]));
	const one = enrolment(await serve(undefined, next), { clock: quick() });
	await one.start();
	const first = kept();
	issuer = await testIssuer(next);
	put(join(folder, 'ca.crt'), bundleOf([next]));
	await until(() => kept() !== first, { what: 'a new one' });
	expect(new X509Certificate(kept()).checkIssued(new X509Certificate(issuer.certificate))).toBe(true);
	await until(() => one.reason === null, { what: 'it to be content' });
});

test('it moves under the authority that is first in the bundle, and asks ever more seldom where that does not help', async () => {
	const next = await testRoot();
	put(join(folder, 'ca.crt'), bundleOf([root, next]));
	let nowMs = 0;
	let looks = 0;
	const clock: Clock = {
		...quick(),
		monotonicMs: () => nowMs,
		nowMs: () => {
			looks++;
			return Date.now();
		},
	};
	const lookTwice = async () => {
		const before = looks;
		await until(() => looks >= before + 8, { what: 'it to look' });
	};
	const one = enrolment(await serve(), { clock });
	await one.start();
	// The orchestrators have the old issuer still.
	put(join(folder, 'ca.crt'), bundleOf([next, root]));
	await until(() => asked.length === 2, { what: 'it to ask anew' });
	for (const [minute, times] of [
		[1, 3],
		[2, 3],
		[3, 4],
		[6, 4],
		[7, 5],
	] as const) {
		nowMs = minute * 60_000;
		await lookTwice();
		expect(asked.length).toBe(times);
	}
	issuer = await testIssuer(next);
	nowMs = 15 * 60_000;
	await until(() => new X509Certificate(kept()).checkIssued(new X509Certificate(issuer.certificate)), {
		what: 'a certificate under the new one',
	});
	nowMs = 1_000 * 60_000;
	await lookTwice();
	expect(asked).toHaveLength(6);
});

test('with a clock far ahead it does not ask and ask', async () => {
	let waited = 0;
	const clock: Clock = {
		...systemClock,
		nowMs: () => Date.now() + 0.9 * HOUR_MS,
		schedule: (ms) => {
			waited = ms;
			return () => {};
		},
	};
	let renewed = 0;
	const one = enrolment(await serve(), { clock });
	one.onRenewed(() => renewed++);
	await one.start();
	await until(() => waited > 0, { what: 'it to wait' });
	expect(waited).toBeGreaterThanOrEqual(500);
	expect([asked.length, renewed]).toEqual([1, 1]);
});

/** Its waits are a hundred times shorter. */
function quick(): Clock {
	return { ...systemClock, schedule: (ms, callback) => systemClock.schedule(ms / 100, callback) };
}
