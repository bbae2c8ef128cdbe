/**
 * Request bodies into uploads, event by event: `data`, pause, resume; never iterated. What ends badly aborts the upload,
 * so that nothing is left behind.
 */

import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Readable } from 'node:stream';
import { Busboy } from '@fastify/busboy';
import { DistroError } from '../../core/errors.ts';
import type { ObjectInfo, Upload } from '../objects.types.ts';
import { nameInForm } from './headers.ts';
import { watchIdle } from './idle.ts';
import { HttpRefusal } from './problem.ts';

/**
 * A refused body is read on (and dropped) for so long, so that a client that still writes gets to see the answer; it is
 * cut sooner when it sends nothing. As nginx's lingering_time and lingering_timeout, and for the same reason.
 */
const LINGER_MS = 30_000;
const LINGER_IDLE_MS = 5_000;

/** Content-Length, null when the body is chunked. Throws 411 when it is neither, 413 when it is too long. */
export function announcedSize(request: IncomingMessage, maxBytes: number): number | null {
	const header = request.headers['content-length'];
	if (header === undefined) {
		if (request.headers['transfer-encoding'] !== undefined) return null;
		throw new HttpRefusal(411, 'send a Content-Length, or Transfer-Encoding: chunked');
	}
	const size = Number(header);
	if (size > maxBytes) throw tooLarge(maxBytes);
	return size;
}

function tooLarge(maxBytes: number): HttpRefusal {
	return new HttpRefusal(413, `an object has at most ${maxBytes} bytes here: split it`);
}

/** What takes a body in: an upload, or nobody. */
type Taker = Pick<Upload, 'write' | 'drained' | 'result'>;

/** Pushes a stream into an upload; resolves when the stream has ended, with nothing of it left. */
function push(stream: Readable, taker: Taker, maxBytes: number): Promise<void> {
	return new Promise((resolve, reject) => {
		let bytes = 0;
		taker.drained = () => stream.resume();
		stream.on('data', (chunk: Buffer) => {
			bytes += chunk.length;
			if (bytes > maxBytes) {
				reject(tooLarge(maxBytes));
				return;
			}
			if (!taker.write(chunk)) stream.pause();
		});
		stream.on('end', resolve);
		stream.on('error', reject);
		// An upload that failed takes no more: its own error is the answer.
		taker.result.catch(reject);
	});
}

interface Incoming {
	readonly request: IncomingMessage;
	readonly response: ServerResponse;
}

/** Calls `cut` when the client is gone or sends nothing for too long, until the returned function is called. */
function watchClient({ request, response }: Incoming, cut: (error: Error) => void): () => void {
	// A body that has come whole but is not read yet is lost with its connection as well.
	const onClose = () => {
		if (!request.readableEnded) cut(new DistroError('canceled', 'the client has left'));
	};
	// It may have left before anybody listened.
	if (request.destroyed) onClose();
	request.on('close', onClose);
	const unwatch = watchIdle(response, {
		// Paused means that the storage is slow, not the client.
		waitsForClient: () => !request.isPaused() && !request.complete,
		cut: () => cut(new HttpRefusal(408, 'no byte came for too long: send it again')),
	});
	return () => {
		request.off('close', onClose);
		unwatch();
	};
}

/** The whole body is the object. */
export async function receiveRaw(incoming: Incoming, upload: Upload, maxBytes: number): Promise<ObjectInfo> {
	try {
		await receive(incoming, upload, maxBytes);
		upload.end();
		return await upload.result;
	} catch (error) {
		upload.abort((error as Error).message);
		throw error;
	}
}

/** Reads a body that nobody needs to its end: a client that still writes would not see the answer. */
export function skipRaw(incoming: Incoming, maxBytes: number): Promise<void> {
	const nobody = { write: () => true, drained: () => {}, result: new Promise<never>(() => {}) };
	return receive(incoming, nobody, maxBytes);
}

async function receive(incoming: Incoming, taker: Taker, maxBytes: number): Promise<void> {
	let unwatch = () => {};
	const cut = new Promise<never>((_, reject) => {
		unwatch = watchClient(incoming, reject);
	});
	try {
		await Promise.race([push(incoming.request, taker, maxBytes), cut]);
	} finally {
		unwatch();
	}
}

const FORM_LIMITS = { fields: 100, fieldSize: 64 * 1024, parts: 110, headerPairs: 100 };

/** Exactly one part `file`; committed only after the closing boundary. */
export async function receiveMultipart(
	incoming: Incoming,
	options: {
		begin: (part: {
			name: string | null;
			contentType: string | null;
		}) => Promise<{ upload: Upload } | { done: ObjectInfo }>;
		maxBytes: number;
	},
): Promise<ObjectInfo> {
	const { request } = incoming;
	let unwatch = () => {};
	let upload: Upload | null = null;
	/** The answer is known to be a refusal. */
	let over = false;
	let parser: InstanceType<typeof Busboy>;
	try {
		parser = new Busboy({
			headers: request.headers as { 'content-type': string },
			limits: FORM_LIMITS,
			preservePath: true,
		});
	} catch {
		throw new HttpRefusal(400, 'the multipart header has no boundary: let your client set it');
	}
	try {
		return await new Promise<ObjectInfo>((resolve, reject) => {
			const refuse = (error: Error) => {
				// At once: the parser may go on to its end before anybody who awaits hears of it.
				over = true;
				reject(error);
			};
			unwatch = watchClient(incoming, refuse);
			let received: Promise<ObjectInfo | null> | null = null;
			parser.on('file', (field, stream, filename, _encoding, contentType) => {
				stream.on('error', refuse);
				if (field !== 'file' || received !== null) {
					const what = received !== null ? 'more than one file' : `a file part named ${JSON.stringify(field)}`;
					refuse(new HttpRefusal(400, `the form has ${what}: send exactly one, named "file"`));
					stream.resume();
					return;
				}
				const part = {
					name: filename === undefined || filename === '' ? null : nameInForm(filename),
					contentType: contentType || null,
				};
				received = (async () => {
					const begun = await options.begin(part);
					if ('done' in begun) {
						stream.resume();
						return begun.done;
					}
					upload = begun.upload;
					// What was refused while it began has nobody else to give it up.
					if (over) upload.abort('the form was refused');
					await push(stream, upload, options.maxBytes);
					if ((stream as Readable & { truncated?: boolean }).truncated === true)
						throw new HttpRefusal(400, 'the file was cut short');
					return null;
				})();
				received.catch(refuse);
			});
			// The parser would drop what is beyond them without a word, be it a second file.
			const tooMany = () => refuse(new HttpRefusal(400, 'the form has too many parts: send only the file'));
			parser.on('partsLimit', tooMany);
			parser.on('fieldsLimit', tooMany);
			parser.on('error', (error) => {
				refuse(new HttpRefusal(400, `the multipart body is malformed, or was cut short: ${(error as Error).message}`));
			});
			parser.on('finish', () => {
				if (received === null) {
					refuse(new HttpRefusal(400, 'the form has no file: send exactly one, as in -F "file=@payload.txt"'));
					return;
				}
				received
					.then((done) => {
						if (done !== null) return done;
						if (over) throw new DistroError('canceled', 'the form was refused');
						(upload as Upload).end();
						return (upload as Upload).result;
					})
					.then(resolve, reject);
			});
			request.on('error', refuse);
			request.pipe(parser);
		});
	} catch (error) {
		request.unpipe(parser);
		(upload as Upload | null)?.abort((error as Error).message);
		throw error;
	} finally {
		unwatch();
	}
}

/**
 * Ends an early answer (already written) once what still comes of the body has been read: ending at once would reset the
 * connection under a client that still writes, which then never sees the answer.
 */
export function endAfterBody(request: IncomingMessage, response: ServerResponse): void {
	response.on('error', () => {});
	discardBody(request).then(
		() => response.end(),
		() => request.socket.destroy(),
	);
}

/** Reads and drops the rest, in bounded time and no memory; rejects when it takes too long, or the client leaves. */
function discardBody(request: IncomingMessage): Promise<void> {
	if (request.complete || request.destroyed) return Promise.resolve();
	return new Promise((resolve, reject) => {
		const settle = (finish: () => void) => () => {
			clearTimeout(deadline);
			request.socket.setTimeout(0);
			request.socket.off('timeout', fail);
			finish();
		};
		const fail = settle(() => reject(new DistroError('canceled', 'the rest of the body was not read')));
		const deadline = setTimeout(fail, LINGER_MS);
		deadline.unref();
		request.socket.setTimeout(LINGER_IDLE_MS, fail);
		request.on('data', () => {});
		request.on('end', settle(resolve));
		request.on('close', fail);
		request.on('error', fail);
		request.resume();
	});
}
