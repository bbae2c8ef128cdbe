/** A lean HTTP client for load: keep-alive, no copies, every answer checked for status and length. */

import http from 'node:http';

export interface Target {
	readonly host: string;
	readonly port: number;
	readonly agent: http.Agent;
}

export function targetOf(url: string, connections: number): Target {
	const { hostname, port } = new URL(url);
	return { host: hostname, port: Number(port), agent: new http.Agent({ keepAlive: true, maxSockets: connections }) };
}

/** Answers the object's id. */
export function post(target: Target, bytes: Buffer): Promise<string> {
	return send(target, { path: '/objects', bytes, type: 'application/octet-stream' });
}

/** The same by the form endpoint. */
export function postForm(target: Target, bytes: Buffer): Promise<string> {
	const head = Buffer.from(
		'--benchboundary\r\nContent-Disposition: form-data; name="file"; filename="f"\r\nContent-Type: a/b\r\n\r\n',
	);
	const tail = Buffer.from('\r\n--benchboundary--\r\n');
	const body = Buffer.concat([head, bytes, tail]);
	return send(target, { path: '/upload', bytes: body, type: 'multipart/form-data; boundary=benchboundary' });
}

function send(target: Target, o: { path: string; bytes: Buffer; type: string }): Promise<string> {
	return new Promise((resolve, reject) => {
		const request = http.request(
			{
				...target,
				method: 'POST',
				path: o.path,
				headers: { 'content-length': o.bytes.length, 'content-type': o.type },
			},
			(response) => {
				let text = '';
				response.on('data', (chunk: Buffer) => {
					text += chunk.toString();
				});
				response.on('end', () => {
					if (response.statusCode === 201) resolve((JSON.parse(text) as { object_id: string }).object_id);
					else reject(new Error(`HTTP ${response.statusCode}: ${text}`));
				});
			},
		);
		request.on('error', reject);
		request.end(o.bytes);
	});
}

/** Reads an object or a range of it; `into` gets the bytes for the reads that are verified. Answers their number. */
export function get(
	target: Target,
	id: string,
	o: { range?: [number, number]; into?: Buffer[] } = {},
): Promise<number> {
	return new Promise((resolve, reject) => {
		const headers = o.range === undefined ? {} : { range: `bytes=${o.range[0]}-${o.range[1]}` };
		http
			.get({ ...target, path: `/objects/${id}`, headers }, (response) => {
				let bytes = 0;
				response.on('data', (chunk: Buffer) => {
					bytes += chunk.length;
					o.into?.push(chunk);
				});
				response.on('end', () => {
					if (response.statusCode === 200 || response.statusCode === 206) resolve(bytes);
					else reject(new Error(`HTTP ${response.statusCode}`));
				});
				response.on('error', reject);
			})
			.on('error', reject);
	});
}

export interface Timing {
	readonly operations: number;
	readonly seconds: number;
	readonly p50Ms: number;
	readonly p99Ms: number;
}

/** Runs `operation` over and over, `atOnce` at a time, until `total` have been done. */
export async function repeat(
	operation: (index: number) => Promise<unknown>,
	options: { atOnce: number; total: number },
): Promise<Timing> {
	const tookMs: number[] = [];
	let next = 0;
	const startedAt = performance.now();
	const lane = async () => {
		while (next < options.total) {
			const index = next++;
			const before = performance.now();
			await operation(index);
			tookMs.push(performance.now() - before);
		}
	};
	await Promise.all(Array.from({ length: options.atOnce }, lane));
	const seconds = (performance.now() - startedAt) / 1000;
	tookMs.sort((a, b) => a - b);
	const at = (share: number) => tookMs[Math.min(tookMs.length - 1, Math.floor(tookMs.length * share))] ?? 0;
	return { operations: options.total, seconds, p50Ms: at(0.5), p99Ms: at(0.99) };
}
