/**
 * The one error class of Distro, with a closed set of kinds that tell the caller what to do.
 *
 * The kind crosses the wire (gRPC status, problem+json); the text is for people and is never parsed; the cause is
 * logged and never sent.
 */

export const ERROR_KINDS = [
	'invalid', // the caller must change the request
	'denied', // not allowed: no key, too small a scope, a foreign certificate
	'expired', // a ticket, intent or deadline that has passed
	'not_found',
	'exists',
	'conflict', // somebody else changed it meanwhile; read again
	'exhausted', // no room: disk full, quota
	'unavailable', // try again later
	'timeout',
	'canceled', // by the caller; `reason` says why
	'corrupt', // bytes are not what they must be
	'unrecoverable', // fewer than k shards are left
	'unsupported', // a format or feature this release does not know
	'internal', // a bug
] as const;

export type ErrorKind = (typeof ERROR_KINDS)[number];

export interface ErrorDetails {
	readonly cause?: unknown;
	/** For `canceled`: why. */
	readonly reason?: string;
	/** For `unavailable` and `exhausted`: when a retry makes sense, in milliseconds. */
	readonly retryAfterMs?: number;
}

export class DistroError extends Error {
	readonly kind: ErrorKind;
	readonly reason: string | undefined;
	readonly retryAfterMs: number | undefined;

	constructor(kind: ErrorKind, message: string, details: ErrorDetails = {}) {
		super(message, details.cause === undefined ? undefined : { cause: details.cause });
		this.name = 'DistroError';
		this.kind = kind;
		this.reason = details.reason;
		this.retryAfterMs = details.retryAfterMs;
	}
}

export function isErrorKind(text: string): text is ErrorKind {
	return (ERROR_KINDS as readonly string[]).includes(text);
}

/** What was thrown, as a DistroError: foreign errors become `internal` with the original as cause. */
export function asDistroError(thrown: unknown): DistroError {
	if (thrown instanceof DistroError) return thrown;
	const message = thrown instanceof Error ? thrown.message : String(thrown);
	return new DistroError('internal', message, { cause: thrown });
}
