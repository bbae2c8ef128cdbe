/** Who may do what: bearer keys with scopes, each scope including the ones before it. */

import type { IncomingMessage } from 'node:http';
import { isIP } from 'node:net';
import { checkApiKey } from '../admin-keys.ts';
import { API_KEY_SCOPES, type ApiKeyScope, type ApiKeyStore } from '../api-keys.ts';
import { HttpRefusal } from './problem.ts';

export interface Caller {
	/** The key's id; '' where no key is needed. */
	readonly owner: string;
	readonly scope: ApiKeyScope;
}

export interface Authenticator {
	/** Throws 401. */
	check(request: IncomingMessage): Promise<Caller>;
}

export function createAuthenticator(apiKeys: ApiKeyStore): Authenticator {
	return {
		check: async (request) => {
			const match = /^Bearer ([!-~]{1,256})$/i.exec(request.headers.authorization ?? '');
			const row =
				match === null ? null : checkApiKey(await apiKeys.apiKeys({ mayBeOld: isRead(request) }), match[1] as string);
			if (row === null) {
				const detail =
					match === null
						? 'an API key is needed: send Authorization: Bearer <key>'
						: 'this API key is not known, or was revoked: ask for another';
				throw new HttpRefusal(401, detail, { 'www-authenticate': 'Bearer' });
			}
			return { owner: row.keyId, scope: row.scope };
		},
	};
}

/**
 * Open to the people of this machine, but not to the pages that their browsers show: a page elsewhere can post a form here,
 * and with a name of its own that leads to 127.0.0.1 (DNS rebinding) read and delete everything.
 */
export const loopbackAuthenticator: Authenticator = {
	check: async (request) => {
		const host = (request.headers.host ?? '').replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1');
		if (host !== 'localhost' && isIP(host) === 0) {
			const detail = 'without API keys this is reached as localhost or by an address only: use one, or set AUTH=keys';
			throw new HttpRefusal(403, detail);
		}
		const from = request.headers['sec-fetch-site'];
		if (from !== undefined && from !== 'same-origin' && from !== 'none' && request.method !== 'GET') {
			throw new HttpRefusal(403, 'a page of another site may not do this: use a program, or set AUTH=keys');
		}
		return { owner: '', scope: 'admin' };
	},
};

/** Those may go on while the keys can't be read: what they see is as old. */
function isRead({ method }: IncomingMessage): boolean {
	return method === 'GET' || method === 'HEAD';
}

/** Throws 403. */
export function requireScope(caller: Caller, needed: ApiKeyScope): void {
	if (API_KEY_SCOPES.indexOf(caller.scope) >= API_KEY_SCOPES.indexOf(needed)) return;
	const may = caller.scope === 'read' ? 'read only' : 'read and write';
	throw new HttpRefusal(403, `this API key may ${may}, and this needs the scope ${needed}`);
}
