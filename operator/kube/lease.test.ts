import { expect, onTestFinished, test } from 'vitest';
import type { DistroError } from '../../core/errors.ts';
import { draw, type ManualClock, seededRandom } from '../../test/support/clock.ts';
import { pass, until } from '../../test/support/fake-api/pace.ts';
import { type FakeKube, fakeKube } from '../../test/support/fake-api/setup.ts';
import { Access } from './access.ts';
import { KubeClient } from './client.ts';
import { LEASE_MS, LeaderElection, RENEW_MS, RETRY_MS } from './lease.ts';
import { LEASES } from './resources.ts';

const LEASE = { namespace: 'distro', name: 'distro-operator' };

function candidate({ api, clock }: FakeKube, identity: string, seed = identity) {
	const access = Access.fromText(api.kubeconfig(), clock);
	const told: string[] = [];
	const failures: DistroError[] = [];
	const election = new LeaderElection({
		client: new KubeClient({ access, clock }),
		lease: LEASE,
		identity,
		clock,
		random: seededRandom(seed),
		onElected: () => told.push('elected'),
		onLost: (why) => told.push(`lost: ${why}`),
		onFailure: (error) => failures.push(error),
	});
	onTestFinished(async () => {
		let stopped = false;
		const stop = election.stop().finally(() => {
			stopped = true;
		});
		// Requests that hang end by their deadline only.
		await until(() => stopped, { clock, stepMs: 1_000 });
		await stop;
		access.close();
	});
	return { election, told, failures };
}

test('nobody has it: taken at once, renewed every two seconds', async () => {
	const kube = await fakeKube();
	const { api, clock, client } = kube;
	const { election, told } = candidate(kube, 'one');
	expect(election.leading).toBe(false);
	election.start();
	await until(() => told.length > 0);
	const first = await client.get(LEASES, LEASE);
	expect(first?.spec).toMatchObject({ holderIdentity: 'one', leaseDurationSeconds: 15, leaseTransitions: 0 });
	await pass(5 * RETRY_MS, { clock, stepMs: 500, api });
	const later = await client.get(LEASES, LEASE);
	expect(later?.spec?.acquireTime).toBe(first?.spec?.acquireTime);
	expect(Date.parse(later?.spec?.renewTime ?? '') - Date.parse(first?.spec?.renewTime ?? '')).toBe(5 * RETRY_MS);
	expect(api.writes.length).toBe(6);
	expect([told, election.leading, election.holder]).toEqual([['elected'], true, 'one']);
});

test('a holder that went without a word is followed after 15 s on the own clock', async () => {
	const kube = await fakeKube();
	const { api, clock, client } = kube;
	// What it wrote of times is of no interest: this one's clock is a year ahead.
	const renewTime = new Date(clock.nowMs() + 365 * 86_400_000).toISOString();
	const spec = { holderIdentity: 'gone', leaseDurationSeconds: 15, renewTime, leaseTransitions: 4 };
	api.put(LEASES, { apiVersion: 'coordination.k8s.io/v1', kind: 'Lease', metadata: { ...LEASE }, spec });
	const { election, told } = candidate(kube, 'two');
	election.start();
	await until(() => election.holder === 'gone');
	await pass(LEASE_MS - 500, { clock, stepMs: 500, api });
	expect(told).toEqual([]);
	await pass(3 * RETRY_MS, { clock, stepMs: 500, api });
	expect(told).toEqual(['elected']);
	expect((await client.get(LEASES, LEASE))?.spec).toMatchObject({ holderIdentity: 'two', leaseTransitions: 5 });
});

test('two that see at the same moment that it is free: one has it', async () => {
	const kube = await fakeKube();
	const { api, clock } = kube;
	const spec = { holderIdentity: 'gone' };
	api.put(LEASES, { apiVersion: 'coordination.k8s.io/v1', kind: 'Lease', metadata: { ...LEASE }, spec });
	const both = ['one', 'two'].map((identity) => candidate(kube, identity, 'same'));
	for (const { election } of both) election.start();
	await until(() => both.every(({ election }) => election.holder === 'gone'));
	// Both have read before either writes.
	let go = () => {};
	const until15s = new Promise<void>((resolve) => {
		go = resolve;
	});
	api.trouble = ({ verb }) => (verb === 'patch' ? { do: 'hold', until: until15s } : null);
	const patches = () => api.requests.filter(({ verb }) => verb === 'patch').length;
	await until(() => patches() === 2, { clock, stepMs: 200, api });
	api.trouble = () => null;
	go();
	await pass(RETRY_MS, { clock, stepMs: 200, api });
	expect(both.map(({ told }) => told.length).sort()).toEqual([0, 1]);
	expect(both.filter(({ election }) => election.leading).length).toBe(1);
});

test('a renewal counts from when it was sent, not from when its answer came', async () => {
	const kube = await fakeKube();
	const { api, clock } = kube;
	const { election } = candidate(kube, 'one');
	let go = () => {};
	const answered = new Promise<void>((resolve) => {
		go = resolve;
	});
	api.fail({ verb: 'create' }, { do: 'hold', until: answered, after: true });
	election.start();
	await until(() => api.writes.length === 1);
	clock.advance(2_900);
	go();
	await until(() => election.leading);
	api.trouble = () => ({ do: 'cut' });
	await pass(RENEW_MS - 2_900 - 1, { clock, stepMs: 100, api });
	expect(election.leading).toBe(true);
	await pass(1, { clock, stepMs: 1, api });
	expect(election.leading).toBe(false);
});

test('given back at a stop, the next one has it within its next try', async () => {
	const kube = await fakeKube();
	const { api, clock } = kube;
	const one = candidate(kube, 'one');
	one.election.start();
	await until(() => one.told.length > 0);
	const two = candidate(kube, 'two');
	two.election.start();
	await until(() => two.election.holder === 'one');
	await one.election.stop();
	expect([one.election.leading, one.told]).toEqual([false, ['elected']]);
	await pass(1.3 * RETRY_MS, { clock, stepMs: 200, api });
	expect(two.told).toEqual(['elected']);
});

test('a stop of one that does not hold it leaves it alone', async () => {
	const kube = await fakeKube();
	const { api, client } = kube;
	const one = candidate(kube, 'one');
	one.election.start();
	await until(() => one.told.length > 0);
	const two = candidate(kube, 'two');
	two.election.start();
	await until(() => two.election.holder === 'one');
	const writes = api.writes.length;
	await two.election.stop();
	expect(api.writes.length).toBe(writes);
	expect((await client.get(LEASES, LEASE))?.spec?.holderIdentity).toBe('one');
});

test.each(['hang', 'cut'] as const)(
	'not renewed for 10 s (requests %s): lost, once, before another may take it',
	async (fault) => {
		const kube = await fakeKube();
		const { api, clock } = kube;
		const { election, told } = candidate(kube, 'one');
		election.start();
		await until(() => election.leading);
		api.trouble = () => ({ do: fault });
		await pass(RENEW_MS - 500, { clock, stepMs: 500, api });
		expect([told, election.leading]).toEqual([['elected'], true]);
		await pass(1_000, { clock, stepMs: 500, api });
		expect([told, election.leading]).toEqual([['elected', 'lost: not renewed for 10 s'], false]);
		api.trouble = () => null;
		await pass(2 * LEASE_MS, { clock, stepMs: 500, api });
		expect(told.length).toBe(2);
	},
);

test('two failed renewals are no loss', async () => {
	const kube = await fakeKube();
	const { api, clock } = kube;
	const { election, told, failures } = candidate(kube, 'one');
	election.start();
	await until(() => election.leading);
	api.fail({ verb: 'patch' }, { do: 'answer', status: 500 });
	api.fail({ verb: 'get' }, { do: 'hang' });
	await pass(5 * RENEW_MS, { clock, stepMs: 500, api });
	expect([told, election.leading]).toEqual([['elected'], true]);
	expect(failures.map(({ kind }) => kind).sort()).toEqual(['timeout', 'unavailable']);
});

test('taken by force by another: lost at the next look', async () => {
	const kube = await fakeKube();
	const { api, clock, client } = kube;
	const { election, told } = candidate(kube, 'one');
	election.start();
	await until(() => election.leading);
	await client.patch(LEASES, LEASE, { merge: { spec: { holderIdentity: 'human' } } });
	await pass(2 * RETRY_MS, { clock, stepMs: 500, api });
	expect([told, election.leading]).toEqual([['elected', 'lost: human holds it'], false]);
});

test('frozen for longer than its Lease, it knows without asking anybody', async () => {
	const kube = await fakeKube();
	const { election } = candidate(kube, 'one');
	election.start();
	await until(() => election.leading);
	const clock = kube.clock as ManualClock & { monotonicMs: () => number };
	const thawedMs = clock.monotonicMs() + RENEW_MS;
	clock.monotonicMs = () => thawedMs;
	expect(election.leading).toBe(false);
});

test.each(['1', '2', '3', '4'])(
	'any faults (seed %s): never two at once, and one again when they end',
	async (seed) => {
		const kube = await fakeKube();
		const { api, clock } = kube;
		const random = seededRandom(`lease ${seed}`);
		const candidates = ['one', 'two', 'three'].map((name) => candidate(kube, `${name}-${seed}`));
		for (const { election } of candidates) election.start();
		api.trouble = ({ verb }) => {
			const dice = draw(random);
			if (dice < 0.15) return { do: 'hang' };
			if (dice < 0.25) return { do: 'cut' };
			if (dice < 0.35) return { do: 'cut', after: verb !== 'get' };
			return dice < 0.45 ? { do: 'answer', status: 500, after: true } : null;
		};
		let elections = 0;
		let running = candidates;
		for (let step = 0; step < 400; step++) {
			await pass(500, { clock, stepMs: 500, api });
			expect(running.filter(({ election }) => election.leading).length).toBeLessThanOrEqual(1);
			// Who lost it exits, and comes back as another.
			for (const lost of running.filter(({ told }) => told.length > 1)) {
				elections++;
				const next = candidate(kube, `again-${elections}-${seed}`);
				next.election.start();
				running = [...running.filter((other) => other !== lost), next];
			}
		}
		expect(elections).toBeGreaterThan(0);
		api.trouble = () => null;
		await until(() => running.some(({ election }) => election.leading), { clock, stepMs: 500, api });
	},
);
