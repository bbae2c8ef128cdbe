/** The orchestrator's own metrics. Nothing here grows with the number of objects. */

import { Counter, Gauge, Histogram } from 'prom-client';
import type { ArenaPool } from '../platform/memory-pool.ts';
import { createRegistry } from '../platform/metrics.ts';
import type { TlsSource } from '../platform/tls.ts';
import type { JobControl } from './job-control.ts';
import type { MetadataStore } from './store.ts';
import type { WorkerRegistry } from './workers.ts';

const DURATION_BUCKETS_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

export function createOrchestratorMetrics(deps: {
	name: string;
	pools: Readonly<Record<'clients' | 'repair', ArenaPool>>;
	workers: WorkerRegistry;
	store: MetadataStore;
	jobs: JobControl;
	tls: TlsSource;
}) {
	const { pools, workers, store, jobs, tls } = deps;
	const registry = createRegistry({ role: 'orchestrator', name: deps.name });
	const registers = [registry];
	const gauge = (name: string, help: string, read: () => number) =>
		new Gauge({
			name,
			help,
			registers,
			collect() {
				this.set(read());
			},
		});
	const gaugeOfPools = (name: string, help: string, read: (pool: ArenaPool) => number) =>
		new Gauge({
			name,
			help,
			labelNames: ['share'],
			registers,
			collect() {
				for (const [share, pool] of Object.entries(pools)) this.set({ share }, read(pool));
			},
		});
	gaugeOfPools('distro_memory_budget_bytes', 'Memory for bytes in flight', (pool) => pool.capacityBytes);
	gaugeOfPools('distro_memory_budget_used_bytes', 'Of it in use now', (pool) => pool.usedBytes);
	gaugeOfPools('distro_memory_budget_waiting', 'Transfers that wait for memory now', (pool) => pool.waiting);
	gauge(
		'distro_certificate_expiry_timestamp_seconds',
		'When the process certificate ends',
		() => tls.notAfterMs / 1000,
	);
	new Gauge({
		name: 'distro_workers',
		help: 'Workers by state',
		labelNames: ['state'],
		registers,
		collect() {
			this.reset();
			for (const state of ['ready', 'suspect', 'lost', 'cordoned', 'draining']) this.set({ state }, 0);
			for (const { state } of workers.rows()) this.inc({ state });
		},
	});
	const metadataUp = new Gauge({
		name: 'distro_metadata_up',
		help: 'Whether the metadata store answered when this was asked',
		registers,
	});
	const trashBytes = new Gauge({
		name: 'distro_trash_bytes',
		help: 'Bytes of the objects in the trash, as people stored them',
		registers,
	});
	new Gauge({
		name: 'distro_queue_length',
		help: 'Objects stored, objects in the trash, and items in the durable queues',
		labelNames: ['queue'],
		registers,
		async collect() {
			this.reset();
			const counts = await store.counts().catch(() => null);
			metadataUp.set(counts === null ? 0 : 1);
			if (counts === null) return;
			const { objects, trashObjects: trash, intents, deletions, repairs } = counts;
			const lengths = { objects, trash, intents, deletions, repairs };
			for (const [queue, count] of Object.entries(lengths)) this.set({ queue }, count);
			trashBytes.set(counts.trashBytes);
		},
	});
	new Gauge({
		name: 'distro_reconcile_stopped_workers',
		help: 'Workers of which the last reconcile would have removed too much, and removed nothing',
		registers,
		async collect() {
			this.reset();
			const found = await jobs.list().catch(() => null);
			const reconcile = found?.find(({ name }) => name === 'reconcile');
			if (reconcile !== undefined) this.set(reconcile.progress.stuck?.length ?? 0);
		},
	});
	const requests = new Histogram({
		name: 'distro_http_request_duration_seconds',
		help: 'HTTP requests by method, route and status',
		labelNames: ['method', 'route', 'status'],
		buckets: DURATION_BUCKETS_S,
		registers,
	});
	let snapshotAtMs = 0;
	gauge(
		'distro_snapshot_timestamp_seconds',
		'When this process last wrote a snapshot of the metadata onto the workers; 0: never',
		() => snapshotAtMs / 1000,
	);
	return {
		snapshotWritten: (nowMs: number) => {
			snapshotAtMs = nowMs;
		},
		contentType: registry.contentType,
		render: () => registry.metrics(),
		observeRequest: (request: { method: string; route: string; status: number; seconds: number }) => {
			const { method, route, status, seconds } = request;
			requests.observe({ method, route, status }, seconds);
		},
		encodings: new Counter({
			name: 'distro_segments_encoded_total',
			help: 'Segments written, by code',
			labelNames: ['code'],
			registers,
		}),
		findings: new Counter({
			name: 'distro_shard_findings_total',
			help: 'Shards found missing or corrupt',
			labelNames: ['kind'],
			registers,
		}),
		repairs: new Counter({
			name: 'distro_repairs_total',
			help: 'Shards placed anew, by why and by outcome',
			labelNames: ['kind', 'outcome'],
			registers,
		}),
		repairedBytes: new Counter({
			name: 'distro_repaired_bytes_total',
			help: 'Bytes of shards placed anew, by why',
			labelNames: ['kind'],
			registers,
		}),
		reencoded: new Counter({
			name: 'distro_segments_reencoded_total',
			help: 'Segments encoded anew because their code no longer suited, by outcome',
			labelNames: ['outcome'],
			registers,
		}),
		enrolments: new Counter({
			name: 'distro_enrolments_total',
			help: 'Certificates that workers asked for, by outcome',
			labelNames: ['outcome'],
			registers,
		}),
		audits: new Counter({
			name: 'distro_audits_total',
			help: 'Audits of workers by outcome',
			labelNames: ['outcome'],
			registers,
		}),
		purgedObjects: new Counter({
			name: 'distro_purged_objects_total',
			help: 'Objects removed for good when their time in the trash was over',
			registers,
		}),
		unknownShards: new Counter({
			name: 'distro_unknown_shards_total',
			help: 'Shards that workers had and nothing knew: queued for deletion',
			registers,
		}),
		deletedShards: new Counter({
			name: 'distro_deleted_shards_total',
			help: 'Shards that workers have deleted',
			registers,
		}),
	};
}
