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
}

const URI_NAME = /^distro:\/\/([0-9a-f]{32})\/(orchestrator|worker|operator|client)\/([0-9a-f]{32})$/;
const CIPHERS = 'TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256';
const POLL_MS = 5_000;

/** From a certificate's subject alternative names ("URI:distro://…, DNS:localhost"). Throws `denied`. */
export function parseIdentity(subjectAltName: string | undefined): PeerIdentity {
	// node quotes names that hold a comma or a quote: one of them could hold what looks like another name.
	const names = subjectAltName?.includes('"') ? [] : (subjectAltName ?? '').split(', ');
	for (const name of names) {
		const match = name.startsWith('URI:') ? URI_NAME.exec(name.slice(4)) : null;
		if (match !== null) {
			return { clusterId: match[1] as ClusterId, role: match[2] as PeerRole, id: match[3] as string };
		}
	}
	throw new DistroError('denied', 'the certificate carries no distro:// name');
}

interface Material {
	readonly cert: Buffer;
	readonly key: Buffer;
	readonly ca: Buffer;
}

export class TlsSource {
	readonly #folder: string;
	#material: Material;
	#stamp: string;
	readonly #onChange: (() => void)[] = [];

	/** Reads tls.crt, tls.key and ca.crt. Throws `invalid`. */
	constructor(folder: string) {
		this.#folder = folder;
		this.#stamp = this.#stampNow();
		this.#material = this.#read();
		const timer = setInterval(() => this.#reload(), POLL_MS);
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

	onChange(callback: () => void): void {
		this.#onChange.push(callback);
	}

	serverTlsOptions(): tls.TlsOptions & tls.SecureContextOptions {
		return { ...this.#material, ...SUITE, requestCert: true, rejectUnauthorized: true };
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

	#stampNow(): string {
		try {
			return ['tls.crt', 'tls.key', 'ca.crt'].map((file) => statSync(join(this.#folder, file)).mtimeMs).join(' ');
		} catch (error) {
			throw new DistroError('invalid', `TLS_DIR must hold tls.crt, tls.key and ca.crt: ${(error as Error).message}`);
		}
	}

	#read(): Material {
		const read = (file: string) => readFileSync(join(this.#folder, file));
		try {
			const material = { cert: read('tls.crt'), key: read('tls.key'), ca: read('ca.crt') };
			// Checks that they are whole and belong together before anything uses them.
			checkCertificates(material.cert);
			checkCertificates(material.ca);
			tls.createSecureContext(material);
			return material;
		} catch (error) {
			const { message } = error as Error;
			throw new DistroError(
				'invalid',
				`TLS_DIR: tls.crt, tls.key and ca.crt are not whole and of one making: ${message}`,
			);
		}
	}

	#reload(): void {
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
}

/** Throws where one is cut short or there is none: a TLS context takes those in silence, and everyone would be a stranger. */
function checkCertificates(pem: Buffer): void {
	// Bundles have comments between them.
	const certificates = pem.toString('latin1').split('-----BEGIN CERTIFICATE-----').slice(1);
	if (certificates.length === 0) throw new Error('no certificate');
	for (const certificate of certificates) new X509Certificate(`-----BEGIN CERTIFICATE-----${certificate}`);
}

const SUITE = { minVersion: 'TLSv1.3', ciphers: CIPHERS } as const;
