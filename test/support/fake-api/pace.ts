/** Time for tests that have a manual clock and real connections: it moves in steps, and each step's requests end first. */

import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import type { ManualClock } from '../clock.ts';
import type { FakeApi } from './server.ts';

const TRY_MS = 2;
const QUIET_TURNS = 50;
const GIVE_UP_MS = 15_000;

/** Until `condition` holds, with the clock moved by `stepMs` between two looks. Fails after 15 s of real time. */
export async function until(
	condition: () => boolean,
	options: { readonly clock?: ManualClock; readonly stepMs?: number; readonly api?: FakeApi } = {},
): Promise<void> {
	const start = performance.now();
	while (!condition()) {
		if (performance.now() - start > GIVE_UP_MS) throw new Error(`not within ${GIVE_UP_MS} ms: ${condition}`);
		options.clock?.advance(options.stepMs ?? 0);
		await settled(options.api);
	}
}

/** Lets `ms` pass. */
export async function pass(
	ms: number,
	options: { readonly clock: ManualClock; readonly stepMs: number; readonly api: FakeApi },
): Promise<void> {
	for (let left = ms; left > 0; left -= options.stepMs) {
		options.clock.advance(Math.min(left, options.stepMs));
		await settled(options.api);
	}
}

/**
 * What was sent is answered, and what follows from the answer is sent: client and server are in this process, so when
 * nothing came for some turns of the event loop, nothing is under way.
 */
async function settled(api: FakeApi | undefined): Promise<void> {
	if (api === undefined) return void (await sleep(TRY_MS));
	let seen = api.requests.length;
	for (let quiet = 0; quiet < QUIET_TURNS; quiet++) {
		await turn();
		if (api.busy === 0 && api.requests.length === seen) continue;
		seen = api.requests.length;
		quiet = 0;
	}
}
