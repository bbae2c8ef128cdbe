/**
 * The command that brings a cluster's metadata back from its workers, while no orchestrator runs:
 *
 *     node orchestrator/restore.ts --from snapshot          the newest snapshot on the workers, and what was written since
 *     node orchestrator/restore.ts --from disks --dry       from the shards alone; says what would come back
 *
 * It has the orchestrator's own environment and listens as one, so that workers register with it. For the cluster of
 * `make run` there is `make restore`. How it works: restore-scan.ts, restore-run.ts, docs/architecture.md.
 */

import { closeSync, existsSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { asDistroError, DistroError } from '../core/errors.ts';
import { systemClock, systemRandom } from '../platform/clock.ts';
import { bindGrpcServer, createGrpcServer } from '../platform/grpc.ts';
import { ArenaPool } from '../platform/memory-pool.ts';
import { GrpcShardTransport } from '../platform/shard-transport.ts';
import { TlsSource } from '../platform/tls.ts';
import { type OrchestratorConfig, readConfig } from './config.ts';
import { orchestratorDataDir } from './data-dir.ts';
import type { ReadDeps } from './download.ts';
import { Findings } from './findings.ts';
import { pause } from './jobs.ts';
import { ScanIndex } from './restore-index.ts';
import { collectKeys, type RestoreKeys } from './restore-keys.ts';
import { restoreObjects, type Tally, type Told } from './restore-run.ts';
import { type BadShard, scanWorkers } from './restore-scan.ts';
import { findSnapshots, readSnapshot, type SnapshotRest } from './restore-snapshot.ts';
import { openTarget, type RestoreTarget } from './restore-target.ts';
import { ScrubDesk } from './scrub.ts';
import { addClusterService } from './service.ts';
import { MemoryMetadataStore } from './store-memory.ts';
import { WorkerRegistry } from './workers.ts';

const USAGE = `usage: restore --from snapshot|disks [--dry] [--verify] [--workers N] [--wait SECONDS] [--list FILE]
  --dry       write nothing, only say what would come back
  --verify    read every cell of every object, and check its tag
  --workers   wait for so many workers; without it until none came for ten seconds
  --wait      for so long at most (60)
  --list      where the full list goes: one object a line, as JSON`;

/** Something is not recovered. */
const EXIT_INCOMPLETE = 3;
const QUIET_MS = 10_000;
/** So long people may look at what is unconfirmed, however short their trash is. */
const UNCONFIRMED_MS = 7 * 24 * 60 * 60_000;
const LOOK_MS = 100;
const PROGRESS_EVERY_MS = 2_000;
/** Of what is not recovered so many are said at once; the list has all. */
const SAID_MAX = 20;

interface Options {
	readonly from: 'snapshot' | 'disks';
	readonly dry: boolean;
	readonly verify: boolean;
	readonly workers: number | null;
	readonly waitMs: number;
	readonly list: string | null;
}

function optionsOf(args: string[]): Options {
	try {
		const { values } = parseArgs({
			args,
			options: {
				from: { type: 'string' },
				dry: { type: 'boolean' },
				verify: { type: 'boolean' },
				workers: { type: 'string' },
				wait: { type: 'string' },
				list: { type: 'string' },
			},
		});
		const { from, dry = false, verify = false, workers, wait = '60', list = null } = values;
		const isNumber = (text: string) => /^\d{1,6}$/.test(text);
		if ((from === 'snapshot' || from === 'disks') && isNumber(wait) && (workers === undefined || isNumber(workers))) {
			return {
				from,
				dry,
				verify,
				workers: workers === undefined ? null : Number(workers),
				waitMs: Number(wait) * 1000,
				list,
			};
		}
	} catch (cause) {
		throw new DistroError('invalid', USAGE, { cause });
	}
	throw new DistroError('invalid', USAGE);
}

function say(text: string): void {
	process.stdout.write(`${text}\n`);
}

/** Whoever restores has the key: a new one would open nothing. */
function restoreConfig(): OrchestratorConfig {
	const dataDir = orchestratorDataDir('restore');
	const { MASTER_KEY, MASTER_KEY_FILE } = process.env;
	const isGiven = (MASTER_KEY ?? '') !== '' || (MASTER_KEY_FILE ?? '') !== '';
	if (!isGiven && !existsSync(join(dataDir, 'master.key'))) {
		throw new DistroError(
			'denied',
			`there is no master key: set MASTER_KEY (or MASTER_KEY_FILE), or put the file back as ${join(dataDir, 'master.key')}. Without it nothing can be read`,
		);
	}
	return readConfig(process.env, systemRandom);
}

async function main(): Promise<number> {
	const options = optionsOf(process.argv.slice(2));
	const config = restoreConfig();
	const stopping = new AbortController();
	for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => stopping.abort());
	if (process.env.DISTRO_PARENT_PIPE === '1') process.stdin.on('end', () => stopping.abort()).resume();
	// Before anything else is done: a store that is in use is no place for it.
	const target = options.dry ? null : await openTarget(config, say);
	const temporary = mkdtempSync(join(tmpdir(), 'distro-restore-'));
	const index = new ScanIndex(join(temporary, 'index.db'));
	const closing: (() => Promise<void> | void)[] = [
		() => rmSync(temporary, { recursive: true, force: true }),
		() => index.close(),
		() => target?.close(),
	];
	try {
		return await restore({ options, config, target, index, signal: stopping.signal, closing });
	} finally {
		for (const close of closing.reverse()) await close();
	}
}

interface Restore {
	readonly options: Options;
	readonly config: OrchestratorConfig;
	readonly target: RestoreTarget | null;
	readonly index: ScanIndex;
	readonly signal: AbortSignal;
	readonly closing: (() => Promise<void> | void)[];
}

async function restore({ options, config, target, index, signal, closing }: Restore): Promise<number> {
	const clock = systemClock;
	const tls = new TlsSource(config.tlsDir);
	const { clusterId } = tls.identity;
	// What it learns of its workers: the target gets them once they are known to be this cluster's.
	const store = new MemoryMetadataStore();
	const workers = new WorkerRegistry({ store, clock });
	const findings = new Findings({ store, clock, onReport: () => {} });
	// Nothing is acknowledged: what scrubbing found the workers must tell the next orchestrator.
	const scrub = new ScrubDesk({ findings: { add: () => Promise.reject(new DistroError('unavailable', 'a restore')) } });
	const grpc = createGrpcServer();
	// Nor is anything brought to them.
	const keyDelivery = { heard: () => {}, joined: () => {} };
	addClusterService(grpc, { clusterId, workers, scrub, keys: keyDelivery, onWorker: () => {} });
	await bindGrpcServer(grpc, { address: `${config.grpcHost}:${config.grpcPort}`, tls });
	closing.push(() => grpc.forceShutdown());
	const transport = new GrpcShardTransport({ tls, connections: config.workerConnections });
	closing.push(() => transport.close());

	await waitForWorkers(workers, options, signal);
	const there = workers.rows().filter(({ row }) => workers.isReachable(row.workerId));
	if (there.length === 0)
		throw new DistroError('unavailable', 'no worker came: start them, and point them at this process');
	const names = there.map(({ row }) => row.name).sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
	say(`${there.length} workers are there: ${names.join(', ')}`);
	const refs = there.map(({ row }) => ({ workerId: row.workerId, address: row.address }));
	const keys = await collectKeys({ transport, master: config.master, clusterId }, refs);

	const bad: BadShard[] = [];
	const scanned = progress((count) => `  ${count.toLocaleString('en')} shards read`);
	await scanWorkers(
		{ clusterId, index, transport, clock, onShards: scanned.add, onBad: (shard) => bad.push(shard) },
		refs,
	);
	scanned.end();
	const pool = new ArenaPool(config.memoryBudgetBytes, { clock });
	const deps: ReadDeps = { store, workers, transport, pool, clock, findings };
	const snapshots = findSnapshots(index, keys.openKey);
	const rest = options.from === 'disks' ? null : await newestWhole(deps, { index, keys, snapshots, signal });
	if (options.from === 'disks') {
		const hint =
			snapshots.length === 0 ? '' : '; there are snapshots on these workers, which have them: --from snapshot';
		say(
			`Objects that were in the metadata alone (inline, up to 4 KiB) can't come back, and nobody knows how many${hint}`,
		);
	}
	if (target !== null) await target.begin({ clusterId, keys: keys.record, workers, snapshot: rest, clock });

	const list = openList(options, config);
	const said: Told[] = [];
	const done = progress((count) => `  ${count.toLocaleString('en')} objects looked at`);
	const tally = await restoreObjects(
		{
			...deps,
			index,
			openKey: keys.openKey,
			snapshotBeganAtMs: rest?.cluster.beganAtMs ?? null,
			verify: options.verify,
			target: target?.store ?? null,
			trashMs: Math.max(config.trashMs, UNCONFIRMED_MS),
			onTold: (told) => {
				list?.write(told);
				if (told.fate !== 'recovered' && said.length < SAID_MAX) said.push(told);
			},
			onProgress: () => done.add(1),
		},
		signal,
	);
	done.end();
	list?.close();
	if (signal.aborted) throw new DistroError('canceled', 'stopped before it was done: run it again');
	await target?.end();
	report({ tally, said, bad, list: list?.path ?? null, dry: options.dry });
	return tally.notRecovered > 0 ? EXIT_INCOMPLETE : 0;
}

async function waitForWorkers(workers: WorkerRegistry, options: Options, signal: AbortSignal): Promise<void> {
	const ready = () => workers.rows().filter(({ row }) => workers.isReachable(row.workerId)).length;
	const startedMs = systemClock.monotonicMs();
	let count = 0;
	let changedMs = startedMs;
	while (!signal.aborted) {
		const nowMs = systemClock.monotonicMs();
		const now = ready();
		if (now !== count) changedMs = nowMs;
		count = now;
		if (options.workers !== null && count >= options.workers) return;
		if (options.workers === null && count > 0 && nowMs - changedMs >= QUIET_MS) return;
		if (nowMs - startedMs >= options.waitMs) break;
		await pause(systemClock, LOOK_MS, signal);
	}
	const { workers: wanted } = options;
	if (wanted !== null)
		say(`Only ${count} of ${wanted} workers came in time: what only the others have can't come back now`);
}

async function newestWhole(
	deps: ReadDeps,
	o: { index: ScanIndex; keys: RestoreKeys; snapshots: ReturnType<typeof findSnapshots>; signal: AbortSignal },
): Promise<SnapshotRest> {
	const { index, keys, snapshots, signal } = o;
	for (const { versionId, createdAtMs } of snapshots) {
		const when = new Date(createdAtMs).toISOString();
		try {
			const rest = await readSnapshot({ ...deps, index, openKey: keys.openKey }, versionId, signal);
			say(`The snapshot of ${when} has ${rest.objects.toLocaleString('en')} objects`);
			return rest;
		} catch (thrown) {
			const { kind, message } = asDistroError(thrown);
			// Not damaged: an older one in its place would take away what was known since.
			if (kind === 'unsupported' || signal.aborted) throw thrown;
			say(`The snapshot of ${when} is not whole: ${message}`);
			index.forgetKnown();
		}
	}
	throw new DistroError('not_found', 'there is no whole snapshot on these workers: --from disks does without one');
}

function progress(text: (count: number) => string): { add: (count: number) => void; end: () => void } {
	let count = 0;
	let saidMs = systemClock.monotonicMs();
	return {
		add: (more) => {
			count += more;
			if (systemClock.monotonicMs() - saidMs < PROGRESS_EVERY_MS) return;
			saidMs = systemClock.monotonicMs();
			say(text(count));
		},
		end: () => say(text(count)),
	};
}

/** Names of objects stand in it: for its owner only. A dry run writes it only where that was asked for. */
function openList(options: Options, config: OrchestratorConfig) {
	const path =
		options.list ??
		(options.dry ? null : join(config.dataDir, `restore-${new Date().toISOString().replaceAll(':', '')}.jsonl`));
	if (path === null) return null;
	const file = openSync(path, 'w', 0o600);
	return {
		path,
		write: (told: Told) => writeSync(file, `${JSON.stringify(told)}\n`),
		close: () => closeSync(file),
	};
}

function report(o: {
	tally: Tally;
	said: readonly Told[];
	bad: readonly BadShard[];
	list: string | null;
	dry: boolean;
}): void {
	const { tally, said, bad, list, dry } = o;
	const figure = (count: number) => count.toLocaleString('en');
	for (const { fate, object_id: id, name, because } of said) {
		say(`  ${fate}: ${id ?? '?'}${name === null ? '' : ` ${JSON.stringify(name)}`}: ${because}`);
	}
	const left = tally.notRecovered + tally.unconfirmed - said.length;
	if (left > 0) say(`  and ${figure(left)} more${list === null ? '' : `: ${list}`}`);
	for (const { shardId, because } of bad.slice(0, SAID_MAX)) say(`  no shard: ${shardId}: ${because}`);
	if (bad.length > SAID_MAX) say(`  and ${figure(bad.length - SAID_MAX)} more files that are no shards`);
	say(`${dry ? 'A dry run: nothing was written. It would have been' : 'Done'}:
  recovered      ${figure(tally.recovered)} objects, ${figure(tally.bytes)} bytes
    since the snapshot     ${figure(tally.since)}
    from the metadata      ${figure(tally.inline)}
    with too few shards    ${figure(tally.doubtful)}
  unconfirmed    ${figure(tally.unconfirmed)}
  not recovered  ${figure(tally.notRecovered)}
  snapshots      ${figure(tally.snapshots)}`);
	if (list !== null) say(`The full list: ${list}`);
}

let code = 1;
try {
	code = await main();
} catch (thrown) {
	const error = asDistroError(thrown);
	process.stderr.write(
		`${error.kind === 'internal' ? ((error.cause as Error | undefined)?.stack ?? error.message) : error.message}\n`,
	);
}
// A worker that is just dialling would keep the process, and so would the pipe from its parent.
process.exit(code);
