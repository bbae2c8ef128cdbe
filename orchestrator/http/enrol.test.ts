/** The enrolment port, where strangers may talk: what it answers, and its bounds. */

import { once } from 'node:events';
import https from 'node:https';
import net, { type AddressInfo } from 'node:net';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { DistroError } from '../../core/errors.ts';
import type { Enrolment } from '../../core/model/enrolment.ts';
import type { TlsSource } from '../../platform/tls.ts';
import { type TestAuthority, testAuthority } from '../../test/support/authority.ts';
import { createEnrolServer } from './enrol.ts';

const good = {
	worker_id: 'a'.repeat(32),
	public_key: Buffer.from('a public key').toString('base64'),
	receipt_key: Buffer.alloc(32, 1).toString('base64'),
	signature: Buffer.alloc(64, 2).toString('base64'),
};
let authority: TestAuthority;
let tls: TlsSource;
let server: https.Server;
let port: number;
let asked: { token: string; enrolment: Enrolment }[];
let refuse: Error | null;

beforeAll(async () => {
	authority = await testAuthority();
	tls = await authority.tls('orchestrator', '1'.repeat(32));
	const enrol = async (token: string, enrolment: Enrolment) => {
		asked.push({ token, enrolment });
		if (refuse !== null) throw refuse;
		return 'a chain';
	};
	server = createEnrolServer({ tls, desk: { enrol } });
	server.listen(0, '127.0.0.1');
	await once(server, 'listening');
	port = (server.address() as AddressInfo).port;
});
afterAll(() => {
	server.close();
	server.closeAllConnections();
	authority.remove();
});
beforeEach(() => {
	asked = [];
	refuse = null;
});

interface Call {
	readonly method?: string;
	readonly path?: string;
	readonly headers?: Record<string, string>;
	readonly body?: string;
}

/** Without a certificate of its own. */
async function call({ method = 'POST', path = '/enrol', headers = {}, body = JSON.stringify(good) }: Call = {}) {
	const request = https.request({
		host: 'localhost',
		port,
		path,
		method,
		agent: false,
		ca: tls.material.ca,
		headers: { authorization: 'Bearer a.good.token', ...headers },
	});
	request.on('error', () => {});
	request.end(body);
	const [response] = (await once(request, 'response')) as [import('node:http').IncomingMessage];
	let text = '';
	for await (const chunk of response) text += chunk;
	return { status: response.statusCode, headers: response.headers, body: JSON.parse(text) as Record<string, unknown> };
}

test('a request goes to the desk, and its certificate comes back', async () => {
	const { status, body, headers } = await call();
	expect([status, body, headers.connection]).toEqual([200, { certificate: 'a chain' }, 'close']);
	const [first] = asked as [(typeof asked)[number]];
	const { workerId, publicKey, receiptKey, signature } = first.enrolment;
	expect(first.token).toBe('a.good.token');
	expect([workerId, publicKey.toString(), receiptKey, signature]).toEqual([
		good.worker_id,
		'a public key',
		Buffer.alloc(32, 1),
		Buffer.alloc(64, 2),
	]);
});

test.each<[number, string, Call]>([
	[404, 'POST /enrol', { path: '/' }],
	[405, 'POST', { method: 'GET', body: '' }],
	[401, 'Bearer', { headers: { authorization: '' } }],
	[401, 'Bearer', { headers: { authorization: 'Basic eDp5' } }],
	[400, 'JSON', { body: 'nothing' }],
	[400, 'JSON', { body: 'null' }],
	[400, 'worker_id', { body: '{}' }],
	[400, 'worker_id', { body: JSON.stringify({ ...good, worker_id: 'A'.repeat(32) }) }],
	[400, 'receipt_key', { body: JSON.stringify({ ...good, receipt_key: 'AAAA' }) }],
	[400, 'signature', { body: JSON.stringify({ ...good, signature: 7 }) }],
	[413, '4096', { body: JSON.stringify({ ...good, public_key: 'A'.repeat(5_000) }) }],
])('%i (%s): %j', async (status, sentence, request) => {
	const answer = await call(request);
	expect([answer.status, answer.headers['content-type']]).toEqual([status, 'application/problem+json']);
	expect(answer.body.detail).toContain(sentence);
	expect(asked).toEqual([]);
});

test('what the desk refuses has its status and its sentence; a bug has neither', async () => {
	refuse = new DistroError('denied', 'it has expired');
	expect(await call()).toMatchObject({ status: 403, body: { detail: 'it has expired' } });
	refuse = new DistroError('unavailable', 'come again', { retryAfterMs: 2_000 });
	expect(await call()).toMatchObject({ status: 503, headers: { 'retry-after': '2' } });
	refuse = new TypeError('secret');
	const { status, body } = await call();
	expect(status).toBe(500);
	expect(JSON.stringify(body)).not.toContain('secret');
});

test('plain text gets no answer', async () => {
	const socket = net.connect(port, '127.0.0.1');
	let got = '';
	socket.on('data', (bytes) => {
		got += bytes.toString('latin1');
	});
	socket.on('error', () => {});
	socket.write('POST /enrol HTTP/1.1\r\nhost: x\r\n\r\n');
	await once(socket, 'close').catch(() => {});
	expect(got).not.toContain('HTTP');
});

test('who sends only half a request is cut off', { timeout: 30_000 }, async () => {
	const request = https.request({
		host: 'localhost',
		port,
		path: '/enrol',
		method: 'POST',
		agent: false,
		ca: tls.material.ca,
		headers: { authorization: 'Bearer a.good.token', 'content-length': '100' },
	});
	const ended = new Promise<void>((resolve) => {
		request.on('error', () => resolve());
		request.on('response', (response) => response.resume().on('close', () => resolve()));
	});
	request.write('{');
	await ended;
	expect(asked).toEqual([]);
});
