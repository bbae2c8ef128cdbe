/** Whom a started orchestrator waits for, and for how long. */

import { beforeEach, expect, test } from 'vitest';
import type { WorkerId } from '../core/ids.ts';
import { LOST_AFTER_MS } from '../core/limits.ts';
import { ManualClock } from '../test/support/clock.ts';
import { waitForKnownWorkers } from './readiness.ts';

const A = 'a'.repeat(32) as WorkerId;
const B = 'b'.repeat(32) as WorkerId;
let clock: ManualClock;
let ready: Set<WorkerId>;

beforeEach(() => {
	clock = new ManualClock();
	ready = new Set();
});

function wait(known: [WorkerId, number][]) {
	const workers = known.map(([workerId, lastSeenMs]) => ({ workerId, lastSeenMs }));
	return waitForKnownWorkers(workers, { clock, isReady: (workerId) => ready.has(workerId) });
}

test('a fresh store has nobody to wait for', () => {
	expect(wait([])()).toEqual([]);
});

test('all of before are awaited, and not once more when they leave', () => {
	const missing = wait([
		[A, 0],
		[B, LOST_AFTER_MS],
	]);
	expect(missing()).toEqual([A, B]);
	ready.add(A);
	expect(missing()).toEqual([B]);
	ready.delete(A);
	ready.add(B);
	expect(missing()).toEqual([]);
});

test('who was gone for long before is not awaited', () => {
	const missing = wait([
		[A, 0],
		[B, LOST_AFTER_MS + 1],
	]);
	expect(missing()).toEqual([B]);
});

test('after five seconds it waits no more', () => {
	const missing = wait([[A, 0]]);
	clock.advance(4_999);
	expect(missing()).toEqual([A]);
	clock.advance(1);
	expect(missing()).toEqual([]);
});
