/** Certificates: who a peer is, and new files in the place of old ones while servers run. */

import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import tls from 'node:tls';
import * as grpc from '@grpc/grpc-js';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import type { ClusterId, WorkerId } from '../core/ids.ts';
import { type TestAuthority, testAuthority } from '../test/support/authority.ts';
import { bundleOf, put, testIssuer, testLeaf, testRoot, writeTls } from '../test/support/certificates.ts';
import { bindGrpcServer, createGrpcServer, grpcChannelCredentials } from './grpc.ts';
import { followChain, identityUris, parseIdentity, TlsSource } from './tls.ts';

const CLUSTER = 'a'.repeat(32);
const ID = '0123456789abcdef'.repeat(2);
const POLL_MS = 5_000;

describe('a peer’s name', () => {
	test.each(['orchestrator', 'worker', 'operator', 'client'] as const)('%s', (role) => {
		const expected = { clusterId: CLUSTER, role, id: ID };
		expect(parseIdentity(`URI:distro://${CLUSTER}/${role}/${ID}`)).toEqual(expected);
		expect(parseIdentity(`DNS:localhost, URI:distro://${CLUSTER}/${role}/${ID}, IP Address:127.0.0.1`)).toEqual(
			expected,
		);
		expect(parseIdentity(`URI:https://elsewhere, URI:distro://${CLUSTER}/${role}/${ID}`)).toEqual(expected);
	});

	test('with what it may be called, where the certificate says so', () => {
		const peer = { clusterId: CLUSTER as ClusterId, role: 'worker', id: ID, name: 'demo-worker-3' } as const;
		const names = identityUris(peer).map((uri) => `URI:${uri}`);
		expect(parseIdentity(names.join(', '))).toEqual(peer);
		expect(parseIdentity(['DNS:demo-worker-3.svc', ...names.toReversed()].join(', '))).toEqual(peer);
		expect(() => parseIdentity(names[1])).toThrow(expect.objectContaining({ kind: 'denied' }));
	});

	test.each([
		undefined,
		'',
		'DNS:localhost',
		`DNS:distro://${CLUSTER}/worker/${ID}`,
		`distro://${CLUSTER}/worker/${ID}`,
		`URI:distro://${CLUSTER}/admin/${ID}`,
		`URI:distro://${CLUSTER}/worker/${ID}/more`,
		`URI:distro://${CLUSTER}/worker/${ID.toUpperCase()}`,
		`URI:distro://${CLUSTER}/worker/${ID.slice(1)}`,
		`URI:distro://${CLUSTER.slice(1)}/worker/${ID}`,
		`URI:http://distro://${CLUSTER}/worker/${ID}`,
		`URI:"https://x, URI:distro://${CLUSTER}/worker/${ID}"`,
	])('%s is none', (name) => {
		expect(() => parseIdentity(name)).toThrow(expect.objectContaining({ kind: 'denied' }));
	});
});

describe('new files in the place of old ones', () => {
	let authority: TestAuthority;
	let first: string;
	let second: string;
	let folders = 0;

	beforeAll(async () => {
		authority = await testAuthority();
		first = await authority.issue('worker', ID);
		second = await authority.issue('worker', 'f'.repeat(32));
	});
	afterAll(() => authority.remove());
	afterEach(() => {
		vi.useRealTimers();
	});

	/** A folder that a process watches, and how to change a file of it. */
	function watched() {
		const folder = join(authority.folder, `watched-${folders++}`);
		mkdirSync(folder);
		let time = 1_700_000_000;
		const put = (file: string, from: string | Buffer) => {
			const target = join(folder, file);
			if (typeof from === 'string') copyFileSync(join(from, file), target);
			else writeFileSync(target, from);
			// A later time each: files of one test are written within one tick of the file system's clock.
			utimesSync(target, ++time, time);
		};
		for (const file of ['ca.crt', 'tls.key', 'tls.crt']) put(file, first);
		vi.useFakeTimers({ toFake: ['setInterval'] });
		const source = new TlsSource(folder);
		let changes = 0;
		source.onChange(() => {
			changes++;
		});
		const look = () => {
			vi.advanceTimersByTime(POLL_MS);
			return changes;
		};
		return { source, put, look };
	}

	const serial = (cert: Buffer) => new X509Certificate(cert).serialNumber;
	const read = (folder: string, file: string) => readFileSync(join(folder, file));

	test('are taken when they are whole', () => {
		const { source, put, look } = watched();
		expect(look()).toBe(0);
		expect(source.identity).toMatchObject({ role: 'worker', id: ID });
		expect(source.notAfterMs).toBeGreaterThan(Date.now());
		put('tls.key', second);
		// The key of one certificate and another certificate: half-written.
		expect(look()).toBe(0);
		expect(source.material.key).toEqual(read(first, 'tls.key'));
		put('tls.crt', second);
		expect(look()).toBe(1);
		expect(source.material.cert).toEqual(read(second, 'tls.crt'));
		expect(source.material.key).toEqual(read(second, 'tls.key'));
		expect(look()).toBe(1);
	});

	test.each(['tls.crt', 'tls.key', 'ca.crt'])('%s half-written or empty: the old ones stay', (file) => {
		const { source, put, look } = watched();
		const whole = read(first, file);
		for (const half of [whole.subarray(0, whole.length / 2), Buffer.alloc(0), Buffer.from('nothing of the kind')]) {
			put(file, half);
			expect(look()).toBe(0);
			expect(source.material.ca).toEqual(read(first, 'ca.crt'));
			expect(serial(source.material.cert)).toBe(serial(read(first, 'tls.crt')));
		}
		put(file, whole);
		expect(look()).toBe(1);
	});

	test('several authorities with comments between them are one; the last cut short is none', () => {
		const { source, put, look } = watched();
		const whole = read(first, 'ca.crt');
		const both = Buffer.concat([Buffer.from('# old\n'), whole, Buffer.from('\n# new\n'), whole]);
		put('ca.crt', both);
		expect(look()).toBe(1);
		put('ca.crt', both.subarray(0, -40));
		expect(look()).toBe(1);
		expect(source.material.ca).toEqual(both);
	});

	test('a folder that lacks one is refused at start, with a sentence', () => {
		const folder = join(authority.folder, `lacking-${folders++}`);
		mkdirSync(folder);
		copyFileSync(join(first, 'ca.crt'), join(folder, 'ca.crt'));
		expect(() => new TlsSource(folder)).toThrow(
			expect.objectContaining({ kind: 'invalid', message: expect.stringContaining('TLS_DIR') }),
		);
		for (const [file, from] of [
			['tls.key', first],
			['tls.crt', second],
		] as const)
			copyFileSync(join(from, file), join(folder, file));
		expect(() => new TlsSource(folder)).toThrow(
			expect.objectContaining({ kind: 'invalid', message: expect.stringContaining('TLS_DIR') }),
		);
	});

	test('a running server shows the new certificate, and still wants the peer’s', async () => {
		const { source, put, look } = watched();
		const client = await authority.tls('orchestrator', ID);
		const server = tls.createServer(source.serverTlsOptions(), (socket) => socket.end('hello'));
		server.on('tlsClientError', () => {});
		source.follow(server);
		server.listen(0, '127.0.0.1');
		await once(server, 'listening');
		const { port } = server.address() as AddressInfo;
		const connect = async (workerId: string, options: tls.ConnectionOptions = {}) => {
			const socket = tls.connect({
				...client.clientTlsOptions({ expectWorker: workerId as WorkerId }),
				...options,
				host: '127.0.0.1',
				port,
			});
			let got = '';
			socket.on('data', (bytes) => {
				got += bytes.toString();
			});
			let error: Error | null = null;
			socket.on('error', (thrown) => {
				error = thrown;
			});
			await once(socket, 'close').catch(() => {});
			return error === null ? got : 'refused';
		};
		expect(await connect(ID)).toBe('hello');
		expect(await connect('f'.repeat(32))).toBe('refused');
		put('tls.key', second);
		put('tls.crt', second);
		expect(look()).toBe(1);
		expect(await connect('f'.repeat(32))).toBe('hello');
		expect(await connect(ID)).toBe('refused');
		expect(await connect('f'.repeat(32), { cert: undefined, key: undefined })).toBe('refused');
		server.close();
	});
});

describe('authorities: an issuer between, and two in the bundle', () => {
	const ORCHESTRATOR = { clusterId: CLUSTER as ClusterId, role: 'orchestrator', id: '1'.repeat(32) } as const;
	const WORKER = { clusterId: CLUSTER as ClusterId, role: 'worker', id: ID } as const;
	const DAY_MS = 24 * 60 * 60_000;
	let folder: string;
	let sources = 0;

	beforeAll(() => {
		folder = mkdtempSync(join(tmpdir(), 'distro-chains-'));
	});
	afterAll(() => rmSync(folder, { recursive: true }));

	const print = (pem: string) => new X509Certificate(pem).fingerprint256;
	type Files = Parameters<typeof writeTls>[1];
	const source = (files: Files) => new TlsSource(writeTls(join(folder, String(sources++)), files));

	/** Whether the worker's shard port takes the orchestrator and the other way round, and the same of heartbeats. */
	async function meet(orchestrator: TlsSource, worker: TlsSource): Promise<[shards: boolean, heartbeats: boolean]> {
		const server = tls.createServer(worker.serverTlsOptions(), (socket) => socket.end('hello'));
		server.on('tlsClientError', () => {});
		server.listen(0, '127.0.0.1');
		await once(server, 'listening');
		const { port } = server.address() as AddressInfo;
		const expectWorker = ID as WorkerId;
		const socket = tls.connect({ ...orchestrator.clientTlsOptions({ expectWorker }), host: '127.0.0.1', port });
		let got = '';
		socket.on('data', (bytes) => {
			got += bytes.toString();
		});
		socket.on('error', () => {});
		await once(socket, 'close').catch(() => {});
		server.close();

		const grpcServer = createGrpcServer();
		const grpcPort = await bindGrpcServer(grpcServer, { address: '127.0.0.1:0', tls: orchestrator });
		const client = new grpc.Client(`localhost:${grpcPort}`, grpcChannelCredentials(worker));
		// No such method: whoever is told so has got through.
		const code = await new Promise<number | undefined>((resolve) => {
			const same = (bytes: Buffer) => bytes;
			const options = { deadline: Date.now() + 5_000 };
			client.makeUnaryRequest('/none/none', same, same, Buffer.alloc(0), new grpc.Metadata(), options, (error) =>
				resolve(error?.code),
			);
		});
		client.close();
		grpcServer.forceShutdown();
		return [got === 'hello', code === grpc.status.UNIMPLEMENTED];
	}

	test('an issuer between certificate and authority is no stranger, on either side', async () => {
		const root = await testRoot();
		const issuer = await testIssuer(root);
		const bundle = [root];
		const plain = await testLeaf(root, ORCHESTRATOR);
		const below = await testLeaf(issuer, WORKER);
		const orchestrator = source({ ...plain, bundle });
		expect(await meet(orchestrator, source({ ...below, bundle }))).toEqual([true, true]);
		expect(
			await meet(source({ ...(await testLeaf(issuer, ORCHESTRATOR)), bundle }), source({ ...below, bundle })),
		).toEqual([true, true]);
		// Without the issuer's certificate nobody can tell.
		const [alone] = below.chain.split(/(?<=-----END CERTIFICATE-----\n)/);
		expect(await meet(orchestrator, source({ ...below, chain: alone as string, bundle }))).toEqual([false, false]);
		expect(() => followChain(alone as string, bundleOf(bundle), Date.now())).toThrow('does not lead');
	});

	test('while an authority is replaced both are trusted, whoever has which certificate already', async () => {
		// cert-manager and people give the new one the old one's name.
		const old = await testRoot({ commonName: 'the authority' });
		const next = await testRoot({ commonName: 'the authority' });
		const certificates = async (root: typeof old) => ({
			orchestrator: await testLeaf(root, ORCHESTRATOR),
			worker: await testLeaf(await testIssuer(root), WORKER),
		});
		const [before, after] = [await certificates(old), await certificates(next)];
		for (const bundle of [
			[old, next],
			[next, old],
		]) {
			for (const { orchestrator } of [before, after]) {
				for (const { worker } of [before, after]) {
					const met = await meet(source({ ...orchestrator, bundle }), source({ ...worker, bundle }));
					expect(met).toEqual([true, true]);
					expect(() => followChain(worker.chain, bundleOf(bundle), Date.now())).not.toThrow();
				}
			}
		}
		const onlyOld = source({ ...before.orchestrator, bundle: [old] });
		expect(await meet(onlyOld, source({ ...after.worker, bundle: [old, next] }))).toEqual([false, false]);
		expect(() => followChain(after.worker.chain, bundleOf([old]), Date.now())).toThrow('does not lead');
	}, 60_000);

	test('a chain lasts as long as its shortest, and leads nowhere through who is no authority, or not now', async () => {
		const nowMs = Math.floor(Date.now() / 1000) * 1000;
		const root = await testRoot({ notAfterMs: nowMs + 9 * DAY_MS });
		const issuer = await testIssuer(root, { notAfterMs: nowMs + 5 * DAY_MS });
		const leaf = await testLeaf(issuer, WORKER, { notAfterMs: nowMs + 7 * DAY_MS });
		const bundle = bundleOf([await testRoot(), root]);
		const led = followChain(leaf.chain, bundle, nowMs);
		expect([led.endMs, led.to.fingerprint256]).toEqual([nowMs + 5 * DAY_MS, print(root.certificate)]);
		for (const wrongMs of [nowMs + 6 * DAY_MS, nowMs - 2 * DAY_MS]) {
			expect(() => followChain(leaf.chain, bundle, wrongMs)).toThrow(expect.objectContaining({ kind: 'denied' }));
		}
		// The worker's own certificate as an issuer.
		const key = (await testLeaf(issuer, WORKER)).key;
		const { chain: certificate } = await testLeaf({ ...root, chain: '' }, WORKER);
		const fake = await testLeaf({ certificate, key, chain: certificate }, WORKER);
		expect(() => followChain(fake.chain, bundle, nowMs)).toThrow(expect.objectContaining({ kind: 'denied' }));
		// An issuer is below an authority, and is none that is trusted by itself.
		expect(() => followChain(leaf.chain, issuer.certificate, nowMs)).toThrow('does not lead');
	});

	test('the bundle may be a file elsewhere, and what is loaded can be seen', async () => {
		const [old, next] = [await testRoot(), await testRoot()];
		const issuer = await testIssuer(old);
		const caFile = join(folder, 'bundle.crt');
		put(caFile, bundleOf([old]));
		const leaf = await testLeaf(issuer, WORKER);
		const own = new TlsSource(writeTls(join(folder, 'own'), leaf), { caFile });
		expect(own.report()).toEqual({
			certificate: {
				fingerprint: print(leaf.chain),
				not_after: new Date(own.notAfterMs).toISOString(),
				chain: [print(issuer.certificate)],
			},
			ca: [print(old.certificate)],
		});
		put(caFile, bundleOf([old, next]));
		own.reload();
		expect(own.report().ca).toEqual([print(old.certificate), print(next.certificate)]);
		expect(JSON.stringify(own.report())).not.toContain('PRIVATE');
	});
});
