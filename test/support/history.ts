/**
 * What clients of several orchestrators have done, and the checker that compares it with what is there in the end: each
 * acknowledged object is the same by every orchestrator, what was deleted is gone, and whatever else is visible is whole
 * and is what somebody wrote whose answer was lost. Every write has bytes of its own, so that bytes tell the write.
 */

import { cluster, HttpError, sha256 } from './client.ts';

export interface Write {
	readonly sha256: string;
	readonly size: number;
	/** Idempotency-Key, or null. */
	readonly key: string | null;
	/** `refused`: answered, with an error. `lost`: there was no answer. */
	outcome: 'running' | 'stored' | 'refused' | 'lost';
	/** Once it is stored. */
	id: string | null;
	deletion: 'none' | 'lost' | 'done';
}

export interface Verdict {
	/** Sentences; none when all is well. */
	readonly violations: readonly string[];
	readonly stored: number;
	readonly deleted: number;
	readonly refused: number;
	readonly lostAnswers: number;
	/** Objects that are there nevertheless: whole, and once each. */
	readonly lostAndThere: number;
	readonly refusedAndThere: number;
	/** Objects in the list of each orchestrator. */
	readonly listed: readonly number[];
	/** Whole objects read and compared, by all orchestrators together. */
	readonly readBack: number;
	readonly bytesReadBack: number;
}

const CHECKS_AT_ONCE = 6;
const PAGE = 100;
const ATTEMPTS = 5;

export class History {
	readonly #writes: Write[] = [];
	readonly #violations: string[] = [];

	begin(bytes: Buffer, key: string | null): Write {
		const digest = sha256(bytes);
		const write: Write = { sha256: digest, size: bytes.length, key, outcome: 'running', id: null, deletion: 'none' };
		this.#writes.push(write);
		return write;
	}

	stored(write: Write, id: string): void {
		if (write.id !== null && write.id !== id) {
			this.violated(`one key gave two objects: ${write.id} and ${id}`);
		}
		write.outcome = 'stored';
		write.id = id;
	}

	violated(sentence: string): void {
		this.#violations.push(sentence);
	}

	get violations(): readonly string[] {
		return this.#violations;
	}

	/** Stored, and nobody has begun to delete it. */
	readable(): readonly Write[] {
		return this.#writes.filter(({ outcome, deletion }) => outcome === 'stored' && deletion === 'none');
	}

	/** Only when all clients have ended and all orchestrators serve. */
	async check(orchestrators: readonly string[]): Promise<Verdict> {
		const lists = await Promise.all(orchestrators.map(listAll));
		const [first = []] = lists;
		for (const [i, list] of lists.entries()) {
			const http = orchestrators[i] as string;
			if (list.join() !== first.join()) this.violated(`${http} lists other objects than ${orchestrators[0]}`);
			if (new Set(list).size !== list.length) this.violated(`${http} lists an object twice`);
			const { objects } = await cluster(http);
			if (objects !== list.length) this.violated(`${http} counts ${objects} objects and lists ${list.length}`);
		}
		const listed = new Set(lists.flat());
		const known = new Map(this.#writes.flatMap((write) => (write.id === null ? [] : [[write.id, write]])));
		const unknown = new Map(this.#writes.flatMap((write) => (write.id === null ? [[write.sha256, write]] : [])));
		const there = new Map<Write, string>();
		let readBack = 0;
		let bytesReadBack = 0;
		await forEach([...new Set([...listed, ...known.keys()])], async (id) => {
			const bodies = await Promise.all(orchestrators.map((http) => read(http, id)));
			const digests = bodies.map((body) => (body === null ? null : sha256(body)));
			const [digest = null] = digests;
			if (new Set(digests).size !== 1) this.violated(`orchestrators disagree on ${id}: ${digests.join(', ')}`);
			if ((digest !== null) !== listed.has(id)) this.violated(`${id} is listed and not there, or the reverse`);
			for (const body of bodies) {
				if (body === null) continue;
				readBack++;
				bytesReadBack += body.length;
			}
			const write = known.get(id);
			if (write === undefined) {
				const owner = digest === null ? undefined : unknown.get(digest);
				if (owner === undefined)
					this.violated(`${id} is there, and no write without an answer has its bytes (${digest})`);
				else if (there.has(owner)) this.violated(`one write is there twice: ${there.get(owner)}, ${id}`);
				else there.set(owner, id);
			} else if (digest === null && write.deletion === 'none') {
				this.violated(`${id} (${write.size} bytes) was acknowledged and is not there`);
			} else if (digest !== null && write.deletion === 'done') {
				this.violated(`${id} was deleted, and is there`);
			} else if (digest !== null && digest !== write.sha256) {
				this.violated(`${id} (${write.size} bytes) is not what was stored`);
			}
		});
		const count = (outcome: Write['outcome']) => this.#writes.filter((write) => write.outcome === outcome).length;
		return {
			violations: this.#violations,
			stored: count('stored'),
			deleted: this.#writes.filter(({ deletion }) => deletion === 'done').length,
			refused: count('refused'),
			lostAnswers: count('lost'),
			lostAndThere: [...there.keys()].filter(({ outcome }) => outcome === 'lost').length,
			refusedAndThere: [...there.keys()].filter(({ outcome }) => outcome === 'refused').length,
			listed: lists.map(({ length }) => length),
			readBack,
			bytesReadBack,
		};
	}
}

/** Newest first, page by page. */
async function listAll(http: string): Promise<string[]> {
	const ids: string[] = [];
	for (let cursor: string | null = ''; cursor !== null; ) {
		const query: string = cursor === '' ? '' : `&cursor=${encodeURIComponent(cursor)}`;
		const response = await fetch(`${http}/objects?limit=${PAGE}${query}`);
		if (!response.ok) throw new HttpError(response.status, await response.text(), response.headers);
		const page = (await response.json()) as { objects: { object_id: string }[]; next: string | null };
		ids.push(...page.objects.map(({ object_id }) => object_id));
		cursor = page.next;
	}
	return ids;
}

/** Null: there is no such object. Whoever is busy says so and is asked again. */
async function read(http: string, id: string): Promise<Buffer | null> {
	for (let attempt = 1; ; attempt++) {
		const response = await fetch(`${http}/objects/${id}`);
		const body = Buffer.from(await response.arrayBuffer());
		if (response.ok) return body;
		if (response.status === 404) return null;
		if (response.status !== 503 || attempt === ATTEMPTS) {
			throw new HttpError(response.status, `${http} on ${id}: ${body.toString()}`, response.headers);
		}
		await new Promise((done) => setTimeout(done, 1_000 * Number(response.headers.get('retry-after') ?? 1)));
	}
}

async function forEach<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
	const left = [...items];
	const lanes = Array.from({ length: CHECKS_AT_ONCE }, async () => {
		for (let item = left.pop(); item !== undefined; item = left.pop()) await work(item);
	});
	await Promise.all(lanes);
}
