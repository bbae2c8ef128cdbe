/** The part of compose.yaml that its own checks need: services in the order of their dependencies, variables filled in. */

import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { parse } from 'yaml';

export const COMPOSE_FILE = resolve(import.meta.dirname, '../compose.yaml');

export interface ComposeService {
	readonly name: string;
	readonly image: string;
	readonly command: readonly string[];
	readonly environment: Readonly<Record<string, string>>;
	/** Volume by where it is mounted. */
	readonly mounts: ReadonlyMap<string, string>;
	readonly ports: readonly string[];
	readonly user: string;
	readonly readOnly: boolean;
	readonly capDrop: readonly string[];
	readonly securityOpt: readonly string[];
	readonly dependsOn: readonly string[];
	/** It runs once and ends. */
	readonly oneShot: boolean;
}

interface RawService {
	image: string;
	command: string[];
	environment?: Record<string, string>;
	volumes?: string[];
	ports?: string[];
	user?: string;
	read_only?: boolean;
	cap_drop?: string[];
	security_opt?: string[];
	depends_on?: string[] | Record<string, unknown>;
	restart?: string;
}

export function readComposeFile(env: NodeJS.ProcessEnv): readonly ComposeService[] {
	const { services } = parse(readFileSync(COMPOSE_FILE, 'utf8'), {
		merge: true,
		reviver: (_, value) => (typeof value === 'string' ? filled(value, env) : value),
	}) as { services: Record<string, RawService> };
	const all = Object.entries(services).map(([name, raw]) => serviceOf(name, raw));
	const ordered: ComposeService[] = [];
	const place = (service: ComposeService) => {
		if (ordered.includes(service)) return;
		for (const name of service.dependsOn) {
			const needed = all.find((other) => other.name === name);
			if (needed === undefined) throw new Error(`${service.name} depends on ${name}, which is not there`);
			place(needed);
		}
		ordered.push(service);
	};
	all.forEach(place);
	return ordered;
}

function filled(text: string, env: NodeJS.ProcessEnv): string {
	return text.replace(/\$\{([A-Z_]+):-([^}]*)\}/g, (_, name: string, fallback: string) => env[name] || fallback);
}

function serviceOf(name: string, raw: RawService): ComposeService {
	const { depends_on: dependsOn = [] } = raw;
	return {
		name,
		image: raw.image,
		command: raw.command,
		environment: Object.fromEntries(Object.entries(raw.environment ?? {}).map(([key, value]) => [key, String(value)])),
		mounts: new Map((raw.volumes ?? []).map((mount) => mount.split(':').reverse() as [string, string])),
		ports: raw.ports ?? [],
		user: raw.user ?? '',
		readOnly: raw.read_only ?? false,
		capDrop: raw.cap_drop ?? [],
		securityOpt: raw.security_opt ?? [],
		dependsOn: Array.isArray(dependsOn) ? dependsOn : Object.keys(dependsOn),
		oneShot: raw.restart === undefined,
	};
}
