/** The parts alone, on one thread: what a byte costs before anything moves. CPU seconds per GB of input. */

import { randomBytes } from 'node:crypto';
import { closeSync, fsyncSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { codecFor } from '../core/codec/erasure-codec.ts';
import { leafHash } from '../core/crypto/digest.ts';
import { newDataKey, segmentKey } from '../core/crypto/keys.ts';
import { cellAd, createCellCipher, createCellDecipher } from '../core/crypto/seal.ts';
import { newId, type SealId, type VersionId } from '../core/ids.ts';
import { LARGE_CELL_BYTES, TAG_BYTES } from '../core/limits.ts';
import { systemRandom } from '../platform/clock.ts';

const ROUNDS = 800;

async function cpuPerGb(bytes: number, step: () => unknown): Promise<number> {
	for (let i = 0; i < 20; i++) await step();
	const before = process.cpuUsage();
	for (let i = 0; i < ROUNDS; i++) await step();
	const { user, system } = process.cpuUsage(before);
	return (user + system) / 1e6 / ((ROUNDS * bytes) / 1e9);
}

export async function measureParts(): Promise<[string, number][]> {
	const plain = randomBytes(LARGE_CELL_BYTES - TAG_BYTES);
	const versionId = newId<VersionId>(systemRandom);
	const sealId = newId<SealId>(systemRandom);
	const key = segmentKey({ dataKey: newDataKey(systemRandom), segment: 0, sealId });
	const ad = cellAd({ versionId, segment: 0, sealId });
	const seal = () => {
		const cipher = createCellCipher(key, ad, 1);
		const sealed = cipher.update(plain);
		cipher.final();
		return { sealed, tag: cipher.getAuthTag() };
	};
	const { sealed, tag } = seal();
	const open = () => {
		const decipher = createCellDecipher(key, ad, 1);
		decipher.update(sealed);
		decipher.setAuthTag(tag);
		decipher.final();
	};
	const row = {
		k: 4,
		n: 6,
		length: LARGE_CELL_BYTES,
		data: randomBytes(4 * LARGE_CELL_BYTES),
		parity: Buffer.alloc(2 * LARGE_CELL_BYTES),
	};
	const codec = codecFor('rs-ronomon-6');
	const folder = mkdtempSync(join(tmpdir(), 'distro-bench-'));
	let file = 0;
	const write = () => {
		const fd = openSync(join(folder, String(file++ % 16)), 'w');
		writeSync(fd, sealed);
		fsyncSync(fd);
		closeSync(fd);
	};
	try {
		return [
			['seal, AES-256-GCM', await cpuPerGb(plain.length, seal)],
			['open', await cpuPerGb(plain.length, open)],
			['hash, BLAKE3 keyed', await cpuPerGb(sealed.length, () => leafHash(sealed))],
			['code 4+2', await cpuPerGb(row.data.length, () => codec.encode(row))],
			[
				'rebuild 2 of 4+2',
				await cpuPerGb(row.data.length, () => codec.reconstruct({ ...row, present: [2, 3, 4, 5], wanted: [0, 1] })),
			],
			['write 260 KiB files, fsync each', await cpuPerGb(sealed.length, write)],
		];
	} finally {
		rmSync(folder, { recursive: true, force: true });
	}
}
