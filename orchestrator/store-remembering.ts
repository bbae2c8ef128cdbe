/**
 * Wraps a MetadataStore that may be away: rows of objects that were read lately are remembered, and serve reads while it
 * does not answer. While it answers nothing is taken from here, so every read is as fresh as the store.
 *
 * The bound: an object that another orchestrator deleted can be read here for at most `MAX_AGE_MS` after this process last
 * read its rows from the store, and only while the store is away. One that was deleted here is forgotten at once.
 */

import { asDistroError } from '../core/errors.ts';
import type { Clock } from '../core/ports.ts';
import type { MetadataStore, ObjectRow } from './store.ts';

export const MAX_AGE_MS = 5 * 60_000;
/** Bytes of all rows, by estimate: some 5,000 objects of one segment. */
const MAX_BYTES = 8 << 20;
const ROW_BYTES = 1_000;

interface Remembered {
	readonly value: unknown;
	readonly bytes: number;
	readonly readAtMs: number;
}

export function rememberingReads(store: MetadataStore, deps: { clock: Clock; maxBytes?: number }): MetadataStore {
	const { clock, maxBytes = MAX_BYTES } = deps;
	/** By object or version, then by what was asked of it. The longest unused id comes first. */
	const ids = new Map<string, Map<string, Remembered>>();
	let usedBytes = 0;

	const forget = (id: string) => {
		for (const { bytes } of ids.get(id)?.values() ?? []) usedBytes -= bytes;
		ids.delete(id);
	};
	const keep = (id: string, what: string, entry: Remembered) => {
		const answers = ids.get(id) ?? new Map<string, Remembered>();
		usedBytes += entry.bytes - (answers.get(what)?.bytes ?? 0);
		answers.set(what, entry);
		ids.delete(id);
		ids.set(id, answers);
		for (const oldest of ids.keys()) {
			if (usedBytes <= maxBytes) break;
			forget(oldest);
		}
	};
	const read = async <Value>(id: string, what: string, ask: () => Promise<Value>, sizeOf: (value: Value) => number) => {
		const readAtMs = clock.monotonicMs();
		let value: Value;
		try {
			value = await ask();
		} catch (thrown) {
			const { kind } = asDistroError(thrown);
			const known = ids.get(id)?.get(what);
			const young = known !== undefined && clock.monotonicMs() - known.readAtMs <= MAX_AGE_MS;
			if (!young || (kind !== 'unavailable' && kind !== 'timeout')) throw thrown;
			return known.value as Value;
		}
		if (value === null) forget(id);
		else keep(id, what, { value, bytes: sizeOf(value), readAtMs });
		return value;
	};

	const overrides: Pick<MetadataStore, 'object' | 'objectWithSegments' | 'segments' | 'deleteObject'> = {
		object: (objectId) => read(objectId, 'object', () => store.object(objectId), rowBytes),
		objectWithSegments: (objectId, options) =>
			read(
				objectId,
				`${options.fromSegment} ${options.limit}`,
				() => store.objectWithSegments(objectId, options),
				(found) => rowBytes(found?.object ?? null) + ROW_BYTES * (found?.segments.length ?? 0),
			),
		segments: (versionId, options) =>
			read(
				versionId,
				`${options.fromSegment} ${options.limit}`,
				() => store.segments(versionId, options),
				({ length }) => ROW_BYTES * (length + 1),
			),
		deleteObject: async (objectId, options) => {
			forget(objectId);
			return store.deleteObject(objectId, options).finally(() => forget(objectId));
		},
	};
	return new Proxy(store, {
		get: (target, name) => {
			if (Object.hasOwn(overrides, name)) return overrides[name as keyof typeof overrides];
			const value: unknown = Reflect.get(target, name);
			return typeof value === 'function' ? value.bind(target) : value;
		},
	});
}

function rowBytes(row: ObjectRow | null): number {
	return ROW_BYTES + (row?.inline?.length ?? 0);
}
