/**
 * Starts the members of a development cluster, keeps cluster.json, starts one again when `make start` asks, and stops all
 * of them in order. A member that does not start, or dies, stays down; the others serve.
 */

import type { ChildProcess } from 'node:child_process';
import { appendFileSync, existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type ClusterProcess, removeClusterFile, startRequestPath, writeClusterFile } from './cluster-file.ts';
import type { Guard } from './guard.ts';
import type { Member } from './members.ts';

type Role = ClusterProcess['role'];

const READY_TIMEOUT_MS = 60_000;
const STOP_TIMEOUT_MS = 12_000;
/** Whoever waits longer wants to know for what. */
const STOP_PATIENCE_MS = 1_000;
const POLL_MS = 100;
const LAST_WORDS_CHARS = 2_000;
/** Orchestrators first, so that nobody is served by half a cluster; what they need goes last. */
const STOP_ORDER: readonly Role[] = ['orchestrator', 'worker', 'postgrest', 'postgres'];

export class Supervisor {
	readonly #dataDir: string;
	readonly #members: readonly Member[];
	readonly #guard: Guard | null;
	readonly #children = new Map<Member, ChildProcess>();
	#stopping = false;
	/** All have been ready once: before that nobody is shown a half-started cluster. */
	#started = false;

	constructor(options: { dataDir: string; members: readonly Member[]; guard: Guard | null }) {
		this.#dataDir = options.dataDir;
		this.#members = options.members;
		this.#guard = options.guard;
	}

	/** Answers those that are not ready; null when it was stopped meanwhile. Without a database or any orchestrator it ends. */
	async startAll(): Promise<readonly Member[] | null> {
		say(`Starting ${this.#members.length} processes on ${this.#dataDir}`);
		for (const member of this.#members) {
			await this.#start(member);
			if (this.#stopping) return null;
			if (isDatabase(member) && !this.#children.has(member)) await this.stop(1);
		}
		const deadline = Date.now() + READY_TIMEOUT_MS;
		const waiting = new Set(this.#members);
		const ready = new Set<Member>();
		const serves = (member: Member) =>
			member.shown.role === 'orchestrator' && (waiting.has(member) || ready.has(member));
		while (waiting.size > 0) {
			for (const member of waiting) {
				const runs = this.#children.has(member);
				const isReady = runs && (await member.isReady());
				if (this.#stopping) return null;
				if (isReady) {
					ready.add(member);
					say(`  ready: ${member.shown.name} (${ready.size}/${this.#members.length})`);
				} else if (runs && Date.now() <= deadline) continue;
				else if (runs) say(`${member.shown.name} did not become ready; its log: ${logOf(member)}`);
				waiting.delete(member);
				if (!this.#members.some(serves)) await this.stop(1);
			}
			await sleep(POLL_MS);
			if (this.#stopping) return null;
		}
		this.#started = true;
		return this.#members.filter((member) => !ready.has(member));
	}

	/**
	 * From now on cluster.json shows them, and `make start NAME=…` may put a file beside it: only this process can be the
	 * parent of one that comes back.
	 */
	serve(): void {
		this.#save();
		const look = async () => {
			for (const member of this.#members) {
				const request = startRequestPath(this.#dataDir, member.shown.name);
				if (!existsSync(request)) continue;
				rmSync(request, { force: true });
				if (this.#children.has(member) || this.#stopping) continue;
				say(`Starting ${member.shown.name} again`);
				await this.#start(member);
				this.#save();
			}
			setTimeout(look, POLL_MS);
		};
		setTimeout(look, POLL_MS);
	}

	/** Never returns; whoever does not stop in time is killed. Called again, it kills all at once. */
	async stop(code: number): Promise<never> {
		if (this.#stopping) {
			for (const child of this.#children.values()) child.kill('SIGKILL');
			process.exit(1);
		}
		this.#stopping = true;
		if (this.#started) {
			say('Stopping');
			const why = 'Waiting for transfers under way; Ctrl-C once more ends them at once';
			setTimeout(() => say(why), STOP_PATIENCE_MS).unref();
		}
		for (const role of STOP_ORDER) {
			await Promise.all(
				this.#members.filter(({ shown }) => shown.role === role).map((member) => this.#stopOne(member)),
			);
		}
		removeClusterFile(this.#dataDir);
		process.exit(code);
	}

	/** Resolves when it runs, or never will. Asked again, it may have another folder: identity and certificate come first. */
	async #start(member: Member): Promise<void> {
		const { name, role } = member.shown;
		const onOutput = (text: Buffer) => {
			try {
				appendFileSync(logOf(member), text);
			} catch {
				// A full disk costs lines of the log, and neither this process nor, by a pipe that nobody empties, the child.
			}
		};
		let child: ChildProcess;
		try {
			await member.prepare();
			if (this.#stopping) return;
			const onSpawn = (pid: number | null) => this.#tellGuard(member, pid);
			child = await member.launch({ onSpawn, onOutput });
		} catch (error) {
			this.#tellGuard(member, null);
			const { stderr, message } = error as Error & { stderr?: string };
			say(`${name} can't start: ${(stderr || message).trim()}`);
			this.#hintAt(member);
			return;
		}
		this.#children.set(member, child);
		let lastWords = '';
		child.stderr?.on('data', (text: Buffer) => {
			lastWords = (lastWords + text.toString()).slice(-LAST_WORDS_CHARS);
		});
		child.on('error', (error) => say(`${name} can't be started: ${error.message}`));
		const closed = (code: number | null, signal: NodeJS.Signals | null) => {
			this.#children.delete(member);
			this.#tellGuard(member, null);
			if (this.#stopping) return;
			// A database tells there what it does, and not why it ends.
			const words = role === 'orchestrator' || role === 'worker' ? lastWords.trim() : '';
			say(`${name} is down (${signal ?? `exit code ${code}`})${words === '' ? '' : `: ${words}`}`);
			this.#hintAt(member);
			this.#save();
		};
		// Not at `exit`: its last words may still be on their way.
		child.on('close', closed);
	}

	#tellGuard(member: Member, pid: number | null): void {
		if (isDatabase(member)) this.#guard?.tell(member.shown.name, pid);
	}

	#hintAt(member: Member): void {
		// Without an orchestrator nothing runs, and there is nobody who would start it again.
		const again = this.#started || member.shown.role === 'worker';
		const hint = again ? `; start it again with: make start NAME=${member.shown.name}` : '';
		say(`  its log: ${logOf(member)}${hint}`);
	}

	#stopOne(member: Member): Promise<void> {
		const child = this.#children.get(member);
		// One that has just ended may still have its last words on their way: it exits only once.
		if (child === undefined || child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
		return new Promise((done) => {
			const timer = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
			child.once('exit', () => {
				clearTimeout(timer);
				done();
			});
			// A stopped process hears nothing before it goes on.
			child.kill(member.stopSignal);
			child.kill('SIGCONT');
		});
	}

	#save(): void {
		if (!this.#started || this.#stopping) return;
		const processes = this.#members.flatMap((member): ClusterProcess[] => {
			const { pid } = this.#children.get(member) ?? {};
			return pid === undefined ? [] : [{ ...member.shown, pid }];
		});
		try {
			const members = this.#members.map(({ shown }) => shown.name);
			writeClusterFile(this.#dataDir, { supervisor: process.pid, members, processes });
		} catch (error) {
			say(`cluster.json can't be written: ${(error as Error).message}`);
		}
	}
}

export function say(text: string): void {
	process.stdout.write(`${text}\n`);
}

function isDatabase({ shown }: Member): boolean {
	return shown.role === 'postgres' || shown.role === 'postgrest';
}

function logOf({ shown }: Member): string {
	return join(shown.dataDir, 'log');
}
