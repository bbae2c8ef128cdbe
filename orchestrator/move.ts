/**
 * The command that moves a cluster's metadata between SQLite and Supabase, while no orchestrator runs:
 *
 *     node orchestrator/move.ts --from sqlite --to supabase
 *     node orchestrator/move.ts --from supabase --to sqlite --replace
 *
 * It has the orchestrator's own environment: DATA_DIR, SUPABASE_URL, SUPABASE_KEY. Killed, it goes on when it is run again.
 * For the cluster of `make run` there is `npm run move`. How it works: move-metadata.ts.
 */

import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { asDistroError, DistroError } from '../core/errors.ts';
import { systemClock, systemRandom } from '../platform/clock.ts';
import { EnvReader } from '../platform/env.ts';
import { METADATA_FILE, readSupabase } from './config.ts';
import { orchestratorDataDir } from './data-dir.ts';
import { giveUpMove, moveMetadata } from './move-metadata.ts';
import type { MoveSide, SideKind } from './move-side.ts';
import { SqliteMoveSide } from './move-sqlite.ts';
import { openSupabaseMoveSide } from './move-supabase.ts';

const USAGE = `usage: move --from sqlite|supabase --to supabase|sqlite [--replace | --give-up]
  --replace   empty the target first, if it is an old or half-moved copy of the same cluster
  --give-up   undo a move that is not finished`;

function parsed(args: string[]) {
	try {
		const options = {
			from: { type: 'string' },
			to: { type: 'string' },
			replace: { type: 'boolean' },
			'give-up': { type: 'boolean' },
		} as const;
		const { from, to, replace = false, 'give-up': giveUp = false } = parseArgs({ args, options }).values;
		if (isSide(from) && isSide(to) && from !== to && !(replace && giveUp)) return { from, to, replace, giveUp };
	} catch (cause) {
		throw new DistroError('invalid', USAGE, { cause });
	}
	throw new DistroError('invalid', USAGE);
}

function isSide(text: string | undefined): text is SideKind {
	return text === 'sqlite' || text === 'supabase';
}

async function run(args: string[]): Promise<string> {
	const { from, to, replace, giveUp } = parsed(args);
	const dataDir = resolve(orchestratorDataDir('move'));
	const reader = new EnvReader(process.env);
	const address = readSupabase(reader);
	reader.done();
	if (address === null) {
		throw new DistroError(
			'invalid',
			'SUPABASE_URL and SUPABASE_KEY (or SUPABASE_KEY_FILE) are not set: whatever way it goes, both sides are needed',
		);
	}
	const supabase = await openSupabaseMoveSide(address, { random: systemRandom });
	const sqlite = new SqliteMoveSide(join(dataDir, METADATA_FILE));
	const side = (kind: SideKind): MoveSide => (kind === 'sqlite' ? sqlite : supabase);
	const say = (line: string) => console.log(line);
	const deps = { from: side(from), to: side(to), clock: systemClock, random: systemRandom, say };
	try {
		if (giveUp) {
			await giveUpMove(deps);
			return '';
		}
		const { moved, rows } = await moveMetadata(deps, { replace });
		if (moved === 'before') return `Nothing to do: this was moved to ${deps.to.name} before.`;
		const total = [...rows.values()].reduce((sum, count) => sum + count, 0);
		return `${total.toLocaleString('en')} rows are in both, each of them equal, and no others in the target.`;
	} finally {
		await sqlite.close();
		await supabase.close();
	}
}

try {
	const said = await run(process.argv.slice(2));
	if (said !== '') console.log(said);
} catch (thrown) {
	const error = asDistroError(thrown);
	console.error(error.kind === 'internal' ? (error.stack ?? error.message) : error.message);
	process.exitCode = 1;
}
