/**
 * A process's life: start with one clear sentence when it can't, stop gracefully when told.
 *
 * Stopping: readiness goes off, the stop hooks run in the reverse order of their adding, each with what is left of the
 * deadline, then the process exits. A second signal exits at once. A process that was started with
 * `DISTRO_PARENT_PIPE=1` also stops when its standard input closes: its supervisor is gone.
 */

import { asDistroError, DistroError } from '../core/errors.ts';

const STOP_DEADLINE_MS = 10_000;

export interface Lifecycle {
	readonly stopping: boolean;
	/** Runs at stop, last added first. */
	onStop(name: string, hook: () => Promise<void> | void): void;
	stop(why: string): void;
}

export interface LifecycleLog {
	info(fields: object, message: string): void;
	error(fields: object, message: string): void;
}

/** Runs `start` and keeps the process until it is told to stop. Never returns normally. */
export async function runProcess(name: string, start: (lifecycle: Lifecycle) => Promise<LifecycleLog>): Promise<void> {
	const hooks: { name: string; hook: () => Promise<void> | void }[] = [];
	let log: LifecycleLog | null = null;
	let stopping = false;
	const stop = (why: string) => {
		if (stopping) {
			process.exit(1);
		}
		stopping = true;
		log?.info({ why }, 'stopping');
		const deadline = setTimeout(() => {
			log?.error({}, 'stopping took too long');
			process.exit(1);
		}, STOP_DEADLINE_MS);
		deadline.unref();
		(async () => {
			for (const { name: hookName, hook } of hooks.toReversed()) {
				try {
					await hook();
				} catch (error) {
					log?.error({ err: error, hook: hookName }, 'a stop hook failed');
				}
			}
			log?.info({}, 'stopped');
			process.exit(0);
		})();
	};
	process.on('SIGTERM', () => stop('SIGTERM'));
	process.on('SIGINT', () => stop('SIGINT'));
	if (process.env.DISTRO_PARENT_PIPE === '1') {
		process.stdin.on('end', () => stop('the supervisor is gone'));
		process.stdin.on('error', () => stop('the supervisor is gone'));
		process.stdin.resume();
	}
	process.on('uncaughtException', (error) => {
		if (log === null) process.stderr.write(`${name}: ${error.stack ?? error.message}\n`);
		else log.error({ err: asDistroError(error) }, 'uncaught exception: this is a bug');
		process.exit(1);
	});
	try {
		log = await start({
			get stopping() {
				return stopping;
			},
			onStop: (hookName, hook) => {
				hooks.push({ name: hookName, hook });
			},
			stop,
		});
	} catch (error) {
		// People read this: a sentence that says what to do, and a stack only for bugs.
		const text = error instanceof DistroError && error.kind !== 'internal' ? error.message : (error as Error).stack;
		process.stderr.write(`${name} can't start: ${text}\n`);
		process.exit(1);
	}
}
