/**
 * The keys of a running orchestrator: opens the generations of the cluster key with the master keys, then makes and opens
 * data keys. What other orchestrators change is read again every few seconds, and when an object needs a generation that
 * is not known here yet.
 *
 * Master keys never leave this object and wrap nothing but cluster keys (docs/format.md). A generation that is open here stays
 * open, whatever becomes of the master key that wrapped it.
 */

import { createSecretKey, type KeyObject } from 'node:crypto';
import { type MasterKey, type MasterKeyring, newDataKey, unwrapKey, wrapKey } from '../core/crypto/keys.ts';
import { asDistroError, DistroError } from '../core/errors.ts';
import { type ClusterId, idBytes, type VersionId } from '../core/ids.ts';
import type { WrappedClusterKey } from '../core/model/keys-record.ts';
import type { Clock, Random } from '../core/ports.ts';
import type { ClusterRow, MetadataStore, RewrappedObject, WrappedDataKeyRow } from './store.ts';

export interface WrappedDataKey {
	readonly key: KeyObject;
	readonly generation: number;
	readonly wrapped: Buffer;
}

export interface KeyringDeps {
	readonly store: Pick<MetadataStore, 'initCluster' | 'cluster' | 'changeClusterKeys'>;
	readonly master: MasterKeyring;
	readonly clusterId: ClusterId;
	readonly clock: Clock;
	readonly random: Random;
}

/** Other orchestrators may change the keys in between: each time they are looked at anew. */
const CHANGE_TRIES = 8;
/** Of all generations the keys record holds a few hundred. */
const GENERATIONS_MAX = 200;

export class Keyring {
	readonly #deps: KeyringDeps;
	#master: MasterKeyring;
	#cluster: ClusterRow;
	readonly #open = new Map<number, KeyObject>();
	#reading: Promise<void> | null = null;

	private constructor(deps: KeyringDeps, cluster: ClusterRow) {
		this.#deps = deps;
		this.#master = deps.master;
		this.#cluster = cluster;
	}

	/**
	 * Opens the store's cluster key, or makes the first one; what another master key than the first wraps is wrapped anew.
	 * Throws `denied` when a master key that is needed was not given, `conflict` when the store belongs to another cluster.
	 */
	static async open(deps: KeyringDeps): Promise<Keyring> {
		const { store, master, clusterId, clock, random } = deps;
		const createdAtMs = clock.nowMs();
		const first = wrapClusterKey({ clusterId, master: master.primary, key: random.bytes(32), random });
		const cluster = await store.initCluster({
			clusterId,
			createdAtMs,
			revision: 1,
			keys: [{ generation: 1, createdAtMs, ...first }],
		});
		if (cluster.clusterId !== clusterId) {
			throw new DistroError(
				'conflict',
				`the metadata belongs to cluster ${cluster.clusterId} and this orchestrator's certificate to ${clusterId}: use the data folder and the certificates of one cluster`,
			);
		}
		const keyring = new Keyring(deps, cluster);
		keyring.#openAll(master, { all: true });
		await keyring.#rewrap();
		return keyring;
	}

	/** As this process knows it: what volumes are to keep. A new object with every change. */
	get record(): ClusterRow {
		return this.#cluster;
	}

	get masterKeys(): readonly MasterKey[] {
		return this.#master.keys;
	}

	/** The id of the given master key that this id names (it may be the fingerprint of one that has a name now), or null. */
	nameOf(masterKeyId: string): string | null {
		const key = this.#master.get(masterKeyId);
		return this.#master.keys.find((one) => one.key === key)?.id ?? null;
	}

	/** The newest generation that is open here: what new data keys are wrapped by. */
	get newest(): number {
		return Math.max(...this.#cluster.keys.map(({ generation }) => generation).filter((one) => this.#open.has(one)));
	}

	/** Reads what others changed. */
	refresh(): Promise<void> {
		this.#reading ??= this.#read().finally(() => {
			this.#reading = null;
		});
		return this.#reading;
	}

	async #read(): Promise<void> {
		const cluster = await this.#deps.store.cluster();
		if (cluster !== null) this.#learn(cluster);
	}

	#learn(cluster: ClusterRow): void {
		// An answer that was under way while a newer one came.
		if (cluster.revision <= this.#cluster.revision) return;
		this.#cluster = cluster;
		this.#openAll(this.#master, { all: false });
	}

	/**
	 * Opens what these master keys open: all of it, throwing `denied` where one is missing, or what is not open yet, as far as
	 * that goes.
	 */
	#openAll(master: MasterKeyring, { all }: { all: boolean }): void {
		const missing: WrappedClusterKey[] = [];
		const context = idBytes(this.#cluster.clusterId);
		for (const row of this.#cluster.keys) {
			if (!all && this.#open.has(row.generation)) continue;
			const wrappingKey = master.get(row.masterKeyId);
			if (wrappingKey === null) {
				missing.push(row);
				continue;
			}
			try {
				const key = unwrapKey({ wrappingKey, purpose: 'cluster key', context, wrapped: row.wrapped });
				this.#open.set(row.generation, createSecretKey(key));
			} catch (cause) {
				const why = `master key ${row.masterKeyId} as given does not open generation ${row.generation} of the cluster key: it has the id of the right key and is another one. Restore the right key; nothing was changed`;
				throw new DistroError('denied', why, { cause });
			}
		}
		if (!all || missing.length === 0) return;
		throw new DistroError(
			'denied',
			`MASTER_KEY is not the key of this cluster: its data needs ${missing.map(sayMissing).join(', and ')}, and ${master.keys.map(({ id }) => id).join(', ')} was given. Restore the right key; nothing was changed`,
		);
	}

	/**
	 * Other master keys from now on; cluster keys are wrapped by the first of them. Throws `denied`, and goes on with those of
	 * before, where a start with the new ones would.
	 */
	async useMaster(master: MasterKeyring): Promise<void> {
		await this.refresh();
		this.#openAll(master, { all: true });
		this.#master = master;
		await this.#rewrap();
	}

	/** Wraps by the first master key what another one wraps. Several orchestrators at once: one does it. */
	async #rewrap(): Promise<void> {
		await this.#change(() => {
			return this.#cluster.keys.flatMap((row) => {
				const key = this.#open.get(row.generation);
				const wrapping = this.#master.get(row.masterKeyId);
				// By one that was not given here: another orchestrator has a newer list, and this one must not undo it.
				if (key === undefined || wrapping === null || wrapping === this.#master.primary.key) return [];
				return [{ ...row, ...this.#wrapped(key.export()) }];
			});
		});
	}

	/** A new generation, for whatever is stored from now on. Answers its number. */
	async rotate(): Promise<number> {
		const { clock, random } = this.#deps;
		const key = random.bytes(32);
		await this.refresh();
		let made = 0;
		await this.#change(() => {
			const { keys } = this.#cluster;
			const newest = keys.at(-1) as WrappedClusterKey;
			// Done before, by a call whose answer was lost.
			if (this.#open.get(made)?.equals(createSecretKey(key))) return [];
			if (this.#master.get(newest.masterKeyId) === null) {
				throw new DistroError(
					'conflict',
					`the present generation is wrapped by ${sayMissing(newest)}, which this orchestrator was not given: give all of them the same MASTER_KEY first`,
				);
			}
			if (keys.length >= GENERATIONS_MAX) {
				throw new DistroError('exhausted', `there are ${keys.length} generations: drop those that nothing needs first`);
			}
			made = newest.generation + 1;
			return [{ generation: made, createdAtMs: clock.nowMs(), ...this.#wrapped(key) }];
		});
		return made;
	}

	#wrapped(key: Buffer): Pick<WrappedClusterKey, 'masterKeyId' | 'wrapped'> {
		const { clusterId, random } = this.#deps;
		return wrapClusterKey({ clusterId, master: this.#master.primary, key, random });
	}

	/** `plan` says what is to be written to the keys as they are now; nothing ends it. */
	async #change(plan: () => readonly WrappedClusterKey[]): Promise<void> {
		for (let tried = 1; ; tried++) {
			const keys = plan();
			if (keys.length === 0) return;
			try {
				this.#learn(await this.#deps.store.changeClusterKeys(keys, this.#cluster.revision));
				return;
			} catch (thrown) {
				const error = asDistroError(thrown);
				if (error.kind !== 'conflict' || tried === CHANGE_TRIES) throw error;
				await this.refresh();
			}
		}
	}

	/** What was dropped or added by this process's own call. */
	learn(cluster: ClusterRow): void {
		this.#learn(cluster);
	}

	newDataKey(versionId: VersionId): WrappedDataKey {
		const key = newDataKey(this.#deps.random);
		const generation = this.newest;
		return { key, generation, wrapped: this.#wrapDataKey(versionId, { key: key.export(), generation }) };
	}

	#wrapDataKey(versionId: VersionId, of: { key: Buffer; generation: number }): Buffer {
		return wrapKey({
			wrappingKey: this.#key(of.generation),
			purpose: 'data key',
			context: idBytes(versionId),
			key: of.key,
			random: this.#deps.random,
		});
	}

	/** Throws `corrupt` or `denied` when it does not open, `unavailable` when that needs a master key that was not given here. */
	async dataKey(versionId: VersionId, row: { keyGeneration: number; wrappedKey: Buffer }): Promise<KeyObject> {
		// Another orchestrator may have made it just now.
		const isKnown = () => this.#cluster.keys.some(({ generation }) => generation === row.keyGeneration);
		if (!isKnown()) await this.refresh();
		// That one may have been under way before.
		if (!isKnown()) await this.refresh();
		return createSecretKey(this.#unwrapDataKey(versionId, row));
	}

	#unwrapDataKey(versionId: VersionId, row: { keyGeneration: number; wrappedKey: Buffer }): Buffer {
		return unwrapKey({
			wrappingKey: this.#key(row.keyGeneration),
			purpose: 'data key',
			context: idBytes(versionId),
			wrapped: row.wrappedKey,
		});
	}

	/** The same data key, wrapped by the newest generation. Throws as `dataKey`. */
	rewrapped(row: WrappedDataKeyRow): RewrappedObject {
		const { versionId, wrappedKey: before } = row;
		const generation = this.newest;
		const key = this.#unwrapDataKey(versionId, row);
		return {
			versionId,
			before,
			keyGeneration: generation,
			wrappedKey: this.#wrapDataKey(versionId, { key, generation }),
		};
	}

	#key(generation: number): KeyObject {
		const key = this.#open.get(generation);
		if (key !== undefined) return key;
		const row = this.#cluster.keys.find((one) => one.generation === generation);
		if (row === undefined) throw new DistroError('denied', `generation ${generation} of the cluster key is not known`);
		throw new DistroError(
			'unavailable',
			`generation ${generation} of the cluster key is wrapped by master key ${row.masterKeyId}, which this orchestrator was not given: add it to MASTER_KEY`,
		);
	}
}

function wrapClusterKey(of: {
	clusterId: ClusterId;
	master: MasterKey;
	key: Buffer;
	random: Random;
}): Pick<WrappedClusterKey, 'masterKeyId' | 'wrapped'> {
	const { master, key, random } = of;
	const context = idBytes(of.clusterId);
	const wrapped = wrapKey({ wrappingKey: master.key, purpose: 'cluster key', context, key, random });
	return { masterKeyId: master.id, wrapped };
}

function sayMissing({ masterKeyId, generation }: WrappedClusterKey): string {
	return `master key ${masterKeyId} (generation ${generation} of the cluster key)`;
}
