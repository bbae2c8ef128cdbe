/** `make start NAME=worker-3`: asks the running supervisor to start a process that went down, and waits until it is back. */

import { writeFileSync } from 'node:fs';
import { loadDotenv } from '../platform/env.ts';
import { isAlive, readClusterFile, startRequestPath } from './cluster-file.ts';
import { clusterDataDir } from './environment.ts';

const TIMEOUT_MS = 30_000;
loadDotenv();
const name = process.argv[2] ?? process.env.NAME;
const dataDir = clusterDataDir();

function fail(sentence: string): never {
	process.stderr.write(`${sentence}\n`);
	process.exit(1);
}

if (name === undefined || !/^((worker|orchestrator)-\d+|postgres|postgrest)$/.test(name))
	fail('Say which: make start NAME=worker-3');
const cluster = readClusterFile(dataDir);
if (cluster === null || !isAlive(cluster.supervisor)) fail(`No cluster runs on ${dataDir}: start it with make run.`);
if (!cluster.members.includes(name)) fail(`This cluster has no ${name}, but ${cluster.members.join(', ')}.`);
if (cluster.processes.some((process) => process.name === name && isAlive(process.pid))) fail(`${name} runs already.`);
writeFileSync(startRequestPath(dataDir, name), '');
const deadline = Date.now() + TIMEOUT_MS;
for (;;) {
	const process = readClusterFile(dataDir)?.processes.find((candidate) => candidate.name === name);
	// A database is in the list once it answers.
	const asked = process?.grpc === undefined ? undefined : process.http;
	if (process !== undefined && (asked === undefined || (await isReady(asked)))) break;
	if (Date.now() > deadline)
		fail(`${name} did not become ready within ${TIMEOUT_MS / 1000} s; its log is in ${dataDir}/${name}/log`);
	await new Promise((done) => setTimeout(done, 100));
}
process.stdout.write(`${name} is ready\n`);

async function isReady(http: string): Promise<boolean> {
	try {
		return (await fetch(`${http}/readyz`, { signal: AbortSignal.timeout(1000) })).ok;
	} catch {
		return false;
	}
}
