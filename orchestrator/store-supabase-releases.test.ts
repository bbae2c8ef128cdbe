/**
 * Orchestrators of the releases before, on a database that this one has migrated: they run on until they are restarted. Their
 * calls were recorded (test/fixtures/calls.ts); each is made again, and answered in the shape that they expect.
 */

import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { type Call, readCalls } from '../test/fixtures/calls.ts';
import { fixtures } from '../test/fixtures/fixture.ts';
import { startSupabase, type TestSupabase } from '../test/support/supabase.ts';

let supabase: TestSupabase;
beforeAll(async () => {
	supabase = await startSupabase();
});
beforeEach(() => supabase.clear());
afterAll(() => supabase?.remove());

test.each(fixtures().map(({ release }) => release))('calls of %s', async (release) => {
	const calls = readCalls(release).filter(({ name }) => name !== 'distro_schema');
	expect(calls.length).toBeGreaterThan(40);
	const found: string[] = [];
	for (const call of calls) found.push(...misfits(call.answer, await make(call), nameOf(call)));
	expect(found).toEqual([]);
});

async function make({ name, args }: Call): Promise<unknown> {
	const response = await fetch(`${supabase.url}/rpc/${name}`, {
		method: 'POST',
		headers: { 'content-type': 'application/json', authorization: `Bearer ${supabase.key}` },
		body: JSON.stringify(args),
	});
	return response.json();
}

function nameOf({ name, args }: Call): string {
	const { calls = [] } = args as { calls?: { method: string }[] };
	return `${name} ${calls.map(({ method }) => method).join()}`;
}

/** What an answer lacks, or has in another shape, for somebody who was answered `then` before. New fields are welcome. */
function misfits(then: unknown, now: unknown, path: string): string[] {
	// A row that is there in one of them only has no shape to compare: what is true of the data is for other tests.
	if (then === null || (now === null && path.includes('.ok'))) return [];
	if (typeof then !== typeof now || Array.isArray(then) !== Array.isArray(now))
		return [`${path}: ${JSON.stringify(now)} in place of ${JSON.stringify(then)}`];
	if (typeof then !== 'object') {
		// Whether it is refused, and with what word.
		return /\.error\.(code|message)$/.test(path) && then !== now ? [`${path}: ${now} in place of ${then}`] : [];
	}
	const there = now as Record<string, unknown>;
	return Object.entries(then as object).flatMap(([key, value]) => {
		if (!(key in there))
			return Array.isArray(then) && path.includes('.ok') ? [] : [`${path}.${key}: ${JSON.stringify(now)}`];
		return misfits(value, there[key], `${path}.${key}`);
	});
}
