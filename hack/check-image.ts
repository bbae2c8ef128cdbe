/**
 * `make image-check`: every service of compose.yaml starts from the image, as it says there; a file goes in and comes back,
 * also after a second start; all stop when told. Run by hack/check-image.sh, with `docker` or the mounted image's folder,
 * its description on standard input.
 */

import { execFileSync, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { COMPOSE_FILE, type ComposeService, readComposeFile } from './compose-file.ts';
import { type ImageConfig, Namespaces } from './namespaces.ts';

const READY_TIMEOUT_MS = 120_000;
const POLL_MS = 100;
const FILE_BYTES = 5_000_000;

/** What runs containers. */
export interface Engine {
	/** Starts all, in order. Resolves to the orchestrator's URL. */
	up(late: AbortSignal): Promise<string>;
	/** Runs a service's container once more with another command or environment. Resolves to what it says. */
	run(name: string, command: readonly string[], environment: Readonly<Record<string, string>>): Promise<string>;
	/** Stops all, dependents first. Resolves to the exit code of each service. */
	stop(): Promise<ReadonlyMap<string, number>>;
	remove(): Promise<void>;
}

const root = process.argv[2] ?? '';
const services = readComposeFile(process.env);
const workers = services.filter(({ name }) => name.startsWith('worker-')).length;
const engine = root === 'docker' ? docker() : new Namespaces(root, imageConfig(), services);
try {
	const file = randomBytes(FILE_BYTES);
	const url = await started();
	const form = new FormData();
	form.set('file', new Blob([file]), 'file.bin');
	const answer = await fetch(`${url}/upload`, { method: 'POST', body: form });
	const { object_id: id } = (await answer.json()) as { object_id?: string };
	if (answer.status !== 201 || id === undefined) throw new Error(`the upload was answered with ${answer.status}`);
	await expectSame(`${url}/download/${id}`, file);
	const keys = await engine.run('orchestrator', ['keys', 'list'], {});
	if (!keys.includes('There is no API key.')) throw new Error(`keys list said: ${keys}`);
	await expectCompileCache();
	await stopped();
	// With the certificates, identities and master key that the first start made.
	await expectSame(`${await started()}/download/${id}`, file);
	await stopped();
	say(`Image ${services[0]?.image} is good: every role started, stored and returned a file, and stopped when told.`);
} catch (error) {
	process.stderr.write(`Image ${services[0]?.image} is not good: ${(error as Error).message}\n`);
	process.exitCode = 1;
} finally {
	await engine.remove();
}

function imageConfig(): ImageConfig {
	return (JSON.parse(readFileSync(0, 'utf8')) as { OCIv1: { config: ImageConfig } }).OCIv1.config;
}

async function started(): Promise<string> {
	const begin = performance.now();
	const late = AbortSignal.timeout(READY_TIMEOUT_MS);
	const url = await engine.up(late);
	for (;;) {
		const ready = await readyWorkers(url);
		if (ready === workers) break;
		if (late.aborted) throw new Error(`${ready} of ${workers} workers became ready`);
		await new Promise((done) => setTimeout(done, POLL_MS));
	}
	say(`all ready after ${seconds(begin)}`);
	return url;
}

/** -1 while the orchestrator does not answer. */
async function readyWorkers(url: string): Promise<number> {
	try {
		const response = await fetch(`${url}/cluster`, { signal: AbortSignal.timeout(1000) });
		const cluster = (await response.json()) as { workers: { state: string }[] };
		return cluster.workers.filter(({ state }) => state === 'ready').length;
	} catch {
		return -1;
	}
}

async function stopped(): Promise<void> {
	const begin = performance.now();
	for (const [service, code] of await engine.stop()) {
		if (code !== 0) throw new Error(`${service} ended with exit code ${code}`);
	}
	say(`all stopped after ${seconds(begin)}`);
}

/** Without a name a worker ends at once, when all of its code is loaded: none of it may be stripped of types again. */
async function expectCompileCache(): Promise<void> {
	const said = await engine.run('worker-1', ['worker'], { NAME: '', NODE_DEBUG_NATIVE: 'COMPILE_CACHE' });
	const count = (what: string) => said.split(what).length - 1;
	const [used, missed] = [count('retrieving transpile cache'), count('no transpile cache')];
	if (used === 0 || missed > 0)
		throw new Error(`the compile cache has ${used} of the worker's files and misses ${missed}`);
}

async function expectSame(url: string, file: Buffer): Promise<void> {
	const response = await fetch(url);
	const got = Buffer.from(await response.arrayBuffer());
	if (!response.ok || !got.equals(file)) throw new Error('the file came back different');
	say(`${file.length} bytes came back the same`);
}

function docker(): Engine {
	const port = process.env.HTTP_PORT ?? '18080';
	const env = { ...process.env, HTTP_PORT: port };
	const project = ['compose', '--file', COMPOSE_FILE, '--project-name', 'distro-check'];
	const compose = (...args: string[]) =>
		execFileSync('docker', [...project, ...args], { env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
	return {
		up: async () => {
			compose('up', '--detach');
			return `http://127.0.0.1:${port}`;
		},
		run: async (name, command, environment) => {
			const variables = Object.entries(environment).flatMap(([key, value]) => ['--env', `${key}=${value}`]);
			const args = [...project, 'run', '--rm', '--no-deps', ...variables, name, ...command];
			const { stdout, stderr } = spawnSync('docker', args, { env, encoding: 'utf8' });
			return stdout + stderr;
		},
		stop: async () => {
			compose('stop');
			return new Map(services.map((service) => [service.name, exitCode(service)]));
		},
		remove: async () => void compose('down', '--volumes'),
	};
	function exitCode({ name }: ComposeService): number {
		const id = compose('ps', '--all', '--quiet', name).trim();
		return Number(execFileSync('docker', ['inspect', '--format', '{{.State.ExitCode}}', id], { encoding: 'utf8' }));
	}
}

function seconds(begin: number): string {
	return `${((performance.now() - begin) / 1000).toFixed(1)} s`;
}

function say(text: string): void {
	process.stdout.write(`${text}\n`);
}
