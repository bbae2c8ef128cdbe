/**
 * The keys of the cluster as people see and rotate them: which master keys and which generations of the cluster key there
 * are, what still needs each, and whether it may go. No key is ever in what this answers.
 */

import { DistroError } from '../core/errors.ts';
import type { ClusterKeysAdmin, ClusterKeysView, GenerationView, MasterKeyView } from './cluster.types.ts';
import type { Keyring } from './keyring.ts';
import type { ClusterRow, KeyUse, MetadataStore } from './store.ts';
import type { WorkerRegistry } from './workers.ts';

/** Beyond it figures are "at least". */
const COUNT_MAX = 100_000;
/** Workers that a sentence names. */
const NAMED_MAX = 5;

export interface ClusterKeysDeps {
	readonly store: MetadataStore;
	readonly keyring: Keyring;
	readonly workers: Pick<WorkerRegistry, 'rows' | 'name'>;
}

export class ClusterKeys implements ClusterKeysAdmin {
	readonly #deps: ClusterKeysDeps;

	constructor(deps: ClusterKeysDeps) {
		this.#deps = deps;
	}

	async view(): Promise<ClusterKeysView> {
		const { cluster, uses, behind } = await this.#look();
		return {
			revision: cluster.revision,
			master_keys: this.#masterKeys(cluster, behind),
			generations: cluster.keys.map(({ generation, masterKeyId, createdAtMs }): GenerationView => {
				const use = uses.get(generation);
				const objects = use?.objects ?? 0;
				const shards = use?.shards ?? 0;
				const because = whyNeeded(generation, { cluster, use, behind });
				return {
					generation,
					master_key_id: masterKeyId,
					created_at: new Date(createdAtMs).toISOString(),
					objects,
					shards,
					counted_all: objects < COUNT_MAX && shards < COUNT_MAX,
					may_drop: because === null,
					because: because ?? 'nothing needs it: it may be dropped',
				};
			}),
		};
	}

	async rotate(): Promise<ClusterKeysView> {
		await this.#deps.keyring.rotate();
		return this.view();
	}

	/** Throws `not_found`; `conflict` with what still needs it. */
	async drop(generation: number): Promise<ClusterKeysView> {
		const { store, keyring } = this.#deps;
		await store.noteUnusedKeys();
		const { cluster, uses, behind } = await this.#look();
		if (!cluster.keys.some((key) => key.generation === generation)) {
			throw new DistroError('not_found', `there is no generation ${generation} of the cluster key`);
		}
		const why = whyNeeded(generation, { cluster, use: uses.get(generation), behind });
		if (why !== null) throw new DistroError('conflict', `generation ${generation} can't be dropped: ${why}`);
		keyring.learn(await store.dropClusterKey(generation, cluster.revision));
		return this.view();
	}

	async #look(): Promise<Now> {
		const { store, keyring, workers } = this.#deps;
		await keyring.refresh();
		const [uses, onVolumes, rows] = await Promise.all([
			store.keyUse(COUNT_MAX),
			store.keysOnVolumes(),
			store.workers(),
		]);
		const cluster = keyring.record;
		const behind = rows.filter(({ workerId }) => onVolumes.get(workerId) !== cluster.revision);
		return {
			cluster,
			uses: new Map(uses.map((use) => [use.generation, use])),
			behind: behind.map(
				({ workerId, name }) => workers.rows().find(({ row }) => row.workerId === workerId)?.row.name ?? name,
			),
		};
	}

	/** Those that were given to this orchestrator, in their order, and those that the metadata names beyond them. */
	#masterKeys(cluster: ClusterRow, behind: readonly string[]): MasterKeyView[] {
		const { keyring } = this.#deps;
		const given = keyring.masterKeys.map(({ id }) => id);
		const foreign = cluster.keys.map(({ masterKeyId }) => masterKeyId).filter((id) => keyring.nameOf(id) === null);
		return [...given, ...new Set(foreign)].map((id) => {
			const wrapping = cluster.keys.filter(({ masterKeyId }) => (keyring.nameOf(masterKeyId) ?? masterKeyId) === id);
			const generations = wrapping.map(({ generation }) => generation);
			const because = [
				...(generations.length === 0 ? [] : [`it wraps generation ${generations.join(', ')} of the cluster key`]),
				...(behind.length === 0 ? [] : [`${saysWho(behind)} may need it until the present keys are on that volume`]),
				...(id === given[0] ? ['it wraps what is new'] : []),
			];
			return {
				id,
				given: given.includes(id),
				primary: id === given[0],
				needed_by_generations: generations,
				needed_by_volumes: behind,
				may_drop: because.length === 0,
				because: because.length === 0 ? 'nothing needs it: leave it out of MASTER_KEY' : because.join('; '),
			};
		});
	}
}

interface Now {
	readonly cluster: ClusterRow;
	readonly uses: ReadonlyMap<number, KeyUse>;
	/** Workers whose volumes were not seen to have the present record. */
	readonly behind: readonly string[];
}

/** null: nothing needs it. */
function whyNeeded(
	generation: number,
	now: { cluster: ClusterRow; use: KeyUse | undefined; behind: readonly string[] },
): string | null {
	const { cluster, use, behind } = now;
	if (generation === cluster.keys.at(-1)?.generation) return 'it is the newest, which wraps what is new';
	const { objects = 0, shards = 0, leftovers = true } = use ?? {};
	const why = [
		...(objects > 0
			? [`the data keys of ${counted(objects, 'object')} are wrapped by it (the job rewrap works on that)`]
			: []),
		...(shards > 0
			? [
					`the trailers of ${counted(shards, 'shard')} have a data key that it wraps (POST /cluster/jobs/renew-trailers/run writes them anew)`,
				]
			: []),
		...(objects === 0 && shards === 0 && leftovers
			? ['uploads that began before, or shards that wait for deletion, may have trailers that it wraps']
			: []),
		...(behind.length > 0 ? [`the volume of ${saysWho(behind)} was not seen to have the present keys`] : []),
	];
	return why.length === 0 ? null : why.join('; ');
}

function counted(count: number, what: string): string {
	return `${count >= COUNT_MAX ? `${count} or more` : count} ${what}${count === 1 ? '' : 's'}`;
}

function saysWho(names: readonly string[]): string {
	const more = names.length - NAMED_MAX;
	return more > 0 ? `${names.slice(0, NAMED_MAX).join(', ')} and ${more} more` : names.join(', ');
}
