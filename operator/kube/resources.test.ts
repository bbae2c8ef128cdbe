import { expect, test } from 'vitest';
import type { KubeClient } from './client.ts';
import { apiVersionOf, DEPLOYMENTS, DISTRO_CLUSTERS, NODES, PODS, pathOf, RESOURCES, SECRETS } from './resources.ts';

test('where the API server keeps things', () => {
	expect(pathOf(PODS, { namespace: 'a', name: 'b' })).toBe('/api/v1/namespaces/a/pods/b');
	expect(pathOf(PODS)).toBe('/api/v1/pods');
	expect(pathOf(NODES, { name: 'n1' })).toBe('/api/v1/nodes/n1');
	expect(pathOf(DEPLOYMENTS, { namespace: 'a', name: 'b', subresource: 'scale' })).toBe(
		'/apis/apps/v1/namespaces/a/deployments/b/scale',
	);
	expect(pathOf(DISTRO_CLUSTERS, { namespace: 'a' })).toBe('/apis/distro.dev/v1alpha1/namespaces/a/distroclusters');
	expect(pathOf({ group: 'apps', version: 'v1' })).toBe('/apis/apps/v1');
	expect(pathOf(PODS, { namespace: '../../x', name: 'a/b' })).toBe('/api/v1/namespaces/..%2F..%2Fx/pods/a%2Fb');
});

test('no kind stands in the table twice', () => {
	const names = RESOURCES.map((resource) => `${apiVersionOf(resource)} ${resource.plural}`);
	expect(new Set(names).size).toBe(names.length);
});

test('Secrets can be neither listed nor watched: the compiler refuses', () => {
	const refused = (client: KubeClient) => {
		// @ts-expect-error: only a ListedResource may be
		void client.list(SECRETS, {});
		// @ts-expect-error: only a ListedResource may be
		void client.watch(SECRETS, {}, { resourceVersion: '1', timeoutSeconds: 1 });
	};
	expect(refused).toBeTypeOf('function');
	expect(RESOURCES.filter((resource) => !resource.listed)).toEqual([SECRETS]);
});
