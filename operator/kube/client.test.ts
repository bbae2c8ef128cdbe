import { copyFile, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { testAuthority } from '../../test/support/authority.ts';
import { ManualClock } from '../../test/support/clock.ts';
import { until } from '../../test/support/fake-api/pace.ts';
import { fakeKube } from '../../test/support/fake-api/setup.ts';
import { Access } from './access.ts';
import { KubeClient } from './client.ts';
import { KIND_ABSENT } from './errors.ts';
import { keyOf, preconditionsOf, refOf } from './objects.ts';
import {
	CONFIG_MAPS,
	DEPLOYMENTS,
	DISTRO_CLUSTERS,
	NODES,
	POD_MONITORS,
	PODS,
	type Resource,
	SECRETS,
	STATEFUL_SETS,
} from './resources.ts';

const REF = { namespace: 'a', name: 'x' };

function configMap(name: string, data: Record<string, string> = {}) {
	return { apiVersion: 'v1', kind: 'ConfigMap', metadata: { namespace: 'a', name }, data };
}

function statefulSet(replicas: number) {
	return { apiVersion: 'apps/v1', kind: 'StatefulSet', metadata: REF, spec: { replicas } } as const;
}

test('create, get, patch, delete; what is not there is null', async () => {
	const { client } = await fakeKube();
	expect(await client.get(CONFIG_MAPS, REF)).toBeNull();
	const created = await client.create(CONFIG_MAPS, configMap('x', { a: '1' }));
	await expect(client.create(CONFIG_MAPS, configMap('x'))).rejects.toMatchObject({ kind: 'exists' });
	await client.patch(CONFIG_MAPS, REF, { merge: { data: { b: '2' } } });
	await client.patch(CONFIG_MAPS, REF, { json: [{ op: 'remove', path: '/data/a' }] });
	const found = await client.get(CONFIG_MAPS, REF);
	expect(found).toMatchObject({ data: { b: '2' }, metadata: { uid: created.metadata.uid } });
	expect(found?.metadata.managedFields?.map(({ manager }) => manager)).toEqual(['distro-operator']);
	await client.delete(CONFIG_MAPS, REF, { preconditions: { uid: created.metadata.uid } });
	await client.delete(CONFIG_MAPS, REF, { preconditions: { uid: created.metadata.uid } });
	expect(await client.get(CONFIG_MAPS, REF)).toBeNull();
});

test('preconditions hold off whoever has read an older version, or another object of that name', async () => {
	const { client } = await fakeKube();
	const old = await client.apply(CONFIG_MAPS, configMap('x'));
	await client.apply(CONFIG_MAPS, configMap('x', { a: '1' }));
	const preconditions = preconditionsOf(old);
	const conflict = { kind: 'conflict', reason: 'Conflict' };
	await expect(client.apply(CONFIG_MAPS, configMap('x'), { preconditions })).rejects.toMatchObject(conflict);
	await expect(client.patch(CONFIG_MAPS, REF, { merge: {}, preconditions })).rejects.toMatchObject(conflict);
	await expect(client.patch(CONFIG_MAPS, REF, { json: [], preconditions })).rejects.toMatchObject(conflict);
	await expect(client.delete(CONFIG_MAPS, REF, { preconditions })).rejects.toMatchObject(conflict);
	await expect(client.delete(CONFIG_MAPS, REF, { preconditions: { uid: 'other' } })).rejects.toMatchObject(conflict);
	const json = [{ op: 'test', path: '/data/a', value: '2' }] as const;
	await expect(client.patch(CONFIG_MAPS, REF, { json })).rejects.toMatchObject({ kind: 'invalid' });
	await client.delete(CONFIG_MAPS, REF, { preconditions: { uid: old.metadata.uid } });
	await expect(client.apply(CONFIG_MAPS, configMap('x'), { preconditions })).rejects.toMatchObject(conflict);
});

test('apply by two managers: handing a field over and leaving it out keeps its value', async () => {
	const { client } = await fakeKube();
	await client.apply(STATEFUL_SETS, statefulSet(3));
	await client.apply(STATEFUL_SETS, statefulSet(3), { fieldManager: 'handover' });
	const { replicas: _, ...spec } = statefulSet(3).spec;
	expect(await client.apply(STATEFUL_SETS, { ...statefulSet(3), spec })).toMatchObject({ spec: { replicas: 3 } });
});

test('scale changes nothing but the number, and heeds preconditions', async () => {
	const { api, client } = await fakeKube();
	const before = await client.apply(STATEFUL_SETS, statefulSet(3));
	await client.scale(STATEFUL_SETS, REF, { replicas: 5, preconditions: preconditionsOf(before) });
	expect(await client.get(STATEFUL_SETS, REF)).toMatchObject({ spec: { replicas: 5 }, metadata: { generation: 2 } });
	const late = client.scale(STATEFUL_SETS, REF, { replicas: 1, preconditions: preconditionsOf(before) });
	await expect(late).rejects.toMatchObject({ kind: 'conflict' });
	expect(api.writes.map(({ subresource }) => subresource)).toEqual([undefined, 'scale']);
});

test('status is applied by itself', async () => {
	const { api, client } = await fakeKube();
	const cluster = { apiVersion: 'distro.dev/v1alpha1', kind: 'DistroCluster', metadata: REF } as const;
	const status = (phase: string) => ({ ...cluster, status: { phase } });
	await expect(client.applyStatus(DISTRO_CLUSTERS, status('New'))).rejects.toMatchObject({ kind: 'not_found' });
	api.put(DISTRO_CLUSTERS, { ...cluster, metadata: { ...REF }, spec: {} });
	const first = await client.applyStatus(DISTRO_CLUSTERS, status('New'));
	expect(first).toMatchObject({ status: { phase: 'New' }, metadata: { generation: 1 } });
	const again = await client.applyStatus(DISTRO_CLUSTERS, status('New'));
	expect(again.metadata.resourceVersion).toBe(first.metadata.resourceVersion);
	expect(api.writes.map(({ changed }) => changed)).toEqual([true, false]);
});

test('a list comes in pages, each object with its kind; when the pages have expired, at once', async () => {
	const { api, client } = await fakeKube();
	const names = Array.from({ length: 1_201 }, (_, i) => `m-${String(i).padStart(4, '0')}`);
	for (const name of names) api.put(CONFIG_MAPS, configMap(name));
	const { items, resourceVersion } = await client.list(CONFIG_MAPS, { namespace: 'a' });
	expect(items.map((item) => item.metadata.name)).toEqual(names);
	expect(items[0]).toMatchObject({ apiVersion: 'v1', kind: 'ConfigMap' });
	expect(api.requests.length).toBe(3);

	let pages = 0;
	api.trouble = (request) => {
		if (request.verb === 'list' && ++pages === 2) api.put(CONFIG_MAPS, configMap('late'));
		return null;
	};
	const again = await client.list(CONFIG_MAPS, { namespace: 'a' });
	expect(again.items.map((item) => item.metadata.name)).toEqual(['late', ...names]);
	expect(Number(again.resourceVersion)).toBeGreaterThan(Number(resourceVersion));
	expect(pages).toBe(3);
});

test('selectors reach the server', async () => {
	const { api, client } = await fakeKube();
	api.put(PODS, { apiVersion: 'v1', kind: 'Pod', metadata: { name: 'p', namespace: 'a', labels: { x: '1' } } });
	api.put(PODS, { apiVersion: 'v1', kind: 'Pod', metadata: { name: 'q', namespace: 'b', labels: { x: '1' } } });
	const names = async (selection: object) => (await client.list(PODS, selection)).items.map((pod) => keyOf(refOf(pod)));
	expect(await names({})).toEqual(['a/p', 'b/q']);
	expect(await names({ namespace: 'a', labelSelector: 'x=1' })).toEqual(['a/p']);
	expect(await names({ labelSelector: 'x!=1' })).toEqual([]);
	expect(await names({ fieldSelector: 'metadata.name=q' })).toEqual(['b/q']);
});

test('kinds that may be absent: asked for, and told apart from absent objects', async () => {
	const { client } = await fakeKube({ absent: ['monitoring.coreos.com'] });
	expect(await client.servedKinds(POD_MONITORS)).toEqual(new Set());
	expect(await client.servedKinds(DEPLOYMENTS)).toContain('statefulsets');
	await expect(client.get(POD_MONITORS, REF)).rejects.toMatchObject({ kind: 'not_found', reason: KIND_ABSENT });
});

test('what the server refuses keeps its reason, message and time to wait', async () => {
	const { api, client } = await fakeKube({ allows: ({ verb, resource }) => verb === 'get' && resource === 'nodes' });
	await expect(client.get(PODS, REF)).rejects.toMatchObject({ kind: 'denied', reason: 'Forbidden' });
	await expect(client.get(SECRETS, REF)).rejects.toThrow('get secrets a/x: 403 cannot get resource "secrets"');
	expect(await client.get(NODES, { name: 'n' })).toBeNull();
	api.fail({}, { do: 'answer', status: 429, retryAfterSeconds: 3 });
	await expect(client.get(PODS, REF)).rejects.toMatchObject({ kind: 'unavailable', retryAfterMs: 3_000 });
	api.fail({}, { do: 'answer', status: 500 });
	await expect(client.get(PODS, REF)).rejects.toMatchObject({ kind: 'unavailable', reason: 'InternalError' });
	api.fail({}, { do: 'cut' });
	await expect(client.get(PODS, REF)).rejects.toMatchObject({ kind: 'unavailable' });
	await api.down();
	await expect(client.get(PODS, REF)).rejects.toMatchObject({ kind: 'unavailable' });
});

test('applying what is not there needs the right to create as well', async () => {
	const { client } = await fakeKube({ allows: ({ verb }) => verb === 'patch' });
	await expect(client.apply(CONFIG_MAPS, configMap('x'))).rejects.toMatchObject({ kind: 'denied' });
});

test('no answer: the deadline ends it, and connections that were idle meanwhile are not trusted either', async () => {
	const { access, api, client, clock } = await fakeKube();
	await Promise.all([client.get(PODS, REF), client.get(PODS, REF)]);
	const { agent } = await access.credentials();
	const idle = () => Object.values(agent.freeSockets).flatMap((sockets) => sockets ?? []).length;
	await until(() => idle() === 2);
	api.fail({}, { do: 'hang' });
	const hanging = expect(client.get(PODS, REF, { timeoutMs: 5_000 })).rejects.toMatchObject({ kind: 'timeout' });
	await until(() => api.requests.length === 3);
	clock.advance(4_999);
	clock.advance(1);
	await hanging;
	await until(() => idle() === 0);
	expect(await client.get(PODS, REF)).toBeNull();
});

test('a signal ends it', async () => {
	const { api, client } = await fakeKube();
	api.fail({}, { do: 'hang' });
	const control = new AbortController();
	const hanging = expect(client.get(PODS, REF, control)).rejects.toMatchObject({ kind: 'canceled' });
	await until(() => api.requests.length === 1);
	control.abort();
	await hanging;
	await expect(client.get(PODS, REF, control)).rejects.toMatchObject({ kind: 'canceled' });
	expect(api.requests.length).toBe(1);
});

test('an answer without end is refused', async () => {
	const { api, client } = await fakeKube();
	const data = { a: 'x'.repeat(1024 * 1024) };
	for (let i = 0; i < 34; i++) api.put(CONFIG_MAPS, configMap(`m-${i}`, data));
	await expect(client.list(CONFIG_MAPS, {})).rejects.toMatchObject({ kind: 'exhausted' });
});

test('a write that was cut may have been done: every write is counted, and nothing hides it', async () => {
	const { api, client } = await fakeKube();
	api.onWrite = ({ n }) => (n === 2 ? 'cut' : undefined);
	await client.apply(CONFIG_MAPS, configMap('x', { a: '1' }));
	await expect(client.apply(CONFIG_MAPS, configMap('x', { a: '2' }))).rejects.toMatchObject({ kind: 'unavailable' });
	expect(await client.get(CONFIG_MAPS, REF)).toMatchObject({ data: { a: '2' } });
	expect(api.writes.map(({ n, verb }) => [n, verb])).toEqual([
		[1, 'patch'],
		[2, 'patch'],
	]);
});

test('a namespace for a kind that has none, or none for one that has, is a bug', async () => {
	const { client } = await fakeKube();
	const wrong: [Resource, object][] = [
		[NODES, REF],
		[PODS, { name: 'x' }],
	];
	for (const [resource, ref] of wrong) {
		await expect(client.get(resource, ref as typeof REF)).rejects.toMatchObject({ kind: 'internal' });
	}
});

test('the service account’s token: read again after a minute, and at once when it was refused', async () => {
	const { api, clock } = await fakeKube();
	const folder = await mkdtemp(join(tmpdir(), 'distro-test-token-'));
	onTestFinished(() => rm(folder, { recursive: true }));
	const tokenFile = join(folder, 'token');
	await writeFile(tokenFile, 'one\n');
	const access = Access.fromText(api.kubeconfig({ tokenFile }), clock);
	onTestFinished(() => access.close());
	const client = new KubeClient({ access, clock });
	api.tokens.add('one');
	await client.get(PODS, REF);

	await writeFile(tokenFile, 'two');
	expect((await access.credentials()).headers).toEqual({ Authorization: 'Bearer one' });
	clock.advance(61_000);
	expect((await access.credentials()).headers).toEqual({ Authorization: 'Bearer two' });

	await writeFile(tokenFile, 'three');
	api.tokens.clear();
	api.tokens.add('three');
	await client.get(PODS, REF);
	api.tokens.clear();
	api.tokens.add('four');
	await expect(client.get(PODS, REF)).rejects.toMatchObject({ kind: 'denied', reason: 'Unauthorized' });
	await rm(tokenFile);
	await expect(client.get(PODS, REF)).rejects.toMatchObject({ kind: 'unavailable' });
	expect(access.namespace).toBe('default');
});

test('TLS: only a server that the CA’s file vouches for, and that file may be replaced', async () => {
	const [first, second] = await Promise.all([testAuthority(), testAuthority()]);
	onTestFinished(() => [first, second].forEach((authority) => void authority.remove()));
	const [served, other] = [await first.issue('orchestrator', 'api'), await second.issue('orchestrator', 'api')];
	const { api, clock } = await fakeKube({ tlsFolder: served });
	const caFile = join(first.folder, 'trusted.crt');
	await copyFile(join(served, 'ca.crt'), caFile);
	const access = Access.fromText(api.kubeconfig({ caFile }), clock);
	onTestFinished(() => access.close());
	const client = new KubeClient({ access, clock });
	expect(await client.get(PODS, REF)).toBeNull();

	await api.down();
	for (const name of ['tls.crt', 'tls.key']) await copyFile(join(other, name), join(served, name));
	await api.up();
	await expect(client.get(PODS, REF)).rejects.toMatchObject({ kind: 'unavailable' });
	await copyFile(join(other, 'ca.crt'), caFile);
	expect(await client.get(PODS, REF)).toBeNull();
});

test('what is wrong with a configuration is said in a sentence', () => {
	const clock = new ManualClock();
	const empty = JSON.stringify({ apiVersion: 'v1', kind: 'Config', clusters: [], users: [], contexts: [] });
	expect(() => Access.fromText(empty, clock)).toThrow('names no current cluster');
	expect(() => Access.fromText('{', clock)).toThrow("The kubeconfig can't be read");
	onTestFinished(() => void vi.unstubAllEnvs());
	vi.stubEnv('KUBECONFIG', '/nowhere/kubeconfig');
	expect(() => Access.fromDefault(clock)).toThrow("The kubeconfig can't be read: ENOENT");
	vi.stubEnv('KUBECONFIG', '');
	vi.stubEnv('HOME', '/nowhere');
	expect(() => Access.fromDefault(clock)).toThrow('set KUBECONFIG');
});
