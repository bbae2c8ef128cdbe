/** An API server's token signer: keys as /openid/v1/jwks shows them, and projected tokens, right or wrong as a test wants. */

import { generateKeyPairSync, type KeyObject, sign } from 'node:crypto';

export const RULES = {
	issuer: 'https://kubernetes.default.svc.cluster.local',
	audience: 'distro-enrolment',
	namespace: 'storage',
	serviceAccount: 'demo-worker',
	podPrefix: 'demo-worker-',
	domains: ['demo-worker.storage.svc', 'demo-worker.storage.svc.cluster.local'],
} as const;

export interface TokenSigner {
	readonly kid: string;
	readonly algorithm: 'RS256' | 'ES256';
	readonly publicKey: KeyObject;
	/** As jwks.json has it. */
	readonly jwk: object;
	/** For `pod`, with these claims and header fields in the place of right ones. */
	token(pod: string, change?: { claims?: object; header?: object; nowMs?: number }): string;
}

export function tokenSigner(kid: string, algorithm: 'RS256' | 'ES256' = 'RS256', bits = 2048): TokenSigner {
	const { privateKey, publicKey } =
		algorithm === 'RS256'
			? generateKeyPairSync('rsa', { modulusLength: bits })
			: generateKeyPairSync('ec', { namedCurve: 'P-256' });
	return {
		kid,
		algorithm,
		publicKey,
		jwk: { ...publicKey.export({ format: 'jwk' }), use: 'sig', kid, alg: algorithm },
		token: (pod, { claims = {}, header = {}, nowMs = Date.now() } = {}) => {
			const nowS = Math.floor(nowMs / 1000);
			const text = [
				{ alg: algorithm, kid, ...header },
				{
					aud: [RULES.audience],
					exp: nowS + 600,
					iat: nowS,
					nbf: nowS,
					iss: RULES.issuer,
					jti: '1e1f2a3b-0000-4000-8000-000000000000',
					'kubernetes.io': {
						namespace: RULES.namespace,
						node: { name: 'node-1', uid: '0' },
						pod: { name: pod, uid: '1' },
						serviceaccount: { name: RULES.serviceAccount, uid: '2' },
					},
					sub: `system:serviceaccount:${RULES.namespace}:${RULES.serviceAccount}`,
					...claims,
				},
			]
				.map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
				.join('.');
			const signature = sign('sha256', Buffer.from(text), { key: privateKey, dsaEncoding: 'ieee-p1363' });
			return `${text}.${signature.toString('base64url')}`;
		},
	};
}

export function jwksOf(signers: readonly TokenSigner[]): string {
	return JSON.stringify({ keys: signers.map(({ jwk }) => jwk) });
}
