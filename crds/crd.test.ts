/**
 * The CRD and operator/types.ts say the same: `FULL` has every field that the types know (the compiler sees to that), and
 * exactly those that the schema has. And the schema keeps what an API server asks of rules and defaults.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { parse } from 'yaml';
import {
	CONDITIONS,
	type DistroClusterSpec,
	type DistroClusterStatus,
	GROUP,
	KIND,
	PLURAL,
	VERSION,
} from '../operator/types.ts';

interface Schema {
	readonly type?: string;
	readonly enum?: readonly string[];
	readonly default?: unknown;
	readonly required?: readonly string[];
	readonly properties?: Readonly<Record<string, Schema>>;
	readonly additionalProperties?: Schema;
	readonly items?: Schema;
	readonly maxLength?: number;
	readonly maxItems?: number;
	readonly maxProperties?: number;
	readonly 'x-kubernetes-preserve-unknown-fields'?: boolean;
	readonly 'x-kubernetes-int-or-string'?: boolean;
	readonly 'x-kubernetes-validations'?: readonly { readonly rule: string; readonly message?: string }[];
}

type Full<T> = T extends readonly (infer Item)[]
	? readonly [Full<Item>]
	: T extends object
		? string extends keyof T
			? T
			: { [K in keyof T]-?: Full<NonNullable<T[K]>> }
		: T;

const ref = { name: 'a' };
const resources = { requests: { cpu: 1 }, limits: { memory: '1Gi' } };
const scheduling = { nodeSelector: { a: 'b' }, tolerations: [{}], affinity: {}, priorityClassName: 'a' } as const;
const podMetadata = { labels: { a: 'b' }, annotations: { a: 'b' } };

const FULL_SPEC: Full<DistroClusterSpec> = {
	powerState: 'Running',
	deletionPolicy: 'Retain',
	confirmDataLoss: '',
	image: { repository: 'a', tag: 'b', digest: 'c', pullPolicy: 'Always', pullSecrets: [ref] },
	redundancy: {
		tolerate: { workers: 2, zones: 1 },
		dataLossPerYear: '1e-9',
		fixed: { dataShards: 4, parityShards: 2 },
		failureDomain: 'a',
	},
	worker: {
		replicas: 6,
		storage: { size: '1Gi', storageClassName: 'a', reclaimOnScaleDown: 'Retain' },
		update: { strategy: 'HealthGated', maxUnavailable: 1, healthTimeoutSeconds: 1 },
		scaleDown: { policy: 'Evacuate', maxConcurrent: 1, stallTimeoutSeconds: 1 },
		replaceLostAfterSeconds: 1,
		disruptionBudget: 'Dynamic',
		terminationGracePeriodSeconds: 1,
		resources,
		scheduling,
		podMetadata,
	},
	orchestrator: {
		replicas: 1,
		memoryBudget: '1Gi',
		service: { type: 'ClusterIP', annotations: { a: 'b' } },
		ingress: { className: 'a', host: 'b', path: '/', tlsSecretName: 'c', annotations: { a: 'b' } },
		terminationGracePeriodSeconds: 1,
		resources,
		scheduling,
		podMetadata,
	},
	autoscaling: { minReplicas: 1, maxReplicas: 2, targetCPUUtilizationPercentage: 1 },
	metadata: {
		type: 'SQLite',
		size: '1Gi',
		storageClassName: 'a',
		recoverFromSnapshot: false,
		supabase: { secretRef: ref },
	},
	tls: {
		mode: 'SelfSigned',
		certificateDays: 1,
		renewBeforeDays: 1,
		caDays: 1,
		renewCaBeforeDays: 1,
		certManager: { issuerRef: { name: 'a', kind: 'b', group: 'c' } },
		provided: { caBundle: ref, issuer: ref, orchestrator: ref, operator: ref },
	},
	encryption: { keyGeneration: 1, masterKeySecretRef: ref },
	networkPolicy: { enabled: true },
	monitoring: { podMonitor: true, prometheusRule: true, grafanaDashboard: true },
};

const FULL_STATUS: Full<DistroClusterStatus> = {
	observedGeneration: 1,
	phase: 'a',
	version: 'a',
	image: 'a',
	clusterId: 'a',
	failureDomain: 'a',
	conditions: [
		{ type: 'Ready', status: 'True', observedGeneration: 1, lastTransitionTime: 'a', reason: 'a', message: 'a' },
	],
	worker: {
		replicas: 1,
		ready: 1,
		updated: 1,
		draining: 1,
		selector: 'a',
		storage: { capacity: 'a', requested: 'a' },
		members: [{ name: 'a', state: 'b', message: 'c' }],
	},
	orchestrator: { replicas: 1, ready: 1, updated: 1 },
	data: {
		objects: 1,
		degraded: 1,
		atRisk: 1,
		unrecoverable: 1,
		repairQueue: 1,
		failureTolerance: 1,
		bytesUsed: 1,
		bytesTotal: 1,
		lastChecked: 'a',
	},
	rollout: { blockedBy: ['a'] },
	certificates: { caNotAfter: 'a', leafNotAfter: 'a' },
	encryption: { keyGeneration: 1, masterKeyFingerprint: 'a', progress: 'a' },
};

const crd = parse(readFileSync(join(import.meta.dirname, 'distroclusters.distro.dev.yaml'), 'utf8'));
const version = crd.spec.versions[0];
const root: Schema = version.schema.openAPIV3Schema;
const spec = root.properties?.spec as Schema;
const status = root.properties?.status as Schema;

/** Paths of all leaves: of a value, and of a schema. */
function pathsOf(value: unknown, at = ''): string[] {
	if (Array.isArray(value)) return pathsOf(value[0], `${at}[]`);
	if (typeof value !== 'object' || value === null || Object.keys(value).length === 0) return [at];
	return Object.entries(value).flatMap(([key, inner]) => pathsOf(inner, `${at}.${key}`));
}

function pathsIn(schema: Schema, at = ''): string[] {
	if (schema.items !== undefined) return pathsIn(schema.items, `${at}[]`);
	if (schema.properties !== undefined) {
		return Object.entries(schema.properties).flatMap(([key, inner]) => pathsIn(inner, `${at}.${key}`));
	}
	return [at];
}

function* schemas(schema: Schema, at: string): Generator<{ at: string; schema: Schema }> {
	yield { at, schema };
	if (schema.items !== undefined) yield* schemas(schema.items, `${at}[]`);
	if (schema.additionalProperties !== undefined) yield* schemas(schema.additionalProperties, `${at}{}`);
	for (const [key, inner] of Object.entries(schema.properties ?? {})) yield* schemas(inner, `${at}.${key}`);
}

/** What the maps of a value have as keys is no field. */
const withoutMapKeys = (paths: string[]) =>
	paths.map((path) => path.replace(/\.(nodeSelector|labels|annotations|requests|limits)\..+$/, '.$1')).sort();

test('names and versions', () => {
	expect(crd.metadata.name).toBe(`${PLURAL}.${GROUP}`);
	expect(crd.spec.names.kind).toBe(KIND);
	expect(version.name).toBe(VERSION);
});

test('the types have the fields of the schema, and no others', () => {
	expect(withoutMapKeys(pathsOf(FULL_SPEC))).toEqual(pathsIn(spec).sort());
	expect(withoutMapKeys(pathsOf(FULL_STATUS))).toEqual(pathsIn(status).sort());
});

test('as many conditions as there can be fit', () => {
	expect(status.properties?.conditions?.maxItems).toBeGreaterThanOrEqual(CONDITIONS.length);
});

test('every string, list and map of the spec has a bound: rules cost by what there could be', () => {
	for (const { at, schema } of schemas(spec, 'spec')) {
		if (schema.type === 'string' && schema.enum === undefined) expect(schema.maxLength, at).toBeGreaterThan(0);
		if (schema.type === 'array') expect(schema.maxItems, at).toBeGreaterThan(0);
		if (schema.additionalProperties !== undefined) expect(schema.maxProperties, at).toBeGreaterThan(0);
	}
});

test('every rule says in a sentence what to do, and reads only fields that there are', () => {
	for (const { at, schema } of schemas(root, '')) {
		for (const { rule, message } of schema['x-kubernetes-validations'] ?? []) {
			expect(message?.length, `${at}: ${rule}`).toBeGreaterThan(20);
			for (const [, path] of rule.matchAll(/\b(?:self|oldSelf)\.([A-Za-z.]+)(?![A-Za-z(])/g)) {
				let found: Schema | undefined = schema;
				for (const part of (path as string).split('.')) {
					if (part === 'metadata' || part === 'name') break;
					found = found?.properties?.[part];
				}
				if (!/^(size|matches|metadata)/.test(path as string)) expect(found, `${at}: ${path}`).toBeDefined();
			}
		}
	}
});

test('what defaults as a whole is written out as its fields would default', () => {
	for (const { at, schema } of schemas(spec, 'spec')) {
		if (schema.type !== 'object' || schema.default === undefined) continue;
		const inner = Object.entries(schema.properties ?? {}).filter(([, { default: value }]) => value !== undefined);
		expect(schema.default, at).toEqual(
			Object.fromEntries(
				inner
					.map(([key, { default: value }]) => [key, value])
					.filter(([key]) => key !== 'recoverFromSnapshot' || 'recoverFromSnapshot' in (schema.default as object)),
			),
		);
	}
});
