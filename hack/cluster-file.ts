/** DATA_DIR/cluster.json: the processes of a running development cluster, so that people and tests can find and break one. */

import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface ClusterProcess {
	readonly name: string;
	readonly role: 'postgres' | 'postgrest' | 'orchestrator' | 'worker';
	readonly pid: number;
	/** Where it serves HTTP, as a URL: all but PostgreSQL. */
	readonly http?: string;
	/** host:port of its gRPC services: orchestrators and workers. */
	readonly grpc?: string;
	/** host:port of PostgreSQL. */
	readonly address?: string;
	readonly dataDir: string;
}

/** `supervisor` is the pid of the one who started them; it starts a process again when `start-<name>` is put beside. */
export interface ClusterFile {
	readonly supervisor: number;
	/** Names of all processes; `processes` has those that run. */
	readonly members: readonly string[];
	readonly processes: readonly ClusterProcess[];
}

export function clusterFilePath(dataDir: string): string {
	return join(dataDir, 'cluster.json');
}

export function startRequestPath(dataDir: string, name: string): string {
	return join(dataDir, `start-${name}`);
}

/** Null when there is none, or what a power cut left of one: it only ever tells of processes that run. */
export function readClusterFile(dataDir: string): ClusterFile | null {
	const path = clusterFilePath(dataDir);
	if (!existsSync(path)) return null;
	try {
		const file = JSON.parse(readFileSync(path, 'utf8')) as ClusterFile | null;
		return Array.isArray(file?.processes) ? file : null;
	} catch (error) {
		if (error instanceof SyntaxError) return null;
		throw error;
	}
}

export function writeClusterFile(dataDir: string, file: ClusterFile): void {
	const path = clusterFilePath(dataDir);
	writeFileSync(`${path}.new`, `${JSON.stringify(file, null, 2)}\n`);
	renameSync(`${path}.new`, path);
}

export function removeClusterFile(dataDir: string): void {
	rmSync(clusterFilePath(dataDir), { force: true });
}

/** One that has ended and whose parent has not asked for its exit code yet is not alive, though a signal still reaches it. */
export function isAlive(pid: number): boolean {
	try {
		process.kill(pid, 0);
	} catch (error) {
		return (error as NodeJS.ErrnoException).code === 'EPERM';
	}
	try {
		const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
		return stat.slice(stat.lastIndexOf(')') + 2, stat.lastIndexOf(')') + 3) !== 'Z';
	} catch {
		// Elsewhere than on Linux nobody says.
		return true;
	}
}
