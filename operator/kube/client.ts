/**
 * The calls of the Kubernetes API that the operator makes. One field manager, `distro-operator`, and always with force:
 * what it sends is its own.
 *
 * A call is made once. Its deadline passed or its connection broke: a write may have been done all the same, and the next
 * pass sees.
 */

import { assert } from '../../core/assert.ts';
import { DistroError } from '../../core/errors.ts';
import type { Clock } from '../../core/ports.ts';
import type { Access } from './access.ts';
import { fromStatus, KIND_ABSENT } from './errors.ts';
import { type KubeObject, keyOf, type ObjectRef, type Preconditions, refOf, type Stored } from './objects.ts';
import { apiVersionOf, type ListedResource, pathOf, type Resource } from './resources.ts';
import { type Call, Transport } from './transport.ts';

export const FIELD_MANAGER = 'distro-operator';

const PAGE_OBJECTS = 500;
/** Far more than any cluster of ours has; a list that grows without end must not take the process with it. */
const LIST_MAX_OBJECTS = 50_000;

export interface CallOptions {
	readonly timeoutMs?: number;
	readonly signal?: AbortSignal;
}

export interface Selection {
	/** Without one: all namespaces. */
	readonly namespace?: string;
	readonly labelSelector?: string;
	readonly fieldSelector?: string;
}

export interface WriteOptions extends CallOptions {
	readonly fieldManager?: string;
	readonly preconditions?: Preconditions;
	readonly subresource?: 'status' | 'scale';
}

/** What is sent of an object: what it has to be, and nothing of what others wrote. */
export type Applied<T extends KubeObject> = KubeObject & Part<Omit<T, keyof KubeObject>>;
type Part<T> = T extends object ? { readonly [K in keyof T]?: Part<T[K]> } : T;

export interface ObjectList<T extends KubeObject> {
	readonly items: readonly Stored<T>[];
	/** Where a watch goes on. */
	readonly resourceVersion: string;
}

export type WatchEvent<T extends KubeObject> =
	| { readonly type: 'ADDED' | 'MODIFIED' | 'DELETED'; readonly object: Stored<T> }
	| { readonly type: 'BOOKMARK'; readonly resourceVersion: string };

export type JsonPatch = readonly {
	readonly op: 'add' | 'remove' | 'replace' | 'test';
	readonly path: string;
	readonly value?: unknown;
}[];

export class KubeClient {
	readonly #transport: Transport;

	constructor(options: { readonly access: Access; readonly clock: Clock }) {
		this.#transport = new Transport(options);
	}

	/** As it is now, from the store and not from a cache. Null: there is none. */
	async get<T extends KubeObject>(
		resource: Resource<T>,
		ref: ObjectRef,
		options: CallOptions = {},
	): Promise<Stored<T> | null> {
		try {
			return (await this.#call(resource, ref, 'GET', options)) as Stored<T>;
		} catch (error) {
			if (isGone(error)) return null;
			throw error;
		}
	}

	/** All of them, page by page, as of one moment. */
	async list<T extends KubeObject>(
		resource: ListedResource<T>,
		selection: Selection,
		options: CallOptions = {},
	): Promise<ObjectList<T>> {
		try {
			return await this.#pages(resource, selection, { ...options, limit: PAGE_OBJECTS });
		} catch (error) {
			// The snapshot that the pages were cut from is gone: then all at once.
			if (!(error instanceof DistroError && error.kind === 'expired')) throw error;
			return await this.#pages(resource, selection, { ...options, limit: 0 });
		}
	}

	/**
	 * What changes after `resourceVersion`, until the server ends it after about `timeoutSeconds`. Throws `expired` when
	 * the server has forgotten so old a version. Silence is not noticed here: that is the reflector's.
	 */
	async *watch<T extends KubeObject>(
		resource: ListedResource<T>,
		selection: Selection,
		options: CallOptions & { readonly resourceVersion: string; readonly timeoutSeconds: number },
	): AsyncGenerator<WatchEvent<T>, void, undefined> {
		const doing = `watch ${resource.plural}`;
		const lines = this.#transport.lines({
			method: 'GET',
			path: pathOf(resource, selection),
			query: {
				...selectors(selection),
				watch: 'true',
				allowWatchBookmarks: 'true',
				resourceVersion: options.resourceVersion,
				timeoutSeconds: String(options.timeoutSeconds),
			},
			doing,
			...callOptions(options),
		});
		for await (const line of lines) yield toEvent<T>(doing, line);
	}

	/**
	 * Makes the object be so, whether or not it is there. What was sent before and is not now goes; what others set stays.
	 * With preconditions it is never made anew.
	 */
	async apply<T extends KubeObject>(
		resource: Resource<T>,
		object: Applied<T>,
		options: WriteOptions = {},
	): Promise<Stored<T>> {
		const metadata = { ...object.metadata, ...options.preconditions };
		return (await this.#call(resource, refOf(object), 'PATCH', {
			...options,
			query: { fieldManager: options.fieldManager ?? FIELD_MANAGER, force: 'true' },
			body: { ...object, apiVersion: apiVersionOf(resource), kind: resource.kind, metadata },
			contentType: 'application/apply-patch+yaml',
		})) as Stored<T>;
	}

	/** The same for the status, which `apply` does not touch. */
	applyStatus<T extends KubeObject>(
		resource: Resource<T>,
		object: Applied<T>,
		options: Omit<WriteOptions, 'subresource'> = {},
	): Promise<Stored<T>> {
		return this.apply(resource, object, { ...options, subresource: 'status' });
	}

	/** Throws `exists`. For what must never be overwritten: keys above all. */
	async create<T extends KubeObject>(
		resource: Resource<T>,
		object: Applied<T>,
		options: CallOptions = {},
	): Promise<Stored<T>> {
		return (await this.#call(resource, { ...refOf(object), name: '' }, 'POST', {
			...options,
			query: { fieldManager: FIELD_MANAGER },
			body: { ...object, apiVersion: apiVersionOf(resource), kind: resource.kind },
		})) as Stored<T>;
	}

	/** Throws `conflict` when the preconditions don't hold, and `invalid` for a `test` that fails. */
	async patch<T extends KubeObject>(
		resource: Resource<T>,
		ref: ObjectRef,
		options: WriteOptions & ({ readonly merge: object } | { readonly json: JsonPatch }),
	): Promise<Stored<T>> {
		const { preconditions } = options;
		// A version that is set must be the current one; a uid would be refused as a change of one (422) and adds nothing:
		// no two objects ever had one version.
		const version = preconditions?.resourceVersion;
		const body =
			'merge' in options
				? version === undefined
					? options.merge
					: withVersion(options.merge, version)
				: version === undefined
					? options.json
					: [{ op: 'replace', path: '/metadata/resourceVersion', value: version }, ...options.json];
		return (await this.#call(resource, ref, 'PATCH', {
			...options,
			query: { fieldManager: options.fieldManager ?? FIELD_MANAGER },
			body,
			contentType: 'merge' in options ? 'application/merge-patch+json' : 'application/json-patch+json',
		})) as Stored<T>;
	}

	/** What `kubectl scale` does: only the number of replicas. */
	async scale(
		resource: Resource,
		ref: ObjectRef,
		options: CallOptions & { readonly replicas: number; readonly preconditions?: Preconditions },
	): Promise<void> {
		const { replicas, ...rest } = options;
		await this.patch(resource, ref, { ...rest, merge: { spec: { replicas } }, subresource: 'scale' });
	}

	/**
	 * Begins to delete this very object: it may stay for its finalizers. One that is gone already is fine; another of the
	 * same name, or a later version, is a `conflict`.
	 */
	async delete(
		resource: Resource,
		ref: ObjectRef,
		options: CallOptions & {
			readonly preconditions: { readonly uid: string; readonly resourceVersion?: string };
			readonly propagation?: 'Background' | 'Foreground' | 'Orphan';
			readonly gracePeriodSeconds?: number;
		},
	): Promise<void> {
		const { preconditions, propagation = 'Background', gracePeriodSeconds } = options;
		try {
			await this.#call(resource, ref, 'DELETE', {
				...options,
				body: {
					apiVersion: 'v1',
					kind: 'DeleteOptions',
					preconditions,
					propagationPolicy: propagation,
					...(gracePeriodSeconds === undefined ? {} : { gracePeriodSeconds }),
				},
			});
		} catch (error) {
			if (!isGone(error)) throw error;
		}
	}

	/** The plurals of the kinds of this group and version that this cluster knows; none when it does not know the group. */
	async servedKinds(
		group: Pick<Resource, 'group' | 'version'>,
		options: CallOptions = {},
	): Promise<ReadonlySet<string>> {
		const { group: name, version } = group;
		try {
			const answer = await this.#transport.json({
				method: 'GET',
				path: pathOf({ group: name, version }),
				doing: `discover ${apiVersionOf(group)}`,
				...callOptions(options),
			});
			const { resources = [] } = answer as { resources?: { name: string }[] };
			return new Set(resources.map((resource) => resource.name));
		} catch (error) {
			if (error instanceof DistroError && error.kind === 'not_found') return new Set();
			throw error;
		}
	}

	async #pages<T extends KubeObject>(
		resource: ListedResource<T>,
		selection: Selection,
		options: CallOptions & { readonly limit: number },
	): Promise<ObjectList<T>> {
		const items: Stored<T>[] = [];
		for (let next: string | undefined; ; ) {
			const page = (await this.#transport.json({
				method: 'GET',
				path: pathOf(resource, selection),
				query: {
					...selectors(selection),
					limit: options.limit === 0 ? undefined : String(options.limit),
					continue: next,
				},
				doing: `list ${resource.plural}`,
				...callOptions(options),
			})) as { items?: Stored<T>[]; metadata: { resourceVersion: string; continue?: string } };
			// Of lists of its own kinds the server leaves these out.
			const type = { apiVersion: apiVersionOf(resource), kind: resource.kind };
			for (const item of page.items ?? []) items.push({ ...item, ...type });
			if (items.length > LIST_MAX_OBJECTS) {
				throw new DistroError('exhausted', `list ${resource.plural}: more than ${LIST_MAX_OBJECTS} objects`);
			}
			const { resourceVersion } = page.metadata;
			next = page.metadata.continue;
			if (next === undefined || next === '') return { items, resourceVersion };
		}
	}

	#call(
		resource: Resource,
		ref: ObjectRef,
		method: Call['method'],
		options: CallOptions & Pick<WriteOptions, 'subresource'> & Pick<Call, 'query' | 'body' | 'contentType'>,
	): Promise<unknown> {
		const { namespace, name } = ref;
		assert(resource.namespaced === (namespace !== undefined), `${resource.plural} ${keyOf(ref)}: namespace`);
		const { query, body, contentType, subresource } = options;
		const isApply = contentType?.startsWith('application/apply') === true;
		const verb = isApply ? 'apply' : method === 'POST' ? 'create' : method.toLowerCase();
		return this.#transport.json({
			method,
			path: pathOf(resource, {
				...(namespace === undefined ? {} : { namespace }),
				...(name === '' ? {} : { name }),
				...(subresource === undefined ? {} : { subresource }),
			}),
			...(query === undefined ? {} : { query }),
			...(body === undefined ? {} : { body }),
			...(contentType === undefined ? {} : { contentType }),
			doing: `${verb} ${resource.plural}${subresource === undefined ? '' : `/${subresource}`} ${keyOf(ref)}`,
			...callOptions(options),
		});
	}
}

function isGone(error: unknown): boolean {
	return error instanceof DistroError && error.kind === 'not_found' && error.reason !== KIND_ABSENT;
}

function callOptions(options: CallOptions): CallOptions {
	const { timeoutMs, signal } = options;
	return { ...(timeoutMs === undefined ? {} : { timeoutMs }), ...(signal === undefined ? {} : { signal }) };
}

function selectors(selection: Selection): Record<string, string | undefined> {
	return { labelSelector: selection.labelSelector, fieldSelector: selection.fieldSelector };
}

function withVersion(merge: object, resourceVersion: string): object {
	return { ...merge, metadata: { ...(merge as Partial<KubeObject>).metadata, resourceVersion } };
}

function toEvent<T extends KubeObject>(doing: string, line: string): WatchEvent<T> {
	let event: { type?: string; object?: Stored<T> };
	try {
		event = JSON.parse(line) as typeof event;
	} catch (error) {
		throw new DistroError('unavailable', `${doing}: a line that is not JSON`, { cause: error });
	}
	const { type, object } = event;
	if (type === 'ERROR' || object === undefined) throw fromStatus(doing, object);
	if (type === 'BOOKMARK') return { type, resourceVersion: object.metadata.resourceVersion };
	if (type === 'ADDED' || type === 'MODIFIED' || type === 'DELETED') return { type, object };
	throw new DistroError('unsupported', `${doing}: an event of type ${type}`);
}
