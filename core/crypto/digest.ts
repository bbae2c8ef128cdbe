/**
 * The hash tree of a shard, with BLAKE3: leaf = keyed hash of a cell, node = keyed hash of left and right, an odd node
 * moves up unchanged, root = keyed hash of the number of leaves and the top. The three keys are BLAKE3's key derivation
 * of fixed contexts, so that a leaf can't pass for a node. The tree lets one worker be audited alone, for one cell and a
 * path (the idea of Merkle proofs as in RFC 6962, whose domain separation by prefix the keys replace).
 */

import { Blake3Hasher, blake3 } from '@napi-rs/blake-hash';
import { idBytes, type VersionId } from '../ids.ts';

export const LEAF_BYTES = 32;

function keyed(context: string): Blake3Hasher {
	return Blake3Hasher.newKeyed(Blake3Hasher.deriveKey(`distro ${context} v1`, Buffer.alloc(0)));
}

const leafOf = keyed('leaf');
const nodeOf = keyed('node');
const rootHasher = keyed('root');

/** The leaf of one cell, 32 bytes. */
export function leafHash(cell: Buffer): Buffer {
	leafOf.reset();
	leafOf.update(cell);
	return leafOf.digestBuffer();
}

export function nodeHash(left: Buffer, right: Buffer): Buffer {
	nodeOf.reset();
	nodeOf.update(left);
	nodeOf.update(right);
	return nodeOf.digestBuffer();
}

/** Hashes cells that come in pieces, one after the other. */
export class LeafHasher {
	readonly #hasher = keyed('leaf');

	update(bytes: Buffer): void {
		this.#hasher.update(bytes);
	}

	/** Ends the cell: writes its leaf and starts the next. */
	digestInto(target: Buffer, offset: number): void {
		this.#hasher.digestBuffer().copy(target, offset);
		this.#hasher.reset();
	}
}

/** Root over leaves of 32 bytes each, one after the other; at least one. */
export function rootOf(leaves: Buffer): Buffer {
	const count = leaves.length / LEAF_BYTES;
	let level = split(leaves);
	while (level.length > 1) level = parents(level);
	return bindCount(count, level[0] as Buffer);
}

/** Siblings from the leaf up to the top, where there is one. */
export function proofFor(leaves: Buffer, index: number): Buffer[] {
	const path: Buffer[] = [];
	let level = split(leaves);
	for (let at = index; level.length > 1; at >>= 1) {
		const sibling = level[at ^ 1];
		if (sibling !== undefined) path.push(sibling);
		level = parents(level);
	}
	return path;
}

/** Whether `leaf` is leaf `index` of `count` under `root`. */
export function verifyProof(proof: {
	leaf: Buffer;
	index: number;
	count: number;
	path: readonly Buffer[];
	root: Buffer;
}): boolean {
	const { index, count, path } = proof;
	if (!(Number.isSafeInteger(index) && index >= 0 && index < count)) return false;
	let hash = proof.leaf;
	let used = 0;
	let at = index;
	for (let width = count; width > 1; width = Math.ceil(width / 2), at >>= 1) {
		if ((at ^ 1) >= width) continue;
		const sibling = path[used++];
		if (sibling === undefined) return false;
		hash = (at & 1) === 0 ? nodeHash(hash, sibling) : nodeHash(sibling, hash);
	}
	return used === path.length && bindCount(count, hash).equals(proof.root);
}

function split(leaves: Buffer): Buffer[] {
	const out: Buffer[] = [];
	for (let at = 0; at < leaves.length; at += LEAF_BYTES) out.push(leaves.subarray(at, at + LEAF_BYTES));
	return out;
}

function parents(level: readonly Buffer[]): Buffer[] {
	const out: Buffer[] = [];
	for (let i = 0; i < level.length; i += 2) {
		const left = level[i] as Buffer;
		const right = level[i + 1];
		out.push(right === undefined ? left : nodeHash(left, right));
	}
	return out;
}

function bindCount(count: number, top: Buffer): Buffer {
	const bytes = Buffer.alloc(4);
	bytes.writeUInt32LE(count);
	rootHasher.reset();
	rootHasher.update(bytes);
	rootHasher.update(top);
	return rootHasher.digestBuffer();
}

/** ETag: over the data cells' leaves in object order and the version id; no extra pass over bytes, no key needed. */
export class EtagHasher {
	readonly #hasher = keyed('etag');

	add(leaf: Buffer): void {
		this.#hasher.update(leaf);
	}

	/** 32 hexadecimal digits (128 bits). */
	digest(versionId: VersionId): string {
		this.#hasher.update(idBytes(versionId));
		return this.#hasher.digest('hex').slice(0, 32);
	}
}

/** Plain BLAKE3, cut to 16 bytes: against accidents, not against people. */
export function checksum(bytes: Buffer): Buffer {
	return blake3(bytes).subarray(0, 16);
}
