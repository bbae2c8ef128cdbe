/** The HTTP API as tests use it. */

import { createHash } from 'node:crypto';
import http from 'node:http';

export interface Stored {
	readonly id: string;
	readonly sha256: string;
	readonly size: number;
}

export function sha256(bytes: Buffer): string {
	return createHash('sha256').update(bytes).digest('hex');
}

/** Stores bytes by POST /objects; throws what the server says. */
export async function put(base: string, bytes: Buffer, headers: Record<string, string> = {}): Promise<Stored> {
	const response = await fetch(`${base}/objects`, { method: 'POST', body: new Uint8Array(bytes), headers });
	const text = await response.text();
	if (response.status !== 201) throw new HttpError(response.status, text, response.headers);
	return { id: (JSON.parse(text) as { object_id: string }).object_id, sha256: sha256(bytes), size: bytes.length };
}

export class HttpError extends Error {
	readonly status: number;
	readonly headers: Headers;

	constructor(status: number, text: string, headers: Headers) {
		super(`HTTP ${status}: ${text}`);
		this.status = status;
		this.headers = headers;
	}
}

/** The whole object, or a range of it. */
export async function get(base: string, id: string, range?: [number, number]): Promise<Buffer> {
	const headers: Record<string, string> = range === undefined ? {} : { range: `bytes=${range[0]}-${range[1]}` };
	const response = await fetch(`${base}/objects/${id}`, { headers });
	if (!response.ok) throw new HttpError(response.status, await response.text(), response.headers);
	return Buffer.from(await response.arrayBuffer());
}

/** Whether the object reads back as it was stored. */
export async function isIntact(base: string, stored: Stored): Promise<boolean> {
	return sha256(await get(base, stored.id)) === stored.sha256;
}

export interface Explained {
	readonly stored: string;
	readonly health: string;
	readonly segments: {
		n: number;
		k: number;
		because: string;
		was: { n: number; k: number } | null;
		wanted: { n: number; k: number; why: string } | null;
		health: string;
		shards: { index: number; worker: string | null; shard_id: string | null; state: string }[];
	}[];
}

export async function explain(base: string, id: string): Promise<Explained> {
	return (await (await fetch(`${base}/objects/${id}/explain?limit=100`)).json()) as Explained;
}

export interface Cluster {
	readonly workers: { name: string; state: string; address: string; zone: string; shards: number }[];
	readonly objects: number;
	readonly queues: { intents: number; deletions: number; repairs: number };
	readonly budget: { used_bytes: number };
	readonly redundancy: { n: number; k: number } | null;
}

export async function cluster(base: string): Promise<Cluster> {
	return (await (await fetch(`${base}/cluster`)).json()) as Cluster;
}

/** Streams `size` bytes of a repeating pattern up, without holding them; answers status and body. */
export function putStream(
	base: string,
	options: {
		size: number;
		chunked: boolean;
		headers?: Record<string, string>;
		onSocket?: (request: http.ClientRequest) => void;
		stopAt?: number;
	},
): Promise<{ status: number; body: string; sha256: string }> {
	const hash = createHash('sha256');
	const block = Buffer.alloc(1024 * 1024);
	return new Promise((resolve, reject) => {
		const request = http.request(`${base}/objects`, {
			method: 'POST',
			headers: { ...options.headers, ...(options.chunked ? {} : { 'content-length': options.size }) },
		});
		options.onSocket?.(request);
		let answered = false;
		request.on('error', (error) => {
			// A server that has answered need not read on.
			if (!answered) reject(error);
		});
		request.on('response', (response) => {
			answered = true;
			let body = '';
			response.on('data', (chunk: Buffer) => {
				body += chunk.toString();
			});
			response.on('end', () => resolve({ status: response.statusCode ?? 0, body, sha256: hash.digest('hex') }));
		});
		let sent = 0;
		let number = 0;
		const more = () => {
			while (sent < options.size && !answered) {
				if (options.stopAt !== undefined && sent >= options.stopAt) return;
				const chunk = Buffer.from(block.subarray(0, Math.min(block.length, options.size - sent)));
				// Every block differs, so that blocks in a wrong place are noticed.
				if (chunk.length >= 8) chunk.writeDoubleLE(number++);
				hash.update(chunk);
				sent += chunk.length;
				if (!request.write(chunk)) {
					request.once('drain', more);
					return;
				}
			}
			if (!answered) request.end();
		};
		more();
	});
}

/** Reads an object without holding it; answers its SHA-256. */
export function getHash(base: string, id: string): Promise<string> {
	const hash = createHash('sha256');
	return new Promise((resolve, reject) => {
		http
			.get(`${base}/objects/${id}`, { agent: false }, (response) => {
				if (response.statusCode !== 200) reject(new Error(`HTTP ${response.statusCode}`));
				response.on('data', (chunk: Buffer) => hash.update(chunk));
				response.on('end', () => (response.complete ? resolve(hash.digest('hex')) : reject(new Error('cut short'))));
				response.on('error', reject);
			})
			.on('error', reject);
	});
}
