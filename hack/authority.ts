/**
 * A certificate authority for development and compose, kept in one folder: makes the cluster id once, and certificates
 * whose URI name says who a process is (`distro://<cluster id>/<role>/<id>`). Production has cert-manager or the operator.
 */

import 'reflect-metadata';
import { randomBytes, webcrypto } from 'node:crypto';
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as x509 from '@peculiar/x509';

x509.cryptoProvider.set(webcrypto as never);

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
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

export async function openAuthority(folder: string): Promise<Authority> {
	mkdirSync(folder, { recursive: true, mode: 0o700 });
	const path = (name: string) => join(folder, name);
	if (!existsSync(path('ca.crt'))) await makeAuthority(path);
	const clusterId = readFileSync(path('cluster-id'), 'utf8').trim();
	const caPem = readFileSync(path('ca.crt'), 'utf8');
	const ca = new x509.X509Certificate(caPem);
	const caKey = await importKey(readFileSync(path('ca.key'), 'utf8'));
	return {
		clusterId,
		issue: async (target, subject) => {
			const uri = `distro://${clusterId}/${subject.role}/${subject.id}`;
			if (isGood(join(target, 'tls.crt'), uri)) return;
			mkdirSync(target, { recursive: true, mode: 0o700 });
			const keys = await newKeys();
			const certificate = await x509.X509CertificateGenerator.create({
				serialNumber: randomBytes(16).toString('hex'),
				subject: `CN=distro ${subject.role}`,
				issuer: ca.subject,
				notBefore: new Date(Date.now() - DAY_MS),
				notAfter: new Date(Date.now() + LEAF_DAYS * DAY_MS),
				signingAlgorithm: ALGORITHM,
				publicKey: keys.publicKey,
				signingKey: caKey,
				extensions: [
					new x509.BasicConstraintsExtension(false),
					new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
					new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
					new x509.SubjectAlternativeNameExtension([
						{ type: 'url', value: uri },
						...subject.hosts.map((host) => ({
							type: /^[\d.]+$/.test(host) ? ('ip' as const) : ('dns' as const),
							value: host,
						})),
					]),
				],
			});
			// The certificate last: it is what says that the others are there.
			writeFileSync(join(target, 'ca.crt'), caPem);
			await writeKey(join(target, 'tls.key'), keys.privateKey);
			writeFileSync(join(target, 'tls.crt'), certificate.toString('pem'));
		},
	};
}

async function makeAuthority(path: (name: string) => string): Promise<void> {
	const keys = await newKeys();
	const idFile = path('cluster-id');
	// An authority that was lost can be made anew; what the data belong to can't.
	const clusterId = existsSync(idFile) ? readFileSync(idFile, 'utf8').trim() : randomBytes(16).toString('hex');
	const certificate = await x509.X509CertificateGenerator.createSelfSigned({
		serialNumber: randomBytes(16).toString('hex'),
		name: `CN=distro development authority ${clusterId.slice(0, 8)}`,
		notBefore: new Date(Date.now() - DAY_MS),
		notAfter: new Date(Date.now() + CA_DAYS * DAY_MS),
		signingAlgorithm: ALGORITHM,
		keys,
		extensions: [
			new x509.BasicConstraintsExtension(true, 0, true),
			new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
		],
	});
	writeFileSync(idFile, `${clusterId}\n`);
	await writeKey(path('ca.key'), keys.privateKey);
	writeFileSync(path('ca.crt'), certificate.toString('pem'));
}

function isGood(file: string, uri: string): boolean {
	if (!existsSync(file)) return false;
	const certificate = new x509.X509Certificate(readFileSync(file, 'utf8'));
	const names = certificate.getExtension(x509.SubjectAlternativeNameExtension)?.names.items ?? [];
	return (
		certificate.notAfter.getTime() - Date.now() > RENEW_DAYS * DAY_MS &&
		names.some((name) => name.type === 'url' && name.value === uri)
	);
}

function newKeys(): Promise<webcrypto.CryptoKeyPair> {
	return webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify']) as Promise<webcrypto.CryptoKeyPair>;
}

async function writeKey(path: string, key: webcrypto.CryptoKey): Promise<void> {
	const der = await webcrypto.subtle.exportKey('pkcs8', key);
	writeFileSync(path, x509.PemConverter.encode(der, 'PRIVATE KEY'), { mode: 0o600 });
	chmodSync(path, 0o600);
}

function importKey(pem: string): Promise<webcrypto.CryptoKey> {
	const der = x509.PemConverter.decodeFirst(pem);
	return webcrypto.subtle.importKey('pkcs8', der, ALGORITHM, false, ['sign']) as Promise<webcrypto.CryptoKey>;
}
