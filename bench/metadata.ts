/**
 * What the metadata stores cost, at 1, 8 and 32 at once: begin + commit of an object of one segment (any 4 of 6 shards, any
 * 1 of 3), commit of an inline object, and reads.
 *
 *     node bench/metadata.ts [--only sqlite,supabase,single,size] [folder]
 *
 * `supabase` is a real PostgreSQL behind a real PostgREST on this machine, `single` the same without group commit. CPU is
 * that of this process, so of SQLite's thread but not of the database's processes. The folder should be on the disk that
 * matters (default: the working directory); the temporary databases in it are removed. `size` is what an object's rows take in
 * PostgreSQL, with their indexes.
 */

import { mkdtemp, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import type { WorkerId } from '../core/ids.ts';
import { startPostgres, startPostgrest } from '../hack/dev-database.ts';
import { migrate } from '../hack/migrate.ts';
import { begin, Fixtures, type Upload } from '../orchestrator/store.fixtures.ts';
import type { MetadataStore } from '../orchestrator/store.ts';
import { openSqliteStore } from '../orchestrator/store-sqlite.ts';
import { openSupabaseStore } from '../orchestrator/store-supabase.ts';
import { systemClock, systemRandom } from '../platform/clock.ts';
import { startSupabase } from '../test/support/supabase.ts';

const RUN_MS = 500;
const CONCURRENCIES = [1, 8, 32];
/** Made before the clock runs; more than a run can use. */
const UPLOADS = 5_000;

const { values: options, positionals } = parseArgs({
	allowPositionals: true,
	options: { only: { type: 'string', default: 'sqlite,supabase,single,size' } },
});
const only = options.only.split(',');
const world = { clock: systemClock, random: systemRandom };
const make = new Fixtures('bench');
const workers = Array.from({ length: 6 }, () => make.id<WorkerId>());
const folder = await mkdtemp(join(resolve(positionals[0] ?? '.'), 'bench-metadata-'));
try {
	if (only.includes('sqlite')) {
		const store = await openSqliteStore({ path: join(folder, 'metadata.db') });
		await figures('SQLite', store);
	}
	if (only.includes('supabase') || only.includes('single')) {
		const database = await startPostgres({ folder: join(folder, 'postgres') });
		await migrate(database.url);
		const rest = await startPostgrest({ folder: join(folder, 'postgres'), database });
		for (const kind of ['supabase', 'single'].filter((name) => only.includes(name))) {
			const groupCommit = kind === 'supabase';
			const store = await openSupabaseStore({ ...world, url: rest.url, key: () => rest.serviceKey, groupCommit });
			await figures(groupCommit ? 'Supabase' : 'Supabase, one call a request', store);
		}
		await rest.stop();
		await database.stop();
	}
	if (only.includes('size')) await sizes();
} finally {
	await rm(folder, { recursive: true });
}

async function sizes(): Promise<void> {
	console.log('\nPostgreSQL\nobject                        bytes, rows and indexes');
	const supabase = await startSupabase();
	const store = await openSupabaseStore({ ...world, url: supabase.url, key: () => supabase.key });
	for (const [title, shape] of [
		['inline, 80 bytes', { segments: 0 }],
		['1 segment, any 1 of 3', { k: 1, n: 3 }],
		['1 segment, any 4 of 6', { k: 4, n: 6 }],
		['16 segments, any 8 of 12', { k: 8, n: 12, segments: 16 }],
	] as const) {
		await supabase.clear();
		const count = title.startsWith('16') ? 1_000 : 10_000;
		for (let done = 0; done < count; done += 500) {
			const uploads = Array.from({ length: 500 }, () => make.upload(workers, shape));
			await Promise.all(uploads.map((upload) => begin(store, upload)));
			await Promise.all(uploads.map(({ commit }) => store.commit(commit)));
		}
		const [row] = await supabase.sql<{ bytes: string }[]>`
			SELECT sum(pg_total_relation_size(oid)) AS bytes FROM pg_class
				WHERE relnamespace = 'distro'::regnamespace AND relname IN ('objects', 'segments', 'placements')`;
		console.log(title.padEnd(30), String(Math.round(Number(row?.bytes) / count)).padStart(5));
	}
	await store.close();
	await supabase.remove();
}

async function figures(title: string, store: MetadataStore): Promise<void> {
	console.log(`\n${title}\noperation               at once    op/s   µs CPU/op   ms p50`);
	const stored: Upload[] = [];
	for (const [k, n] of [
		[4, 6],
		[1, 3],
	]) {
		for (const concurrency of CONCURRENCIES) {
			const uploads = Array.from({ length: UPLOADS }, () => make.upload(workers, { k, n }));
			await measure(`begin + commit, ${k} of ${n}`, concurrency, async () => {
				const upload = uploads.pop();
				if (upload === undefined) return false;
				await begin(store, upload);
				await store.commit(upload.commit);
				stored.push(upload);
				return true;
			});
		}
	}
	for (const concurrency of CONCURRENCIES) {
		const uploads = Array.from({ length: UPLOADS }, () => make.upload(workers, { segments: 0 }));
		await measure('commit, inline', concurrency, async () => {
			const upload = uploads.pop();
			if (upload === undefined) return false;
			await store.commit(upload.commit);
			return true;
		});
	}
	for (const concurrency of CONCURRENCIES) {
		let at = 0;
		await measure('object', concurrency, async () => {
			const { objectId } = stored[at++ % stored.length] as Upload;
			return (await store.object(objectId)) !== null;
		});
	}
	for (const concurrency of CONCURRENCIES) {
		let at = 0;
		await measure('objectWithSegments', concurrency, async () => {
			const { objectId } = stored[at++ % stored.length] as Upload;
			return (await store.objectWithSegments(objectId, { fromSegment: 0, limit: 8 })) !== null;
		});
	}
	await store.close();
}

/** Calls `operation` from `concurrency` loops until the time is over or it answers false. */
async function measure(name: string, concurrency: number, operation: () => Promise<boolean>): Promise<void> {
	const startedMs = performance.now();
	const cpu = process.cpuUsage();
	const tookMs: number[] = [];
	const loop = async () => {
		while (performance.now() - startedMs < RUN_MS) {
			const fromMs = performance.now();
			if (!(await operation())) break;
			tookMs.push(performance.now() - fromMs);
		}
	};
	await Promise.all(Array.from({ length: concurrency }, loop));
	const seconds = (performance.now() - startedMs) / 1_000;
	const { user, system } = process.cpuUsage(cpu);
	const count = tookMs.length;
	tookMs.sort((a, b) => a - b);
	const columns = [
		name.padEnd(23),
		String(concurrency).padStart(7),
		(count / seconds).toFixed(0).padStart(7),
		((user + system) / count).toFixed(0).padStart(11),
		(tookMs[count >> 1] ?? 0).toFixed(2).padStart(8),
	];
	console.log(columns.join(' '));
}
