/**
 * A worker makes itself known to every orchestrator and keeps one heartbeat stream open to each, for ever: a stream that
 * breaks is opened again after a growing wait, with a fresh channel, so that renewed certificates are used.
 */

import { type ChannelCredentials, type ClientDuplexStream, Metadata } from '@grpc/grpc-js';
import { asDistroError, DistroError } from '../core/errors.ts';
import { idBytes, idFromBytes, type ShardId } from '../core/ids.ts';
import type { Clock, Random } from '../core/ports.ts';
import { backoffMs } from '../core/retry.ts';
import { CLIENT_OPTIONS } from '../platform/grpc.ts';
import { errorFromServiceError } from '../platform/rpc-errors.ts';
import {
	ClusterServiceClient,
	type HeartbeatRequest,
	type HeartbeatResponse,
	type RegisterRequest,
} from '../proto/gen/distro/v1/cluster.ts';
import type { ScrubOrders, ScrubReport } from './scrub.ts';
import type { StoreStats } from './store.ts';

const REGISTER_TIMEOUT_MS = 5_000;
/** Each beat is answered. Who answers none for so long may be alive and have forgotten the stream: dial again. */
const ANSWER_TIMEOUT_MS = 10_000;
const RETRY_BASE_MS = 100;
const RETRY_MAX_MS = 5_000;

export interface HeartbeatDeps {
	/** host:port of each. */
	readonly orchestrators: readonly string[];
	/** Asked again for each connection. */
	readonly credentials: () => ChannelCredentials;
	/** Asked again for each connection. */
	readonly registration: () => RegisterRequest;
	/** Rejects while the volume is offline. */
	readonly stats: () => Promise<StoreStats>;
	/** Digest of the keys record on the volume; empty: none. */
	readonly keysDigest: () => Promise<Buffer>;
	readonly scrub: { report(): ScrubReport; heard(orders: ScrubOrders): void };
	readonly clock: Clock;
	readonly random: Random;
	/** How long a stream may go without an answer. */
	readonly answerTimeoutMs?: number;
	readonly log: { info(fields: object, text: string): void; warn(fields: object, text: string): void };
}

export interface RunningHeartbeat {
	/** Orchestrators that have answered on their open stream. */
	connected(): number;
	/** What it registered with has changed: it does so again. */
	registerAgain(): void;
	stop(): Promise<void>;
}

export function startHeartbeat(deps: HeartbeatDeps): RunningHeartbeat {
	const links = deps.orchestrators.map((address) => new Link(deps, address));
	for (const link of links) link.run();
	return {
		connected: () => links.filter((link) => link.connected).length,
		registerAgain: () => {
			for (const link of links) link.registerAgain();
		},
		stop: async () => {
			await Promise.all(links.map((link) => link.stop()));
		},
	};
}

class Link {
	connected = false;
	readonly #deps: HeartbeatDeps;
	readonly #address: string;
	#client: ClusterServiceClient | null = null;
	#stream: ClientDuplexStream<HeartbeatRequest, HeartbeatResponse> | null = null;
	#stopped = false;
	#wake: () => void = () => {};
	#loop: Promise<void> = Promise.resolve();

	constructor(deps: HeartbeatDeps, address: string) {
		this.#deps = deps;
		this.#address = address;
	}

	run(): void {
		this.#loop = this.#connectForever();
	}

	/** By a new connection. */
	registerAgain(): void {
		this.#stream?.end();
	}

	async stop(): Promise<void> {
		this.#stopped = true;
		this.#wake();
		this.#stream?.end();
		this.#client?.close();
		await this.#loop;
	}

	async #connectForever(): Promise<void> {
		const { clock, random, log } = this.#deps;
		for (let attempt = 0; !this.#stopped; attempt++) {
			try {
				await this.#connect(() => {
					attempt = 0;
				});
			} catch (error) {
				const { kind, message } = asDistroError(error);
				if (!this.#stopped && attempt % 10 === 0)
					log.warn({ orchestrator: this.#address, kind, reason: message }, 'no orchestrator');
			}
			if (this.#stopped) return;
			const waitMs = RETRY_BASE_MS + backoffMs(attempt, { baseMs: RETRY_BASE_MS, maxMs: RETRY_MAX_MS, random });
			await new Promise<void>((resolve) => {
				const cancel = clock.schedule(waitMs, resolve);
				this.#wake = () => {
					cancel();
					resolve();
				};
			});
		}
	}

	/** One connection from its beginning to its end. */
	async #connect(onConnected: () => void): Promise<void> {
		const client = new ClusterServiceClient(this.#address, this.#deps.credentials(), CLIENT_OPTIONS);
		this.#client = client;
		try {
			const { heartbeatMs } = await this.#register(client);
			await this.#beat(client, { heartbeatMs, onConnected });
		} finally {
			this.connected = false;
			client.close();
		}
	}

	#register(client: ClusterServiceClient): Promise<{ heartbeatMs: number }> {
		const options = { deadline: this.#deps.clock.nowMs() + REGISTER_TIMEOUT_MS };
		return new Promise((resolve, reject) => {
			client.register(this.#deps.registration(), new Metadata(), options, (error, response) => {
				if (error === null) resolve(response);
				else reject(errorFromServiceError(error));
			});
		});
	}

	#beat(client: ClusterServiceClient, o: { heartbeatMs: number; onConnected: () => void }): Promise<void> {
		const { clock, stats, keysDigest, scrub, log, answerTimeoutMs = ANSWER_TIMEOUT_MS } = this.#deps;
		return new Promise((resolve, reject) => {
			const stream = client.heartbeat();
			this.#stream = stream;
			let cancel = () => {};
			let cancelWait = () => {};
			let over = false;
			const end = (settle: () => void) => {
				if (over) return;
				over = true;
				cancel();
				cancelWait();
				this.#stream = null;
				settle();
			};
			const waitForAnswer = () => {
				cancelWait();
				cancelWait = clock.schedule(answerTimeoutMs, () => {
					end(() => reject(new DistroError('timeout', `no beat was answered for ${answerTimeoutMs} ms`)));
					stream.cancel();
				});
			};
			const send = async () => {
				const now = await stats().then(
					(figures) => ({ ...figures, online: true }),
					() => ({ bytesTotal: 0, bytesUsed: 0, bytesFree: 0, shards: 0, online: false }),
				);
				const digest = now.online ? await keysDigest() : Buffer.alloc(0);
				if (over) return;
				stream.write({ ...now, keysDigest: digest, ...scrubbed(scrub.report(), now.online) });
				cancel = clock.schedule(o.heartbeatMs, send);
			};
			stream.on('data', (answer: HeartbeatResponse) => {
				if (over) return;
				waitForAnswer();
				scrub.heard({
					acknowledged: answer.acknowledgedShardIds.map((id) => idFromBytes<ShardId>(id)),
					paused: answer.scrubPaused,
					pass: answer.scrubPass,
					revision: answer.scrubRevision,
				});
				if (this.connected) return;
				this.connected = true;
				o.onConnected();
				log.info({ orchestrator: this.#address }, 'joined');
			});
			stream.on('error', (error) => end(() => reject(errorFromServiceError(error as never))));
			stream.on('end', () => end(resolve));
			waitForAnswer();
			send();
		});
	}
}

function scrubbed(
	report: ScrubReport,
	online: boolean,
): Pick<HeartbeatRequest, 'findings' | 'scrubbedSinceMs' | 'scrub'> {
	const { findings, sinceMs, pass, shardsDone, shardsTotal, running } = report;
	// A volume that is gone proves nothing, not even what was found before.
	const told = online ? findings : [];
	return {
		findings: told.map(({ shardId, kind, detail }) => ({
			shardId: idBytes(shardId),
			missing: kind === 'missing',
			detail,
		})),
		scrubbedSinceMs: sinceMs,
		scrub: { pass, shardsDone, shardsTotal, running },
	};
}
