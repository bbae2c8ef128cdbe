/** The API of the cluster itself, as those ask it who run one. */

import { type Explained, HttpError } from './client.ts';

export interface ClusterState {
	readonly workers: readonly {
		readonly name: string;
		readonly state: string;
		readonly shards: number;
		readonly shards_placed: number;
	}[];
	readonly objects: number;
	readonly queues: { readonly intents: number; readonly deletions: number; readonly repairs: number };
}

export interface RedundancyState {
	readonly objects: number;
	readonly healthy: number;
	readonly degraded: number;
	readonly at_risk: number;
	readonly unrecoverable: number;
	readonly inline: number;
	readonly by_spare: Readonly<Record<string, number>>;
	readonly failure_tolerance: number | null;
}

const TIMEOUT_MS = 20_000;

export class ClusterApi {
	readonly #http: string;

	constructor(http: string) {
		this.#http = http;
	}

	view(): Promise<ClusterState> {
		return this.#get('/cluster');
	}

	async worker(name: string): Promise<ClusterState['workers'][number] | undefined> {
		return (await this.view()).workers.find((worker) => worker.name === name);
	}

	redundancy(): Promise<RedundancyState> {
		return this.#get('/cluster/redundancy');
	}

	async canStop(names: readonly string[], reserve: number): Promise<boolean> {
		const path = `/cluster/can-stop?workers=${names.join()}&reserve=${reserve}`;
		return (await this.#get<{ can_stop: boolean }>(path)).can_stop;
	}

	change(name: string, change: 'drain' | 'forget'): Promise<void> {
		return this.#post(`/cluster/workers/${name}/${change}`);
	}

	runJob(name: string): Promise<void> {
		return this.#post(`/cluster/jobs/${name}/run`);
	}

	/** What the last step of a job told. */
	async progress(name: string): Promise<Readonly<Record<string, unknown>>> {
		const { jobs } = await this.#get<{ jobs: { name: string; progress: Record<string, unknown> }[] }>('/cluster/jobs');
		return jobs.find((job) => job.name === name)?.progress ?? {};
	}

	/** Null when there is no such object. */
	async explain(id: string): Promise<Explained | null> {
		return await this.#get<Explained>(`/objects/${id}/explain?limit=100`).catch((error: Error) => {
			if (error instanceof HttpError && error.status === 404) return null;
			throw error;
		});
	}

	async metrics(): Promise<string> {
		return await (await fetch(`${this.#http}/metrics`, { signal: AbortSignal.timeout(TIMEOUT_MS) })).text();
	}

	async #get<T>(path: string): Promise<T> {
		const response = await fetch(`${this.#http}${path}`, { signal: AbortSignal.timeout(TIMEOUT_MS) });
		if (!response.ok) throw new HttpError(response.status, await response.text(), response.headers);
		return (await response.json()) as T;
	}

	async #post(path: string): Promise<void> {
		const response = await fetch(`${this.#http}${path}`, { method: 'POST', signal: AbortSignal.timeout(TIMEOUT_MS) });
		const text = await response.text();
		if (!response.ok) throw new HttpError(response.status, text, response.headers);
	}
}
