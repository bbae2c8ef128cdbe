/**
 * What a reflector has seen of one kind: by namespace and name, and by indexes of the user's own.
 *
 * It may be behind, so nothing destructive is decided by it. Objects are shared and never changed: a new version is a new
 * object. Listeners are told of differences only, so what the reflector hears twice they hear once.
 */

import { type KubeObject, keyOf, type ObjectRef, refOf, type Stored } from './objects.ts';

export interface Change<T extends KubeObject> {
	/** Null: it was not there. */
	readonly before: Stored<T> | null;
	/** Null: it is gone. */
	readonly after: Stored<T> | null;
}

/** The values by which an object is found. */
export type Index<T extends KubeObject> = (object: Stored<T>) => readonly string[];

export class Store<T extends KubeObject> {
	readonly #objects = new Map<string, Stored<T>>();
	readonly #indexes: ReadonlyMap<string, { readonly of: Index<T>; readonly keys: Map<string, Set<string>> }>;
	readonly #listeners = new Set<(change: Change<T>) => void>();
	readonly #waiting = new Set<() => void>();
	#synced = false;

	constructor(indexes: Readonly<Record<string, Index<T>>> = {}) {
		this.#indexes = new Map(Object.entries(indexes).map(([name, of]) => [name, { of, keys: new Map() }]));
	}

	/** Whether all objects were seen once. It stays so while the API server is away. */
	get synced(): boolean {
		return this.#synced;
	}

	get size(): number {
		return this.#objects.size;
	}

	/** Resolves when synced, at once if it is. The reflector's end is not an end of this. */
	whenSynced(): Promise<void> {
		if (this.#synced) return Promise.resolve();
		return new Promise((resolve) => this.#waiting.add(resolve));
	}

	get(ref: ObjectRef): Stored<T> | null {
		return this.#objects.get(keyOf(ref)) ?? null;
	}

	/** Sorted by key, so that who walks them does so in one order. */
	list(): readonly Stored<T>[] {
		return this.#sorted(this.#objects.keys());
	}

	by(index: string, value: string): readonly Stored<T>[] {
		return this.#sorted(this.#indexes.get(index)?.keys.get(value) ?? []);
	}

	/** The returned function ends it. What a listener throws is its reflector's failure. */
	onChange(listener: (change: Change<T>) => void): () => void {
		this.#listeners.add(listener);
		return () => this.#listeners.delete(listener);
	}

	/** These and no others. */
	replace(objects: readonly Stored<T>[]): void {
		const keys = new Set(objects.map((object) => keyOf(refOf(object))));
		for (const [key, object] of [...this.#objects]) if (!keys.has(key)) this.remove(object);
		for (const object of objects) this.set(object);
		this.#synced = true;
		for (const resolve of this.#waiting) resolve();
		this.#waiting.clear();
	}

	set(object: Stored<T>): void {
		const key = keyOf(refOf(object));
		const before = this.#objects.get(key) ?? null;
		if (before?.metadata.uid === object.metadata.uid) {
			if (before.metadata.resourceVersion === object.metadata.resourceVersion) return;
		}
		this.#unindex(key, before);
		this.#objects.set(key, object);
		for (const { of, keys } of this.#indexes.values()) {
			for (const value of of(object)) {
				const found = keys.get(value) ?? new Set();
				keys.set(value, found.add(key));
			}
		}
		this.#tell({ before, after: object });
	}

	/** Another object of the same name stays. */
	remove(object: Stored<T>): void {
		const key = keyOf(refOf(object));
		const before = this.#objects.get(key) ?? null;
		if (before?.metadata.uid !== object.metadata.uid) return;
		this.#unindex(key, before);
		this.#objects.delete(key);
		this.#tell({ before, after: null });
	}

	#unindex(key: string, object: Stored<T> | null): void {
		if (object === null) return;
		for (const { of, keys } of this.#indexes.values()) {
			for (const value of of(object)) {
				keys.get(value)?.delete(key);
				if (keys.get(value)?.size === 0) keys.delete(value);
			}
		}
	}

	#sorted(keys: Iterable<string>): readonly Stored<T>[] {
		const found: Stored<T>[] = [];
		for (const key of [...keys].sort()) {
			const object = this.#objects.get(key);
			if (object !== undefined) found.push(object);
		}
		return found;
	}

	#tell(change: Change<T>): void {
		for (const listener of this.#listeners) listener(change);
	}
}
