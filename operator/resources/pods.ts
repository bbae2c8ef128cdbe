/** What all pods of a cluster have in common: they run under PodSecurity `restricted`, on a read-only root, with no token of their own. */

import type { V1Container, V1PodSpec, V1Probe } from '@kubernetes/client-node';
import type { ImageSpec, PodMetadata, Resources, Scheduling } from '../types.ts';
import { HTTP_PORT } from './names.ts';

/** The image's user, and the group that may read mounted keys. */
const USER = 1000;

export const TMP_VOLUME = { name: 'tmp', emptyDir: { sizeLimit: '64Mi' } };
export const TMP_MOUNT = { name: 'tmp', mountPath: '/tmp' };

export function restrictedPod(): Pick<
	V1PodSpec,
	'securityContext' | 'automountServiceAccountToken' | 'enableServiceLinks'
> {
	return {
		automountServiceAccountToken: false,
		enableServiceLinks: false,
		securityContext: {
			runAsNonRoot: true,
			runAsUser: USER,
			runAsGroup: USER,
			fsGroup: USER,
			fsGroupChangePolicy: 'OnRootMismatch',
			seccompProfile: { type: 'RuntimeDefault' },
		},
	};
}

export function restrictedContainer(): Pick<V1Container, 'securityContext' | 'terminationMessagePolicy'> {
	return {
		terminationMessagePolicy: 'FallbackToLogsOnError',
		securityContext: {
			allowPrivilegeEscalation: false,
			readOnlyRootFilesystem: true,
			capabilities: { drop: ['ALL'] },
		},
	};
}

/** Of the pod: how its image may be pulled. */
export function pullSecretsOf(image: ImageSpec | undefined): Pick<V1PodSpec, 'imagePullSecrets'> {
	return image?.pullSecrets === undefined ? {} : { imagePullSecrets: [...image.pullSecrets] };
}

/** Of the container. */
export function imageOf(
	image: ImageSpec | undefined,
	resolved: string,
): Pick<V1Container, 'image' | 'imagePullPolicy'> {
	return { image: resolved, ...(image?.pullPolicy === undefined ? {} : { imagePullPolicy: image.pullPolicy }) };
}

/** Liveness never depends on peers: a restart would not bring them back. */
export function probes(): Pick<V1Container, 'startupProbe' | 'livenessProbe' | 'readinessProbe'> {
	const of = (path: string, rest: Partial<V1Probe>): V1Probe => ({
		httpGet: { path, port: HTTP_PORT },
		timeoutSeconds: 5,
		...rest,
	});
	return {
		// Five minutes: opening a large metadata file after a crash takes a while.
		startupProbe: of('/healthz', { periodSeconds: 2, failureThreshold: 150 }),
		livenessProbe: of('/healthz', { periodSeconds: 10, failureThreshold: 6 }),
		readinessProbe: of('/readyz', { periodSeconds: 3, failureThreshold: 2 }),
	};
}

export function scheduled(scheduling: Scheduling | undefined): Partial<V1PodSpec> {
	if (scheduling === undefined) return {};
	const { nodeSelector, tolerations, affinity, priorityClassName } = scheduling;
	return {
		...(nodeSelector === undefined ? {} : { nodeSelector: { ...nodeSelector } }),
		...(tolerations === undefined ? {} : { tolerations: [...tolerations] as V1PodSpec['tolerations'] }),
		...(affinity === undefined ? {} : { affinity: affinity as V1PodSpec['affinity'] }),
		...(priorityClassName === undefined ? {} : { priorityClassName }),
	};
}

/** A person's labels never replace the selector's. */
export function templateMetadata(selector: Record<string, string>, given: PodMetadata | undefined) {
	return {
		labels: { ...given?.labels, ...selector },
		...(given?.annotations === undefined ? {} : { annotations: { ...given.annotations } }),
	};
}

export function resourcesOf(given: Resources | undefined, byDefault: Resources) {
	const text = (of: Readonly<Record<string, string | number>> | undefined) =>
		of === undefined ? undefined : Object.fromEntries(Object.entries(of).map(([name, value]) => [name, String(value)]));
	const { requests, limits } = given ?? byDefault;
	return {
		...(requests === undefined ? {} : { requests: text(requests) }),
		...(limits === undefined ? {} : { limits: text(limits) }),
	};
}
