/**
 * Logs: pino, one line an event, JSON. Errors carry kind and cause; what could be a secret is never a field.
 *
 * Lines are written at once. When their reader is gone they are lost, and nothing else: pino's own destination tries for
 * ever at exit then, and the process never ends.
 */

import { writeSync } from 'node:fs';
import { type DestinationStream, type Logger, pino } from 'pino';
import { DistroError } from '../core/errors.ts';

export type { Logger };

export function createLogger(options: { role: string; name: string; level: string }): Logger {
	const settings = {
		level: options.level,
		base: { role: options.role, name: options.name },
		timestamp: pino.stdTimeFunctions.isoTime,
		redact: ['req.headers.authorization', '*.authorization', '*.masterKey', '*.key', '*.secret'],
		formatters: { level: (label: string) => ({ level: label }) },
		serializers: { err: errorFields },
	};
	return pino(settings, standardOutput());
}

const STDOUT = 1;
const FULL_PIPE_WAIT_MS = 5;

function standardOutput(): DestinationStream {
	const never = new Int32Array(new SharedArrayBuffer(4));
	return {
		write: (line) => {
			const bytes = Buffer.from(line);
			for (let at = 0; at < bytes.length; ) {
				try {
					at += writeSync(STDOUT, bytes, at);
				} catch (error) {
					if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') return;
					Atomics.wait(never, 0, 0, FULL_PIPE_WAIT_MS);
				}
			}
		},
	};
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
