/**
 * A client for scenarios: it writes, reads and deletes by any of several orchestrators, one call after the other, as its
 * seed says, compares what it reads, and remembers in a History what it was told.
 */

import { setTimeout as pause } from 'node:timers/promises';
import type { Random } from '../../core/ports.ts';
import { sha256 } from './client.ts';
import type { History, Write } from './history.ts';

/** So that two cores keep up with eight clients, and with the reading of it all in the end. */
const PAUSE_MS = 150;
const CALL_TIMEOUT_MS = 30_000;
/** Inline, one cell, several, a few large ones. */
const SIZES = [
	{ share: 30, below: 4_097 },
	{ share: 40, below: 100_000 },
	{ share: 26, below: 600_000 },
	{ share: 4, below: 6_000_000 },
];

/** A whole number from 0 to `end` - 1. */
export function below(random: Random, end: number): number {
	return random.bytes(4).readUInt32BE() % end;
}

/** One that writes, reads and deletes by any orchestrator, one call after the other, and remembers what it was told. */
export class RandomClient {
	reads = 0;
	brokenReads = 0;
	readonly #history: History;
	readonly #orchestrators: readonly string[];
	readonly #random: Random;
	#keys = 0;

	constructor(options: { history: History; orchestrators: readonly string[]; random: Random }) {
		this.#history = options.history;
		this.#orchestrators = options.orchestrators;
		this.#random = options.random;
	}

	async run(ended: AbortSignal): Promise<void> {
		while (!ended.aborted && this.#history.violations.length === 0) {
			const choice = below(this.#random, 100);
			if (choice < 45) await this.write(this.#anyone());
			else if (choice < 95) await this.#read();
			else await this.#delete();
			await pause(below(this.#random, 2 * PAUSE_MS));
		}
	}

	#anyone(): string {
		return this.#orchestrators[below(this.#random, this.#orchestrators.length)] as string;
	}

	/** By this orchestrator; what may be sent again goes to any. */
	async write(http: string): Promise<void> {
		const bytes = this.#random.bytes(this.#size());
		// Half of them may be sent again: whatever became of the first, there is one object.
		const key = below(this.#random, 2) === 0 ? null : `${this.#random.bytes(8).toString('hex')} ${this.#keys++}`;
		const write = this.#history.begin(bytes, key);
		for (let attempt = 1; ; attempt++) {
			const status = await this.#put(write, { bytes, http: attempt === 1 ? http : this.#anyone() });
			if (write.outcome === 'stored' || key === null || attempt === 3) return;
			// 409: whoever was killed has the key for a while yet.
			if (status === 409) return;
			await pause(PAUSE_MS);
		}
	}

	/** The status of the answer, or null when there was none. */
	async #put(write: Write, { bytes, http }: { bytes: Buffer; http: string }): Promise<number | null> {
		const before = write.outcome;
		try {
			const response = await fetch(`${http}/objects`, {
				method: 'POST',
				body: new Uint8Array(bytes),
				headers: write.key === null ? {} : { 'idempotency-key': write.key },
				signal: AbortSignal.timeout(CALL_TIMEOUT_MS),
			});
			const text = await response.text();
			const { status } = response;
			if (status === 201) this.#history.stored(write, (JSON.parse(text) as { object_id: string }).object_id);
			else if (before !== 'lost') write.outcome = 'refused';
			if (![201, 409, 503].includes(status)) this.#history.violated(`a write was answered ${status}: ${text}`);
			return status;
		} catch (error) {
			// Where nobody listens nothing was sent.
			const { code } = ((error as Error).cause ?? {}) as { code?: string };
			if (before !== 'lost') write.outcome = code === 'ECONNREFUSED' ? 'refused' : 'lost';
			return null;
		}
	}

	async #read(): Promise<void> {
		const write = this.#anyReadable();
		if (write === null) return;
		const http = this.#anyone();
		try {
			const response = await fetch(`${http}/objects/${write.id}`, { signal: AbortSignal.timeout(CALL_TIMEOUT_MS) });
			const body = Buffer.from(await response.arrayBuffer());
			// Another client may have deleted it meanwhile.
			const deleted = write.deletion !== 'none';
			if (response.ok && sha256(body) === write.sha256) this.reads++;
			else if (response.ok) this.#history.violated(`${http} gave other bytes for ${write.id}`);
			else if (response.status === 503) this.brokenReads++;
			else if (response.status !== 404 || !deleted) {
				this.#history.violated(`${http} answered ${response.status} for ${write.id}: ${body.toString()}`);
			}
		} catch {
			this.brokenReads++;
		}
	}

	async #delete(): Promise<void> {
		const write = this.#anyReadable();
		if (write === null) return;
		write.deletion = 'lost';
		try {
			const signal = AbortSignal.timeout(CALL_TIMEOUT_MS);
			const response = await fetch(`${this.#anyone()}/objects/${write.id}`, { method: 'DELETE', signal });
			const text = await response.text();
			if (response.ok) write.deletion = 'done';
			else if (response.status !== 503) this.#history.violated(`a delete was answered ${response.status}: ${text}`);
		} catch {
			// Lost it stays: it may be there or not.
		}
	}

	#anyReadable(): Write | null {
		const readable = this.#history.readable();
		return readable[below(this.#random, Math.max(1, readable.length))] ?? null;
	}

	#size(): number {
		let at = below(this.#random, 100);
		for (const { share, below: size } of SIZES) {
			if (at < share) return below(this.#random, size);
			at -= share;
		}
		return 0;
	}
}
