/** Construction of grpc-js servers and credentials from the process's TLS, mTLS always. */

import * as grpc from '@grpc/grpc-js';
import { DistroError } from '../core/errors.ts';
import { type PeerIdentity, parseIdentity, type TlsSource } from './tls.ts';

/** Dead peers are noticed by these, in milliseconds. */
const KEEPALIVE = { 'grpc.keepalive_time_ms': 10_000, 'grpc.keepalive_timeout_ms': 5_000 } as const;

export function createGrpcServer(): grpc.Server {
	return new grpc.Server({ ...KEEPALIVE, 'grpc.max_receive_message_length': 1024 * 1024 });
}

/** New connections get the certificate, and are held against the authority, of the last reload. Resolves to the port. */
export function bindGrpcServer(server: grpc.Server, options: { address: string; tls: TlsSource }): Promise<number> {
	const provider = certificateProvider(options.tls);
	const credentials = grpc.experimental.createCertificateProviderServerCredentials(provider, provider, true);
	return new Promise((resolve, reject) => {
		server.bindAsync(options.address, credentials, (error, port) => {
			if (error === null) resolve(port);
			else reject(new DistroError('invalid', `GRPC_PORT: can't listen on ${options.address}: ${error.message}`));
		});
	});
}

/** The only way by which grpc-js takes up renewed certificates. */
function certificateProvider(tls: TlsSource): grpc.experimental.CertificateProvider {
	const caListeners = new Set<grpc.experimental.CaCertificateUpdateListener>();
	const identityListeners = new Set<grpc.experimental.IdentityCertificateUpdateListener>();
	const tell = () => {
		const { ca, cert, key } = tls.material;
		for (const listener of caListeners) listener({ caCertificate: ca });
		for (const listener of identityListeners) listener({ certificate: cert, privateKey: key });
	};
	tls.onChange(tell);
	return {
		addCaCertificateListener: (listener) => {
			caListeners.add(listener);
			// The server listens to its credentials only after this call.
			process.nextTick(tell);
		},
		removeCaCertificateListener: (listener) => caListeners.delete(listener),
		addIdentityCertificateListener: (listener) => {
			identityListeners.add(listener);
			process.nextTick(tell);
		},
		removeIdentityCertificateListener: (listener) => identityListeners.delete(listener),
	};
}

/** As they are now: ask again for each connection. */
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
