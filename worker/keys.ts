/**
 * The cluster's wrapped keys on this volume (keys.json, docs/format.md): orchestrators write them, heartbeats tell which are
 * there, and whoever restores the cluster reads them. The worker can open none of them.
 *
 * The file is read for every beat: what is told of it is what the volume has, whatever became of it meanwhile, and would have
 * after a power cut: old keys go because of it.
 */

import { DistroError } from '../core/errors.ts';
import type { ClusterId } from '../core/ids.ts';
import {
	decodeKeysRecord,
	encodeKeysRecord,
	formatKeysFile,
	type KeysRecord,
	keysDigest,
	parseKeysFile,
} from '../core/model/keys-record.ts';
import type { ShardStore } from './store.ts';

export class VolumeKeys {
	readonly #store: Pick<ShardStore, 'loadRecord' | 'saveRecord'>;
	readonly #clusterId: ClusterId;
	/** One write at a time: each looks at what the one before left. */
	#writing: Promise<unknown> = Promise.resolve();
	#underWay = 0;
	/** Of the record that this process made durable; null: none yet. */
	#durable: Buffer | null = null;

	constructor(deps: { store: Pick<ShardStore, 'loadRecord' | 'saveRecord'>; clusterId: ClusterId }) {
		this.#store = deps.store;
		this.#clusterId = deps.clusterId;
	}

	/** Of what is there and durable; empty for nothing that could be read. While it is written: of what was durable before. */
	async digest(): Promise<Buffer> {
		const none = Buffer.alloc(0);
		if (this.#underWay > 0) return this.#durable ?? none;
		return this.#inTurn(async () => {
			const kept = await this.#kept();
			return kept === null ? none : this.#keepDurably(kept);
		}).catch(() => none);
	}

	/** The record's bytes. Throws `not_found`, `corrupt`, `unsupported`, `unavailable`. */
	async read(): Promise<Buffer> {
		const kept = await this.#kept();
		if (kept === null) throw new DistroError('not_found', 'no keys were written to this volume yet');
		return encodeKeysRecord(kept);
	}

	/**
	 * Durable when it resolves. Throws `denied` for a record of another cluster, `conflict` for one that is older than what is
	 * there, another one of the same revision, or one that does not come from it.
	 */
	write(bytes: Buffer): Promise<void> {
		return this.#inTurn(() => this.#write(bytes));
	}

	#inTurn<T>(step: () => Promise<T>): Promise<T> {
		this.#underWay++;
		const done = this.#writing.then(step).finally(() => {
			this.#underWay--;
		});
		this.#writing = done.catch(() => {});
		return done;
	}

	/** Whatever can be read may have been left by a write that ended before it was durable, of this process or of one before. */
	async #keepDurably(record: KeysRecord): Promise<Buffer> {
		const digest = keysDigest(record);
		if (this.#durable?.equals(digest)) return digest;
		this.#durable = null;
		await this.#store.saveRecord('keys', Buffer.from(formatKeysFile(record)));
		this.#durable = digest;
		return digest;
	}

	async #write(bytes: Buffer): Promise<void> {
		const record = decodeKeysRecord(bytes);
		if (record.clusterId !== this.#clusterId) {
			throw new DistroError('denied', `these are the keys of cluster ${record.clusterId}`);
		}
		const kept = await this.#kept().catch((error) => {
			// Nothing is lost with what nobody can read.
			if (error instanceof DistroError && error.kind === 'corrupt') return null;
			throw error;
		});
		if (kept !== null && kept.clusterId !== this.#clusterId) {
			throw new DistroError(
				'denied',
				`this volume has the keys of cluster ${kept.clusterId}: it is of another cluster`,
			);
		}
		if (kept !== null && kept.revision >= record.revision) {
			if (keysDigest(kept).equals(keysDigest(record))) {
				await this.#keepDurably(kept);
				return;
			}
			throw new DistroError(
				'conflict',
				`this volume has revision ${kept.revision} of the keys, and was given ${record.revision === kept.revision ? 'another' : 'the older'} revision ${record.revision}`,
			);
		}
		// Of metadata that began anew, or of an old copy: whatever its revision is by now, here may be the last keys of the data.
		if (kept !== null && !comesFrom(kept, record)) {
			throw new DistroError(
				'conflict',
				`this volume has other keys than those that it was given, of the same generations or newer ones, and keeps them: its data may need them. Were the metadata lost, and not restored?`,
			);
		}
		await this.#keepDurably(record);
	}

	async #kept(): Promise<KeysRecord | null> {
		const file = await this.#store.loadRecord('keys');
		return file === null ? null : parseKeysFile(file.toString('utf8'));
	}
}

/**
 * Master keys change and old generations go, but a generation stays the key that it is, which the time tells at which it was
 * made, and the newest is dropped only after a newer one.
 */
function comesFrom(kept: KeysRecord, record: KeysRecord): boolean {
	const times = new Map(record.keys.map(({ generation, createdAtMs }) => [generation, createdAtMs]));
	const areSame = kept.keys.every(
		({ generation, createdAtMs }) => (times.get(generation) ?? createdAtMs) === createdAtMs,
	);
	return areSame && (record.keys.at(-1)?.generation ?? 0) >= (kept.keys.at(-1)?.generation ?? 0);
}
