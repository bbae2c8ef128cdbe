/** Authorities of a cluster as the operator makes them: its own, an issuer below it, and certificates under either. */

import { createPublicKey, randomBytes } from 'node:crypto';
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { identityUris, type PeerIdentity } from '../../platform/tls.ts';
import { keyToPem, makeCertificate, newCertificateKey, type Signer } from '../../platform/x509.ts';

const DAY_MS = 24 * 60 * 60_000;

export interface TestSigner extends Signer {
	/** From its certificate up to the cluster's authority, which is not in it. */
	readonly chain: string;
}

interface Life {
	/** Default: a day ago, and in a year. */
	readonly notBeforeMs?: number;
	readonly notAfterMs?: number;
}

const span = ({ notBeforeMs, notAfterMs }: Life) => ({
	notBeforeMs: notBeforeMs ?? Date.now() - DAY_MS,
	notAfterMs: notAfterMs ?? Date.now() + 365 * DAY_MS,
});

export async function testRoot(o: Life & { commonName?: string } = {}): Promise<TestSigner> {
	const key = newCertificateKey();
	const certificate = await makeCertificate(
		{ certificate: null, key },
		{
			commonName: o.commonName ?? `authority ${randomBytes(4).toString('hex')}`,
			publicKey: createPublicKey(key),
			...span(o),
			authority: { pathLength: 1 },
		},
	);
	return { certificate, key, chain: '' };
}

export async function testIssuer(root: TestSigner, o: Life & { commonName?: string } = {}): Promise<TestSigner> {
	const key = newCertificateKey();
	const certificate = await makeCertificate(root, {
		commonName: o.commonName ?? 'issuer',
		publicKey: createPublicKey(key),
		...span(o),
		authority: { pathLength: 0 },
	});
	return { certificate, key, chain: certificate };
}

export async function testLeaf(signer: TestSigner, peer: PeerIdentity, o: Life = {}) {
	const key = newCertificateKey();
	const certificate = await makeCertificate(signer, {
		commonName: `distro ${peer.role}`,
		publicKey: createPublicKey(key),
		...span(o),
		uris: identityUris(peer),
		hosts: ['localhost', '127.0.0.1'],
	});
	return { chain: `${certificate}${signer.chain}`, key };
}

/** As the kubelet does it: each file is whole at any time. */
export function writeTls(
	folder: string,
	files: { chain: string; key: Signer['key']; bundle?: readonly TestSigner[] },
): string {
	mkdirSync(folder, { recursive: true });
	if (files.bundle !== undefined) put(join(folder, 'ca.crt'), bundleOf(files.bundle));
	put(join(folder, 'tls.key'), keyToPem(files.key));
	put(join(folder, 'tls.crt'), files.chain);
	return folder;
}

export function bundleOf(roots: readonly TestSigner[]): string {
	return roots.map(({ certificate }) => `# an authority\n${certificate}`).join('');
}

export function put(path: string, text: string): void {
	writeFileSync(`${path}.new`, text);
	renameSync(`${path}.new`, path);
}
