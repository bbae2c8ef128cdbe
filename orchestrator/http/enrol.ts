/**
 * The port where workers ask for their certificates: HTTPS that asks for none, one call, `POST /enrol`.
 *
 *     authorization: Bearer <service-account token>
 *     {"worker_id": "…", "public_key": "…", "receipt_key": "…", "signature": "…"}   base64; core/model/enrolment.ts
 *     200 {"certificate": "-----BEGIN CERTIFICATE-----…"}                            else application/problem+json
 *
 * Whoever reaches the port may talk to it, so everything has a bound: connections, bytes, and time.
 */

import type { IncomingMessage } from 'node:http';
import { createServer, type Server } from 'node:https';
import { parseId, type WorkerId } from '../../core/ids.ts';
import type { Enrolment } from '../../core/model/enrolment.ts';
import type { TlsSource } from '../../platform/tls.ts';
import type { EnrolDesk } from '../enrol.ts';
import { answerJson } from './exchange.ts';
import { HttpRefusal, problemOf, renderProblem } from './problem.ts';

const BODY_MAX_BYTES = 4096;
const CONNECTIONS_MAX = 256;
const HEADERS_MS = 5_000;
const REQUEST_MS = 10_000;
/** To the answer. */
const SOCKET_IDLE_MS = 20_000;

/** The caller listens and closes. */
export function createEnrolServer({ tls, desk }: { tls: TlsSource; desk: Pick<EnrolDesk, 'enrol'> }): Server {
	const server = createServer(
		{
			...tls.anyoneTlsOptions(),
			handshakeTimeout: HEADERS_MS,
			headersTimeout: HEADERS_MS,
			requestTimeout: REQUEST_MS,
			connectionsCheckingInterval: 1_000,
		},
		async (request, response) => {
			// Seldom used, and there are only so many connections.
			response.setHeader('connection', 'close');
			try {
				if (request.url !== '/enrol') throw new HttpRefusal(404, 'there is only POST /enrol here');
				if (request.method !== 'POST') throw new HttpRefusal(405, 'use POST', { allow: 'POST' });
				const token = tokenOf(request);
				const certificate = await desk.enrol(token, await enrolmentOf(request));
				answerJson(response, 200, { certificate });
			} catch (error) {
				const { headers, body } = renderProblem(problemOf(error), 'enrol');
				const { status } = problemOf(error);
				if (!response.headersSent) response.writeHead(status, headers).end(body);
			}
		},
	);
	server.maxConnections = CONNECTIONS_MAX;
	server.setTimeout(SOCKET_IDLE_MS);
	tls.follow(server);
	return server;
}

function tokenOf({ headers }: IncomingMessage): string {
	const [, token] = /^Bearer (\S+)$/i.exec(headers.authorization ?? '') ?? [];
	if (token === undefined) throw new HttpRefusal(401, 'send the service-account token as Authorization: Bearer …');
	return token;
}

async function enrolmentOf(request: IncomingMessage): Promise<Enrolment> {
	const chunks: Buffer[] = [];
	let length = 0;
	for await (const chunk of request as AsyncIterable<Buffer>) {
		length += chunk.length;
		if (length > BODY_MAX_BYTES) throw new HttpRefusal(413, `a request has at most ${BODY_MAX_BYTES} bytes`);
		chunks.push(chunk);
	}
	const fields = jsonOf(Buffer.concat(chunks).toString('utf8'));
	const text = (name: string): string => {
		const value = fields[name];
		if (typeof value !== 'string') throw new HttpRefusal(400, `"${name}" must be a text`);
		return value;
	};
	const bytes = (name: string, count: number | null) => {
		const value = Buffer.from(text(name), 'base64');
		if (count !== null && value.length !== count)
			throw new HttpRefusal(400, `"${name}" must be ${count} bytes in base64`);
		return value;
	};
	return {
		workerId: parseId<WorkerId>(text('worker_id'), '"worker_id"'),
		publicKey: bytes('public_key', null),
		receiptKey: bytes('receipt_key', 32),
		signature: bytes('signature', 64),
	};
}

function jsonOf(text: string): Record<string, unknown> {
	try {
		const value: unknown = JSON.parse(text);
		if (typeof value === 'object' && value !== null) return value as Record<string, unknown>;
	} catch {
		// Said below.
	}
	throw new HttpRefusal(400, 'the body must be a JSON object');
}
