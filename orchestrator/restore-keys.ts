/**
 * The cluster's keys from its volumes: the newest keys record, or an older one with the same generations where only that opens with
 * the master keys that were given. With it data
 * keys open that are in trailers and snapshots.
 */

import { createSecretKey, type KeyObject } from 'node:crypto';
import { type MasterKeyring, unwrapKey } from '../core/crypto/keys.ts';
import { asDistroError, DistroError } from '../core/errors.ts';
import { type ClusterId, idBytes } from '../core/ids.ts';
import { decodeKeysRecord, type KeysRecord } from '../core/model/keys-record.ts';
import type { OpenDataKey } from '../core/model/recover.ts';
import type { WorkerRef } from '../core/ports.ts';
import type { GrpcShardTransport } from '../platform/shard-transport.ts';

const TIMEOUT_MS = 10_000;

export interface RestoreKeys {
	/** For the metadata. */
	readonly record: KeysRecord;
	readonly openKey: OpenDataKey;
}

/**
 * Throws `denied` when none opens that has all generations of the newest, and says which master key is needed; `not_found`
 * when no volume has one; `unsupported` when a newer release wrote one.
 */
export async function collectKeys(
	deps: { transport: Pick<GrpcShardTransport, 'readKeys'>; master: MasterKeyring; clusterId: ClusterId },
	workers: readonly WorkerRef[],
): Promise<RestoreKeys> {
	const { transport, master, clusterId } = deps;
	const answers = await Promise.all(
		workers.map(async (worker): Promise<KeysRecord | DistroError> => {
			try {
				return decodeKeysRecord(await transport.readKeys(worker, { timeoutMs: TIMEOUT_MS }));
			} catch (thrown) {
				return asDistroError(thrown);
			}
		}),
	);
	const unknown = answers.find((answer) => answer instanceof DistroError && answer.kind === 'unsupported');
	if (unknown !== undefined) throw unknown;
	const records = answers
		.flatMap((answer) => (answer instanceof DistroError || answer.clusterId !== clusterId ? [] : answer))
		.sort((a, b) => b.revision - a.revision);
	const newest = records[0];
	if (newest === undefined) {
		const [why] = answers.filter((answer) => answer instanceof DistroError);
		throw new DistroError(
			'not_found',
			`no worker has the keys of cluster ${clusterId} on its volume${why === undefined ? '' : ` (${why.message})`}: without them nothing can be read`,
		);
	}
	for (const record of records) {
		const opened = openAll(record, master);
		if (opened === null) continue;
		// It would be written over the others, and the keys that only they have would be gone for ever.
		const lost = newest.keys.filter(({ generation }) => !opened.has(generation));
		if (lost.length > 0) break;
		// An older one takes the place of those that don't open.
		const revision = record.revision === newest.revision ? newest.revision : newest.revision + 1;
		return { record: { ...record, revision }, openKey: openerOf(opened) };
	}
	const needed = [...new Set(newest.keys.map(({ masterKeyId }) => masterKeyId))];
	throw new DistroError(
		'denied',
		`MASTER_KEY does not open the newest keys of this cluster: they need master key ${needed.join(' and ')}, and ${master.keys.map(({ id }) => id).join(', ')} was given`,
	);
}

function openAll(record: KeysRecord, master: MasterKeyring): ReadonlyMap<number, KeyObject> | null {
	const context = idBytes(record.clusterId);
	const opened = new Map<number, KeyObject>();
	try {
		for (const { generation, masterKeyId, wrapped } of record.keys) {
			const wrappingKey = master.get(masterKeyId);
			if (wrappingKey === null) return null;
			opened.set(generation, createSecretKey(unwrapKey({ wrappingKey, purpose: 'cluster key', context, wrapped })));
		}
	} catch {
		return null;
	}
	return opened;
}

function openerOf(generations: ReadonlyMap<number, KeyObject>): OpenDataKey {
	return (versionId, { keyGeneration, wrappedKey: wrapped }) => {
		const wrappingKey = generations.get(keyGeneration);
		if (wrappingKey === undefined) return null;
		try {
			const context = idBytes(versionId);
			return createSecretKey(unwrapKey({ wrappingKey, purpose: 'data key', context, wrapped }));
		} catch {
			return null;
		}
	};
}
