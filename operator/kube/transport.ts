/**
 * HTTP to the API server: a deadline on every request, a bound on every body, every failure a DistroError.
 *
 * Nothing is tried again here, but for a token that was replaced meanwhile: who calls knows what a second try means.
 */

import { type ClientRequest, request as httpRequest, type IncomingMessage } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { StringDecoder } from 'node:string_decoder';
import { DistroError } from '../../core/errors.ts';
import type { Clock } from '../../core/ports.ts';
import type { Access } from './access.ts';
import { fromAnswer, fromNetwork } from './errors.ts';

export const REQUEST_MS = 30_000;
/** A page of 500 pods is some 10 MiB at worst. */
const BODY_MAX_BYTES = 32 * 1024 * 1024;
/** etcd holds 1.5 MiB an object. */
const LINE_MAX_CHARS = 4 * 1024 * 1024;
const UNAUTHORIZED = 401;
const OK_MAX = 299;
const USER_AGENT = 'distro-operator';

export interface Call {
	readonly method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
	readonly path: string;
	readonly query?: Readonly<Record<string, string | undefined>>;
	readonly body?: unknown;
	readonly contentType?: string;
	/** What is being done, for people. */
	readonly doing: string;
	/** Until the answer is whole; of a stream until it begins. REQUEST_MS if not given. */
	readonly timeoutMs?: number;
	readonly signal?: AbortSignal;
}

interface Exchange {
	readonly response: IncomingMessage;
	/** Ends the exchange, with what its reader is told. */
	destroy(why?: DistroError): void;
	/** The deadline is over. */
	begun(): void;
	/** What went wrong, as the reader's error: the deadline, the caller, or the network. */
	failure(error: unknown): DistroError;
	close(): void;
}

export class Transport {
	readonly #access: Access;
	readonly #clock: Clock;

	constructor(options: { readonly access: Access; readonly clock: Clock }) {
		this.#access = options.access;
		this.#clock = options.clock;
	}

	/** The answer's JSON. */
	async json(call: Call): Promise<unknown> {
		const exchange = await this.#answered(call);
		try {
			return parse(await readBody(exchange, call));
		} catch (error) {
			throw exchange.failure(error);
		} finally {
			exchange.close();
		}
	}

	/** The answer's lines as they come, without an end of their own: `signal` is for who has waited long enough. */
	async *lines(call: Call): AsyncGenerator<string, void, undefined> {
		const exchange = await this.#answered(call);
		exchange.begun();
		try {
			const decoder = new StringDecoder('utf8');
			let rest = '';
			for await (const chunk of exchange.response) {
				const lines = (rest + decoder.write(chunk as Buffer)).split('\n');
				rest = lines.pop() ?? '';
				if (rest.length > LINE_MAX_CHARS) throw tooLong(call.doing);
				for (const line of lines) if (line !== '') yield line;
			}
		} catch (error) {
			throw exchange.failure(error);
		} finally {
			exchange.destroy();
			exchange.close();
		}
	}

	/** An exchange that was answered with success. */
	async #answered(call: Call): Promise<Exchange> {
		for (let again = false; ; again = true) {
			const exchange = await this.#send(call);
			const status = exchange.response.statusCode ?? 0;
			if (status > 0 && status <= OK_MAX) return exchange;
			try {
				const text = await readBody(exchange, call);
				if (status === UNAUTHORIZED && this.#access.refused() && !again) continue;
				const retryAfter = exchange.response.headers['retry-after'];
				throw fromAnswer(call.doing, { status, body: parse(text), retryAfter });
			} catch (error) {
				throw exchange.failure(error);
			} finally {
				exchange.close();
			}
		}
	}

	async #send(call: Call): Promise<Exchange> {
		const { agent, headers } = await this.#access.credentials();
		if (call.signal?.aborted) throw canceled(call.doing);
		const body = call.body === undefined ? null : Buffer.from(JSON.stringify(call.body));
		const request = (this.#access.server.protocol === 'https:' ? httpsRequest : httpRequest)(this.#url(call), {
			method: call.method,
			agent,
			headers: {
				...headers,
				Accept: 'application/json',
				'User-Agent': USER_AGENT,
				...(body === null
					? {}
					: { 'Content-Type': call.contentType ?? 'application/json', 'Content-Length': body.length }),
			},
		});
		return new Promise((resolve, reject) => {
			const guard = this.#guard(call, request);
			request.on('response', (response) => {
				// Without a listener a failure between two reads would end the process.
				response.on('error', () => {});
				resolve({ ...guard, response });
			});
			request.on('error', (error) => {
				guard.close();
				reject(guard.failure(error));
			});
			request.end(body ?? undefined);
		});
	}

	#guard(call: Call, request: ClientRequest): Omit<Exchange, 'response'> {
		let why: DistroError | null = null;
		const destroy = (reason?: DistroError) => {
			why ??= reason ?? null;
			request.destroy(reason);
		};
		const onAbort = () => destroy(canceled(call.doing));
		const timeoutMs = call.timeoutMs ?? REQUEST_MS;
		const begun = this.#clock.schedule(timeoutMs, () => {
			// Whoever does not answer on this connection does not on the idle ones either.
			this.#access.dropIdle();
			destroy(new DistroError('timeout', `${call.doing}: no answer within ${Math.round(timeoutMs)} ms`));
		});
		call.signal?.addEventListener('abort', onAbort, { once: true });
		return {
			destroy,
			begun,
			failure: (error) => {
				if (why !== null) return why;
				return error instanceof DistroError ? error : fromNetwork(call.doing, error as Error);
			},
			close: () => {
				begun();
				call.signal?.removeEventListener('abort', onAbort);
			},
		};
	}

	#url(call: Call): URL {
		// Behind some gateways the API server lives under a path of its own.
		const url = new URL(this.#access.server);
		url.pathname = url.pathname.replace(/\/$/, '') + call.path;
		for (const [name, value] of Object.entries(call.query ?? {})) {
			if (value !== undefined) url.searchParams.set(name, value);
		}
		return url;
	}
}

async function readBody(exchange: Exchange, call: Call): Promise<string> {
	const chunks: Buffer[] = [];
	let bytes = 0;
	for await (const chunk of exchange.response) {
		chunks.push(chunk as Buffer);
		bytes += (chunk as Buffer).length;
		if (bytes > BODY_MAX_BYTES) throw tooLong(call.doing);
	}
	return Buffer.concat(chunks).toString('utf8');
}

function canceled(doing: string): DistroError {
	return new DistroError('canceled', `${doing}: canceled`, { reason: 'not wanted any more' });
}

function tooLong(doing: string): DistroError {
	return new DistroError('exhausted', `${doing}: the answer is longer than it may be`);
}

function parse(text: string): unknown {
	try {
		return JSON.parse(text);
	} catch {
		return text;
	}
}
