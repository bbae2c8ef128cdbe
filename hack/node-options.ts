/** Node flags and environment by role, measured in docs/performance.md. The Dockerfile's entry uses the same ones. */

export const NODE_OPTIONS_OF = {
	orchestrator: { flags: [], env: { MALLOC_ARENA_MAX: '2', UV_THREADPOOL_SIZE: '4' } },
	worker: { flags: [], env: { MALLOC_ARENA_MAX: '2', UV_THREADPOOL_SIZE: '4' } },
} as const;
