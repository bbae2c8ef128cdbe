/**
 * A certificate authority for development and compose, kept in one folder: makes the cluster id once, and certificates
 * whose URI name says who a process is (`distro://<cluster id>/<role>/<id>`). Production has cert-manager or the operator.
 */

import { createPrivateKey, createPublicKey, type KeyObject, randomBytes, X509Certificate } from 'node:crypto';
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { keyToPem, makeCertificate, newCertificateKey } from '../platform/x509.ts';

const DAY_MS = 24 * 60 * 60_000;
const CA_DAYS = 1825;
const LEAF_DAYS = 90;
/** Leaves with less than this left are made anew. */
const RENEW_DAYS = 30;

export interface Authority {
	readonly clusterId: string;
	/** Writes tls.crt, tls.key and ca.crt into `folder`, unless good ones for that name are there. */
	issue(folder: string, subject: { role: string; id: string; hosts: readonly string[] }): Promise<void>;
}

/** Where there is none it is made: for a new cluster, or for the one whose authority was lost. */
export async function openAuthority(folder: string, options: { clusterId?: string } = {}): Promise<Authority> {
	mkdirSync(folder, { recursive: true, mode: 0o700 });
	const path = (name: string) => join(folder, name);
	if (!existsSync(path('ca.crt'))) {
		const idFile = path('cluster-id');
		// An authority that was lost can be made anew; what the data belong to can't.
		const kept = existsSync(idFile) ? readFileSync(idFile, 'utf8').trim() : options.clusterId;
		await makeAuthority(path, kept ?? randomBytes(16).toString('hex'));
	}
	const clusterId = readFileSync(path('cluster-id'), 'utf8').trim();
	const caPem = readFileSync(path('ca.crt'), 'utf8');
	const ca = { certificate: caPem, key: createPrivateKey(readFileSync(path('ca.key'))) };
	return {
		clusterId,
		issue: async (target, subject) => {
			const uri = `distro://${clusterId}/${subject.role}/${subject.id}`;
			if (isGood(join(target, 'tls.crt'), uri) && isIssuedBy(target, caPem)) return;
			mkdirSync(target, { recursive: true, mode: 0o700 });
			const key = newCertificateKey();
			const certificate = await makeCertificate(ca, {
				commonName: `distro ${subject.role}`,
				publicKey: createPublicKey(key),
				notBeforeMs: Date.now() - DAY_MS,
				notAfterMs: Date.now() + LEAF_DAYS * DAY_MS,
				uris: [uri],
				hosts: subject.hosts,
			});
			// The certificate last: it is what says that the others are there.
			writeFileSync(join(target, 'ca.crt'), caPem);
			writeKey(join(target, 'tls.key'), key);
			writeFileSync(join(target, 'tls.crt'), certificate);
		},
	};
}

async function makeAuthority(path: (name: string) => string, clusterId: string): Promise<void> {
	const key = newCertificateKey();
	const certificate = await makeCertificate(
		{ certificate: null, key },
		{
			commonName: `distro development authority ${clusterId.slice(0, 8)}`,
			publicKey: createPublicKey(key),
			notBeforeMs: Date.now() - DAY_MS,
			notAfterMs: Date.now() + CA_DAYS * DAY_MS,
			authority: { pathLength: 0 },
		},
	);
	writeFileSync(path('cluster-id'), `${clusterId}\n`);
	writeKey(path('ca.key'), key);
	writeFileSync(path('ca.crt'), certificate);
}

function isGood(file: string, uri: string): boolean {
	if (!existsSync(file)) return false;
	const { validTo, subjectAltName = '' } = new X509Certificate(readFileSync(file));
	return Date.parse(validTo) - Date.now() > RENEW_DAYS * DAY_MS && subjectAltName.split(', ').includes(`URI:${uri}`);
}

/** Not by the one before, whose cluster this is as well. */
function isIssuedBy(target: string, caPem: string): boolean {
	const path = join(target, 'ca.crt');
	return existsSync(path) && readFileSync(path, 'utf8') === caPem;
}

function writeKey(path: string, key: KeyObject): void {
	writeFileSync(path, keyToPem(key), { mode: 0o600 });
	chmodSync(path, 0o600);
}
