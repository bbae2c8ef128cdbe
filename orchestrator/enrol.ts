/**
 * Who gets a worker's certificate: a pod that proves by its token which one it is (service-account.ts), for an id whose
 * receipt key it has, and that is no other worker's (workers.ts). Then issuer.ts signs.
 */

import { verifyEnrolment } from '../core/crypto/sign.ts';
import { asDistroError, DistroError } from '../core/errors.ts';
import type { Enrolment } from '../core/model/enrolment.ts';
import type { Clock } from '../core/ports.ts';
import type { Issuer } from './issuer.ts';
import { type AccountRules, podOfToken, type TokenKeys } from './service-account.ts';
import type { WorkerRegistry } from './workers.ts';

/** At once; the rest is told to come again. */
const LANES = 8;
const BUSY_RETRY_MS = 2_000;
/** Certificates for one pod in a minute: one that is started anew and again needs one each time at most. */
const PER_POD = 20;
const WINDOW_MS = 60_000;

export interface EnrolDeps {
	readonly accounts: () => Promise<{ rules: AccountRules; keys: TokenKeys }>;
	readonly workers: Pick<WorkerRegistry, 'admit'>;
	readonly issuer: Pick<Issuer, 'issue'>;
	readonly clock: Clock;
	/** `issued`, or the kind of the error. */
	readonly onOutcome: (outcome: string) => void;
	readonly log: { info(fields: object, text: string): void; warn(fields: object, text: string): void };
}

export class EnrolDesk {
	readonly #deps: EnrolDeps;
	#running = 0;
	/** By pod, of this minute; as many as there are ordinals. */
	readonly #counts = new Map<string, number>();
	#windowEndsMs = 0;
	#quietUntilMs = Number.NEGATIVE_INFINITY;

	constructor(deps: EnrolDeps) {
		this.#deps = deps;
	}

	/** Answers the chain, PEM. Throws `denied`, `invalid`, or `unavailable` when another try may do. */
	async enrol(token: string, enrolment: Enrolment): Promise<string> {
		if (this.#running >= LANES) throw busy('too many workers ask for certificates at once');
		this.#running++;
		try {
			const chain = await this.#enrol(token, enrolment);
			this.#deps.onOutcome('issued');
			return chain;
		} catch (error) {
			const { kind, message } = asDistroError(error);
			this.#deps.onOutcome(kind);
			this.#complain({ kind, reason: message, worker: enrolment.workerId });
			throw error;
		} finally {
			this.#running--;
		}
	}

	async #enrol(token: string, enrolment: Enrolment): Promise<string> {
		const { accounts, workers, issuer, clock, log } = this.#deps;
		const { rules, keys } = await accounts();
		const name = podOfToken(token, { rules, keys, nowMs: clock.nowMs() });
		this.#count(name);
		if (!verifyEnrolment(enrolment)) {
			throw new DistroError('denied', 'the request is not signed by the receipt key that it names');
		}
		const { workerId, publicKey, receiptKey } = enrolment;
		await workers.admit({ workerId, name, receiptKey });
		const hosts = rules.domains.map((domain) => `${name}.${domain}`);
		const { chain, notAfterMs } = await issuer.issue({ workerId, name, publicKey, hosts });
		log.info({ worker: name, workerId, notAfter: new Date(notAfterMs).toISOString() }, 'issued a certificate');
		return chain;
	}

	#count(name: string): void {
		const nowMs = this.#deps.clock.monotonicMs();
		if (nowMs >= this.#windowEndsMs) {
			this.#counts.clear();
			this.#windowEndsMs = nowMs + WINDOW_MS;
		}
		const count = (this.#counts.get(name) ?? 0) + 1;
		if (count > PER_POD) throw busy(`${name} asks for certificates too often`);
		this.#counts.set(name, count);
	}

	/** Whoever reaches the port may be refused as often as he likes: the log hears of one a second. */
	#complain(fields: object): void {
		const { clock, log } = this.#deps;
		if (clock.monotonicMs() < this.#quietUntilMs) return;
		this.#quietUntilMs = clock.monotonicMs() + 1_000;
		log.warn(fields, 'refused a certificate');
	}
}

function busy(sentence: string): DistroError {
	return new DistroError('unavailable', sentence, { retryAfterMs: BUSY_RETRY_MS });
}
