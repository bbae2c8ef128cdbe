/**
 * Kubernetes objects as they are on the wire.
 *
 * The package's models describe what its own deserializer makes of them: times are Dates there, and words that are reserved
 * somewhere are renamed (`_from`). `Wire` undoes both, so that its types can be used for the JSON that really passes.
 */

export type Wire<T> = T extends Date
	? string
	: T extends readonly (infer Item)[]
		? readonly Wire<Item>[]
		: T extends object
			? { readonly [K in keyof T as K extends `_${infer Name}` ? Name : K]: Wire<T[K]> }
			: T;

export interface OwnerReference {
	readonly apiVersion: string;
	readonly kind: string;
	readonly name: string;
	readonly uid: string;
	readonly controller?: boolean;
	readonly blockOwnerDeletion?: boolean;
}

/** Which fields one manager has set: `f:` a field, `k:` an item of a keyed list, `v:` an item of a set. */
export interface ManagedFields {
	readonly manager: string;
	readonly operation: 'Apply' | 'Update';
	readonly apiVersion?: string;
	readonly time?: string;
	readonly fieldsType?: string;
	readonly fieldsV1?: FieldsV1;
	readonly subresource?: string;
}

export interface FieldsV1 {
	readonly [path: string]: FieldsV1;
}

export interface ObjectMeta {
	readonly name: string;
	readonly namespace?: string;
	readonly generateName?: string;
	readonly uid?: string;
	readonly resourceVersion?: string;
	readonly generation?: number;
	readonly creationTimestamp?: string;
	readonly deletionTimestamp?: string;
	readonly deletionGracePeriodSeconds?: number;
	readonly finalizers?: readonly string[];
	readonly labels?: Readonly<Record<string, string>>;
	readonly annotations?: Readonly<Record<string, string>>;
	readonly ownerReferences?: readonly OwnerReference[];
	readonly managedFields?: readonly ManagedFields[];
}

export interface KubeObject {
	readonly apiVersion: string;
	readonly kind: string;
	readonly metadata: ObjectMeta;
}

/** One of the package's models, as the API server sends it. */
export type Model<T> = Omit<Wire<T>, keyof KubeObject> & KubeObject;

/** What every object has that came from the API server. */
export type Stored<T extends KubeObject> = T & {
	readonly metadata: ObjectMeta & { readonly uid: string; readonly resourceVersion: string };
};

/** Names one object of a kind; without a namespace for kinds that have none. */
export interface ObjectRef {
	readonly namespace?: string;
	readonly name: string;
}

/** The key of an object in stores and queues. */
export function keyOf(ref: ObjectRef): string {
	return ref.namespace === undefined ? ref.name : `${ref.namespace}/${ref.name}`;
}

export function refOf(object: KubeObject): ObjectRef {
	const { namespace, name } = object.metadata;
	return namespace === undefined ? { name } : { namespace, name };
}

/** That it is this object and no other of the same name, and as it was read. */
export interface Preconditions {
	readonly uid: string;
	readonly resourceVersion: string;
}

export function preconditionsOf(object: Stored<KubeObject>): Preconditions {
	return { uid: object.metadata.uid, resourceVersion: object.metadata.resourceVersion };
}

/** As Leases and Events carry it. */
export function microTime(ms: number): string {
	return new Date(ms).toISOString().replace('Z', '000Z');
}
