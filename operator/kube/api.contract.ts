/**
 * What the operator relies on of an API server, as one suite for the fake one and for real ones: each is a promise that the
 * other tests build on. It leaves nothing behind in the namespace `default`.
 */

import { randomBytes } from 'node:crypto';
import { afterEach, describe, expect, test } from 'vitest';
import { systemClock, systemRandom } from '../../platform/clock.ts';
import type { KubeClient } from './client.ts';
import { KIND_ABSENT } from './errors.ts';
import { EventRecorder } from './events.ts';
import { LeaderElection } from './lease.ts';
import { type KubeObject, type ObjectMeta, preconditionsOf, type Stored } from './objects.ts';
import { Reflector } from './reflector.ts';
import {
	CLAIMS,
	CONFIG_MAPS,
	DEPLOYMENTS,
	EVENTS,
	LEASES,
	type ListedResource,
	NODES,
	type Resource,
	SECRETS,
	SERVICES,
	STATEFUL_SETS,
} from './resources.ts';
import { Store } from './store.ts';

const NAMESPACE = 'default';
const LABEL = 'distro.dev/contract';
const HUMAN = { fieldManager: 'human' };
const USED: readonly Resource[] = [CONFIG_MAPS, SECRETS, SERVICES, DEPLOYMENTS, STATEFUL_SETS, CLAIMS, LEASES];
const CONFLICT = { kind: 'conflict', reason: 'Conflict' };

export function apiContract(name: string, open: () => Promise<KubeClient>): void {
	describe(`an API server: ${name}`, () => {
		let run = '';
		let client: KubeClient;
		const object = (more: object = {}): KubeObject & { readonly metadata: ObjectMeta & { namespace: string } } => ({
			apiVersion: '',
			kind: '',
			metadata: { namespace: NAMESPACE, name: run, labels: { [LABEL]: run } },
			...more,
		});
		const ref = () => ({ namespace: NAMESPACE, name: run });
		const begin = async () => {
			run = `contract-${randomBytes(5).toString('hex')}`;
			client = await open();
		};
		const containers = (...items: object[]) =>
			object({
				spec: {
					serviceName: 'contract',
					selector: { matchLabels: { [LABEL]: run } },
					template: { metadata: { labels: { [LABEL]: run } }, spec: { containers: items } },
				},
			});

		afterEach(async () => {
			for (const resource of USED) {
				const found = await client.get(resource, ref());
				if (found === null) continue;
				await client.patch(resource, ref(), { merge: { metadata: { finalizers: null } } }).catch(() => {});
				await client.delete(resource, ref(), { preconditions: { uid: found.metadata.uid } });
			}
		});

		test('a no-op apply changes no version', async () => {
			await begin();
			const spec = containers({ name: 'a', image: 'i', ports: [{ containerPort: 80 }] });
			const first = await client.apply(STATEFUL_SETS, spec);
			const again = await client.apply(STATEFUL_SETS, spec);
			expect(again.metadata.resourceVersion).toBe(first.metadata.resourceVersion);
			expect(first.metadata.generation).toBe(1);
		});

		test('a field no longer sent goes, an edit is put back, what others added stays', async () => {
			await begin();
			await client.apply(CONFIG_MAPS, object({ data: { a: '1', b: '2' } }));
			await client.patch(CONFIG_MAPS, ref(), { ...HUMAN, merge: { data: { b: 'edited', theirs: 'x' } } });
			const found = await client.apply(CONFIG_MAPS, object({ data: { b: '2' } }));
			expect(found.data).toEqual({ b: '2', theirs: 'x' });
			const fields = found.metadata.managedFields?.find(({ manager }) => manager === 'human')?.fieldsV1;
			expect(fields).toEqual({ 'f:data': { 'f:theirs': {} } });
		});

		test('a sidecar of others stays; a container of ours that is no longer sent goes', async () => {
			await begin();
			await client.apply(STATEFUL_SETS, containers({ name: 'worker', image: 'a' }, { name: 'old', image: 'o' }));
			await client.apply(STATEFUL_SETS, containers({ name: 'sidecar', image: 's' }), HUMAN);
			const found = await client.apply(STATEFUL_SETS, containers({ name: 'worker', image: 'b' }));
			const left = found.spec?.template.spec?.containers.map((container) => [container.name, container.image]);
			expect(left?.toSorted()).toEqual([
				['sidecar', 's'],
				['worker', 'b'],
			]);
		});

		test('ports of a Service are told apart by number and protocol', async () => {
			await begin();
			const service = (...ports: object[]) => object({ spec: { clusterIP: 'None', selector: { a: 'b' }, ports } });
			await client.apply(SERVICES, service({ port: 1, name: 'one' }, { port: 2, name: 'two' }));
			const found = await client.apply(SERVICES, service({ port: 1, name: 'uno' }));
			expect(found.spec?.ports).toMatchObject([{ port: 1, name: 'uno' }]);
			expect(found.spec?.ports?.length).toBe(1);
		});

		test('a field is handed over by a second manager, and keeps its value', async () => {
			await begin();
			const set = containers({ name: 'a', image: 'i' }) as KubeObject & { spec: object };
			const scaled = { ...set, spec: { ...set.spec, replicas: 3 } };
			await client.apply(STATEFUL_SETS, scaled);
			await client.apply(STATEFUL_SETS, scaled, { fieldManager: 'handover' });
			expect((await client.apply(STATEFUL_SETS, set)).spec?.replicas).toBe(3);
		});

		test('create refuses what exists; delete is for one object only, and twice is fine', async () => {
			await begin();
			const secret = await client.create(SECRETS, object({ stringData: { key: 'x' } }));
			await expect(client.create(SECRETS, object())).rejects.toMatchObject({ kind: 'exists' });
			const other = { preconditions: { uid: '3fd6f5b8-0000-0000-0000-000000000000' } };
			await expect(client.delete(SECRETS, ref(), other)).rejects.toMatchObject(CONFLICT);
			const { uid } = secret.metadata;
			const older = { preconditions: { uid, resourceVersion: '1' } };
			await expect(client.delete(SECRETS, ref(), older)).rejects.toMatchObject(CONFLICT);
			await client.delete(SECRETS, ref(), { preconditions: { uid } });
			await client.delete(SECRETS, ref(), { preconditions: { uid } });
			expect(await client.get(SECRETS, ref())).toBeNull();
		});

		test('an older version is refused, by every way to write', async () => {
			await begin();
			const old = await client.apply(CONFIG_MAPS, object({ data: { a: '1' } }));
			await client.apply(CONFIG_MAPS, object({ data: { a: '2' } }));
			const preconditions = preconditionsOf(old);
			const data = { data: { a: '3' } };
			await expect(client.apply(CONFIG_MAPS, object(data), { preconditions })).rejects.toMatchObject(CONFLICT);
			await expect(client.patch(CONFIG_MAPS, ref(), { merge: data, preconditions })).rejects.toMatchObject(CONFLICT);
			const json = [{ op: 'replace', path: '/data/a', value: '3' }] as const;
			await expect(client.patch(CONFIG_MAPS, ref(), { json, preconditions })).rejects.toMatchObject(CONFLICT);
			const test = [{ op: 'test', path: '/data/a', value: '1' }] as const;
			await expect(client.patch(CONFIG_MAPS, ref(), { json: test })).rejects.toMatchObject({ kind: 'invalid' });
			expect((await client.get(CONFIG_MAPS, ref()))?.data).toEqual({ a: '2' });
			await client.delete(CONFIG_MAPS, ref(), { preconditions: { uid: old.metadata.uid } });
			await expect(client.apply(CONFIG_MAPS, object(data), { preconditions })).rejects.toMatchObject(CONFLICT);
			expect(await client.get(CONFIG_MAPS, ref())).toBeNull();
		});

		test('scale heeds preconditions; generation counts what is wanted', async () => {
			await begin();
			const set = await client.apply(STATEFUL_SETS, containers({ name: 'a', image: 'i' }));
			await client.scale(STATEFUL_SETS, ref(), { replicas: 2, preconditions: preconditionsOf(set) });
			const late = client.scale(STATEFUL_SETS, ref(), { replicas: 0, preconditions: preconditionsOf(set) });
			await expect(late).rejects.toMatchObject(CONFLICT);
			expect(await client.get(STATEFUL_SETS, ref())).toMatchObject({
				spec: { replicas: 2 },
				metadata: { generation: 2 },
			});
		});

		test('a status is written by itself: a main write can’t, and it changes no generation', async () => {
			await begin();
			const set = containers({ name: 'a', image: 'i' });
			await client.apply(STATEFUL_SETS, { ...set, status: { replicas: 7 } } as typeof set);
			const status = { ...object(), status: { replicas: 1 } };
			const found = await client.applyStatus(STATEFUL_SETS, status);
			expect(found).toMatchObject({ status: { replicas: 1 }, metadata: { generation: 1 } });
			const again = await client.applyStatus(STATEFUL_SETS, status);
			expect(again.metadata.resourceVersion).toBe(found.metadata.resourceVersion);
		});

		test('what is immutable is refused with its name', async () => {
			await begin();
			const set = containers({ name: 'a', image: 'i' }) as KubeObject & { spec: object };
			await client.apply(STATEFUL_SETS, set);
			const changed = { ...set, spec: { ...set.spec, serviceName: 'other' } };
			await expect(client.apply(STATEFUL_SETS, changed)).rejects.toMatchObject({ kind: 'invalid', reason: 'Invalid' });
		});

		test('a finalizer holds an object until it is gone', async () => {
			await begin();
			const labels = { [LABEL]: run };
			const metadata = { namespace: NAMESPACE, name: run, labels, finalizers: ['distro.dev/contract'] };
			const { uid } = (await client.apply(CONFIG_MAPS, object({ metadata }))).metadata;
			await client.delete(CONFIG_MAPS, ref(), { preconditions: { uid } });
			expect((await client.get(CONFIG_MAPS, ref()))?.metadata.deletionTimestamp).toBeTypeOf('string');
			await client.apply(CONFIG_MAPS, object());
			expect(await client.get(CONFIG_MAPS, ref())).toBeNull();
		});

		test('kinds that are absent, and objects that are', async () => {
			await begin();
			expect(await client.servedKinds(STATEFUL_SETS)).toContain('statefulsets');
			const absent: ListedResource = { ...DEPLOYMENTS, group: 'absent.distro.dev', object: undefined };
			expect(await client.servedKinds(absent)).toEqual(new Set());
			await expect(client.get(absent, ref())).rejects.toMatchObject({ kind: 'not_found', reason: KIND_ABSENT });
			await expect(client.list(absent, {})).rejects.toMatchObject({ kind: 'not_found', reason: KIND_ABSENT });
			expect(await client.get(NODES, { name: run })).toBeNull();
			await expect(client.patch(CONFIG_MAPS, ref(), { merge: {} })).rejects.toMatchObject({ reason: 'NotFound' });
		});

		test('a list says what its objects are; a reflector follows them in order', async () => {
			await begin();
			const selection = { namespace: NAMESPACE, labelSelector: `${LABEL}=${run}` };
			await client.apply(CONFIG_MAPS, object({ data: { a: '0' } }));
			const { items } = await client.list(CONFIG_MAPS, selection);
			expect(items).toMatchObject([{ apiVersion: 'v1', kind: 'ConfigMap', data: { a: '0' } }]);
			const store = new Store<NonNullable<typeof CONFIG_MAPS.object>>();
			const heard: string[] = [];
			store.onChange(({ after }) => heard.push(after?.data?.a ?? 'gone'));
			const failures: Error[] = [];
			const reflector = new Reflector({
				client,
				resource: CONFIG_MAPS,
				selection,
				store,
				clock: systemClock,
				random: systemRandom,
				onFailure: (error) => failures.push(error),
			});
			reflector.start();
			try {
				await store.whenSynced();
				for (const a of ['1', '2']) await client.apply(CONFIG_MAPS, object({ data: { a } }));
				await client.patch(CONFIG_MAPS, ref(), { merge: { metadata: { labels: { [LABEL]: 'other' } } } });
				await expect.poll(() => heard).toEqual(['0', '1', '2', 'gone']);
				const found = (await client.apply(CONFIG_MAPS, object({ data: { a: '3' } }))) as Stored<KubeObject>;
				await client.delete(CONFIG_MAPS, ref(), { preconditions: preconditionsOf(found) });
				await expect.poll(() => heard).toEqual(['0', '1', '2', 'gone', '3', 'gone']);
				expect(failures).toEqual([]);
			} finally {
				await reflector.stop();
			}
		});

		test('a Lease is taken and given back', async () => {
			await begin();
			const told: string[] = [];
			const election = new LeaderElection({
				client,
				lease: ref(),
				identity: 'contract',
				clock: systemClock,
				random: systemRandom,
				onElected: () => told.push('elected'),
				onLost: (why) => told.push(why),
				onFailure: (error) => told.push(error.message),
			});
			election.start();
			await expect.poll(() => told).toEqual(['elected']);
			expect((await client.get(LEASES, ref()))?.spec).toMatchObject({ holderIdentity: 'contract' });
			await election.stop();
			expect((await client.get(LEASES, ref()))?.spec?.holderIdentity ?? '').toBe('');
			expect(told).toEqual(['elected']);
		});

		test('an event is taken, and becomes a series', async () => {
			await begin();
			const regarding = await client.apply(CONFIG_MAPS, object());
			const failures: Error[] = [];
			const events = new EventRecorder({
				client,
				clock: systemClock,
				random: systemRandom,
				instance: 'contract',
				onFailure: (error) => failures.push(error),
			});
			const text = { type: 'Warning', reason: 'Contract', action: 'Test', note: 'a note' } as const;
			const found = async () => {
				const { items } = await client.list(EVENTS, { namespace: NAMESPACE });
				return items.filter((event) => event.regarding?.name === run);
			};
			events.tell(regarding, text);
			await expect.poll(async () => (await found()).length).toBe(1);
			events.tell(regarding, text);
			await events.stop(5_000);
			expect(failures).toEqual([]);
			const [event] = await found();
			expect(event).toMatchObject({ ...text, series: { count: 2 } });
			if (event !== undefined) {
				await client.delete(EVENTS, event.metadata, { preconditions: { uid: event.metadata.uid } });
			}
		});
	});
}
