/** Label and field selectors, as in queries of the Kubernetes API. */

import { isObject, type Json, type JsonObject } from './fields.ts';

export type Matches = (object: JsonObject) => boolean;

export function labelSelector(text: string | null): Matches {
	const terms = (text ?? '').match(/[^,(]+(\([^)]*\))?/g) ?? [];
	const tests = terms.map((term) => labelTerm(term.trim()));
	return (object) => {
		const labels = ((object.metadata as JsonObject).labels ?? {}) as Record<string, string>;
		return tests.every((test) => test(labels));
	};
}

function labelTerm(term: string): (labels: Record<string, string>) => boolean {
	const among = /^(\S+)\s+(in|notin)\s+\(([^)]*)\)$/.exec(term);
	if (among !== null) {
		const [, key = '', operator, values = ''] = among;
		const set = new Set(values.split(',').map((value) => value.trim()));
		return (labels) => set.has(labels[key] ?? '\0') === (operator === 'in');
	}
	const equals = /^([^=!]+)(==|=|!=)(.*)$/.exec(term);
	if (equals !== null) {
		const [, key = '', operator, value] = equals;
		return (labels) => (labels[key] === value) === (operator !== '!=');
	}
	return term.startsWith('!') ? (labels) => !(term.slice(1) in labels) : (labels) => term in labels;
}

export function fieldSelector(text: string | null): Matches {
	const tests = (text ?? '')
		.split(',')
		.filter((term) => term !== '')
		.map((term): Matches => {
			const [, path = '', operator, value] = /^([^=!]+)(==|=|!=)(.*)$/.exec(term) ?? [];
			return (object) => (String(at(object, path.split('.')) ?? '') === value) === (operator !== '!=');
		});
	return (object) => tests.every((test) => test(object));
}

function at(value: Json | undefined, path: readonly string[]): Json | undefined {
	let found = value;
	for (const name of path) found = isObject(found) ? found[name] : undefined;
	return found;
}
