/** The report against the plainest count there is: object by object, segment by segment. */

import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { WorkerId } from '../ids.ts';
import { redundancyReport, type SetCount, type SpreadCount, setsInTheWay } from './redundancy-report.ts';

const WORKERS = Array.from({ length: 7 }, (_, index) => index.toString(16).padStart(32, '0') as WorkerId);

interface PlainSegment {
	readonly k: number;
	readonly n: number;
	readonly workers: readonly WorkerId[];
}

const anySegment: fc.Arbitrary<PlainSegment> = fc
	.record({ k: fc.constantFrom(1, 2, 4), m: fc.constantFrom(1, 2), lost: fc.nat(3), turn: fc.nat(6) })
	.map(({ k, m, lost, turn }) => {
		const n = k + m;
		const placed = Math.max(0, n - lost);
		const workers = Array.from({ length: placed }, (_, i) => WORKERS[(turn + i) % WORKERS.length] as WorkerId);
		return { k, n, workers: workers.toSorted() };
	});
const anyObjects = fc.array(fc.array(anySegment, { maxLength: 4 }), { maxLength: 30 });
const anyLive = fc.subarray(WORKERS);

function counted(objects: readonly (readonly PlainSegment[])[]): { sets: SetCount[]; spreads: SpreadCount[] } {
	const sets = new Map<string, SetCount>();
	const spreads = new Map<string, SpreadCount>();
	for (const segments of objects) {
		for (const segment of segments) {
			const setId = JSON.stringify(segment);
			const count = (sets.get(setId)?.segments ?? 0) + 1;
			sets.set(setId, { ...segment, setId, segments: count, bytes: count * 100 });
		}
		const setIds = [...new Set(segments.map((segment) => JSON.stringify(segment)))].sort();
		const objectCount = (spreads.get(setIds.join())?.objects ?? 0) + 1;
		spreads.set(setIds.join(), { setIds, objects: objectCount, bytes: objectCount * 10 });
	}
	return { sets: [...sets.values()], spreads: [...spreads.values()] };
}

test('counts say what a walk over all objects says', () => {
	fc.assert(
		fc.property(anyObjects, anyLive, (objects, live) => {
			const report = redundancyReport(counted(objects), (workerId) => live.includes(workerId));
			const plain = objects.map((segments) => {
				const spares = segments.map(({ k, workers }) => workers.filter((id) => live.includes(id)).length - k);
				const whole = segments.every(({ n, workers }) => workers.filter((id) => live.includes(id)).length === n);
				const spare = Math.min(...spares);
				const health = whole ? 'healthy' : spare < 0 ? 'unrecoverable' : worstOf(segments, live);
				return { spare: Math.max(-1, spare), health, inline: segments.length === 0 };
			});
			const having = (health: string) => plain.filter((object) => object.health === health).length;
			expect(report.objects).toBe(objects.length);
			expect(report.inline).toBe(plain.filter(({ inline }) => inline).length);
			expect(report.byHealth).toEqual({
				healthy: having('healthy'),
				degraded: having('degraded'),
				at_risk: having('at_risk'),
				unrecoverable: having('unrecoverable'),
			});
			const sharded = plain.filter(({ inline }) => !inline);
			for (const [spare, count] of report.bySpare) {
				expect(count).toBe(sharded.filter((object) => object.spare === spare).length);
			}
			expect([...report.bySpare.values()].reduce((sum, count) => sum + count, 0)).toBe(sharded.length);
			const least = Math.max(0, Math.min(...sharded.map(({ spare }) => spare)));
			expect(report.failureTolerance).toBe(sharded.length === 0 ? null : least);
			const risky = plain.filter(({ health }) => health === 'at_risk' || health === 'unrecoverable').length;
			expect(report.bytesAtRisk).toBe(10 * risky);
		}),
		{ seed: 20_261_124, numRuns: 300 },
	);
});

/** Of an object that is not whole and has no segment below k. */
function worstOf(segments: readonly PlainSegment[], live: readonly WorkerId[]): string {
	const risky = segments.some(({ k, n, workers }) => {
		const placed = workers.filter((id) => live.includes(id)).length;
		return placed < n && placed - k <= 1;
	});
	return risky ? 'at_risk' : 'degraded';
}

test('what stands in the way of stopping workers is every segment that would fall under k plus the reserve, and no other', () => {
	fc.assert(
		fc.property(anyObjects, anyLive, fc.subarray(WORKERS), fc.nat(2), (objects, live, stop, reserve) => {
			const { sets } = counted(objects);
			const found = setsInTheWay(sets, { stop, reserve, isLive: (workerId) => live.includes(workerId) });
			const plain = objects.flat().filter(({ k, workers }) => {
				const left = workers.filter((id) => live.includes(id) && !stop.includes(id)).length;
				return workers.some((id) => stop.includes(id)) && left < k + reserve;
			});
			expect(found.reduce((sum, { segments }) => sum + segments, 0)).toBe(plain.length);
		}),
		{ seed: 20_261_124, numRuns: 300 },
	);
});
