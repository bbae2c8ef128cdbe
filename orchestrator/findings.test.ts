/** Findings: remembered at once when a read saw them, durable when scrubbing or an audit did. */

import { beforeEach, expect, test } from 'vitest';
import { DistroError } from '../core/errors.ts';
import { newId, type ShardId, type WorkerId } from '../core/ids.ts';
import { ManualClock, seededRandom } from '../test/support/clock.ts';
import { Findings } from './findings.ts';
import type { Finding, MetadataStore } from './store.ts';

const random = seededRandom('findings');
const finding = () => ({
	shardId: newId<ShardId>(random),
	workerId: newId<WorkerId>(random),
	kind: 'corrupt' as const,
	detail: 'test',
});
let written: Finding[];
/** Placed elsewhere by now. */
let moved: Set<ShardId>;
let failure: DistroError | null;
let reported: WorkerId[];
let findings: Findings;
const clock = new ManualClock();

beforeEach(() => {
	written = [];
	moved = new Set();
	failure = null;
	reported = [];
	const addFindings = async (found: readonly Finding[]) => {
		if (failure !== null) throw failure;
		written.push(...found);
		return found.map(({ shardId }) => shardId).filter((shardId) => !moved.has(shardId));
	};
	findings = new Findings({
		store: { addFindings } as unknown as MetadataStore,
		clock,
		onReport: (_kind, workerId) => reported.push(workerId),
	});
});

test('added: written each time, remembered, and told once', async () => {
	const [one, two] = [finding(), finding()];
	await findings.add([one, two]);
	await findings.add([one]);
	expect(written).toEqual([one, two, one].map((found) => ({ ...found, foundAtMs: clock.nowMs() })));
	expect(reported).toEqual([one.workerId, two.workerId]);
	expect(findings.has(one.shardId)).toBe(true);
});

test('added and not written: told to who added it, and not remembered', async () => {
	failure = new DistroError('unavailable', 'the metadata store is away');
	const one = finding();
	await expect(findings.add([one])).rejects.toBe(failure);
	expect(findings.has(one.shardId)).toBe(false);
	expect(reported).toEqual([]);
});

test('a shard that was rebuilt elsewhere and is found once more is not told again', async () => {
	const one = finding();
	await findings.add([one]);
	findings.forget(one.shardId);
	expect(findings.has(one.shardId)).toBe(false);
	await findings.add([one]);
	expect(reported).toHaveLength(1);
});

test('what is not placed there any more is not told, nor remembered: a read that began before a move', async () => {
	const [read, audited] = [finding(), finding()];
	moved = new Set([read.shardId, audited.shardId]);
	findings.report(read);
	expect(findings.has(read.shardId)).toBe(true);
	await expect.poll(() => findings.has(read.shardId)).toBe(false);
	await findings.add([audited]);
	expect(findings.has(audited.shardId)).toBe(false);
	expect(reported).toEqual([]);
	moved.clear();
	await findings.add([read]);
	expect(reported).toEqual([read.workerId]);
});

test('a read’s report holds up nobody, is written once, and again when it was not written', async () => {
	const one = finding();
	findings.report(one);
	findings.report(one);
	expect(written).toHaveLength(1);
	failure = new DistroError('unavailable', 'the metadata store is away');
	const two = finding();
	findings.report(two);
	await expect.poll(() => findings.has(two.shardId)).toBe(false);
	failure = null;
	findings.report(two);
	expect(written.at(-1)).toMatchObject(two);
});
