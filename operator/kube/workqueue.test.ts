import fc from 'fast-check';
import { expect, test } from 'vitest';
import { DistroError } from '../../core/errors.ts';
import { ManualClock, seededRandom } from '../../test/support/clock.ts';
import { DELAY_MAX_MS, KEYS_MAX, RETRY_BASE_MS, RETRY_MAX_MS, WorkQueue } from './workqueue.ts';

/** Passes end when the test says so. */
function queue(options: { workers?: number; seed?: string } = {}) {
	const clock = new ManualClock();
	const open = new Map<
		string,
		{ end: (requeueMs?: number) => void; fail: (error: Error) => void; signal: AbortSignal }
	>();
	const begun: string[] = [];
	const failures: { key: string; kind: string; failures: number }[] = [];
	const work = new WorkQueue({
		clock,
		random: seededRandom(options.seed ?? 'queue'),
		workers: options.workers ?? 2,
		work: (key, signal) => {
			expect(open.has(key), `${key} is worked on twice at once`).toBe(false);
			begun.push(key);
			return new Promise((resolve, reject) => {
				const done = () => open.delete(key);
				open.set(key, {
					signal,
					end: (requeueMs) => done() && resolve(requeueMs ?? null),
					fail: (error) => done() && reject(error),
				});
			});
		},
		onFailure: (key, error, count) => failures.push({ key, kind: error.kind, failures: count }),
	});
	const settle = () => new Promise((resolve) => setImmediate(resolve));
	const end = async (key: string, requeueMs?: number) => {
		open.get(key)?.end(requeueMs);
		await settle();
	};
	const fail = async (key: string, error: Error = new DistroError('unavailable', 'no')) => {
		open.get(key)?.fail(error);
		await settle();
	};
	return { work, clock, open, begun, failures, end, fail };
}

test('added ten times, it comes once; added while it runs, once more; then it is forgotten', async () => {
	const { work, begun, end } = queue();
	for (let i = 0; i < 10; i++) work.add('x');
	expect(begun).toEqual(['x']);
	for (let i = 0; i < 10; i++) work.add('x');
	expect(begun).toEqual(['x']);
	await end('x');
	expect(begun).toEqual(['x', 'x']);
	await end('x');
	expect([begun.length, work.size]).toEqual([2, 0]);
});

test('several keys at once, no more than workers, in the order in which they came', async () => {
	const { work, begun, end } = queue({ workers: 2 });
	for (const key of ['a', 'b', 'c', 'd']) work.add(key);
	expect(begun).toEqual(['a', 'b']);
	await end('b');
	expect(begun).toEqual(['a', 'b', 'c']);
	await end('a');
	expect(begun).toEqual(['a', 'b', 'c', 'd']);
});

test('later: the earliest wish counts', async () => {
	const { work, clock, begun, end } = queue();
	work.addAfter('x', 10_000);
	work.addAfter('x', 5_000);
	work.addAfter('x', 20_000);
	clock.advance(4_999);
	expect(begun).toEqual([]);
	clock.advance(1);
	expect(begun).toEqual(['x']);
	work.addAfter('x', 3_000);
	work.addAfter('x', 7_000);
	await end('x', 5_000);
	clock.advance(2_999);
	expect(begun.length).toBe(1);
	clock.advance(1);
	expect(begun.length).toBe(2);
	await end('x', 5_000);
	clock.advance(5_000);
	expect(begun.length).toBe(3);
	await end('x');
	clock.advance(3_600_000);
	expect(begun.length).toBe(3);
});

test('a wish of sixty days is looked at before timers overflow', async () => {
	const { work, clock, begun, end } = queue();
	work.add('x');
	await end('x', 60 * 86_400_000);
	clock.advance(DELAY_MAX_MS - 1);
	expect(begun.length).toBe(1);
	clock.advance(1);
	expect(begun.length).toBe(2);
});

test('failures wait longer and longer, each key for itself; a success forgets them', async () => {
	const { work, clock, begun, failures, end, fail } = queue();
	const waits: number[] = [];
	work.add('x');
	for (let i = 0; i < 14; i++) {
		const before = begun.length;
		await fail('x');
		let ms = 0;
		for (; begun.length === before; ms += 50) clock.advance(50);
		waits.push(ms);
		expect(ms).toBeLessThanOrEqual(Math.min(RETRY_MAX_MS, RETRY_BASE_MS * 2 ** i) + 50);
	}
	expect(Math.max(...waits)).toBeGreaterThan(60_000);
	expect(failures.map(({ failures: count }) => count)).toEqual(waits.map((_, i) => i + 1));
	work.add('y');
	await fail('y');
	clock.advance(RETRY_BASE_MS);
	expect(begun.at(-1)).toBe('y');
	await end('x', 1_000);
	clock.advance(1_000);
	await fail('x');
	expect(failures.at(-1)).toEqual({ key: 'x', kind: 'unavailable', failures: 1 });
});

test('what is added while it waits for a failure comes soon, but does not run in circles', async () => {
	const { work, clock, begun, fail } = queue();
	work.add('x');
	for (let i = 0; i < 12; i++) {
		await fail('x');
		clock.advance(RETRY_MAX_MS);
	}
	await fail('x');
	const { length } = begun;
	for (let ms = 0; ms < RETRY_BASE_MS - 1; ms++) {
		work.add('x');
		clock.advance(1);
	}
	expect(begun.length).toBe(length);
	clock.advance(1);
	expect(begun.length).toBe(length + 1);
});

test('the API server’s Retry-After is kept', async () => {
	const { work, clock, begun, fail } = queue();
	work.add('x');
	await fail('x', new DistroError('unavailable', 'busy', { retryAfterMs: 20_000 }));
	clock.advance(19_999);
	expect(begun.length).toBe(1);
	clock.advance(1);
	expect(begun.length).toBe(2);
});

test('what is thrown that is no DistroError is a bug, and waits like the others', async () => {
	const { work, clock, begun, failures, fail } = queue();
	work.add('x');
	await fail('x', new TypeError('undefined is not a function'));
	clock.advance(RETRY_BASE_MS);
	expect([failures[0]?.kind, begun.length]).toEqual(['internal', 2]);
});

test('a full queue takes no new keys, but those it has', () => {
	const { work } = queue();
	for (let i = 0; i < KEYS_MAX; i++) expect(work.addAfter(`k${i}`, 1_000)).toBe(true);
	expect([work.add('one more'), work.add('k7'), work.size]).toEqual([false, true, KEYS_MAX]);
});

test('stop: nothing begins any more, what runs may end, and is told when it takes too long', async () => {
	const { work, clock, open, begun, end } = queue({ workers: 1 });
	work.add('x');
	work.add('waits for a worker');
	work.addAfter('waits for its time', 1_000);
	let stopped = false;
	const stop = work.stop(5_000).then(() => {
		stopped = true;
	});
	expect([work.add('x'), work.add('late')]).toEqual([false, false]);
	const signal = open.get('x')?.signal;
	clock.advance(4_999);
	expect(signal?.aborted).toBe(false);
	clock.advance(1);
	expect([signal?.aborted, stopped]).toEqual([true, false]);
	await end('x', 100);
	await stop;
	clock.advance(3_600_000);
	expect([begun, work.size]).toEqual([['x'], 0]);
});

const step = fc.record({
	do: fc.constantFrom('add', 'later', 'end', 'fail', 'time'),
	key: fc.constantFrom('a', 'b', 'c'),
	ms: fc.integer({ min: 0, max: 5_000 }),
});

test('in any order: one worker a key (the queue’s work asserts it), and after every add a pass begins', async () => {
	await fc.assert(
		fc.asyncProperty(fc.array(step, { maxLength: 60 }), fc.integer({ min: 1, max: 3 }), async (steps, workers) => {
			const { work, clock, open, begun, end, fail } = queue({ workers });
			/** How many passes of the key had begun when it was last added. */
			const owed = new Map<string, number>();
			const count = (key: string) => begun.filter((other) => other === key).length;
			for (const { do: action, key, ms } of steps) {
				if (action === 'add' || action === 'later') {
					const before = count(key);
					action === 'add' ? work.add(key) : work.addAfter(key, ms);
					if (count(key) === before) owed.set(key, before);
				} else if (action === 'end') await end(key);
				else if (action === 'fail') await fail(key);
				else clock.advance(ms);
				expect(open.size).toBeLessThanOrEqual(workers);
			}
			for (let i = 0; i < 20 || open.size > 0; i++) {
				for (const key of [...open.keys()]) await end(key);
				clock.advance(RETRY_MAX_MS);
			}
			for (const [key, before] of owed) expect(count(key)).toBeGreaterThan(before);
			expect(work.size).toBe(0);
		}),
		{ numRuns: 200 },
	);
});
