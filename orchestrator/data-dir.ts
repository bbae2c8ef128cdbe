/** The data folder of one orchestrator, for commands that work on it. */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { DistroError } from '../core/errors.ts';

/** Another folder would be nobody's: rather a question than a guess. `command` is what npm calls it. Throws `invalid`. */
export function orchestratorDataDir(command: string): string {
	const given = process.env.DATA_DIR;
	if (given === undefined || given === '') {
		throw new DistroError(
			'invalid',
			`DATA_DIR is not set: give the data folder of the orchestrator, or use npm run ${command} for the cluster of make run`,
		);
	}
	if (existsSync(join(given, 'ca', 'cluster-id'))) {
		throw new DistroError(
			'invalid',
			`${given} is the folder of a whole cluster: give that of its orchestrator, DATA_DIR=${join(given, 'orchestrator-1')}`,
		);
	}
	return given;
}
