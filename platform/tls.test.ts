/** Certificates: who a peer is, and new files in the place of old ones while servers run. */

import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { copyFileSync, mkdirSync, readFileSync, utimesSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import tls from 'node:tls';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import type { WorkerId } from '../core/ids.ts';
import { type TestAuthority, testAuthority } from '../test/support/authority.ts';
import { parseIdentity, TlsSource } from './tls.ts';

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
