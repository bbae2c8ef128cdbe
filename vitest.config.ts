import { defineConfig } from 'vitest/config';

export default defineConfig({
	test: {
		testTimeout: 30_000,
		hookTimeout: 60_000,
		reporters: ['default'],
		projects: [
			{
				extends: true,
				test: {
					name: 'unit',
					include: ['{core,platform,worker,orchestrator,operator,crds,hack,test/vectors}/**/*.test.ts'],
				},
			},
			{
				extends: true,
				test: { name: 'simulation', include: ['test/sim/**/*.test.ts'], testTimeout: 120_000 },
			},
			{
				// Real processes: one scenario at a time, so that they measure the product and not each other.
				extends: true,
				test: {
					name: 'processes',
					include: ['test/e2e/**/*.test.ts'],
					fileParallelism: false,
					testTimeout: 300_000,
					hookTimeout: 120_000,
					sequence: { groupOrder: 1 },
				},
			},
		],
	},
});
