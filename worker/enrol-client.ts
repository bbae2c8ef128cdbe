/** One call to the orchestrators' enrolment port: a service-account token and a signed request for a certificate (core/model/enrolment.ts). */

import { createPublicKey, type KeyObject } from 'node:crypto';
import { request } from 'node:https';
import { signEnrolment } from '../core/crypto/sign.ts';
import { DistroError } from '../core/errors.ts';
import type { ClusterId } from '../core/ids.ts';
import { parseIdentity } from '../platform/tls.ts';
import type { WorkerIdentity } from './identity.ts';

const TIMEOUT_MS = 15_000;
const ANSWER_MAX_BYTES = 65_536;

export interface CertificateAnswer {
	/** PEM, the certificate first. */
	readonly chain: string;
	/** Of the orchestrator that answered. */
	readonly clusterId: ClusterId;
}

/** Throws `denied` when refused or when the other end is no orchestrator, `unavailable` or `timeout` when it does not answer. */
export async function askForCertificate(o: {
	/** host:port. */
	address: string;
	token: string;
	/** The authorities that are trusted, PEM. */
	ca: Buffer;
	key: KeyObject;
	identity: WorkerIdentity;
	/** Must be that one; null: any that these authorities vouch for. */
	clusterId: ClusterId | null;
}): Promise<CertificateAnswer> {
	const publicKey = createPublicKey(o.key).export({ type: 'spki', format: 'der' });
	const signed = signEnrolment({ workerId: o.identity.workerId, publicKey }, o.identity.receiptKey);
	const body = JSON.stringify({
		worker_id: signed.workerId,
		public_key: signed.publicKey.toString('base64'),
		receipt_key: signed.receiptKey.toString('base64'),
		signature: signed.signature.toString('base64'),
	});
	const answer = await post(o, body);
	const { certificate, detail } = fieldsOf(answer.text);
	if (answer.status === 200 && typeof certificate === 'string') {
		return { chain: certificate, clusterId: answer.clusterId };
	}
	const kind = answer.status === 503 ? 'unavailable' : 'denied';
	throw new DistroError(kind, `${answer.status}: ${typeof detail === 'string' ? detail : 'no reason given'}`);
}

function post(
	o: { address: string; token: string; ca: Buffer; clusterId: ClusterId | null },
	body: string,
): Promise<{ status: number; text: string; clusterId: ClusterId }> {
	const url = new URL(`https://${o.address}/enrol`);
	let clusterId = o.clusterId;
	return new Promise((resolve, reject) => {
		const fail = (error: Error) => {
			if (error instanceof DistroError) reject(error);
			else if (error.name === 'TimeoutError') reject(new DistroError('timeout', `no answer for ${TIMEOUT_MS} ms`));
			else reject(new DistroError('unavailable', `${o.address}: ${error.message}`, { cause: error }));
		};
		const call = request(
			url,
			{
				method: 'POST',
				headers: { authorization: `Bearer ${o.token}`, 'content-type': 'application/json' },
				agent: false,
				ca: o.ca,
				minVersion: 'TLSv1.3',
				// The address says nothing, the certificate's URI does.
				checkServerIdentity: (_host, { subjectaltname }) => {
					try {
						const peer = parseIdentity(subjectaltname);
						if (peer.role !== 'orchestrator' || peer.clusterId !== (clusterId ?? peer.clusterId)) {
							return new DistroError('denied', `${o.address} is no orchestrator of this worker’s cluster`);
						}
						clusterId = peer.clusterId;
						return undefined;
					} catch (error) {
						return error as Error;
					}
				},
				signal: AbortSignal.timeout(TIMEOUT_MS),
			},
			(response) => {
				let text = '';
				response.setEncoding('utf8');
				response.on('data', (chunk: string) => {
					text += chunk;
					if (text.length > ANSWER_MAX_BYTES) call.destroy(new DistroError('denied', 'the answer is too long'));
				});
				response.on('error', fail);
				response.on('end', () =>
					resolve({ status: response.statusCode ?? 0, text, clusterId: clusterId as ClusterId }),
				);
			},
		);
		call.on('error', (error) =>
			fail((error.cause as Error | undefined)?.name === 'TimeoutError' ? (error.cause as Error) : error),
		);
		call.end(body);
	});
}

function fieldsOf(text: string): { certificate?: unknown; detail?: unknown } {
	try {
		const value: unknown = JSON.parse(text);
		return typeof value === 'object' && value !== null ? value : {};
	} catch {
		return {};
	}
}
