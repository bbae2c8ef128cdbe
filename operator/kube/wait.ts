/** Waiting by the Clock port, ended early by a signal. */

import type { Clock } from '../../core/ports.ts';

/** Resolves when the time is over or the signal was aborted, whichever is first; who cares which looks at the signal. */
export function wait(clock: Clock, ms: number, signal: AbortSignal): Promise<void> {
	return new Promise((resolve) => {
		if (signal.aborted) return resolve();
		const done = () => {
			cancel();
			signal.removeEventListener('abort', done);
			resolve();
		};
		const cancel = clock.schedule(ms, done);
		signal.addEventListener('abort', done, { once: true });
	});
}
