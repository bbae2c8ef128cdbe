/** `make sim`: many seeds for a minute, or those that SEED= and STEPS= name. Prints the seed of a failure and its last events. */

import { run } from './simulation.ts';

// What make exports unset is empty.
const given = Object.fromEntries(Object.entries(process.env).filter(([, value]) => value !== ''));
const { SEED, STEPS, SECONDS, TRACE, FIRST, RUNS } = given;
const steps = Number(STEPS ?? 150);
const endMs = performance.now() + Number(SECONDS ?? 60) * 1000;
const totals = { runs: 0, steps: 0, events: 0, hours: 0, stored: 0, reads: 0 };
const first = Number(FIRST ?? Date.now() % 1_000_000);
const runs = Number(SEED !== undefined ? 1 : (RUNS ?? Number.POSITIVE_INFINITY));

for (let i = 0; i < runs && (SEED !== undefined || performance.now() < endMs); i++) {
	const seed = SEED ?? String(first + i);
	const result = await run({ seed, steps, trace: TRACE !== undefined });
	totals.runs++;
	totals.steps += result.steps;
	totals.events += result.events;
	totals.hours += result.simulatedMs / 3_600_000;
	totals.stored += result.counts.stored;
	totals.reads += result.counts.reads;
	if (SEED !== undefined) process.stdout.write(`${JSON.stringify({ ...result, failure: undefined })}\n`);
	if (result.failure === null) continue;
	process.stdout.write(`${result.failure.recent.slice(-60).join('\n')}\n`);
	process.stdout.write(`seed ${seed} failed at step ${result.steps}: ${result.failure.message}\n`);
	process.stdout.write(`again: make sim SEED=${seed} STEPS=${steps} (TRACE=1 shows all that happened)\n`);
	process.exit(1);
}
process.stdout.write(
	`${totals.runs} runs, ${totals.steps} steps, ${totals.events} events, ${totals.hours.toFixed(1)} simulated hours, ${totals.stored} objects stored, ${totals.reads} reads: all as it must be\n`,
);
