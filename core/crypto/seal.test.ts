/** Sealing: what was sealed opens, and nothing opens that was changed, moved, cut or sealed for something else. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../test/support/clock.ts';
import { newId, type SealId, type VersionId } from '../ids.ts';
import { TAG_BYTES } from '../limits.ts';
import { encodeManifest, type Manifest } from '../model/manifest.ts';
import { newDataKey, segmentKey } from './keys.ts';
import {
	type CellAd,
	cellAd,
	createCellCipher,
	createCellDecipher,
	END_RECORD_BYTES,
	openEndRecord,
	openInline,
	openManifest,
	sealEndRecord,
	sealInline,
	sealManifest,
} from './seal.ts';

const random = seededRandom('seal');
const dataKey = newDataKey(random);
const versionId = newId<VersionId>(random);
const sealId = newId<SealId>(random);
const key = segmentKey({ dataKey, segment: 3, sealId });
const adOf = (change: Partial<Parameters<typeof cellAd>[0]> = {}) =>
	cellAd({ versionId, segment: 3, sealId, ...change });
const corrupt = expect.objectContaining({ kind: 'corrupt' });

function sealCell(ad: CellAd, cell: number, pieces: readonly Uint8Array[]): Buffer {
	const cipher = createCellCipher(key, ad, cell);
	return Buffer.concat([...pieces.map((piece) => cipher.update(piece)), cipher.final(), cipher.getAuthTag()]);
}

function openCell(ad: CellAd, cell: number, sealed: Buffer, segmentsKey = key): Buffer {
	const decipher = createCellDecipher(segmentsKey, ad, cell);
	const plain = decipher.update(sealed.subarray(0, sealed.length - TAG_BYTES));
	decipher.setAuthTag(sealed.subarray(sealed.length - TAG_BYTES));
	decipher.final();
	return plain;
}

function changes(bytes: Buffer): Buffer[] {
	return Array.from(bytes, (byte, at) => {
		const changed = Buffer.from(bytes);
		changed.writeUInt8(byte ^ (1 << (at % 8)), at);
		return changed;
	});
}

describe('cells', () => {
	test('open to what was sealed, in whatever pieces it came', () => {
		fc.assert(
			fc.property(fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 5 }), fc.nat(255), (pieces, cell) => {
				const sealed = sealCell(adOf(), cell, pieces);
				const whole = Buffer.concat(pieces);
				expect(sealed).toHaveLength(whole.length + TAG_BYTES);
				expect(openCell(adOf(), cell, sealed).equals(whole)).toBe(true);
			}),
			{ seed: 20_240_605 },
		);
	});

	test('one reusable Buffer of associated data serves ciphers that are open at the same time', () => {
		const ad = adOf();
		const [first, second] = [createCellCipher(key, ad, 1), createCellCipher(key, ad, 2)];
		const sealed = [first, second].map((cipher) => {
			const bytes = cipher.update('text');
			return Buffer.concat([bytes, cipher.final(), cipher.getAuthTag()]);
		});
		expect(openCell(adOf(), 1, sealed[0] as Buffer).toString()).toBe('text');
		expect(openCell(adOf(), 2, sealed[1] as Buffer).toString()).toBe('text');
	});

	test('do not open changed, cut, at another place, or as part of something else', () => {
		const sealed = sealCell(adOf(), 5, [Buffer.from('one cell')]);
		expect(openCell(adOf(), 5, sealed).toString()).toBe('one cell');
		for (const changed of changes(sealed)) expect(() => openCell(adOf(), 5, changed)).toThrow();
		expect(() => openCell(adOf(), 5, sealed.subarray(1))).toThrow();
		expect(() => openCell(adOf(), 5, sealed.subarray(0, -1))).toThrow();
		expect(() => openCell(adOf(), 6, sealed)).toThrow();
		expect(() => openCell(adOf({ segment: 4 }), 5, sealed)).toThrow();
		expect(() => openCell(adOf({ versionId: newId<VersionId>(random) }), 5, sealed)).toThrow();
		expect(() => openCell(adOf({ sealId: newId<SealId>(random) }), 5, sealed)).toThrow();
		expect(() => openCell(adOf(), 5, sealed, segmentKey({ dataKey, segment: 4, sealId }))).toThrow();
	});

	test('a shortened tag is refused', () => {
		const sealed = sealCell(adOf(), 0, [Buffer.from('one cell')]);
		const decipher = createCellDecipher(key, adOf(), 0);
		decipher.update(sealed.subarray(0, 8));
		expect(() => decipher.setAuthTag(sealed.subarray(8, 12))).toThrow();
	});
});

describe('end records', () => {
	const end = { cells: 253, lastCellBytes: 16, lastSegment: true };

	test('come back', () => {
		for (const each of [end, { cells: 1, lastCellBytes: 266_240, lastSegment: false }]) {
			const sealed = sealEndRecord(key, adOf(), each);
			expect(sealed).toHaveLength(END_RECORD_BYTES);
			expect(openEndRecord(key, adOf(), sealed)).toEqual(each);
		}
	});

	test('do not open changed, cut, for another segment, or as a cell', () => {
		const sealed = sealEndRecord(key, adOf(), end);
		for (const changed of changes(sealed)) expect(() => openEndRecord(key, adOf(), changed)).toThrow(corrupt);
		expect(() => openEndRecord(key, adOf(), sealed.subarray(1))).toThrow(corrupt);
		expect(() => openEndRecord(key, adOf({ segment: 4 }), sealed)).toThrow(corrupt);
		expect(() => openEndRecord(newDataKey(random), adOf(), sealed)).toThrow(corrupt);
		expect(() => openCell(adOf(), 0xffff_ffff, sealed)).toThrow();
		const cell = sealCell(adOf(), 0xffff_ffff, [Buffer.alloc(9)]);
		expect(() => openEndRecord(key, adOf(), cell)).toThrow(corrupt);
	});
});

describe('manifests', () => {
	const manifest: Manifest = {
		name: 'Übersicht 2024.txt',
		contentType: 'text/plain',
		sizeBytes: 2 ** 40 + 1,
		segments: 16_000,
		sha256: random.bytes(32),
		createdAtMs: 1_700_000_000_000,
	};

	test('come back, with anything that may be absent absent', () => {
		for (let without = 0; without < 8; without++) {
			const each: Manifest = {
				...manifest,
				name: without & 1 ? null : manifest.name,
				contentType: without & 2 ? null : manifest.contentType,
				sha256: without & 4 ? null : manifest.sha256,
			};
			expect(openManifest(dataKey, sealManifest(dataKey, each, random))).toEqual(each);
		}
	});

	test('an empty name is not the same as none', () => {
		const empty = { ...manifest, name: '' };
		expect(openManifest(dataKey, sealManifest(dataKey, empty, random)).name).toBe('');
		expect(encodeManifest(empty).equals(encodeManifest({ ...manifest, name: null }))).toBe(false);
	});

	test('do not open changed, cut, or with another key', () => {
		const sealed = sealManifest(dataKey, manifest, random);
		expect(sealed.includes('Übersicht')).toBe(false);
		for (const changed of changes(sealed)) expect(() => openManifest(dataKey, changed)).toThrow(corrupt);
		for (let length = 0; length < sealed.length; length++) {
			expect(() => openManifest(dataKey, sealed.subarray(0, length))).toThrow(corrupt);
		}
		expect(() => openManifest(newDataKey(random), sealed)).toThrow(corrupt);
	});
});

describe('inline objects', () => {
	test('come back', () => {
		for (const plain of [Buffer.alloc(0), Buffer.from('a'), random.bytes(4096)]) {
			const sealed = sealInline(dataKey, versionId, plain);
			expect(sealed).toHaveLength(plain.length + TAG_BYTES);
			expect(openInline(dataKey, versionId, sealed).equals(plain)).toBe(true);
		}
	});

	test('do not open changed, cut, as another version, or with another key', () => {
		const sealed = sealInline(dataKey, versionId, Buffer.from('inline'));
		for (const changed of changes(sealed)) expect(() => openInline(dataKey, versionId, changed)).toThrow(corrupt);
		for (let length = 0; length < sealed.length; length++) {
			expect(() => openInline(dataKey, versionId, sealed.subarray(0, length))).toThrow(corrupt);
		}
		expect(() => openInline(dataKey, newId<VersionId>(random), sealed)).toThrow(corrupt);
		expect(() => openInline(newDataKey(random), versionId, sealed)).toThrow(corrupt);
	});
});
