/**
 * Node flags and environment by role, measured in docs/performance.md.
 *
 * A young generation of 1 MB frees Buffers early: V8's own choice keeps over 100 MB of dead ones. --expose-gc is for
 * platform/young-collection.ts. The compile cache keeps the type-stripped code, which saves the stripper's 27 MB in every
 * process. Why each: docs/decisions/0005-node-flags.md.
 */

import { resolve } from 'node:path';

const COMPILE_CACHE = resolve(import.meta.dirname, '../node_modules/.cache/distro-compile');
const env = { MALLOC_ARENA_MAX: '2', UV_THREADPOOL_SIZE: '4', NODE_COMPILE_CACHE: COMPILE_CACHE };

const flags = ['--max-semi-space-size=1', '--expose-gc', '--heap-growing-percent=100', '--single-threaded-gc'] as const;

export const NODE_OPTIONS_OF = {
	orchestrator: { flags, env },
	worker: { flags, env },
} as const;
