/** grpc-js over mutual TLS: renewed certificates are taken up by a server that runs. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import tls from 'node:tls';
import * as grpc from '@grpc/grpc-js';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { newId } from '../core/ids.ts';
import { type Authority, openAuthority } from '../hack/authority.ts';
import { seededRandom } from '../test/support/clock.ts';
import { bindGrpcServer, CLIENT_OPTIONS, createGrpcServer, grpcChannelCredentials } from './grpc.ts';
import { TlsSource } from './tls.ts';

const random = seededRandom('grpc');
const root = mkdtempSync(join(tmpdir(), 'distro-grpc-'));
const [server, folder] = [createGrpcServer(), join(root, 'orchestrator')];
const subject = { role: 'orchestrator', id: newId(random), hosts: ['127.0.0.1'] };
let authority: Authority;
let port: number;
let worker: TlsSource;

beforeAll(async () => {
	authority = await openAuthority(join(root, 'ca'));
	await authority.issue(folder, subject);
	await authority.issue(join(root, 'worker'), { role: 'worker', id: newId(random), hosts: ['127.0.0.1'] });
	worker = new TlsSource(join(root, 'worker'));
	port = await bindGrpcServer(server, { address: '127.0.0.1:0', tls: new TlsSource(folder) });
});
afterAll(() => {
	server.forceShutdown();
	rmSync(root, { recursive: true, force: true });
});

/** Serial number of the certificate that a new connection meets, or why there was none. */
function meet(options: tls.ConnectionOptions): Promise<string> {
	return new Promise((resolve) => {
		const base = { host: '127.0.0.1', port, ALPNProtocols: ['h2'], checkServerIdentity: () => undefined };
		const socket = tls.connect({ ...base, ...options });
		const end = (outcome: string) => {
			resolve(outcome);
			socket.destroy();
		};
		// With TLS 1.3 a refusal comes after the handshake: only what the server sends is a welcome.
		socket.once('data', () => end(socket.getPeerCertificate().serialNumber));
		socket.once('error', () => end('refused'));
		socket.once('close', () => end('refused'));
	});
}

async function reaches(source: TlsSource): Promise<boolean> {
	const client = new grpc.Client(`127.0.0.1:${port}`, grpcChannelCredentials(source), CLIENT_OPTIONS);
	try {
		await new Promise<void>((resolve, reject) => {
			client.waitForReady(Date.now() + 5_000, (error) => (error === undefined ? resolve() : reject(error)));
		});
		return true;
	} catch {
		return false;
	} finally {
		client.close();
	}
}

test('a renewed certificate is what the next connection meets, and clients still need theirs', async () => {
	const first = await meet(worker.material);
	expect(first).toMatch(/^[0-9A-F]+$/);
	expect(await reaches(worker)).toBe(true);
	rmSync(join(folder, 'tls.crt'));
	await authority.issue(folder, subject);
	await expect.poll(() => meet(worker.material), { timeout: 20_000 }).not.toBe(first);
	expect(await meet(worker.material)).toMatch(/^[0-9A-F]+$/);
	expect(await reaches(worker)).toBe(true);
	expect(await meet({ ca: worker.material.ca })).toBe('refused');
	const other = await openAuthority(join(root, 'other'));
	await other.issue(join(root, 'foreign'), { role: 'worker', id: newId(random), hosts: ['127.0.0.1'] });
	const foreign = new TlsSource(join(root, 'foreign')).material;
	expect(await meet({ cert: foreign.cert, key: foreign.key, ca: worker.material.ca })).toBe('refused');
});
