/**
 * The orchestrators: a Deployment, its Services, and what stands before and beside it. With SQLite it is one process with a
 * volume of its own (Recreate; the store's lock is what really keeps two apart); with Supabase it keeps nothing.
 */

import type {
	V1Deployment,
	V1Ingress,
	V1PersistentVolumeClaim,
	V1PodDisruptionBudget,
	V1Service,
	V2HorizontalPodAutoscaler,
} from '@kubernetes/client-node';
import type { Model } from '../kube/objects.ts';
import type { DistroCluster } from '../types.ts';
import { CLUSTER_ID_LABEL, ENROL_PORT, GRPC_PORT, HTTP_PORT, labelsOf, namesOf, owned, selectorOf } from './names.ts';
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
import { bytesOf, mebibytes } from './quantity.ts';

const MiB = 2 ** 20;
/** Beside the budget: Node, connections, and what they allocate outside of its heap (docs/performance.md). */
const IDLE_BYTES = 144 * MiB;
const PEAK_BYTES = 320 * MiB;

export interface OrchestratorInputs {
	readonly image: string;
	readonly clusterId: string;
	/** Null: an autoscaler's, and left out. */
	readonly replicas: number | null;
}

export function orchestratorDeployment(cluster: DistroCluster, inputs: OrchestratorInputs): Model<V1Deployment> {
	const names = namesOf(cluster);
	const { orchestrator, metadata, image, redundancy } = cluster.spec;
	const selector = selectorOf(cluster, 'orchestrator');
	const budgetBytes = bytesOf(orchestrator.memoryBudget);
	const isSqlite = metadata.type === 'SQLite';
	const secret = (name: string, secretName: string) => ({ name, secret: { secretName, defaultMode: 0o440 } });
	const readOnly = (name: string) => ({ name, mountPath: `/var/run/distro/${name}`, readOnly: true });
	return {
		apiVersion: 'apps/v1',
		kind: 'Deployment',
		metadata: owned(cluster, names.orchestrator, 'orchestrator'),
		spec: {
			...(inputs.replicas === null ? {} : { replicas: inputs.replicas }),
			selector: { matchLabels: selector },
			strategy: isSqlite
				? { type: 'Recreate' }
				: { type: 'RollingUpdate', rollingUpdate: { maxUnavailable: 0, maxSurge: 1 } },
			progressDeadlineSeconds: 600,
			template: {
				metadata: templateMetadata(selector, orchestrator.podMetadata),
				spec: {
					...restrictedPod(),
					serviceAccountName: names.orchestrator,
					terminationGracePeriodSeconds: orchestrator.terminationGracePeriodSeconds,
					...pullSecretsOf(image),
					topologySpreadConstraints: [
						{
							topologyKey: 'kubernetes.io/hostname',
							maxSkew: 1,
							whenUnsatisfiable: 'ScheduleAnyway',
							labelSelector: { matchLabels: selector },
						},
					],
					...scheduled(orchestrator.scheduling),
					containers: [
						{
							name: 'orchestrator',
							...imageOf(image, inputs.image),
							args: ['orchestrator'],
							...restrictedContainer(),
							env: [
								{ name: 'NAME', valueFrom: { fieldRef: { fieldPath: 'metadata.name' } } },
								{ name: 'DATA_DIR', value: '/data' },
								{ name: 'TLS_DIR', value: '/var/run/distro/tls' },
								{ name: 'HTTP_HOST', value: '0.0.0.0' },
								{ name: 'HTTP_PORT', value: String(HTTP_PORT) },
								{ name: 'GRPC_PORT', value: String(GRPC_PORT) },
								{ name: 'ENROL_PORT', value: String(ENROL_PORT) },
								{ name: 'ENROL_DIR', value: '/var/run/distro/enrolment' },
								{ name: 'ISSUER_DIR', value: '/var/run/distro/issuer' },
								{ name: 'MASTER_KEY_FILE', value: '/var/run/distro/master-key/MASTER_KEY' },
								{ name: 'ADMIN_KEY_FILE', value: '/var/run/distro/api-key/admin' },
								{ name: 'MEMORY_BUDGET', value: mebibytes(budgetBytes) },
								{ name: 'TOLERATE_WORKERS', value: String(redundancy.tolerate.workers) },
								{ name: 'TOLERATE_ZONES', value: String(redundancy.tolerate.zones) },
								{ name: 'DATA_LOSS_PER_YEAR', value: redundancy.dataLossPerYear },
								...(redundancy.fixed === undefined
									? []
									: [
											{
												name: 'FIXED_REDUNDANCY',
												value: `${redundancy.fixed.dataShards}+${redundancy.fixed.parityShards}`,
											},
										]),
								...(metadata.supabase === undefined
									? []
									: [
											{
												name: 'SUPABASE_URL',
												valueFrom: {
													secretKeyRef: { name: metadata.supabase.secretRef.name, key: 'SUPABASE_URL' },
												},
											},
											{ name: 'SUPABASE_KEY_FILE', value: '/var/run/distro/supabase/SUPABASE_KEY' },
										]),
							],
							ports: [
								{ name: 'http', containerPort: HTTP_PORT },
								{ name: 'grpc', containerPort: GRPC_PORT },
								{ name: 'enrol', containerPort: ENROL_PORT },
							],
							...probes(),
							// So that what routes to this pod has forgotten it before it refuses.
							lifecycle: { preStop: { sleep: { seconds: 3 } } },
							resources: resourcesOf(orchestrator.resources, {
								requests: { cpu: '200m', memory: mebibytes(budgetBytes + IDLE_BYTES) },
								limits: { memory: mebibytes(budgetBytes * 1.25 + PEAK_BYTES) },
							}),
							volumeMounts: [
								{ name: 'data', mountPath: '/data' },
								TMP_MOUNT,
								...['tls', 'enrolment', 'issuer', 'master-key', 'api-key'].map(readOnly),
								...(metadata.supabase === undefined ? [] : [readOnly('supabase')]),
							],
						},
					],
					volumes: [
						isSqlite
							? { name: 'data', persistentVolumeClaim: { claimName: names.metadataClaim } }
							: { name: 'data', emptyDir: { sizeLimit: '64Mi' } },
						TMP_VOLUME,
						{
							name: 'tls',
							projected: {
								defaultMode: 0o440,
								sources: [
									{
										secret: {
											name: cluster.spec.tls.provided?.orchestrator.name ?? names.orchestratorTls,
											items: [
												{ key: 'tls.crt', path: 'tls.crt' },
												{ key: 'tls.key', path: 'tls.key' },
											],
										},
									},
									{ configMap: { name: names.caBundle, items: [{ key: 'ca.crt', path: 'ca.crt' }] } },
								],
							},
						},
						{ name: 'enrolment', configMap: { name: names.enrolment } },
						secret('issuer', cluster.spec.tls.provided?.issuer.name ?? names.issuer),
						secret('master-key', names.masterKey),
						secret('api-key', names.apiKey),
						...(metadata.supabase === undefined ? [] : [secret('supabase', metadata.supabase.secretRef.name)]),
					],
				},
			},
		},
	};
}

/** Of SQLite's metadata. It has no owner: it outlives the resource, as the workers' claims do. */
export function metadataClaim(cluster: DistroCluster, clusterId: string): Model<V1PersistentVolumeClaim> | null {
	const { metadata } = cluster.spec;
	if (metadata.type !== 'SQLite') return null;
	return {
		apiVersion: 'v1',
		kind: 'PersistentVolumeClaim',
		metadata: {
			name: namesOf(cluster).metadataClaim,
			namespace: cluster.metadata.namespace,
			labels: { ...labelsOf(cluster, 'orchestrator'), [CLUSTER_ID_LABEL]: clusterId },
		},
		spec: {
			accessModes: ['ReadWriteOnce'],
			...(metadata.storageClassName === undefined ? {} : { storageClassName: metadata.storageClassName }),
			resources: { requests: { storage: metadata.size } },
		},
	};
}

/** What people use. */
export function httpService(cluster: DistroCluster): Model<V1Service> {
	const { service } = cluster.spec.orchestrator;
	return {
		apiVersion: 'v1',
		kind: 'Service',
		metadata: owned(cluster, namesOf(cluster).http, 'orchestrator', service.annotations),
		spec: {
			type: service.type,
			selector: selectorOf(cluster, 'orchestrator'),
			ports: [{ name: 'http', port: HTTP_PORT, targetPort: HTTP_PORT, appProtocol: 'http' }],
		},
	};
}

/** What workers use: each orchestrator, also one that is not ready, since it gets ready by hearing workers. */
export function orchestratorService(cluster: DistroCluster): Model<V1Service> {
	return {
		apiVersion: 'v1',
		kind: 'Service',
		metadata: owned(cluster, namesOf(cluster).orchestrator, 'orchestrator'),
		spec: {
			clusterIP: 'None',
			publishNotReadyAddresses: true,
			selector: selectorOf(cluster, 'orchestrator'),
			ports: [
				{ name: 'grpc', port: GRPC_PORT, targetPort: GRPC_PORT, appProtocol: 'grpc' },
				{ name: 'enrol', port: ENROL_PORT, targetPort: ENROL_PORT },
				{ name: 'http', port: HTTP_PORT, targetPort: HTTP_PORT },
			],
		},
	};
}

export function httpIngress(cluster: DistroCluster): Model<V1Ingress> | null {
	const { ingress } = cluster.spec.orchestrator;
	if (ingress === undefined) return null;
	const { http } = namesOf(cluster);
	return {
		apiVersion: 'networking.k8s.io/v1',
		kind: 'Ingress',
		metadata: owned(cluster, http, 'orchestrator', ingress.annotations),
		spec: {
			...(ingress.className === undefined ? {} : { ingressClassName: ingress.className }),
			...(ingress.tlsSecretName === undefined
				? {}
				: { tls: [{ hosts: [ingress.host], secretName: ingress.tlsSecretName }] }),
			rules: [
				{
					host: ingress.host,
					http: {
						paths: [
							{
								path: ingress.path,
								pathType: 'Prefix',
								backend: { service: { name: http, port: { number: HTTP_PORT } } },
							},
						],
					},
				},
			],
		},
	};
}

/** None for a single one: it would only hold up the drain of its node. */
export function orchestratorBudget(cluster: DistroCluster): Model<V1PodDisruptionBudget> | null {
	const least = cluster.spec.autoscaling?.minReplicas ?? cluster.spec.orchestrator.replicas;
	if (least < 2) return null;
	return {
		apiVersion: 'policy/v1',
		kind: 'PodDisruptionBudget',
		metadata: owned(cluster, namesOf(cluster).orchestrator, 'orchestrator'),
		spec: {
			maxUnavailable: 1,
			unhealthyPodEvictionPolicy: 'AlwaysAllow',
			selector: { matchLabels: selectorOf(cluster, 'orchestrator') },
		},
	};
}

export function orchestratorAutoscaler(cluster: DistroCluster): Model<V2HorizontalPodAutoscaler> | null {
	const { autoscaling } = cluster.spec;
	if (autoscaling === undefined || cluster.spec.powerState === 'Hibernated') return null;
	const { orchestrator } = namesOf(cluster);
	return {
		apiVersion: 'autoscaling/v2',
		kind: 'HorizontalPodAutoscaler',
		metadata: owned(cluster, orchestrator, 'orchestrator'),
		spec: {
			scaleTargetRef: { apiVersion: 'apps/v1', kind: 'Deployment', name: orchestrator },
			minReplicas: autoscaling.minReplicas,
			maxReplicas: autoscaling.maxReplicas,
			metrics: [
				{
					type: 'Resource',
					resource: {
						name: 'cpu',
						target: { type: 'Utilization', averageUtilization: autoscaling.targetCPUUtilizationPercentage },
					},
				},
			],
		},
	};
}
