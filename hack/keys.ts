/**
 * `npm run keys -- …`: the API keys of the cluster that `make run` starts, before its first start as well. DATA_DIR is that of
 * `make run`; the orchestrator's own folder is in it. Beside any other orchestrator: orchestrator/keys.ts.
 */

import { existsSync } from 'node:fs';
import { basename, join } from 'node:path';
import { loadDotenv } from '../platform/env.ts';
import { clusterDataDir, ORCHESTRATOR } from './environment.ts';

loadDotenv();
const given = clusterDataDir();
// Who names the orchestrator's own folder means that one.
const isOrchestrators = basename(given) === ORCHESTRATOR || existsSync(join(given, 'metadata.db'));
process.env.DATA_DIR = isOrchestrators ? given : join(given, ORCHESTRATOR);
await import('../orchestrator/keys.ts');
