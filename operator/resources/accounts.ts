/** Service accounts of the pods. Neither has a Role, and no pod gets a token for the Kubernetes API. */

import type { V1ServiceAccount } from '@kubernetes/client-node';
import type { Model } from '../kube/objects.ts';
import type { DistroCluster } from '../types.ts';
import { namesOf, owned } from './names.ts';

export function serviceAccounts(cluster: DistroCluster): Model<V1ServiceAccount>[] {
	const names = namesOf(cluster);
	return (['orchestrator', 'worker'] as const).map((component) => ({
		apiVersion: 'v1',
		kind: 'ServiceAccount',
		metadata: owned(cluster, names[component], component),
		automountServiceAccountToken: false,
	}));
}
