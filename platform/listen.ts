/** Waits until a server listens; a port that is taken becomes one clear sentence. */

import type { Server } from 'node:net';
import { DistroError } from '../core/errors.ts';

export function listening(server: Server, what: string): Promise<void> {
	return new Promise((resolve, reject) => {
		if (server.listening) {
			resolve();
			return;
		}
		server.once('listening', resolve);
		server.once('error', (error) => reject(new DistroError('invalid', `${what}: can't listen: ${error.message}`)));
	});
}
