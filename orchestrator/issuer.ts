/**
 * Signs workers' certificates with an authority below the cluster's own: a folder with its certificate (and what stands
 * between it and the cluster's authority) and its key, read again when they change. What a certificate says is decided
 * here; of a request only the public key is taken.
 */

import { createPrivateKey, createPublicKey, type KeyObject } from 'node:crypto';
import { asDistroError, DistroError } from '../core/errors.ts';
import type { ClusterId, WorkerId } from '../core/ids.ts';
import type { Clock } from '../core/ports.ts';
import { followChain, identityUris, parseCertificates, type TlsSource } from '../platform/tls.ts';
import { makeCertificate } from '../platform/x509.ts';

/** An issuer with less than this left signs nothing any more: its certificates would end before they can be renewed. */
const ISSUER_LEFT_MS = 24 * 60 * 60_000;
/** Clocks differ. */
const BACKDATE_MS = 5 * 60_000;
const BACKDATE_PART = 0.1;

export interface IssuedCertificate {
	/** PEM: the certificate, then what stands between it and the cluster's authority. */
	readonly chain: string;
	readonly notAfterMs: number;
}

export class Issuer {
	readonly #source: TlsSource;
	readonly #clusterId: ClusterId;
	readonly #lifetimeMs: number;
	readonly #clock: Clock;

	/** `source`: the authority's certificate and key, with the bundle that this process trusts. */
	constructor(deps: { source: TlsSource; clusterId: ClusterId; lifetimeMs: number; clock: Clock }) {
		this.#source = deps.source;
		this.#clusterId = deps.clusterId;
		this.#lifetimeMs = deps.lifetimeMs;
		this.#clock = deps.clock;
	}

	/** Throws `invalid` for a key of another kind, `unavailable` while this authority can't sign. */
	async issue(worker: {
		workerId: WorkerId;
		name: string;
		/** SubjectPublicKeyInfo, DER. */
		publicKey: Buffer;
		hosts: readonly string[];
	}): Promise<IssuedCertificate> {
		const { workerId, name, hosts } = worker;
		const publicKey = readPublicKey(worker.publicKey);
		const nowMs = this.#clock.nowMs();
		const { cert, key, ca } = this.#source.material;
		const endMs = this.#endMs({ cert, ca }, nowMs);
		const [own] = parseCertificates(cert);
		const notAfterMs = Math.min(nowMs + this.#lifetimeMs, endMs);
		const leaf = await makeCertificate(
			{ certificate: (own as NonNullable<typeof own>).toString(), key: createPrivateKey(key) },
			{
				commonName: 'distro worker',
				publicKey,
				notBeforeMs: nowMs - Math.min(BACKDATE_MS, BACKDATE_PART * this.#lifetimeMs),
				notAfterMs,
				uris: identityUris({ clusterId: this.#clusterId, role: 'worker', id: workerId, name }),
				hosts,
			},
		);
		return { chain: `${leaf}${cert.toString('latin1')}`, notAfterMs };
	}

	#endMs({ cert, ca }: { cert: Buffer; ca: Buffer }, nowMs: number): number {
		if (parseCertificates(cert)[0]?.ca !== true) {
			throw new DistroError('unavailable', 'the certificate in ISSUER_DIR is not of an authority');
		}
		try {
			const { endMs } = followChain(cert, ca, nowMs);
			if (endMs - nowMs >= ISSUER_LEFT_MS) return endMs;
		} catch (error) {
			throw new DistroError('unavailable', `ISSUER_DIR: ${asDistroError(error).message}`, { cause: error });
		}
		throw new DistroError(
			'unavailable',
			'the certificate in ISSUER_DIR, or its authority’s, ends within a day: renew it',
		);
	}
}

function readPublicKey(der: Buffer): KeyObject {
	let key: KeyObject | null = null;
	try {
		key = createPublicKey({ key: der, format: 'der', type: 'spki' });
	} catch {
		// Said below.
	}
	if (key?.asymmetricKeyType === 'ec' && key.asymmetricKeyDetails?.namedCurve === 'prime256v1') return key;
	throw new DistroError('invalid', 'the public key must be one of P-256');
}
