/** A short run of the simulation with seeds that never change; `make sim` runs others. And that a seed is a history. */

import { expect, test } from 'vitest';
import { Dice } from './dice.ts';
import { run } from './simulation.ts';

// Three orchestrators, or one; with and without lost workers, power cuts, pauses.
test.each(['1', '2', '3', '5', '8'])('seed %s: all is as it must be', async (seed) => {
	const { failure, counts } = await run({ seed, steps: 80 });
	expect(failure).toBeNull();
	expect(counts.stored).toBeGreaterThan(5);
	expect(counts.reads).toBeGreaterThan(10);
});

test('the same seed is the same history, another one is not', async () => {
	const [first, second, other] = [
		await run({ seed: 'again', steps: 40 }),
		await run({ seed: 'again', steps: 40 }),
		await run({ seed: 'other', steps: 40 }),
	];
	expect(second).toEqual(first);
	expect(other.hash).not.toBe(first.hash);
});

test('dice are even, and each part of the world has its own', () => {
	const dice = new Dice('dice');
	const counts = [0, 0, 0, 0];
	for (let i = 0; i < 4_000; i++) {
		const at = dice.below(4);
		counts[at] = (counts[at] ?? 0) + 1;
	}
	for (const count of counts) expect(Math.abs(count - 1_000)).toBeLessThan(120);
	expect(dice.fork('a').next()).not.toBe(dice.fork('b').next());
	expect(new Dice('dice').fork('a').next()).toBe(dice.fork('a').next());
});
