/** Construction of grpc-js servers and credentials from the process's TLS, mTLS always. */

import * as grpc from '@grpc/grpc-js';
import { DistroError } from '../core/errors.ts';
import { type PeerIdentity, parseIdentity, type TlsSource } from './tls.ts';

/** Dead peers are noticed by these, in milliseconds. */
const KEEPALIVE = { 'grpc.keepalive_time_ms': 10_000, 'grpc.keepalive_timeout_ms': 5_000 } as const;

export function createGrpcServer(): grpc.Server {
	return new grpc.Server({ ...KEEPALIVE, 'grpc.max_receive_message_length': 1024 * 1024 });
}

/** Resolves to the port. */
export function bindGrpcServer(server: grpc.Server, options: { address: string; tls: TlsSource }): Promise<number> {
	const provider = certificatesOf(options.tls);
	const credentials = grpc.experimental.createCertificateProviderServerCredentials(provider, provider, true);
	return new Promise((resolve, reject) => {
		server.bindAsync(options.address, credentials, (error, port) => {
			if (error === null) resolve(port);
			else reject(new DistroError('invalid', `GRPC_PORT: can't listen on ${options.address}: ${error.message}`));
		});
	});
}

/** As grpc-js wants them: a running server follows renewed certificates, or nobody could join it any more after some weeks. */
function certificatesOf(tls: TlsSource): grpc.experimental.CertificateProvider {
	const ca = new Set<grpc.experimental.CaCertificateUpdateListener>();
	const identity = new Set<grpc.experimental.IdentityCertificateUpdateListener>();
	const caNow = () => ({ caCertificate: tls.material.ca });
	const identityNow = () => ({ certificate: tls.material.cert, privateKey: tls.material.key });
	tls.onChange(() => {
		for (const listener of ca) listener(caNow());
		for (const listener of identity) listener(identityNow());
	});
	return {
		addCaCertificateListener: (listener) => {
			ca.add(listener);
			// Not at once: grpc-js adds the server that is to hear of it only after this call.
			queueMicrotask(() => listener(caNow()));
		},
		removeCaCertificateListener: (listener) => void ca.delete(listener),
		addIdentityCertificateListener: (listener) => {
			identity.add(listener);
			queueMicrotask(() => listener(identityNow()));
		},
		removeIdentityCertificateListener: (listener) => void identity.delete(listener),
	};
}

export function grpcChannelCredentials(tls: TlsSource): grpc.ChannelCredentials {
	const { ca, cert, key } = tls.material;
	const { clusterId } = tls.identity;
	return grpc.credentials.createSsl(ca, key, cert, {
		checkServerIdentity: (_host, peer) => {
			try {
				const identity = parseIdentity(peer.subjectaltname);
				if (identity.clusterId === clusterId && identity.role === 'orchestrator') return undefined;
				return new DistroError('denied', 'this address is not an orchestrator of this cluster');
			} catch (error) {
				return error as Error;
			}
		},
	});
}

export const CLIENT_OPTIONS: grpc.ChannelOptions = {
	...KEEPALIVE,
	'grpc.keepalive_permit_without_calls': 1,
	// Names say nothing here, the certificate's URI does; an address as a TLS server name is not permitted.
	'grpc.ssl_target_name_override': 'orchestrator.distro',
};

/** Who calls, from the certificate of the call's connection. Throws `denied`. */
export function peerOf(call: { getAuthContext(): { sslPeerCertificate?: { subjectaltname?: string } } }): PeerIdentity {
	return parseIdentity(call.getAuthContext().sslPeerCertificate?.subjectaltname);
}
