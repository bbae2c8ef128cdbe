/**
 * What the API server and the network answer, as a DistroError: the kind says what to do, `reason` keeps the word of
 * Kubernetes. The one place that knows HTTP statuses.
 */

import { DistroError, type ErrorKind } from '../../core/errors.ts';

/** meta/v1 Status, as far as it is read. */
export interface Status {
	readonly kind?: string;
	readonly code?: number;
	readonly reason?: string;
	readonly message?: string;
	readonly details?: { readonly retryAfterSeconds?: number };
}

/** The reason of a 404 that no object's absence explains: the API server does not know the kind (a CRD is not there). */
export const KIND_ABSENT = 'KindAbsent';

const MESSAGE_MAX_CHARS = 2_000;
const MS = 1_000;

export interface Answer {
	readonly status: number;
	/** The body, parsed if it was JSON, else as text. */
	readonly body: unknown;
	/** The header, in seconds. */
	readonly retryAfter?: string | undefined;
}

/** `doing` is for people: «get pods a/b». */
export function fromAnswer(doing: string, answer: Answer): DistroError {
	const status = asStatus(answer.body);
	const reason = status?.reason ?? (answer.status === 404 && status === null ? KIND_ABSENT : undefined);
	const said = status?.message ?? (typeof answer.body === 'string' ? answer.body.trim() : '');
	const seconds = Number(answer.retryAfter ?? status?.details?.retryAfterSeconds);
	return new DistroError(
		kindOf(answer.status, reason),
		`${doing}: ${answer.status} ${said === '' ? (reason ?? 'without a message') : said}`.slice(0, MESSAGE_MAX_CHARS),
		{
			...(reason === undefined ? {} : { reason }),
			...(Number.isFinite(seconds) && seconds > 0 ? { retryAfterMs: seconds * MS } : {}),
		},
	);
}

/** An event of type ERROR in a watch. */
export function fromStatus(doing: string, object: unknown): DistroError {
	return fromAnswer(doing, { status: asStatus(object)?.code ?? 500, body: object });
}

/** No whole answer came. A write may have been done all the same. */
export function fromNetwork(doing: string, error: Error): DistroError {
	return new DistroError('unavailable', `${doing}: ${error.message}`, { cause: error });
}

function kindOf(code: number, reason: string | undefined): ErrorKind {
	switch (code) {
		case 401:
		case 403:
			return 'denied';
		case 404:
			return 'not_found';
		case 405:
		case 406:
		case 415:
			return 'unsupported';
		case 408:
		case 504:
			return 'timeout';
		case 409:
			return reason === 'AlreadyExists' ? 'exists' : 'conflict';
		case 410:
			return 'expired';
		case 429:
			return 'unavailable';
	}
	// Redirects and unknown codes are answered by what stands between, not by an API server.
	return code >= 400 && code < 500 ? 'invalid' : 'unavailable';
}

function asStatus(body: unknown): Status | null {
	return typeof body === 'object' && body !== null && (body as Status).kind === 'Status' ? (body as Status) : null;
}
