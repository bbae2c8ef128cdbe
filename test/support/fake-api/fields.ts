/**
 * Who owns which field: as much of server-side apply as the operator's objects need (structured-merge-diff in Kubernetes).
 *
 * A field is named by its path: `f:` a field, `k:` an item of a keyed list, `v:` an item of a set. What Kubernetes' schemas
 * say of lists and maps is told by the tables below, for the kinds of operator/kube/resources.ts; other lists are atomic.
 */

import type { FieldsV1, ManagedFields } from '../../../operator/kube/objects.ts';

export type Json = null | boolean | number | string | Json[] | JsonObject;
export interface JsonObject {
	[name: string]: Json;
}

/** Lists with keys, by the field's name. */
const KEYED: Readonly<Record<string, readonly string[]>> = {
	containers: ['name'],
	initContainers: ['name'],
	volumes: ['name'],
	env: ['name'],
	imagePullSecrets: ['name'],
	secrets: ['name'],
	volumeMounts: ['mountPath'],
	conditions: ['type'],
	ownerReferences: ['uid'],
	topologySpreadConstraints: ['topologyKey', 'whenUnsatisfiable'],
};
const SETS = new Set(['finalizers']);
/** Maps and structs that have one owner as a whole. */
const ATOMIC = new Set([
	'selector',
	'nodeSelector',
	'labelSelector',
	'podSelector',
	'namespaceSelector',
	'secretKeyRef',
	'configMapKeyRef',
	'fieldRef',
	'resourceFieldRef',
	'roleRef',
	'scaleTargetRef',
]);
/** Lists that are atomic in spite of their name. */
const ATOMIC_PORTS = new Set(['NetworkPolicy']);
/** What nobody owns. */
const UNOWNED = new Set([
	'name',
	'namespace',
	'generateName',
	'uid',
	'resourceVersion',
	'generation',
	'creationTimestamp',
	'deletionTimestamp',
	'deletionGracePeriodSeconds',
	'managedFields',
]);
const SEPARATOR = '\n';

export class ApplyConflict extends Error {}

/** Each owned field with its value as text; of an item in a list also that it is there. */
type Fields = Map<string, string>;

interface Manager {
	readonly name: string;
	readonly operation: 'Apply' | 'Update';
	readonly subresource?: string;
}

export function isObject(value: Json | undefined): value is JsonObject {
	return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** JSON with sorted names: equal for equal values. */
export function textOf(value: unknown): string {
	return JSON.stringify(value, (_, inner: Json) =>
		isObject(inner) ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1))) : inner,
	);
}

/** `live` with what `manager` now wants; throws ApplyConflict where others own it and `force` is not given. */
export function applied(
	live: JsonObject | null,
	config: JsonObject,
	options: { readonly manager: Manager; readonly force: boolean },
): { readonly object: JsonObject; readonly managed: ManagedFields[] } {
	const { manager, force } = options;
	const managers = readManaged(live);
	const before = fieldsOf(live ?? {});
	const wanted = fieldsOf(config);
	if (live !== null && managers.size === 0) {
		const nobody: Manager = { name: 'before-first-apply', operation: 'Update' };
		managers.set(keyOf(nobody), { ...nobody, fields: new Set(before.keys()) });
	}
	const mine = managers.get(keyOf(manager))?.fields ?? new Set();
	const others = [...managers].filter(([key]) => key !== keyOf(manager)).map(([, entry]) => entry);
	for (const [path, value] of wanted) {
		if (!before.has(path) || before.get(path) === value) continue;
		for (const other of others) {
			if (!other.fields.has(path)) continue;
			if (!force) throw new ApplyConflict(`conflict with "${other.name}": ${path.replaceAll(SEPARATOR, '.')}`);
			other.fields.delete(path);
		}
	}
	const object = merged(structuredClone(live ?? {}), config, [], String(config.kind)) as JsonObject;
	const kept = [...wanted.keys(), ...others.flatMap(({ fields }) => [...fields])];
	for (const path of mine) {
		const below = path + SEPARATOR;
		if (!kept.some((other) => other === path || other.startsWith(below)))
			removed(object, path.split(SEPARATOR), wanted);
	}
	managers.set(keyOf(manager), { ...manager, fields: new Set(wanted.keys()) });
	return { object, managed: writeManaged(managers, fieldsOf(object)) };
}

/** The owners after an ordinary write: who changes a field has it from then on. */
export function updated(live: JsonObject | null, object: JsonObject, manager: Manager): ManagedFields[] {
	const managers = readManaged(live);
	// Owners are written down from the first apply on only.
	if (live !== null && managers.size === 0) return [];
	const before = fieldsOf(live ?? {});
	const after = fieldsOf(object);
	const changed = [...after].filter(([path, value]) => before.get(path) !== value).map(([path]) => path);
	for (const { fields } of managers.values()) for (const path of changed) fields.delete(path);
	const mine = managers.get(keyOf(manager)) ?? { ...manager, fields: new Set<string>() };
	for (const path of changed) mine.fields.add(path);
	managers.set(keyOf(manager), mine);
	return writeManaged(managers, after);
}

function keyOf(manager: Manager): string {
	return `${manager.name}/${manager.operation}/${manager.subresource ?? ''}`;
}

function readManaged(object: JsonObject | null): Map<string, Manager & { fields: Set<string> }> {
	const managed = ((object?.metadata as JsonObject | undefined)?.managedFields ?? []) as unknown as ManagedFields[];
	return new Map(
		managed.map((entry) => {
			const { manager: name, operation, subresource } = entry;
			const manager = { name, operation, ...(subresource === undefined ? {} : { subresource }) };
			return [keyOf(manager), { ...manager, fields: new Set(flat(entry.fieldsV1 ?? {}, [])) }];
		}),
	);
}

function writeManaged(managers: ReturnType<typeof readManaged>, present: Fields): ManagedFields[] {
	const managed: ManagedFields[] = [];
	for (const { name, operation, subresource, fields } of managers.values()) {
		const left = [...fields].filter((path) => present.has(path)).sort();
		if (left.length === 0) continue;
		const tree: { [path: string]: FieldsV1 } = {};
		for (const path of left) nest(tree, path.split(SEPARATOR));
		managed.push({
			manager: name,
			operation,
			fieldsType: 'FieldsV1',
			fieldsV1: tree,
			...(subresource === undefined ? {} : { subresource }),
		});
	}
	return managed;
}

function nest(tree: { [path: string]: FieldsV1 }, steps: readonly string[]): void {
	let at = tree;
	for (const step of steps) {
		at[step] ??= {};
		at = at[step] as { [path: string]: FieldsV1 };
	}
	if (steps.at(-1)?.startsWith('k:')) at['.'] = {};
}

function flat(tree: FieldsV1, above: readonly string[]): string[] {
	const children = Object.entries(tree).filter(([step]) => step !== '.');
	const own = '.' in tree || (children.length === 0 && above.length > 0) ? [above.join(SEPARATOR)] : [];
	return [...own, ...children.flatMap(([step, child]) => flat(child, [...above, step]))];
}

function fieldsOf(object: JsonObject): Fields {
	const fields: Fields = new Map();
	const kind = String(object.kind);
	for (const [name, value] of Object.entries(object)) {
		if (name === 'apiVersion' || name === 'kind') continue;
		if (name !== 'metadata') visit(value, [name], [`f:${name}`]);
		else {
			for (const [field, inner] of Object.entries(value as JsonObject)) {
				if (!UNOWNED.has(field)) visit(inner, [name, field], ['f:metadata', `f:${field}`]);
			}
		}
	}
	return fields;

	function visit(value: Json, names: readonly string[], path: readonly string[]): void {
		const at = path.join(SEPARATOR);
		if (value === null) return;
		if (Array.isArray(value)) {
			const keys = listKeys(names, kind);
			if (keys === null || value.length === 0) fields.set(at, textOf(value));
			else {
				for (const item of value) {
					const inner = [...path, itemStep(item, keys)];
					fields.set(inner.join(SEPARATOR), '');
					if (isObject(item))
						for (const [name, child] of Object.entries(item)) visit(child, [...names, name], [...inner, `f:${name}`]);
				}
			}
		} else if (isObject(value) && !isAtomic(names) && Object.keys(value).length > 0) {
			for (const [name, child] of Object.entries(value)) visit(child, [...names, name], [...path, `f:${name}`]);
		} else fields.set(at, textOf(value));
	}
}

function isAtomic(names: readonly string[]): boolean {
	const name = names.at(-1) ?? '';
	// A label or a key of a ConfigMap may be called so as well.
	return ATOMIC.has(name) && !['labels', 'annotations', 'data'].includes(names.at(-2) ?? '');
}

/** Null: atomic; empty: a set. */
function listKeys(names: readonly string[], kind: string): readonly string[] | null {
	const name = names.at(-1) ?? '';
	if (name === 'ports') {
		if (ATOMIC_PORTS.has(kind)) return null;
		return kind === 'Service' ? ['port', 'protocol'] : ['containerPort', 'protocol'];
	}
	if (SETS.has(name)) return [];
	return KEYED[name] ?? null;
}

function itemStep(item: Json, keys: readonly string[]): string {
	if (keys.length === 0) return `v:${JSON.stringify(item)}`;
	const values = item as JsonObject;
	// The one key with a default.
	return `k:${textOf(Object.fromEntries(keys.map((key) => [key, values[key] ?? (key === 'protocol' ? 'TCP' : null)])))}`;
}

function merged(live: Json | undefined, config: Json, names: readonly string[], kind: string): Json {
	if (isObject(config) && isObject(live) && !isAtomic(names)) {
		const result = { ...live };
		for (const [name, value] of Object.entries(config)) {
			if (value !== null) result[name] = merged(live[name], value, [...names, name], kind);
		}
		return result;
	}
	if (Array.isArray(config) && Array.isArray(live)) {
		const keys = listKeys(names, kind);
		if (keys === null) return structuredClone(config);
		// In the order of what is sent; what only others have keeps its place among the rest.
		const wanted = new Map(config.map((item) => [itemStep(item, keys), item]));
		const others = live.map((item) => [itemStep(item, keys), item] as const);
		const there = new Map(others);
		const result: Json[] = [];
		for (const [step, item] of wanted) {
			while (others[0] !== undefined && (!wanted.has(others[0][0]) || isBefore(others[0][0], step))) {
				const [other, kept] = others.shift() as (typeof others)[number];
				if (!wanted.has(other)) result.push(kept);
			}
			result.push(merged(there.get(step), item, names, kind));
		}
		return [...result, ...others.filter(([step]) => !wanted.has(step)).map(([, item]) => item)];
		function isBefore(one: string, two: string): boolean {
			const order = [...wanted.keys()];
			return order.indexOf(one) < order.indexOf(two);
		}
	}
	return structuredClone(config);
}

/** What becomes empty by it goes as well, unless it is wanted so. */
function removed(object: Json, steps: readonly string[], wanted: Fields, depth = 0): void {
	const step = steps[depth] ?? '';
	const isLast = depth === steps.length - 1;
	if (isObject(object)) {
		const name = step.slice(2);
		const child = object[name];
		if (child === undefined) return;
		if (!isLast) removed(child, steps, wanted, depth + 1);
		const isEmpty = Array.isArray(child) ? child.length === 0 : isObject(child) && Object.keys(child).length === 0;
		if (isLast || (isEmpty && !wanted.has(steps.slice(0, depth + 1).join(SEPARATOR)))) delete object[name];
	} else if (Array.isArray(object)) {
		const index = object.findIndex((item) => isStep(item, step));
		if (index < 0) return;
		if (isLast) object.splice(index, 1);
		else removed(object[index] as Json, steps, wanted, depth + 1);
	}
}

function isStep(item: Json, step: string): boolean {
	const wanted = JSON.parse(step.slice(2)) as Json;
	if (step.startsWith('v:')) return item === wanted;
	return itemStep(item, Object.keys(wanted as JsonObject)) === step;
}
