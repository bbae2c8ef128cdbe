/** Routes of what was deleted: the trash, the way back out of it, and the log of deletions. */

import { PAGE_DEFAULT, PAGE_MAX } from '../../core/limits.ts';
import type { Deletions } from '../deletions.ts';
import type { Objects, TrashedInfo } from '../objects.types.ts';
import { answerJson, type Exchange, infoJson, objectIdOf, type Route, single, wholeNumber } from './exchange.ts';

export function trashRoutes(objects: Objects, deletions: Deletions): Route[] {
	return [
		{
			method: 'DELETE',
			path: '/objects/:id',
			scope: 'write',
			handler: async ({ request, response, caller }) => {
				const { freedAtMs } = await objects.remove(objectIdOf(request), caller.owner);
				response.writeHead(204, { 'distro-freed-at': isoTime(freedAtMs) }).end();
			},
		},
		{
			method: 'POST',
			path: '/objects/:id/undelete',
			scope: 'write',
			handler: async ({ request, response, caller }) => {
				answerJson(response, 200, infoJson(await objects.undelete(objectIdOf(request), caller.owner)));
			},
		},
		{
			method: 'GET',
			path: '/trash',
			scope: 'read',
			handler: async (exchange) => {
				const cursor = queryOf(exchange).cursor || null;
				const page = await objects.trash({ limit: limitOf(exchange), cursor });
				answerJson(exchange.response, 200, { objects: page.objects.map(trashedJson), next: page.next });
			},
		},
		{
			method: 'DELETE',
			path: '/trash/:id',
			scope: 'write',
			handler: async ({ request, response, caller }) => {
				await objects.purge(objectIdOf(request), caller.owner);
				response.writeHead(204).end();
			},
		},
		{
			method: 'GET',
			path: '/deletions',
			scope: 'admin',
			handler: async (exchange) => {
				const bounds = { name: 'after', fallback: 0, min: 0, max: Number.MAX_SAFE_INTEGER };
				const after = wholeNumber(queryOf(exchange).after, bounds);
				const limit = limitOf(exchange);
				const entries = await deletions.entries({ limit, after });
				const next = entries.length < limit ? null : (entries.at(-1)?.number ?? null);
				const shown = entries.map(({ number, objectId, action, atMs, by, hash }) => ({
					number,
					object_id: objectId,
					action,
					at: isoTime(atMs),
					by,
					hash: hash.toString('hex'),
				}));
				answerJson(exchange.response, 200, { entries: shown, next });
			},
		},
		{
			method: 'GET',
			path: '/deletions/verify',
			scope: 'admin',
			handler: async ({ response }) => {
				const { entries, hash, firstBad } = await deletions.verify();
				const head = hash.toString('hex');
				answerJson(response, 200, { entries, head, intact: firstBad === null, first_bad: firstBad });
			},
		},
	];
}

function queryOf({ request }: Exchange): Record<'limit' | 'cursor' | 'after', string | undefined> {
	const query = request.query as Record<string, string | string[]>;
	return { limit: single(query.limit), cursor: single(query.cursor), after: single(query.after) };
}

function limitOf(exchange: Exchange): number {
	return wholeNumber(queryOf(exchange).limit, { name: 'limit', fallback: PAGE_DEFAULT, min: 1, max: PAGE_MAX });
}

function trashedJson(info: TrashedInfo): object {
	return { ...infoJson(info), deleted_at: isoTime(info.deletedAtMs), freed_at: isoTime(info.freedAtMs) };
}

function isoTime(ms: number): string {
	return new Date(ms).toISOString();
}
