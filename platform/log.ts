/** Logs: pino, one line an event, JSON. Errors carry kind and cause; what could be a secret is never a field. */

import { type Logger, pino } from 'pino';
import { DistroError } from '../core/errors.ts';

export type { Logger };

export function createLogger(options: { role: string; name: string; level: string }): Logger {
	return pino({
		level: options.level,
		base: { role: options.role, name: options.name },
		timestamp: pino.stdTimeFunctions.isoTime,
		redact: ['req.headers.authorization', '*.authorization', '*.masterKey', '*.key', '*.secret'],
		formatters: { level: (label) => ({ level: label }) },
		serializers: { err: errorFields },
	});
}

function errorFields(error: unknown): object {
	if (error instanceof DistroError) {
		const cause = error.cause instanceof Error ? error.cause.message : undefined;
		// A bug deserves its stack; everything else is told by its sentence.
		return {
			kind: error.kind,
			message: error.message,
			cause,
			...(error.kind === 'internal' ? { stack: error.stack } : {}),
		};
	}
	return error instanceof Error
		? { kind: 'internal', message: error.message, stack: error.stack }
		: { message: String(error) };
}
