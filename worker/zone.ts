/**
 * The failure domain that a worker is in: ZONE, or the content of ZONE_FILE. In Kubernetes that file is a downward-API volume
 * with the pod's zone label, which somebody sets a little after the pod has started: empty or missing, it is waited for. What
 * it said last is kept on the volume, for a start while it is empty; and a change is taken up while the worker runs.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Clock } from '../core/ports.ts';
import { writeFileDurably } from '../platform/files.ts';

const LOOK_MS = 2_000;
const KEPT_FILE = 'zone';

export class Zone {
	readonly #file: string;
	readonly #kept: string;
	readonly #clock: Clock;
	readonly #onChange: (zone: string) => void;
	readonly #known = Promise.withResolvers<void>();
	#zone: string | null = null;
	#cancel: () => void = () => {};

	constructor(deps: { file: string; dataDir: string; clock: Clock; onChange: (zone: string) => void }) {
		this.#file = deps.file;
		this.#kept = join(deps.dataDir, KEPT_FILE);
		this.#clock = deps.clock;
		this.#onChange = deps.onChange;
	}

	/** Resolves once it is known. */
	start(): Promise<void> {
		this.#look(read(this.#file) ?? read(this.#kept));
		return this.#known.promise;
	}

	/** null: not known yet. */
	get zone(): string | null {
		return this.#zone;
	}

	stop(): void {
		this.#cancel();
	}

	#look(found: string | null): void {
		this.#cancel = this.#clock.schedule(LOOK_MS, () => this.#look(read(this.#file)));
		if (found === null || found === this.#zone) return;
		const before = this.#zone;
		this.#zone = found;
		try {
			if (read(this.#kept) !== found) writeFileDurably(this.#kept, `${found}\n`, { mode: 0o644 });
		} catch {
			// The volume is away or full. The file still says it.
		}
		this.#known.resolve();
		if (before !== null) this.#onChange(found);
	}
}

/** null when it is not there, or says nothing. */
function read(file: string): string | null {
	try {
		return readFileSync(file, 'utf8').trim() || null;
	} catch {
		return null;
	}
}
