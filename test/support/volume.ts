/** Small volumes of their own, for disks that are to be full: a tmpfs, where this user may mount one. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export function mountVolume(folder: string, bytes: number): void {
	execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${bytes}`, 'tmpfs', folder], { stdio: 'pipe' });
}

export function unmountVolume(folder: string): void {
	execFileSync('umount', [folder]);
}

/** Why no small volume can be made here, or null. */
export function whyNoMount(): string | null {
	const folder = mkdtempSync(join(tmpdir(), 'distro-mount-'));
	try {
		mountVolume(folder, 1024 * 1024);
		unmountVolume(folder);
		return null;
	} catch (error) {
		return (error as Error).message;
	} finally {
		rmSync(folder, { recursive: true });
	}
}

/** Fills what is left of a volume, at once: nobody has been told when the next byte comes. Answers the file that takes the room. */
export function fillUp(volume: string): string {
	const { bavail, bsize } = statfsSync(volume);
	const ballast = join(volume, 'ballast');
	try {
		writeFileSync(ballast, Buffer.alloc(Math.max(0, bavail * bsize - 64 * 1024)));
	} catch (error) {
		// Somebody else took the last bytes.
		if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
	}
	return ballast;
}
