/** How long to wait before try number `attempt` (0-based): exponential with full jitter, bounded. */

import type { Random } from './ports.ts';

export function backoffMs(
	attempt: number,
	options: { readonly baseMs: number; readonly maxMs: number; readonly random: Random },
): number {
	const ceilingMs = Math.min(options.maxMs, options.baseMs * 2 ** Math.min(attempt, 30));
	return (options.random.bytes(4).readUInt32LE(0) / 0x1_0000_0000) * ceilingMs;
}
