/**
 * The workers: one StatefulSet that is spread over the failure domain, its headless Service, and its disruption budgets.
 *
 * Its partition equals its replicas while nothing is rolled out, so that no edit of it rolls a pod that nobody asked about;
 * rollouts move it down (reconcile/rollout). Claims are Retain/Retain: the set itself never removes one.
 */

import type { V1PodDisruptionBudget, V1Service, V1StatefulSet } from '@kubernetes/client-node';
import type { Model } from '../kube/objects.ts';
import type { DistroCluster } from '../types.ts';
import { CLUSTER_ID_LABEL, ENROL_PORT, GRPC_PORT, HTTP_PORT, namesOf, owned, selectorOf, ZONE_LABEL } from './names.ts';
import {
	imageOf,
	probes,
	pullSecretsOf,
	resourcesOf,
	restrictedContainer,
	restrictedPod,
	scheduled,
	TMP_MOUNT,
	TMP_VOLUME,
	templateMetadata,
} from './pods.ts';

/** The least that Kubernetes gives: it is read anew each time. */
const TOKEN_SECONDS = 600;
/** 48 MiB of buffers and what Node needs beside them, with room for a large scrub. */
const DEFAULT_RESOURCES = { requests: { cpu: '100m', memory: '192Mi' }, limits: { memory: '448Mi' } };

export interface WorkerInputs {
	readonly image: string;
	readonly clusterId: string;
	/** Node label that makes zones. */
	readonly failureDomain: string;
	/** Never below 1 + the highest ordinal whose claim has not left. */
	readonly replicas: number;
	/** Pods below it keep their template. */
	readonly partition: number;
	/** What orchestrators are called: host names without port. */
	readonly orchestratorHosts: readonly string[];
}

export function workerSet(cluster: DistroCluster, inputs: WorkerInputs): Model<V1StatefulSet> {
	const names = namesOf(cluster);
	const { worker, image } = cluster.spec;
	const selector = selectorOf(cluster, 'worker');
	const { namespace } = cluster.metadata;
	return {
		apiVersion: 'apps/v1',
		kind: 'StatefulSet',
		metadata: owned(cluster, names.worker, 'worker'),
		spec: {
			replicas: inputs.replicas,
			serviceName: names.worker,
			podManagementPolicy: 'Parallel',
			selector: { matchLabels: selector },
			persistentVolumeClaimRetentionPolicy: { whenDeleted: 'Retain', whenScaled: 'Retain' },
			updateStrategy:
				worker.update.strategy === 'OnDelete'
					? { type: 'OnDelete' }
					: { type: 'RollingUpdate', rollingUpdate: { partition: inputs.partition } },
			template: {
				metadata: templateMetadata(selector, worker.podMetadata),
				spec: {
					...restrictedPod(),
					serviceAccountName: names.worker,
					terminationGracePeriodSeconds: worker.terminationGracePeriodSeconds,
					...pullSecretsOf(image),
					topologySpreadConstraints: [
						{
							topologyKey: inputs.failureDomain,
							maxSkew: 1,
							whenUnsatisfiable: 'DoNotSchedule',
							nodeTaintsPolicy: 'Honor',
							labelSelector: { matchLabels: selector },
						},
						{
							topologyKey: 'kubernetes.io/hostname',
							maxSkew: 1,
							whenUnsatisfiable: 'ScheduleAnyway',
							labelSelector: { matchLabels: selector },
						},
					],
					...scheduled(worker.scheduling),
					containers: [
						{
							name: 'worker',
							...imageOf(image, inputs.image),
							args: ['worker'],
							...restrictedContainer(),
							env: [
								{ name: 'NAME', valueFrom: { fieldRef: { fieldPath: 'metadata.name' } } },
								{ name: 'DATA_DIR', value: '/data' },
								// On the volume: a pod that is started again needs nobody to be known.
								{ name: 'TLS_DIR', value: '/data/tls' },
								{ name: 'GRPC_HOST', value: '0.0.0.0' },
								{ name: 'GRPC_PORT', value: String(GRPC_PORT) },
								{ name: 'HTTP_PORT', value: String(HTTP_PORT) },
								{ name: 'ADVERTISE', value: `$(NAME).${names.worker}.${namespace}.svc:${GRPC_PORT}` },
								{
									name: 'ORCHESTRATORS',
									value: inputs.orchestratorHosts.map((host) => `${host}:${GRPC_PORT}`).join(','),
								},
								{
									name: 'ENROL_ADDRESS',
									value: `${names.orchestrator}.${namespace}.svc:${ENROL_PORT}`,
								},
								{ name: 'ENROL_TOKEN_FILE', value: '/var/run/distro/token/token' },
								{ name: 'TLS_CA_FILE', value: '/var/run/distro/ca/ca.crt' },
								{ name: 'ZONE_FILE', value: '/var/run/distro/zone/zone' },
							],
							ports: [
								{ name: 'grpc', containerPort: GRPC_PORT },
								{ name: 'http', containerPort: HTTP_PORT },
							],
							...probes(),
							resources: resourcesOf(worker.resources, DEFAULT_RESOURCES),
							volumeMounts: [
								{ name: 'data', mountPath: '/data' },
								TMP_MOUNT,
								{ name: 'token', mountPath: '/var/run/distro/token', readOnly: true },
								{ name: 'ca', mountPath: '/var/run/distro/ca', readOnly: true },
								{ name: 'zone', mountPath: '/var/run/distro/zone', readOnly: true },
							],
						},
					],
					volumes: [
						TMP_VOLUME,
						{
							name: 'token',
							projected: {
								sources: [
									{
										serviceAccountToken: {
											audience: audienceOf(inputs.clusterId),
											expirationSeconds: TOKEN_SECONDS,
											path: 'token',
										},
									},
								],
							},
						},
						{ name: 'ca', configMap: { name: names.caBundle } },
						{
							name: 'zone',
							downwardAPI: {
								items: [{ path: 'zone', fieldRef: { fieldPath: `metadata.labels['${ZONE_LABEL}']` } }],
							},
						},
					],
				},
			},
			volumeClaimTemplates: [
				{
					apiVersion: 'v1',
					kind: 'PersistentVolumeClaim',
					metadata: { name: 'data', labels: { ...selector, [CLUSTER_ID_LABEL]: inputs.clusterId } },
					spec: {
						accessModes: ['ReadWriteOnce'],
						...(worker.storage.storageClassName === undefined
							? {}
							: { storageClassName: worker.storage.storageClassName }),
						resources: { requests: { storage: worker.storage.size } },
					},
				},
			],
		},
	};
}

/** Of the tokens by which workers enrol: good for this cluster only. */
export function audienceOf(clusterId: string): string {
	return `distro.dev/${clusterId}`;
}

/** Not-ready pods as well: repair and drain must reach a worker that is not ready. */
export function workerService(cluster: DistroCluster): Model<V1Service> {
	return {
		apiVersion: 'v1',
		kind: 'Service',
		metadata: owned(cluster, namesOf(cluster).worker, 'worker'),
		spec: {
			clusterIP: 'None',
			publishNotReadyAddresses: true,
			selector: selectorOf(cluster, 'worker'),
			ports: [
				{ name: 'grpc', port: GRPC_PORT, targetPort: GRPC_PORT, appProtocol: 'grpc' },
				{ name: 'http', port: HTTP_PORT, targetPort: HTTP_PORT },
			],
		},
	};
}

/**
 * One budget a zone, with selectors that no two share (a pod under two can't be evicted at all), and one for pods that have
 * no zone yet. `open` says how many of a zone may be away; zones that it does not name: one.
 */
export function workerBudgets(
	cluster: DistroCluster,
	{ zones, open }: { zones: readonly string[]; open: Readonly<Record<string, number>> },
): Model<V1PodDisruptionBudget>[] {
	if (cluster.spec.worker.disruptionBudget === 'Disabled') return [];
	const { worker } = namesOf(cluster);
	const matchLabels = selectorOf(cluster, 'worker');
	const budget = (name: string, maxUnavailable: number, selector: object): Model<V1PodDisruptionBudget> => ({
		apiVersion: 'policy/v1',
		kind: 'PodDisruptionBudget',
		metadata: owned(cluster, name, 'worker'),
		// One that is broken already may always go: it serves nobody, and would block its node for ever.
		spec: { maxUnavailable, unhealthyPodEvictionPolicy: 'AlwaysAllow', selector },
	});
	return [
		...zones.map((zone, i) =>
			budget(`${worker}-zone-${i}`, open[zone] ?? 1, { matchLabels: { ...matchLabels, [ZONE_LABEL]: zone } }),
		),
		budget(`${worker}-no-zone`, 1, {
			matchLabels,
			matchExpressions: [{ key: ZONE_LABEL, operator: 'DoesNotExist' }],
		}),
	];
}
