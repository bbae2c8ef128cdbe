/** One orchestrator as a process of its own, without `make run`: what it says when it can't start, and what it answers. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ROOT } from '../../hack/environment.ts';
import { testAuthority } from './authority.ts';

export interface Ended {
	readonly code: number | null;
	readonly output: string;
}

export interface LoneOrchestrator {
	readonly http: string;
	/** Everything that it has said. */
	output(): string;
	stop(): Promise<void>;
}

/** Of one cluster: they have the same authority. */
export interface Orchestrators {
	/** For one that can't start: how it ended. Throws when it serves. */
	fail(env: Record<string, string>): Promise<Ended>;
	/** Throws, with its words, when it does not. */
	start(env: Record<string, string>, options?: { wallClockAheadMs?: number }): Promise<LoneOrchestrator>;
	remove(): void;
}

export async function loneOrchestrators(): Promise<Orchestrators> {
	const authority = await testAuthority();
	const folder = mkdtempSync(join(tmpdir(), 'distro-orchestrators-'));
	let count = 0;
	const launch = async (more: Record<string, string>, aheadMs: number) => {
		const id = String(++count).padStart(32, '0');
		const skew = `const now = Date.now; Date.now = () => now() + ${aheadMs};`;
		const flags = aheadMs === 0 ? [] : ['--import', `data:text/javascript,${encodeURIComponent(skew)}`];
		const child = spawn(process.execPath, [...flags, join(ROOT, 'orchestrator/main.ts')], {
			env: {
				PATH: process.env.PATH ?? '',
				NAME: `orchestrator-${count}`,
				DATA_DIR: join(folder, id),
				TLS_DIR: await authority.issue('orchestrator', id),
				HTTP_PORT: '0',
				GRPC_PORT: '0',
				...more,
			},
			stdio: ['ignore', 'pipe', 'pipe'],
		});
		let output = '';
		const ended = once(child, 'close').then(([code]): Ended => ({ code, output }));
		const serving = new Promise<string>((resolve) => {
			const hear = (text: Buffer) => {
				output += text.toString();
				const [, http] = /"http":"([^"]+)".*"serving"/.exec(output) ?? [];
				if (http !== undefined) resolve(`http://${http}`);
			};
			child.stdout.on('data', hear);
			child.stderr.on('data', hear);
		});
		const stop = async () => {
			if (child.exitCode === null && child.signalCode === null) child.kill('SIGTERM');
			await ended;
		};
		return { ended, stop, serving, output: () => output };
	};
	return {
		fail: async (env) => {
			const { ended, serving, stop } = await launch(env, 0);
			const result = await Promise.race([ended, serving]);
			if (typeof result !== 'string') return result;
			await stop();
			throw new Error('it serves');
		},
		start: async (env, options = {}) => {
			const { ended, serving, stop, output } = await launch(env, options.wallClockAheadMs ?? 0);
			const result = await Promise.race([ended, serving]);
			if (typeof result !== 'string') throw new Error(`it did not start:\n${result.output}`);
			return { http: result, output, stop };
		},
		remove: () => {
			authority.remove();
			rmSync(folder, { recursive: true, force: true });
		},
	};
}
