/** What workers tell of scrubbing: acknowledged when it is durable, and not before. */

import { expect, test } from 'vitest';
import { DistroError } from '../core/errors.ts';
import { newId, type ShardId, type WorkerId } from '../core/ids.ts';
import { seededRandom } from '../test/support/clock.ts';
import { ScrubDesk, type ScrubFinding } from './scrub.ts';
import type { Finding } from './store.ts';

const random = seededRandom('scrub desk');
const workerId = newId<WorkerId>(random);
const report = { sinceMs: 5, pass: 0, shardsDone: 1, shardsTotal: 2, running: true };
const found = (): ScrubFinding => ({ shardId: newId<ShardId>(random), kind: 'corrupt', detail: 'cells 1 of 3' });

/** Adds when it is told to. */
class SlowFindings {
	readonly calls: { findings: readonly Omit<Finding, 'foundAtMs'>[]; settle: (error?: DistroError) => void }[] = [];

	add(findings: readonly Omit<Finding, 'foundAtMs'>[]): Promise<void> {
		return new Promise((resolve, reject) => {
			this.calls.push({ findings, settle: (error) => (error === undefined ? resolve() : reject(error)) });
		});
	}
}

const settled = () => new Promise((done) => setImmediate(done));

test('a finding is acknowledged once, when it is durable; meanwhile it is not written twice', async () => {
	const findings = new SlowFindings();
	const desk = new ScrubDesk({ findings });
	const beat = desk.stream(workerId);
	const [one, two] = [found(), found()];
	expect(beat(report, [one]).acknowledged).toEqual([]);
	expect(beat(report, [one, two]).acknowledged).toEqual([]);
	expect(findings.calls.map((call) => call.findings)).toEqual([[{ ...one, workerId }], [{ ...two, workerId }]]);
	findings.calls[0]?.settle();
	await settled();
	expect(beat(report, [two]).acknowledged).toEqual([one.shardId]);
	expect(beat(report, [two]).acknowledged).toEqual([]);
	expect(findings.calls).toHaveLength(2);
});

test('what could not be written is not acknowledged, and is written when it is told again', async () => {
	const findings = new SlowFindings();
	const beat = new ScrubDesk({ findings }).stream(workerId);
	const finding = found();
	beat(report, [finding]);
	findings.calls[0]?.settle(new DistroError('unavailable', 'the metadata store is away'));
	await settled();
	expect(beat(report, [finding]).acknowledged).toEqual([]);
	expect(findings.calls).toHaveLength(2);
	findings.calls[1]?.settle();
	await settled();
	expect(beat(report, []).acknowledged).toEqual([finding.shardId]);
});

test('orders go with every answer, and reports are kept', () => {
	const desk = new ScrubDesk({ findings: new SlowFindings() });
	const beat = desk.stream(workerId);
	expect(desk.report(workerId)).toBeNull();
	expect(beat(report, [])).toEqual({ acknowledged: [], paused: false, pass: 0, revision: 0 });
	desk.orders = { paused: true, pass: 3, revision: 7 };
	expect(beat({ ...report, sinceMs: 9 }, [])).toEqual({ acknowledged: [], paused: true, pass: 3, revision: 7 });
	expect(desk.report(workerId)).toEqual({ ...report, sinceMs: 9 });
});

test('of a worker’s text not more is kept than people read', () => {
	const findings = new SlowFindings();
	new ScrubDesk({ findings }).stream(workerId)(report, [{ ...found(), detail: 'x'.repeat(100_000) }]);
	expect(findings.calls[0]?.findings[0]?.detail.length).toBe(300);
});

test('a worker that tells more than it may have found does not flood the metadata', async () => {
	const findings = new SlowFindings();
	const beat = new ScrubDesk({ findings }).stream(workerId);
	const written = () => findings.calls.reduce((sum, call) => sum + call.findings.length, 0);
	const many = Array.from({ length: 1_500 }, found);
	for (let i = 0; i < 3; i++) beat(report, many);
	expect(written()).toBe(1_024);
	for (const { settle } of findings.calls) settle();
	await settled();
	expect(beat(report, many.slice(1_024)).acknowledged).toHaveLength(1_024);
	expect(written()).toBe(1_500);
});
