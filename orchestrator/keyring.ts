/**
 * The keys of a running orchestrator: opens the cluster key with the master key once, then makes and opens data keys.
 *
 * The master key never leaves this object's closure and wraps nothing but cluster keys (docs/format.md).
 */

import { createSecretKey, type KeyObject } from 'node:crypto';
import { type MasterKeyring, newDataKey, unwrapKey, wrapKey } from '../core/crypto/keys.ts';
import { DistroError } from '../core/errors.ts';
import { type ClusterId, idBytes, type VersionId } from '../core/ids.ts';
import type { Clock, Random } from '../core/ports.ts';
import type { MetadataStore } from './store.ts';

export interface WrappedDataKey {
	readonly key: KeyObject;
	readonly generation: number;
	readonly wrapped: Buffer;
}

export class Keyring {
	readonly #generations: ReadonlyMap<number, KeyObject>;
	readonly #newest: number;
	readonly #random: Random;

	private constructor(generations: ReadonlyMap<number, KeyObject>, random: Random) {
		this.#generations = generations;
		this.#newest = Math.max(...generations.keys());
		this.#random = random;
	}

	/**
	 * Opens the store's cluster key, or makes the first one. Throws `denied` when the master key is not the one that this
	 * cluster was made with, `conflict` when the store belongs to another cluster.
	 */
	static async open(deps: {
		store: MetadataStore;
		master: MasterKeyring;
		clusterId: ClusterId;
		clock: Clock;
		random: Random;
	}): Promise<Keyring> {
		const { store, master, clusterId, random } = deps;
		const context = idBytes(clusterId);
		const wrapped = wrapKey({
			wrappingKey: master.primary.key,
			purpose: 'cluster key',
			context,
			key: random.bytes(32),
			random,
		});
		const cluster = await store.initCluster({
			clusterId,
			createdAtMs: deps.clock.nowMs(),
			keys: [{ generation: 1, masterKeyId: master.primary.id, wrapped }],
		});
		if (cluster.clusterId !== clusterId) {
			throw new DistroError(
				'conflict',
				`the metadata belongs to cluster ${cluster.clusterId} and this orchestrator's certificate to ${clusterId}: use the data folder and the certificates of one cluster`,
			);
		}
		const generations = new Map<number, KeyObject>();
		for (const row of cluster.keys) {
			const wrappingKey = master.get(row.masterKeyId);
			if (wrappingKey === null) {
				throw new DistroError(
					'denied',
					`MASTER_KEY is not the key of this cluster: its data needs master key ${row.masterKeyId}, and ${master.keys.map(({ id }) => id).join(', ')} was given. Restore the right key; nothing was changed`,
				);
			}
			const key = unwrapKey({ wrappingKey, purpose: 'cluster key', context, wrapped: row.wrapped });
			generations.set(row.generation, createSecretKey(key));
		}
		return new Keyring(generations, random);
	}

	newDataKey(versionId: VersionId): WrappedDataKey {
		const key = newDataKey(this.#random);
		const wrapped = wrapKey({
			wrappingKey: this.#key(this.#newest),
			purpose: 'data key',
			context: idBytes(versionId),
			key: key.export(),
			random: this.#random,
		});
		return { key, generation: this.#newest, wrapped };
	}

	/** Throws `corrupt` or `denied` when it does not open. */
	dataKey(versionId: VersionId, row: { keyGeneration: number; wrappedKey: Buffer }): KeyObject {
		const key = unwrapKey({
			wrappingKey: this.#key(row.keyGeneration),
			purpose: 'data key',
			context: idBytes(versionId),
			wrapped: row.wrappedKey,
		});
		return createSecretKey(key);
	}

	#key(generation: number): KeyObject {
		const key = this.#generations.get(generation);
		if (key === undefined) throw new DistroError('denied', `generation ${generation} of the cluster key is not known`);
		return key;
	}
}
