/**
 * Writers, readers and removers that never rest, and the book of what they were promised: what was acknowledged must read
 * back the same, what was removed must be gone, and nothing else may be seen.
 *
 * Every write has an idempotency key and is repeated until it is answered, so that in the end nothing is uncertain. What
 * went wrong while the orchestrator was up is a complaint; it throws nothing, since the faults must go on.
 */

import { createHash } from 'node:crypto';
import http from 'node:http';
import type { Random } from '../../core/ports.ts';
import { draw, seededRandom } from './clock.ts';

export interface Held {
	readonly id: string;
	readonly name: string;
	readonly size: number;
	readonly sha256: string;
}

export interface WorkloadCounts {
	written: number;
	removed: number;
	read: number;
	bytesWritten: number;
	bytesRead: number;
	/** Requests that were repeated because the orchestrator was down. */
	repeated: number;
}

interface Answer {
	readonly status: number;
	readonly body: Buffer;
	readonly sha256: string;
	readonly bytes: number;
}

export interface WorkloadOptions {
	readonly http: string;
	readonly seed: string;
	readonly writers: number;
	readonly readers: number;
	/** About so many objects are held at once. */
	readonly objects: number;
	/** Part of the objects that have 20 to 70 MB. */
	readonly large: number;
	/** Rest of each writer and reader after each operation, at most. */
	readonly restMs: number;
	/** Whether the orchestrator was down, or not yet back, at some time since `sinceMs`. */
	readonly wasDown: (sinceMs: number) => boolean;
}

const TIMEOUT_MS = 90_000;
const RETRY_MS = 300;
/** A promise that can't be kept for so long is broken. */
const PATIENCE_MS = 60_000;

export class Workload {
	readonly counts: WorkloadCounts = { written: 0, removed: 0, read: 0, bytesWritten: 0, bytesRead: 0, repeated: 0 };
	/** Writes that were refused for now while the orchestrator was up, by what it said. */
	readonly refusals = new Map<string, number>();
	readonly complaints: string[] = [];
	readonly #o: WorkloadOptions;
	/** Acknowledged, and nobody has begun to remove it. */
	readonly #held = new Map<string, Held>();
	/** Somebody has begun to remove it; true: and was told that it is gone. */
	readonly #removed = new Map<string, boolean>();
	/** Names of uploads that are not answered yet. */
	readonly #writing = new Set<string>();
	readonly #agent = new http.Agent({ keepAlive: true });
	#number = 0;
	#stopping = false;
	#loops: Promise<void>[] = [];

	constructor(options: WorkloadOptions) {
		this.#o = options;
	}

	held(): readonly Held[] {
		return [...this.#held.values()];
	}

	removedIds(): readonly string[] {
		return [...this.#removed.keys()];
	}

	start(): void {
		const { writers, readers } = this.#o;
		this.#loops = [
			...Array.from({ length: writers }, (_, i) => this.#loop(`writer ${i}`, (random) => this.#change(random))),
			...Array.from({ length: readers }, (_, i) => this.#loop(`reader ${i}`, (random) => this.#readAny(random))),
		];
	}

	/** Resolves when all that was begun is answered. */
	async stop(): Promise<void> {
		this.#stopping = true;
		await Promise.all(this.#loops);
	}

	async #loop(who: string, step: (random: Random) => Promise<void>): Promise<void> {
		const random = seededRandom(`${this.#o.seed} ${who}`);
		while (!this.#stopping) {
			await step(random).catch((error: Error) => this.complain(`${who}: ${error.stack}`));
			await sleep(draw(random) * this.#o.restMs);
		}
	}

	complain(text: string): void {
		this.complaints.push(`${new Date().toISOString().slice(11, 23)} ${text}`);
	}

	async #change(random: Random): Promise<void> {
		const many = this.#held.size / this.#o.objects;
		// Fewer than wanted: mostly writes; more: mostly removals.
		if (draw(random) < Math.min(0.9, 0.5 * many ** 4)) await this.#remove(random);
		else await this.write(sizeOf(random, this.#o.large));
	}

	async write(size: number): Promise<Held> {
		const name = `object ${this.#number++}`;
		const bytes = seededRandom(`${this.#o.seed} ${name}`).bytes(size);
		const sha256 = createHash('sha256').update(bytes).digest('hex');
		this.#writing.add(name);
		const path = `/objects?name=${encodeURIComponent(name)}`;
		const headers = { 'idempotency-key': `${this.#o.seed} ${name}`, 'content-length': String(size) };
		const { body } = await this.#until('POST', path, { accept: [201], headers, bytes, what: `${name} of ${size} B` });
		const { object_id: id } = JSON.parse(body.toString()) as { object_id: string };
		const held = { id, name, size, sha256 };
		this.#held.set(id, held);
		this.#writing.delete(name);
		this.counts.written++;
		this.counts.bytesWritten += size;
		return held;
	}

	async #remove(random: Random): Promise<void> {
		const held = this.#any(random);
		if (held === undefined) return;
		this.#held.delete(held.id);
		this.#removed.set(held.id, false);
		// An answer that got lost: the second time it is gone already.
		await this.#until('DELETE', `/objects/${held.id}`, { accept: [204, 404], what: `${held.name} to be removed` });
		this.#removed.set(held.id, true);
		this.counts.removed++;
	}

	#any(random: Random): Held | undefined {
		const all = this.held();
		return all[Math.floor(draw(random) * all.length)];
	}

	async #readAny(random: Random): Promise<void> {
		const gone = [...this.#removed].filter(([, done]) => done).map(([id]) => id);
		if (gone.length > 0 && draw(random) < 0.1) {
			const id = gone[Math.floor(draw(random) * gone.length)] as string;
			await this.#until('GET', `/objects/${id}`, { accept: [404], what: `${id}, removed, to be gone` });
			return;
		}
		const held = this.#any(random);
		if (held !== undefined) await this.read(held);
	}

	/** Complains of other bytes, of a refusal while the orchestrator is up, and when it can't be read at last. */
	async read(held: Held): Promise<boolean> {
		const what = `${held.name} (${held.id}, ${held.size} B)`;
		const answer = await this.#until('GET', `/objects/${held.id}`, {
			accept: [200],
			what: `${what} to be read`,
			unless: () => this.#removed.has(held.id),
		});
		if (answer.status !== 200) return true;
		if (answer.sha256 !== held.sha256) {
			this.complain(`WRONG BYTES: ${what} has ${answer.bytes} B of another digest`);
			return false;
		}
		this.counts.read++;
		this.counts.bytesRead += held.size;
		return true;
	}

	/** Everything that is held now, by some readers at once; how many could be read. */
	async readAll(readers = 4): Promise<number> {
		const queue = [...this.held()];
		let good = 0;
		const lane = async () => {
			for (let held = queue.shift(); held !== undefined; held = queue.shift()) {
				const right = await this.read(held).catch((error: Error) => this.complain(error.message));
				if (right === true) good++;
			}
		};
		await Promise.all(Array.from({ length: readers }, lane));
		return good;
	}

	/** What is listed is what was acknowledged, or is on its way; what is held is listed. */
	async checkListing(): Promise<void> {
		const before = new Set(this.#held.keys());
		const goneBefore = new Set([...this.#removed].filter(([, done]) => done).map(([id]) => id));
		const writing = new Set(this.#writing);
		const listed = new Map<string, string>();
		let cursor: string | null = '';
		while (cursor !== null) {
			const path = `/objects?limit=500&cursor=${encodeURIComponent(cursor)}`;
			const { body } = await this.#until('GET', path, { accept: [200], what: 'the list' });
			const page = JSON.parse(body.toString()) as {
				objects: { object_id: string; name: string }[];
				next: string | null;
			};
			for (const { object_id: id, name } of page.objects) {
				if (listed.has(id)) this.complain(`${id} is listed twice`);
				listed.set(id, name);
			}
			cursor = page.next;
		}
		for (const id of before) {
			if (!listed.has(id) && !this.#removed.has(id)) this.complain(`NOT LISTED: ${id} is acknowledged`);
		}
		for (const [id, name] of listed) {
			if (goneBefore.has(id)) this.complain(`STILL LISTED: ${id} was removed`);
			const known = this.#held.has(id) || this.#removed.has(id) || writing.has(name) || this.#writing.has(name);
			if (!known) this.complain(`LISTED: ${id} ${name} was never acknowledged`);
		}
	}

	/** The fewest and the most objects that there can be now. */
	bounds(): { least: number; most: number } {
		const removing = [...this.#removed.values()].filter((done) => !done).length;
		return { least: this.#held.size, most: this.#held.size + removing + this.#writing.size };
	}

	/** Repeats a request until it is answered as it must be. */
	async #until(
		method: string,
		path: string,
		o: {
			accept: readonly number[];
			what: string;
			headers?: Record<string, string>;
			bytes?: Buffer;
			unless?: () => boolean;
		},
	): Promise<Answer> {
		let sinceMs = Date.now();
		for (;;) {
			const startMs = Date.now();
			const { answer, failure } = await this.#ask(method, path, o).then(
				(answer) => ({ answer, failure: null }),
				(error: Error) => ({ answer: null, failure: error.message }),
			);
			if (answer !== null && o.accept.includes(answer.status)) return answer;
			if (answer !== null && o.unless?.() === true && answer.status === 404) return answer;
			const down = this.#o.wasDown(startMs);
			const why = failure ?? detailOf(answer);
			// A write may be refused for now, and one of before may still run; nothing else may.
			const mayBeRefused = method === 'POST' && [503, 507, 409].includes(answer?.status ?? 0);
			if (down) this.counts.repeated++;
			else if (mayBeRefused) this.refusals.set(why, (this.refusals.get(why) ?? 0) + 1);
			else this.complain(`${method} ${o.what}: ${why}`);
			if (answer !== null && ![503, 507, 409, 500].includes(answer.status)) {
				throw new Error(`BROKEN PROMISE: ${o.what}: ${why}`);
			}
			if (down) sinceMs = Date.now();
			if (Date.now() - sinceMs > PATIENCE_MS) throw new Error(`BROKEN PROMISE: waited in vain for ${o.what}: ${why}`);
			await sleep(RETRY_MS);
		}
	}

	#ask(method: string, path: string, o: { headers?: Record<string, string>; bytes?: Buffer }): Promise<Answer> {
		return new Promise((resolve, reject) => {
			const request = http.request(`${this.#o.http}${path}`, {
				method,
				agent: this.#agent,
				headers: o.headers ?? {},
				signal: AbortSignal.timeout(TIMEOUT_MS),
			});
			let answered = false;
			request.on('error', (error) => {
				if (!answered) reject(error);
			});
			request.on('response', (response) => {
				answered = true;
				const hash = createHash('sha256');
				const first: Buffer[] = [];
				let bytes = 0;
				response.on('data', (chunk: Buffer) => {
					hash.update(chunk);
					bytes += chunk.length;
					// Whole where it is JSON, and not kept where it is somebody's bytes.
					if (response.statusCode !== 200 || response.headers['content-type']?.includes('json') === true)
						first.push(chunk);
				});
				response.on('error', reject);
				response.on('end', () => {
					if (!response.complete) return reject(new Error('the answer was cut short'));
					const body = Buffer.concat(first);
					resolve({ status: response.statusCode ?? 0, body, bytes, sha256: hash.digest('hex') });
				});
			});
			request.end(o.bytes);
		});
	}
}

/** 0 B to 3 MB, on every side of what decides how an object is stored; a few of 20 to 70 MB. */
function sizeOf(random: Random, large: number): number {
	const between = (least: number, most: number) => Math.floor(least + draw(random) * (most - least));
	if (draw(random) < large) return between(20_000_000, 70_000_000);
	const kind = draw(random);
	if (kind < 0.05) return 0;
	if (kind < 0.15) return between(1, 4096);
	if (kind < 0.45) return between(4097, 65_536);
	if (kind < 0.8) return between(65_537, 600_000);
	return between(600_000, 3_000_000);
}

function detailOf(answer: Answer | null): string {
	const text = answer?.body.toString().slice(0, 300) ?? '';
	const detail = /"detail":"([^"]*)"/.exec(text)?.[1];
	return `HTTP ${answer?.status}: ${detail ?? text}`;
}

export function sleep(ms: number): Promise<void> {
	return new Promise((done) => setTimeout(done, Math.max(0, ms)));
}
