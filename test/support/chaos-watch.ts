/** What is looked at all the time while faults happen: what the cluster says of itself, its list, its processes. */

import type { Chaos } from './chaos.ts';
import type { TestCluster } from './cluster.ts';
import type { ClusterApi } from './cluster-api.ts';
import { cpuMs, peakMiB } from './machines.ts';
import { sleep, type Workload } from './workload.ts';

const EVERY_MS = 1_000;
const LIST_EVERY_MS = 2_000;
/** Workers come back one by one to an orchestrator that was started. */
const GATHER_MS = 8_000;
const COUNTERS = /^distro_(repairs_total|repaired_bytes_total|shard_findings_total|audits_total)\{(.*)\} (\d+)$/gm;

export class ChaosWatch {
	/** The orchestrator's counters, over all its runs. */
	readonly totals = new Map<string, number>();
	readonly peaksMiB = new Map<string, number>();
	readonly #o: { c: TestCluster; api: ClusterApi; workload: Workload; chaos: Chaos };
	#loops: Promise<void>[] = [];
	#stopping = false;

	constructor(options: { c: TestCluster; api: ClusterApi; workload: Workload; chaos: Chaos }) {
		this.#o = options;
	}

	start(): void {
		const { workload, chaos } = this.#o;
		const missed = new Set<string>();
		this.#loops = [
			this.#loop('the report', EVERY_MS, () => this.#checkReport()),
			this.#loop('the list', LIST_EVERY_MS, () => workload.checkListing()),
			this.#loop('damages', EVERY_MS, () => chaos.damages.look()),
			this.#loop('processes', EVERY_MS, async () => this.#checkProcesses(missed)),
		];
	}

	async stop(): Promise<void> {
		this.#stopping = true;
		await Promise.all(this.#loops);
	}

	async #loop(what: string, everyMs: number, look: () => Promise<void>): Promise<void> {
		const { workload, chaos } = this.#o;
		while (!this.#stopping) {
			const startMs = Date.now();
			await look().catch((error: Error) => {
				if (!chaos.wasDown(startMs)) workload.complain(`${what}: ${error.stack}`);
			});
			await sleep(everyMs);
		}
	}

	/** It must add up, and be right, at any moment. */
	async #checkReport(): Promise<void> {
		const { api, workload, chaos } = this.#o;
		const { counts } = workload;
		const startMs = Date.now();
		const [before, changesBefore] = [workload.bounds(), counts.written + counts.removed];
		const report = await api.redundancy();
		const [after, changes] = [workload.bounds(), counts.written + counts.removed - changesBefore];
		const { objects, healthy, degraded, at_risk, unrecoverable, inline, by_spare } = report;
		const wrong = (what: string) => workload.complain(`${what}: ${JSON.stringify(report)}`);
		if (healthy + degraded + at_risk + unrecoverable !== objects) wrong('health does not add up to the objects');
		const spares = Object.values(by_spare).reduce((sum, count) => sum + count, 0);
		if (spares !== objects - inline) wrong('by_spare does not add up to the objects');
		const [least, most] = [Math.min(before.least, after.least) - changes, Math.max(before.most, after.most) + changes];
		if (objects < least || objects > most) wrong(`there are ${least} to ${most} objects`);
		if (unrecoverable > 0 && !chaos.wasDown(startMs - GATHER_MS))
			wrong('unrecoverable, with no more workers down than was allowed');
	}

	/** Nobody ends whom nobody ended. */
	#checkProcesses(missed: Set<string>): void {
		const { workload, chaos } = this.#o;
		for (const [name, pid] of this.#pids()) {
			const peak = pid === null ? null : peakMiB(pid);
			if (peak !== null) this.peaksMiB.set(name, Math.max(this.peaksMiB.get(name) ?? 0, peak));
			const mustRun = chaos.machines.has(name) ? chaos.mustRun(name) : chaos.orchestratorMustRun;
			if (pid !== null || !mustRun || missed.has(name)) continue;
			missed.add(name);
			workload.complain(`${name} ended by itself`);
		}
	}

	#pids(): ReadonlyMap<string, number | null> {
		const { c, chaos } = this.#o;
		const orchestrator = c.processes().find(({ name }) => name === 'orchestrator-1');
		const pids = new Map<string, number | null>([['orchestrator-1', orchestrator?.pid ?? null]]);
		for (const { name, pid } of chaos.machines.values()) pids.set(name, pid());
		return pids;
	}

	/** Adds what this run of the orchestrator has counted: once for each run. */
	async collect(): Promise<void> {
		for (const [, name, labels = '', value] of (await this.#o.api.metrics()).matchAll(COUNTERS)) {
			const key = [name, ...labels.matchAll(/(?:kind|outcome)="(\w+)"/g).map(([, label]) => label)].join(' ');
			this.totals.set(key, (this.totals.get(key) ?? 0) + Number(value));
		}
	}

	/** CPU milliseconds of each process that runs, in so long a time of doing nothing. */
	async idleCpuMs(ms: number): Promise<ReadonlyMap<string, number>> {
		const used = () => [...this.#pids()].flatMap(([name, pid]) => (pid === null ? [] : [[name, cpuMs(pid)] as const]));
		const before = new Map(used());
		await sleep(ms);
		return new Map(used().map(([name, after]) => [name, after - (before.get(name) ?? 0)]));
	}
}
