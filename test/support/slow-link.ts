/** A link of little bandwidth, or with a delay, before a TCP server on loopback. */

import { once } from 'node:events';
import net, { type AddressInfo } from 'node:net';

/** Bytes handed on at once. */
const PIECE_BYTES = 2048;

export interface SlowLink {
	/** Where to connect instead. */
	readonly address: string;
	/** Bytes that have passed, both ways. */
	passedBytes(): number;
	/** Everything that comes back from the server from now on comes so much later. */
	setDelay(ms: number): void;
	close(): void;
}

/** `target` is asked for at each connection: the server may not listen yet. */
export async function slowLink(target: () => string, options: { readonly bytesPerSecond: number }): Promise<SlowLink> {
	let passedBytes = 0;
	let delayMs = 0;
	const sockets = new Set<net.Socket>();
	const track = (socket: net.Socket) => {
		sockets.add(socket);
		socket.on('close', () => sockets.delete(socket));
		// Either side may break off: that is what the test is about.
		socket.on('error', () => socket.destroy());
		return socket;
	};
	const server = net.createServer((near) => {
		const [host = '', port = ''] = target().split(':');
		const far = track(net.connect(Number(port), host));
		track(near);
		for (const [from, to] of [
			[near, far],
			[far, near],
		] as const) {
			from.on('data', async (chunk: Buffer) => {
				from.pause();
				if (from === far && delayMs > 0) await new Promise((done) => setTimeout(done, delayMs));
				for (let at = 0; at < chunk.length && !to.destroyed; at += PIECE_BYTES) {
					const piece = chunk.subarray(at, at + PIECE_BYTES);
					const waitMs = (piece.length * 1000) / options.bytesPerSecond;
					if (waitMs > 0) await new Promise((done) => setTimeout(done, waitMs));
					passedBytes += piece.length;
					to.write(piece);
				}
				from.resume();
			});
			from.on('close', () => to.destroy());
		}
	});
	server.listen(0, '127.0.0.1');
	await once(server, 'listening');
	return {
		address: `127.0.0.1:${(server.address() as AddressInfo).port}`,
		passedBytes: () => passedBytes,
		setDelay: (ms) => {
			delayMs = ms;
		},
		close: () => {
			server.close();
			for (const socket of sockets) socket.destroy();
		},
	};
}
