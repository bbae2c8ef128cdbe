/**
 * Sealing with AES-256-GCM: cells, end records, manifests, inline objects (docs/format.md).
 *
 * A cell's associated data binds suite, object version, segment, seal id and cell index; nothing about k, n, encoding or
 * workers, so repair and re-encoding need no key. There is no "last" flag in it, since GCM wants it before the bytes, when
 * nobody knows: each segment ends with a sealed end record instead, opened before any length is trusted.
 */

import {
	type CipherGCM,
	createCipheriv,
	createDecipheriv,
	createSecretKey,
	type DecipherGCM,
	type KeyObject,
} from 'node:crypto';
import { DistroError } from '../errors.ts';
import { idBytes, type SealId, type VersionId } from '../ids.ts';
import { TAG_BYTES } from '../limits.ts';
import { decodeManifest, encodeManifest, type Manifest } from '../model/manifest.ts';
import type { Random } from '../ports.ts';
import { derive, KEY_BYTES, SALT_BYTES } from './keys.ts';

const SUITE_AES_256_GCM = 1;
const NONCE_BYTES = 12;
const ZERO_NONCE = Buffer.alloc(NONCE_BYTES);
const END_INDEX = 0xffff_ffff;
/** 2^96 − 1: no cell can have it. */
const END_NONCE = Buffer.alloc(NONCE_BYTES, 0xff);
const END_PLAIN_BYTES = 9;
export const END_RECORD_BYTES = END_PLAIN_BYTES + TAG_BYTES;

/** Associated data of a segment's cells: suite (1) | version (16) | segment (u32 LE) | seal id (16) | cell (u32 LE). */
export type CellAd = Buffer;
const AD_BYTES = 1 + 16 + 4 + 16 + 4;
const AD_CELL_AT = AD_BYTES - 4;

export function cellAd(of: { versionId: VersionId; segment: number; sealId: SealId }): CellAd {
	const ad = Buffer.alloc(AD_BYTES);
	ad[0] = SUITE_AES_256_GCM;
	idBytes(of.versionId).copy(ad, 1);
	ad.writeUInt32LE(of.segment, 17);
	idBytes(of.sealId).copy(ad, 21);
	return ad;
}

function nonceOf(cell: number): Buffer {
	const nonce = Buffer.alloc(NONCE_BYTES);
	nonce.writeUInt32BE(cell, NONCE_BYTES - 4);
	return nonce;
}

function withIndex(ad: CellAd, index: number): Buffer {
	// Node hands associated data to the cipher at once, so one Buffer serves all cells.
	ad.writeUInt32LE(index, AD_CELL_AT);
	return ad;
}

/** Feed plaintext with `update`, then `final` and `getAuthTag`: the sealed cell is both, one after the other. */
export function createCellCipher(key: KeyObject, ad: CellAd, cell: number): CipherGCM {
	const cipher = createCipheriv('aes-256-gcm', key, nonceOf(cell));
	cipher.setAAD(withIndex(ad, cell));
	return cipher;
}

/** The counterpart: nothing that `update` gave may be used before `final` has returned. */
export function createCellDecipher(key: KeyObject, ad: CellAd, cell: number): DecipherGCM {
	const decipher = createDecipheriv('aes-256-gcm', key, nonceOf(cell), { authTagLength: TAG_BYTES });
	decipher.setAAD(withIndex(ad, cell));
	return decipher;
}

export interface EndRecord {
	readonly cells: number;
	readonly lastCellBytes: number;
	readonly lastSegment: boolean;
}

/** cells (u32 LE) | last cell's bytes (u32 LE) | last segment (u8), sealed: 25 bytes. */
export function sealEndRecord(key: KeyObject, ad: CellAd, end: EndRecord): Buffer {
	const plain = Buffer.alloc(END_PLAIN_BYTES);
	plain.writeUInt32LE(end.cells, 0);
	plain.writeUInt32LE(end.lastCellBytes, 4);
	plain[8] = end.lastSegment ? 1 : 0;
	const cipher = createCipheriv('aes-256-gcm', key, END_NONCE);
	cipher.setAAD(withIndex(ad, END_INDEX));
	return Buffer.concat([cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
}

/** Throws `corrupt`. */
export function openEndRecord(key: KeyObject, ad: CellAd, sealed: Buffer): EndRecord {
	if (sealed.length !== END_RECORD_BYTES) throw new DistroError('corrupt', 'an end record has 25 bytes');
	const plain = open({ key, nonce: END_NONCE, ad: withIndex(ad, END_INDEX), sealed, what: 'an end record' });
	return { cells: plain.readUInt32LE(0), lastCellBytes: plain.readUInt32LE(4), lastSegment: plain[8] === 1 };
}

/** salt (16) | sealed manifest. */
export function sealManifest(dataKey: KeyObject, manifest: Manifest, random: Random): Buffer {
	const salt = random.bytes(SALT_BYTES);
	const cipher = createCipheriv('aes-256-gcm', labelledKey(dataKey, 'manifest', salt), ZERO_NONCE);
	return Buffer.concat([salt, cipher.update(encodeManifest(manifest)), cipher.final(), cipher.getAuthTag()]);
}

/** Throws `corrupt`. */
export function openManifest(dataKey: KeyObject, sealed: Buffer): Manifest {
	const salt = sealed.subarray(0, SALT_BYTES);
	const key = labelledKey(dataKey, 'manifest', salt);
	return decodeManifest(
		open({ key, nonce: ZERO_NONCE, ad: null, sealed: sealed.subarray(SALT_BYTES), what: 'a manifest' }),
	);
}

/** An inline object's sealed bytes: ciphertext | tag, under a key of its own. */
export function sealInline(dataKey: KeyObject, versionId: VersionId, plaintext: Buffer): Buffer {
	const cipher = createCipheriv('aes-256-gcm', labelledKey(dataKey, 'inline', idBytes(versionId)), ZERO_NONCE);
	return Buffer.concat([cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);
}

/** Throws `corrupt`. */
export function openInline(dataKey: KeyObject, versionId: VersionId, sealed: Buffer): Buffer {
	const key = labelledKey(dataKey, 'inline', idBytes(versionId));
	return open({ key, nonce: ZERO_NONCE, ad: null, sealed, what: 'an inline object' });
}

function labelledKey(dataKey: KeyObject, label: 'manifest' | 'inline', salt: Buffer): KeyObject {
	return createSecretKey(derive(dataKey, Buffer.from(`distro ${label} v1`, 'latin1'), salt, KEY_BYTES));
}

function open(box: { key: KeyObject; nonce: Buffer; ad: Buffer | null; sealed: Buffer; what: string }): Buffer {
	const plainBytes = box.sealed.length - TAG_BYTES;
	if (plainBytes < 0) throw new DistroError('corrupt', `${box.what} is too short`);
	const decipher = createDecipheriv('aes-256-gcm', box.key, box.nonce, { authTagLength: TAG_BYTES });
	if (box.ad !== null) decipher.setAAD(box.ad);
	const plain = decipher.update(box.sealed.subarray(0, plainBytes));
	decipher.setAuthTag(box.sealed.subarray(plainBytes));
	try {
		decipher.final();
	} catch (cause) {
		throw new DistroError('corrupt', `${box.what} does not open: it was changed, or the key is another`, { cause });
	}
	return plain;
}
