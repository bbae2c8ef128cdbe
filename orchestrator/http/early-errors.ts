/** What node and fastify refuse before any handler of ours runs, as problems like all others. */

import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { HttpRefusal, problemOf, renderProblem } from './problem.ts';

/** The answer that a connection is busy with. */
const answering = new WeakMap<Socket, { request: IncomingMessage; response: ServerResponse }>();
/** Connections that take no more requests and end after the answer they are busy with. */
const ending = new WeakSet<Socket>();
/** So long what still comes is read: closing at once would reset the connection, and take the answer from the client. */
const LINGER_MS = 5_000;

export function noteAnswering(request: IncomingMessage, response: ServerResponse): void {
	answering.set(request.socket, { request, response });
}

/** For server.on('clientError'): what came is not HTTP, has too long a head, or did not come in time. */
export function refuseConnection(error: NodeJS.ErrnoException, socket: Socket): void {
	if (ending.has(socket) && error.code !== 'ECONNRESET') return;
	const { request, response } = answering.get(socket) ?? {};
	const busy = response !== undefined && !response.writableFinished;
	// A problem in the middle of another answer would be taken for bytes of it, and one before it for the answer itself.
	const clear = !busy || (!response.headersSent && request?.complete === false);
	if (!socket.writable || error.code === 'ECONNRESET') {
		socket.destroy();
		return;
	}
	if (!clear) {
		// Often the body of a request that announced none: its own answer says so better than any of ours.
		if (busy && request?.complete === true) endAfterAnswer(socket, response);
		else socket.destroy();
		return;
	}
	const problem = problemOf(refusalOf(error.code));
	const { headers, body } = renderProblem(problem, 'connection');
	const head = Object.entries({ ...headers, connection: 'close' }).map(([name, value]) => `${name}: ${value}\r\n`);
	socket.end(`HTTP/1.1 ${problem.status} ${problem.title}\r\n${head.join('')}\r\n${body}`, () => socket.destroy());
}

function endAfterAnswer(socket: Socket, response: ServerResponse): void {
	ending.add(socket);
	response.once('finish', () => {
		socket.end();
		setTimeout(() => socket.destroy(), LINGER_MS).unref();
	});
}

function refusalOf(code: string | undefined): HttpRefusal {
	switch (code) {
		case 'ERR_HTTP_REQUEST_TIMEOUT':
			return new HttpRefusal(408, 'the head of the request took too long: send it again');
		case 'HPE_HEADER_OVERFLOW':
			return new HttpRefusal(431, 'the head of the request is too long: 16 KiB is the most');
		default:
			return new HttpRefusal(400, 'this is not a well-formed HTTP/1.1 request');
	}
}

/** What fastify says of a path or a header, in our words; null for what is no refusal. */
export function refusalOfFramework(error: {
	code?: string;
	statusCode?: number;
	message?: string;
}): HttpRefusal | null {
	switch (error.code) {
		case 'FST_ERR_BAD_URL':
			return new HttpRefusal(400, 'the path has a % that is not followed by two hexadecimal digits: encode it');
		case 'FST_ERR_MAX_PARAM_LENGTH':
			return new HttpRefusal(414, 'the path is too long: an object id has 32 characters');
		case 'FST_ERR_CTP_INVALID_MEDIA_TYPE':
			return new HttpRefusal(415, 'Content-Type is no media type: send one such as text/plain, or leave it out');
	}
	const { statusCode, message = '' } = error;
	return statusCode !== undefined && statusCode >= 400 && statusCode < 500
		? new HttpRefusal(statusCode, message)
		: null;
}
