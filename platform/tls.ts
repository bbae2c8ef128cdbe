/**
 * Mutual TLS between processes: certificate, key and authority from a folder, read again when they change.
 *
 * Certificates carry a URI name `distro://<cluster id>/<role>/<id>`; who a peer is is read from there and nowhere else.
 * TLS 1.3 with AES-128 first: what travels is sealed already, and it is the cheapest suite that protects the rest.
 */

import { X509Certificate } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import tls from 'node:tls';
import { DistroError } from '../core/errors.ts';
import type { ClusterId, WorkerId } from '../core/ids.ts';

export type PeerRole = 'orchestrator' | 'worker' | 'operator' | 'client';

export interface PeerIdentity {
	readonly clusterId: ClusterId;
	readonly role: PeerRole;
	readonly id: string;
	/** What it may call itself, where the certificate says so. */
	readonly name?: string;
}

const URI_NAME = /^distro:\/\/([0-9a-f]{32})\/(orchestrator|worker|operator|client)\/([0-9a-f]{32})$/;
const NAME_PREFIX = 'URI:distro-name:';
const CHAIN_MAX = 8;
const CIPHERS = 'TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256';
const POLL_MS = 5_000;

/** From a certificate's subject alternative names ("URI:distro://…, DNS:localhost"). Throws `denied`. */
export function parseIdentity(subjectAltName: string | undefined): PeerIdentity {
	// node quotes names that hold a comma or a quote: one of them could hold what looks like another name.
	const names = subjectAltName?.includes('"') ? [] : (subjectAltName ?? '').split(', ');
	const own = names.find((name) => name.startsWith(NAME_PREFIX))?.slice(NAME_PREFIX.length);
	for (const name of names) {
		const match = name.startsWith('URI:') ? URI_NAME.exec(name.slice(4)) : null;
		if (match !== null) {
			const identity = { clusterId: match[1] as ClusterId, role: match[2] as PeerRole, id: match[3] as string };
			return own === undefined ? identity : { ...identity, name: own };
		}
	}
	throw new DistroError('denied', 'the certificate carries no distro:// name');
}

/** The URI names that `parseIdentity` reads. */
export function identityUris({ clusterId, role, id, name }: PeerIdentity): string[] {
	return [`distro://${clusterId}/${role}/${id}`, ...(name === undefined ? [] : [`distro-name:${name}`])];
}

export interface Led {
	/** The authority. */
	readonly to: X509Certificate;
	/** When the first of all these certificates ends. */
	readonly endMs: number;
}

/**
 * Where a chain leads: from its first certificate through the others to one of the bundle's that signs itself. Throws
 * `denied` where it leads to none that is good at `nowMs`; peers would refuse it too.
 */
export function followChain(chain: Buffer | string, bundle: Buffer | string, nowMs: number): Led {
	const [leaf, ...between] = parseCertificates(chain);
	const anchors = parseCertificates(bundle).filter((anchor) => anchor.checkIssued(anchor));
	const isIssuerOf = (below: X509Certificate) => (above: X509Certificate) =>
		above.ca && below.checkIssued(above) && below.verify(above.publicKey) && isTimely(above);
	const isTimely = ({ validFrom, validTo }: X509Certificate) =>
		Date.parse(validFrom) <= nowMs && nowMs < Date.parse(validTo);
	let at = leaf as X509Certificate;
	let endMs = Date.parse(at.validTo);
	for (let length = 1; isTimely(at) && length <= CHAIN_MAX; length++) {
		const anchor = anchors.find(isIssuerOf(at));
		if (anchor !== undefined) return { to: anchor, endMs: Math.min(endMs, Date.parse(anchor.validTo)) };
		const next = between.find(isIssuerOf(at));
		if (next === undefined) break;
		at = next;
		endMs = Math.min(endMs, Date.parse(at.validTo));
	}
	throw new DistroError('denied', 'the certificate does not lead to an authority of the bundle, or has ended');
}

interface Material {
	readonly cert: Buffer;
	readonly key: Buffer;
	readonly ca: Buffer;
}

export interface CertificateReport {
	readonly certificate: { readonly fingerprint: string; readonly not_after: string; readonly chain: readonly string[] };
	readonly ca: readonly string[];
}

export class TlsSource {
	readonly #what: string;
	readonly #paths: readonly [cert: string, key: string, ca: string];
	#material: Material;
	#stamp: string;
	readonly #onChange: (() => void)[] = [];

	/**
	 * Reads tls.crt (the certificate, and those between it and its authority), tls.key and ca.crt (all authorities that are
	 * trusted), or another file in the place of the last. Throws `invalid`, with `what` in its sentence.
	 */
	constructor(folder: string, { caFile = null, what = 'TLS_DIR' }: { caFile?: string | null; what?: string } = {}) {
		this.#what = what;
		this.#paths = [join(folder, 'tls.crt'), join(folder, 'tls.key'), caFile ?? join(folder, 'ca.crt')];
		this.#stamp = this.#stampNow();
		this.#material = this.#read();
		const timer = setInterval(() => this.reload(), POLL_MS);
		timer.unref();
	}

	/** Who this process is. */
	get identity(): PeerIdentity {
		return parseIdentity(new X509Certificate(this.#material.cert).subjectAltName);
	}

	get notAfterMs(): number {
		return Date.parse(new X509Certificate(this.#material.cert).validTo);
	}

	get material(): Material {
		return this.#material;
	}

	/** What is loaded, for whoever changes it and waits until it is: SHA-256 fingerprints, and no secret. */
	report(): CertificateReport {
		const [leaf, ...chain] = parseCertificates(this.#material.cert) as [X509Certificate, ...X509Certificate[]];
		return {
			certificate: {
				fingerprint: leaf.fingerprint256,
				not_after: new Date(leaf.validTo).toISOString(),
				chain: chain.map(({ fingerprint256 }) => fingerprint256),
			},
			ca: parseCertificates(this.#material.ca).map(({ fingerprint256 }) => fingerprint256),
		};
	}

	onChange(callback: () => void): void {
		this.#onChange.push(callback);
	}

	serverTlsOptions(): tls.TlsOptions & tls.SecureContextOptions {
		return { ...this.#material, ...SUITE, requestCert: true, rejectUnauthorized: true };
	}

	/** For a service whose callers have no certificate yet. */
	anyoneTlsOptions(): tls.TlsOptions & tls.SecureContextOptions {
		const { cert, key } = this.#material;
		return { cert, key, ...SUITE };
	}

	/** For dialling one worker: its certificate must be that worker's, whatever the address. */
	clientTlsOptions(expect: { expectWorker: WorkerId }): tls.ConnectionOptions {
		const { clusterId } = this.identity;
		return {
			...this.#material,
			...SUITE,
			rejectUnauthorized: true,
			checkServerIdentity: (_host, cert) => {
				try {
					const peer = parseIdentity(cert.subjectaltname);
					if (peer.clusterId === clusterId && peer.role === 'worker' && peer.id === expect.expectWorker)
						return undefined;
					return new DistroError('denied', 'another process answers at this worker’s address');
				} catch (error) {
					return error as Error;
				}
			},
		};
	}

	/** Keeps a running server's certificate current. */
	follow(server: tls.Server): void {
		this.onChange(() => server.setSecureContext({ ...this.#material, ...SUITE }));
	}

	/** Looks at once, and not at the next round, whether there are new files. */
	reload(): void {
		try {
			const stamp = this.#stampNow();
			if (stamp === this.#stamp) return;
			this.#material = this.#read();
			this.#stamp = stamp;
		} catch {
			// Half-written or gone: the old ones are good for now, and the next look may find whole ones.
			return;
		}
		for (const callback of this.#onChange) callback();
	}

	#stampNow(): string {
		try {
			return this.#paths.map((path) => statSync(path).mtimeMs).join(' ');
		} catch (error) {
			throw new DistroError(
				'invalid',
				`${this.#what} must hold tls.crt, tls.key and ca.crt: ${(error as Error).message}`,
			);
		}
	}

	#read(): Material {
		try {
			const [cert, key, ca] = this.#paths.map((path) => readFileSync(path)) as [Buffer, Buffer, Buffer];
			const material = { cert, key, ca };
			// Checks that they are whole and belong together before anything uses them.
			parseCertificates(material.cert);
			parseCertificates(material.ca);
			tls.createSecureContext(material);
			return material;
		} catch (error) {
			const { message } = error as Error;
			throw new DistroError(
				'invalid',
				`${this.#what}: tls.crt, tls.key and ca.crt are not whole and of one making: ${message}`,
			);
		}
	}
}

/** Throws where one is cut short or there is none: a TLS context takes those in silence, and everyone would be a stranger. */
export function parseCertificates(pem: Buffer | string): X509Certificate[] {
	// Bundles have comments between them.
	const certificates = pem.toString('latin1').split('-----BEGIN CERTIFICATE-----').slice(1);
	if (certificates.length === 0) throw new Error('no certificate');
	return certificates.map((certificate) => new X509Certificate(`-----BEGIN CERTIFICATE-----${certificate}`));
}

const SUITE = { minVersion: 'TLSv1.3', ciphers: CIPHERS } as const;
