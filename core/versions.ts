/** The one rule for versions of what is stored: old ones are read for ever, a newer one is refused with a sentence. */

import { DistroError } from './errors.ts';

/**
 * Passes what this release can read. Throws `unsupported` for what a newer release wrote: that must never be taken for
 * damage, or it would be mended, replaced or deleted. `corrupt` for what no release has written. `what` begins the sentence.
 */
export function checkVersion(version: unknown, options: { what: string; newest: number }): void {
	const { what, newest } = options;
	if (typeof version !== 'number' || !Number.isInteger(version) || version < 1)
		throw new DistroError('corrupt', `${what} has no version that a release has written`);
	if (version > newest) {
		throw new DistroError(
			'unsupported',
			`${what} was written by a newer release (version ${version}, this one knows ${newest}): run that release`,
		);
	}
}
