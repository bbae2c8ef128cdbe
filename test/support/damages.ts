/** Shards that a test has damaged: hidden until the cluster has found them, and gone from here when it has mended them. */

import type { ClusterApi } from './cluster-api.ts';

export interface DamagedShard {
	readonly objectId: string;
	readonly segment: number;
	readonly shardId: string;
}

export class Damages {
	readonly #api: ClusterApi;
	readonly #shards = new Map<string, DamagedShard & { hidden: boolean }>();

	constructor(api: ClusterApi) {
		this.#api = api;
	}

	add({ objectId, segment, shardId }: DamagedShard): void {
		this.#shards.set(shardId, { objectId, segment, shardId, hidden: true });
	}

	/** Objects are damaged once at a time, so that nothing is lost by it. */
	has(objectId: string): boolean {
		return this.list().some((shard) => shard.objectId === objectId);
	}

	list(): readonly (DamagedShard & { readonly hidden: boolean })[] {
		return [...this.#shards.values()];
	}

	/** Nobody knows of it yet, so nobody counts with it. */
	get hidden(): boolean {
		return this.list().some((shard) => shard.hidden);
	}

	async look(): Promise<void> {
		for (const damaged of this.#shards.values()) {
			const object = await this.#api.explain(damaged.objectId).catch(() => undefined);
			// Nobody answers just now.
			if (object === undefined) continue;
			const shards = object?.segments[damaged.segment]?.shards ?? [];
			const shard = shards.find(({ shard_id: shardId }) => shardId === damaged.shardId);
			if (shard === undefined) this.#shards.delete(damaged.shardId);
			else damaged.hidden = shard.state !== 'corrupt' && shard.state !== 'missing';
		}
	}
}
