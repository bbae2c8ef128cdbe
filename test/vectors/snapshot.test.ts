/** A golden snapshot (before zlib) and a golden manifest of one, read again from the file. */

import { expect, test } from 'vitest';
import { decodeManifest, encodeManifest } from '../../core/model/manifest.ts';
import { SnapshotDecoder, SnapshotEncoder, type SnapshotRecord } from '../../core/model/snapshot.ts';
import { counting, golden, hex, sameId } from './golden.ts';

const records: Exclude<SnapshotRecord, { is: 'end' }>[] = [
	{
		is: 'cluster',
		clusterId: sameId(0x66),
		createdAtMs: 1_700_000_000_000,
		beganAtMs: 1_700_000_900_000,
		keys: counting(40, 1),
	},
	{
		is: 'worker',
		workerId: sameId(0x33),
		name: 'worker-1',
		address: '127.0.0.1:9201',
		zone: 'a',
		receiptKey: counting(32, 0x20),
		registeredAtMs: 1_700_000_100_000,
		lastSeenMs: 1_700_000_800_000,
		duty: 'active',
		history: 'h',
	},
	{
		is: 'api key',
		keyId: '0123456789abcdef',
		secretHash: counting(32, 0x40),
		scope: 'admin',
		label: 'me',
		createdAtMs: 1_700_000_200_000,
	},
	{ is: 'under way', objectId: sameId(0x57) },
	{
		is: 'object',
		object: {
			kind: 'user',
			objectId: sameId(0x55),
			versionId: sameId(0x11),
			uploadId: sameId(0x12),
			sizeBytes: 70_000,
			segments: 1,
			createdAtMs: 1_700_000_300_000,
			etag: '00112233445566778899aabbccddeeff',
			keyGeneration: 2,
			wrappedKey: counting(64, 0x10),
			manifest: counting(50, 0x70),
			inline: null,
			trash: { deletedAtMs: 1_700_000_400_000, purgeAtMs: 1_700_600_000_000 },
		},
	},
	{
		is: 'segment',
		segment: {
			index: 0,
			codec: 'rs-ronomon-6',
			k: 2,
			n: 3,
			cellBytes: 69_632,
			cells: 2,
			lastCellBytes: 400,
			sealId: sameId(0x22),
			encodingId: sameId(0x77),
			endRecord: counting(25, 0x90),
			roots: counting(96, 0xa0),
			because: '2+1 because…',
			placements: [
				{ shardIndex: 0, workerId: sameId(0x33), shardId: sameId(0x44) },
				{ shardIndex: 2, workerId: sameId(0x34), shardId: sameId(0x45) },
			],
		},
	},
	{
		is: 'object',
		object: {
			kind: 'user',
			objectId: sameId(0x56),
			versionId: sameId(0x13),
			uploadId: sameId(0x14),
			sizeBytes: 3,
			segments: 0,
			createdAtMs: 1_700_000_500_000,
			etag: 'ffeeddccbbaa99887766554433221100',
			keyGeneration: 2,
			wrappedKey: counting(64, 0x15),
			manifest: counting(50, 0x75),
			inline: counting(19, 0xc0),
			trash: null,
		},
	},
	{ is: 'deletion log', entries: 1_234, hash: counting(32, 0xd0) },
];

const manifest = {
	kind: 'snapshot',
	name: 'snapshot',
	contentType: null,
	sizeBytes: 1_000_000,
	segments: 1,
	sha256: null,
	createdAtMs: 1_700_000_900_000,
} as const;

function encoded(): Buffer {
	const encoder = new SnapshotEncoder();
	return Buffer.concat([...records.map((record) => encoder.add(record)), encoder.end()]);
}

test('the bytes are those of the first release that wrote them, and are read as what they were', () => {
	const kept = golden('snapshot', { records: hex(encoded()), manifest: hex(encodeManifest(manifest)) });
	const decoder = new SnapshotDecoder();
	const read = [...decoder.push(Buffer.from(kept.records, 'hex'))];
	decoder.finish();
	expect(read.slice(0, -1)).toEqual(records);
	expect(read.at(-1)).toMatchObject({ is: 'end', objects: 2, segments: 1 });
	expect(decodeManifest(Buffer.from(kept.manifest, 'hex'))).toEqual(manifest);
});

test('in pieces of any size it is the same', () => {
	const bytes = encoded();
	for (const size of [1, 3, 7, 100, bytes.length]) {
		const decoder = new SnapshotDecoder();
		const read: SnapshotRecord[] = [];
		for (let at = 0; at < bytes.length; at += size) read.push(...decoder.push(bytes.subarray(at, at + size)));
		decoder.finish();
		expect(read.slice(0, -1)).toEqual(records);
	}
});

test('what is cut short, has a record less or more, or a changed byte is not taken for a whole one', () => {
	const bytes = encoded();
	const read = (from: Buffer) => {
		const decoder = new SnapshotDecoder();
		for (const _ of decoder.push(from));
		decoder.finish();
	};
	expect(() => read(bytes)).not.toThrow();
	for (let length = 0; length < bytes.length; length++) expect(() => read(bytes.subarray(0, length))).toThrow();
	const first = 4 + bytes.readUInt32LE(0);
	expect(() => read(bytes.subarray(first))).toThrow(/digest/);
	expect(() => read(Buffer.concat([bytes.subarray(0, first), bytes]))).toThrow(/digest/);
	expect(() => read(Buffer.concat([bytes, bytes]))).toThrow(/behind its end/);
	for (let at = 0; at < bytes.length; at++) {
		const changed = Buffer.from(bytes);
		changed[at] = (changed[at] as number) ^ 1;
		expect(() => read(changed), `byte ${at}`).toThrow();
	}
});
