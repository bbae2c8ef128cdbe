/**
 * The process's memory for bytes in flight: one arena, handed out first come, first served.
 *
 * One arena instead of fresh Buffers, because V8 starts a full collection for every 64 MB of new Buffers, and memory
 * touched for the first time is dear. It lies in a WebAssembly.Memory, the one way in plain Node to get pages that are
 * page-aligned. Extents are found first-fit from the low end, so that the touched part stays as small as the load.
 *
 * It can't deadlock: whoever waits holds nothing, and holders give back in bounded time (idle rules of the transfers).
 */

import { assert } from '../core/assert.ts';
import { DistroError } from '../core/errors.ts';
import type { Clock, MemoryLease, MemoryPool } from '../core/ports.ts';

/** The lib that TypeScript has this in is the browser's. */
declare const WebAssembly: {
	Memory: new (pages: { initial: number; maximum: number }) => { readonly buffer: ArrayBuffer };
};

const PAGE_BYTES = 4096;
const WASM_PAGE_BYTES = 65_536;

interface Extent {
	offset: number;
	bytes: number;
}

interface Waiter {
	readonly sizes: readonly number[];
	readonly resolve: (lease: MemoryLease) => void;
}

/** Page-aligned memory for one purpose that lasts as long as the process. */
export function alignedBuffer(bytes: number): Buffer {
	const pages = Math.ceil(bytes / WASM_PAGE_BYTES);
	return Buffer.from(new WebAssembly.Memory({ initial: pages, maximum: pages }).buffer, 0, bytes);
}

export class ArenaPool implements MemoryPool {
	readonly capacityBytes: number;
	readonly #arena: Buffer;
	readonly #clock: Clock;
	/** Free extents in order of offset, never touching each other. */
	#free: Extent[];
	#usedBytes = 0;
	#usedAtMs = Number.NEGATIVE_INFINITY;
	readonly #waiters: Waiter[] = [];
	#waitedCount = 0;

	constructor(capacityBytes: number, options: { clock: Clock }) {
		const pages = Math.ceil(capacityBytes / WASM_PAGE_BYTES);
		this.capacityBytes = pages * WASM_PAGE_BYTES;
		this.#arena = alignedBuffer(this.capacityBytes);
		this.#free = [{ offset: 0, bytes: this.capacityBytes }];
		this.#clock = options.clock;
	}

	get usedBytes(): number {
		return this.#usedBytes;
	}

	/** Whether somebody has, or had a moment ago, memory of it. */
	isBusy(momentMs: number): boolean {
		return this.#usedBytes > 0 || this.#clock.monotonicMs() - this.#usedAtMs < momentMs;
	}

	/** How many acquisitions had to wait, since the start. */
	get waitedCount(): number {
		return this.#waitedCount;
	}

	get waiting(): number {
		return this.#waiters.length;
	}

	tryAcquire(sizes: readonly number[]): MemoryLease | null {
		if (this.#waiters.length > 0) return null;
		return this.#take(sizes);
	}

	acquire(sizes: readonly number[], options: { timeoutMs: number; signal?: AbortSignal }): Promise<MemoryLease> {
		let totalBytes = 0;
		for (const bytes of sizes) totalBytes += roundUp(bytes);
		if (totalBytes > this.capacityBytes) {
			return Promise.reject(
				new DistroError(
					'exhausted',
					`a transfer needs ${totalBytes} bytes of memory and the budget is ${this.capacityBytes}: raise MEMORY_BUDGET`,
				),
			);
		}
		const now = this.tryAcquire(sizes);
		if (now !== null) return Promise.resolve(now);
		this.#waitedCount++;
		return new Promise((resolve, reject) => {
			const { signal } = options;
			const leave = (error: DistroError) => {
				cancelTimer();
				signal?.removeEventListener('abort', onAbort);
				const at = this.#waiters.indexOf(waiter);
				if (at < 0) return;
				this.#waiters.splice(at, 1);
				reject(error);
				this.#serve();
			};
			const onAbort = () => leave(new DistroError('canceled', 'canceled while waiting for memory'));
			const cancelTimer = this.#clock.schedule(options.timeoutMs, () =>
				leave(
					new DistroError('unavailable', 'the memory budget is in use by other transfers: try again later', {
						retryAfterMs: 5_000,
					}),
				),
			);
			const waiter: Waiter = {
				sizes,
				resolve: (lease) => {
					cancelTimer();
					signal?.removeEventListener('abort', onAbort);
					resolve(lease);
				},
			};
			this.#waiters.push(waiter);
			if (signal?.aborted) onAbort();
			else signal?.addEventListener('abort', onAbort);
		});
	}

	#serve(): void {
		for (;;) {
			const first = this.#waiters[0];
			if (first === undefined) return;
			const lease = this.#take(first.sizes);
			if (lease === null) return;
			this.#waiters.shift();
			first.resolve(lease);
		}
	}

	#take(sizes: readonly number[]): MemoryLease | null {
		const extents: Extent[] = [];
		for (const size of sizes) {
			const extent = this.#allocate(roundUp(size));
			if (extent === null) {
				for (const taken of extents) this.#give(taken);
				return null;
			}
			extents.push(extent);
		}
		const slots = extents.map((extent, i) => this.#arena.subarray(extent.offset, extent.offset + (sizes[i] as number)));
		let released = false;
		return {
			slots,
			release: () => {
				if (released) return;
				released = true;
				for (const extent of extents) this.#give(extent);
				this.#serve();
			},
		};
	}

	#allocate(bytes: number): Extent | null {
		for (let i = 0; i < this.#free.length; i++) {
			const hole = this.#free[i] as Extent;
			if (hole.bytes < bytes) continue;
			const extent = { offset: hole.offset, bytes };
			if (hole.bytes === bytes) this.#free.splice(i, 1);
			else {
				hole.offset += bytes;
				hole.bytes -= bytes;
			}
			this.#usedBytes += bytes;
			return extent;
		}
		return null;
	}

	#give(extent: Extent): void {
		this.#usedBytes -= extent.bytes;
		this.#usedAtMs = this.#clock.monotonicMs();
		let at = 0;
		while (at < this.#free.length && (this.#free[at] as Extent).offset < extent.offset) at++;
		const before = this.#free[at - 1];
		const after = this.#free[at];
		assert(before === undefined || before.offset + before.bytes <= extent.offset, 'memory given back twice');
		const joinsBefore = before !== undefined && before.offset + before.bytes === extent.offset;
		const joinsAfter = after !== undefined && extent.offset + extent.bytes === after.offset;
		if (joinsBefore && joinsAfter) {
			before.bytes += extent.bytes + after.bytes;
			this.#free.splice(at, 1);
		} else if (joinsBefore) {
			before.bytes += extent.bytes;
		} else if (joinsAfter) {
			after.offset = extent.offset;
			after.bytes += extent.bytes;
		} else {
			this.#free.splice(at, 0, { offset: extent.offset, bytes: extent.bytes });
		}
	}
}

function roundUp(bytes: number): number {
	return Math.max(PAGE_BYTES, Math.ceil(bytes / PAGE_BYTES) * PAGE_BYTES);
}
