/** The hash tree: proofs hold for their leaf and nothing else, and pieces hash as wholes do. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../test/support/clock.ts';
import { newId, type VersionId } from '../ids.ts';
import { EtagHasher, LEAF_BYTES, LeafHasher, leafHash, nodeHash, proofFor, rootOf, verifyProof } from './digest.ts';

const random = seededRandom('digest');
const SEED = { seed: 20_240_604 };

function leafAt(leaves: Buffer, index: number): Buffer {
	return leaves.subarray(index * LEAF_BYTES, (index + 1) * LEAF_BYTES);
}

function flipped(bytes: Buffer, bit: number): Buffer {
	const out = Buffer.from(bytes);
	const at = (bit >> 3) % bytes.length;
	out.writeUInt8(bytes.readUInt8(at) ^ (1 << (bit & 7)), at);
	return out;
}

describe('proofs', () => {
	test('every leaf of every tree up to 70 leaves is proved, at its place only', () => {
		for (let count = 1; count <= 70; count++) {
			const leaves = random.bytes(count * LEAF_BYTES);
			const root = rootOf(leaves);
			for (let index = 0; index < count; index++) {
				const path = proofFor(leaves, index);
				const proof = { leaf: leafAt(leaves, index), index, count, path, root };
				expect(verifyProof(proof)).toBe(true);
				expect(verifyProof({ ...proof, index: (index + 1) % (count + 1) })).toBe(false);
				expect(verifyProof({ ...proof, count: count + 1 })).toBe(false);
				expect(path.length).toBeLessThanOrEqual(Math.ceil(Math.log2(count)));
			}
		}
	});

	test('nothing changed passes', () => {
		fc.assert(
			fc.property(fc.integer({ min: 1, max: 256 }), fc.nat(), fc.nat(), (count, at, bit) => {
				const leaves = random.bytes(count * LEAF_BYTES);
				const index = at % count;
				const path = proofFor(leaves, index);
				const proof = { leaf: leafAt(leaves, index), index, count, path, root: rootOf(leaves) };
				expect(verifyProof({ ...proof, leaf: flipped(proof.leaf, bit) })).toBe(false);
				expect(verifyProof({ ...proof, root: flipped(proof.root, bit) })).toBe(false);
				expect(verifyProof({ ...proof, path: [...path, random.bytes(32)] })).toBe(false);
				if (path.length === 0) return;
				const step = bit % path.length;
				const other = path.map((hash, i) => (i === step ? flipped(hash, bit) : hash));
				expect(verifyProof({ ...proof, path: other })).toBe(false);
				expect(verifyProof({ ...proof, path: path.slice(1) })).toBe(false);
			}),
			SEED,
		);
	});

	test('indexes from outside that are no index', () => {
		const leaves = random.bytes(2 * LEAF_BYTES);
		const proof = { leaf: leafAt(leaves, 0), count: 2, path: proofFor(leaves, 0), root: rootOf(leaves) };
		for (const index of [-1, 2, 0.5, Number.NaN, 2 ** 32]) expect(verifyProof({ ...proof, index })).toBe(false);
	});
});

describe('roots', () => {
	test('bind the order and the number of leaves', () => {
		const leaves = random.bytes(4 * LEAF_BYTES);
		const swapped = Buffer.concat([leafAt(leaves, 1), leafAt(leaves, 0), leaves.subarray(2 * LEAF_BYTES)]);
		expect(rootOf(swapped).equals(rootOf(leaves))).toBe(false);
		// Without the number in the root these two would have the same one.
		const [a, b] = [leafAt(leaves, 0), leafAt(leaves, 1)];
		expect(rootOf(Buffer.concat([a, b])).equals(rootOf(nodeHash(a, b)))).toBe(false);
	});

	test('leaf, node and root are different functions', () => {
		const both = random.bytes(2 * LEAF_BYTES);
		const hashes = [leafHash(both), nodeHash(leafAt(both, 0), leafAt(both, 1)), rootOf(both)];
		expect(new Set(hashes.map((hash) => hash.toString('hex'))).size).toBe(3);
	});
});

test('a cell in pieces has the leaf of the whole, one cell after the other', () => {
	const hasher = new LeafHasher();
	fc.assert(
		fc.property(fc.array(fc.uint8Array({ maxLength: 5000 }), { maxLength: 6 }), (pieces) => {
			const target = Buffer.alloc(40, 1);
			for (const piece of pieces) hasher.update(Buffer.from(piece));
			hasher.digestInto(target, 4);
			expect(target.subarray(4, 36).equals(leafHash(Buffer.concat(pieces)))).toBe(true);
			expect(target.readUInt32LE(0)).toBe(0x01010101);
			expect(target.readUInt32LE(36)).toBe(0x01010101);
		}),
		SEED,
	);
});

test('two hashers at work do not disturb each other', () => {
	const [a, b] = [new LeafHasher(), new LeafHasher()];
	const target = Buffer.alloc(64);
	a.update(Buffer.from('first'));
	b.update(Buffer.from('second'));
	leafHash(Buffer.from('third'));
	a.digestInto(target, 0);
	b.digestInto(target, 32);
	expect(target.subarray(0, 32).equals(leafHash(Buffer.from('first')))).toBe(true);
	expect(target.subarray(32).equals(leafHash(Buffer.from('second')))).toBe(true);
});

test('an ETag depends on cells, their order and the version', () => {
	const [first, second] = [random.bytes(32), random.bytes(32)];
	const [version, other] = [newId<VersionId>(random), newId<VersionId>(random)];
	const etag = (leaves: Buffer[], versionId: VersionId) => {
		const hasher = new EtagHasher();
		for (const leaf of leaves) hasher.add(leaf);
		return hasher.digest(versionId);
	};
	const tags = [
		etag([first, second], version),
		etag([second, first], version),
		etag([first], version),
		etag([], version),
		etag([first, second], other),
	];
	expect(new Set(tags).size).toBe(tags.length);
	for (const tag of tags) expect(tag).toMatch(/^[0-9a-f]{32}$/);
	expect(etag([first, second], version)).toBe(tags[0]);
});
