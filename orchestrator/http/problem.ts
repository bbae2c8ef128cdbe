/** Errors as application/problem+json (RFC 9457): a status, and a sentence that says what to do. */

import { DistroError, type ErrorKind } from '../../core/errors.ts';

export interface Problem {
	readonly status: number;
	readonly title: string;
	readonly detail: string;
	readonly retryAfterMs?: number | undefined;
	readonly headers?: Record<string, string>;
}

const STATUS_OF: Record<ErrorKind, number> = {
	invalid: 400,
	denied: 403,
	expired: 503,
	not_found: 404,
	exists: 409,
	conflict: 409,
	exhausted: 507,
	unavailable: 503,
	timeout: 503,
	canceled: 400,
	corrupt: 500,
	unrecoverable: 500,
	unsupported: 501,
	internal: 500,
};

const TITLES: Record<number, string> = {
	400: 'Bad Request',
	401: 'Unauthorized',
	403: 'Forbidden',
	404: 'Not Found',
	405: 'Method Not Allowed',
	408: 'Request Timeout',
	409: 'Conflict',
	411: 'Length Required',
	412: 'Precondition Failed',
	413: 'Content Too Large',
	414: 'URI Too Long',
	415: 'Unsupported Media Type',
	416: 'Range Not Satisfiable',
	417: 'Expectation Failed',
	422: 'Unprocessable Content',
	431: 'Request Header Fields Too Large',
	500: 'Internal Server Error',
	501: 'Not Implemented',
	503: 'Service Unavailable',
	507: 'Insufficient Storage',
};

const DEFAULT_RETRY_MS = 5_000;

/** A refusal that has no error kind of its own. */
export class HttpRefusal extends Error {
	readonly problem: Problem;

	constructor(status: number, detail: string, headers: Record<string, string> = {}) {
		super(detail);
		this.problem = { status, title: TITLES[status] ?? 'Error', detail, headers };
	}
}

export function problemOf(error: unknown): Problem {
	if (error instanceof HttpRefusal) return error.problem;
	if (!(error instanceof DistroError)) {
		return {
			status: 500,
			title: 'Internal Server Error',
			detail: 'an internal error: the log has it under the request id',
		};
	}
	const status = error.reason === 'idempotency_mismatch' ? 422 : STATUS_OF[error.kind];
	const detail = error.kind === 'internal' ? 'an internal error: the log has it under the request id' : error.message;
	const retryAfterMs = status === 503 ? (error.retryAfterMs ?? DEFAULT_RETRY_MS) : undefined;
	return { status, title: TITLES[status] ?? 'Error', detail, retryAfterMs };
}

/** Body and headers of the answer. `instance` is the request's id. */
export function renderProblem(problem: Problem, instance: string): { headers: Record<string, string>; body: string } {
	const { status, title, detail, retryAfterMs } = problem;
	const body = `${JSON.stringify({ type: 'about:blank', title, status, detail, instance })}\n`;
	return {
		headers: {
			'content-type': 'application/problem+json',
			'content-length': String(Buffer.byteLength(body)),
			...(retryAfterMs === undefined ? {} : { 'retry-after': String(Math.max(1, Math.ceil(retryAfterMs / 1000))) }),
			...problem.headers,
		},
		body,
	};
}
