/**
 * `make bench`: starts a cluster and prints what it costs and how fast it is. CPU is summed over all server processes
 * (the client's is not counted); it is the figure to steer by, since MB/s depend on what else the machine does.
 *
 *     node bench/main.ts [--quick] [--only 64MiB,1MiB,64KiB,4KiB,range,form,degraded,parts,repair,polite,drain,slow] [--memory] [--json FILE]
 */

import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import os from 'node:os';
import { parseArgs } from 'node:util';
import { getHash, putStream } from '../test/support/client.ts';
import { startCluster, type TestCluster } from '../test/support/cluster.ts';
import { get, post, postForm, repeat, targetOf } from './load.ts';
import { measureDrain, measureRepair, measureSlowDisk } from './mending.ts';
import { measureParts } from './parts.ts';
import { cpuSeconds, peakBytes } from './processes.ts';
import { measureStreams } from './stream.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const GB = 1e9;

const { values: options } = parseArgs({
	options: {
		quick: { type: 'boolean', default: false },
		memory: { type: 'boolean', default: false },
		only: { type: 'string' },
		json: { type: 'string' },
	},
});
const only = options.only?.split(',');
const wants = (what: string) => only === undefined || only.includes(what);

interface Row {
	readonly what: string;
	readonly atOnce: number;
	readonly mbPerS: number;
	readonly opsPerS: number;
	readonly p50Ms: number;
	readonly p99Ms: number;
	readonly cpuMsPerOp: number;
	readonly cpuSPerGb: number;
	/** Target of the same unit, and the best of the others. */
	readonly goal: string;
}

/** What is to be reached, and (in brackets) the best of MinIO, Garage, Swift and Tahoe on the same kind of machine. */
const GOALS: Record<string, { figure: number; unit: 's/GB' | 'ms'; others: string }> = {
	'put 64MiB': { figure: 5.5, unit: 's/GB', others: '3.25' },
	'get 64MiB': { figure: 2.6, unit: 's/GB', others: '2.1' },
	'put 1MiB': { figure: 8, unit: 'ms', others: '13' },
	'get 1MiB': { figure: 3.5, unit: 'ms', others: '3.6' },
	'put 64KiB': { figure: 3, unit: 'ms', others: '4.3' },
	'get 64KiB': { figure: 0.75, unit: 'ms', others: '0.76' },
	'put 4KiB': { figure: 1, unit: 'ms', others: '3.5' },
	'get 4KiB': { figure: 0.5, unit: 'ms', others: '0.78' },
	'range 64KiB': { figure: 1.2, unit: 'ms', others: '3.1' },
};

const rows: Row[] = [];

async function measure(
	c: TestCluster,
	o: { what: string; bytes: number; atOnce: number; total: number; operation: (index: number) => Promise<unknown> },
): Promise<void> {
	const pids = c.processes().map(({ pid }) => pid);
	const cpu = () => pids.reduce((sum, pid) => sum + cpuSeconds(pid), 0);
	await repeat(o.operation, { atOnce: o.atOnce, total: Math.max(o.atOnce, Math.ceil(o.total / 10)) });
	const before = cpu();
	const timing = await repeat(o.operation, { atOnce: o.atOnce, total: o.total });
	const usedS = cpu() - before;
	const movedGb = (o.total * o.bytes) / GB;
	const cpuMsPerOp = (usedS * 1000) / o.total;
	const cpuSPerGb = usedS / movedGb;
	const goal = GOALS[o.what];
	const reached = goal === undefined ? 0 : (goal.unit === 'ms' ? cpuMsPerOp : cpuSPerGb) / goal.figure;
	const row: Row = {
		what: o.what,
		atOnce: o.atOnce,
		mbPerS: (movedGb * 1000) / timing.seconds,
		opsPerS: timing.operations / timing.seconds,
		p50Ms: timing.p50Ms,
		p99Ms: timing.p99Ms,
		cpuMsPerOp,
		cpuSPerGb,
		goal: goal === undefined ? '' : `${goal.figure} ${goal.unit} (${goal.others})  ×${reached.toFixed(2)}`,
	};
	rows.push(row);
	printRow(row);
}

const WIDTHS = [22, 8, 9, 9, 9, 9, 10, 10] as const;

function printCells(cells: readonly string[]): void {
	process.stdout.write(
		`${cells.map((cell, i) => (i === 0 ? cell.padEnd(22) : cell.padStart(WIDTHS[i] ?? 0))).join(' ')}\n`,
	);
}

function printHeader(): void {
	printCells(['', 'at once', 'MB/s', 'op/s', 'p50 ms', 'p99 ms', 'CPU ms/op', 'CPU s/GB', '  goal (others)  ratio']);
}

function printRow(row: Row): void {
	const figure = (value: number) =>
		value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
	printCells([
		row.what,
		String(row.atOnce),
		...[row.mbPerS, row.opsPerS, row.p50Ms, row.p99Ms, row.cpuMsPerOp, row.cpuSPerGb].map(figure),
		`  ${row.goal}`,
	]);
}

/** Operations per cell of the table: enough that 10 ms ticks of CPU time don't matter, few enough to end. */
function totalFor(bytes: number): number {
	const full = bytes >= 64 * MiB ? 24 : bytes >= MiB ? 300 : bytes >= 64 * KiB ? 1500 : 4000;
	return options.quick ? Math.ceil(full / 4) : full;
}

async function table(): Promise<void> {
	const c = await startCluster();
	try {
		process.stdout.write(
			`${os.cpus().length} cores (${os.cpus()[0]?.model}), Node ${process.version}, 6 workers, mTLS and fsync on, ${new Date().toISOString().slice(0, 10)}\n\n`,
		);
		printHeader();
		const kept = new Map<string, string[]>();
		for (const [name, bytes] of [
			['4KiB', 4 * KiB],
			['64KiB', 64 * KiB],
			['1MiB', MiB],
			['64MiB', 64 * MiB],
		] as const) {
			if (!wants(name) && !(bytes === 64 * MiB && (wants('range') || wants('degraded')))) continue;
			const body = randomBytes(bytes);
			const ids: string[] = [];
			for (const atOnce of [1, 8, 32]) {
				const target = targetOf(c.http, atOnce);
				const total = Math.max(atOnce, totalFor(bytes));
				await measure(c, {
					what: `put ${name}`,
					bytes,
					atOnce,
					total,
					operation: async () => ids.push(await post(target, body)),
				});
				await measure(c, {
					what: `get ${name}`,
					bytes,
					atOnce,
					total,
					operation: (i) => get(target, ids[i % ids.length] as string),
				});
				target.agent.destroy();
			}
			const sample: Buffer[] = [];
			const target = targetOf(c.http, 1);
			await get(target, ids[0] as string, { into: sample });
			target.agent.destroy();
			if (!Buffer.concat(sample).equals(body)) throw new Error('what came back is not what was stored');
			kept.set(name, ids);
		}
		const large = kept.get('64MiB') ?? [];
		if (wants('range')) {
			for (const atOnce of [1, 8, 32]) {
				const target = targetOf(c.http, atOnce);
				await measure(c, {
					what: 'range 64KiB',
					bytes: 64 * KiB,
					atOnce,
					total: totalFor(64 * KiB),
					operation: (i) => {
						const from = (i * 7_777_777) % (63 * MiB);
						return get(target, large[i % large.length] as string, { range: [from, from + 64 * KiB - 1] });
					},
				});
				target.agent.destroy();
			}
		}
		if (wants('form')) {
			for (const [name, bytes] of [
				['64KiB', 64 * KiB],
				['64MiB', 64 * MiB],
			] as const) {
				const body = randomBytes(bytes);
				const target = targetOf(c.http, 8);
				await measure(c, {
					what: `form ${name}`,
					bytes,
					atOnce: 8,
					total: totalFor(bytes),
					operation: () => postForm(target, body),
				});
				target.agent.destroy();
			}
		}
		const peaks = c.processes().map(({ name, pid }) => `${name} ${Math.round(peakBytes(pid) / MiB)}`);
		if (wants('degraded')) {
			for (const [gone, name] of ['worker-1', 'worker-2'].entries()) {
				await c.kill(name);
				for (const size of ['64MiB', '1MiB', '64KiB']) {
					const ids = kept.get(size);
					if (ids === undefined) continue;
					const bytes = size === '64MiB' ? 64 * MiB : size === '1MiB' ? MiB : 64 * KiB;
					const target = targetOf(c.http, 8);
					const operation = (i: number) => get(target, ids[i % ids.length] as string);
					await measure(c, {
						what: `get ${size}, ${gone + 1} gone`,
						bytes,
						atOnce: 8,
						total: totalFor(bytes),
						operation,
					});
					target.agent.destroy();
				}
			}
		}
		process.stdout.write(`\npeak MiB: ${peaks.join(', ')}\n`);
	} finally {
		await c.remove();
	}
}

/** Eight 1 GB files up and down at once. */
async function memory(): Promise<void> {
	const size = options.quick ? 250_000_000 : 1_000_000_000;
	const c = await startCluster();
	try {
		const first = await Promise.all(Array.from({ length: 8 }, () => putStream(c.http, { size, chunked: false })));
		await Promise.all([
			...first.map(({ body }) => getHash(c.http, (JSON.parse(body) as { object_id: string }).object_id)),
			...first.map(() => putStream(c.http, { size, chunked: false })),
		]);
		const peaks = c.processes().map(({ name, pid }) => `${name} ${Math.round(peakBytes(pid) / MiB)}`);
		process.stdout.write(`eight ${size / GB} GB files up and down at once, peak MiB: ${peaks.join(', ')}\n`);
	} finally {
		await c.remove();
	}
}

if (wants('parts')) {
	process.stdout.write('The parts alone, CPU s/GB:\n');
	for (const [what, cost] of [...(await measureParts()), ...measureStreams()])
		process.stdout.write(`  ${what.padEnd(34)} ${cost.toFixed(2)}\n`);
	process.stdout.write('\n');
}
const APART = ['parts', 'repair', 'polite', 'drain', 'slow'];
if (only === undefined || only.some((what) => !APART.includes(what))) await table();
if (options.memory || only === undefined) await memory();
const { quick } = options;
if (wants('repair')) {
	await measureRepair({ quick, withReaders: false });
	await measureRepair({ quick, withReaders: true });
}
if (wants('polite')) await measureRepair({ quick, withReaders: true, polite: true });
if (wants('drain')) await measureDrain({ quick });
if (wants('slow')) await measureSlowDisk({ quick });
if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(rows, null, 2)}\n`);
