/** `node worker/init.ts DATA_DIR`: makes the identity of a volume and prints it, so that a certificate can be issued for it. */

import { asDistroError } from '../core/errors.ts';
import { systemRandom } from '../platform/clock.ts';
import { loadOrCreateIdentity } from './identity.ts';

const dataDir = process.argv[2];
if (dataDir === undefined) {
	process.stderr.write('usage: node worker/init.ts DATA_DIR\n');
	process.exit(2);
}
try {
	const { workerId } = loadOrCreateIdentity(dataDir, systemRandom);
	process.stdout.write(`${JSON.stringify({ workerId })}\n`);
} catch (error) {
	process.stderr.write(`${asDistroError(error).message}\n`);
	process.exitCode = 1;
}
