/** Golden keys and sealed bytes, opened again from the file, and made a second time as docs/format.md says it. */

import { createCipheriv, createSecretKey, hkdfSync } from 'node:crypto';
import { expect, test } from 'vitest';
import { masterKeyFingerprint, parseMasterKeys, segmentKey, unwrapKey, wrapKey } from '../../core/crypto/keys.ts';
import {
	cellAd,
	createCellCipher,
	createCellDecipher,
	openEndRecord,
	openInline,
	openManifest,
	sealEndRecord,
	sealInline,
	sealManifest,
} from '../../core/crypto/seal.ts';
import { idBytes, type SealId, type VersionId } from '../../core/ids.ts';
import { encodeManifest, type Manifest } from '../../core/model/manifest.ts';
import { counting, countingRandom, golden, hex, sameId } from './golden.ts';

const masterKey = createSecretKey(counting(32, 0x40));
const dataKey = createSecretKey(counting(32, 0x80));
const versionId = sameId<VersionId>(0x11);
const sealId = sameId<SealId>(0x22);
const segment = 3;
const cellKey = segmentKey({ dataKey, segment, sealId });
const ad = () => cellAd({ versionId, segment, sealId });
const plain = Buffer.from('What is sealed is not seen.');
const end = { cells: 253, lastCellBytes: 30_000, lastSegment: true };
const manifest: Manifest = {
	name: 'payload.txt',
	contentType: 'text/plain',
	sizeBytes: 67_108_864,
	segments: 2,
	sha256: counting(32, 0xa0),
	createdAtMs: 1_700_000_000_000,
};
const bare: Manifest = { ...manifest, name: null, contentType: null, sha256: null, sizeBytes: 0, segments: 0 };
const wrapped = { wrappingKey: masterKey, context: idBytes(versionId), key: counting(32, 0x80) };

function sealCell(cell: number, text: Buffer): Buffer {
	const cipher = createCellCipher(cellKey, ad(), cell);
	return Buffer.concat([cipher.update(text), cipher.final(), cipher.getAuthTag()]);
}

test('sealing', () => {
	const kept = golden('sealing', {
		masterKey: hex(masterKey.export()),
		fingerprint: masterKeyFingerprint(masterKey),
		dataKey: hex(dataKey.export()),
		versionId,
		sealId,
		segment,
		wrappedDataKey: hex(wrapKey({ ...wrapped, purpose: 'data key', random: countingRandom(1) })),
		wrappedClusterKey: hex(wrapKey({ ...wrapped, purpose: 'cluster key', random: countingRandom(1) })),
		segmentKey: hex(cellKey.export()),
		associatedData: hex(ad()),
		plain: hex(plain),
		cell0: hex(sealCell(0, plain)),
		cell255: hex(sealCell(255, plain)),
		emptyCell: hex(sealCell(0, Buffer.alloc(0))),
		endRecord: hex(sealEndRecord(cellKey, ad(), end)),
		endRecordOfMore: hex(sealEndRecord(cellKey, ad(), { ...end, lastSegment: false })),
		manifest: hex(encodeManifest(manifest)),
		bareManifest: hex(encodeManifest(bare)),
		sealedManifest: hex(sealManifest(dataKey, manifest, countingRandom(1))),
		sealedBareManifest: hex(sealManifest(dataKey, bare, countingRandom(1))),
		inline: hex(sealInline(dataKey, versionId, plain)),
		emptyInline: hex(sealInline(dataKey, versionId, Buffer.alloc(0))),
	});

	const bytes = (text: string) => Buffer.from(text, 'hex');
	expect(parseMasterKeys(kept.masterKey).primary.id).toBe(kept.fingerprint);
	const open = { wrappingKey: masterKey, context: idBytes(versionId) };
	expect(hex(unwrapKey({ ...open, purpose: 'data key', wrapped: bytes(kept.wrappedDataKey) }))).toBe(kept.dataKey);
	expect(hex(unwrapKey({ ...open, purpose: 'cluster key', wrapped: bytes(kept.wrappedClusterKey) }))).toBe(
		kept.dataKey,
	);
	const decipher = createCellDecipher(cellKey, ad(), 255);
	const sealed = bytes(kept.cell255);
	expect(decipher.update(sealed.subarray(0, -16)).equals(plain)).toBe(true);
	decipher.setAuthTag(sealed.subarray(-16));
	decipher.final();
	expect(openEndRecord(cellKey, ad(), bytes(kept.endRecord))).toEqual(end);
	expect(openManifest(dataKey, bytes(kept.sealedManifest))).toEqual(manifest);
	expect(openManifest(dataKey, bytes(kept.sealedBareManifest))).toEqual(bare);
	expect(openInline(dataKey, versionId, bytes(kept.inline)).equals(plain)).toBe(true);
});

test('the same as docs/format.md says it', () => {
	const hkdf = (key: Buffer, salt: Buffer, info: Buffer, count = 32) =>
		Buffer.from(hkdfSync('sha256', key, salt, info, count));
	const gcm = (key: Buffer, box: { nonce: Buffer; ad?: Buffer; text: Buffer }) => {
		const cipher = createCipheriv('aes-256-gcm', key, box.nonce);
		if (box.ad !== undefined) cipher.setAAD(box.ad);
		return Buffer.concat([cipher.update(box.text), cipher.final(), cipher.getAuthTag()]);
	};
	const ascii = (text: string) => Buffer.from(text, 'latin1');
	const none = Buffer.alloc(0);
	const zero = Buffer.alloc(12);
	const salt = counting(16, 1);
	const [version, seal] = [Buffer.alloc(16, 0x11), Buffer.alloc(16, 0x22)];
	const [master, data] = [counting(32, 0x40), counting(32, 0x80)];

	const wrapping = hkdf(master, salt, Buffer.concat([ascii('distro wrap v1|data key|'), version]));
	const wanted = Buffer.concat([salt, gcm(wrapping, { nonce: zero, text: data })]);
	expect(wrapKey({ ...wrapped, purpose: 'data key', random: countingRandom(1) }).equals(wanted)).toBe(true);
	expect(masterKeyFingerprint(masterKey)).toBe(hex(hkdf(master, none, ascii('distro fingerprint v1'), 4)));

	const number = ascii('\x03\0\0\0');
	const key = hkdf(data, none, Buffer.concat([ascii('distro segment v1|'), number, seal]));
	expect(cellKey.export().equals(key)).toBe(true);
	const adOf = (cell: string) => Buffer.concat([ascii('\x01'), version, number, seal, Buffer.from(cell, 'hex')]);
	const nonce = Buffer.from('0000000000000000000000ff', 'hex');
	expect(sealCell(255, plain).equals(gcm(key, { nonce, ad: adOf('ff000000'), text: plain }))).toBe(true);
	const endNonce = Buffer.alloc(12, 0xff);
	const endText = Buffer.from('fd0000003075000001', 'hex');
	const endRecord = gcm(key, { nonce: endNonce, ad: adOf('ffffffff'), text: endText });
	expect(sealEndRecord(cellKey, ad(), end).equals(endRecord)).toBe(true);

	const manifestKey = hkdf(data, salt, ascii('distro manifest v1'));
	const sealed = Buffer.concat([salt, gcm(manifestKey, { nonce: zero, text: encodeManifest(manifest) })]);
	expect(sealManifest(dataKey, manifest, countingRandom(1)).equals(sealed)).toBe(true);
	const inlineKey = hkdf(data, version, ascii('distro inline v1'));
	expect(sealInline(dataKey, versionId, plain).equals(gcm(inlineKey, { nonce: zero, text: plain }))).toBe(true);
});
