import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import tls from 'node:tls';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type Authority, openAuthority } from '../hack/authority.ts';
import { bindGrpcServer, createGrpcServer } from './grpc.ts';
import { TlsSource } from './tls.ts';

let folder: string;
let authority: Authority;
const server = createGrpcServer();

beforeEach(async () => {
	folder = mkdtempSync(join(tmpdir(), 'distro-grpc-'));
	authority = await openAuthority(join(folder, 'ca'));
});
afterEach(() => {
	server.forceShutdown();
	rmSync(folder, { recursive: true });
});

async function issue(name: string, role: string): Promise<TlsSource> {
	const target = join(folder, name);
	rmSync(join(target, 'tls.crt'), { force: true });
	await authority.issue(target, { role, id: '1'.repeat(32), hosts: ['127.0.0.1'] });
	return new TlsSource(target);
}

/** The serial number of the server's certificate; rejects when it refuses ours. */
function serialSeen(port: number, material: { ca: Buffer; cert?: Buffer; key?: Buffer }): Promise<string> {
	return new Promise((resolve, reject) => {
		const socket = tls.connect({ host: '127.0.0.1', port, ALPNProtocols: ['h2'], ...material });
		let serial = '';
		socket.on('secureConnect', () => {
			serial = socket.getPeerCertificate().serialNumber;
		});
		// In TLS 1.3 a client hears of its refusal only after its handshake: the server's settings say that it was taken.
		socket.once('data', () => {
			socket.destroy();
			resolve(serial);
		});
		socket.once('error', reject);
		socket.once('close', () => reject(new Error('refused')));
	});
}

test('a running server follows a renewed certificate, and goes on asking for one', { timeout: 30_000 }, async () => {
	const source = await issue('orchestrator', 'orchestrator');
	const { material } = await issue('worker', 'worker');
	const port = await bindGrpcServer(server, { address: '127.0.0.1:0', tls: source });
	const before = await serialSeen(port, material);
	await issue('orchestrator', 'orchestrator');
	await expect.poll(() => serialSeen(port, material), { timeout: 20_000 }).not.toBe(before);
	await expect(serialSeen(port, { ca: material.ca })).rejects.toThrow();
	expect(await serialSeen(port, material)).not.toBe(before);
});
