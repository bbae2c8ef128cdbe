/** Assertions are for bugs; what the world may do wrong is a DistroError of another kind. */

import { DistroError } from './errors.ts';

export function assert(condition: boolean, message: string): asserts condition {
	if (!condition) throw new DistroError('internal', `assertion failed: ${message}`);
}

/** Ends a switch over a closed set: the compiler proves that nothing is left. */
export function unreachable(value: never): never {
	throw new DistroError('internal', `unreachable: ${String(value)}`);
}
