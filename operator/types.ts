/**
 * The DistroCluster resource as the API server hands it out: defaults are filled in, and every rule of
 * crds/distroclusters.distro.dev.yaml holds. Hand-written once; crds/crd.test.ts compares the two.
 */

export const GROUP = 'distro.dev';
export const VERSION = 'v1alpha1';
export const PLURAL = 'distroclusters';
export const KIND = 'DistroCluster';

/** Bytes, as Kubernetes writes them: 10Gi. */
export type Quantity = string;

export interface SecretRef {
	readonly name: string;
}

export interface Resources {
	readonly requests?: Readonly<Record<string, Quantity | number>>;
	readonly limits?: Readonly<Record<string, Quantity | number>>;
}

export interface Scheduling {
	readonly nodeSelector?: Readonly<Record<string, string>>;
	/** As in a pod. */
	readonly tolerations?: readonly object[];
	/** As in a pod. */
	readonly affinity?: object;
	readonly priorityClassName?: string;
}

export interface PodMetadata {
	readonly labels?: Readonly<Record<string, string>>;
	readonly annotations?: Readonly<Record<string, string>>;
}

export interface ImageSpec {
	readonly repository?: string;
	readonly tag?: string;
	readonly digest?: string;
	readonly pullPolicy?: 'Always' | 'IfNotPresent' | 'Never';
	readonly pullSecrets?: readonly SecretRef[];
}

export interface RedundancySpec {
	readonly tolerate: { readonly workers: number; readonly zones: number };
	/** Decimal: 1e-9. */
	readonly dataLossPerYear: string;
	readonly fixed?: { readonly dataShards: number; readonly parityShards: number };
	readonly failureDomain?: string;
}

export interface WorkerSpec {
	readonly replicas: number;
	readonly storage: {
		readonly size: Quantity;
		readonly storageClassName?: string;
		readonly reclaimOnScaleDown: 'Retain' | 'Delete';
	};
	readonly update: {
		readonly strategy: 'HealthGated' | 'OnDelete';
		readonly maxUnavailable: number;
		readonly healthTimeoutSeconds: number;
	};
	readonly scaleDown: {
		readonly policy: 'Evacuate' | 'Block';
		readonly maxConcurrent: number;
		readonly stallTimeoutSeconds: number;
	};
	/** 0: never. */
	readonly replaceLostAfterSeconds: number;
	readonly disruptionBudget: 'Dynamic' | 'Static' | 'Disabled';
	readonly terminationGracePeriodSeconds: number;
	readonly resources?: Resources;
	readonly scheduling?: Scheduling;
	readonly podMetadata?: PodMetadata;
}

export interface OrchestratorSpec {
	readonly replicas: number;
	readonly memoryBudget: Quantity;
	readonly service: {
		readonly type: 'ClusterIP' | 'NodePort' | 'LoadBalancer';
		readonly annotations?: Readonly<Record<string, string>>;
	};
	readonly ingress?: {
		readonly className?: string;
		readonly host: string;
		readonly path: string;
		readonly tlsSecretName?: string;
		readonly annotations?: Readonly<Record<string, string>>;
	};
	readonly terminationGracePeriodSeconds: number;
	readonly resources?: Resources;
	readonly scheduling?: Scheduling;
	readonly podMetadata?: PodMetadata;
}

export interface TlsSpec {
	readonly mode: 'SelfSigned' | 'CertManager' | 'Provided';
	readonly certificateDays: number;
	readonly renewBeforeDays: number;
	readonly caDays: number;
	readonly renewCaBeforeDays: number;
	readonly certManager?: {
		readonly issuerRef: { readonly name: string; readonly kind: string; readonly group: string };
	};
	readonly provided?: {
		readonly caBundle: SecretRef;
		readonly issuer: SecretRef;
		readonly orchestrator: SecretRef;
		readonly operator: SecretRef;
	};
}

export interface DistroClusterSpec {
	readonly powerState: 'Running' | 'Hibernated';
	readonly deletionPolicy: 'Retain' | 'Delete';
	readonly confirmDataLoss?: string;
	readonly image?: ImageSpec;
	readonly redundancy: RedundancySpec;
	readonly worker: WorkerSpec;
	readonly orchestrator: OrchestratorSpec;
	readonly autoscaling?: {
		readonly minReplicas: number;
		readonly maxReplicas: number;
		readonly targetCPUUtilizationPercentage: number;
	};
	readonly metadata: {
		readonly type: 'SQLite' | 'Supabase';
		readonly size: Quantity;
		readonly storageClassName?: string;
		readonly recoverFromSnapshot: boolean;
		readonly supabase?: { readonly secretRef: SecretRef };
	};
	readonly tls: TlsSpec;
	readonly encryption: { readonly keyGeneration: number; readonly masterKeySecretRef?: SecretRef };
	readonly networkPolicy: { readonly enabled: boolean };
	readonly monitoring: {
		readonly podMonitor: boolean;
		readonly prometheusRule: boolean;
		readonly grafanaDashboard: boolean;
	};
}

export const CONDITIONS = [
	'Ready',
	'Available',
	'Progressing',
	'DataHealthy',
	'ScaleDownAllowed',
	'RolloutComplete',
	'StorageReady',
	'CertificatesValid',
	'KeysRotated',
	'ReconciliationPaused',
	'DeletionBlocked',
] as const;
export type ConditionType = (typeof CONDITIONS)[number];

export interface Condition {
	readonly type: ConditionType;
	readonly status: 'True' | 'False' | 'Unknown';
	readonly observedGeneration?: number;
	/** RFC 3339, whole seconds. */
	readonly lastTransitionTime: string;
	/** One word in CamelCase. */
	readonly reason: string;
	readonly message: string;
}

export interface WorkerMember {
	readonly name: string;
	readonly state: string;
	readonly message?: string;
}

export interface DistroClusterStatus {
	readonly observedGeneration?: number;
	readonly phase?: string;
	readonly version?: string;
	readonly image?: string;
	readonly clusterId?: string;
	readonly failureDomain?: string;
	readonly conditions?: readonly Condition[];
	readonly worker?: {
		readonly replicas?: number;
		readonly ready?: number;
		readonly updated?: number;
		readonly draining?: number;
		readonly selector?: string;
		readonly storage?: { readonly capacity?: Quantity; readonly requested?: Quantity };
		readonly members?: readonly WorkerMember[];
	};
	readonly orchestrator?: { readonly replicas?: number; readonly ready?: number; readonly updated?: number };
	readonly data?: {
		readonly objects?: number;
		readonly degraded?: number;
		readonly atRisk?: number;
		readonly unrecoverable?: number;
		readonly repairQueue?: number;
		readonly failureTolerance?: number;
		readonly bytesUsed?: number;
		readonly bytesTotal?: number;
		readonly lastChecked?: string;
	};
	readonly rollout?: { readonly blockedBy?: readonly string[] };
	readonly certificates?: { readonly caNotAfter?: string; readonly leafNotAfter?: string };
	readonly encryption?: {
		readonly keyGeneration?: number;
		readonly masterKeyFingerprint?: string;
		readonly progress?: string;
	};
}

export interface ObjectMeta {
	readonly name: string;
	readonly namespace?: string;
	readonly uid?: string;
	readonly resourceVersion?: string;
	readonly generation?: number;
	readonly creationTimestamp?: string;
	readonly deletionTimestamp?: string;
	readonly finalizers?: readonly string[];
	readonly labels?: Readonly<Record<string, string>>;
	readonly annotations?: Readonly<Record<string, string>>;
	readonly ownerReferences?: readonly object[];
}

export interface DistroCluster {
	readonly apiVersion: `${typeof GROUP}/${typeof VERSION}`;
	readonly kind: typeof KIND;
	readonly metadata: ObjectMeta & { readonly namespace: string; readonly uid: string };
	readonly spec: DistroClusterSpec;
	readonly status?: DistroClusterStatus;
}
