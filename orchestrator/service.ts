/**
 * The orchestrator's gRPC service for workers: registration and heartbeat streams. Generated messages stop here.
 *
 * Who calls is read from the certificate; a message never says it.
 */

import type * as grpc from '@grpc/grpc-js';
import { asDistroError, DistroError } from '../core/errors.ts';
import { type ClusterId, ID_BYTES, idBytes, idFromBytes, parseId, type ShardId, type WorkerId } from '../core/ids.ts';
import { HEARTBEAT_MS } from '../core/limits.ts';
import { peerOf } from '../platform/grpc.ts';
import { toServiceError } from '../platform/rpc-errors.ts';
import {
	type ClusterServiceServer,
	ClusterServiceService,
	type Finding,
	type HeartbeatRequest,
	type HeartbeatResponse,
	type ScrubProgress,
} from '../proto/gen/distro/v1/cluster.ts';
import type { KeyDelivery } from './key-delivery.ts';
import type { ScrubDesk, ScrubFinding, ScrubReport } from './scrub.ts';
import type { WorkerRegistry } from './workers.ts';

export interface ClusterServiceDeps {
	readonly clusterId: ClusterId;
	readonly workers: WorkerRegistry;
	readonly scrub: Pick<ScrubDesk, 'stream'>;
	readonly keys: Pick<KeyDelivery, 'heard' | 'joined'>;
	readonly onWorker: (event: 'joined' | 'left', name: string) => void;
}

const NAME = /^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$/;
const ADDRESS = /^[^\s:/]+:\d{1,5}$/;
const ZONE_MAX = 63;

export function addClusterService(server: grpc.Server, deps: ClusterServiceDeps): void {
	const workerOf = (call: Parameters<typeof peerOf>[0]): { workerId: WorkerId; certified?: string } => {
		const peer = peerOf(call);
		if (peer.clusterId !== deps.clusterId || peer.role !== 'worker') {
			throw new DistroError('denied', 'only workers of this cluster may call this');
		}
		return { workerId: parseId<WorkerId>(peer.id, 'the worker id in the certificate'), certified: peer.name };
	};
	const service: ClusterServiceServer = {
		register: async (call, answer) => {
			try {
				const { name, address, zone, receiptKey } = call.request;
				if (!NAME.test(name))
					throw new DistroError('invalid', 'a worker name is lower-case letters, digits and hyphens');
				if (!ADDRESS.test(address)) throw new DistroError('invalid', 'a worker address is host:port');
				if (zone.length > ZONE_MAX) throw new DistroError('invalid', `a zone has at most ${ZONE_MAX} characters`);
				if (receiptKey.length !== 32) throw new DistroError('invalid', 'a receipt key has 32 bytes');
				const { workerId, certified = name } = workerOf(call);
				if (name !== certified)
					throw new DistroError('denied', `the certificate is for ${certified}, and not for ${name}`);
				await deps.workers.register({ workerId, name, address, zone, receiptKey: Buffer.from(receiptKey) });
				deps.keys.joined(workerId);
				answer(null, { heartbeatMs: HEARTBEAT_MS });
			} catch (error) {
				answer(toServiceError(asDistroError(error)));
			}
		},
		heartbeat: (call: grpc.ServerDuplexStream<HeartbeatRequest, HeartbeatResponse>) => {
			try {
				const { workerId } = workerOf(call);
				const heartbeat = deps.workers.heartbeat(workerId);
				const name = deps.workers.name(workerId);
				deps.onWorker('joined', name);
				let closed = false;
				const close = () => {
					if (closed) return;
					closed = true;
					heartbeat.closed();
					deps.onWorker('left', name);
				};
				const scrubbed = deps.scrub.stream(workerId);
				call.on('data', (beat: HeartbeatRequest) => {
					const { findings, scrubbedSinceMs, scrub, keysDigest, ...stats } = beat;
					heartbeat.beat(stats);
					if (stats.online) deps.keys.heard(workerId, Buffer.from(keysDigest));
					const answer = scrubbed(reportOf(scrub, scrubbedSinceMs), findings.filter(isFinding).map(findingOf));
					call.write({
						acknowledgedShardIds: answer.acknowledged.map(idBytes),
						scrubPaused: answer.paused,
						scrubPass: answer.pass,
						scrubRevision: answer.revision,
					});
				});
				call.on('end', () => {
					close();
					call.end();
				});
				call.on('cancelled', close);
				call.on('error', close);
				call.on('close', close);
			} catch (error) {
				call.emit('error', toServiceError(asDistroError(error)));
			}
		},
	};
	server.addService(ClusterServiceService, service);
}

function reportOf(scrub: ScrubProgress | undefined, sinceMs: number): ScrubReport {
	return { pass: 0, shardsDone: 0, shardsTotal: 0, running: false, ...scrub, sinceMs };
}

/** A worker's mistake must not end this process. */
function isFinding({ shardId }: Finding): boolean {
	return shardId.length === ID_BYTES;
}

function findingOf({ shardId, missing, detail }: Finding): ScrubFinding {
	return { shardId: idFromBytes<ShardId>(shardId), kind: missing ? 'missing' : 'corrupt', detail };
}
