import { expect, onTestFinished, test } from 'vitest';
import type { DistroError } from '../../core/errors.ts';
import { seededRandom } from '../../test/support/clock.ts';
import { pass, until } from '../../test/support/fake-api/pace.ts';
import { type FakeKube, fakeKube } from '../../test/support/fake-api/setup.ts';
import { EventRecorder, REMEMBERED_MAX, REWRITE_MS, SAME_MS } from './events.ts';
import type { Model } from './objects.ts';
import { EVENTS } from './resources.ts';

const DEMO = {
	apiVersion: 'distro.dev/v1alpha1',
	kind: 'DistroCluster',
	metadata: { namespace: 'a', name: 'demo', uid: 'u-1', resourceVersion: '7' },
};
const WAITS = { type: 'Warning', reason: 'RolloutBlocked', action: 'Rollout', note: 'worker-3 is not ready' } as const;

function recorder({ client, clock }: FakeKube) {
	const failures: DistroError[] = [];
	const events = new EventRecorder({
		client,
		clock,
		random: seededRandom('events'),
		instance: 'operator-0',
		onFailure: (error) => failures.push(error),
	});
	onTestFinished(() => events.stop(0));
	return { events, failures };
}

function written({ api }: FakeKube) {
	return api.objects.list(EVENTS) as unknown as NonNullable<typeof EVENTS.object>[];
}

test('an event says of what, what, why, and by whom', async () => {
	const kube = await fakeKube();
	const { events } = recorder(kube);
	events.tell(DEMO, WAITS);
	await until(() => written(kube).length === 1);
	expect(written(kube)[0]).toMatchObject({
		...WAITS,
		metadata: { namespace: 'a', name: expect.stringMatching(/^demo\.[0-9a-f]{16}$/) },
		regarding: { apiVersion: DEMO.apiVersion, kind: DEMO.kind, ...DEMO.metadata },
		eventTime: '2026-01-01T00:00:00.000000Z',
		reportingController: 'distro.dev/operator',
		reportingInstance: 'operator-0',
	});
	expect(written(kube)[0]?.series).toBeUndefined();
});

test('the same within ten minutes is one event with a series, written now and then only', async () => {
	const kube = await fakeKube();
	const { api, clock } = kube;
	const { events } = recorder(kube);
	for (let second = 0; second < 120; second++) {
		events.tell(DEMO, WAITS);
		await pass(1_000, { clock, stepMs: 1_000, api });
	}
	await pass(REWRITE_MS, { clock, stepMs: REWRITE_MS, api });
	expect(written(kube).length).toBe(1);
	expect(written(kube)[0]?.series).toEqual({ count: 120, lastObservedTime: '2026-01-01T00:01:59.000000Z' });
	expect(api.writes.length).toBeLessThanOrEqual(120_000 / REWRITE_MS + 2);
});

test('another note, another object, or ten minutes later: another event', async () => {
	const kube = await fakeKube();
	const { api, clock } = kube;
	const { events } = recorder(kube);
	events.tell(DEMO, WAITS);
	events.tell(DEMO, { ...WAITS, note: 'worker-2 is not ready' });
	events.tell({ ...DEMO, metadata: { ...DEMO.metadata, uid: 'u-2' } }, WAITS);
	await until(() => written(kube).length === 3);
	await pass(SAME_MS, { clock, stepMs: SAME_MS, api });
	events.tell(DEMO, WAITS);
	await until(() => written(kube).length === 4);
	expect(written(kube).filter(({ series }) => series !== undefined)).toEqual([]);
});

test('an event that the API server has forgotten is written anew, with its count', async () => {
	const kube = await fakeKube();
	const { api, clock } = kube;
	const { events, failures } = recorder(kube);
	events.tell(DEMO, WAITS);
	await until(() => written(kube).length === 1);
	await pass(1, { clock, stepMs: 1, api });
	const { name } = (written(kube)[0] as Model<object>).metadata;
	api.objects.delete({ resource: EVENTS, namespace: 'a', name });
	events.tell(DEMO, WAITS);
	await pass(REWRITE_MS, { clock, stepMs: REWRITE_MS, api });
	await until(() => written(kube).length === 1);
	expect([written(kube)[0]?.series?.count, failures]).toEqual([2, []]);
});

test('one whose answer was lost is not lost, nor there twice', async () => {
	const kube = await fakeKube();
	const { api, clock } = kube;
	const { events, failures } = recorder(kube);
	api.fail({ verb: 'create' }, { do: 'cut', after: true });
	events.tell(DEMO, WAITS);
	await until(() => failures.length === 1);
	events.tell(DEMO, WAITS);
	await pass(REWRITE_MS, { clock, stepMs: REWRITE_MS, api });
	await until(() => written(kube)[0]?.series?.count === 2);
	expect([written(kube).length, failures.length]).toEqual([1, 1]);
});

test('an API server that hangs or refuses holds nobody up, and what waits is bounded', async () => {
	const kube = await fakeKube();
	const { api, clock } = kube;
	const { events, failures } = recorder(kube);
	api.trouble = () => ({ do: 'hang' });
	for (let i = 0; i < 3 * REMEMBERED_MAX; i++) events.tell(DEMO, { ...WAITS, note: `worker-${i}` });
	await until(() => api.requests.length === 1);
	api.trouble = () => ({ do: 'answer', status: 403 });
	await until(() => failures.length === REMEMBERED_MAX, { clock, stepMs: 1_000, api });
	expect(failures.map(({ kind }) => kind)).toEqual(['timeout', ...Array(REMEMBERED_MAX - 1).fill('denied')]);
	expect(written(kube)).toEqual([]);
});

test('a note that is too long is cut', async () => {
	const kube = await fakeKube();
	const { events } = recorder(kube);
	events.tell(DEMO, { ...WAITS, note: 'x'.repeat(5_000) });
	await until(() => written(kube).length === 1);
	expect(written(kube)[0]?.note?.length).toBe(1_024);
});

test('a stop writes what still waits, and gives up what hangs', async () => {
	const kube = await fakeKube();
	const { api, clock } = kube;
	const { events } = recorder(kube);
	for (let i = 0; i < 3; i++) events.tell(DEMO, WAITS);
	events.tell(DEMO, { ...WAITS, note: 'another' });
	await events.stop(5_000);
	expect(
		written(kube)
			.map(({ series }) => series?.count ?? 1)
			.sort(),
	).toEqual([1, 3]);
	const later = recorder(kube).events;
	api.trouble = () => ({ do: 'hang' });
	later.tell(DEMO, WAITS);
	const { length } = api.requests;
	await until(() => api.requests.length > length - 1);
	let stopped = false;
	const stop = later.stop(1_000).then(() => {
		stopped = true;
	});
	await until(() => stopped, { clock, stepMs: 100 });
	await stop;
});
