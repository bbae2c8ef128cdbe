/**
 * `make sim-mutants`: does the simulation find bugs? Puts each of these into a copy of the sources, one by one, and runs
 * seeds until one fails. Ends with the table of docs/testing.md, and with an error when a bug was not found.
 *
 * `ONLY=` takes those whose name has it; `SEEDS=` says how many seeds each gets at most.
 */

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

interface Mutant {
	readonly bug: string;
	readonly file: string;
	/** Stands in the file once. */
	readonly from: string;
	readonly to: string;
	/** More of the same bug. */
	readonly and?: readonly Omit<Mutant, 'bug' | 'and'>[];
}

const MUTANTS: readonly Mutant[] = [
	{
		bug: 'a rebuilt shard is placed on a worker that has another of its segment',
		file: 'orchestrator/store-memory.ts',
		from: 'segment.placements.some((other) => other.workerId === placement.workerId && other.shardIndex !== shardIndex)',
		to: 'false',
	},
	{
		bug: 'a finding does not take its shard out of its worker set',
		file: 'orchestrator/store-memory.ts',
		from: 'placements.filter(({ shardId }) => !this.#data.findings.has(shardId))',
		to: 'placements',
	},
	{
		bug: 'a write settles for just k shards',
		file: 'core/model/redundancy.ts',
		from: 'return Math.min(n, k + Math.max(1, Math.ceil((n - k) / 2)));',
		to: 'return Math.min(n, k);',
	},
	{
		bug: 'a commit does not ask whether its intent is open still',
		file: 'orchestrator/store-memory.ts',
		from: 'if (intent === undefined && commit.segments.length > 0) throw notOpen(object.uploadId);',
		to: '',
		and: [
			{
				file: 'orchestrator/store-memory.ts',
				from: 'if (intent?.shards.get(shardId) !== workerId) throw neverNamed(shardId);',
				to: 'if (intent !== undefined && intent.shards.get(shardId) !== workerId) throw neverNamed(shardId);',
			},
		],
	},
	{
		bug: 'an expired intent fills the delete queue and stays open',
		file: 'orchestrator/store-memory.ts',
		from: 'for (const { uploadId } of expired.slice(0, limit)) await this.abort(uploadId, nowMs);',
		to: `for (const { uploadId } of expired.slice(0, limit)) {
			for (const [shardId, workerId] of data.intents.get(uploadId)?.shards ?? []) data.deletions.set(shardId, workerId);
		}`,
	},
	{
		bug: 'the intent that ends queues a placed shard for deletion',
		file: 'orchestrator/store-memory.ts',
		from: `for (const [shardId, workerId] of data.intents.get(uploadId)?.shards ?? []) {
			if (!data.placed.has(shardId)) data.deletions.set(shardId, workerId);`,
		to: `for (const [shardId, workerId] of data.intents.get(uploadId)?.shards ?? []) {
			data.deletions.set(shardId, workerId);`,
	},
	{
		bug: 'an upload that fails forgets the shards that it named',
		file: 'orchestrator/store-memory.ts',
		from: `this.#discardIntent(uploadId);
		for (const [at, claim]`,
		to: `data.intents.delete(uploadId);
		for (const [at, claim]`,
	},
	{
		bug: 'a write with a lease that has ended is accepted',
		file: 'orchestrator/store-memory.ts',
		from: 'if (lease === undefined) return;',
		to: 'if (lease !== null) return;',
	},
	{
		bug: 'what a drain leaves is deleted before it was copied',
		file: 'orchestrator/repair.ts',
		from: '		const { copy } = task;',
		to: `		const { copy } = task;
		const from = before === undefined ? null : workers.ref(before.workerId);
		if (copy && before !== undefined && from !== null) {
			await (transport as unknown as GrpcShardTransport).delete(from, [before.shardId], { timeoutMs: 5_000 });
		}`,
	},
	{
		bug: 'the old encoding is deleted before the new one is verified',
		file: 'orchestrator/reencode.ts',
		from: '		const { placements, roots } = await transfer(',
		to: `		for (const { workerId, shardId } of from.placements) {
			const holder = workers.ref(workerId);
			if (holder !== null) await (transport as unknown as GrpcShardTransport).delete(holder, [shardId], { timeoutMs: 5_000 });
		}
		const { placements, roots } = await transfer(`,
	},
	{
		bug: 'a repair of the old encoding is placed in the new one',
		file: 'orchestrator/store-memory.ts',
		from: '|| segment?.encodingId !== item.encodingId) {',
		to: '|| segment === undefined) {',
	},
	{
		bug: 'a read does not ask anew where the shards are',
		file: 'orchestrator/download.ts',
		from: 'if (!isGone || reread === REREADS || read.signal.aborted) throw error;',
		to: 'if (reread >= 0) throw error;',
	},
	{
		bug: 'the cells that a repair reads are not checked, nor the root of what it makes',
		file: 'core/transfer/gather.ts',
		from: 'expected === undefined || !leafHash(cell).equals(expected)',
		to: 'expected === undefined',
		and: [
			{ file: 'orchestrator/repair.ts', from: 'if (!rootOf(leaves).equals(root)) {', to: 'if (leaves.length === 0) {' },
			{
				file: 'orchestrator/repair.ts',
				from: 'trailerOf(deps, job, { leaves, root })',
				to: 'trailerOf(deps, job, { leaves, root: rootOf(leaves) })',
			},
			{ file: 'orchestrator/repair.ts', from: 'receipt.root.equals(root) &&', to: '' },
			{
				file: 'orchestrator/repair.ts',
				from: 'if (!kept.root.equals(root)) throw',
				to: 'if (kept.root.length === 0) throw',
			},
		],
	},
	{
		bug: 'a worker acknowledges before the file is synced',
		file: 'worker/store-disk.ts',
		from: 'files.fsync(fd, (error) => (error === null || error === undefined ? resolve() : reject(foreign(error))));',
		to: 'resolve();',
	},
	{
		bug: 'a worker acknowledges before the folder is synced',
		file: 'worker/store-disk.ts',
		from: 'await folder.sync();\n\t}\n\n\tabort',
		to: 'void folder.sync().catch(() => {});\n\t}\n\n\tabort',
	},
	{
		bug: 'a volume whose mount has vanished answers "not found"',
		file: 'worker/store-disk.ts',
		from: 'this.#online().then(missing, reject);',
		to: 'missing();',
	},
	{
		bug: 'the delete queue forgets what a worker did not delete',
		file: 'orchestrator/jobs.ts',
		from: 'await transport.delete(worker, shardIds, { timeoutMs: DELETE_TIMEOUT_MS, forGood });',
		to: 'await transport.delete(worker, shardIds, { timeoutMs: DELETE_TIMEOUT_MS, forGood }).catch(() => {});',
	},
	{
		bug: 'an object is purged before its time in the trash is over',
		file: 'orchestrator/store-memory.ts',
		from: 'trash !== null && trash.purgeAtMs <= nowMs',
		to: 'trash !== null',
	},
	{
		bug: 'a purge takes what was undeleted meanwhile as well',
		file: 'orchestrator/store-memory.ts',
		from: `		stored.trash = null;
		this.#log({ objectId, action: 'undeleted'`,
		to: `		const until = stored.trash.purgeAtMs;
		stored.trash = null;
		this.#undeleted.set(objectId, until);
		this.#log({ objectId, action: 'undeleted'`,
		and: [
			{
				file: 'orchestrator/store-memory.ts',
				from: `		const batch = due.sort(`,
				to: `		for (const [objectId, until] of this.#undeleted) {
			const stored = data.objects.get(objectId);
			if (until <= nowMs && stored !== undefined) due.push(stored);
			if (until <= nowMs) this.#undeleted.delete(objectId);
		}
		const batch = due.sort(`,
			},
			{
				file: 'orchestrator/store-memory.ts',
				from: '	#closed = false;\n',
				to: '	#closed = false;\n	readonly #undeleted = new Map<ObjectId, number>();\n',
			},
		],
	},
	{
		bug: 'shards of what was purged go to the trash of their workers',
		file: 'orchestrator/jobs.ts',
		from: '{ timeoutMs: DELETE_TIMEOUT_MS, forGood }',
		to: '{ timeoutMs: DELETE_TIMEOUT_MS }',
	},
	{
		bug: 'what is deleted leaves its worker sets, so that nobody mends it any more',
		file: 'orchestrator/store-memory.ts',
		from: 'for (const { row, segments, trash } of this.#open.objects.values()) {',
		to: 'for (const { row, segments, trash } of this.#open.objects.values()) {\n			if (trash !== null) continue;',
	},
	{
		bug: 'reconcile takes what only an open intent names',
		file: 'orchestrator/store-memory.ts',
		from: 'for (const [shardId, holder] of shards) add(shardId, holder, { intended: true });',
		to: 'shards.size;',
		and: [{ file: 'orchestrator/store-memory.ts', from: 'isIntended(shardId) || deletions', to: 'deletions' }],
	},
	{
		bug: 'reconcile takes a list that it can not have for an empty one',
		file: 'orchestrator/reconcile-range.ts',
		from: 'await transport.list(worker, page, { timeoutMs: LIST_TIMEOUT_MS });',
		to: 'await transport.list(worker, page, { timeoutMs: LIST_TIMEOUT_MS }).catch(() => ({ shards: [], nowMs: 0 }));',
		and: [
			{
				file: 'orchestrator/reconcile-range.ts',
				from: 'await transport.trailers(worker, rest, { timeoutMs: TRAILERS_TIMEOUT_MS });',
				to: "await transport.trailers(worker, rest, { timeoutMs: TRAILERS_TIMEOUT_MS }).catch(() => rest.map(() => 'not_found'));",
			},
			{ file: 'orchestrator/reconcile-range.ts', from: "answers[i] === 'not_found'", to: "answers[i] !== ''" },
		],
	},
	{
		bug: 'canStop leaves k shards, whatever reserve was asked for',
		file: 'core/model/redundancy-report.ts',
		from: '.length < k + reserve;',
		to: '.length < k;',
	},
	{
		bug: 'a segment with k shards left counts as healthy',
		file: 'core/model/health.ts',
		from: "return placed - k <= 1 ? 'at_risk' : 'degraded';",
		to: "return 'degraded';",
	},
	{
		bug: 'a generation of the cluster key is dropped while a trailer needs it',
		file: 'orchestrator/store-memory.ts',
		from: 'if (isNewest || use.objects > 0 || use.shards > 0 || use.leftovers || !haveReported) {',
		to: 'if (isNewest || use.objects > 0 || !haveReported) {',
	},
	{
		bug: 'an older record of the keys takes the place of a newer one',
		file: 'worker/keys.ts',
		from: 'if (kept !== null && kept.revision >= record.revision) {',
		to: 'if (kept !== null && kept.revision === record.revision) {',
	},
	{
		bug: 'a worker acknowledges the keys before the folder is synced',
		file: 'worker/store-disk.ts',
		from: 'await this.#folderAt(this.#dataDir).sync();\n\t}\n\n\tasync stats',
		to: '}\n\n\tasync stats',
	},
	{
		bug: '(was in the product) a put that comes after its delete is kept',
		file: 'worker/store-disk.ts',
		from: 'this.#deleted.refuse(shardId);',
		to: '',
	},
	{
		bug: '(was in the product) a delete that is asked again does not sync the folder',
		file: 'worker/store-disk.ts',
		from: 'if (folder.mayComeBack) emptied.set(folder, shardId);',
		to: '',
	},
	{
		bug: '(was in the product) a dead upload holds its Idempotency-Key for a day',
		file: 'orchestrator/objects.ts',
		from: 'expiresAtMs: nowMs + INTENT_TTL_MS },',
		to: 'expiresAtMs: nowMs + 86_400_000 },',
	},
];

const root = resolve(import.meta.dirname, '../..');
const { ONLY = '', SEEDS = '60' } = process.env;
const found: string[] = [];
let missed = 0;

for (const mutant of MUTANTS.filter(({ bug }) => bug.includes(ONLY))) {
	const copy = fs.mkdtempSync(join(tmpdir(), 'distro-mutant-'));
	try {
		for (const folder of ['core', 'orchestrator', 'platform', 'worker', 'proto', 'test']) {
			fs.cpSync(join(root, folder), join(copy, folder), { recursive: true });
		}
		fs.copyFileSync(join(root, 'package.json'), join(copy, 'package.json'));
		fs.symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));
		change(copy, mutant);
		for (const more of mutant.and ?? []) change(copy, more);
		const { stdout, stderr, status } = spawnSync(process.execPath, [join(copy, 'test/sim/main.ts')], {
			encoding: 'utf8',
			env: { ...process.env, FIRST: '1', RUNS: SEEDS, SECONDS: '100000', STEPS: '150' },
			maxBuffer: 2 ** 27,
		});
		const [, seed, step, how = ''] = /^seed (\S+) failed at step (\d+): (.*)$/m.exec(stdout) ?? [];
		if (seed === undefined) missed++;
		const row =
			seed === undefined
				? `| ${mutant.bug} | **not found** | | ${status} ${stderr.slice(0, 200)} |`
				: `| ${mutant.bug} | ${seed} | ${step} | ${how.replace(/[0-9a-f]{32}/g, '…')} |`;
		found.push(row);
		process.stdout.write(`${row}\n`);
	} finally {
		fs.rmSync(copy, { recursive: true, force: true });
	}
}
process.stdout.write(`${found.length - missed} of ${found.length} bugs were found\n`);
process.exit(missed === 0 ? 0 : 1);

function change(copy: string, what: Omit<Mutant, 'bug' | 'and'>): void {
	const path = join(copy, what.file);
	const text = fs.readFileSync(path, 'utf8');
	if (text.split(what.from).length !== 2) throw new Error(`${what.file} has not once: ${what.from}`);
	fs.writeFileSync(
		path,
		text.replace(what.from, () => what.to),
	);
}
