/**
 * Making X.509 certificates: the development authority, the orchestrator that signs for workers, and tests. Who trusts whom
 * is not decided here (tls.ts). The library is loaded at first use: it costs 17 MB, and most processes make none.
 */

import { createPublicKey, generateKeyPairSync, type KeyObject, randomBytes, webcrypto } from 'node:crypto';
import { DistroError } from '../core/errors.ts';

/** Who signs: a certificate of an authority, PEM, and its key. */
export interface Signer {
	readonly certificate: string;
	readonly key: KeyObject;
}

export interface WantedCertificate {
	readonly commonName: string;
	readonly publicKey: KeyObject;
	readonly notBeforeMs: number;
	readonly notAfterMs: number;
	/** For an authority: how many authorities may stand below it. Else it is for TLS, on both sides. */
	readonly authority?: { readonly pathLength: number };
	readonly uris?: readonly string[];
	/** DNS names and IPv4 addresses. */
	readonly hosts?: readonly string[];
}

/** A private key for a certificate: P-256, which every TLS peer takes. */
export function newCertificateKey(): KeyObject {
	return generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;
}

export function keyToPem(key: KeyObject): string {
	return key.export({ type: 'pkcs8', format: 'pem' }) as string;
}

/** Answers PEM. `signer`: null for a certificate that signs itself by `key`. Throws `unsupported` for a key of another kind. */
export async function makeCertificate(
	signer: Signer | { readonly certificate: null; readonly key: KeyObject },
	wanted: WantedCertificate,
): Promise<string> {
	const x509 = await library();
	const spki = (key: KeyObject) => new x509.PublicKey(key.export({ type: 'spki', format: 'der' }));
	const { algorithm, signing } = algorithmOf(signer.key);
	const publicKey = spki(wanted.publicKey);
	const { authority, uris = [], hosts = [] } = wanted;
	const names = [
		...uris.map((value) => ({ type: 'url' as const, value })),
		...hosts.map((value) => ({ type: /^[\d.]+$/.test(value) ? ('ip' as const) : ('dns' as const), value })),
	];
	const subject = `CN=${wanted.commonName}`;
	const { digitalSignature, keyCertSign, cRLSign } = x509.KeyUsageFlags;
	const { serverAuth, clientAuth } = x509.ExtendedKeyUsage;
	const certificate = await x509.X509CertificateGenerator.create({
		serialNumber: randomBytes(16).toString('hex'),
		subject,
		issuer: signer.certificate === null ? subject : new x509.X509Certificate(signer.certificate).subjectName,
		notBefore: new Date(wanted.notBeforeMs),
		notAfter: new Date(wanted.notAfterMs),
		publicKey,
		signingKey: await signer.key.toCryptoKey(algorithm, false, ['sign']),
		signingAlgorithm: signing,
		extensions: [
			...(authority === undefined
				? [
						new x509.BasicConstraintsExtension(false),
						new x509.KeyUsagesExtension(digitalSignature, true),
						new x509.ExtendedKeyUsageExtension([serverAuth, clientAuth]),
					]
				: [
						new x509.BasicConstraintsExtension(true, authority.pathLength, true),
						new x509.KeyUsagesExtension(keyCertSign | cRLSign, true),
					]),
			// Of two authorities with one name peers choose by these.
			await x509.SubjectKeyIdentifierExtension.create(publicKey),
			await x509.AuthorityKeyIdentifierExtension.create(spki(createPublicKey(signer.key))),
			...(names.length === 0 ? [] : [new x509.SubjectAlternativeNameExtension(names)]),
		],
	});
	return `${certificate.toString('pem')}\n`;
}

function algorithmOf(key: KeyObject) {
	const { asymmetricKeyType: type, asymmetricKeyDetails: details } = key;
	const curve = details?.namedCurve;
	if (type === 'rsa') {
		const algorithm = { name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256' } as const;
		return { algorithm, signing: algorithm };
	}
	if (type === 'ec' && (curve === 'prime256v1' || curve === 'secp384r1')) {
		const [namedCurve, hash] = curve === 'prime256v1' ? ['P-256', 'SHA-256'] : ['P-384', 'SHA-384'];
		return { algorithm: { name: 'ECDSA', namedCurve }, signing: { name: 'ECDSA', hash } };
	}
	throw new DistroError('unsupported', 'an authority’s key must be RSA, or ECDSA on P-256 or P-384');
}

async function library() {
	await import('reflect-metadata');
	const x509 = await import('@peculiar/x509');
	x509.cryptoProvider.set(webcrypto as never);
	return x509;
}
