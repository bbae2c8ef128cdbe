/**
 * The command that makes, lists and revokes API keys, beside a running orchestrator or before its first start:
 *
 *     node orchestrator/keys.ts create --scope write --label ci
 *     node orchestrator/keys.ts list
 *     node orchestrator/keys.ts revoke 0123456789abcdef
 *
 * With the orchestrator's environment it works on the same keys: in the database that SUPABASE_URL names, else in the data
 * folder DATA_DIR. For the cluster of `make run` there is `npm run keys`. A running orchestrator knows after a second.
 */

import { mkdirSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { asDistroError, DistroError } from '../core/errors.ts';
import { systemClock, systemRandom } from '../platform/clock.ts';
import { EnvReader } from '../platform/env.ts';
import { createApiKey } from './admin-keys.ts';
import { API_KEY_SCOPES, type ApiKeyScope, type ApiKeyStore, openApiKeys } from './api-keys.ts';
import { readSupabase } from './config.ts';
import { orchestratorDataDir } from './data-dir.ts';

const USAGE = `usage: keys create --scope ${API_KEY_SCOPES.join('|')} --label <what it is for>
       keys list
       keys revoke <key id>`;
const LABEL_MAX = 100;

async function run(store: ApiKeyStore, args: string[]): Promise<string> {
	const { values, positionals } = parsed(args);
	const [command, keyId, ...rest] = positionals;
	switch (command) {
		case 'create': {
			const { scope, label } = values;
			if (!isScope(scope) || label === undefined || label === '' || label.length > LABEL_MAX || keyId !== undefined)
				break;
			const { key, row } = await createApiKey(store, { scope, label }, systemRandom, systemClock.nowMs());
			return `${key}\nThis is key ${row.keyId} (${scope}). It is shown only now: keep it safe.`;
		}
		case 'list': {
			if (keyId !== undefined) break;
			const rows = await store.apiKeys();
			const lines = rows.map(
				({ keyId: id, scope, label, createdAtMs }) =>
					`${id}  ${scope.padEnd(5)}  ${new Date(createdAtMs).toISOString()}  ${JSON.stringify(label)}`,
			);
			return lines.length === 0 ? 'There is no API key.' : lines.join('\n');
		}
		case 'revoke': {
			if (keyId === undefined || rest.length > 0) break;
			if (!(await store.removeApiKey(keyId))) throw new DistroError('not_found', `there is no API key ${keyId}`);
			return `Key ${keyId} is revoked.`;
		}
	}
	throw new DistroError('invalid', USAGE);
}

function parsed(args: string[]) {
	try {
		const options = { scope: { type: 'string' }, label: { type: 'string' } } as const;
		return parseArgs({ args, options, allowPositionals: true });
	} catch (cause) {
		throw new DistroError('invalid', USAGE, { cause });
	}
}

function isScope(text: string | undefined): text is ApiKeyScope {
	return (API_KEY_SCOPES as readonly (string | undefined)[]).includes(text);
}

async function openStore(): Promise<ApiKeyStore> {
	const reader = new EnvReader(process.env);
	const supabase = readSupabase(reader);
	reader.done();
	if (supabase !== null) {
		const { openSupabaseApiKeys } = await import('./api-keys-supabase.ts');
		return openSupabaseApiKeys({ ...supabase, clock: systemClock, random: systemRandom });
	}
	const folder = orchestratorDataDir('keys');
	mkdirSync(folder, { recursive: true, mode: 0o700 });
	return openApiKeys({ dataDir: folder, clock: systemClock });
}

try {
	const store = await openStore();
	try {
		console.log(await run(store, process.argv.slice(2)));
	} finally {
		await store.close();
	}
} catch (thrown) {
	console.error(asDistroError(thrown).message);
	process.exitCode = 1;
}
