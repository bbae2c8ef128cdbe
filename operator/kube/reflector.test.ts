import { expect, onTestFinished, test } from 'vitest';
import type { DistroError } from '../../core/errors.ts';
import { draw, seededRandom } from '../../test/support/clock.ts';
import { pass, until } from '../../test/support/fake-api/pace.ts';
import type { FakeApi } from '../../test/support/fake-api/server.ts';
import { fakeKube } from '../../test/support/fake-api/setup.ts';
import { isNewer, RELIST_MS, Reflector, SILENCE_MS } from './reflector.ts';
import { CONFIG_MAPS } from './resources.ts';
import { type Change, Store } from './store.ts';

async function reflected(options: { seed?: string } = {}) {
	const kube = await fakeKube();
	const { api, client, clock } = kube;
	const store = new Store<NonNullable<typeof CONFIG_MAPS.object>>();
	const failures: DistroError[] = [];
	const reflector = new Reflector({
		client,
		resource: CONFIG_MAPS,
		selection: { namespace: 'a', labelSelector: 'app=distro' },
		store,
		clock,
		random: seededRandom(options.seed ?? 'reflector'),
		onFailure: (error) => failures.push(error),
	});
	reflector.start();
	onTestFinished(() => reflector.stop());
	/** Advances the clock as far as back-offs need. */
	const eventually = (condition: () => boolean) => until(condition, { clock, stepMs: 500, api });
	const verbs = () => api.requests.map(({ verb }) => verb);
	return { ...kube, store, reflector, failures, eventually, verbs };
}

function put(api: FakeApi, name: string, data: Record<string, string> = {}, app = 'distro') {
	const metadata = { namespace: 'a', name, labels: { app } };
	api.put(CONFIG_MAPS, { apiVersion: 'v1', kind: 'ConfigMap', metadata, data });
}

function remove(api: FakeApi, name: string) {
	api.objects.delete({ resource: CONFIG_MAPS, namespace: 'a', name });
}

function names(store: Store<NonNullable<typeof CONFIG_MAPS.object>>): string[] {
	return store.list().map(({ metadata }) => metadata.name);
}

test('lists, then follows: added, changed, deleted, and what leaves the selection', async () => {
	const { api, store, verbs } = await reflected();
	put(api, 'x');
	await until(() => store.synced && api.watches.count() === 1);
	put(api, 'y');
	put(api, 'other', {}, 'not-ours');
	await until(() => names(store).join() === 'x,y');
	put(api, 'y', { a: '1' });
	await until(() => store.get({ namespace: 'a', name: 'y' })?.data?.a === '1');
	put(api, 'x', {}, 'not-ours');
	remove(api, 'y');
	await until(() => store.size === 0);
	expect(verbs()).toEqual(['list', 'watch']);
});

test('goes on where a watch ended, without a list, and misses nothing of the time between', async () => {
	const { api, store, eventually, verbs } = await reflected();
	await until(() => api.watches.count() === 1);
	api.watches.cut();
	put(api, 'x');
	await eventually(() => names(store).join() === 'x');
	api.watches.end();
	put(api, 'y');
	await eventually(() => names(store).join() === 'x,y');
	expect(verbs()).toEqual(['list', 'watch', 'watch', 'watch']);
});

test('a bookmark moves the place to go on from', async () => {
	const { api, store, eventually, verbs } = await reflected();
	await until(() => api.watches.count() === 1);
	put(api, 'other', {}, 'not-ours');
	api.watches.bookmark();
	api.objects.compact();
	put(api, 'x');
	await until(() => store.size === 1);
	api.watches.end();
	put(api, 'y');
	await eventually(() => store.size === 2);
	expect(verbs()).toEqual(['list', 'watch', 'watch']);
});

test('410: lists anew, and hears of what was deleted meanwhile', async () => {
	const { api, clock, store, failures, eventually, verbs } = await reflected();
	put(api, 'x');
	await until(() => api.watches.count() === 1 && store.size === 1);
	const gone: string[] = [];
	store.onChange(({ before, after }) => after === null && before !== null && gone.push(before.metadata.name));
	api.trouble = ({ verb }) => (verb === 'watch' && api.objects.find(X) !== null ? { do: 'cut' } : null);
	api.watches.cut();
	remove(api, 'x');
	put(api, 'y');
	api.objects.compact();
	const startMs = clock.monotonicMs();
	await eventually(() => names(store).join() === 'y');
	expect(clock.monotonicMs() - startMs).toBeLessThan(RELIST_MS / 2);
	expect(gone).toEqual(['x']);
	expect(failures.map(({ kind }) => kind)).toContain('expired');
	expect(verbs().filter((verb) => verb === 'list').length).toBe(2);
});
const X = { resource: CONFIG_MAPS, namespace: 'a', name: 'x' };

test('HTTP 500, at the list and at the watch, is waited out', async () => {
	const { api, store, failures, eventually } = await reflected();
	api.fail({ verb: 'list' }, { do: 'answer', status: 500 }, 3);
	api.fail({ verb: 'watch' }, { do: 'answer', status: 500 }, 3);
	put(api, 'x');
	await eventually(() => api.watches.count() === 1);
	put(api, 'y');
	await eventually(() => names(store).join() === 'x,y');
	expect(failures.length).toBeGreaterThanOrEqual(3);
	expect(new Set(failures.map(({ reason }) => reason))).toEqual(new Set(['InternalError']));
});

test('a restarted API server is found again; its store says synced all the while', async () => {
	const { api, store, failures, eventually } = await reflected();
	put(api, 'x');
	await until(() => store.synced && api.watches.count() === 1);
	await api.down();
	await eventually(() => failures.length > 5);
	expect([store.synced, store.size]).toEqual([true, 1]);
	await api.up();
	put(api, 'y');
	await eventually(() => names(store).join() === 'x,y');
});

test('a half-open watch: silence ends it', async () => {
	const { api, clock, store, reflector, failures, eventually } = await reflected();
	await until(() => store.synced && api.watches.count() === 1);
	api.watches.freeze();
	put(api, 'x');
	const seenMs = reflector.seenMs;
	await pass(SILENCE_MS - 1_000, { clock, stepMs: 10_000, api });
	expect([store.size, reflector.seenMs]).toEqual([0, seenMs]);
	await eventually(() => store.size === 1);
	expect(failures.map(({ kind }) => kind)).toEqual(['timeout']);
	expect(reflector.seenMs).toBeGreaterThan(seenMs);
});

test('bookmarks keep a quiet watch', async () => {
	const { api, clock, store, failures, verbs } = await reflected();
	await until(() => store.synced && api.watches.count() === 1);
	for (let i = 0; i < 8; i++) {
		await pass(SILENCE_MS / 2, { clock, stepMs: SILENCE_MS / 2, api });
		api.watches.bookmark();
		await pass(10, { clock, stepMs: 10, api });
	}
	expect([failures, verbs()]).toEqual([[], ['list', 'watch']]);
});

test('an API server that never answers a list costs its deadline, not the reflector', async () => {
	const { api, store, eventually } = await reflected();
	api.fail({ verb: 'list' }, { do: 'hang' }, 2);
	put(api, 'x');
	await eventually(() => store.size === 1);
});

test('events sent twice are heard once, and an old one does not turn time back', async () => {
	const { api, store } = await reflected();
	const heard: string[] = [];
	store.onChange(({ after }: Change<NonNullable<typeof CONFIG_MAPS.object>>) => heard.push(after?.data?.a ?? 'gone'));
	await until(() => store.synced && api.watches.count() === 1);
	api.watches.copies = () => 2;
	put(api, 'x', { a: '1' });
	const old = `${JSON.stringify({ type: 'MODIFIED', object: structuredClone(api.objects.find(X)) })}\n`;
	put(api, 'x', { a: '2' });
	api.watches.say(old);
	remove(api, 'x');
	api.watches.say(old);
	put(api, 'x', { a: '3' });
	await until(() => heard.at(-1) === '3');
	expect(heard).toEqual(['1', '2', 'gone', '3']);
});

test('an event that was lost is found by the next list', async () => {
	const { api, clock, store, eventually } = await reflected();
	await until(() => store.synced && api.watches.count() === 1);
	api.watches.copies = () => 0;
	put(api, 'lost');
	api.watches.copies = () => 1;
	put(api, 'x');
	await until(() => names(store).join() === 'x');
	for (let ms = 0; ms <= RELIST_MS; ms += SILENCE_MS / 2) {
		clock.advance(SILENCE_MS / 2);
		api.watches.bookmark();
		await pass(1, { clock, stepMs: 1, api });
	}
	api.watches.end();
	await eventually(() => names(store).join() === 'lost,x');
});

test('a line that is no event ends the watch, not the reflector', async () => {
	const { api, store, eventually } = await reflected();
	await until(() => store.synced && api.watches.count() === 1);
	api.watches.say('<html>\n');
	await until(() => api.watches.count() === 0);
	put(api, 'x');
	await eventually(() => store.size === 1);
	api.watches.say(`${JSON.stringify({ type: 'ERROR', object: { kind: 'Status', code: 500 } })}\n`);
	put(api, 'y');
	await eventually(() => store.size === 2);
});

test('a watch that the server ends at once is not begun again and again', async () => {
	const { api, verbs } = await reflected();
	let ends = 0;
	const ender = setInterval(() => {
		ends++;
		api.watches.end();
	}, 1);
	onTestFinished(() => clearInterval(ender));
	await until(() => verbs().includes('watch'));
	const before = ends;
	await until(() => ends > before + 50);
	expect(verbs()).toEqual(['list', 'watch']);
});

test('stops at once, also while it waits or hangs', async () => {
	const { api, reflector, failures } = await reflected();
	api.fail({ verb: 'list' }, { do: 'hang' });
	await until(() => api.requests.length === 1 || api.watches.count() === 1);
	await reflector.stop();
	expect(failures).toEqual([]);
});

test.each([
	['9', '10', false],
	['10', '9', true],
	['10', '10', false],
	['18446744073709551616', '18446744073709551615', true],
	['b', 'a', true],
	['a', 'a', false],
])('version %s is newer than %s: %s', (version, than, expected) => {
	expect(isNewer(version, than)).toBe(expected);
});

test.each(['1', '2', '3', '4', '5', '6'])(
	'any order of faults (seed %s): in the end the store is what is there',
	async (seed) => {
		const { api, clock, store, eventually } = await reflected({ seed });
		const random = seededRandom(`faults ${seed}`);
		const pick = <T>(of: readonly T[]): T => of[Math.floor(draw(random) * of.length)] as T;
		api.trouble = () => {
			const dice = draw(random);
			if (dice < 0.1) return { do: 'answer', status: pick([429, 500, 503, 410]) };
			return dice < 0.15 ? { do: 'cut' } : null;
		};
		api.watches.copies = () => (draw(random) < 0.2 ? 2 : 1);
		const told = new Map<string, string>();
		store.onChange(({ before, after }) => {
			if (after === null) told.delete(before?.metadata.name ?? '');
			else told.set(after.metadata.name, after.metadata.resourceVersion);
		});
		const chaos = [
			() => api.watches.cut(),
			() => api.watches.end(),
			() => api.watches.freeze(),
			() => api.watches.bookmark(),
			() => api.objects.compact(),
		];
		for (let step = 0; step < 150; step++) {
			const name = pick(['a', 'b', 'c', 'd', 'e']);
			if (draw(random) < 0.3 && api.objects.find({ ...X, name }) !== null) remove(api, name);
			else put(api, name, { step: String(step) });
			if (draw(random) < 0.15) pick(chaos)();
			await pass(500, { clock, stepMs: 500, api });
		}
		api.trouble = () => null;
		const expected = () => api.objects.list(CONFIG_MAPS, 'a').map(({ metadata }) => metadata as Record<string, string>);
		await eventually(
			() =>
				JSON.stringify(store.list().map(({ metadata }) => [metadata.name, metadata.resourceVersion])) ===
				JSON.stringify(expected().map(({ name, resourceVersion }) => [name, resourceVersion])),
		);
		expect([...told].sort()).toEqual(expected().map(({ name, resourceVersion }) => [name, resourceVersion]));
	},
);
