/** Golden leaves, roots, proofs and ETags, and the same made a second time from the words of docs/format.md. */

import { Blake3Hasher, blake3 } from '@napi-rs/blake-hash';
import { expect, test } from 'vitest';
import {
	checksum,
	EtagHasher,
	LEAF_BYTES,
	leafHash,
	nodeHash,
	proofFor,
	rootOf,
	verifyProof,
} from '../../core/crypto/digest.ts';
import type { VersionId } from '../../core/ids.ts';
import { counting, golden, hex, sameId } from './golden.ts';

const cells = Array.from({ length: 7 }, (_, i) => counting(100 * i + 16, i));
const leaves = Buffer.concat(cells.map(leafHash));

test('tree', () => {
	const etag = new EtagHasher();
	for (const cell of cells) etag.add(leafHash(cell));
	const kept = golden('tree', {
		cells: cells.map((cell) => ({ bytes: cell.length, first: cell.readUInt8(0), leaf: hex(leafHash(cell)) })),
		wholeCell: hex(leafHash(counting(266_240))),
		node: hex(nodeHash(leaves.subarray(0, 32), leaves.subarray(32, 64))),
		roots: cells.map((_, i) => hex(rootOf(leaves.subarray(0, (i + 1) * LEAF_BYTES)))),
		proofs: cells.map((_, index) => ({ index, path: proofFor(leaves, index).map(hex) })),
		etag: etag.digest(sameId<VersionId>(0x11)),
		checksum: hex(checksum(counting(300))),
	});
	const root = Buffer.from(kept.roots[6] as string, 'hex');
	for (const { index, path } of kept.proofs) {
		const leaf = Buffer.from(kept.cells[index]?.leaf as string, 'hex');
		const siblings = path.map((sibling) => Buffer.from(sibling, 'hex'));
		expect(verifyProof({ leaf, index, count: 7, path: siblings, root })).toBe(true);
	}
});

test('the tree of three leaves as docs/format.md says it', () => {
	const keyed = (context: string, ...parts: Buffer[]) => {
		const key = Blake3Hasher.deriveKey(context, Buffer.alloc(0));
		const hasher = Blake3Hasher.newKeyed(key);
		for (const part of parts) hasher.update(part);
		return hasher.digestBuffer();
	};
	const [a, b, c] = cells.slice(0, 3).map((cell) => keyed('distro leaf v1', cell)) as [Buffer, Buffer, Buffer];
	expect(leaves.subarray(0, 96).equals(Buffer.concat([a, b, c]))).toBe(true);
	const top = keyed('distro node v1', keyed('distro node v1', a, b), c);
	const root = keyed('distro root v1', Buffer.from('03000000', 'hex'), top);
	expect(rootOf(Buffer.concat([a, b, c])).equals(root)).toBe(true);
	const etag = new EtagHasher();
	for (const leaf of [a, b, c]) etag.add(leaf);
	const version = sameId<VersionId>(0x22);
	const wanted = keyed('distro etag v1', a, b, c, Buffer.alloc(16, 0x22)).subarray(0, 16);
	expect(etag.digest(version)).toBe(hex(wanted));
	expect(checksum(a).equals(blake3(a).subarray(0, 16))).toBe(true);
});
