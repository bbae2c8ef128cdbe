/**
 * What an engine does with compose.yaml, as far as the image's check needs it, where there is no engine: each service as
 * process 1 of its own namespaces, on the image's files, read-only, as the image's user, without capabilities, with its
 * volumes and an address of its own. Needs root and Linux; all of it ends with this process and its namespaces.
 */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chownSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import type { Engine } from './check-image.ts';
import type { ComposeService } from './compose-file.ts';

export interface ImageConfig {
	readonly Env: readonly string[];
	readonly Entrypoint: readonly string[];
	readonly User: string;
	readonly WorkingDir: string;
}

const NETWORK = '10.89.0';
/** Runs in new namespaces: builds the container's files, says so on 3, and waits on 0 for its network. */
const CONTAINER = `set -e
image=$1 root=$2 hosts=$3 mounts=$4 user=$5 folder=$6; shift 6
mount --bind "$image" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero random urandom; do : >"$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
mount --bind "$hosts" "$root/etc/hosts"
printf '%s' "$mounts" | while IFS=: read -r volume target; do mount --bind "$volume" "$root$target"; done
mount -o remount,bind,ro "$root"
ip link set lo up
echo >&3
read -r _
exec 3>&- </dev/null
exec setpriv --no-new-privs chroot --userspec="$user" --groups= "$root" env --chdir="$folder" "$@"`;

interface Container {
	readonly service: ComposeService;
	readonly child: ChildProcess;
	/** Process 1, by its id here. */
	readonly pid: number;
	readonly exit: Promise<number>;
	readonly output: () => string;
}

export class Namespaces implements Engine {
	readonly #image: string;
	readonly #config: ImageConfig;
	readonly #services: readonly ComposeService[];
	readonly #work = mkdtempSync(join(tmpdir(), 'distro-image-'));
	#running: Container[] = [];
	#links = 0;

	constructor(image: string, config: ImageConfig, services: readonly ComposeService[]) {
		this.#image = image;
		this.#config = config;
		this.#services = services;
		if (config.User !== '1000:1000') throw new Error(`the image runs as ${config.User}`);
		const hosts = services.map(({ name }) => `${this.#address(name)} ${name}`);
		writeFileSync(join(this.#work, 'hosts'), `127.0.0.1 localhost\n${hosts.join('\n')}\n`);
		run('ip', 'link', 'add', 'switch', 'type', 'bridge');
		run('ip', 'address', 'add', `${NETWORK}.1/24`, 'dev', 'switch');
		run('ip', 'link', 'set', 'switch', 'up');
	}

	async up(late: AbortSignal): Promise<string> {
		for (const service of this.#services) {
			const container = await this.#start(service);
			if (service.oneShot) {
				const code = await container.exit;
				if (code !== 0) throw new Error(`${service.name} ended with exit code ${code}:\n${container.output()}`);
			} else this.#running.push(container);
		}
		await Promise.all(this.#running.map((container) => this.#ready(container, late)));
		return `http://${this.#address('orchestrator')}:8080`;
	}

	async run(name: string, command: readonly string[], environment: Readonly<Record<string, string>>): Promise<string> {
		const service = this.#services.find((candidate) => candidate.name === name);
		if (service === undefined) throw new Error(`there is no service ${name}`);
		const container = await this.#start({
			...service,
			command,
			environment: { ...service.environment, ...environment },
		});
		await container.exit;
		return container.output();
	}

	async stop(): Promise<ReadonlyMap<string, number>> {
		const codes = new Map<string, number>();
		while (this.#running.length > 0) {
			const needed = new Set(this.#running.flatMap(({ service }) => service.dependsOn));
			const now = this.#running.filter(({ service }) => !needed.has(service.name));
			for (const { pid } of now) process.kill(pid, 'SIGTERM');
			for (const { service, exit, output } of now) {
				const code = await exit;
				codes.set(service.name, code);
				if (code !== 0) process.stderr.write(output());
			}
			this.#running = this.#running.filter((container) => !now.includes(container));
		}
		return codes;
	}

	async remove(): Promise<void> {
		for (const { service, pid, child, exit, output } of this.#running) {
			process.stderr.write(`--- ${service.name}\n${output()}`);
			if (child.exitCode === null) process.kill(pid, 'SIGKILL');
			await exit;
		}
		rmSync(this.#work, { recursive: true, force: true });
	}

	async #start(service: ComposeService): Promise<Container> {
		const root = mkdtempSync(join(this.#work, 'root-'));
		const mounts = [...service.mounts].map(([target, volume]) => `${this.#volume(volume, target)}:${target}\n`);
		const { Entrypoint, Env, WorkingDir } = this.#config;
		const child = spawn(
			'unshare',
			[
				...['--mount', '--net', '--pid', '--ipc', '--uts', '--fork', '--kill-child', 'sh', '-c', CONTAINER, 'sh'],
				...[this.#image, root, join(this.#work, 'hosts'), mounts.join(''), service.user, WorkingDir],
				...[...Entrypoint, ...service.command],
			],
			{
				env: { ...Object.fromEntries(Env.map((entry) => entry.split(/=(.*)/s, 2))), ...service.environment },
				stdio: ['pipe', 'pipe', 'pipe', 'pipe'],
			},
		);
		let output = '';
		for (const stream of [child.stdout, child.stderr]) {
			stream?.on('data', (text: Buffer) => {
				output += text.toString();
			});
		}
		const exit = once(child, 'close').then(([code]) => (code as number | null) ?? -1);
		await Promise.race([once(child.stdio[3] as Readable, 'data'), exit]);
		if (child.exitCode !== null) throw new Error(`${service.name} did not start:\n${output}`);
		this.#connect(child.pid as number, service);
		child.stdin?.end('\n');
		const pid = Number(readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').trim());
		return { service, child, pid, exit, output: () => output };
	}

	#connect(pid: number, service: ComposeService): void {
		const link = `link${this.#links++}`;
		run('ip', 'link', 'add', link, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', String(pid));
		run('ip', 'link', 'set', link, 'master', 'switch', 'up');
		const inside = ['-t', String(pid), '-n', 'ip'];
		run('nsenter', ...inside, 'address', 'add', `${this.#address(service.name)}/24`, 'dev', 'eth0');
		run('nsenter', ...inside, 'link', 'set', 'eth0', 'up');
	}

	#address(name: string): string {
		return `${NETWORK}.${10 + this.#services.findIndex((service) => service.name === name)}`;
	}

	/** A new volume gets the owner of the folder that it is first mounted on. */
	#volume(name: string, target: string): string {
		const path = join(this.#work, 'volumes', name);
		if (!existsSync(path)) {
			mkdirSync(path, { recursive: true });
			const { uid, gid } = statSync(join(this.#image, target));
			chownSync(path, uid, gid);
		}
		return path;
	}

	/** Waits until it is ready, and looks at what it was given. */
	async #ready(container: Container, late: AbortSignal): Promise<void> {
		const { service, pid, child, output } = container;
		for (;;) {
			if (late.aborted) throw new Error(`${service.name} did not become ready:\n${output()}`);
			if (child.exitCode !== null) throw new Error(`${service.name} ended with ${child.exitCode}:\n${output()}`);
			const ready = await fetch(`http://${this.#address(service.name)}:8080/readyz`).then(
				(response) => response.ok,
				() => false,
			);
			if (ready) break;
			await new Promise((done) => setTimeout(done, 50));
		}
		const status = readFileSync(`/proc/${pid}/status`, 'utf8');
		const field = (name: string) => new RegExp(`^${name}:[\\t ]*(.*)$`, 'm').exec(status)?.[1] ?? '';
		const given = {
			uid: field('Uid').split('\t')[0],
			groups: field('Groups').trim(),
			capabilities: field('CapEff'),
			noNewPrivileges: field('NoNewPrivs'),
			process: field('NSpid').split('\t').at(-1),
			root: / \/ (r[ow]),/.exec(readFileSync(`/proc/${pid}/mountinfo`, 'utf8'))?.[1],
		};
		const wanted = {
			uid: '1000',
			groups: '',
			capabilities: '0000000000000000',
			noNewPrivileges: '1',
			process: '1',
			root: 'ro',
		};
		if (JSON.stringify(given) !== JSON.stringify(wanted)) {
			throw new Error(`${service.name} runs with ${JSON.stringify(given)}`);
		}
		process.stdout.write(`  ${service.name} is ready, ${field('VmHWM')} at most\n`);
	}
}

function run(command: string, ...args: string[]): void {
	execFileSync(command, args, { stdio: ['ignore', 'ignore', 'inherit'] });
}
