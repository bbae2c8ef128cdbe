/** What people do with objects, against real processes: sizes, ranges, streams, wrong input, secrets. */

import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import http from 'node:http';
import http2 from 'node:http2';
import net from 'node:net';
import { join } from 'node:path';
import tls from 'node:tls';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openAuthority } from '../../hack/authority.ts';
import { cluster, explain, get, getHash, isIntact, put, putStream, type Stored } from '../support/client.ts';
import { seededRandom } from '../support/clock.ts';
import { startCluster, type TestCluster, until } from '../support/cluster.ts';

const random = seededRandom('objects');
const SMALL_PLAIN = 68 * 1024 - 16;
const LARGE_PLAIN = 260 * 1024 - 16;
const SOAK = process.env.SOAK === '1';
let c: TestCluster;

beforeAll(async () => {
	c = await startCluster();
});
afterAll(async () => {
	await c?.remove();
});

function edges(of: number): number[] {
	return [of - 1, of, of + 1];
}

/** Waits until nothing is under way any more: no budget, no intent. */
async function quiet(): Promise<void> {
	await until(
		async () => {
			const { budget, queues } = await cluster(c.http);
			return budget.used_bytes === 0 && queues.intents === 0;
		},
		{ what: 'budget and intents to be given back' },
	);
}

describe('sizes', () => {
	const sizes = [
		0,
		1,
		...edges(4096),
		...edges(SMALL_PLAIN),
		...edges(2 * SMALL_PLAIN),
		...edges(4 * SMALL_PLAIN),
		...edges(512 * 1024),
		...edges(LARGE_PLAIN),
		...edges(4 * LARGE_PLAIN),
		...edges(8 * LARGE_PLAIN + 5),
	];

	test.each(sizes)('%i bytes come back, whole and by ranges', async (size) => {
		const bytes = random.bytes(size);
		const stored = await put(c.http, bytes);
		expect((await get(c.http, stored.id)).equals(bytes)).toBe(true);
		for (let i = 0; i < 4 && size > 0; i++) {
			const from = random.bytes(4).readUInt32LE() % size;
			const to = Math.min(size - 1, from + (random.bytes(4).readUInt32LE() % size));
			expect((await get(c.http, stored.id, [from, to])).equals(bytes.subarray(from, to + 1))).toBe(true);
		}
	});

	test('the edges of a segment, ten uploads at once, chunked', async () => {
		const segment = 256 * LARGE_PLAIN;
		const uploads = [
			segment - 1,
			segment,
			segment + 1,
			segment + LARGE_PLAIN,
			100_000_000,
			1,
			4097,
			70_000,
			2_000_000,
			9_999_999,
		];
		await Promise.all(
			uploads.map(async (size) => {
				const { status, body, sha256 } = await putStream(c.http, { size, chunked: true });
				expect(status).toBe(201);
				const { object_id } = JSON.parse(body) as { object_id: string };
				expect(await getHash(c.http, object_id)).toBe(sha256);
			}),
		);
		await quiet();
	});

	test('3 GB (1 GB outside of soak)', async () => {
		const size = SOAK ? 3_000_000_000 : 1_000_000_000;
		const { status, body, sha256 } = await putStream(c.http, { size, chunked: false });
		expect(status).toBe(201);
		const { object_id } = JSON.parse(body) as { object_id: string };
		expect(await getHash(c.http, object_id)).toBe(sha256);
		const at = size - 1_000_000;
		expect((await get(c.http, object_id, [at, at + 99])).length).toBe(100);
		expect((await fetch(`${c.http}/objects/${object_id}`, { method: 'DELETE' })).status).toBe(204);
		await expect(get(c.http, object_id)).rejects.toMatchObject({ status: 404 });
		expect((await fetch(`${c.http}/trash/${object_id}`, { method: 'DELETE' })).status).toBe(204);
		await until(async () => (await cluster(c.http)).queues.deletions === 0, { what: 'its shards to be deleted' });
	});
});

describe('the documented calls', () => {
	test('curl -F file=@…, then curl -o', async () => {
		const file = join(c.dataDir, 'payload.txt');
		const out = join(c.dataDir, 'out.txt');
		execFileSync('cp', [import.meta.filename, file]);
		const answer = execFileSync('curl', ['-sS', '-X', 'POST', `${c.http}/upload`, '-F', `file=@${file}`], {
			encoding: 'utf8',
		});
		const { object_id } = JSON.parse(answer) as { object_id: string };
		execFileSync('curl', ['-sS', '-X', 'GET', `${c.http}/download/${object_id}`, '-o', out]);
		expect(readFileSync(out).equals(readFileSync(file))).toBe(true);
		const head = await fetch(`${c.http}/download/${object_id}`, { method: 'HEAD' });
		expect(head.headers.get('content-disposition')).toContain('payload.txt');
	});

	test('lists, newest first, page by page', async () => {
		const mine: string[] = [];
		for (let i = 0; i < 5; i++) mine.push((await put(c.http, random.bytes(10))).id);
		const seen: string[] = [];
		let cursor: string | null = null;
		do {
			const query: string = cursor === null ? '' : `&cursor=${encodeURIComponent(cursor)}`;
			const page = (await (await fetch(`${c.http}/objects?limit=3${query}`)).json()) as {
				objects: { object_id: string }[];
				next: string | null;
			};
			seen.push(...page.objects.map(({ object_id }) => object_id));
			cursor = page.next;
		} while (cursor !== null);
		expect(seen.slice(0, 5)).toEqual(mine.toReversed());
		expect(new Set(seen).size).toBe(seen.length);
	});
});

describe('conditions', () => {
	test('ETag, If-None-Match, If-Match, HEAD, Repr-Digest', async () => {
		const bytes = random.bytes(300_000);
		const digest = `sha-256=:${Buffer.from((await put(c.http, bytes)).sha256, 'hex').toString('base64')}:`;
		const stored = await put(c.http, bytes, { 'repr-digest': digest, 'content-type': 'text/x-thing' });
		const url = `${c.http}/objects/${stored.id}`;
		const head = await fetch(url, { method: 'HEAD' });
		const etag = head.headers.get('etag') ?? '';
		expect(head.headers.get('content-length')).toBe('300000');
		expect(head.headers.get('content-type')).toBe('text/x-thing');
		expect(head.headers.get('repr-digest')).toBe(digest);
		expect((await fetch(url, { headers: { 'if-none-match': etag } })).status).toBe(304);
		expect((await fetch(url, { headers: { 'if-match': '"other"' } })).status).toBe(412);
		const partial = await fetch(url, { headers: { range: 'bytes=-5', 'if-range': etag } });
		expect([partial.status, partial.headers.get('content-range')]).toEqual([206, 'bytes 299995-299999/300000']);
		const whole = await fetch(url, { headers: { range: 'bytes=0-4', 'if-range': '"other"' } });
		expect(whole.status).toBe(200);
		await whole.arrayBuffer();
	});

	test('an Idempotency-Key makes one object of two requests, and tells another request apart', async () => {
		const bytes = random.bytes(100_000);
		const first = await put(c.http, bytes, { 'idempotency-key': 'once' });
		expect((await put(c.http, bytes, { 'idempotency-key': 'once' })).id).toBe(first.id);
		await expect(put(c.http, random.bytes(5), { 'idempotency-key': 'once' })).rejects.toMatchObject({ status: 422 });
	});
});

describe('wrong input is told, as problem+json, and leaves nothing', () => {
	const call = (path: string, init: RequestInit = {}) => fetch(`${c.http}${path}`, init);
	const cases: [string, () => Promise<Response>, number][] = [
		['a bad id', () => call('/objects/nonsense'), 400],
		['an unknown object', () => call(`/objects/${'0'.repeat(32)}`), 404],
		['an unknown path', () => call('/nowhere'), 404],
		['a wrong method', () => call('/upload'), 405],
		['a bad limit', () => call('/objects?limit=0'), 400],
		['a bad cursor', () => call('/objects?cursor=x'), 400],
		['no form', () => call('/upload', { method: 'POST', body: 'text' }), 415],
		['a form for bytes', () => call('/objects', { method: 'POST', body: form('file') }), 415],
		['a form without file', () => call('/upload', { method: 'POST', body: form('other') }), 400],
		['a form with two files', () => call('/upload', { method: 'POST', body: form('file', 'file') }), 400],
		[
			'a wrong digest',
			() =>
				call('/objects', {
					method: 'POST',
					body: 'x',
					headers: { 'repr-digest': `sha-256=:${Buffer.alloc(32).toString('base64')}:` },
				}),
			400,
		],
	];

	function form(...names: string[]): FormData {
		const data = new FormData();
		for (const name of names) data.append(name, new Blob(['some bytes']), 'name.txt');
		return data;
	}

	test.each(cases)('%s', async (_, request, status) => {
		const before = (await cluster(c.http)).objects;
		const response = await request();
		const problem = (await response.json()) as { status: number; detail: string };
		expect([response.status, problem.status]).toEqual([status, status]);
		expect(response.headers.get('content-type')).toBe('application/problem+json');
		expect(problem.detail.length).toBeGreaterThan(10);
		expect((await cluster(c.http)).objects).toBe(before);
	});

	test('a range outside', async () => {
		const { id } = await put(c.http, random.bytes(10));
		const response = await call(`/objects/${id}`, { headers: { range: 'bytes=10-' } });
		expect([response.status, response.headers.get('content-range')]).toEqual([416, 'bytes */10']);
	});

	test('neither length nor chunked; a body cut before the closing boundary', async () => {
		expect(await rawRequest('POST /objects HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')).toMatch(
			/^HTTP\/1.1 411/,
		);
		const body = '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nsome bytes';
		const head = `POST /upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: ${body.length}\r\n\r\n`;
		expect(await rawRequest(head + body)).toMatch(/^HTTP\/1.1 400/);
	});

	function rawRequest(text: string): Promise<string> {
		const { hostname, port } = new URL(c.http);
		return new Promise((resolve, reject) => {
			let answer = '';
			const socket = net.connect(Number(port), hostname, () => socket.write(text));
			socket.on('data', (chunk) => {
				answer += chunk.toString();
			});
			socket.on('close', () => resolve(answer));
			socket.on('error', reject);
		});
	}
});

describe('clients that leave', () => {
	test('mid-upload: no object, no budget, no intent, no file is left', async () => {
		const before = await cluster(c.http);
		const files = () =>
			c.processes().flatMap(({ name }) => (name.startsWith('worker') ? readdirSync(join(c.dataDir, name, 'tmp')) : []));
		const requests: http.ClientRequest[] = [];
		const gone = [30_000_000, 70_000_000, 200_000].map((stopAt) =>
			putStream(c.http, {
				size: 100_000_000,
				chunked: stopAt !== 200_000,
				stopAt,
				onSocket: (r) => requests.push(r),
			}).catch((e) => e),
		);
		await until(() => files().length > 0, { what: 'shards to be under way' });
		for (const request of requests) request.destroy();
		await Promise.all(gone);
		await quiet();
		await until(() => files().length === 0, { what: 'temporary files to go' });
		const after = await cluster(c.http);
		expect(after.objects).toBe(before.objects);
		await until(async () => (await cluster(c.http)).queues.deletions === 0, { what: 'the delete queue to empty' });
	});

	test('mid-download: budget and streams are given back', async () => {
		const { body } = await putStream(c.http, { size: 80_000_000, chunked: false });
		const { object_id } = JSON.parse(body) as { object_id: string };
		await Promise.all(
			Array.from(
				{ length: 5 },
				() =>
					new Promise<void>((resolve) => {
						const request = http.get(`${c.http}/objects/${object_id}`, { agent: false }, (response) => {
							response.once('data', () => request.destroy());
							response.on('error', () => {});
							response.on('close', () => resolve());
						});
						request.on('error', () => {});
					}),
			),
		);
		await quiet();
	});
});

describe('strangers', () => {
	function reach(address: string, credentials: { cert?: Buffer; key?: Buffer }): Promise<string> {
		const [host = '', port = ''] = address.split(':');
		return new Promise((resolve) => {
			const socket = tls.connect({
				host,
				port: Number(port),
				rejectUnauthorized: false,
				ALPNProtocols: ['h2'],
				...credentials,
			});
			const session = http2.connect(`https://${address}`, { createConnection: () => socket });
			session.on('error', (error) => resolve(`refused: ${error.message}`));
			socket.on('close', () => resolve('refused: closed'));
			session.on('connect', () => {
				const stream = session.request({
					':method': 'POST',
					':path': '/distro.v1.ShardService/Stat',
					'content-type': 'application/grpc',
				});
				stream.on('response', (headers) => {
					resolve(`status ${headers['grpc-status']}`);
					session.destroy();
				});
				stream.on('error', (error) => resolve(`refused: ${error.message}`));
				stream.end();
			});
		});
	}

	test('a foreign certificate, none, a plain-text client and another worker are refused', async () => {
		const { grpc } = c.process('worker-1');
		const elsewhere = await openAuthority(join(c.dataDir, 'foreign-ca'));
		const folder = join(c.dataDir, 'foreign');
		await elsewhere.issue(folder, { role: 'orchestrator', id: '1'.repeat(32), hosts: [] });
		const pair = (dir: string) => ({
			cert: readFileSync(join(dir, 'tls.crt')),
			key: readFileSync(join(dir, 'tls.key')),
		});
		expect(await reach(grpc, pair(folder))).toMatch(/^refused/);
		expect(await reach(grpc, {})).toMatch(/^refused/);
		// Of the same cluster, but not an orchestrator: PERMISSION_DENIED.
		expect(await reach(grpc, pair(join(c.dataDir, 'worker-2', 'tls')))).toBe('status 7');
		// The orchestrator itself gets past that: an empty request is INVALID or DATA_LOSS, not denied.
		expect(await reach(grpc, pair(join(c.dataDir, 'orchestrator-1', 'tls')))).not.toMatch(/^refused|status 7/);
		const plain = await new Promise<string>((resolve) => {
			const [host = '', port = ''] = grpc.split(':');
			const socket = net.connect(Number(port), host, () => socket.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'));
			let answer = '';
			socket.on('data', (chunk) => {
				answer += chunk.toString('latin1');
			});
			socket.on('error', () => {});
			socket.on('close', () => resolve(answer));
		});
		expect(plain).not.toContain('SETTINGS');
		expect(plain.length).toBeLessThan(20);
	});
});

test('no plaintext and no key in any worker folder or log', async () => {
	const needle = Buffer.from(`plain-${random.bytes(16).toString('hex')}`);
	const objects: Stored[] = [];
	for (const size of [100, 5_000, 70_000, 3_000_000]) {
		const bytes = Buffer.alloc(size);
		for (let at = 0; at + needle.length <= size; at += needle.length) needle.copy(bytes, at);
		objects.push(await put(c.http, bytes, { 'content-type': `text/${needle.toString()}` }));
	}
	const key = readFileSync(join(c.dataDir, 'orchestrator-1', 'master.key'), 'utf8').trim();
	const needles = [needle.subarray(0, 20), Buffer.from(key), Buffer.from(key, 'hex')];
	let searchedBytes = 0;
	for (const { name, dataDir } of c.processes()) {
		for (const file of readdirSync(dataDir, { recursive: true, encoding: 'utf8' })) {
			const path = join(dataDir, file);
			if (!statSync(path).isFile() || file === 'master.key') continue;
			const bytes = readFileSync(path);
			searchedBytes += bytes.length;
			for (const wanted of needles) expect(bytes.includes(wanted), `${name}/${file}`).toBe(false);
		}
	}
	expect(searchedBytes).toBeGreaterThan(3_000_000);
	for (const stored of objects) expect(await isIntact(c.http, stored)).toBe(true);
	// Nothing at all is acknowledged with less than the quorum.
	for (const { id } of objects) {
		for (const { n, k, shards } of (await explain(c.http, id)).segments) {
			const durable = shards.filter(({ shard_id }) => shard_id !== null).length;
			expect(durable).toBeGreaterThanOrEqual(Math.min(n, k + Math.max(1, Math.ceil((n - k) / 2))));
		}
	}
});
