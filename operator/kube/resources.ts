/**
 * The kinds that the operator uses, and where the API server keeps them. What is not here it never touches: the table is
 * also what its Roles are checked against.
 *
 * Invariant: Secrets are only got by name. `listed: false` keeps them out of `list` and `watch` at compile time, because who
 * may list them reads every Secret of a namespace.
 */

import type {
	EventsV1Event,
	V1ClusterRole,
	V1ConfigMap,
	V1ControllerRevision,
	V1Deployment,
	V1Ingress,
	V1Lease,
	V1NetworkPolicy,
	V1Node,
	V1PersistentVolume,
	V1PersistentVolumeClaim,
	V1Pod,
	V1PodDisruptionBudget,
	V1Role,
	V1RoleBinding,
	V1Secret,
	V1Service,
	V1ServiceAccount,
	V1StatefulSet,
	V1StorageClass,
	V2HorizontalPodAutoscaler,
} from '@kubernetes/client-node';
import { type DistroCluster, GROUP, KIND, PLURAL, VERSION } from '../types.ts';
import type { KubeObject, Model } from './objects.ts';

export interface Resource<T extends KubeObject = KubeObject> {
	/** '' for core. */
	readonly group: string;
	readonly version: string;
	readonly kind: string;
	/** As in paths and Roles. */
	readonly plural: string;
	readonly namespaced: boolean;
	readonly listed: boolean;
	/** Never set: it carries the objects' type. */
	readonly object?: T;
}

/** A kind that may be listed and watched. */
export interface ListedResource<T extends KubeObject = KubeObject> extends Resource<T> {
	readonly listed: true;
}

interface Place {
	readonly kind: string;
	readonly plural: string;
	readonly namespaced?: boolean;
}

function listed<T extends KubeObject>(groupVersion: string, place: Place): ListedResource<T> {
	return { ...parts(groupVersion), namespaced: true, ...place, listed: true };
}

function parts(groupVersion: string): { group: string; version: string } {
	const [first = '', second] = groupVersion.split('/');
	return second === undefined ? { group: '', version: first } : { group: first, version: second };
}

export const PODS = listed<Model<V1Pod>>('v1', { kind: 'Pod', plural: 'pods' });
export const SERVICES = listed<Model<V1Service>>('v1', { kind: 'Service', plural: 'services' });
export const CONFIG_MAPS = listed<Model<V1ConfigMap>>('v1', { kind: 'ConfigMap', plural: 'configmaps' });
export const SERVICE_ACCOUNTS = listed<Model<V1ServiceAccount>>('v1', {
	kind: 'ServiceAccount',
	plural: 'serviceaccounts',
});
export const CLAIMS = listed<Model<V1PersistentVolumeClaim>>('v1', {
	kind: 'PersistentVolumeClaim',
	plural: 'persistentvolumeclaims',
});
export const VOLUMES = listed<Model<V1PersistentVolume>>('v1', {
	kind: 'PersistentVolume',
	plural: 'persistentvolumes',
	namespaced: false,
});
export const NODES = listed<Model<V1Node>>('v1', { kind: 'Node', plural: 'nodes', namespaced: false });
export const SECRETS: Resource<Model<V1Secret>> & { readonly listed: false } = {
	group: '',
	version: 'v1',
	kind: 'Secret',
	plural: 'secrets',
	namespaced: true,
	listed: false,
};

export const DEPLOYMENTS = listed<Model<V1Deployment>>('apps/v1', { kind: 'Deployment', plural: 'deployments' });
export const STATEFUL_SETS = listed<Model<V1StatefulSet>>('apps/v1', { kind: 'StatefulSet', plural: 'statefulsets' });
export const CONTROLLER_REVISIONS = listed<Model<V1ControllerRevision>>('apps/v1', {
	kind: 'ControllerRevision',
	plural: 'controllerrevisions',
});

export const INGRESSES = listed<Model<V1Ingress>>('networking.k8s.io/v1', { kind: 'Ingress', plural: 'ingresses' });
export const NETWORK_POLICIES = listed<Model<V1NetworkPolicy>>('networking.k8s.io/v1', {
	kind: 'NetworkPolicy',
	plural: 'networkpolicies',
});
export const DISRUPTION_BUDGETS = listed<Model<V1PodDisruptionBudget>>('policy/v1', {
	kind: 'PodDisruptionBudget',
	plural: 'poddisruptionbudgets',
});
export const AUTOSCALERS = listed<Model<V2HorizontalPodAutoscaler>>('autoscaling/v2', {
	kind: 'HorizontalPodAutoscaler',
	plural: 'horizontalpodautoscalers',
});
export const ROLES = listed<Model<V1Role>>('rbac.authorization.k8s.io/v1', { kind: 'Role', plural: 'roles' });
export const ROLE_BINDINGS = listed<Model<V1RoleBinding>>('rbac.authorization.k8s.io/v1', {
	kind: 'RoleBinding',
	plural: 'rolebindings',
});
export const CLUSTER_ROLES = listed<Model<V1ClusterRole>>('rbac.authorization.k8s.io/v1', {
	kind: 'ClusterRole',
	plural: 'clusterroles',
	namespaced: false,
});
export const STORAGE_CLASSES = listed<Model<V1StorageClass>>('storage.k8s.io/v1', {
	kind: 'StorageClass',
	plural: 'storageclasses',
	namespaced: false,
});
export const LEASES = listed<Model<V1Lease>>('coordination.k8s.io/v1', { kind: 'Lease', plural: 'leases' });
export const EVENTS = listed<Model<EventsV1Event>>('events.k8s.io/v1', { kind: 'Event', plural: 'events' });

export const DISTRO_CLUSTERS = listed<DistroCluster & KubeObject>(`${GROUP}/${VERSION}`, {
	kind: KIND,
	plural: PLURAL,
});

/** These may be absent from a cluster: ask `servedKinds` first. */
export const POD_MONITORS = listed('monitoring.coreos.com/v1', { kind: 'PodMonitor', plural: 'podmonitors' });
export const PROMETHEUS_RULES = listed('monitoring.coreos.com/v1', {
	kind: 'PrometheusRule',
	plural: 'prometheusrules',
});
export const CERTIFICATES = listed('cert-manager.io/v1', { kind: 'Certificate', plural: 'certificates' });
export const ISSUERS = listed('cert-manager.io/v1', { kind: 'Issuer', plural: 'issuers' });

export const RESOURCES: readonly Resource[] = [
	PODS,
	SERVICES,
	CONFIG_MAPS,
	SERVICE_ACCOUNTS,
	CLAIMS,
	VOLUMES,
	NODES,
	SECRETS,
	DEPLOYMENTS,
	STATEFUL_SETS,
	CONTROLLER_REVISIONS,
	INGRESSES,
	NETWORK_POLICIES,
	DISRUPTION_BUDGETS,
	AUTOSCALERS,
	ROLES,
	ROLE_BINDINGS,
	CLUSTER_ROLES,
	STORAGE_CLASSES,
	LEASES,
	EVENTS,
	DISTRO_CLUSTERS,
	POD_MONITORS,
	PROMETHEUS_RULES,
	CERTIFICATES,
	ISSUERS,
];

/** As objects carry it. */
export function apiVersionOf(resource: Pick<Resource, 'group' | 'version'>): string {
	return resource.group === '' ? resource.version : `${resource.group}/${resource.version}`;
}

/** The path of a group and version, of a kind, of one object, or of its subresource. */
export function pathOf(
	resource: Pick<Resource, 'group' | 'version'> & Partial<Pick<Resource, 'plural'>>,
	place: { readonly namespace?: string; readonly name?: string; readonly subresource?: string } = {},
): string {
	const steps = [resource.group === '' ? 'api' : 'apis', apiVersionOf(resource)];
	if (resource.plural !== undefined) {
		if (place.namespace !== undefined) steps.push('namespaces', encodeURIComponent(place.namespace));
		steps.push(resource.plural);
		if (place.name !== undefined) steps.push(encodeURIComponent(place.name));
		if (place.subresource !== undefined) steps.push(place.subresource);
	}
	return `/${steps.join('/')}`;
}
