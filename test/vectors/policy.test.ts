/**
 * Golden choices of (n, k) with their sentences, and golden worker sets: another release must not place differently by
 * accident, because counts by set and what `explain` says are read for years.
 */

import { createHash } from 'node:crypto';
import { test } from 'vitest';
import { DistroError } from '../../core/errors.ts';
import type { WorkerId } from '../../core/ids.ts';
import { placeShards } from '../../core/model/placement.ts';
import {
	chooseRedundancy,
	DEFAULT_POLICY,
	type PolicyWorker,
	quorum,
	type RedundancyPolicy,
	type SegmentSize,
} from '../../core/model/redundancy.ts';
import { countingRandom, type Golden, golden } from './golden.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;

const SIZES: Record<string, SegmentSize> = {
	'64 KiB': { sizeBytes: 64 * KiB, cells: 1, ended: true },
	'128 KiB': { sizeBytes: 128 * KiB, cells: 2, ended: true },
	'192 KiB': { sizeBytes: 192 * KiB, cells: 3, ended: true },
	'1 MiB': { sizeBytes: MiB, cells: 4, ended: true },
	'16 MiB': { sizeBytes: 16 * MiB, cells: 64, ended: true },
	'64 MiB': { sizeBytes: 64 * MiB, cells: 253, ended: true },
	'the last cell of 64 MiB': { sizeBytes: 64 * MiB, cells: 1, ended: true },
	unknown: { sizeBytes: null, cells: 9, ended: false },
};

function cluster(count: number, change: (index: number) => Partial<PolicyWorker> = () => ({})): PolicyWorker[] {
	return Array.from({ length: count }, (_, index) => ({
		workerId: createHash('sha256').update(`worker ${index}`).digest('hex').slice(0, 32) as WorkerId,
		name: `worker-${index}`,
		zone: '',
		state: 'ready',
		bytesFree: 100 * GiB,
		...change(index),
	}));
}

function choice(
	size: SegmentSize,
	workers: readonly PolicyWorker[],
	policy: RedundancyPolicy = DEFAULT_POLICY,
): Golden {
	try {
		const { n, k, because } = chooseRedundancy(size, workers, policy);
		return { n, k, quorum: quorum(n, k), because };
	} catch (error) {
		if (!(error instanceof DistroError)) throw error;
		return { refused: error.kind, because: error.message };
	}
}

const large = SIZES['64 MiB'] as SegmentSize;
const zones = (...sizes: number[]) => {
	const names = sizes.flatMap((size, zone) => new Array<string>(size).fill(`zone-${zone}`));
	return cluster(names.length, (index) => ({ zone: names[index] }));
};
const first = (count: number, change: Partial<PolicyWorker>) => (index: number) => (index < count ? change : {});

test('policy', () => {
	golden('policy', {
		healthy: Array.from({ length: 14 }, (_, i) => ({
			workers: i + 1,
			sizes: Object.fromEntries(Object.entries(SIZES).map(([name, size]) => [name, choice(size, cluster(i + 1))])),
		})),
		others: {
			'three zones of two': choice(large, zones(2, 2, 2)),
			'two zones of three': choice(large, zones(3, 3)),
			'a zone of five and one of one': choice(large, zones(5, 1)),
			'two zones of six': choice(large, zones(6, 6)),
			'six workers, one suspect': choice(large, cluster(6, first(1, { state: 'suspect' }))),
			'six workers, two lost': choice(large, cluster(6, first(2, { state: 'lost' }))),
			'six workers, four lost': choice(large, cluster(6, first(4, { state: 'lost' }))),
			'six workers, five lost': choice(large, cluster(6, first(5, { state: 'lost' }))),
			'six workers, one cordoned, one draining': choice(
				large,
				cluster(6, (index) => (index === 0 ? { state: 'cordoned' } : index === 1 ? { state: 'draining' } : {})),
			),
			'six workers, two full': choice(large, cluster(6, first(2, { bytesFree: MiB }))),
			'six workers, all full': choice(large, cluster(6, first(6, { bytesFree: MiB }))),
			'six workers, one slow': choice(
				large,
				cluster(6, (index) => ({ latencyMs: index === 0 ? 5_000 : 3 })),
			),
			'twelve workers, all slow': choice(large, cluster(12, first(12, { latencyMs: 800 }))),
			'eight workers that fail often': choice(large, cluster(8, first(8, { annualFailureRate: 0.5 }))),
			'three workers, a target of 1e-10': choice(large, cluster(3), { ...DEFAULT_POLICY, dataLossPerYear: 1e-10 }),
			'four workers, a target of 1e-30': choice(large, cluster(4), { ...DEFAULT_POLICY, dataLossPerYear: 1e-30 }),
			'nine workers, 6+3 fixed': choice(large, cluster(9), {
				...DEFAULT_POLICY,
				fixed: { dataShards: 6, parityShards: 3 },
			}),
			'eight workers, 6+3 fixed': choice(large, cluster(8), {
				...DEFAULT_POLICY,
				fixed: { dataShards: 6, parityShards: 3 },
			}),
			'no worker': choice(large, []),
		},
		sets: [
			{ workers: zones(3, 3, 3), n: 6 },
			{ workers: cluster(15), n: 6 },
		].map(({ workers, n }) => {
			const random = countingRandom(0);
			return {
				workers: workers.map(({ workerId, zone }) => ({ workerId, zone })),
				n,
				placements: Array.from({ length: 4 }, () => placeShards({ n, workers, random })),
			};
		}),
	});
});
