/**
 * The clients: people who store, read and delete, come again with the same Idempotency-Key, are slow, or leave. They keep
 * what they were told, and what comes back is compared with it.
 */

import type { ObjectId } from '../../core/ids.ts';
import { LARGE_CELL_BYTES, SMALL_CELL_BYTES, SMALL_OBJECT_BYTES, TAG_BYTES } from '../../core/limits.ts';
import type { ByteSink } from '../../core/ports.ts';
import type { ObjectInfo } from '../../orchestrator/objects.types.ts';
import { seededRandom } from '../support/clock.ts';
import { kindOf, type Running, type SimOrchestrator, type Site, TRASH_MS } from './cluster.ts';
import type { Dice } from './dice.ts';
import { Violation } from './world.ts';

/** One file that a client wants to have stored. */
export interface Wish {
	readonly name: string;
	readonly bytes: Buffer;
	readonly key: string | null;
	/** `unknown`: the answer did not come, or said that it may come to pass yet. */
	state: 'asked' | 'stored' | 'unknown' | 'deleting' | 'trashed' | 'undeleting' | 'purging' | 'deleted';
	/** When somebody first asked to delete it since it was there last: it is not freed before that and its time in the trash. */
	trashedAtMs: number;
	/** How often somebody asked to delete it. */
	removals: number;
	objectId: ObjectId | null;
	underWay: number;
}

const KiB = 1024;
const CELL = SMALL_CELL_BYTES - TAG_BYTES;
const LARGE = LARGE_CELL_BYTES - TAG_BYTES;
const SIZES = [
	0,
	1,
	4096,
	4097,
	CELL - 1,
	CELL,
	CELL + 1,
	2 * CELL,
	4 * CELL - 1,
	4 * CELL,
	4 * CELL + 1,
	SMALL_OBJECT_BYTES,
	SMALL_OBJECT_BYTES + 1,
	4 * LARGE + 1,
];
/** Of orchestrators that share the store's time. */
const CLOCKS_DIFFER_MS = 15_000;
/** What a request may fail with though nothing is wrong with Distro. */
const PASSING = ['unavailable', 'timeout', 'canceled', 'exhausted', 'expired', 'conflict'];

export class Clients {
	readonly wishes: Wish[] = [];
	readonly counts = {
		stored: 0,
		refused: 0,
		unknown: 0,
		reads: 0,
		failedReads: 0,
		deleted: 0,
		undeleted: 0,
		purged: 0,
	};
	/** Part of the answers that don't come. */
	lostAnswers = 0.01;
	readonly #site: Site;
	readonly #dice: Dice;

	constructor(site: Site) {
		this.#site = site;
		this.#dice = site.world.dice.fork('clients');
	}

	get stored(): Wish[] {
		return this.wishes.filter(({ state }) => state === 'stored');
	}

	get trashed(): Wish[] {
		return this.wishes.filter(({ state }) => state === 'trashed');
	}

	/** An orchestrator that answers, or one that seems to: load balancers are late. */
	#anyOrchestrator(): SimOrchestrator | undefined {
		return this.#dice.pick(this.#site.orchestrators.filter(({ running }) => running !== null));
	}

	/** Runs a request on an orchestrator; the answer is null when the connection breaks before it. */
	#ask<T>(
		orchestrator: SimOrchestrator,
		what: (running: Running) => Promise<T>,
		then: (answer: { ok: T } | { error: unknown } | null) => void,
	): void {
		const { world } = this.#site;
		const running = orchestrator.running as Running;
		let isOver = false;
		const end = (answer: { ok: T } | { error: unknown } | null) => {
			if (isOver) return;
			isOver = true;
			orchestrator.onDeath.delete(onDeath);
			then(answer);
		};
		const onDeath = () => end(null);
		orchestrator.onDeath.add(onDeath);
		const reply = (answer: { ok: T } | { error: unknown }) =>
			world.at(this.#dice.between(0.1, 2), () => end(this.#dice.chance(this.lostAnswers) ? null : answer));
		running.node.run(() => {
			what(running).then(
				(ok) => reply({ ok }),
				(error) => reply({ error }),
			);
		});
	}

	store(): void {
		const dice = this.#dice;
		const count = this.wishes.length + 1;
		const size = dice.chance(0.4)
			? (dice.pick(SIZES) as number)
			: dice.below(dice.chance(0.1) ? 1500 * KiB : 400 * KiB);
		const wish: Wish = {
			name: `object-${count}`,
			bytes: seededRandom(`${this.#site.seed} object ${count}`).bytes(size),
			key: dice.chance(0.4) ? `key-${count}` : null,
			state: 'asked',
			objectId: null,
			trashedAtMs: 0,
			removals: 0,
			underWay: 0,
		};
		this.wishes.push(wish);
		this.put(wish);
		if (wish.key !== null && dice.chance(0.15)) this.put(wish);
	}

	put(wish: Wish): void {
		const orchestrator = this.#anyOrchestrator();
		if (orchestrator === undefined) {
			if (wish.state === 'asked') wish.state = 'unknown';
			return;
		}
		const { world } = this.#site;
		wish.underWay++;
		this.#ask(
			orchestrator,
			(running) => this.#upload(running, wish),
			(answer) => {
				wish.underWay--;
				if (answer !== null && 'ok' in answer) {
					this.#stored(wish, answer.ok);
					return;
				}
				const kind = answer === null ? 'no answer' : kindOf(answer.error);
				world.tell(`${wish.name} was not stored: ${kind}`);
				const isGone = kind === 'not_found' && wish.state !== 'stored' && wish.objectId !== null;
				if (answer !== null && !PASSING.includes(kind) && !isGone) {
					world.fail(new Violation(`${wish.name} was refused as ${kind}: ${(answer.error as Error).stack}`));
				}
				if (wish.state !== 'asked' && wish.state !== 'unknown') return;
				// Even a 503 may have come to pass: the metadata's answer may have been lost.
				wish.state = 'unknown';
				this.counts.unknown++;
				if (wish.key !== null && this.#dice.chance(0.7)) {
					world.at(this.#dice.between(10, 30_000), () => {
						if (wish.state === 'unknown') this.put(wish);
					});
				}
			},
		);
	}

	#stored(wish: Wish, info: ObjectInfo): void {
		const { world } = this.#site;
		if (wish.objectId !== null && wish.objectId !== info.objectId) {
			world.fail(new Violation(`${wish.name} was stored twice under one Idempotency-Key`));
		}
		if (info.sizeBytes !== wish.bytes.length) world.fail(new Violation(`${wish.name} was stored with another size`));
		if (wish.objectId === null) {
			this.counts.stored++;
			world.tell(`${wish.name} is stored as ${info.objectId}`);
			wish.state = 'stored';
		}
		wish.objectId = info.objectId;
	}

	async #upload(running: Running, wish: Wish): Promise<ObjectInfo> {
		const dice = this.#dice;
		const { bytes, name, key } = wish;
		const idempotency = key === null ? null : { owner: '', key, fingerprint: name };
		const begun = await running.objects.beginUpload(
			{
				sizeHintBytes: dice.chance(0.8) ? bytes.length : null,
				name,
				contentType: null,
				expectedSha256: null,
				wantSha256: false,
				idempotency,
			},
			new AbortController().signal,
		);
		if ('done' in begun) return begun.done;
		const { upload } = begun;
		let isOver = false;
		upload.result.catch(() => {
			isOver = true;
		});
		const isSlow = dice.chance(0.1);
		const leavesAt = dice.chance(0.05) ? dice.below(bytes.length + 1) : Number.POSITIVE_INFINITY;
		for (let at = 0; at < bytes.length && !isOver; at += 65_536) {
			if (at > leavesAt) {
				upload.abort('the client left');
				break;
			}
			if (isSlow) {
				await new Promise<void>((done) => {
					running.node.clock.schedule(dice.between(100, 20_000), done);
				});
			}
			const drained = new Promise<void>((done) => {
				upload.drained = done;
			});
			if (!upload.write(Buffer.from(bytes.subarray(at, at + 65_536)))) await drained;
		}
		upload.end();
		return upload.result;
	}

	/** The whole of it, or a range. */
	read(wish: Wish, options: { mustWork?: boolean } = {}): void {
		const orchestrator = this.#anyOrchestrator();
		const { objectId, bytes, name } = wish;
		if (orchestrator === undefined || objectId === null) return;
		const { world } = this.#site;
		const dice = this.#dice;
		const isWhole = options.mustWork === true || dice.chance(0.6);
		const offset = isWhole ? 0 : dice.below(bytes.length);
		const length = isWhole ? bytes.length : dice.below(bytes.length - offset + 1);
		const leaves = options.mustWork !== true && dice.chance(0.05);
		// Whoever is slow to take the first byte reads what may have moved, or been cut anew, meanwhile.
		const beginsAfterMs = dice.chance(0.2) ? dice.between(100, 20_000) : 0;
		this.counts.reads++;
		const { state, removals } = wish;
		this.#ask(
			orchestrator,
			(running) => {
				const leavesAfterMs = leaves ? dice.between(1, 200) : null;
				return download(running, { objectId, offset, length, leavesAfterMs, beginsAfterMs });
			},
			(answer) => {
				// An answer may be older than what was asked for since.
				const isAsBefore = () => wish.state === state && wish.removals === removals;
				const isWanted = state === 'stored' && isAsBefore();
				if (answer !== null && 'ok' in answer) {
					if (state === 'trashed' && isAsBefore()) world.fail(new Violation(`${name} is in the trash and was read`));
					if (!answer.ok.equals(bytes.subarray(offset, offset + length))) {
						world.fail(new Violation(`${name} was read with other bytes than were stored`));
					}
					return;
				}
				this.counts.failedReads++;
				const kind = answer === null ? 'no answer' : kindOf(answer.error);
				world.tell(`${name} was not read: ${kind}`);
				const isRight = answer === null || PASSING.includes(kind) || !isWanted;
				if (!isRight || options.mustWork === true) {
					const { message, cause } = (answer?.error ?? {}) as Error;
					world.fail(new Violation(`${name} (${objectId}) was not read: ${kind}: ${message} ${cause}`));
				}
			},
		);
	}

	remove(wish: Wish): void {
		const orchestrator = this.#anyOrchestrator();
		const { objectId, name } = wish;
		if (orchestrator === undefined || objectId === null) return;
		const { world } = this.#site;
		if (wish.state !== 'deleting') wish.trashedAtMs = world.nowMs;
		wish.removals++;
		wish.state = 'deleting';
		this.#ask(
			orchestrator,
			({ objects }) => objects.remove(objectId, ''),
			(answer) => {
				const kind = kindOfAnswer(answer);
				// The second time it is gone.
				if (kind === 'ok' || kind === 'not_found') {
					wish.state = 'trashed';
					this.counts.deleted++;
				}
				world.tell(`${name} is deleted: ${kind}`);
			},
		);
	}

	undelete(wish: Wish): void {
		const orchestrator = this.#anyOrchestrator();
		const { objectId, name } = wish;
		if (orchestrator === undefined || objectId === null) return;
		const { world } = this.#site;
		wish.state = 'undeleting';
		this.#ask(
			orchestrator,
			({ objects }) => objects.undelete(objectId, ''),
			(answer) => {
				const kind = kindOfAnswer(answer);
				if (kind === 'ok') {
					wish.state = 'stored';
					this.counts.undeleted++;
				} else if (kind === 'not_found') {
					wish.state = 'deleted';
					if (world.nowMs < wish.trashedAtMs + TRASH_MS - CLOCKS_DIFFER_MS) {
						world.fail(new Violation(`${name} was deleted lately and can not be had back`));
					}
				}
				world.tell(`${name} is undeleted: ${kind}`);
			},
		);
	}

	/** Out of the trash before its time. */
	purge(wish: Wish): void {
		const orchestrator = this.#anyOrchestrator();
		const { objectId, name } = wish;
		if (orchestrator === undefined || objectId === null) return;
		const { world } = this.#site;
		wish.state = 'purging';
		this.#ask(
			orchestrator,
			({ objects }) => objects.purge(objectId, ''),
			(answer) => {
				const kind = kindOfAnswer(answer);
				if (kind === 'ok' || kind === 'not_found') {
					wish.state = 'deleted';
					this.counts.purged++;
				}
				world.tell(`${name} is purged: ${kind}`);
			},
		);
	}
}

function kindOfAnswer(answer: { ok: unknown } | { error: unknown } | null): string {
	return answer === null ? 'no answer' : 'ok' in answer ? 'ok' : kindOf(answer.error);
}

async function download(
	running: Running,
	what: {
		objectId: ObjectId;
		offset: number;
		length: number;
		leavesAfterMs: number | null;
		beginsAfterMs: number;
	},
): Promise<Buffer> {
	const parts: Buffer[] = [];
	const gone = new AbortController();
	if (what.leavesAfterMs !== null) running.node.clock.schedule(what.leavesAfterMs, () => gone.abort());
	const sink: ByteSink = {
		write: (chunk) => {
			parts.push(Buffer.from(chunk));
			// Takes more a little later.
			if (parts.length % 3 !== 0) return true;
			running.node.clock.schedule(3, () => sink.drained());
			return false;
		},
		drained: () => {},
	};
	const { offset, length } = what;
	const found = await running.objects.open(what.objectId);
	if (what.beginsAfterMs > 0) await new Promise<void>((done) => running.node.clock.schedule(what.beginsAfterMs, done));
	await found.read({ offset, length, sink, signal: gone.signal });
	return Buffer.concat(parts);
}
