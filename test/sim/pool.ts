/** A MemoryPool of plain Buffers, first come, first served. What is given back is spoilt: whoever still reads it shows. */

import { DistroError } from '../../core/errors.ts';
import type { Clock, MemoryLease, MemoryPool } from '../../core/ports.ts';

const SPOILT = 0xdd;
/** Kept to be used again, by size. */
const spare = new Map<number, Buffer[]>();

interface Waiter {
	readonly sizes: readonly number[];
	readonly resolve: (lease: MemoryLease) => void;
}

export class PlainPool implements MemoryPool {
	readonly capacityBytes: number;
	usedBytes = 0;
	readonly #clock: Clock;
	readonly #waiters: Waiter[] = [];

	constructor(capacityBytes: number, clock: Clock) {
		this.capacityBytes = capacityBytes;
		this.#clock = clock;
	}

	tryAcquire(sizes: readonly number[]): MemoryLease | null {
		return this.#waiters.length > 0 ? null : this.#take(sizes);
	}

	acquire(sizes: readonly number[], options: { timeoutMs: number; signal?: AbortSignal }): Promise<MemoryLease> {
		if (total(sizes) > this.capacityBytes) return Promise.reject(new DistroError('exhausted', 'it can never fit'));
		const now = this.tryAcquire(sizes);
		if (now !== null) return Promise.resolve(now);
		return new Promise((resolve, reject) => {
			const { signal } = options;
			const leave = (error: DistroError) => {
				const at = this.#waiters.indexOf(waiter);
				if (at < 0) return;
				this.#waiters.splice(at, 1);
				cancel();
				reject(error);
				this.#serve();
			};
			const cancel = this.#clock.schedule(options.timeoutMs, () =>
				leave(new DistroError('unavailable', 'the memory budget is in use')),
			);
			const waiter: Waiter = {
				sizes,
				resolve: (lease) => {
					cancel();
					resolve(lease);
				},
			};
			this.#waiters.push(waiter);
			signal?.addEventListener('abort', () => leave(new DistroError('canceled', 'canceled while waiting for memory')));
		});
	}

	#serve(): void {
		for (let first = this.#waiters[0]; first !== undefined; first = this.#waiters[0]) {
			const lease = this.#take(first.sizes);
			if (lease === null) return;
			this.#waiters.shift();
			first.resolve(lease);
		}
	}

	#take(sizes: readonly number[]): MemoryLease | null {
		const bytes = total(sizes);
		if (this.usedBytes + bytes > this.capacityBytes) return null;
		this.usedBytes += bytes;
		const slots = sizes.map((size) => spare.get(size)?.pop() ?? Buffer.alloc(size, SPOILT));
		let isReleased = false;
		return {
			slots,
			release: () => {
				if (isReleased) return;
				isReleased = true;
				this.usedBytes -= bytes;
				for (const slot of slots) {
					slot.fill(SPOILT);
					const list = spare.get(slot.length) ?? [];
					spare.set(slot.length, list);
					if (list.length < 16) list.push(slot);
				}
				this.#serve();
			},
		};
	}
}

function total(sizes: readonly number[]): number {
	return sizes.reduce((sum, size) => sum + size, 0);
}
