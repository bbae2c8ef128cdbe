/** The worker process: reads its environment, builds its parts, serves, registers. The only place that constructs. */

import { once } from 'node:events';
import type { Http2Session } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { Counter, Gauge } from 'prom-client';
import { rawPublicKey } from '../core/crypto/sign.ts';
import { DistroError } from '../core/errors.ts';
import { parseId, type WorkerId } from '../core/ids.ts';
import { LARGE_CELL_BYTES } from '../core/limits.ts';
import { systemClock, systemRandom } from '../platform/clock.ts';
import { grpcChannelCredentials } from '../platform/grpc.ts';
import { type Lifecycle, runProcess } from '../platform/lifecycle.ts';
import { listening } from '../platform/listen.ts';
import { createLogger } from '../platform/log.ts';
import { ArenaPool, alignedBuffer } from '../platform/memory-pool.ts';
import { createMetricsServer, createRegistry } from '../platform/metrics.ts';
import { createShardServer } from '../platform/shard-server.ts';
import { parseIdentity, TlsSource } from '../platform/tls.ts';
import { readConfig } from './config.ts';
import { Enrolment } from './enrol.ts';
import { type RunningHeartbeat, startHeartbeat } from './heartbeat.ts';
import { loadOrCreateIdentity } from './identity.ts';
import { VolumeKeys } from './keys.ts';
import { Scrubber } from './scrub.ts';
import { shardHandlers } from './service.ts';
import { openDiskStore } from './store-disk.ts';
import { Zone } from './zone.ts';

await runProcess('worker', async (lifecycle: Lifecycle) => {
	const config = readConfig(process.env);
	const log = createLogger({ role: 'worker', name: config.name, level: config.logLevel });
	const identity = loadOrCreateIdentity(config.dataDir, systemRandom);
	const registry = createRegistry({ role: 'worker', name: config.name });

	// What it can't serve without may take long to come: whoever asks meanwhile hears what it waits for.
	const enrolment =
		config.enrol === null
			? null
			: new Enrolment({
					...config.enrol,
					tlsDir: config.tlsDir,
					identity,
					clock: systemClock,
					random: systemRandom,
					log,
				});
	let heartbeat: RunningHeartbeat | null = null;
	const zone =
		config.zoneFile === null
			? null
			: new Zone({
					file: config.zoneFile,
					dataDir: config.dataDir,
					clock: systemClock,
					onChange: () => heartbeat?.registerAgain(),
				});
	let unready = async () => ['starting'];
	let loaded = (): object => ({ certificate: null, ca: [] });
	const http = createMetricsServer({
		registry,
		ready: async () => {
			const reasons = [
				...(enrolment === null || enrolment.reason === null ? [] : [`waiting for a certificate: ${enrolment.reason}`]),
				...(zone !== null && zone.zone === null ? [`waiting for ZONE_FILE ${config.zoneFile} to say the zone`] : []),
				...(await unready()),
			];
			return { ok: reasons.length === 0, reasons };
		},
		identity: () => ({ role: 'worker', id: identity.workerId, name: config.name, ...loaded() }),
	});
	lifecycle.onStop('http', () => void http.close());
	lifecycle.onStop('certificate and zone', () => {
		enrolment?.stop();
		zone?.stop();
	});
	http.listen(config.httpPort, config.httpHost);
	await listening(http, `HTTP_PORT ${config.httpPort}`);

	const zoneKnown = zone?.start();
	if (zone !== null && zone.zone === null) log.info({ file: config.zoneFile }, 'waiting for the zone');
	await Promise.all([enrolment?.start(), zoneKnown]);
	const tls = new TlsSource(config.tlsDir, { caFile: config.tlsCaFile });
	enrolment?.onRenewed(() => tls.reload());
	loaded = () => tls.report();
	const { clusterId, role, id } = tls.identity;
	if (role !== 'worker' || parseId<WorkerId>(id, 'the worker id in the certificate') !== identity.workerId) {
		throw new DistroError(
			'denied',
			`the certificate in ${config.tlsDir} is for ${role} ${id}, and the volume ${config.dataDir} belongs to worker ${identity.workerId}: give this worker its own certificate`,
		);
	}
	new Gauge({
		name: 'distro_certificate_expiry_timestamp_seconds',
		help: 'When the process certificate ends',
		registers: [registry],
		collect() {
			this.set(tls.notAfterMs / 1000);
		},
	});
	const store = await openDiskStore({
		dataDir: config.dataDir,
		workerId: identity.workerId,
		clock: systemClock,
		reserveBytes: config.diskReserveBytes,
		...(config.capacityBytes === null ? {} : { capacityBytes: config.capacityBytes }),
	});
	const keys = new VolumeKeys({ store, clusterId });
	const pool = new ArenaPool(config.memoryBudgetBytes, { clock: systemClock });
	const bytes = new Counter({
		name: 'distro_worker_bytes_total',
		help: 'Bytes of cells received and sent',
		labelNames: ['direction'],
		registers: [registry],
	});
	const calls = new Counter({
		name: 'distro_worker_calls_total',
		help: 'Finished calls by method and outcome',
		labelNames: ['method', 'outcome'],
		registers: [registry],
	});
	new Gauge({
		name: 'distro_worker_memory_budget_used_bytes',
		help: 'Bytes in flight now',
		registers: [registry],
		collect() {
			this.set(pool.usedBytes);
		},
	});

	const scrubbed = new Counter({
		name: 'distro_worker_scrubbed_shards_total',
		help: 'Shards read again, by what they were',
		labelNames: ['outcome'],
		registers: [registry],
	});
	const scrubbedBytes = new Counter({
		name: 'distro_worker_scrubbed_bytes_total',
		help: 'Bytes read again',
		registers: [registry],
	});
	const scrub = new Scrubber({
		store,
		pool,
		clock: systemClock,
		random: systemRandom,
		// Of its own: transfers are never short of memory for its sake.
		buffer: alignedBuffer(LARGE_CELL_BYTES),
		periodMs: config.scrubPeriodMs,
		ceiling: config.scrubRate,
		onShard: (outcome, count) => {
			scrubbed.inc({ outcome });
			scrubbedBytes.inc(count);
		},
		log,
	});
	new Gauge({
		name: 'distro_worker_scrubbed_since_timestamp_seconds',
		help: 'Every shard was verified or written after this; 0: not yet',
		registers: [registry],
		collect() {
			this.set(scrub.report().sinceMs / 1000);
		},
	});

	const server = createShardServer({
		tls: tls.serverTlsOptions(),
		handlers: shardHandlers({
			workerId: identity.workerId,
			store,
			keys,
			pool,
			clock: systemClock,
			receiptKey: identity.receiptKey,
			authorize: (certificate) => {
				const peer = parseIdentity(certificate.subjectaltname);
				if (peer.clusterId !== clusterId || peer.role !== 'orchestrator') {
					throw new DistroError('denied', 'only orchestrators of this cluster may call a worker');
				}
			},
			onBytes: (direction, count) => bytes.inc({ direction }, count),
		}),
		observe: (method, outcome) => calls.inc({ method, outcome }),
	});
	tls.follow(server);
	const sessions = new Set<Http2Session>();
	server.on('session', (session) => {
		sessions.add(session);
		session.once('close', () => sessions.delete(session));
	});
	server.on('tlsClientError', (error: Error) => log.warn({ reason: error.message }, 'refused a connection'));
	server.listen(config.grpcPort, config.grpcHost);
	await listening(server, `GRPC_PORT ${config.grpcPort}`);
	const port = (server.address() as AddressInfo).port;
	const address = config.advertise ?? `${config.grpcHost}:${port}`;

	const beats = startHeartbeat({
		orchestrators: config.orchestrators,
		credentials: () => grpcChannelCredentials(tls),
		registration: () => ({
			name: config.name,
			address,
			zone: zone?.zone ?? config.zone,
			receiptKey: rawPublicKey(identity.receiptKey),
		}),
		stats: () => store.stats(),
		keysDigest: () => keys.digest(),
		scrub,
		clock: systemClock,
		random: systemRandom,
		log,
	});
	heartbeat = beats;
	scrub.start();

	let stopping = false;
	unready = async () => {
		if (stopping) return ['stopping'];
		const online = await store.stats().then(
			() => true,
			() => false,
		);
		return [
			...(online ? [] : ['the volume is offline']),
			...(beats.connected() > 0 ? [] : ['no orchestrator answers']),
		];
	};

	lifecycle.onStop('store', () => store.close());
	lifecycle.onStop('scrub', () => scrub.stop());
	lifecycle.onStop('shards', async () => {
		const closed = once(server, 'close');
		server.close();
		for (const session of sessions) session.close();
		await closed;
	});
	lifecycle.onStop('heartbeat', () => {
		stopping = true;
		return beats.stop();
	});
	log.info(
		{ workerId: identity.workerId, address, http: `${config.httpHost}:${(http.address() as AddressInfo).port}` },
		'serving',
	);
	return log;
});
