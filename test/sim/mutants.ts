/**
 * `make sim-mutants`: does the simulation find bugs? Puts each of these into a copy of the sources, one by one, and runs
 * seeds until one fails, or the test that is named. Ends with the table of docs/testing.md, and with an error when a bug was not found.
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
	/** The test that finds it, of what is not in the simulation. */
	readonly test?: string;
	/** More of the same bug. */
	readonly and?: readonly Omit<Mutant, 'bug' | 'and'>[];
}

const MUTANTS: readonly Mutant[] = [
	{
		bug: 'a snapshot is stored without the last of its objects',
		file: 'orchestrator/snapshots.ts',
		from: 'for (const { object, trash, segments } of page.objects) {',
		to: 'for (const { object, trash, segments } of page.objects.slice(0, -1)) {',
	},
	{
		bug: 'a snapshot ends before all of it was written',
		file: 'orchestrator/snapshots.ts',
		from: 'yield encoder.end();',
		to: '',
	},
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
		bug: 'what was missing of the old encoding stays in the repair queue',
		file: 'orchestrator/store-memory.ts',
		from: 'if (item.objectId === objectId && item.segment === index) data.repairs.delete(at);',
		to: 'if (item.encodingId === segment.encodingId) data.repairs.delete(at);',
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
	{
		bug: 'restore: shards of two encodings are taken together',
		test: 'core/model/recover.test.ts',
		file: 'core/model/recover.ts',
		from: "return [encodingId, sealId, codec, k, n, cellBytes, endRecord.toString('base64')].join(' ');",
		to: "return [encodingId === '' ? '' : sealId, codec, k, cellBytes + 0 * n, endRecord.toString('base64')].join(' ');",
	},
	{
		bug: 'restore: k - 1 shards are enough',
		test: 'core/model/recover.test.ts',
		file: 'core/model/recover.ts',
		from: 'chosen.length >= first.k)',
		to: 'chosen.length >= first.k - 1)',
	},
	{
		bug: 'restore: an end record counts that does not open',
		test: 'core/model/recover.test.ts',
		file: 'core/model/recover.ts',
		from: 'if (opened === null || opened.cells !== shard.cells || opened.lastCellBytes !== shard.lastCellBytes) return false;',
		to: 'if (opened === null) return true;',
	},
	{
		bug: 'restore: the encoding with the fewest shards to spare is taken',
		test: 'core/model/recover.test.ts',
		file: 'core/model/recover.ts',
		from: 'b.chosen.length - b.first.k - (a.chosen.length - a.first.k) ||',
		to: 'a.chosen.length - a.first.k - (b.chosen.length - b.first.k) ||',
	},
	{
		bug: 'restore: what was sealed of sizes is not compared',
		test: 'core/model/recover.test.ts',
		file: 'core/model/recover.ts',
		from: 'if (manifest.segments !== segments.length || manifest.sizeBytes !== sizeBytes) {',
		to: 'if (sizeBytes < 0) {',
	},
	{
		bug: 'restore: one shard that was repaired after the snapshot makes a deleted object new',
		test: 'core/model/recover.test.ts',
		file: 'core/model/recover.ts',
		from: 'lateShards.length >= last.k;',
		to: 'lateShards.length >= 1;',
	},
	{
		bug: 'restore: a moved shard is placed on a worker that has another of its segment',
		test: 'core/model/recover.test.ts',
		file: 'core/model/recover.ts',
		from: 'copies.find(({ workerId }) => !taken.has(workerId)) ?? copies[0]',
		to: 'copies[0]',
	},
	{
		bug: 'a snapshot is taken for a whole one without its end',
		test: 'test/vectors/snapshot.test.ts',
		file: 'core/model/snapshot.ts',
		from: 'if (!this.#ended || this.#rest.length > 0)',
		to: 'if (this.#rest.length > 0)',
	},
	{
		bug: 'the digest of a snapshot is not compared',
		test: 'test/vectors/snapshot.test.ts',
		file: 'core/model/snapshot.ts',
		from: '&& this.#digest.digestBuffer().equals(digest);',
		to: '&& digest.length > 0;',
	},
	{
		bug: 'a file of somebody who calls it a snapshot is taken for one',
		test: 'orchestrator/snapshots.test.ts',
		file: 'orchestrator/restore-snapshot.ts',
		from: "if (kind === 'snapshot') found.push",
		to: "if (kind === 'snapshot' || kind === undefined) found.push",
	},
	{
		bug: 'a snapshot that failed half-way is committed',
		test: 'orchestrator/snapshots.test.ts',
		file: 'orchestrator/snapshots.ts',
		from: "upload.abort('the snapshot failed');",
		to: 'upload.end();',
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
		for (const file of ['package.json', 'vitest.config.ts']) fs.copyFileSync(join(root, file), join(copy, file));
		fs.symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));
		change(copy, mutant);
		for (const more of mutant.and ?? []) change(copy, more);
		if (mutant.test !== undefined) {
			found.push(testRow(copy, { ...mutant, test: mutant.test }));
			continue;
		}
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

/** Of a bug that a test of its own finds. */
function testRow(copy: string, { bug, test }: Mutant & { test: string }): string {
	const vitest = join(root, 'node_modules/vitest/vitest.mjs');
	const { stdout, stderr } = spawnSync(process.execPath, [vitest, 'run', '--root', copy, test], {
		encoding: 'utf8',
		env: { ...process.env, NO_COLOR: '1' },
	});
	const [, how] = /^ *FAIL .*? > (.*)$/m.exec(`${stdout}${stderr}`) ?? [];
	if (how === undefined) missed++;
	const row = how === undefined ? `| ${bug} | **not found** | |` : `| ${bug} | \`${test}\` | ${how} |`;
	process.stdout.write(`${row}\n`);
	return row;
}

function change(copy: string, what: Omit<Mutant, 'bug' | 'and'>): void {
	const path = join(copy, what.file);
	const text = fs.readFileSync(path, 'utf8');
	if (text.split(what.from).length !== 2) throw new Error(`${what.file} has not once: ${what.from}`);
	fs.writeFileSync(
		path,
		text.replace(what.from, () => what.to),
	);
}
