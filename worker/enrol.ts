/**
 * A worker's certificate where nobody hands it one: asked for at start when TLS_DIR has none that is good, and again at two
 * thirds of its life, for ever. It never gives up, since only people, or time, can mend what stands in the way; and a worker
 * with a good certificate starts and serves without asking anyone.
 *
 * While an authority is replaced the bundle has both, and the first is the one to be under: who is under another asks anew.
 *
 * A new key with every certificate. The folder is the worker's own, so what it kept says of which cluster it is.
 */

import { createPrivateKey, X509Certificate } from 'node:crypto';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { asDistroError, DistroError } from '../core/errors.ts';
import type { Clock, Random } from '../core/ports.ts';
import { backoffMs } from '../core/retry.ts';
import { writeFileDurably } from '../platform/files.ts';
import { followChain, type PeerIdentity, parseCertificates, parseIdentity } from '../platform/tls.ts';
import { keyToPem, newCertificateKey } from '../platform/x509.ts';
import { askForCertificate } from './enrol-client.ts';
import type { WorkerIdentity } from './identity.ts';

const RENEW_AT = 2 / 3;
/** Workers that were started together are to ask at different times: up to this part of the life earlier. */
const RENEW_SPREAD = 0.05;
/** Whatever the clock does, and the bundle: looked at so often. */
const LOOK_MS = 10_000;
/** The orchestrators may have the new issuer later than this worker the new bundle; and an order may mean nothing. */
const MOVE_RETRY_MS = 60_000;
const MOVE_RETRY_MAX_MS = 24 * 60 * 60_000;
const RETRY_BASE_MS = 1_000;
/** While it can't serve for want of one, and while it has one. */
const RETRY_MAX_MS = 15_000;
const RENEW_RETRY_MAX_MS = 5 * 60_000;

export interface EnrolmentDeps {
	readonly tlsDir: string;
	readonly address: string;
	readonly tokenFile: string;
	readonly caFile: string;
	readonly identity: WorkerIdentity;
	readonly clock: Clock;
	readonly random: Random;
	readonly log: { info(fields: object, text: string): void; warn(fields: object, text: string): void };
}

export class Enrolment {
	/** Why there is no good certificate now; null when there is one. */
	reason: string | null = 'no certificate yet';
	readonly #deps: EnrolmentDeps;
	readonly #early: number;
	readonly #first = Promise.withResolvers<void>();
	#onRenewed: () => void = () => {};
	/** To the authority that is first in the bundle. */
	#move = { to: '', tries: 0, atMs: 0 };
	#stopped = false;
	#wake: () => void = () => {};

	constructor(deps: EnrolmentDeps) {
		this.#deps = deps;
		this.#early = (deps.random.bytes(1).readUInt8(0) / 256) * RENEW_SPREAD;
	}

	/** Resolves once a good certificate is in the folder. */
	start(): Promise<void> {
		this.#run();
		return this.#first.promise;
	}

	/** After each new one. */
	onRenewed(callback: () => void): void {
		this.#onRenewed = callback;
	}

	stop(): void {
		this.#stopped = true;
		this.#wake();
	}

	async #run(): Promise<void> {
		const { clock, random, log } = this.#deps;
		for (let attempt = 0; !this.#stopped; ) {
			const leftMs = this.#look() - clock.nowMs();
			if (leftMs > 0) {
				attempt = 0;
				await this.#wait(Math.min(LOOK_MS, leftMs));
				continue;
			}
			// Also after a success that left nothing to wait for: this clock is far off the orchestrators'.
			if (attempt > 0) {
				const maxMs = this.reason === null ? RENEW_RETRY_MAX_MS : RETRY_MAX_MS;
				await this.#wait(RETRY_BASE_MS / 2 + backoffMs(attempt, { baseMs: RETRY_BASE_MS, maxMs, random }));
				if (this.#stopped) return;
			}
			attempt++;
			try {
				await this.#renew();
			} catch (error) {
				const { kind, message } = asDistroError(error);
				log.warn({ kind, reason: message, orchestrators: this.#deps.address }, 'no new certificate yet');
				if (this.reason !== null) this.reason = message;
			}
		}
	}

	/** When a new one is to be asked for; 0: now. */
	#look(): number {
		const { tlsDir, caFile, identity, clock } = this.#deps;
		try {
			const chain = readFileSync(join(tlsDir, 'tls.crt'));
			const bundle = readFileSync(caFile);
			const { notBeforeMs, notAfterMs, authority } = checkCertificate(chain, {
				key: readFileSync(join(tlsDir, 'tls.key'), 'utf8'),
				bundle,
				identity,
				nowMs: clock.nowMs(),
			});
			this.reason = null;
			this.#first.resolve();
			const [wanted] = parseCertificates(bundle) as [X509Certificate];
			if (authority !== wanted.fingerprint256 && this.#isTimeToMove(wanted.fingerprint256)) return 0;
			return notBeforeMs + (RENEW_AT - this.#early) * (notAfterMs - notBeforeMs);
		} catch (error) {
			this.reason ??= asDistroError(error).message;
			return 0;
		}
	}

	/** Later and later while it does not help. */
	#isTimeToMove(to: string): boolean {
		const nowMs = this.#deps.clock.monotonicMs();
		if (this.#move.to !== to) this.#move = { to, tries: 0, atMs: nowMs };
		if (nowMs < this.#move.atMs) return false;
		this.#move.atMs = nowMs + Math.min(MOVE_RETRY_MAX_MS, MOVE_RETRY_MS * 2 ** this.#move.tries++);
		return true;
	}

	async #renew(): Promise<void> {
		const { tlsDir, address, tokenFile, caFile, identity, clock, log } = this.#deps;
		const ca = readSetting('TLS_CA_FILE', caFile);
		// Projected tokens are replaced all the time.
		const token = readSetting('ENROL_TOKEN_FILE', tokenFile).toString('utf8').trim();
		const clusterId = this.#known()?.clusterId ?? null;
		const key = newCertificateKey();
		const answer = await askForCertificate({ address, token, ca, key, identity, clusterId });
		const pem = keyToPem(key);
		const made = checkCertificate(answer.chain, { key: pem, bundle: ca, identity, nowMs: clock.nowMs() });
		if (made.clusterId !== answer.clusterId) throw new DistroError('denied', 'the certificate is of another cluster');
		mkdirSync(tlsDir, { recursive: true, mode: 0o700 });
		// The certificate last. Between the two they don't fit: who is stopped there asks again.
		writeFileDurably(join(tlsDir, 'tls.key'), pem, { mode: 0o600 });
		writeFileDurably(join(tlsDir, 'tls.crt'), answer.chain, { mode: 0o644 });
		log.info({ notAfter: new Date(made.notAfterMs).toISOString() }, 'got a certificate');
		this.reason = null;
		this.#first.resolve();
		this.#onRenewed();
	}

	/** Whose certificate is there, good or not. */
	#known(): PeerIdentity | null {
		try {
			const { subjectAltName } = new X509Certificate(readFileSync(join(this.#deps.tlsDir, 'tls.crt')));
			return parseIdentity(subjectAltName);
		} catch {
			return null;
		}
	}

	#wait(ms: number): Promise<void> {
		return new Promise((resolve) => {
			const cancel = this.#deps.clock.schedule(ms, resolve);
			this.#wake = () => {
				cancel();
				resolve();
			};
		});
	}
}

/** Throws `denied` for one that is not this worker's, or that peers would refuse. */
function checkCertificate(
	chain: Buffer | string,
	o: { key: string; bundle: Buffer; identity: WorkerIdentity; nowMs: number },
): PeerIdentity & { notBeforeMs: number; notAfterMs: number; authority: string } {
	const [leaf] = parseCertificates(chain) as [X509Certificate];
	const peer = parseIdentity(leaf.subjectAltName);
	if (peer.role !== 'worker' || peer.id !== o.identity.workerId) {
		throw new DistroError('denied', `the certificate is for ${peer.role} ${peer.id}, and not for this worker`);
	}
	if (!leaf.checkPrivateKey(createPrivateKey(o.key)))
		throw new DistroError('denied', 'the certificate is for another key');
	const { endMs, to } = followChain(chain, o.bundle, o.nowMs);
	return { ...peer, notBeforeMs: Date.parse(leaf.validFrom), notAfterMs: endMs, authority: to.fingerprint256 };
}

function readSetting(name: string, path: string): Buffer {
	try {
		return readFileSync(path);
	} catch (error) {
		throw new DistroError('unavailable', `${name} can't be read: ${(error as Error).message}`);
	}
}
