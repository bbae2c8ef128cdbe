/** One request and its answer, as route handlers see them, and what they share. */

import type { IncomingMessage, ServerResponse } from 'node:http';
import type { FastifyRequest } from 'fastify';
import { DistroError } from '../../core/errors.ts';
import { type ObjectId, parseId } from '../../core/ids.ts';
import type { ApiKeyScope } from '../api-keys.ts';
import type { ObjectInfo } from '../objects.types.ts';
import type { Caller } from './auth.ts';

export type Handler = (exchange: Exchange) => Promise<void>;

export interface Exchange {
	readonly request: FastifyRequest;
	readonly raw: IncomingMessage;
	readonly response: ServerResponse;
	readonly caller: Caller;
}

export interface Route {
	readonly method: 'GET' | 'HEAD' | 'POST' | 'DELETE';
	readonly path: string;
	/** null: open to all. */
	readonly scope: ApiKeyScope | null;
	readonly handler: Handler;
}

export function single(value: string | string[] | undefined): string | undefined {
	return Array.isArray(value) ? value[0] : value;
}

export function wholeNumber(
	text: string | undefined,
	o: { name: string; fallback: number; min: number; max: number },
): number {
	if (text === undefined) return o.fallback;
	const value = Number(text);
	if (/^\d+$/.test(text) && value >= o.min && value <= o.max) return value;
	throw new DistroError('invalid', `${o.name} must be a whole number from ${o.min} to ${o.max}`);
}

/** Throws `invalid`. */
export function objectIdOf(request: FastifyRequest): ObjectId {
	return parseId<ObjectId>((request.params as { id: string }).id, 'an object id');
}

export function infoJson(info: ObjectInfo): object {
	return {
		object_id: info.objectId,
		size: info.sizeBytes,
		created_at: new Date(info.createdAtMs).toISOString(),
		name: info.name,
		content_type: info.contentType,
		etag: info.etag,
	};
}

export function answerJson(
	response: ServerResponse,
	status: number,
	value: object,
	headers: Record<string, string> = {},
): void {
	const body = `${JSON.stringify(value)}\n`;
	response.writeHead(status, {
		'content-type': 'application/json',
		'content-length': Buffer.byteLength(body),
		...headers,
	});
	response.end(body);
}
