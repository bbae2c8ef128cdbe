/**
 * What each orchestrator does for its own keys: it hears of generations that others made, and takes other master keys when
 * their file changed.
 */

import type { MasterKeyring } from '../core/crypto/keys.ts';
import { asDistroError } from '../core/errors.ts';
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
				try {
					await keyring.useMaster(now);
				} catch (error) {
					// Told once, and tried again when the file changes again; what the store could not do now is tried again.
					if (asDistroError(error).kind === 'denied') used = now;
					throw error;
				}
				used = now;
			}
			return REFRESH_MS;
		},
	};
}
