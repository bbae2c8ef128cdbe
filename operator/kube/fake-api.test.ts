/** The fake API server keeps the rules that the operator relies on: what it would wrongly allow no other test would notice. */

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type JsonObject, textOf } from '../../test/support/fake-api/fields.ts';
import { FakeObjects, metadataOf, type Place } from '../../test/support/fake-api/objects.ts';
import { labelSelector } from '../../test/support/fake-api/selectors.ts';
import { fakeKube } from '../../test/support/fake-api/setup.ts';
import { apiContract } from './api.contract.ts';
import { CLAIMS, CONFIG_MAPS, DEPLOYMENTS, PODS, SERVICES, STATEFUL_SETS } from './resources.ts';

const US = { manager: 'us', force: true };
const HUMAN = { manager: 'human', force: false };

const MAP: Place = { resource: CONFIG_MAPS, namespace: 'a', name: 'm' };
function map(data: Record<string, string>, more: JsonObject = {}): JsonObject {
	return { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'm', namespace: 'a', ...more }, data };
}

const SET: Place = { resource: STATEFUL_SETS, namespace: 'a', name: 's' };
function set(containers: JsonObject[], more: JsonObject = {}): JsonObject {
	return {
		apiVersion: 'apps/v1',
		kind: 'StatefulSet',
		metadata: { name: 's', namespace: 'a' },
		spec: { selector: { matchLabels: { a: 'b' } }, template: { spec: { containers } }, ...more },
	};
}

test('a no-op apply leaves the version as it is; another order of names is no change', () => {
	const objects = new FakeObjects();
	const first = objects.apply(MAP, map({ a: '1', b: '2' }), US);
	expect(objects.apply(MAP, map({ b: '2', a: '1' }), US)).toBe(first);
	expect(metadataOf(objects.apply(MAP, map({ a: '1', b: '3' }), US)).resourceVersion).not.toBe(
		metadataOf(first).resourceVersion,
	);
});

test('a field no longer sent goes; what others set stays; what a human changed comes back', () => {
	const objects = new FakeObjects();
	objects.apply(MAP, map({ a: '1', b: '2' }), US);
	objects.patch(MAP, { data: { b: 'edited', theirs: 'x' } }, { ...HUMAN, kind: 'merge' });
	expect(objects.apply(MAP, map({ b: '2' }), US).data).toEqual({ b: '2', theirs: 'x' });
	const owners = metadataOf(objects.get(MAP)).managedFields as unknown as { manager: string; fieldsV1: object }[];
	expect(Object.fromEntries(owners.map(({ manager, fieldsV1 }) => [manager, fieldsV1]))).toEqual({
		us: { 'f:data': { 'f:b': {} } },
		human: { 'f:data': { 'f:theirs': {} } },
	});
});

test('without force a conflict is refused, and equal values are shared', () => {
	const objects = new FakeObjects();
	objects.apply(MAP, map({ a: '1' }), US);
	expect(() => objects.apply(MAP, map({ a: '2' }), HUMAN)).toThrow('conflict with "us": f:data.f:a');
	objects.apply(MAP, map({ a: '1' }), HUMAN);
	expect(objects.apply(MAP, map({}), US).data).toEqual({ a: '1' });
});

test('lists with keys are merged item by item; a sidecar of others stays, our own goes', () => {
	const objects = new FakeObjects();
	objects.apply(
		SET,
		set([
			{ name: 'worker', image: 'a', ports: [{ containerPort: 1 }] },
			{ name: 'old', image: 'o' },
		]),
		US,
	);
	objects.apply(
		SET,
		set([
			{ name: 'sidecar', image: 's' },
			{ name: 'worker', env: [{ name: 'X', value: '1' }] },
		]),
		HUMAN,
	);
	const object = objects.apply(SET, set([{ name: 'worker', image: 'b' }]), US);
	expect((object.spec as { template: { spec: object } }).template.spec).toEqual({
		containers: [
			{ name: 'sidecar', image: 's' },
			{ name: 'worker', image: 'b', env: [{ name: 'X', value: '1' }] },
		],
	});
});

test('ports of a Service have port and protocol as key, and TCP is the default', () => {
	const objects = new FakeObjects();
	const place: Place = { resource: SERVICES, namespace: 'a', name: 's' };
	const service = (ports: JsonObject[]): JsonObject => ({
		apiVersion: 'v1',
		kind: 'Service',
		metadata: { name: 's', namespace: 'a' },
		spec: { ports },
	});
	objects.apply(place, service([{ port: 1, name: 'one', protocol: 'TCP' }]), US);
	expect(objects.apply(place, service([{ port: 1, name: 'uno' }]), US).spec).toEqual({
		ports: [{ port: 1, name: 'uno' }],
	});
});

test('generation counts what is wanted; status is a thing of its own', () => {
	const objects = new FakeObjects();
	const generation = () => metadataOf(objects.get(SET)).generation;
	objects.apply(SET, { ...set([]), status: { replicas: 9 } }, US);
	expect(objects.get(SET).status).toBeUndefined();
	objects.patch(SET, { status: { replicas: 1 } }, { ...US, kind: 'merge', subresource: 'status' });
	objects.patch(SET, { metadata: { labels: { x: 'y' } } }, { ...US, kind: 'merge' });
	expect([generation(), objects.get(SET).status]).toEqual([1, { replicas: 1 }]);
	objects.patch(SET, { spec: { replicas: 3 }, status: null }, { ...US, kind: 'merge' });
	expect([generation(), objects.get(SET).status]).toEqual([2, { replicas: 1 }]);
});

test('conditions are merged by type', () => {
	const objects = new FakeObjects();
	objects.apply(SET, set([]), US);
	const status = (...types: string[]): JsonObject => ({
		...set([]),
		status: { conditions: types.map((type) => ({ type, status: 'True' })) },
	});
	objects.apply(SET, status('A', 'B'), { ...US, subresource: 'status' });
	objects.apply(SET, status('C'), { ...HUMAN, subresource: 'status' });
	objects.apply(SET, status('B'), { ...US, subresource: 'status' });
	expect(objects.get(SET).status).toEqual(status('B', 'C').status);
});

test('what is immutable is refused', () => {
	const objects = new FakeObjects();
	objects.apply(SET, set([], { serviceName: 'a' }), US);
	expect(() => objects.apply(SET, set([], { serviceName: 'b' }), US)).toThrow('spec.serviceName: Forbidden');
});

test('versions and uids as preconditions', () => {
	const objects = new FakeObjects();
	const { uid, resourceVersion } = metadataOf(objects.apply(MAP, map({}), US)) as {
		uid: string;
		resourceVersion: string;
	};
	objects.apply(MAP, map({ a: '1' }), US);
	const old = { metadata: { resourceVersion } };
	expect(() => objects.patch(MAP, old, { ...US, kind: 'merge' })).toThrow('has been modified');
	expect(() => objects.apply(MAP, map({}, { resourceVersion }), US)).toThrow('has been modified');
	expect(() => objects.replace(MAP, map({}, { resourceVersion }), US)).toThrow('has been modified');
	expect(() => objects.delete(MAP, { resourceVersion })).toThrow('ResourceVersion');
	expect(() => objects.delete(MAP, { uid: 'other' })).toThrow('UID');
	expect(() => objects.patch(MAP, [{ op: 'test', path: '/data/a', value: '2' }], { ...US, kind: 'json' })).toThrow(
		'test',
	);
	expect(() => objects.apply({ ...MAP, name: 'gone' }, map({}, { uid }), US)).toThrow('gone');
	objects.delete(MAP, { uid });
	expect(objects.find(MAP)).toBeNull();
});

test('finalizers hold an object; with the last of them it goes', () => {
	const objects = new FakeObjects();
	objects.apply(MAP, map({}, { finalizers: ['a/b'] }), US);
	expect(metadataOf(objects.delete(MAP) as JsonObject).deletionTimestamp).toBeTypeOf('string');
	objects.apply(MAP, map({ still: 'there' }, { finalizers: ['a/b'] }), US);
	objects.patch(MAP, { metadata: { finalizers: null } }, { ...US, kind: 'merge' });
	expect(objects.find(MAP)).toBeNull();
});

test.each([
	['Background', 0, false],
	['Foreground', 0, false],
	['Orphan', 1, true],
])('dependents of what was deleted with %s', (propagation, left, ownerless) => {
	const objects = new FakeObjects();
	const owner = metadataOf(objects.apply(SET, set([]), US));
	const ownerReferences = [{ apiVersion: 'apps/v1', kind: 'StatefulSet', name: 's', uid: owner.uid ?? '' }];
	objects.apply(MAP, map({}, { ownerReferences }), US);
	objects.delete(SET, { propagation });
	expect(objects.find(SET) === null).toBe(propagation !== 'Foreground');
	while (objects.collect());
	expect(objects.find(SET)).toBeNull();
	expect(objects.list(CONFIG_MAPS).length).toBe(left);
	if (ownerless) expect(metadataOf(objects.get(MAP)).ownerReferences).toBeUndefined();
});

test('a dependent whose owner never was is collected', () => {
	const objects = new FakeObjects();
	const ownerReferences = [{ apiVersion: 'v1', kind: 'Pod', name: 'p', uid: 'never' }];
	objects.apply(MAP, map({}, { ownerReferences }), US);
	while (objects.collect());
	expect(objects.find(MAP)).toBeNull();
});

test('a pod that its node still runs lingers, and goes at once by force', () => {
	const objects = new FakeObjects({ lingers: (resource) => resource === PODS });
	const place: Place = { resource: PODS, namespace: 'a', name: 'p' };
	objects.create(place, { apiVersion: 'v1', kind: 'Pod', metadata: { name: 'p', namespace: 'a' }, spec: {} }, US);
	objects.delete(place);
	expect(metadataOf(objects.get(place)).deletionTimestamp).toBeTypeOf('string');
	objects.delete(place, { graceSeconds: 0 });
	expect(objects.find(place)).toBeNull();
});

test.each([
	['a=1', true],
	['a==1,b', true],
	['a!=1', false],
	['!c,a in (0, 1),b notin (x)', true],
	['c', false],
	['c!=1', true],
	['c in (1)', false],
])('label selector %s', (text, matches) => {
	expect(labelSelector(text)({ metadata: { labels: { a: '1', b: '2' } } })).toBe(matches);
});

test('kinds apart: a claim and a Deployment may have one name', () => {
	const objects = new FakeObjects();
	for (const [resource, apiVersion] of [
		[CLAIMS, 'v1'],
		[DEPLOYMENTS, 'apps/v1'],
	] as const) {
		const place = { resource, namespace: 'a', name: 'x' };
		objects.create(place, { apiVersion, kind: resource.kind, metadata: { name: 'x', namespace: 'a' }, spec: {} }, US);
	}
	expect([objects.list(CLAIMS).length, objects.list(DEPLOYMENTS).length]).toEqual([1, 1]);
});

/** Two managers apply and a human edits, in any order. */
const step = fc.record({
	who: fc.constantFrom('us', 'them', 'human'),
	data: fc.dictionary(fc.constantFrom('a', 'b', 'c', 'd'), fc.constantFrom('1', '2')),
});

test('after any history: what was last applied holds, applying it again is a no-op, and nobody owns what is not there', () => {
	fc.assert(
		fc.property(fc.array(step, { minLength: 1, maxLength: 12 }), (steps) => {
			const objects = new FakeObjects();
			objects.apply(MAP, map({}), US);
			for (const { who, data } of steps) {
				if (who === 'human') objects.patch(MAP, { data }, { manager: who, kind: 'merge' });
				else {
					const object = objects.apply(MAP, map(data), { manager: who, force: true });
					expect(object.data ?? {}).toMatchObject(data);
					expect(objects.apply(MAP, map(data), { manager: who, force: true })).toBe(object);
				}
				const object = objects.get(MAP);
				const owned = ((metadataOf(object).managedFields ?? []) as JsonObject[]).flatMap((entry) =>
					Object.keys(((entry.fieldsV1 as JsonObject)['f:data'] ?? {}) as JsonObject),
				);
				const there = Object.keys((object.data ?? {}) as JsonObject).map((name) => `f:${name}`);
				for (const name of owned) if (name !== '.') expect(there, textOf(object)).toContain(name);
			}
		}),
	);
});

apiContract('the fake one', async () => (await fakeKube()).client);
