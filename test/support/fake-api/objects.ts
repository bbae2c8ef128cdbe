/**
 * The objects of the fake API server and the rules that hold for each write: versions, generations, owners of fields,
 * preconditions, finalizers, immutable fields, and the garbage collector. Without HTTP.
 */

import { randomUUID } from 'node:crypto';
import type { Resource } from '../../../operator/kube/resources.ts';
import { ApplyConflict, applied, isObject, type Json, type JsonObject, textOf, updated } from './fields.ts';
import { jsonPatch, mergePatch, PatchFailure } from './patches.ts';

/** A Status, as the API server answers. */
export class ApiFailure extends Error {
	readonly code: number;
	readonly reason: string;

	constructor(code: number, reason: string, message: string) {
		super(message);
		this.code = code;
		this.reason = reason;
	}
}

export interface ObjectEvent {
	readonly version: number;
	readonly resource: Resource;
	/** Null: it was not there. */
	readonly before: JsonObject | null;
	/** Of a deleted one: as it was last, with the version of its deletion. */
	readonly object: JsonObject;
	readonly deleted: boolean;
}

export interface Place {
	readonly resource: Resource;
	readonly namespace?: string | undefined;
	readonly name: string;
}

export interface Write {
	readonly manager: string;
	readonly subresource?: string | undefined;
}

export interface ObjectsOptions {
	/** What admission and the schema's defaults make of an object before it is stored. */
	readonly admit?: (resource: Resource, object: JsonObject) => JsonObject;
	/** Whether a delete only marks this object, because its node still runs it. */
	readonly lingers?: (resource: Resource, object: JsonObject) => boolean;
}

/** Under `spec`. */
const IMMUTABLE: Readonly<Record<string, readonly string[]>> = {
	statefulsets: ['selector', 'serviceName', 'podManagementPolicy', 'volumeClaimTemplates'],
	deployments: ['selector'],
	persistentvolumeclaims: ['accessModes', 'storageClassName'],
};
const MAPS = new Set(['data', 'stringData', 'labels', 'annotations', 'nodeSelector', 'matchLabels']);
const FOREGROUND = 'foregroundDeletion';
const EVENTS_KEPT = 10_000;
const NAME = /^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/;
/** As real ones do, so that nobody takes them for small. */
const FIRST_VERSION = 1_000;

export class FakeObjects {
	readonly #o: ObjectsOptions;
	readonly #kinds = new Map<string, Map<string, JsonObject>>();
	readonly #resources = new Map<string, Resource>();
	readonly #listeners = new Set<(event: ObjectEvent) => void>();
	#events: ObjectEvent[] = [];
	#version = FIRST_VERSION;
	/** Watches from before this are told that they are too old. */
	#oldest = FIRST_VERSION;

	constructor(options: ObjectsOptions = {}) {
		this.#o = options;
	}

	get version(): number {
		return this.#version;
	}

	onEvent(listener: (event: ObjectEvent) => void): void {
		this.#listeners.add(listener);
	}

	/** Null: so much is not known any more. */
	eventsAfter(version: number): readonly ObjectEvent[] | null {
		return version < this.#oldest ? null : this.#events.filter((event) => event.version > version);
	}

	compact(): void {
		this.#events = [];
		this.#oldest = this.#version;
	}

	find(place: Place): JsonObject | null {
		return this.#kind(place.resource).get(keyOf(place)) ?? null;
	}

	get(place: Place): JsonObject {
		const object = this.find(place);
		if (object === null) throw notFound(place);
		return object;
	}

	/** In the order of their keys. */
	list(resource: Resource, namespace?: string): JsonObject[] {
		return [...this.#kind(resource)]
			.sort(([a], [b]) => (a < b ? -1 : 1))
			.map(([, object]) => object)
			.filter((object) => namespace === undefined || metadataOf(object).namespace === namespace);
	}

	create(place: Place, body: JsonObject, write: Write): JsonObject {
		checkType(place, body);
		if (!NAME.test(place.name)) throw new ApiFailure(422, 'Invalid', `metadata.name: Invalid value: "${place.name}"`);
		if (this.find(place) !== null) {
			throw new ApiFailure(409, 'AlreadyExists', `${place.resource.plural} "${place.name}" already exists`);
		}
		const object = this.#fresh(place, structuredClone(body));
		return this.#store(place, null, this.#owned(null, object, write));
	}

	/** PUT. */
	replace(place: Place, body: JsonObject, write: Write): JsonObject {
		checkType(place, body);
		return this.#update(place, write, () => structuredClone(body));
	}

	/** `kind` is the content type's. */
	patch(place: Place, body: Json, write: Write & { readonly kind: 'merge' | 'json' }): JsonObject {
		return this.#update(place, write, (live) => {
			try {
				const patched = write.kind === 'merge' ? mergePatch(live, body) : jsonPatch(live, body);
				return structuredClone(patched as JsonObject);
			} catch (error) {
				if (error instanceof PatchFailure) throw new ApiFailure(422, 'Invalid', error.message);
				throw error;
			}
		});
	}

	apply(place: Place, body: JsonObject, write: Write & { readonly force: boolean }): JsonObject {
		checkType(place, body);
		if (metadataOf(body).managedFields !== undefined) {
			throw new ApiFailure(400, 'BadRequest', 'metadata.managedFields must be nil');
		}
		const live = this.find(place);
		const { uid, resourceVersion } = metadataOf(body);
		if (live === null) {
			if (write.subresource !== undefined) throw notFound(place);
			if (uid !== undefined || resourceVersion !== undefined) throw conflict(place, 'it is gone');
			const { object, managed } = this.#applied(null, body, write);
			if (!NAME.test(place.name)) throw new ApiFailure(422, 'Invalid', `metadata.name: Invalid value: "${place.name}"`);
			return this.#store(place, null, withManaged(this.#fresh(place, object), managed));
		}
		if (uid !== undefined && uid !== metadataOf(live).uid) throw conflict(place, 'another uid');
		let owners: Json = [];
		return this.#update(
			place,
			write,
			() => {
				const { object, managed } = this.#applied(live, only(body, write.subresource), write);
				owners = managed as unknown as Json;
				return object;
			},
			() => owners,
		);
	}

	/** What stays for a while is returned, and null for what is gone. */
	delete(
		place: Place,
		options: {
			readonly uid?: string | undefined;
			readonly resourceVersion?: string | undefined;
			readonly propagation?: string | undefined;
			readonly graceSeconds?: number | undefined;
		} = {},
	): JsonObject | null {
		const live = this.get(place);
		const metadata = metadataOf(live);
		if (options.uid !== undefined && options.uid !== metadata.uid) throw conflict(place, 'Precondition failed: UID');
		if (options.resourceVersion !== undefined && options.resourceVersion !== metadata.resourceVersion) {
			throw conflict(place, 'Precondition failed: ResourceVersion');
		}
		if (options.propagation === 'Orphan') this.#orphan(String(metadata.uid));
		const finalizers = [...((metadata.finalizers ?? []) as string[])];
		if (options.propagation === 'Foreground' && !finalizers.includes(FOREGROUND)) finalizers.push(FOREGROUND);
		const lingers = options.graceSeconds !== 0 && (this.#o.lingers?.(place.resource, live) ?? false);
		if (finalizers.length === 0 && !lingers) return this.#remove(place, live);
		if (metadata.deletionTimestamp !== undefined && textOf(finalizers) === textOf(metadata.finalizers ?? []))
			return live;
		const object = structuredClone(live);
		const { generation } = metadata;
		Object.assign(metadataOf(object), {
			deletionTimestamp: metadata.deletionTimestamp ?? now(),
			...(finalizers.length === 0 ? {} : { finalizers }),
			...(typeof generation === 'number' ? { generation: generation + 1 } : {}),
		});
		return this.#store(place, live, object);
	}

	/** One round of the garbage collector; whether it found anything. */
	collect(): boolean {
		const all = [...this.#kinds].flatMap(([kind, objects]) =>
			[...objects.values()].map((object) => ({ resource: this.#resources.get(kind) as Resource, object })),
		);
		const uids = new Set(all.map(({ object }) => metadataOf(object).uid));
		const dying = new Set(
			all.filter(({ object }) => finalizersOf(object).includes(FOREGROUND)).map(({ object }) => metadataOf(object).uid),
		);
		let found = false;
		for (const { resource, object } of all) {
			const place = placeOf(resource, object);
			if (this.find(place) !== object) continue;
			const owners = ownersOf(object);
			if (owners.length > 0 && owners.every(({ uid }) => !uids.has(uid as string) || dying.has(uid))) {
				if (metadataOf(object).deletionTimestamp !== undefined) continue;
				this.delete(place);
				found = true;
			} else if (dying.has(metadataOf(object).uid)) {
				const uid = metadataOf(object).uid;
				if (
					all.some(
						(other) =>
							this.find(placeOf(other.resource, other.object)) !== null &&
							ownersOf(other.object).some((owner) => owner.uid === uid),
					)
				)
					continue;
				this.#update(place, { manager: 'garbage-collector' }, (live) => {
					const next = structuredClone(live);
					metadataOf(next).finalizers = finalizersOf(live).filter((name) => name !== FOREGROUND);
					return next;
				});
				found = true;
			}
		}
		return found;
	}

	#update(place: Place, write: Write, change: (live: JsonObject) => JsonObject, owners?: () => Json): JsonObject {
		const live = this.get(place);
		const before = metadataOf(live);
		const changed = change(live);
		const wanted = metadataOf(changed);
		if (wanted.resourceVersion !== undefined && wanted.resourceVersion !== before.resourceVersion) {
			throw conflict(place, 'the object has been modified; please apply your changes to the latest version');
		}
		if (wanted.uid !== undefined && wanted.uid !== before.uid) {
			throw new ApiFailure(422, 'Invalid', 'metadata.uid: Invalid value: field is immutable');
		}
		let object: JsonObject;
		if (write.subresource === 'status') {
			object = { ...live, ...(changed.status === undefined ? {} : { status: changed.status }) };
			if (changed.status === undefined) delete object.status;
		} else {
			object = { ...changed, ...(live.status === undefined ? {} : { status: live.status }) };
			if (live.status === undefined) delete object.status;
			object = this.#admitted(place.resource, object);
			checkImmutable(place, live, object);
		}
		object.metadata = {
			...(write.subresource === 'status' ? before : metadataOf(object)),
			...picked(before, ['name', 'namespace', 'uid', 'resourceVersion', 'creationTimestamp', 'deletionTimestamp']),
			...picked(before, ['generation', 'managedFields']),
		};
		const metadata = metadataOf(object);
		if (object.spec !== undefined && textOf(substance(object)) !== textOf(substance(live))) {
			metadata.generation = Number(before.generation ?? 0) + 1;
		}
		const owned = owners === undefined ? this.#owned(live, object, write) : withManaged(object, owners());
		if (textOf(owned) === textOf(live)) return live;
		if (before.deletionTimestamp !== undefined && finalizersOf(live).length > 0 && finalizersOf(owned).length === 0) {
			this.#remove(place, owned);
			return owned;
		}
		return this.#store(place, live, owned);
	}

	#applied(live: JsonObject | null, body: JsonObject, write: Write & { readonly force: boolean }) {
		const manager = { name: write.manager, operation: 'Apply' as const, ...subresourceOf(write) };
		try {
			return applied(live, body, { manager, force: write.force });
		} catch (error) {
			if (error instanceof ApplyConflict) throw new ApiFailure(409, 'Conflict', error.message);
			throw error;
		}
	}

	#owned(live: JsonObject | null, object: JsonObject, write: Write): JsonObject {
		const manager = { name: write.manager, operation: 'Update' as const, ...subresourceOf(write) };
		return withManaged(object, updated(live, object, manager) as unknown as Json);
	}

	#admitted(resource: Resource, object: JsonObject): JsonObject {
		const admitted = this.#o.admit?.(resource, object) ?? object;
		return isBuiltIn(resource) ? (withoutEmpty(admitted) as JsonObject) : admitted;
	}

	/** As a new one begins. */
	#fresh(place: Place, body: JsonObject): JsonObject {
		const object = this.#admitted(place.resource, body);
		delete object.status;
		const metadata = metadataOf(object);
		object.metadata = {
			...metadata,
			name: place.name,
			...(place.namespace === undefined ? {} : { namespace: place.namespace }),
			uid: randomUUID(),
			creationTimestamp: now(),
			...(object.spec === undefined ? {} : { generation: 1 }),
		};
		delete object.metadata.resourceVersion;
		return object;
	}

	#store(place: Place, before: JsonObject | null, object: JsonObject): JsonObject {
		const version = ++this.#version;
		metadataOf(object).resourceVersion = String(version);
		this.#kind(place.resource).set(keyOf(place), object);
		this.#tell({ version, resource: place.resource, before, object, deleted: false });
		return object;
	}

	#remove(place: Place, live: JsonObject): null {
		const version = ++this.#version;
		this.#kind(place.resource).delete(keyOf(place));
		const object = { ...live, metadata: { ...metadataOf(live), resourceVersion: String(version) } };
		this.#tell({ version, resource: place.resource, before: live, object, deleted: true });
		return null;
	}

	#orphan(uid: string): void {
		for (const [kind, objects] of this.#kinds) {
			for (const object of [...objects.values()]) {
				if (!ownersOf(object).some((owner) => owner.uid === uid)) continue;
				const place = placeOf(this.#resources.get(kind) as Resource, object);
				this.#update(place, { manager: 'garbage-collector' }, (live) => {
					const next = structuredClone(live);
					metadataOf(next).ownerReferences = ownersOf(live).filter((owner) => owner.uid !== uid);
					return next;
				});
			}
		}
	}

	#kind(resource: Resource): Map<string, JsonObject> {
		const key = `${resource.group}/${resource.plural}`;
		this.#resources.set(key, resource);
		const objects = this.#kinds.get(key) ?? new Map<string, JsonObject>();
		this.#kinds.set(key, objects);
		return objects;
	}

	#tell(event: ObjectEvent): void {
		this.#events.push(event);
		if (this.#events.length > EVENTS_KEPT) this.#oldest = (this.#events.shift() as ObjectEvent).version;
		for (const listener of this.#listeners) listener(event);
	}
}

/** Whether the server has a Go type for it, and no schema. */
export function isBuiltIn({ group }: Resource): boolean {
	return !group.includes('.') || group.endsWith('.k8s.io');
}

/** As Go's `omitempty` does: lists, and what is a map and no struct. */
function withoutEmpty(value: Json): Json {
	if (Array.isArray(value)) return value.map(withoutEmpty);
	if (!isObject(value)) return value;
	const kept = Object.entries(value).filter(([name, inner]) => {
		if (Array.isArray(inner)) return inner.length > 0;
		return !(MAPS.has(name) && isObject(inner) && Object.keys(inner).length === 0);
	});
	return Object.fromEntries(kept.map(([name, inner]) => [name, withoutEmpty(inner)]));
}

export function metadataOf(object: JsonObject): JsonObject {
	object.metadata ??= {};
	return object.metadata as JsonObject;
}

function finalizersOf(object: JsonObject): string[] {
	return (metadataOf(object).finalizers ?? []) as string[];
}

function ownersOf(object: JsonObject): JsonObject[] {
	return (metadataOf(object).ownerReferences ?? []) as JsonObject[];
}

function placeOf(resource: Resource, object: JsonObject): Place {
	const { name, namespace } = metadataOf(object) as { name: string; namespace?: string };
	return { resource, name, namespace };
}

function keyOf(place: Place): string {
	return place.namespace === undefined ? place.name : `${place.namespace}/${place.name}`;
}

function notFound({ resource, name }: Place): ApiFailure {
	return new ApiFailure(404, 'NotFound', `${resource.plural} "${name}" not found`);
}

function conflict({ resource, name }: Place, why: string): ApiFailure {
	return new ApiFailure(409, 'Conflict', `Operation cannot be fulfilled on ${resource.plural} "${name}": ${why}`);
}

function checkType({ resource }: Place, body: JsonObject): void {
	const version = resource.group === '' ? resource.version : `${resource.group}/${resource.version}`;
	if (body.kind !== resource.kind || body.apiVersion !== version) {
		throw new ApiFailure(400, 'BadRequest', `${body.apiVersion} ${body.kind} is not ${version} ${resource.kind}`);
	}
}

function checkImmutable({ resource }: Place, live: JsonObject, object: JsonObject): void {
	for (const name of IMMUTABLE[resource.plural] ?? []) {
		if (textOf((live.spec as JsonObject)[name] ?? null) === textOf((object.spec as JsonObject)[name] ?? null)) continue;
		throw new ApiFailure(422, 'Invalid', `spec.${name}: Forbidden: field is immutable`);
	}
}

function substance(object: JsonObject): JsonObject {
	const { metadata: _, status: __, ...rest } = object;
	return rest;
}

/** Of a status apply only the status counts, and of an ordinary one all but that. */
function only(body: JsonObject, subresource: string | undefined): JsonObject {
	const { apiVersion = null, kind = null, status = null } = body;
	if (subresource === 'status') return { apiVersion, kind, metadata: metadataOf(body), status };
	const { status: _, ...rest } = body;
	return rest;
}

function subresourceOf(write: Write): { subresource?: string } {
	return write.subresource === undefined ? {} : { subresource: write.subresource };
}

function withManaged(object: JsonObject, managed: unknown): JsonObject {
	metadataOf(object).managedFields = managed as Json;
	return object;
}

function picked(from: JsonObject, names: readonly string[]): JsonObject {
	return Object.fromEntries(names.flatMap((name) => (from[name] === undefined ? [] : [[name, from[name]]])));
}

function now(): string {
	return new Date().toISOString().replace(/\.\d+Z$/, 'Z');
}
