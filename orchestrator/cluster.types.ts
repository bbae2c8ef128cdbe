/** What the HTTP API knows of the cluster: its answers' own shapes. */

import type { WorkerDuty } from '../core/model/health.ts';
import type { AuditOutcome } from '../core/model/history.ts';
import type { JobView } from './job-control.ts';

export interface ClusterView {
	readonly cluster_id: string;
	readonly workers: readonly {
		readonly name: string;
		readonly worker_id: string;
		readonly state: string;
		readonly duty: WorkerDuty;
		readonly zone: string;
		readonly address: string;
		/** Files on its volume, as it says. */
		readonly shards: number;
		/** Good shards that the metadata has on it: 0 when it is drained. */
		readonly shards_placed: number;
		readonly bytes_used: number;
		readonly bytes_total: number;
		/** To the first byte, and of those that follow, as reads of the last half minute saw it; null: nobody read from it. */
		readonly latency_ms: number | null;
		readonly bytes_per_second: number | null;
		/** Share of the time that it can be reached, failures a year to expect, and audits by outcome; all of them fade over weeks. */
		readonly availability: number;
		readonly annual_failure_rate: number;
		readonly audits: Readonly<Record<AuditOutcome, number>>;
		readonly last_seen: string;
	}[];
	readonly objects: number;
	/** Deleted objects that can be had back. */
	readonly trash: { readonly objects: number; readonly bytes: number };
	readonly queues: { readonly intents: number; readonly deletions: number; readonly repairs: number };
	readonly budget: { readonly capacity_bytes: number; readonly used_bytes: number };
	/** One sentence: what a large new object would get now. */
	readonly redundancy: { readonly n: number; readonly k: number; readonly because: string } | null;
}

/** Objects by their worst segment, with the workers as they are at this moment. */
export interface RedundancyView {
	readonly objects: number;
	readonly healthy: number;
	readonly degraded: number;
	readonly at_risk: number;
	readonly unrecoverable: number;
	/** Of the healthy ones those in the metadata, which are in no `by_spare`. */
	readonly inline: number;
	/** Spare shards → objects; "-1": too few shards can be read now. */
	readonly by_spare: Readonly<Record<string, number>>;
	/** Any so many workers more may go; null when nothing is stored on workers. */
	readonly failure_tolerance: number | null;
	readonly bytes_at_risk: number;
	/** All shards were proved, or written, after this. */
	readonly oldest_verification: string | null;
}

/** One snapshot of the metadata on the workers. */
export interface SnapshotView {
	readonly object_id: string;
	readonly created_at: string;
	/** That it tells of. */
	readonly objects: number;
	readonly size: number;
	/** Of all its segments; and those that can be read now. */
	readonly shards: number;
	readonly shards_healthy: number;
	/** Of its worst segment: any one is enough. */
	readonly copies: number;
}

export interface StopAnswer {
	readonly can_stop: boolean;
	readonly because: string;
	/** Those that stand in the way, at most a hundred. */
	readonly objects: readonly string[];
	readonly segments: number;
}

export interface MasterKeyView {
	readonly id: string;
	/** To the orchestrator that answers. */
	readonly given: boolean;
	/** Wraps what is new. */
	readonly primary: boolean;
	readonly needed_by_generations: readonly number[];
	/** Workers whose volumes may have a record that it wraps. */
	readonly needed_by_volumes: readonly string[];
	readonly may_drop: boolean;
	readonly because: string;
}

export interface GenerationView {
	readonly generation: number;
	readonly master_key_id: string;
	readonly created_at: string;
	/** Whose data key it wraps in the metadata; those in the trash as well. */
	readonly objects: number;
	/** Whose trailers have a data key that it wraps. */
	readonly shards: number;
	/** False: there are more than both figures say. */
	readonly counted_all: boolean;
	readonly may_drop: boolean;
	readonly because: string;
}

export interface ClusterKeysView {
	/** Grows with every change. */
	readonly revision: number;
	readonly master_keys: readonly MasterKeyView[];
	/** Oldest first. */
	readonly generations: readonly GenerationView[];
}

export interface ClusterKeysAdmin {
	view(): Promise<ClusterKeysView>;
	/** A new generation, for what is stored from now on. */
	rotate(): Promise<ClusterKeysView>;
	/** `not_found`; `conflict` while anything needs it, saying what. */
	drop(generation: number): Promise<ClusterKeysView>;
}

export const DUTY_CHANGES = ['cordon', 'uncordon', 'drain', 'cancel-drain', 'forget'] as const;
export type DutyChange = (typeof DUTY_CHANGES)[number];

export interface ClusterAdmin {
	view(): Promise<ClusterView>;
	redundancy(): Promise<RedundancyView>;
	/** Whether these workers may all be stopped now. `not_found` for a name that nobody has. */
	canStop(names: readonly string[], reserve: number): Promise<StopAnswer>;
	/** `not_found`; `conflict` when it can't be forgotten. */
	changeDuty(name: string, change: DutyChange): Promise<void>;
	jobs(): Promise<readonly JobView[]>;
	/** Newest first. */
	snapshots(): Promise<readonly SnapshotView[]>;
	/** `not_found`. */
	askJob(name: string, what: 'pause' | 'resume' | 'run'): Promise<void>;
}
