/**
 * Who a worker is: an id and a receipt key, made on its volume at first start. A new volume is a new worker; the process's
 * name is only its name. The key's file is readable by its owner only and never leaves the volume.
 */

import type { KeyObject } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { newSigningKey, signingKeyFromPem, signingKeyToPem } from '../core/crypto/sign.ts';
import { DistroError } from '../core/errors.ts';
import { isId, newId, type WorkerId } from '../core/ids.ts';
import type { Random } from '../core/ports.ts';
import { readVersionedJson, writeFileDurably } from '../platform/files.ts';

export const IDENTITY_FILE = 'worker.json';
const KEY_FILE = 'receipt-key.pem';
const VERSION = 1;

export interface WorkerIdentity {
	readonly workerId: WorkerId;
	readonly receiptKey: KeyObject;
}

/**
 * Throws `corrupt` when half of it is there: a lost key can't be made anew, since receipts were signed with it.
 * `unsupported` when a newer release wrote it.
 */
export function loadOrCreateIdentity(dataDir: string, random: Random): WorkerIdentity {
	const identityFile = join(dataDir, IDENTITY_FILE);
	const keyFile = join(dataDir, KEY_FILE);
	if (!existsSync(identityFile)) {
		mkdirSync(dataDir, { recursive: true, mode: 0o700 });
		// The identity file last: it is what says that the key is there.
		if (!existsSync(keyFile)) writeFileDurably(keyFile, signingKeyToPem(newSigningKey()), { mode: 0o600 });
		const workerId = newId<WorkerId>(random);
		writeFileDurably(identityFile, `${JSON.stringify({ version: VERSION, workerId })}\n`, { mode: 0o644 });
	}
	const { workerId } = readVersionedJson(identityFile, { newest: VERSION });
	if (typeof workerId !== 'string' || !isId(workerId)) {
		throw new DistroError('corrupt', `${identityFile} holds no worker id: restore it, or start with an empty volume`);
	}
	if (!existsSync(keyFile)) {
		throw new DistroError('corrupt', `${keyFile} is missing: restore it, or start with an empty volume`);
	}
	return { workerId: workerId as WorkerId, receiptKey: signingKeyFromPem(readFileSync(keyFile, 'utf8')) };
}
