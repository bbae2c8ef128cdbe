/**
 * What each orchestrator does for its own keys: it hears of generations that others made, and takes other master keys when
 * their file changed.
 */

import type { MasterKeyring } from '../core/crypto/keys.ts';
import type { Job } from './jobs.ts';
import type { Keyring } from './keyring.ts';

const REFRESH_MS = 2_000;

export function keysJob(deps: { keyring: Keyring; masterNow?: () => MasterKeyring }): Job {
	const { keyring, masterNow } = deps;
	let used = masterNow?.();
	return {
		name: 'keys',
		step: async () => {
			await keyring.refresh();
			const now = masterNow?.();
			if (now !== undefined && now !== used) {
				// Once: what was refused is told, and tried again when the file changes again.
				used = now;
				await keyring.useMaster(now);
			}
			return REFRESH_MS;
		},
	};
}
