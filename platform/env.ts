/**
 * Environment readers that report every mistake at once. Values are read once, by main; secrets may come from a file
 * (`NAME_FILE`), and no value of a secret ever stands in a sentence.
 */

import { existsSync, readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { DistroError } from '../core/errors.ts';

/** A changed secret is taken after this at the latest. */
const SECRET_POLL_MS = 5_000;
const DURATION_UNITS = { s: 1_000, m: 60_000, h: 60 * 60_000, d: 24 * 60 * 60_000 } as const;
const SIZE_UNITS = { '': 1, Ki: 1024, Mi: 1024 ** 2, Gi: 1024 ** 3, Ti: 1024 ** 4 } as const;

/** The `.env` in the project's root, for every command that a person calls. What is set already stays. */
export function loadDotenv(): void {
	const path = resolve(import.meta.dirname, '../.env');
	if (process.env.DISTRO_NO_DOTENV === undefined && existsSync(path)) process.loadEnvFile(path);
}

export class EnvReader {
	readonly #env: NodeJS.ProcessEnv;
	readonly #mistakes: string[] = [];

	constructor(env: NodeJS.ProcessEnv) {
		this.#env = env;
	}

	text(name: string, fallback: string): string {
		return this.optional(name) ?? fallback;
	}

	/** Empty counts as absent. */
	optional(name: string): string | null {
		const value = this.#env[name];
		return value === undefined || value === '' ? null : value;
	}

	required(name: string, example: string): string {
		const value = this.optional(name);
		if (value === null) this.mistake(`${name} is not set: for example ${name}=${example}`);
		return value ?? '';
	}

	/** 0 means any free port. */
	port(name: string, fallback: number): number {
		return this.integer(name, fallback, { min: 0, max: 65_535 });
	}

	integer(name: string, fallback: number, bounds: { min: number; max: number }): number {
		const text = this.optional(name);
		if (text === null) return fallback;
		const value = Number(text);
		if (!/^\d+$/.test(text) || value < bounds.min || value > bounds.max) {
			this.mistake(`${name} must be a whole number from ${bounds.min} to ${bounds.max}, such as ${fallback}`);
			return fallback;
		}
		return value;
	}

	/** Bytes, with Ki, Mi, Gi or Ti: 128Mi. */
	size(name: string, fallbackBytes: number, bounds: { min: number; max: number }): number {
		const text = this.optional(name);
		if (text === null) return fallbackBytes;
		const match = /^(\d+)(Ki|Mi|Gi|Ti|)$/.exec(text);
		const bytes = match === null ? Number.NaN : Number(match[1]) * SIZE_UNITS[match[2] as keyof typeof SIZE_UNITS];
		if (!(bytes >= bounds.min && bytes <= bounds.max)) {
			this.mistake(`${name} must be a size from ${bounds.min} to ${bounds.max} bytes, such as 128Mi or 4096`);
			return fallbackBytes;
		}
		return bytes;
	}

	/** Milliseconds, from a number with s, m, h or d: 14d. */
	duration(name: string, fallbackMs: number, bounds: { min: number; max: number }): number {
		const text = this.optional(name);
		if (text === null) return fallbackMs;
		const match = /^(\d+)([smhd])$/.exec(text);
		const ms = match === null ? Number.NaN : Number(match[1]) * DURATION_UNITS[match[2] as keyof typeof DURATION_UNITS];
		if (!(ms >= bounds.min && ms <= bounds.max)) {
			this.mistake(
				`${name} must be a time from ${bounds.min / 1000}s to ${bounds.max / DURATION_UNITS.d}d, such as 90s, 12h or 14d`,
			);
			return fallbackMs;
		}
		return ms;
	}

	/** A share of one, in decimal or scientific notation: 1e-9. */
	fraction(name: string, fallback: number): number {
		const text = this.optional(name);
		if (text === null) return fallback;
		const value = Number(text);
		if (!(value > 0 && value < 1)) {
			this.mistake(`${name} must be a number between 0 and 1, such as ${fallback}`);
			return fallback;
		}
		return value;
	}

	choice<T extends string>(name: string, fallback: T, choices: readonly T[]): T {
		const text = this.optional(name);
		if (text === null) return fallback;
		if ((choices as readonly string[]).includes(text)) return text as T;
		this.mistake(`${name} must be one of ${choices.join(', ')}`);
		return fallback;
	}

	/** The variable itself, or the content of the file that `NAME_FILE` names, trimmed. */
	secret(name: string): string | null {
		const direct = this.optional(name);
		const file = this.optional(`${name}_FILE`);
		if (direct !== null && file !== null) this.mistake(`${name} and ${name}_FILE are both set: keep one`);
		if (direct !== null) return direct.trim();
		if (file === null) return null;
		try {
			return readFileSync(file, 'utf8').trim();
		} catch (error) {
			this.mistake(`${name}_FILE can't be read: ${(error as Error).message}`);
			return null;
		}
	}

	/** As `secret`, for one that is rotated while the process runs: its file is read again when it changes. */
	secretSource(name: string): (() => string) | null {
		const first = this.secret(name);
		const file = this.optional(`${name}_FILE`);
		if (first === null || file === null) return first === null ? null : () => first;
		let value = first;
		let lookedMs = performance.now();
		return () => {
			if (performance.now() - lookedMs < SECRET_POLL_MS) return value;
			lookedMs = performance.now();
			try {
				value = readFileSync(file, 'utf8').trim();
			} catch {
				// It is being replaced: the old one counts until the new one is there.
			}
			return value;
		};
	}

	mistake(sentence: string): void {
		this.#mistakes.push(sentence);
	}

	/** Runs a parser whose DistroError becomes one of the mistakes. */
	parse<T>(parse: () => T): T | null {
		try {
			return parse();
		} catch (error) {
			if (!(error instanceof DistroError)) throw error;
			this.mistake(error.message);
			return null;
		}
	}

	/** Throws `invalid` with every mistake, if there was any. */
	done(): void {
		if (this.#mistakes.length === 0) return;
		throw new DistroError('invalid', `the environment is not right:\n  - ${this.#mistakes.join('\n  - ')}`);
	}
}
