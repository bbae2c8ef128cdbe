/**
 * One range of ids, compared: what a worker has against what the metadata knows of it. Both are sorted, so a range is exact:
 * every id in it is in both pages, or is missing in one of them.
 *
 * Rows and files change while they are read. What looks wrong is therefore looked at again: the file by asking for its
 * trailer, and then the rows. A shard's row is there before its first byte and leaves after its file was moved away, so what
 * neither reading knows was nobody's when it was listed.
 */

import type { ShardId } from '../core/ids.ts';
import type { WorkerRef } from '../core/ports.ts';
import type { GrpcShardTransport } from '../platform/shard-transport.ts';
import type { KnownShard, MetadataStore } from './store.ts';

/** Ids of a range, of either side. */
const PAGE = 1_000;
const LIST_TIMEOUT_MS = 60_000;
const TRAILERS_TIMEOUT_MS = 30_000;

export interface ComparedRange {
	/** The last id of the range; null: it goes to the end. */
	readonly end: ShardId | null;
	/** How many the worker has, and how many rows name. */
	readonly shards: number;
	readonly known: number;
	/** The worker has them, they are old enough, and nothing names them. */
	readonly unknown: readonly { readonly shardId: ShardId; readonly writtenAtMs: number }[];
	/** Placed there, and the worker says that they are not. */
	readonly missing: readonly ShardId[];
}

export interface RangeDeps {
	readonly store: Pick<MetadataStore, 'knownShards'>;
	readonly transport: Pick<GrpcShardTransport, 'list' | 'trailers'>;
	/** Younger ones are left alone. By the worker's clock, which wrote the times. */
	readonly ageMs: number;
}

/** Throws what either side throws: nothing is known of the range then. */
export async function compareRange(
	{ store, transport, ageMs }: RangeDeps,
	worker: WorkerRef,
	after: ShardId | null,
): Promise<ComparedRange> {
	const page = { after, limit: PAGE };
	const known = await store.knownShards(worker.workerId, page);
	const { shards, nowMs } = await transport.list(worker, page, { timeoutMs: LIST_TIMEOUT_MS });
	const end = earlier(lastOf(known), lastOf(shards));
	const isInside = ({ shardId }: { shardId: ShardId }) => end === null || shardId <= end;
	const listed = shards.filter(isInside);
	const named = known.filter(isInside);

	const names = new Set(named.map(({ shardId }) => shardId));
	const there = new Set(listed.map(({ shardId }) => shardId));
	const strange = listed.filter(({ shardId, writtenAtMs }) => !names.has(shardId) && nowMs - writtenAtMs > ageMs);
	const absent = named.filter(({ shardId, placed }) => placed && !there.has(shardId)).map(({ shardId }) => shardId);
	const gone = await confirmGone(transport, worker, absent);
	if (strange.length + gone.length === 0) {
		return { end, shards: listed.length, known: named.length, unknown: [], missing: [] };
	}
	const now = await readAgain(store, worker, { after, end });
	return {
		end,
		shards: listed.length,
		known: named.length,
		unknown: strange.filter(({ shardId }) => !now.has(shardId)),
		missing: gone.filter((shardId) => now.get(shardId)?.placed === true),
	};
}

function lastOf(page: readonly { readonly shardId: ShardId }[]): ShardId | null {
	return page.length < PAGE ? null : (page.at(-1)?.shardId ?? null);
}

function earlier(a: ShardId | null, b: ShardId | null): ShardId | null {
	if (a === null || b === null) return a ?? b;
	return a < b ? a : b;
}

/** Only "not found" is an answer: a worker whose volume is offline never says that. */
async function confirmGone(
	transport: RangeDeps['transport'],
	worker: WorkerRef,
	shardIds: readonly ShardId[],
): Promise<ShardId[]> {
	const gone: ShardId[] = [];
	for (let rest = shardIds; rest.length > 0; ) {
		const answers = await transport.trailers(worker, rest, { timeoutMs: TRAILERS_TIMEOUT_MS });
		gone.push(...rest.filter((_, i) => answers[i] === 'not_found'));
		rest = rest.slice(answers.length);
	}
	return gone;
}

async function readAgain(
	store: RangeDeps['store'],
	{ workerId }: WorkerRef,
	range: { after: ShardId | null; end: ShardId | null },
): Promise<ReadonlyMap<ShardId, KnownShard>> {
	const found = new Map<ShardId, KnownShard>();
	for (let { after } = range; ; ) {
		const page = await store.knownShards(workerId, { after, limit: PAGE });
		for (const shard of page) found.set(shard.shardId, shard);
		const last = page.at(-1)?.shardId;
		if (last === undefined || page.length < PAGE || (range.end !== null && last >= range.end)) return found;
		after = last;
	}
}
