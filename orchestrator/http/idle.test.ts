import http from 'node:http';
import net, { type AddressInfo } from 'node:net';
import { afterEach, expect, test } from 'vitest';
import { watchIdle } from './idle.ts';

const IDLE_MS = 150;
const closing: (() => void)[] = [];

afterEach(() => {
	for (const close of closing.splice(0)) close();
});

/** A server with one answer, and a client that has asked for it. */
async function exchange(
	answer: (request: http.IncomingMessage, response: http.ServerResponse) => void,
): Promise<net.Socket> {
	const server = http.createServer(answer);
	await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
	const socket = net.connect((server.address() as AddressInfo).port, '127.0.0.1');
	closing.push(
		() => socket.destroy(),
		() => server.closeAllConnections(),
		() => server.close(),
	);
	socket.write('POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nfirst');
	return socket;
}

test('a client that sends no more is cut, and can still be answered', async () => {
	const socket = await exchange((request, response) => {
		request.resume();
		const startedAt = performance.now();
		watchIdle(response, {
			idleMs: IDLE_MS,
			waitsForClient: () => !request.complete,
			cut: () => response.writeHead(408, { connection: 'close' }).end(String(performance.now() - startedAt)),
		});
	});
	let text = '';
	for await (const chunk of socket) text += String(chunk);
	expect(text).toMatch(/^HTTP\/1\.1 408 /);
	expect(Number(text.split('\r\n\r\n')[1]?.split('\r\n')[1] ?? Number.NaN)).toBeGreaterThanOrEqual(IDLE_MS * 0.9);
});

test('one whose turn it is not stays, however long that lasts; then it is cut like others', async () => {
	let turn = false;
	let looks = 0;
	const cut = new Promise<void>((resolve) => {
		exchange((request, response) => {
			request.resume();
			watchIdle(response, {
				idleMs: IDLE_MS,
				waitsForClient: () => {
					turn = ++looks > 9;
					return turn;
				},
				cut: () => {
					response.destroy();
					resolve();
				},
			});
		});
	});
	await cut;
	expect(turn).toBe(true);
	// A loaded machine may need one more to be sure.
	expect(looks).toBeGreaterThanOrEqual(12);
});

test('a reader that takes no more is cut', async () => {
	const cut = new Promise<void>((resolve) => {
		exchange((request, response) => {
			request.resume();
			response.on('close', resolve);
			watchIdle(response, {
				idleMs: IDLE_MS,
				waitsForClient: () => response.writableLength > 0,
				cut: () => response.destroy(),
			});
			response.end(Buffer.alloc(32 * 1024 * 1024));
		}).then((socket) => socket.pause());
	});
	await cut;
});

test('one that moves a byte now and then stays', async () => {
	let cuts = 0;
	const answered = new Promise<void>((resolve) => {
		exchange((request, response) => {
			watchIdle(response, { idleMs: IDLE_MS * 6, waitsForClient: () => !request.complete, cut: () => cuts++ });
			request.resume().on('end', () => {
				response.end();
				resolve();
			});
		}).then(async (socket) => {
			for (let sent = 'first'.length; sent < 1000; sent += 199) {
				await new Promise((done) => setTimeout(done, IDLE_MS * 2));
				socket.write('x'.repeat(199));
			}
		});
	});
	await answered;
	expect(cuts).toBe(0);
});
