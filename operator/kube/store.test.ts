import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type KubeObject, keyOf, refOf, type Stored } from './objects.ts';
import { type Change, Store } from './store.ts';

type Pod = Stored<KubeObject>;

function pod(name: string, version: number, more: { uid?: string; node?: string } = {}): Pod {
	const labels: Record<string, string> = more.node === undefined ? {} : { node: more.node };
	const metadata = { namespace: 'a', name, uid: more.uid ?? `uid-${name}`, resourceVersion: String(version), labels };
	return { apiVersion: 'v1', kind: 'Pod', metadata };
}

function byNode({ metadata }: Pod): readonly string[] {
	return metadata.labels?.node === undefined ? [] : [metadata.labels.node];
}

test('synced after the first whole list, and not before', async () => {
	const store = new Store();
	const synced = store.whenSynced();
	store.set(pod('x', 1));
	expect(store.synced).toBe(false);
	store.replace([]);
	await synced;
	await store.whenSynced();
	expect([store.synced, store.size]).toEqual([true, 0]);
});

test('found by name and by index, sorted; another namespace is another object', () => {
	const store = new Store<KubeObject>({ node: byNode });
	store.replace([pod('y', 1, { node: 'n1' }), pod('x', 2, { node: 'n1' }), pod('z', 3, { node: 'n2' })]);
	const names = (pods: readonly Pod[]) => pods.map((found) => found.metadata.name);
	expect(names(store.list())).toEqual(['x', 'y', 'z']);
	expect(names(store.by('node', 'n1'))).toEqual(['x', 'y']);
	store.set(pod('x', 4, { node: 'n2' }));
	expect([names(store.by('node', 'n1')), names(store.by('node', 'n2'))]).toEqual([['y'], ['x', 'z']]);
	expect(store.get({ namespace: 'b', name: 'x' })).toBeNull();
	expect(store.get({ namespace: 'a', name: 'x' })?.metadata.resourceVersion).toBe('4');
});

test('listeners hear of differences only, and a late delete of a former object removes nothing', () => {
	const store = new Store();
	const heard: [string | undefined, string | undefined][] = [];
	const end = store.onChange(({ before, after }) =>
		heard.push([before?.metadata.resourceVersion, after?.metadata.resourceVersion]),
	);
	store.set(pod('x', 1));
	store.set(pod('x', 1));
	store.replace([pod('x', 1)]);
	store.set(pod('x', 2, { uid: 'new' }));
	store.remove(pod('x', 3));
	expect(store.size).toBe(1);
	store.remove(pod('x', 3, { uid: 'new' }));
	store.remove(pod('x', 3, { uid: 'new' }));
	end();
	store.set(pod('x', 9));
	expect(heard).toEqual([
		[undefined, '1'],
		['1', '2'],
		['2', undefined],
	]);
});

const step = fc.record({
	do: fc.constantFrom('set', 'remove', 'replace'),
	names: fc.uniqueArray(fc.constantFrom('a', 'b', 'c'), { minLength: 1 }),
	node: fc.constantFrom('n1', 'n2'),
	uid: fc.constantFrom('u1', 'u2'),
});

test('what listeners were told adds up to what is there, and the index to the objects', () => {
	fc.assert(
		fc.property(fc.array(step), (steps) => {
			const store = new Store<KubeObject>({ node: byNode });
			const told = new Map<string, Pod>();
			store.onChange(({ before, after }: Change<KubeObject>) => {
				const key = keyOf(refOf((after ?? before) as Pod));
				expect(told.get(key) ?? null).toBe(before);
				if (after === null) told.delete(key);
				else told.set(key, after);
			});
			for (const [version, { do: action, names, node, uid }] of steps.entries()) {
				const pods = names.map((name) => pod(name, version, { node, uid }));
				if (action === 'replace') store.replace(pods);
				else for (const object of pods) action === 'set' ? store.set(object) : store.remove(object);
			}
			expect(store.list()).toEqual([...told].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, object]) => object));
			for (const node of ['n1', 'n2']) {
				expect(store.by('node', node)).toEqual(store.list().filter((object) => byNode(object)[0] === node));
			}
		}),
	);
});
