/** The HTTP layer over objects in memory: what no client may leave behind, and that every refusal is a problem. */

import { once } from 'node:events';
import net, { type AddressInfo } from 'node:net';
import type { FastifyInstance } from 'fastify';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { DistroError } from '../../core/errors.ts';
import type { ObjectId } from '../../core/ids.ts';
import type { Download, ObjectInfo, Objects, Upload, UploadOptions } from '../objects.types.ts';
import { openApi } from './openapi.ts';
import { createHttpServer } from './server.ts';

const KNOWN = 'a'.repeat(32) as ObjectId;
const KNOWN_BYTES = 8_000_000;
const MAX_BYTES = 4_000_000;

function infoOf(sizeBytes: number, options: Partial<UploadOptions> = {}): ObjectInfo {
	const { name = null, contentType = null } = options;
	return { objectId: KNOWN, sizeBytes, createdAtMs: 0, etag: 'e', name, contentType, sha256: null };
}

class FakeObjects implements Objects {
	/** Uploads that hold a reservation. */
	readonly reserved = new Set<Upload>();
	readonly stored: { bytes: Buffer; options: UploadOptions }[] = [];
	begun = 0;
	/** What beginUpload waits for. */
	gate: Promise<void> = Promise.resolve();
	/** The same request was answered before, with this. */
	answered: ObjectInfo | null = null;

	async beginUpload(options: UploadOptions): Promise<{ upload: Upload } | { done: ObjectInfo }> {
		this.begun++;
		await this.gate;
		if (this.answered !== null) return { done: this.answered };
		const chunks: Buffer[] = [];
		const { promise: result, resolve, reject } = Promise.withResolvers<ObjectInfo>();
		result.catch(() => {});
		const upload: Upload = {
			drained: () => {},
			result,
			write: (chunk) => {
				chunks.push(Buffer.from(chunk));
				return true;
			},
			end: () => {
				const bytes = Buffer.concat(chunks);
				this.stored.push({ bytes, options });
				this.reserved.delete(upload);
				resolve(infoOf(bytes.length, options));
			},
			abort: (reason) => {
				this.reserved.delete(upload);
				reject(new DistroError('canceled', 'given up', { reason }));
			},
		};
		this.reserved.add(upload);
		return { upload };
	}

	async open(): Promise<Download> {
		return {
			info: infoOf(KNOWN_BYTES),
			read: async ({ sink }) => {
				for (let sent = 0; sent < KNOWN_BYTES; sent += 100_000) {
					if (sink.write(Buffer.alloc(100_000, 'o'))) continue;
					await new Promise<void>((resolve) => {
						sink.drained = resolve;
					});
				}
			},
		};
	}

	async info(): Promise<ObjectInfo> {
		return infoOf(KNOWN_BYTES);
	}

	async remove() {
		return { freedAtMs: 0 };
	}

	async undelete(): Promise<ObjectInfo> {
		return infoOf(KNOWN_BYTES);
	}

	async purge(): Promise<void> {}

	async trash() {
		return { objects: [], next: null };
	}

	async list() {
		return { objects: [], next: null };
	}

	explain(): Promise<never> {
		return Promise.reject(new DistroError('not_found', 'none'));
	}
}

const unused = () => Promise.reject(new Error('unused'));
const unusedCluster = {
	view: unused,
	redundancy: unused,
	canStop: unused,
	changeDuty: unused,
	jobs: unused,
	snapshots: unused,
	askJob: unused,
};
let objects: FakeObjects;
let app: FastifyInstance;
let warned: object[];
const sockets: net.Socket[] = [];

beforeEach(async () => {
	objects = new FakeObjects();
	warned = [];
	app = createHttpServer({
		objects,
		deletions: { entries: unused, verify: unused },
		cluster: unusedCluster,
		clusterKeys: { view: unused, rotate: unused, drop: unused },
		auth: null,
		ready: async () => ({ ok: true, reasons: [] }),
		identity: () => ({ role: 'orchestrator', id: KNOWN, name: 'orchestrator-1' }),
		metrics: { contentType: 'text/plain', render: async () => '', observeRequest: () => {} },
		log: { error: () => {}, warn: (fields) => warned.push(fields), debug: () => {} },
		limits: { maxObjectBytes: MAX_BYTES },
	});
	await app.listen({ host: '127.0.0.1', port: 0 });
});

afterEach(async () => {
	for (const socket of sockets.splice(0)) socket.destroy();
	await app.close();
});

async function connect(): Promise<net.Socket> {
	const socket = net.connect((app.server.address() as AddressInfo).port, '127.0.0.1');
	socket.on('error', () => {});
	sockets.push(socket);
	await once(socket, 'connect');
	return socket;
}

/** Sends text as it is, and reads what comes until `enough` or the end. */
async function exchange(text: string | Buffer, enough: RegExp = /$^/): Promise<string> {
	const socket = await connect();
	socket.write(text);
	let answer = '';
	for await (const chunk of socket) {
		answer += chunk.toString('latin1');
		if (enough.test(answer)) break;
	}
	return answer;
}

function post(path: string, headers: Record<string, string | number>, body: string | Buffer = ''): Buffer {
	const lines = Object.entries({ host: 'x', connection: 'close', ...headers }).map(
		([name, value]) => `${name}: ${value}`,
	);
	return Buffer.concat([Buffer.from(`POST ${path} HTTP/1.1\r\n${lines.join('\r\n')}\r\n\r\n`), Buffer.from(body)]);
}

const FORM = 'multipart/form-data; boundary=bnd';

function part(o: { name?: string; filename?: string; type?: string; body?: string }): string {
	const { name = 'file', filename, type, body = 'hello' } = o;
	const file = filename === undefined ? '' : `; filename="${filename}"`;
	const typed = type === undefined ? '' : `Content-Type: ${type}\r\n`;
	return `--bnd\r\nContent-Disposition: form-data; name="${name}"${file}\r\n${typed}\r\n${body}\r\n`;
}

function form(body: string): Buffer {
	return post('/upload', { 'content-type': FORM, 'content-length': Buffer.byteLength(body) }, body);
}

describe('no reservation is left behind', () => {
	test('by a form that is refused while its upload begins', async () => {
		const answer = await exchange(form(`${part({ filename: 'a' })}${part({ filename: 'b' })}--bnd--\r\n`));
		expect(answer).toMatch(/^HTTP\/1\.1 400 /);
		expect(answer).toContain('more than one file');
		expect([objects.begun, objects.reserved.size, objects.stored.length]).toEqual([1, 0, 0]);
	});

	for (const [what, request] of [
		['in the middle of the body', post('/objects', { 'content-length': 1000 }, 'first')],
		['with the whole body sent', post('/objects', { 'content-length': 5 }, 'whole')],
		[
			'in the middle of a form',
			post('/upload', { 'content-type': FORM, 'content-length': 1000 }, part({ filename: 'a' })),
		],
	] as const) {
		test(`by a client that leaves while its upload begins, ${what}`, async () => {
			const { promise, resolve: begin } = Promise.withResolvers<void>();
			objects.gate = promise;
			const closed = new Promise<void>((resolve) => {
				app.server.once('connection', (socket) => socket.once('close', () => resolve()));
			});
			const socket = await connect();
			socket.write(request);
			await expect.poll(() => objects.begun).toBe(1);
			socket.destroy();
			await closed;
			begin();
			await expect.poll(() => objects.reserved.size).toBe(0);
			// It was there for a moment, and nothing of it was stored.
			expect([objects.begun, objects.stored.length]).toEqual([1, 0]);
		});
	}
});

test('why it can not be read now is logged, and not sent', async () => {
	const error = new DistroError('unavailable', 'start workers', { cause: new Error('192.0.2.7 is away') });
	vi.spyOn(objects, 'open').mockRejectedValue(error);
	const answer = await exchange(`GET /objects/${KNOWN} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`);
	expect(answer).toMatch(/^HTTP\/1\.1 503 /);
	expect(answer).toContain('start workers');
	expect(answer).not.toContain('192.0.2.7');
	expect(warned).toMatchObject([{ status: 503, err: error }]);
});

test('an empty cursor is none', async () => {
	const list = vi.spyOn(objects, 'list');
	await exchange('GET /objects?cursor= HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
	expect(list).toHaveBeenCalledWith(expect.objectContaining({ cursor: null }));
});

test('what curl says of any bytes is stored as no type', async () => {
	const type = 'application/x-www-form-urlencoded';
	await exchange(post('/objects', { 'content-length': 1, 'content-type': type }, 'x'));
	expect(objects.stored.at(-1)?.options.contentType).toBeNull();
});

test('a repeated request gets the stored answer, however long its body is', async () => {
	objects.answered = infoOf(3_000_000);
	const body = Buffer.alloc(3_000_000);
	const answer = await exchange(post('/objects', { 'content-length': body.length, 'idempotency-key': 'k' }, body));
	expect(answer).toMatch(/^HTTP\/1\.1 201 /);
	expect(answer).toContain(KNOWN);
});

describe('forms', () => {
	test('cut into two anywhere, they are the same', async () => {
		const whole = form(
			`${part({ name: 'x' })}${part({ filename: 'a.txt', type: 'text/plain', body: '\r\n--bn\r\nd--' })}--bnd--\r\n`,
		);
		const head = whole.indexOf('\r\n\r\n') + 4;
		for (let cut = head; cut <= whole.length; cut++) {
			const socket = await connect();
			socket.setNoDelay(true);
			socket.write(whole.subarray(0, cut));
			await expect.poll(() => socket.writableLength).toBe(0);
			// The first half is taken apart before the second comes.
			await new Promise((done) => setImmediate(done));
			socket.write(whole.subarray(cut));
			let answer = '';
			for await (const chunk of socket) answer += String(chunk);
			expect(answer, `cut at ${cut - head}`).toMatch(/^HTTP\/1\.1 201 /);
			const { bytes, options } = objects.stored.at(-1) as FakeObjects['stored'][number];
			expect([bytes.toString(), options.name, options.contentType]).toEqual(['\r\n--bn\r\nd--', 'a.txt', 'text/plain']);
		}
	});

	test('store a name as the other way in does', async () => {
		for (const [sent, name] of [
			['a %22quoted%22 name', 'a "quoted" name'],
			['folder/100%25.txt', 'folder/100%25.txt'],
		] as const) {
			expect(await exchange(form(`${part({ filename: sent })}--bnd--\r\n`))).toMatch(/^HTTP\/1\.1 201 /);
			await exchange(post(`/objects?name=${encodeURIComponent(name)}`, { 'content-length': 1 }, 'x'));
			expect(objects.stored.slice(-2).map(({ options }) => options.name)).toEqual([name, name]);
		}
		expect(await exchange(form(`${part({ filename: 'two%0Alines' })}--bnd--\r\n`))).toMatch(/^HTTP\/1\.1 400 /);
	});

	test.each([
		['ends after the data', part({ filename: 'a' }).slice(0, -2)],
		['ends after a boundary', `${part({ filename: 'a' })}--bnd\r\n`],
		['ends inside the closing boundary', `${part({ filename: 'a' })}--bnd-`],
		['has no part', '--bnd--\r\n'],
		['is empty', ''],
		['has a field instead', `${part({})}--bnd--\r\n`],
		['has another file', `${part({ name: 'other', filename: 'a' })}--bnd--\r\n`],
		['has a file beyond the limit of parts', `${part({ filename: 'a' })}${part({ name: 'x' }).repeat(120)}--bnd--\r\n`],
		['has a type that can be no header', `${part({ filename: 'a', type: 'text/\u0001' })}--bnd--\r\n`],
		['has a type that is not ASCII', `${part({ filename: 'a', type: 'text/ä' })}--bnd--\r\n`],
	])('one that %s is refused, and nothing is stored', async (_what, body) => {
		const answer = await exchange(form(body));
		expect(answer).toMatch(/^HTTP\/1\.1 400 /);
		expect(answer).toContain('application/problem+json');
		expect([objects.stored.length, objects.reserved.size]).toEqual([0, 0]);
	});
});

describe('more bytes than an object may have', () => {
	const chunk = `${(1_100_000).toString(16)}\r\n${'x'.repeat(1_100_000)}\r\n`;
	test.each([
		['announced', post('/objects', { 'content-length': MAX_BYTES + 1 })],
		['in chunks', post('/objects', { 'transfer-encoding': 'chunked' }, `${chunk.repeat(4)}0\r\n\r\n`)],
		['announced as a form', post('/upload', { 'content-type': FORM, 'content-length': MAX_BYTES + 1 })],
	])('%s', async (_what, request) => {
		const answer = await exchange(request, /\}\n?$/);
		expect(answer).toMatch(/^HTTP\/1\.1 413 /);
		expect(answer).toContain('application/problem+json');
		expect([objects.stored.length, objects.reserved.size]).toEqual([0, 0]);
	});
});

describe('what node and fastify refuse is a problem too', () => {
	const get = (path: string, headers = '') => `GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${headers}\r\n`;
	test.each([
		['no HTTP', 'GARBAGE\r\n\r\n', 400],
		['a long head', get('/healthz', `X: ${'x'.repeat(20_000)}\r\n`), 431],
		['a length and chunks', post('/objects', { 'content-length': 3, 'transfer-encoding': 'chunked' }), 400],
		['a broken chunk', post('/objects', { 'transfer-encoding': 'chunked' }, 'zz\r\nabc\r\n'), 400],
		['a broken escape', get('/objects/%zz'), 400],
		['a long id', get(`/objects/${'a'.repeat(300)}`), 414],
		['another expectation', post('/objects', { expect: 'much', 'content-length': 0 }), 417],
		['a type that is none', post('/objects', { 'content-type': '###', 'content-length': 0 }), 415],
		['an unknown path', get('/nothing'), 404],
		['another method', post('/healthz', { 'content-length': 0 }), 405],
	])('%s', async (_what, request, status) => {
		const [head = '', body = ''] = (await exchange(request)).split('\r\n\r\n');
		expect(head).toMatch(new RegExp(`^HTTP/1\\.1 ${status} `));
		expect(head).toMatch(/content-type: application\/problem\+json/i);
		expect(JSON.parse(body)).toMatchObject({ status, detail: expect.stringMatching(/ .+ /) });
	});

	const inTwo = 'POST /objects HTTP/1.1\r\nHost: x\r\n\r\n|xyz';
	test.each([
		['in one packet', [inTwo.replace('|', '')], 411],
		['in two', inTwo.split('|'), 411],
		['and much of it', [inTwo.replace('|', 'x'.repeat(3_000_000))], 411],
		['at no path', ['POST /nothing HTTP/1.1\r\nHost: x\r\n\r\nxyz'], 404],
	])(
		'a body that nothing announced gets the answer to its request, and no other: %s',
		async (_what, pieces, status) => {
			const socket = await connect();
			let answer = '';
			socket.on('data', (chunk: Buffer) => {
				answer += chunk.toString('latin1');
			});
			for (const piece of pieces) socket.write(piece);
			await once(socket, 'end');
			// In two, the second may come after the answer, and is a malformed request of its own.
			expect(answer).toMatch(new RegExp(`^HTTP/1\\.1 ${status} `));
			if (pieces.length === 1) expect(answer.match(/HTTP\/1\.1 /g)).toHaveLength(1);
		},
	);

	test('a download goes on to its end although what comes after its request is no HTTP', async () => {
		const answer = await exchange(`GET /objects/${KNOWN} HTTP/1.1\r\nHost: x\r\n\r\nGARBAGE\r\n\r\n`);
		expect(answer).toMatch(/^HTTP\/1\.1 200 /);
		// And nothing else came in its middle or behind it.
		expect(answer.length - answer.indexOf('\r\n\r\n') - 4).toBe(KNOWN_BYTES);
	});
});

test('HEAD is answered wherever GET is, without a body', async () => {
	for (const path of ['/healthz', '/objects', `/objects/${KNOWN}`, `/download/${KNOWN}`]) {
		const answer = await exchange(`HEAD ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`);
		expect(answer).toMatch(/^HTTP\/1\.1 200 /);
		expect(answer).toMatch(/\r\n\r\n$/);
	}
});

test('what is stored is never run in the origin of the API', async () => {
	const answer = await exchange(`HEAD /objects/${KNOWN} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`);
	expect(answer).toMatch(/content-security-policy: sandbox\r\n/i);
});

test('openapi.json has every route and method, and no other', () => {
	const routes = new Map<string, string[]>();
	const above: string[] = [];
	for (const line of app.printRoutes({ commonPrefix: false }).trim().split('\n')) {
		const [, indent = '', part = '', methods = ''] = /^([│ ]*)[├└]── (\S+) \(([^)]+)\)$/.exec(line) ?? [];
		above.splice(indent.length / 4, Number.POSITIVE_INFINITY, part);
		routes.set(above.join('').replaceAll(/:(\w+)/g, '{$1}'), methods.toLowerCase().split(', ').sort());
	}
	const described = new Map(
		// Whatever answers GET answers HEAD: said where it is of use.
		Object.entries(openApi.paths).map(([path, methods]) => [
			path,
			[...new Set([...Object.keys(methods), ...('get' in methods ? ['head'] : [])])].sort(),
		]),
	);
	expect(routes.size).toBeGreaterThan(5);
	expect(described).toEqual(routes);
});
