/** What the server processes cost: CPU time and peak memory, from /proc. Linux only. */

import { readFileSync } from 'node:fs';

const TICKS_PER_SECOND = 100;

/** User and system time of a process with all its threads, in seconds. */
export function cpuSeconds(pid: number): number {
	const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
	// The name may hold spaces and parentheses: fields are counted behind it.
	const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
	return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

/** Peak resident memory in bytes. */
export function peakBytes(pid: number): number {
	return Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) * 1024;
}
