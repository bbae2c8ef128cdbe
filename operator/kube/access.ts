/**
 * Where the API server is and how to prove who we are, from a kubeconfig or from the pod's service account.
 *
 * @kubernetes/client-node reads the configuration and knows the ways to authenticate. Its own requests are not used: its
 * agents keep the first CA for ever and its watch ends every 30 s. The service account's token is read here, because the
 * kubelet replaces it and a token that has just been refused must be read again at once.
 */

import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { type AgentOptions, Agent as HttpAgent } from 'node:http';
import { Agent as HttpsAgent, type RequestOptions } from 'node:https';
import { KubeConfig } from '@kubernetes/client-node';
import { DistroError } from '../../core/errors.ts';
import type { Clock } from '../../core/ports.ts';

/** As client-go: the kubelet replaces a token when a fifth of its life is left, so a minute late is early enough. */
const TOKEN_FRESH_MS = 60_000;
const NOTHING_FOUND = 'http://localhost:8080';
const KEEP_ALIVE_MS = 30_000;
/** Of one process to one API server. Watches take one each. */
const MAX_SOCKETS = 64;

export interface Credentials {
	readonly agent: HttpAgent;
	readonly headers: Readonly<Record<string, string>>;
}

export class Access {
	readonly server: URL;
	/** The namespace of the pod, or of the kubeconfig's context. */
	readonly namespace: string;
	readonly #config: KubeConfig;
	readonly #clock: Clock;
	readonly #tokenFile: string | null;
	#token: { readonly text: string; readonly readMs: number } | null = null;
	#agent: { readonly of: string; readonly agent: HttpAgent } | null = null;

	private constructor(config: KubeConfig, clock: Clock) {
		const cluster = config.getCurrentCluster();
		if (cluster === null) throw new DistroError('invalid', 'The kubeconfig names no current cluster.');
		this.server = new URL(cluster.server);
		this.namespace = config.getContextObject(config.getCurrentContext())?.namespace ?? 'default';
		this.#config = config;
		this.#clock = clock;
		this.#tokenFile = config.getCurrentUser()?.authProvider?.config?.tokenFile ?? null;
	}

	/** KUBECONFIG, else ~/.kube/config, else the pod's service account. */
	static fromDefault(clock: Clock): Access {
		return Access.#from((config) => config.loadFromDefault(), clock);
	}

	static fromText(kubeconfig: string, clock: Clock): Access {
		return Access.#from((config) => config.loadFromString(kubeconfig), clock);
	}

	static #from(load: (config: KubeConfig) => void, clock: Clock): Access {
		const config = new KubeConfig();
		try {
			load(config);
		} catch (error) {
			throw new DistroError('invalid', `The kubeconfig can't be read: ${(error as Error).message}`, { cause: error });
		}
		// What the package makes up when there is nothing.
		if (config.getCurrentCluster()?.server === NOTHING_FOUND) {
			throw new DistroError('invalid', 'No Kubernetes: set KUBECONFIG, or run in a pod with a service account.');
		}
		return new Access(config, clock);
	}

	/** For one request. Files are read afresh, so that what is replaced is used. */
	async credentials(): Promise<Credentials> {
		const options: RequestOptions = {};
		const headers: Record<string, string> = {};
		try {
			await this.#config.applyToHTTPSOptions(options);
			for (const [name, value] of Object.entries(options.headers ?? {})) headers[name] = String(value).trim();
			if (this.#tokenFile !== null) headers.Authorization = `Bearer ${await this.#readToken(this.#tokenFile)}`;
		} catch (error) {
			throw new DistroError('unavailable', `No credentials for the API server: ${(error as Error).message}`, {
				cause: error,
			});
		}
		if (typeof options.auth === 'string') {
			headers.Authorization = `Basic ${Buffer.from(options.auth).toString('base64')}`;
		}
		return { agent: this.#agentFor(options), headers };
	}

	/** The API server did not accept them: the next request reads the token's file. Whether that can help. */
	refused(): boolean {
		this.#token = null;
		return this.#tokenFile !== null;
	}

	/** The connections that nobody uses just now may be dead: none of them is used again. */
	dropIdle(): void {
		for (const sockets of Object.values(this.#agent?.agent.freeSockets ?? {})) {
			for (const socket of sockets ?? []) socket.destroy();
		}
	}

	close(): void {
		this.#agent?.agent.destroy();
		this.#agent = null;
	}

	async #readToken(file: string): Promise<string> {
		const nowMs = this.#clock.monotonicMs();
		if (this.#token === null || nowMs - this.#token.readMs > TOKEN_FRESH_MS) {
			this.#token = { text: (await readFile(file, 'utf8')).trim(), readMs: nowMs };
		}
		return this.#token.text;
	}

	/** One agent for as long as certificate, key and CA stay the same. */
	#agentFor(options: RequestOptions): HttpAgent {
		if (this.#config.getCurrentCluster()?.proxyUrl !== undefined) return options.agent as HttpAgent;
		const { ca, cert, key, rejectUnauthorized, servername } = options;
		const of = createHash('sha256')
			.update(JSON.stringify([ca, cert, key, rejectUnauthorized, servername]))
			.digest('hex');
		if (this.#agent?.of === of) return this.#agent.agent;
		// What still runs on the old one, watches above all, ends by itself.
		this.dropIdle();
		const settings: AgentOptions = { keepAlive: true, keepAliveMsecs: KEEP_ALIVE_MS, maxSockets: MAX_SOCKETS };
		const agent =
			this.server.protocol === 'https:'
				? new HttpsAgent({ ...settings, ca, cert, key, rejectUnauthorized, servername })
				: new HttpAgent(settings);
		this.#agent = { of, agent };
		return agent;
	}
}
