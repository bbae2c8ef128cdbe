/** The orchestrator process: reads its environment, builds its parts, serves. The only place that constructs. */

import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { DistroError } from '../core/errors.ts';
import { MEND_BUDGET_MIN_BYTES, MEND_BUDGET_PART, RECONCILE_AGE_MS } from '../core/limits.ts';
import { systemClock, systemRandom } from '../platform/clock.ts';
import { bindGrpcServer, createGrpcServer } from '../platform/grpc.ts';
import { type Lifecycle, runProcess } from '../platform/lifecycle.ts';
import { listening } from '../platform/listen.ts';
import { createLogger } from '../platform/log.ts';
import { ArenaPool } from '../platform/memory-pool.ts';
import { GrpcShardTransport } from '../platform/shard-transport.ts';
import { TlsSource } from '../platform/tls.ts';
import { type ApiKeyStore, openApiKeys } from './api-keys.ts';
import { auditJob } from './audit.ts';
import { shardDrawer } from './audit-draw.ts';
import { Cluster } from './cluster.ts';
import { ClusterKeys } from './cluster-keys.ts';
import { METADATA_FILE, readConfig } from './config.ts';
import { DeletionLog } from './deletions.ts';
import { EnrolDesk } from './enrol.ts';
import { Findings } from './findings.ts';
import { withGivenKey } from './given-key.ts';
import { createAuthenticator, loopbackAuthenticator } from './http/auth.ts';
import { createEnrolServer } from './http/enrol.ts';
import { createHttpServer } from './http/server.ts';
import { Issuer } from './issuer.ts';
import { JobControl } from './job-control.ts';
import { deletionsJob, expireIntentsJob, type Job, runJobs, trashJob } from './jobs.ts';
import { KeyDelivery } from './key-delivery.ts';
import { Keyring } from './keyring.ts';
import { keysJob } from './keys-job.ts';
import { exclusive } from './leases.ts';
import { drainJob, isNeedless, type MendOutcome, rebalanceJob, renewTrailersJob, repairJob } from './mend.ts';
import { createOrchestratorMetrics } from './metrics.ts';
import { ObjectService } from './objects.ts';
import { waitForKnownWorkers } from './readiness.ts';
import { reconcileJob } from './reconcile.ts';
import { LookAgain, type ReencodeOutcome, reencodeJob } from './reencoding.ts';
import { refuseHalfRestored } from './restore-mark.ts';
import { rewrapJob } from './rewrap.ts';
import { ScrubDesk } from './scrub.ts';
import { addClusterService } from './service.ts';
import { readAccountFolder } from './service-account.ts';
import { snapshotJob, viewSnapshots } from './snapshots.ts';
import type { MetadataStore } from './store.ts';
import { openStoreClock, SYNC_EVERY_MS } from './store-clock.ts';
import { rememberingReads } from './store-remembering.ts';
import { openSqliteStore } from './store-sqlite.ts';
import { Watch } from './watch.ts';
import { EXCHANGE_ALONE_MS, EXCHANGE_MS, WorkerRegistry } from './workers.ts';

/** How long uploads and downloads may finish after the word to stop. */
const DRAIN_MS = 8_000;
const CLOSE_IDLE_MS = 100;
/** Repair gives way to people whose last transfer is not longer ago. */
const BUSY_MOMENT_MS = 1_000;
/** Workers hear after this that they are to scrub now, or to pause. */
const SCRUB_ORDERS_MS = 1_000;

await runProcess('orchestrator', async (lifecycle: Lifecycle) => {
	const config = readConfig(process.env, systemRandom);
	const log = createLogger({ role: 'orchestrator', name: config.name, level: config.logLevel });
	if (config.masterKeyMade !== null) log.warn({}, config.masterKeyMade);
	const tls = new TlsSource(config.tlsDir, { caFile: config.tlsCaFile });
	const { clusterId, role, id } = tls.identity;
	if (role !== 'orchestrator') throw new DistroError('denied', `the certificate in ${config.tlsDir} is for a ${role}`);
	const random = systemRandom;

	const store = await openStore();
	await refuseHalfRestored(store);
	const storeClock = config.supabase === null ? null : await openStoreClock(store, systemClock);
	const clock = storeClock ?? systemClock;
	const keyring = await Keyring.open({ store, master: config.master, clusterId, clock, random });
	const workers = new WorkerRegistry({
		store,
		clock,
		lostAfterMs: config.lostAfterMs,
		shared: config.supabase !== null,
		onNameTaken: ({ name, workerId, formerly }) =>
			log.warn(
				{ name, worker: workerId, before: formerly.workerId, nowCalled: formerly.name },
				'a new worker took over a name: its volume is another one',
			),
	});
	await workers.read();
	// Before the first of them can come back, and is seen later than the others.
	const awaited = waitForKnownWorkers(
		workers.rows().map(({ row }) => row),
		{ clock, isReady: (workerId) => workers.state(workerId) === 'ready' },
	);
	const transport = new GrpcShardTransport({ tls, connections: config.workerConnections });
	// Repair has a part of its own: neither it nor people's transfers can starve the other.
	const mendBytes = Math.max(MEND_BUDGET_MIN_BYTES, Math.floor(config.memoryBudgetBytes * MEND_BUDGET_PART));
	const mendPool = new ArenaPool(mendBytes, { clock });
	const pool = new ArenaPool(config.memoryBudgetBytes - mendBytes, { clock });
	const jobControl = new JobControl({ store, clock });
	const metrics = createOrchestratorMetrics({
		name: config.name,
		pools: { clients: pool, repair: mendPool },
		workers,
		store,
		jobs: jobControl,
		tls,
	});
	const findings = new Findings({
		store,
		clock,
		onReport: (kind, workerId) => {
			metrics.findings.inc({ kind });
			log.warn({ kind, worker: workers.name(workerId) }, 'a shard is not what was stored: queued for repair');
		},
	});
	const { policy, inlineMaxBytes } = config;
	const deps = { clusterId, store, workers, transport, keyring, clock, random, policy, inlineMaxBytes, pool, findings };
	const lookAgain = new LookAgain({ store, clock });
	const objects = new ObjectService({
		...deps,
		trashMs: config.trashMs,
		onEncoding: (k, n) => metrics.encodings.inc({ code: `${k}+${n - k}` }),
		onMayNotSuit: () => lookAgain.tell(),
	});

	const scrub = new ScrubDesk({ findings });
	const keys = new KeyDelivery({
		store,
		workers,
		transport,
		clock,
		record: () => keyring.record,
		refresh: () => keyring.refresh(),
		onFailed: (workerId, error) =>
			log.warn({ worker: workers.name(workerId), err: error }, 'could not write the keys to a volume yet'),
	});
	const grpc = createGrpcServer();
	addClusterService(grpc, {
		clusterId,
		workers,
		scrub,
		keys,
		onWorker: (event, worker) => log.info({ worker }, event === 'joined' ? 'worker joined' : 'worker left'),
	});
	const grpcPort = await bindGrpcServer(grpc, { address: `${config.grpcHost}:${config.grpcPort}`, tls });

	const enrolment = await openEnrolment();

	const keptKeys = await openKeys();
	const apiKeys = config.adminKey === null ? keptKeys : withGivenKey(keptKeys, config.adminKey);
	const loopback = ['127.0.0.1', '::1', 'localhost'].includes(config.httpHost);
	const needsKeys = config.auth === 'keys' || (config.auth === 'auto' && !loopback);
	if (needsKeys && (await apiKeys.apiKeys()).length === 0) {
		throw new DistroError(
			'denied',
			`it would listen on ${config.httpHost} with no API key: make one (npm run keys -- create --scope admin --label me), or set AUTH=off if anyone who reaches it may do anything`,
		);
	}
	let ready = true;
	const http = createHttpServer({
		objects,
		deletions: new DeletionLog(store),
		cluster: new Cluster({
			clusterId,
			store,
			workers,
			scrub,
			jobs: jobControl,
			policy,
			pools: [pool, mendPool],
			snapshots: () => viewSnapshots({ store, workers, keyring }),
		}),
		clusterKeys: new ClusterKeys({ store, keyring, workers }),
		auth: needsKeys ? createAuthenticator(apiKeys) : config.auth === 'auto' ? loopbackAuthenticator : null,
		ready: async () => {
			if (!ready) return { ok: false, reasons: ['stopping'] };
			try {
				await store.counts();
				const names = awaited().map((workerId) => workers.name(workerId));
				return names.length === 0
					? { ok: true, reasons: [] }
					: { ok: false, reasons: [`waiting for known workers: ${names.join(', ')}`] };
			} catch (error) {
				const { message, cause } = error as Error;
				const why = cause instanceof DistroError ? `${message}: ${cause.message}` : message;
				return { ok: false, reasons: [`the metadata store does not answer: ${why}`] };
			}
		},
		identity: () => ({
			role,
			id,
			name: config.name,
			...tls.report(),
			issuer: enrolment?.issuer.report().certificate ?? null,
			master_keys: config.master.keys.map((key) => key.id),
		}),
		metrics,
		log,
		limits: { maxObjectBytes: config.maxObjectBytes },
	});
	await http.listen({ host: config.httpHost, port: config.httpPort }).catch((error: Error) => {
		throw new DistroError('invalid', `HTTP_PORT ${config.httpPort}: can't listen: ${error.message}`);
	});

	async function openStore(): Promise<MetadataStore> {
		if (config.supabase === null) {
			return openSqliteStore({
				path: join(config.dataDir, METADATA_FILE),
				onFailed: (error) => {
					log.error({ err: error }, 'the metadata store failed');
					lifecycle.stop('the metadata store failed');
				},
			});
		}
		// Loaded only where it is used: it costs memory.
		const { openSupabaseStore } = await import('./store-supabase.ts');
		const opened = await openSupabaseStore({ ...config.supabase, clock: systemClock, random });
		return rememberingReads(opened, { clock: systemClock });
	}

	async function openEnrolment() {
		if (config.enrol === null) return null;
		const { port, dir, issuerDir, lifetimeMs } = config.enrol;
		const caFile = config.tlsCaFile ?? join(config.tlsDir, 'ca.crt');
		const issuer = new TlsSource(issuerDir, { caFile, what: 'ISSUER_DIR' });
		await readAccountFolder(dir).catch((error: Error) =>
			log.warn({ reason: error.message }, 'no worker can enrol yet'),
		);
		const desk = new EnrolDesk({
			accounts: () => readAccountFolder(dir),
			workers,
			issuer: new Issuer({ source: issuer, clusterId, lifetimeMs, clock }),
			clock,
			onOutcome: (outcome) => metrics.enrolments.inc({ outcome }),
			log,
		});
		const server = createEnrolServer({ tls, desk });
		server.listen(port, config.grpcHost);
		await listening(server, `ENROL_PORT ${port}`);
		return { issuer, server };
	}

	async function openKeys(): Promise<ApiKeyStore> {
		if (config.supabase === null) return openApiKeys({ dataDir: config.dataDir, clock });
		const { openSupabaseApiKeys } = await import('./api-keys-supabase.ts');
		return openSupabaseApiKeys({ ...config.supabase, clock, random });
	}

	const watch = new Watch({ store, workers, clock });
	const mendDeps = {
		...deps,
		pool: mendPool,
		lanes: config.mendLanes,
		share: config.mendShare,
		isBusy: () => pool.isBusy(BUSY_MOMENT_MS),
		onOutcome: ({ kind, stored, shardIndex, bytes, error }: MendOutcome) => {
			metrics.repairs.inc({ kind, outcome: error === null ? 'done' : isNeedless(error) ? 'needless' : 'failed' });
			if (error === null) metrics.repairedBytes.inc({ kind }, bytes);
			const fields = { kind, object: stored.objectId, segment: stored.segment.index, shard: shardIndex };
			if (error === null) log.debug(fields, 'placed a shard anew');
			else if (isNeedless(error)) log.debug({ ...fields, err: error }, 'a shard need not be placed anew any more');
			else log.warn({ ...fields, err: error }, 'could not place a shard anew yet');
		},
	};
	const reencodeDeps = {
		...mendDeps,
		settleMs: config.lostAfterMs,
		onEncoding: (k: number, n: number) => metrics.encodings.inc({ code: `${k}+${n - k}` }),
		onOutcome: ({ stored, error }: ReencodeOutcome) => {
			metrics.reencoded.inc({ outcome: error === null ? 'done' : isNeedless(error) ? 'needless' : 'failed' });
			const fields = { object: stored.objectId, segment: stored.segment.index };
			if (error === null) log.debug(fields, 'encoded a segment anew');
			else if (isNeedless(error)) log.debug({ ...fields, err: error }, 'a segment need not be encoded anew any more');
			else log.warn({ ...fields, err: error }, 'could not encode a segment anew yet');
		},
	};
	// Of several orchestrators one does each of them.
	const holder = `${config.name} ${random.bytes(8).toString('hex')}`;
	const exclusiveJobs = [
		expireIntentsJob({ store, clock }),
		trashJob({
			store,
			clock,
			onPurged: (count) => metrics.purgedObjects.inc(count),
			onHead: ({ entries, hash }) => log.info({ entries, head: hash.toString('hex') }, 'the log of deletions'),
		}),
		deletionsJob({ store, workers, transport, onDeleted: (count) => metrics.deletedShards.inc(count) }),
		repairJob(mendDeps),
		drainJob(mendDeps),
		rebalanceJob(mendDeps),
		reencodeJob(reencodeDeps),
		renewTrailersJob({ ...mendDeps, newest: () => keyring.newest }),
		rewrapJob({
			store,
			keyring,
			clock,
			onFailed: (versionId, error) => log.error({ version: versionId, err: error }, 'a data key does not open'),
		}),
		watch.job,
		snapshotJob({
			...deps,
			trashMs: config.trashMs,
			pool: mendPool,
			apiKeys,
			periodMs: config.snapshotMs,
			onWritten: (snapshot) => {
				metrics.snapshotWritten(clock.nowMs());
				log.info(snapshot, 'wrote a snapshot of the metadata');
			},
		}),
		reconcileJob({
			store,
			workers,
			transport,
			findings,
			clock,
			ageMs: RECONCILE_AGE_MS,
			periodMs: config.reconcilePeriodMs,
			limit: config.reconcileLimit,
			onQueued: (count) => metrics.unknownShards.inc(count),
			onStopped: ({ worker, why, shards, unknown, queued }) =>
				log.warn(
					{ worker, shards, unknown, queued },
					`reconcile removed ${queued === 0 ? 'nothing' : 'no more'} from this worker: ${why} (docs/operations.md says what to do)`,
				),
			onSetAside: (workerId, error) =>
				log.info({ worker: workers.name(workerId), err: error }, 'reconcile comes back to this worker later'),
		}),
		auditJob({
			workers,
			transport,
			store,
			findings,
			drawShard: shardDrawer({ store, clock, random }),
			clock,
			random,
			perHour: config.auditsPerHour,
			onOutcome: (workerId, outcome) => {
				watch.audited(workerId, outcome);
				metrics.audits.inc({ outcome });
				if (outcome !== 'ok') log.info({ worker: workers.name(workerId), outcome }, 'an audit');
			},
		}),
	];
	const ownJobs: Job[] = [
		{
			name: 'workers',
			step: async () => {
				await workers.exchange();
				return storeClock === null ? EXCHANGE_ALONE_MS : EXCHANGE_MS;
			},
		},
		...(storeClock === null ? [] : [{ name: 'clock', step: () => storeClock.sync().then(() => SYNC_EVERY_MS) }]),
		keysJob({ keyring, masterNow: config.masterNow }),
		{
			name: 'scrub orders',
			step: async () => {
				const { paused, runs, updatedAtMs } = await jobControl.asked('scrub');
				scrub.orders = { paused, pass: runs, revision: updatedAtMs };
				return SCRUB_ORDERS_MS;
			},
		},
	];
	const jobs = runJobs(
		[...ownJobs, ...exclusiveJobs.map((job) => exclusive(jobControl.steer(job), { store, clock, holder }))],
		{
			clock,
			onFailed: (job, error) => log.warn({ job, err: error }, 'a background step failed, and will be tried again'),
		},
	);

	let jobsEnded: Promise<void> = Promise.resolve();
	lifecycle.onStop('store', () => store.close());
	lifecycle.onStop('api keys', () => apiKeys.close());
	lifecycle.onStop('jobs', () => jobsEnded);
	lifecycle.onStop('transport', () => transport.close());
	lifecycle.onStop('grpc', () => grpc.forceShutdown());
	lifecycle.onStop('enrolment', () => {
		enrolment?.server.close();
		enrolment?.server.closeAllConnections();
	});
	lifecycle.onStop('http', async () => {
		ready = false;
		// A step may wait for a worker that does not answer: requests don't wait for it, and it ends with the transport.
		jobsEnded = jobs.stop();
		const cancel = clock.schedule(DRAIN_MS, () => {
			objects.abortUploads('the orchestrator is stopping');
			http.server.closeAllConnections();
		});
		// A kept connection whose last answer went out after this would hold the server up.
		const idle = setInterval(() => http.server.closeIdleConnections(), CLOSE_IDLE_MS);
		await http.close();
		clearInterval(idle);
		cancel();
	});
	const address = http.server.address() as AddressInfo;
	log.info(
		{ clusterId, http: `${config.httpHost}:${address.port}`, grpc: `${config.grpcHost}:${grpcPort}` },
		'serving',
	);
	return log;
});
