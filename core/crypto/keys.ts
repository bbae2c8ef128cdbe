/**
 * The hierarchy of keys (docs/format.md):
 *
 *     master key → wraps the cluster key (in generations) → wraps a data key per object version
 *         → segment key = HKDF-SHA256(data key, segment, seal id)
 *
 * Wrapping is AES-256-GCM with a zero nonce under a fresh key each time, HKDF(wrapping key, purpose, context, 16 random
 * bytes): random nonces under one key would run out at 2^32 wraps.
 */

import { createCipheriv, createDecipheriv, createSecretKey, hkdfSync, type KeyObject } from 'node:crypto';
import { DistroError } from '../errors.ts';
import { idBytes, type SealId } from '../ids.ts';
import { TAG_BYTES } from '../limits.ts';
import type { Random } from '../ports.ts';

export const KEY_BYTES = 32;
export const SALT_BYTES = 16;
/** salt | ciphertext | tag */
export const WRAPPED_KEY_BYTES = SALT_BYTES + KEY_BYTES + TAG_BYTES;

const ZERO_NONCE = Buffer.alloc(12);

export type WrapPurpose = 'cluster key' | 'data key';

export interface MasterKey {
	/** What cluster keys name it by. */
	readonly id: string;
	readonly key: KeyObject;
}

export interface MasterKeyring {
	readonly keys: readonly MasterKey[];
	/** The first: wraps what is new. */
	readonly primary: MasterKey;
	get(id: string): KeyObject | null;
}

/**
 * Reads MASTER_KEY: 64 hexadecimal digits, or a list of `id:hex` separated by commas or white space, the first one being
 * used for what is new. Throws `invalid`, never showing a key.
 */
export function parseMasterKeys(text: string): MasterKeyring {
	const entries = text.split(/[\s,]+/).filter((entry) => entry !== '');
	if (entries.length === 0)
		throw new DistroError('invalid', 'MASTER_KEY is empty: give 64 hexadecimal digits (32 bytes)');
	const keys = entries.map((entry, i): MasterKey => {
		const colon = entry.lastIndexOf(':');
		const hex = entry.slice(colon + 1);
		if (!/^[0-9a-fA-F]{64}$/.test(hex)) {
			const which = entries.length === 1 ? 'MASTER_KEY' : `key ${i + 1} of MASTER_KEY`;
			throw new DistroError('invalid', `${which} must be 64 hexadecimal digits (32 bytes), alone or as id:digits`);
		}
		const id = entry.slice(0, Math.max(0, colon));
		if (colon >= 0 && !/^[A-Za-z0-9._-]{1,64}$/.test(id)) {
			throw new DistroError('invalid', `the id of key ${i + 1} of MASTER_KEY must be letters, digits, '.', '_' or '-'`);
		}
		const key = createSecretKey(Buffer.from(hex, 'hex'));
		return { id: colon >= 0 ? id : masterKeyFingerprint(key), key };
	});
	const ids = new Set(keys.map(({ id }) => id));
	if (ids.size !== keys.length) throw new DistroError('invalid', 'two keys of MASTER_KEY have the same id');
	return {
		keys,
		primary: keys[0] as MasterKey,
		get: (id) =>
			// A key that was once given bare and is now one of a list is found by its fingerprint.
			keys.find((entry) => entry.id === id)?.key ??
			keys.find((entry) => masterKeyFingerprint(entry.key) === id)?.key ??
			null,
	};
}

/** 8 hexadecimal digits that tell keys apart and say nothing about them. */
export function masterKeyFingerprint(key: KeyObject): string {
	return derive(key, Buffer.from('distro fingerprint v1', 'latin1'), Buffer.alloc(0), 4).toString('hex');
}

export function newDataKey(random: Random): KeyObject {
	return createSecretKey(random.bytes(KEY_BYTES));
}

export interface WrapScope {
	readonly wrappingKey: KeyObject;
	readonly purpose: WrapPurpose;
	/** Object version id of a data key, cluster id of a cluster key. */
	readonly context: Buffer;
}

/** Answers 64 bytes: salt (16) | ciphertext (32) | tag (16). */
export function wrapKey(wrap: WrapScope & { readonly key: Buffer; readonly random: Random }): Buffer {
	const salt = wrap.random.bytes(SALT_BYTES);
	const cipher = createCipheriv('aes-256-gcm', wrapKeyOf(wrap, salt), ZERO_NONCE);
	return Buffer.concat([salt, cipher.update(wrap.key), cipher.final(), cipher.getAuthTag()]);
}

/** Throws `denied` when the wrapping key is not the one, or the bytes were changed. */
export function unwrapKey(wrap: WrapScope & { readonly wrapped: Buffer }): Buffer {
	const { wrapped } = wrap;
	if (wrapped.length !== WRAPPED_KEY_BYTES) throw new DistroError('corrupt', 'a wrapped key has 64 bytes');
	const salt = wrapped.subarray(0, SALT_BYTES);
	const decipher = createDecipheriv('aes-256-gcm', wrapKeyOf(wrap, salt), ZERO_NONCE);
	decipher.setAuthTag(wrapped.subarray(SALT_BYTES + KEY_BYTES));
	try {
		return Buffer.concat([decipher.update(wrapped.subarray(SALT_BYTES, SALT_BYTES + KEY_BYTES)), decipher.final()]);
	} catch (cause) {
		throw new DistroError('denied', `a wrapped ${wrap.purpose} does not open with this key`, { cause });
	}
}

function wrapKeyOf(wrap: WrapScope, salt: Buffer): Buffer {
	const info = Buffer.concat([Buffer.from(`distro wrap v1|${wrap.purpose}|`, 'latin1'), wrap.context]);
	return derive(wrap.wrappingKey, info, salt, KEY_BYTES);
}

/** The key of one segment's cells and end record. */
export function segmentKey(of: { dataKey: KeyObject; segment: number; sealId: SealId }): KeyObject {
	const label = Buffer.from('distro segment v1|', 'latin1');
	const info = Buffer.alloc(label.length + 4 + 16);
	label.copy(info);
	info.writeUInt32LE(of.segment, label.length);
	idBytes(of.sealId).copy(info, label.length + 4);
	return createSecretKey(derive(of.dataKey, info, Buffer.alloc(0), KEY_BYTES));
}

/** HKDF-SHA256. */
export function derive(key: KeyObject, info: Buffer, salt: Buffer, bytes: number): Buffer {
	return Buffer.from(hkdfSync('sha256', key, salt, info, bytes));
}
