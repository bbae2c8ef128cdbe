/**
 * Who of several operators acts: the holder of a Lease. Taken when it was not renewed for LEASE_MS, renewed every RETRY_MS,
 * lost when that did not succeed for RENEW_MS; the process that lost it exits, because what it had begun may still be
 * under way. Released at a stop, so that the next one need not wait.
 *
 * Only the own clock counts: how long ago this process saw the Lease change, never what time the holder wrote into it.
 * A holder that was frozen may believe in itself for longer than is true: `leading` asks the clock, and what is destructive
 * carries preconditions. The idea is client-go's (tools/leaderelection).
 */

import { asDistroError, type DistroError } from '../../core/errors.ts';
import type { Clock, Random } from '../../core/ports.ts';
import type { KubeClient } from './client.ts';
import { microTime, type ObjectRef, preconditionsOf, type Stored } from './objects.ts';
import { LEASES } from './resources.ts';
import { wait } from './wait.ts';

export const LEASE_MS = 15_000;
export const RENEW_MS = 10_000;
export const RETRY_MS = 2_000;
/** Of those that wait: their tries don't come all at once. */
const JITTER = 0.2;
/** So that one lost answer leaves time for two more tries. */
const REQUEST_MS = 3_000;
const MS = 1_000;
const UINT32 = 0x1_0000_0000;

type Lease = Stored<NonNullable<typeof LEASES.object>>;

export interface LeaderElectionOptions {
	readonly client: KubeClient;
	readonly lease: ObjectRef;
	/** Of this process alone, and of no process before it. */
	readonly identity: string;
	readonly clock: Clock;
	readonly random: Random;
	readonly onElected: () => void;
	/** Once, and nothing after it. */
	readonly onLost: (why: string) => void;
	/** A try that failed, for the log. */
	readonly onFailure: (error: DistroError) => void;
}

export class LeaderElection {
	readonly #o: LeaderElectionOptions;
	readonly #stop = new AbortController();
	#running: Promise<void> | null = null;
	/** The Lease as it was last seen to change, and when that was. */
	#observed: { readonly version: string; readonly atMs: number } | null = null;
	#holder: string | null = null;
	/** When the last try that renewed was begun; null when not leading. */
	#renewedMs: number | null = null;

	constructor(options: LeaderElectionOptions) {
		this.#o = options;
	}

	/** Nobody else can be by now. Ask before every pass. */
	get leading(): boolean {
		return this.#renewedMs !== null && this.#o.clock.monotonicMs() - this.#renewedMs < RENEW_MS;
	}

	/** Who holds it, as last seen; null: nobody. */
	get holder(): string | null {
		return this.#holder;
	}

	start(): void {
		this.#running ??= this.#run();
	}

	/** Gives it back if it is held. */
	async stop(): Promise<void> {
		this.#stop.abort();
		await this.#running;
		this.#renewedMs = null;
		// Also when the answer to a try did not come any more.
		if (!this.#isOthers()) await this.#release();
	}

	async #run(): Promise<void> {
		const { clock, onElected, onLost, random } = this.#o;
		const { signal } = this.#stop;
		while (!signal.aborted) {
			const wasLeading = this.#renewedMs !== null;
			const held = this.#leftMs() > 0 && (await this.#try());
			if (signal.aborted) return;
			if (held && !wasLeading) onElected();
			if (wasLeading && (this.#isOthers() || this.#leftMs() === 0)) {
				this.#renewedMs = null;
				onLost(this.#isOthers() ? `${this.#holder} holds it` : `not renewed for ${RENEW_MS / MS} s`);
				return;
			}
			const share = this.#renewedMs !== null ? 0 : JITTER * (random.bytes(4).readUInt32LE(0) / UINT32);
			await wait(clock, Math.min(RETRY_MS * (1 + share), this.#leftMs()), signal);
		}
	}

	/** Until it would be lost. */
	#leftMs(): number {
		if (this.#renewedMs === null) return Number.POSITIVE_INFINITY;
		return Math.max(0, this.#renewedMs + RENEW_MS - this.#o.clock.monotonicMs());
	}

	/** Takes or renews it; whether that was done. */
	async #try(): Promise<boolean> {
		const { client, clock, identity, lease, onFailure } = this.#o;
		const nowMs = clock.monotonicMs();
		const { signal } = this.#stop;
		try {
			const current = await client.get(LEASES, lease, { timeoutMs: Math.min(REQUEST_MS, this.#leftMs()), signal });
			if (current !== null) {
				this.#observe(current);
				if (this.#isOthers() && clock.monotonicMs() - (this.#observed?.atMs ?? nowMs) < LEASE_MS) return false;
			}
			const spec = this.#spec(current);
			const options = { timeoutMs: Math.min(REQUEST_MS, this.#leftMs()), signal };
			const metadata = { name: lease.name, namespace: lease.namespace };
			const written =
				current === null
					? await client.create(
							LEASES,
							{ apiVersion: 'coordination.k8s.io/v1', kind: 'Lease', metadata, spec },
							options,
						)
					: await client.patch(LEASES, lease, { ...options, merge: { spec }, preconditions: preconditionsOf(current) });
			this.#observe(written);
			// From before it was sent: others count from when it was written at the earliest.
			this.#renewedMs = nowMs;
			return this.#holder === identity;
		} catch (thrown) {
			const error = asDistroError(thrown);
			if (error.kind !== 'conflict' && error.kind !== 'exists' && error.kind !== 'canceled') onFailure(error);
			return false;
		}
	}

	async #release(): Promise<void> {
		const { client, identity, lease, onFailure } = this.#o;
		try {
			const current = await client.get(LEASES, lease, { timeoutMs: REQUEST_MS });
			if (current?.spec?.holderIdentity !== identity) return;
			await client.patch(LEASES, lease, {
				timeoutMs: REQUEST_MS,
				preconditions: preconditionsOf(current),
				merge: { spec: { ...this.#spec(current), holderIdentity: '', leaseDurationSeconds: 1 } },
			});
		} catch (thrown) {
			onFailure(asDistroError(thrown));
		}
	}

	#spec(current: Lease | null): NonNullable<Lease['spec']> {
		const { clock, identity } = this.#o;
		const now = microTime(clock.nowMs());
		const before = current?.spec;
		const same = before?.holderIdentity === identity;
		return {
			holderIdentity: identity,
			leaseDurationSeconds: LEASE_MS / MS,
			acquireTime: same ? before?.acquireTime : now,
			renewTime: now,
			leaseTransitions: (before?.leaseTransitions ?? 0) + (same || before === undefined ? 0 : 1),
		};
	}

	#observe(lease: Lease): void {
		const version = lease.metadata.resourceVersion;
		if (this.#observed?.version !== version) this.#observed = { version, atMs: this.#o.clock.monotonicMs() };
		const holder = lease.spec?.holderIdentity ?? '';
		this.#holder = holder === '' ? null : holder;
	}

	#isOthers(): boolean {
		return this.#holder !== null && this.#holder !== this.#o.identity;
	}
}
