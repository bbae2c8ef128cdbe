/** Workers as things to break: a process and a folder, whoever started it. */

import { closeSync, fstatSync, mkdirSync, openSync, readdirSync, readFileSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { readTrailerFooter, TRAILER_FOOTER_BYTES } from '../../core/codec/trailer.ts';
import { TAG_BYTES, TRAILER_ALIGN_BYTES } from '../../core/limits.ts';
import type { Random } from '../../core/ports.ts';
import { draw } from './clock.ts';
import { type TestCluster, until } from './cluster.ts';
import { joinWorker } from './extra-worker.ts';
import { mountVolume, unmountVolume } from './volume.ts';

export interface Machine {
	readonly name: string;
	readonly zone: string;
	readonly dataDir: string;
	/** It has a small volume of its own. */
	readonly small: boolean;
	/** Null when it does not run. */
	pid(): number | null;
	/** SIGKILL, and waits until it is gone. */
	kill(): Promise<void>;
	start(): Promise<void>;
	/** Ends it in order. */
	stop(): Promise<void>;
	/** When the test is over: what the cluster itself does not stop and remove. */
	close(): Promise<void>;
}

/** One that `make run` began, in the zone of its environment. */
export function supervised(c: TestCluster, name: string, zone: string): Machine {
	const pid = () => c.processes().find((process) => process.name === name)?.pid ?? null;
	return {
		name,
		zone,
		dataDir: c.process(name).dataDir,
		small: false,
		pid,
		kill: () => c.kill(name),
		start: () => c.start(name),
		stop: async () => {
			c.signal(name, 'SIGTERM');
			await until(() => pid() === null, { what: `${name} to end` });
		},
		close: async () => {},
	};
}

/** A new one; with `volumeBytes` its folder is a volume of that size. */
export async function joined(
	c: TestCluster,
	o: { name: string; zone: string; env: Record<string, string>; volumeBytes?: number },
): Promise<Machine> {
	const { name, zone, volumeBytes } = o;
	const dataDir = join(c.dataDir, name);
	mkdirSync(dataDir, { recursive: true });
	const small = volumeBytes !== undefined;
	if (small) mountVolume(dataDir, volumeBytes);
	const env = { ...o.env, ZONE: zone, ...(small ? { DISK_RESERVE: '0' } : {}) };
	const worker = await joinWorker(c, { name, dataDir, env });
	const close = async () => {
		await worker.stop();
		if (small) unmountVolume(dataDir);
	};
	return { ...worker, zone, dataDir, small, close };
}

/** False when the file has gone meanwhile. */
export function flipBit({ dataDir }: Machine, shardId: string, random: Random): boolean {
	let fd: number;
	try {
		fd = openSync(join(dataDir, 'shards', shardId.slice(0, 2), shardId), 'r+');
	} catch {
		return false;
	}
	const { size } = fstatSync(fd);
	const footer = Buffer.alloc(TRAILER_FOOTER_BYTES);
	readSync(fd, footer, 0, footer.length, size - footer.length);
	const trailerAt = size - readTrailerFooter(footer).length;
	let at = Math.floor(draw(random) * size);
	// Between the cells and the trailer there may be zeros, which are nobody's; the first bytes are always a cell's.
	if (at < trailerAt && at >= trailerAt - TRAILER_ALIGN_BYTES) at %= TAG_BYTES + 1;
	const byte = Buffer.alloc(1);
	readSync(fd, byte, 0, 1, at);
	byte[0] = (byte[0] as number) ^ (1 << Math.floor(draw(random) * 8));
	writeSync(fd, byte, 0, 1, at);
	closeSync(fd);
	return true;
}

/** Ids of the shards whose files are on its volume. */
export function shardsOnDisk({ dataDir }: Machine): string[] {
	return readdirSync(join(dataDir, 'shards'), { recursive: true, encoding: 'utf8' })
		.map((file) => file.split('/')[1] ?? '')
		.filter((file) => file !== '');
}

/** The most memory that a process has had resident; null when it has just ended. */
export function peakMiB(pid: number): number | null {
	try {
		const kB = /VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
		return kB === undefined ? null : Math.round(Number(kB) / 1024);
	} catch {
		return null;
	}
}

/** CPU time that a process has used, in milliseconds. */
export function cpuMs(pid: number): number {
	const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? [];
	// Ticks of a hundredth of a second, on every Linux that Node runs on.
	return (Number(fields[11]) + Number(fields[12])) * 10;
}
