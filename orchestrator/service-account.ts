/**
 * Which pod sent a projected service-account token: checked here, by the keys and rules that the operator keeps in a folder
 * (`jwks.json`, `settings.json`), so that the orchestrator needs no right at the Kubernetes API and does not wait for it.
 *
 * The price: a token stays good until it ends, also when its pod is gone. So they are to be short (ten minutes).
 */

import { createPublicKey, type KeyObject, verify } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DistroError } from '../core/errors.ts';

export interface AccountRules {
	readonly issuer: string;
	readonly audience: string;
	readonly namespace: string;
	readonly serviceAccount: string;
	/** Workers' pods are called this and an ordinal. */
	readonly podPrefix: string;
	/** A worker's certificate is for `<pod>.<each of these>`. */
	readonly domains: readonly string[];
}

/** The API server's public keys by their ids. */
export type TokenKeys = ReadonlyMap<string, { readonly key: KeyObject; readonly algorithm: keyof typeof ALGORITHMS }>;

/** A token of a projected volume has about 1200 characters. */
export const TOKEN_MAX_CHARS = 8192;
const SKEW_S = 30;
const ORDINAL = /^(0|[1-9]\d{0,3})$/;
const DNS_NAME = /^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/;
const DOMAINS_MAX = 8;
const RSA_MIN_BITS = 2048;
/** What API servers sign with. A token names one, and its key must be of that kind. */
const ALGORITHMS = {
	RS256: (key: KeyObject) =>
		key.asymmetricKeyType === 'rsa' && (key.asymmetricKeyDetails?.modulusLength ?? 0) >= RSA_MIN_BITS,
	ES256: (key: KeyObject) => key.asymmetricKeyType === 'ec' && key.asymmetricKeyDetails?.namedCurve === 'prime256v1',
} as const;

/** Read anew each time: it is seldom asked for, and rotated keys must count. Throws `unavailable`. */
export async function readAccountFolder(folder: string): Promise<{ rules: AccountRules; keys: TokenKeys }> {
	try {
		const [jwks, settings] = await Promise.all(
			['jwks.json', 'settings.json'].map((file) => readFile(join(folder, file), 'utf8')),
		);
		return { rules: parseRules(settings as string), keys: parseKeys(jwks as string) };
	} catch (cause) {
		const { message } = cause as Error;
		throw new DistroError('unavailable', `jwks.json and settings.json in ENROL_DIR are not right: ${message}`, {
			cause,
		});
	}
}

export function parseRules(text: string): AccountRules {
	const { issuer, audience, namespace, serviceAccount, podPrefix, domains } = JSON.parse(text) as AccountRules;
	for (const [name, value] of Object.entries({ issuer, audience, namespace, serviceAccount, podPrefix })) {
		if (typeof value !== 'string' || value === '') throw new DistroError('invalid', `"${name}" must be a text`);
	}
	const areDomains =
		Array.isArray(domains) &&
		domains.length <= DOMAINS_MAX &&
		domains.every((domain) => typeof domain === 'string' && DNS_NAME.test(domain));
	if (!areDomains) throw new DistroError('invalid', `"domains" must be a list of at most ${DOMAINS_MAX} DNS names`);
	return { issuer, audience, namespace, serviceAccount, podPrefix, domains };
}

/** From a JSON Web Key Set (RFC 7517); keys that no token of ours can be signed by are left out. */
export function parseKeys(text: string): TokenKeys {
	const { keys } = JSON.parse(text) as { keys?: unknown };
	const found: [string, { key: KeyObject; algorithm: keyof typeof ALGORITHMS }][] = [];
	for (const jwk of Array.isArray(keys) ? keys : []) {
		const { kid, use = 'sig', alg } = jwk as Record<string, unknown>;
		if (typeof kid !== 'string' || use !== 'sig') continue;
		const key = importKey(jwk);
		for (const algorithm of ['RS256', 'ES256'] as const) {
			const fits = key !== null && (alg === undefined || alg === algorithm) && ALGORITHMS[algorithm](key);
			if (fits) found.push([kid, { key, algorithm }]);
		}
	}
	if (found.length === 0) throw new DistroError('invalid', 'no key for RS256 or ES256');
	return new Map(found);
}

function importKey(jwk: unknown): KeyObject | null {
	try {
		return createPublicKey({ key: jwk as never, format: 'jwk' });
	} catch {
		return null;
	}
}

/** The pod's name. Throws `denied`, with the reason, for every token that is not one of a worker's pod at this time. */
export function podOfToken(token: string, o: { rules: AccountRules; keys: TokenKeys; nowMs: number }): string {
	const { rules, keys } = o;
	const parts = token.split('.');
	if (token.length > TOKEN_MAX_CHARS || parts.length !== 3) throw refused('it is no signed JWT');
	const [head, body, signature] = parts as [string, string, string];
	const header = objectOf(head);
	const known = typeof header.kid === 'string' ? keys.get(header.kid) : undefined;
	if (known === undefined) throw refused('its key is none of the API server’s that are known here');
	// What the header says is compared and never chosen from: "none" and keys of another kind get nowhere.
	if (header.alg !== known.algorithm || header.crit !== undefined)
		throw refused('its algorithm is not that of its key');
	const signed = Buffer.from(`${head}.${body}`, 'latin1');
	const key = { key: known.key, dsaEncoding: 'ieee-p1363' } as const;
	if (!verify('sha256', signed, key, Buffer.from(signature, 'base64url'))) throw refused('its signature is wrong');

	const claims = objectOf(body);
	const nowS = o.nowMs / 1000;
	if (!(typeof claims.exp === 'number' && nowS < claims.exp + SKEW_S)) throw refused('it has expired');
	const notBefore = claims.nbf ?? 0;
	if (!(typeof notBefore === 'number' && notBefore - SKEW_S <= nowS)) throw refused('it is not good yet');
	if (claims.iss !== rules.issuer) throw refused('another issuer made it');
	const audiences = Array.isArray(claims.aud) ? claims.aud : [claims.aud];
	if (!audiences.includes(rules.audience)) throw refused('it is for another audience');
	if (claims.sub !== `system:serviceaccount:${rules.namespace}:${rules.serviceAccount}`) {
		throw refused('it is of another service account');
	}
	const { namespace, pod } = record(claims['kubernetes.io']);
	const { name } = record(pod);
	if (namespace !== rules.namespace || typeof name !== 'string')
		throw refused('it is bound to no pod of this namespace');
	if (!name.startsWith(rules.podPrefix) || !ORDINAL.test(name.slice(rules.podPrefix.length))) {
		throw refused('it is bound to a pod that is no worker');
	}
	return name;
}

function refused(why: string): DistroError {
	return new DistroError('denied', `the service-account token is refused: ${why}`);
}

function objectOf(part: string): Record<string, unknown> {
	try {
		return record(JSON.parse(Buffer.from(part, 'base64url').toString('utf8')));
	} catch {
		throw refused('it is no signed JWT');
	}
}

function record(value: unknown): Record<string, unknown> {
	return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}
