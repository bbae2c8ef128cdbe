import { describe, expect, test } from 'vitest';
import {
	annualFailureRate,
	availability,
	DEFAULT_AFR,
	formatHistory,
	NEW_HISTORY,
	observed,
	parseHistory,
} from './history.ts';

const HOUR_MS = 60 * 60_000;
const DAY_MS = 24 * HOUR_MS;
const seen = { observedMs: HOUR_MS, isOnline: true, losses: 0, audits: {} };

function watched(days: number, each: Partial<typeof seen>): typeof NEW_HISTORY {
	let history = NEW_HISTORY;
	for (let day = 0; day < days; day++) history = observed(history, { ...seen, observedMs: DAY_MS, ...each });
	return history;
}

describe('the failure rate', () => {
	test('is the default for a new worker, and falls slowly while nothing happens', () => {
		expect(annualFailureRate(NEW_HISTORY)).toBeCloseTo(DEFAULT_AFR, 12);
		const steady = annualFailureRate(watched(90, {}));
		expect(steady).toBeLessThan(DEFAULT_AFR);
		expect(steady).toBeGreaterThan(DEFAULT_AFR / 2);
	});

	test('rises with losses and bad shards, and fades again', () => {
		const lost = observed(watched(10, {}), { ...seen, losses: 1 });
		expect(annualFailureRate(lost)).toBeGreaterThan(0.4);
		const rotten = observed(NEW_HISTORY, { ...seen, audits: { corrupt: 2 } });
		expect(annualFailureRate(rotten)).toBeGreaterThan(5 * DEFAULT_AFR);
		let mended = lost;
		for (let day = 0; day < 180; day++) mended = observed(mended, { ...seen, observedMs: DAY_MS });
		expect(annualFailureRate(mended)).toBeLessThan(1.5 * DEFAULT_AFR);
	});

	test('time-outs and absences are no failures of the disk', () => {
		const away = observed(NEW_HISTORY, { ...seen, audits: { timeout: 50, offline: 50 } });
		expect(annualFailureRate(away)).toBeLessThanOrEqual(DEFAULT_AFR);
	});
});

test('availability follows what was seen', () => {
	expect(availability(NEW_HISTORY)).toBeCloseTo(0.995, 9);
	expect(availability(watched(20, {}))).toBeGreaterThan(0.999);
	expect(availability(watched(20, { isOnline: false }))).toBeLessThan(0.06);
});

test('what is written can be read, and what can not be read is as if nothing were known', () => {
	const history = observed(watched(3, {}), { ...seen, losses: 1, audits: { ok: 7, missing: 1 } });
	expect(parseHistory(formatHistory(history))).toEqual(history);
	for (const text of ['', '{', 'null', '{"observedMs":-1}', '[]']) expect(parseHistory(text)).toEqual(NEW_HISTORY);
});
