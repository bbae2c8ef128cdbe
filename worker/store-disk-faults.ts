/**
 * Disks that fail, for tests of store-disk: its file calls, intercepted one by one, and a disk that forgets at a power cut
 * what was not synced. Product code never knows.
 */

import fs from 'node:fs';
import { dirname, join } from 'node:path';
import type { FileCalls } from './store-disk.ts';

export interface FileCall {
	readonly name: keyof FileCalls;
	/** Without the callback. */
	readonly args: readonly unknown[];
	/** Does it and answers; `after` sees its result first, or undefined where it failed. */
	proceed(after?: (result: unknown) => void): void;
	/** Does it and answers nobody but `after`. */
	proceedInSilence(after?: () => void): void;
	/** Answers that all is well and does nothing. */
	pretend(): void;
	/** Answers with this and does nothing. */
	answer(result: unknown): void;
	/** Answers with this error and does nothing. */
	fail(code: string): void;
}

type Callback = (error: NodeJS.ErrnoException | null, ...results: unknown[]) => void;

const NAMES = [
	'open',
	'write',
	'read',
	'fsync',
	'link',
	'rename',
	'unlink',
	'mkdir',
	'close',
	'statfs',
	'fstat',
	'access',
] as const satisfies readonly (keyof FileCalls)[];

export function interceptFiles(onCall: (call: FileCall) => void): FileCalls {
	const wrap = (name: keyof FileCalls) => {
		const real = fs[name] as unknown as (...args: unknown[]) => void;
		return (...all: unknown[]) => {
			const done = all.at(-1) as Callback;
			const args = all.slice(0, -1);
			onCall({
				name,
				args,
				proceed: (after) =>
					real(...args, (error: NodeJS.ErrnoException | null, ...results: unknown[]) => {
						after?.(error === null || error === undefined ? (results[0] ?? null) : undefined);
						done(error, ...results);
					}),
				pretend: () => setImmediate(() => done(null)),
				answer: (result) => setImmediate(() => done(null, result)),
				proceedInSilence: (after) => real(...args, () => after?.()),
				fail: (code) => setImmediate(() => done(Object.assign(new Error(`${code}: made for a test`), { code }))),
			});
		};
	};
	return { ...fs, ...Object.fromEntries(NAMES.map((name) => [name, wrap(name)])) };
}

/** The `at`-th call (from 1) fails, until `heal`, which answers how many calls there were. Syncs are quick and do nothing. */
export function failingFiles(at: number, code: string): { files: FileCalls; heal: () => number } {
	let calls = 0;
	let healed = false;
	const files = interceptFiles((call) => {
		if (healed || ++calls !== at) {
			if (call.name === 'fsync') call.pretend();
			else call.proceed();
		} else {
			// A descriptor is gone even when closing it fails.
			if (call.name === 'close') call.proceedInSilence();
			call.fail(code);
		}
	});
	const heal = () => {
		healed = true;
		return calls;
	};
	return { files, heal };
}

interface Inode {
	readonly folder: boolean;
	written: Buffer;
	synced: Buffer;
}

/** What a power cut leaves: only what was synced, or all names at once but only the synced bytes. */
export type Survival = 'only what was synced' | 'names before bytes';

/** A folder whose unsynced names and bytes are lost when the power is cut at one of its calls. */
export class PowerCutDisk {
	readonly files: FileCalls;
	/** Resolves when the power is cut. */
	readonly cut: Promise<void>;
	#calls = 0;
	#underWay = 0;
	#dead = false;
	readonly #root: string;
	readonly #names = new Map<string, Inode>();
	readonly #syncedNames = new Map<string, Inode>();
	readonly #open = new Map<number, { path: string; inode: Inode }>();

	/** What is in `root` now is durable. The `cutAt`-th call (from 1) is done or not done, and nothing answers from then on. */
	constructor(root: string, options: { cutAt: number; done: boolean }) {
		this.#root = root;
		for (const entry of fs.readdirSync(root, { withFileTypes: true, recursive: true })) {
			const path = join(entry.parentPath, entry.name);
			const bytes = entry.isDirectory() ? Buffer.alloc(0) : fs.readFileSync(path);
			const inode = { folder: entry.isDirectory(), written: bytes, synced: bytes };
			this.#names.set(path, inode);
			this.#syncedNames.set(path, inode);
		}
		let cut = () => {};
		this.cut = new Promise((resolve) => {
			cut = resolve;
		});
		this.files = interceptFiles((call) => {
			if (this.#dead) return;
			if (++this.#calls !== options.cutAt) {
				const follow = this.#follow(call);
				if (call.name === 'fsync') {
					// What it would have kept is noted here: the real one is only slow.
					call.pretend();
					follow(undefined);
					return;
				}
				if (call.name === 'close') this.#open.delete(call.args[0] as number);
				this.#underWay++;
				call.proceed((result) => {
					this.#underWay--;
					if (result === undefined) return;
					if (!this.#dead) follow(result);
					else if (call.name === 'open') fs.closeSync(result as number);
				});
				return;
			}
			this.#dead = true;
			cut();
			if (!options.done) return;
			if (call.name === 'close') this.#open.delete(call.args[0] as number);
			this.#underWay++;
			call.proceedInSilence(() => this.#underWay--);
		});
	}

	get calls(): number {
		return this.#calls;
	}

	/** Takes down what a call does, as of its start, and answers how to note it at its end. */
	#follow({ name, args }: FileCall): (result: unknown) => void {
		const [first, second] = args as [string, string];
		switch (name) {
			case 'open':
				return (fd) => {
					// Names or numbers.
					if (second === 'wx' || (Number(second) & fs.constants.O_CREAT) !== 0)
						this.#names.set(first, { folder: false, written: Buffer.alloc(0), synced: Buffer.alloc(0) });
					this.#open.set(fd as number, { path: first, inode: this.#names.get(first) as Inode });
				};
			case 'write': {
				const [fd, buffer, offset, length, position] = args as [number, Buffer, number, number, number];
				const bytes = Buffer.from(buffer.subarray(offset, offset + length));
				return (count) => {
					const inode = this.#open.get(fd)?.inode;
					if (inode === undefined) return;
					const grown = Buffer.alloc(Math.max(inode.written.length, position + (count as number)));
					inode.written.copy(grown);
					bytes.copy(grown, position, 0, count as number);
					inode.written = grown;
				};
			}
			case 'fsync': {
				const file = this.#open.get(args[0] as number);
				if (file === undefined) return () => {};
				if (file.inode.folder) return this.#followFolderSync(file.path);
				const { written } = file.inode;
				return () => {
					file.inode.synced = written;
				};
			}
			case 'link':
				return () => this.#names.set(second, this.#names.get(first) as Inode);
			case 'rename':
				return () => {
					this.#names.set(second, this.#names.get(first) as Inode);
					this.#names.delete(first);
				};
			case 'unlink':
				return () => this.#names.delete(first);
			case 'mkdir':
				return () => this.#names.set(first, { folder: true, written: Buffer.alloc(0), synced: Buffer.alloc(0) });
			default:
				return () => {};
		}
	}

	#followFolderSync(folder: string): () => void {
		const inFolder = (names: Map<string, Inode>) => [...names].filter(([path]) => dirname(path) === folder);
		const now = inFolder(this.#names);
		return () => {
			for (const [path] of inFolder(this.#syncedNames)) this.#syncedNames.delete(path);
			for (const [path, inode] of now) this.#syncedNames.set(path, inode);
		};
	}

	/** The process is gone as well: makes the folder what the disk kept. */
	async settle(survival: Survival): Promise<void> {
		this.#dead = true;
		// The system ends what it had begun; nobody hears of it.
		while (this.#underWay > 0) await new Promise((done) => setImmediate(done));
		for (const fd of this.#open.keys()) fs.closeSync(fd);
		const names = survival === 'only what was synced' ? this.#syncedNames : this.#names;
		for (const entry of fs.readdirSync(this.#root, { withFileTypes: true, recursive: true })) {
			const path = join(entry.parentPath, entry.name);
			if (!names.has(path)) fs.rmSync(path, { recursive: true, force: true });
		}
		for (const [path, inode] of [...names].toSorted(([a], [b]) => (a < b ? -1 : 1))) {
			// A name in a folder whose own name was lost is lost with it.
			if (!fs.existsSync(dirname(path))) continue;
			if (inode.folder) fs.mkdirSync(path, { recursive: true });
			else if (inode.written !== inode.synced || !fs.existsSync(path)) {
				// Unsynced bytes read as zeros.
				const bytes =
					survival === 'names before bytes' ? Buffer.alloc(inode.written.length) : Buffer.from(inode.synced);
				inode.synced.copy(bytes);
				fs.rmSync(path, { force: true });
				fs.writeFileSync(path, bytes);
			}
		}
	}
}
