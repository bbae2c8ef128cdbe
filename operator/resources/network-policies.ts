/**
 * Who may talk to whom, as NetworkPolicies: people to the orchestrators' HTTP; workers to their gRPC and enrolment;
 * orchestrators to workers; metrics from anywhere in the cluster where monitoring is on. Workers reach nothing else but DNS.
 * Orchestrators may reach anything when the metadata are in Supabase, whose addresses nobody can name.
 */

import type { V1NetworkPolicy, V1NetworkPolicyPort } from '@kubernetes/client-node';
import type { Model } from '../kube/objects.ts';
import type { DistroCluster } from '../types.ts';
import { ENROL_PORT, GRPC_PORT, HTTP_PORT, namesOf, owned, selectorOf } from './names.ts';

const tcp = (port: number): V1NetworkPolicyPort => ({ protocol: 'TCP', port });
const DNS: V1NetworkPolicyPort[] = [
	{ protocol: 'UDP', port: 53 },
	{ protocol: 'TCP', port: 53 },
];

export function networkPolicies(cluster: DistroCluster, operator: { namespace: string }): Model<V1NetworkPolicy>[] {
	if (!cluster.spec.networkPolicy.enabled) return [];
	const names = namesOf(cluster);
	const orchestrators = { matchLabels: selectorOf(cluster, 'orchestrator') };
	const workers = { matchLabels: selectorOf(cluster, 'worker') };
	const operatorPods = {
		namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': operator.namespace } },
		podSelector: { matchLabels: { 'app.kubernetes.io/name': 'distro-operator' } },
	};
	const dns = { ports: DNS };
	return [
		{
			apiVersion: 'networking.k8s.io/v1',
			kind: 'NetworkPolicy',
			metadata: owned(cluster, names.orchestrator, 'orchestrator'),
			spec: {
				podSelector: orchestrators,
				policyTypes: ['Ingress', 'Egress'],
				ingress: [
					{ ports: [tcp(HTTP_PORT)] },
					{ from: [{ podSelector: workers }], ports: [tcp(GRPC_PORT), tcp(ENROL_PORT)] },
					{ from: [operatorPods], ports: [tcp(GRPC_PORT)] },
				],
				egress:
					cluster.spec.metadata.type === 'Supabase'
						? [{}]
						: [{ to: [{ podSelector: workers }], ports: [tcp(GRPC_PORT)] }, dns],
			},
		},
		{
			apiVersion: 'networking.k8s.io/v1',
			kind: 'NetworkPolicy',
			metadata: owned(cluster, names.worker, 'worker'),
			spec: {
				podSelector: workers,
				policyTypes: ['Ingress', 'Egress'],
				ingress: [
					{ from: [{ podSelector: orchestrators }], ports: [tcp(GRPC_PORT)] },
					{ from: [operatorPods], ports: [tcp(HTTP_PORT)] },
					...(cluster.spec.monitoring.podMonitor
						? [{ from: [{ namespaceSelector: {} }], ports: [tcp(HTTP_PORT)] }]
						: []),
				],
				egress: [{ to: [{ podSelector: orchestrators }], ports: [tcp(GRPC_PORT), tcp(ENROL_PORT)] }, dns],
			},
		},
	];
}
