/** Ports on this machine: the one that is wanted, if it is free, or any free one. */

import { randomInt } from 'node:crypto';
import { createServer } from 'node:net';

export const LOOPBACK = '127.0.0.1';
const TRIES = 100;
/** Nobody listens on them yet, and they must not be given out twice: of fourteen drawn ones two are the same once in 250 times. */
const given = new Set<number>();

/**
 * A free port for 0; else that one, if it is free. Free ones come from below the range that the system gives to outgoing
 * connections: between looking and listening nobody else is likely to take one. Throws a sentence that names `variable`.
 */
export async function port(wanted: number, variable: string, host = LOOPBACK): Promise<number> {
	for (let tries = 0; tries < TRIES; tries++) {
		const candidate = wanted === 0 ? randomInt(10_000, 32_768) : wanted;
		if (wanted === 0 && given.has(candidate)) continue;
		given.add(candidate);
		const problem = await whyNot(candidate, host);
		if (problem === null) return candidate;
		if (wanted === 0) continue;
		const why = problem.code === 'EADDRINUSE' ? 'is in use: stop what uses it' : `can't be used (${problem.message})`;
		throw new Error(`Port ${wanted} ${why}, or set ${variable} to another.`);
	}
	throw new Error(`No free port was found for ${variable}.`);
}

/** One that this process has not given out before. */
export function freePort(): Promise<number> {
	return port(0, 'a port');
}

function whyNot(candidate: number, host: string): Promise<NodeJS.ErrnoException | null> {
	return new Promise((done) => {
		const probe = createServer();
		probe.once('error', done);
		probe.listen(candidate, host, () => probe.close(() => done(null)));
	});
}
