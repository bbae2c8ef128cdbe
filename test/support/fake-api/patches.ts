/** JSON merge patch (RFC 7396) and JSON patch (RFC 6902), as far as the operator's client speaks them. */

import { isObject, type Json, type JsonObject, textOf } from './fields.ts';

export class PatchFailure extends Error {}

export function mergePatch(target: Json | undefined, patch: Json): Json {
	if (!isObject(patch)) return patch;
	const result: JsonObject = isObject(target) ? { ...target } : {};
	for (const [name, value] of Object.entries(patch)) {
		if (value === null) delete result[name];
		else result[name] = mergePatch(result[name], value);
	}
	return result;
}

export function jsonPatch(target: JsonObject, operations: Json): JsonObject {
	const result = structuredClone(target);
	if (!Array.isArray(operations)) throw new PatchFailure('not a list of operations');
	for (const operation of operations as JsonObject[]) {
		const steps = String(operation.path)
			.split('/')
			.slice(1)
			.map((step) => step.replaceAll('~1', '/').replaceAll('~0', '~'));
		const last = steps.pop() ?? '';
		let parent: Json | undefined = result;
		for (const step of steps) parent = child(parent, step);
		const value = operation.value ?? null;
		const here = child(parent, last);
		if (parent === undefined || parent === null || typeof parent !== 'object') {
			throw new PatchFailure(`nothing at ${operation.path}`);
		}
		if (operation.op !== 'add' && here === undefined) throw new PatchFailure(`nothing at ${operation.path}`);
		switch (operation.op) {
			case 'test':
				if (textOf(here) !== textOf(value)) throw new PatchFailure(`test of ${operation.path} failed`);
				break;
			case 'remove':
				if (Array.isArray(parent)) parent.splice(Number(last), 1);
				else delete parent[last];
				break;
			case 'add':
				if (Array.isArray(parent)) parent.splice(last === '-' ? parent.length : Number(last), 0, value);
				else parent[last] = value;
				break;
			case 'replace':
				if (Array.isArray(parent)) parent[Number(last)] = value;
				else parent[last] = value;
				break;
			default:
				throw new PatchFailure(`unknown operation ${operation.op}`);
		}
	}
	return result;
}

function child(parent: Json | undefined, step: string): Json | undefined {
	if (Array.isArray(parent)) return parent[Number(step)];
	return isObject(parent) ? parent[step] : undefined;
}
