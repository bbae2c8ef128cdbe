/**
 * What the objects of one DistroCluster are called and labelled. Selectors never change: they and nothing else are labels of
 * pod and claim templates, so that no new release of the operator restarts a pod for a label.
 */

import { type DistroCluster, GROUP, KIND, VERSION } from '../types.ts';

export type Component = 'orchestrator' | 'worker';

export const HTTP_PORT = 8080;
export const GRPC_PORT = 9090;
export const ENROL_PORT = 9091;

/** Of a worker's pod: the value of its node's failure domain. */
export const ZONE_LABEL = `${GROUP}/zone`;
/** Of claims: whose data they hold. */
export const CLUSTER_ID_LABEL = `${GROUP}/cluster-id`;
/** Of a StatefulSet or Deployment: what its template was made from. */
export const INPUTS_ANNOTATION = `${GROUP}/inputs`;

export function namesOf(cluster: DistroCluster) {
	const { name } = cluster.metadata;
	return {
		http: name,
		orchestrator: `${name}-orchestrator`,
		worker: `${name}-worker`,
		metadataClaim: `${name}-metadata`,
		/** Kept for ever: never owned by the resource, never pruned, never made anew. */
		masterKey: cluster.spec.encryption.masterKeySecretRef?.name ?? `${name}-master-key`,
		authority: `${name}-ca`,
		apiKey: `${name}-api-key`,
		issuer: `${name}-issuer`,
		caBundle: `${name}-ca-bundle`,
		enrolment: `${name}-enrolment`,
		orchestratorTls: `${name}-orchestrator-tls`,
		operatorTls: `${name}-operator-tls`,
	};
}

export function selectorOf(cluster: DistroCluster, component: Component): Record<string, string> {
	return {
		'app.kubernetes.io/name': 'distro',
		'app.kubernetes.io/instance': cluster.metadata.name,
		'app.kubernetes.io/component': component,
	};
}

export function labelsOf(cluster: DistroCluster, component: Component | null): Record<string, string> {
	return {
		'app.kubernetes.io/name': 'distro',
		'app.kubernetes.io/instance': cluster.metadata.name,
		'app.kubernetes.io/managed-by': 'distro-operator',
		'app.kubernetes.io/part-of': 'distro',
		...(component === null ? {} : { 'app.kubernetes.io/component': component }),
	};
}

/** For what may go with the resource: keys and claims never have it. */
export function ownerOf(cluster: DistroCluster) {
	return {
		apiVersion: `${GROUP}/${VERSION}`,
		kind: KIND,
		name: cluster.metadata.name,
		uid: cluster.metadata.uid,
		controller: true,
		blockOwnerDeletion: true,
	};
}

/** Metadata of an owned object. */
export function owned(
	cluster: DistroCluster,
	name: string,
	component: Component | null,
	annotations?: Readonly<Record<string, string>>,
) {
	return {
		name,
		namespace: cluster.metadata.namespace,
		labels: labelsOf(cluster, component),
		...(annotations === undefined ? {} : { annotations: { ...annotations } }),
		ownerReferences: [ownerOf(cluster)],
	};
}
