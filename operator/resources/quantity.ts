/** Kubernetes quantities as numbers of bytes. */

import { DistroError } from '../../core/errors.ts';

const UNITS: Readonly<Record<string, number>> = {
	'': 1,
	k: 1e3,
	M: 1e6,
	G: 1e9,
	T: 1e12,
	P: 1e15,
	Ki: 2 ** 10,
	Mi: 2 ** 20,
	Gi: 2 ** 30,
	Ti: 2 ** 40,
	Pi: 2 ** 50,
};

/** Whole bytes, rounded up. Throws `invalid`. */
export function bytesOf(quantity: string): number {
	const [, digits, exponent, unit] = /^(\d+(?:\.\d+)?)(?:([eE][+-]?\d+)|([kMGTP]|[KMGTP]i)?)$/.exec(quantity) ?? [];
	const factor = exponent === undefined ? UNITS[unit ?? ''] : Number(`1${exponent}`);
	if (digits === undefined || factor === undefined) {
		throw new DistroError('invalid', `${quantity} is no quantity: for example 10Gi`);
	}
	return Math.ceil(Number(digits) * factor);
}

/** In whole MiB, rounded up. */
export function mebibytes(bytes: number): string {
	return `${Math.ceil(bytes / 2 ** 20)}Mi`;
}
