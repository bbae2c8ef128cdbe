/** Workers that start with nothing but a volume and a pod's token: how they join, stay, and whom nobody lets in. */

import { X509Certificate } from 'node:crypto';
import { copyFileSync, mkdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { newSigningKey, signingKeyToPem } from '../../core/crypto/sign.ts';
import { bundleOf, put, testRoot } from '../support/certificates.ts';
import { until } from '../support/cluster.ts';
import { EnrollingCluster, type Running } from '../support/enrolling.ts';
import { jwksOf, tokenSigner } from '../support/tokens.ts';

const POD = 'demo-worker-0';
const BYTES = 300_000;
let c: EnrollingCluster;

beforeEach(async () => {
	c = await EnrollingCluster.make();
});
afterEach(() => c.remove());

async function ready(process: Running): Promise<void> {
	await until(
		async () => {
			if (!process.isRunning()) throw new Error(process.output());
			return (await process.ask('/readyz')).status === 200;
		},
		{ what: 'it to be ready' },
	).catch(async (error) => {
		throw new Error(`${(error as Error).message}: ${process.output()}`);
	});
}

const reasons = async (process: Running) => (await process.ask('/readyz')).body.reasons as string[];

interface Loaded {
	readonly certificate: { readonly fingerprint: string; readonly not_after: string; readonly chain: string[] } | null;
	readonly ca: string[];
	/** Of orchestrators. */
	readonly issuer?: { readonly fingerprint: string } | null;
}
const loaded = async (process: Running) => (await process.ask('/identity')).body as unknown as Loaded;

async function store(orchestrator: Running): Promise<string> {
	const body = Buffer.alloc(BYTES, 'enrolled');
	const response = await fetch(`${orchestrator.http}/objects`, { method: 'POST', body });
	expect(response.status).toBe(201);
	return ((await response.json()) as { object_id: string }).object_id;
}

async function isThere(orchestrator: Running, id: string): Promise<boolean> {
	const response = await fetch(`${orchestrator.http}/objects/${id}`);
	const bytes = Buffer.from(await response.arrayBuffer());
	return response.status === 200 && bytes.equals(Buffer.alloc(BYTES, 'enrolled'));
}

const workers = async (orchestrator: Running) =>
	(await orchestrator.ask('/cluster')).body.workers as {
		name: string;
		worker_id: string;
		zone: string;
		state: string;
	}[];

test('a worker gets its certificate, joins, serves, and starts again without asking', async () => {
	// It lives before there is anybody to ask.
	const worker = await c.worker(POD);
	expect(await reasons(worker)).toContainEqual(expect.stringContaining('waiting for a certificate'));
	expect(await loaded(worker)).toMatchObject({ role: 'worker', name: POD, certificate: null });
	const orchestrator = await c.orchestrator();
	await ready(worker);
	const id = await store(orchestrator);
	expect(await isThere(orchestrator, id)).toBe(true);
	expect((await workers(orchestrator)).map(({ name }) => name)).toEqual([POD]);

	const tls = join(c.volume(POD), 'tls');
	expect(statSync(join(tls, 'tls.key')).mode & 0o777).toBe(0o600);
	const own = await loaded(worker);
	const theirs = (await orchestrator.ask('/identity')).body;
	expect(theirs).toMatchObject({ role: 'orchestrator', name: 'orchestrator-1', ca: own.ca });
	expect(theirs.master_keys).toEqual([expect.stringMatching(/^[0-9a-f]{8}$/)]);
	expect(own.certificate?.chain).toEqual([(theirs.issuer as { fingerprint: string }).fingerprint]);
	expect(JSON.stringify(theirs)).not.toContain(readFileSync(join(c.folder, 'orchestrator/master.key'), 'utf8').trim());

	await worker.end('SIGTERM');
	const again = await c.worker(POD, { ENROL_ADDRESS: 'localhost:1' });
	await ready(again);
	expect(await loaded(again)).toEqual(own);
	expect(await isThere(orchestrator, id)).toBe(true);
});

test('it renews its certificate while it runs, and new connections are made with the new one', async () => {
	const env = { ENROL_LIFETIME: '12s' };
	let orchestrator = await c.orchestrator(env);
	const worker = await c.worker(POD);
	await ready(worker);
	const id = await store(orchestrator);
	const first = await loaded(worker);
	const endsMs = Date.parse(first.certificate?.not_after ?? '');
	expect(endsMs - Date.now()).toBeLessThanOrEqual(12_000);
	await until(async () => (await loaded(worker)).certificate?.fingerprint !== first.certificate?.fingerprint, {
		what: 'the certificate to be renewed',
	});
	expect(Date.now()).toBeLessThan(endsMs);
	await until(() => Date.now() > endsMs, { what: 'the first certificate to end' });
	// Both ways anew: the worker dials its gRPC service, and it the worker.
	await orchestrator.end('SIGKILL');
	orchestrator = await c.orchestrator(env);
	await ready(worker);
	expect(await isThere(orchestrator, id)).toBe(true);
});

test('a stolen id is of no use: not to another pod, and not without the volume’s key', async () => {
	const orchestrator = await c.orchestrator();
	const worker = await c.worker(POD);
	await ready(worker);
	const [mine] = await workers(orchestrator);
	await worker.end('SIGTERM');

	// The whole volume but its certificate, in another pod.
	const thief = 'demo-worker-1';
	mkdirSync(c.volume(thief));
	for (const file of ['worker.json', 'receipt-key.pem']) {
		copyFileSync(join(c.volume(POD), file), join(c.volume(thief), file));
	}
	const other = await c.worker(thief);
	await until(async () => (await reasons(other)).some((reason) => reason.includes(`is ${POD}, and not ${thief}`)), {
		what: 'the other pod to be refused',
	});

	// The id only, in a pod of the same name: its key is made anew.
	await other.end('SIGTERM');
	rmSync(join(c.volume(POD), 'tls'), { recursive: true });
	copyFileSync(join(c.volume(POD), 'receipt-key.pem'), join(c.folder, 'kept.pem'));
	put(join(c.volume(POD), 'receipt-key.pem'), signingKeyToPem(newSigningKey()));
	const without = await c.worker(POD);
	await until(async () => (await reasons(without)).some((reason) => reason.includes('another receipt key')), {
		what: 'the one without the key to be refused',
	});
	expect(await workers(orchestrator)).toEqual([expect.objectContaining({ worker_id: mine?.worker_id, name: POD })]);

	// With its key it is itself again.
	await without.end('SIGTERM');
	copyFileSync(join(c.folder, 'kept.pem'), join(c.volume(POD), 'receipt-key.pem'));
	await ready(await c.worker(POD));
});

test('a name is that of the certificate, and not what the worker says', async () => {
	await c.orchestrator();
	const liar = await c.worker(POD, { NAME: 'demo-worker-7' });
	await until(() => liar.output().includes(`the certificate is for ${POD}, and not for demo-worker-7`), {
		what: 'it to be refused',
	});
	expect(await reasons(liar)).toEqual(['no orchestrator answers']);
});

test('without a good token it waits, lives, and joins once there is one; keys of tokens may be changed', async () => {
	const orchestrator = await c.orchestrator();
	const forger = tokenSigner('key-1');
	const worker = await c.worker(POD, { ENROL_TOKEN_FILE: c.writeToken(POD, forger) });
	await until(async () => (await reasons(worker)).some((reason) => reason.includes('signature is wrong')), {
		what: 'the forged token to be refused',
	});
	expect((await worker.ask('/healthz')).status).toBe(200);
	const next = tokenSigner('key-2', 'ES256');
	c.writeToken(POD, next);
	put(join(c.enrolDir, 'jwks.json'), jwksOf([c.tokens, next]));
	await ready(worker);
	expect(await workers(orchestrator)).toEqual([expect.objectContaining({ name: POD, state: 'ready' })]);
});

test('the authority is replaced under a running cluster: both are trusted, then the new one is first, then alone', async () => {
	const orchestrator = await c.orchestrator();
	const worker = await c.worker(POD);
	await ready(worker);
	const id = await store(orchestrator);
	const old = c.root;
	c.root = await testRoot();
	const prints = (roots: readonly (typeof old)[]) =>
		roots.map(({ certificate }) => new X509Certificate(certificate).fingerprint256);
	const trust = async (roots: readonly (typeof old)[]) => {
		put(c.bundle, bundleOf(roots));
		const wanted = prints(roots).join();
		await until(
			async () => (await Promise.all([orchestrator, worker].map(loaded))).every(({ ca }) => ca.join() === wanted),
			{ what: `${roots.length} authorities to be trusted` },
		);
	};

	await trust([old, c.root]);
	const before = await loaded(orchestrator);
	const issuer = await c.issueOrchestrator();
	const issuerPrint = prints([issuer])[0];
	await until(
		async () => {
			const now = await loaded(orchestrator);
			return (
				now.certificate?.fingerprint !== before.certificate?.fingerprint && now.issuer?.fingerprint === issuerPrint
			);
		},
		{ what: 'the orchestrator to have its new certificates' },
	);
	await trust([c.root, old]);
	// Long before two thirds of its life.
	await until(async () => (await loaded(worker)).certificate?.chain[0] === issuerPrint, {
		what: 'the worker to have a certificate of the new issuer',
		timeoutMs: 60_000,
	});
	await trust([c.root]);
	await orchestrator.end('SIGKILL');
	const again = await c.orchestrator();
	await ready(worker);
	expect(await isThere(again, id)).toBe(true);
});

test('the zone is waited for, kept for a start without it, and followed', async () => {
	const orchestrator = await c.orchestrator();
	const zoneFile = join(c.folder, 'zone');
	const zones = async () => (await workers(orchestrator)).map(({ zone, state }) => `${zone} ${state}`);
	const worker = await c.worker(POD, { ZONE_FILE: zoneFile });
	await until(async () => (await reasons(worker)).some((reason) => reason.includes('ZONE_FILE')), {
		what: 'it to wait',
	});
	expect((await worker.ask('/healthz')).status).toBe(200);
	// A pod without the label yet.
	put(zoneFile, '');
	await until(() => worker.output().includes('got a certificate'), { what: 'its certificate' });
	expect(await workers(orchestrator)).toEqual([]);
	put(zoneFile, 'zone-a');
	await ready(worker);
	expect(await zones()).toEqual(['zone-a ready']);
	await worker.end('SIGTERM');
	rmSync(zoneFile);
	await ready(await c.worker(POD, { ZONE_FILE: zoneFile }));
	expect(await zones()).toEqual(['zone-a ready']);
	put(zoneFile, 'zone-b');
	await until(async () => (await zones())[0] === 'zone-b ready', { what: 'the new zone' });
});
