/**
 * The simulated world: one virtual time for everybody, and nodes (processes) that can be killed, stopped and continued.
 *
 * Everything that happens is an event at a time. After each event all promises run to their end before the next one, so a
 * run is a function of its seed. Nothing enters a node but through `node.run`: whoever is stopped sees it later, whoever is
 * dead never.
 */

import { createHash } from 'node:crypto';
import { syncBuiltinESMExports } from 'node:module';
import { Transform } from 'node:stream';
import zlib from 'node:zlib';
import { reedSolomon } from '../../core/codec/reed-solomon.ts';
import type { Clock } from '../../core/ports.ts';
import { Dice } from './dice.ts';

interface Happening {
	readonly atMs: number;
	readonly order: number;
	callback: (() => void) | null;
}

/** Thrown where something is not as it must be. */
export class Violation extends Error {}

export class World {
	nowMs = Date.UTC(2026, 0, 1);
	readonly dice: Dice;
	/** The last things that happened, for whoever reads about a failure. */
	readonly recent: string[] = [];
	events = 0;
	readonly #queue: Happening[] = [];
	#order = 0;
	readonly #history = createHash('sha256');
	readonly #trace: boolean;
	readonly #startMs = this.nowMs;
	#failure: unknown = null;

	constructor(seed: string, options: { trace?: boolean } = {}) {
		this.dice = new Dice(seed);
		this.#trace = options.trace ?? false;
	}

	/** Goes into the history, whose hash says whether two runs were the same. */
	tell(what: string): void {
		const line = this.#note(what);
		this.recent.push(line);
		if (this.recent.length > 400) this.recent.splice(0, 200);
	}

	/** The same, of what is only worth reading when all is read. */
	mention(what: string): void {
		this.#note(what);
	}

	#note(what: string): string {
		const line = `${((this.nowMs - this.#startMs) / 1000).toFixed(3)} ${what}`;
		this.#history.update(`${line}\n`);
		if (this.#trace) process.stdout.write(`${line}\n`);
		return line;
	}

	historyHash(): string {
		return this.#history.copy().digest('hex').slice(0, 16);
	}

	/** Ends the run at once, from wherever. */
	fail(error: unknown): void {
		this.#failure ??= error;
	}

	at(delayMs: number, callback: () => void): () => void {
		const event: Happening = { atMs: this.nowMs + Math.max(0, delayMs), order: this.#order++, callback };
		push(this.#queue, event);
		return () => {
			event.callback = null;
		};
	}

	async advance(ms: number): Promise<void> {
		const untilMs = this.nowMs + ms;
		for (let next = this.#queue[0]; next !== undefined && next.atMs <= untilMs; next = this.#queue[0]) {
			pop(this.#queue);
			if (next.callback === null) continue;
			this.nowMs = next.atMs;
			this.events++;
			next.callback();
			await quiet();
			if (this.#failure !== null) throw this.#failure;
		}
		this.nowMs = untilMs;
		await quiet();
		if (this.#failure !== null) throw this.#failure;
	}
}

/** One process. A restart is a new node. */
export class SimNode {
	readonly name: string;
	readonly clock: Clock;
	state: 'running' | 'paused' | 'dead' = 'running';
	/** Of its wall clock. */
	skewMs = 0;
	readonly #world: World;
	#held: (() => void)[] = [];

	constructor(world: World, name: string, options: { skewMs: number; rate: number }) {
		this.#world = world;
		this.name = name;
		this.skewMs = options.skewMs;
		const { rate } = options;
		this.clock = {
			nowMs: () => Math.round(world.nowMs + this.skewMs),
			// Clocks of machines don't run alike.
			monotonicMs: () => (world.nowMs - Date.UTC(2026, 0, 1)) * rate,
			schedule: (delayMs, callback) => {
				let isWanted = true;
				// As real timers: never at once.
				const cancel = world.at(Math.max(1, delayMs) / rate, () =>
					this.run(() => {
						if (isWanted) callback();
					}),
				);
				return () => {
					isWanted = false;
					cancel();
				};
			},
		};
	}

	/** Something comes in. */
	run(what: () => void): void {
		if (this.state === 'paused') this.#held.push(what);
		else if (this.state === 'running') {
			try {
				what();
			} catch (error) {
				// As an uncaught exception, which ends a process: never right.
				this.#world.fail(error);
			}
		}
	}

	kill(): void {
		this.state = 'dead';
		this.#held = [];
	}

	pause(): void {
		if (this.state === 'running') this.state = 'paused';
	}

	resume(): void {
		if (this.state !== 'paused') return;
		this.state = 'running';
		for (const what of this.#held.splice(0)) this.#world.at(0, () => this.run(what));
	}
}

let coding = 0;
let lastCoding: Promise<unknown> = Promise.resolve();

/** The codec computes on a thread pool: one row at a time, and no event meanwhile, gives one order. */
function inOrder<Row>(compute: (row: Row) => Promise<void>): (row: Row) => Promise<void> {
	return (row) => {
		coding++;
		const computed = lastCoding.then(() => compute(row)).finally(() => coding--);
		lastCoding = computed.catch(() => {});
		return computed;
	};
}

reedSolomon.encode = inOrder(reedSolomon.encode);
reedSolomon.reconstruct = inOrder(reedSolomon.reconstruct);

/** So does compression: here it is done at the end, at once. */
const createDeflate = () => {
	const parts: Buffer[] = [];
	const deflate = new Transform({
		transform: (chunk: Buffer, _encoding, done) => {
			parts.push(chunk);
			done();
		},
		flush: (done) => done(null, zlib.deflateSync(Buffer.concat(parts))),
	});
	return deflate;
};
Object.defineProperty(zlib, 'createDeflate', { value: createDeflate });
syncBuiltinESMExports();

/** Until every promise that can go on has gone on. */
async function quiet(): Promise<void> {
	do await new Promise((done) => setImmediate(done));
	while (coding > 0);
}

function isBefore(a: Happening, b: Happening): boolean {
	return a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);
}

function push(heap: Happening[], event: Happening): void {
	let at = heap.push(event) - 1;
	while (at > 0) {
		const parent = (at - 1) >> 1;
		if (!isBefore(event, heap[parent] as Happening)) break;
		heap[at] = heap[parent] as Happening;
		at = parent;
	}
	heap[at] = event;
}

function pop(heap: Happening[]): void {
	const last = heap.pop() as Happening;
	if (heap.length === 0) return;
	let at = 0;
	for (;;) {
		let child = 2 * at + 1;
		const other = heap[child + 1];
		if (child >= heap.length) break;
		if (other !== undefined && isBefore(other, heap[child] as Happening)) child++;
		if (!isBefore(heap[child] as Happening, last)) break;
		heap[at] = heap[child] as Happening;
		at = child;
	}
	heap[at] = last;
}
