/** Seeded chance: the same seed and name give the same throws on every machine. */

import { createHash } from 'node:crypto';

/** sfc32 (Chris Doty-Humphrey, PractRand): quick, and good enough for choices that only have to be varied. */
export class Dice {
	readonly #seed: string;
	readonly #state: Uint32Array;

	constructor(seed: string) {
		this.#seed = seed;
		const digest = createHash('sha256').update(seed).digest();
		this.#state = Uint32Array.from([0, 4, 8, 12], (at) => digest.readUInt32LE(at));
	}

	/** A source of its own: what one part of the world draws does not shift what another gets. */
	fork(name: string): Dice {
		return new Dice(`${this.#seed}/${name}`);
	}

	/** 0 to 1. */
	next(): number {
		const state = this.#state;
		const [a = 0, b = 0, c = 0, count = 0] = state;
		const drawn = (a + b + count) >>> 0;
		state[3] = count + 1;
		state[0] = b ^ (b >>> 9);
		state[1] = c + (c << 3);
		state[2] = ((c << 21) | (c >>> 11)) + drawn;
		return drawn / 0x1_0000_0000;
	}

	chance(probability: number): boolean {
		return this.next() < probability;
	}

	between(least: number, most: number): number {
		return least + this.next() * (most - least);
	}

	/** 0 to count − 1. */
	below(count: number): number {
		return Math.floor(this.next() * count);
	}

	pick<T>(list: readonly T[]): T | undefined {
		return list[this.below(list.length)];
	}

	/** In another order; at most `count` of them. */
	some<T>(list: readonly T[], count = list.length): T[] {
		const rest = [...list];
		const drawn: T[] = [];
		while (drawn.length < count && rest.length > 0) drawn.push(...rest.splice(this.below(rest.length), 1));
		return drawn;
	}

	weighted<T>(choices: readonly (readonly [number, T])[]): T {
		let at = this.next() * choices.reduce((sum, [weight]) => sum + weight, 0);
		for (const [weight, choice] of choices) {
			at -= weight;
			if (at < 0) return choice;
		}
		return (choices.at(-1) as readonly [number, T])[1];
	}
}
