/**
 * The network: connections between hosts, whose messages come late, wait behind a partition, or are lost with their
 * connection. As with TCP what comes at all comes in order and once; a request that is answered may come twice all the same
 * (a retry by something in between), and so may run after its answer was lost.
 */

import type { WorkerId } from '../../core/ids.ts';
import type { ShardHandlers } from '../../platform/shard-server.ts';
import type { Dice } from './dice.ts';
import type { SimNode, World } from './world.ts';

/** Who can be reached under a name now. */
export interface Host {
	readonly node: SimNode;
	/** A worker's. */
	readonly shards?: { readonly workerId: WorkerId; readonly handlers: ShardHandlers };
	/** An orchestrator's. */
	readonly accept?: (connection: Connection) => void;
}

export interface LinkFaults {
	/** One way, or both. */
	blocked: boolean;
	slowMs: number;
	/** Chance for each message that it and its connection are lost. */
	loss: number;
	/** Chance that a request comes once more, later. */
	twice: number;
}

const BREAKS_AFTER_MS = 10_000;

class End {
	readonly node: SimNode;
	onBreak: (why: string) => void = () => {};
	isClosed = false;
	/** When the last message towards it arrives: nothing overtakes. */
	lastAtMs = 0;
	parked: (() => void)[] = [];

	constructor(node: SimNode) {
		this.node = node;
	}
}

export class Connection {
	readonly hosts: readonly [string, string];
	readonly client: End;
	readonly server: End;
	isBroken = false;
	readonly #network: Network;

	constructor(network: Network, o: { hosts: readonly [string, string]; client: SimNode; server: SimNode }) {
		this.#network = network;
		this.hosts = o.hosts;
		this.client = new End(o.client);
		this.server = new End(o.server);
	}

	toServer(what: () => void): void {
		if (!this.client.isClosed) this.#network.carry(this, this.server, what);
	}

	toClient(what: () => void): void {
		if (!this.server.isClosed) this.#network.carry(this, this.client, what);
	}

	/** One side has had enough; the other hears of it behind what was sent before. */
	close(side: 'client' | 'server'): void {
		const [near, far] = side === 'client' ? [this.client, this.server] : [this.server, this.client];
		if (near.isClosed) return;
		this.#network.carry(this, far, () => {
			far.isClosed = true;
			this.#network.forget(this);
			far.onBreak('the other side closed the connection');
		});
		near.isClosed = true;
	}
}

export class Network {
	readonly hosts = new Map<string, Host>();
	readonly #world: World;
	readonly #dice: Dice;
	readonly #links = new Map<string, LinkFaults>();
	readonly #connections = new Set<Connection>();

	constructor(world: World) {
		this.#world = world;
		this.#dice = world.dice.fork('network');
	}

	link(from: string, to: string): LinkFaults {
		const key = `${from} ${to}`;
		let link = this.#links.get(key);
		if (link === undefined) {
			link = { blocked: false, slowMs: 0, loss: 0, twice: 0 };
			this.#links.set(key, link);
		}
		return link;
	}

	connect(from: { host: string; node: SimNode }, to: string): Connection {
		const host = this.hosts.get(to);
		const nobody = host === undefined || host.node.state === 'dead';
		const connection = new Connection(this, {
			hosts: [from.host, to],
			client: from.node,
			server: nobody ? from.node : host.node,
		});
		this.#connections.add(connection);
		if (nobody) {
			connection.server.isClosed = true;
			this.#break(connection, 5);
		}
		return connection;
	}

	carry(connection: Connection, end: End, what: () => void): void {
		const [client, server] = connection.hosts;
		const [from, to] = end === connection.server ? [client, server] : [server, client];
		const link = this.link(from, to);
		const deliver = () => {
			if (connection.isBroken) return;
			if (link.blocked) {
				end.parked.push(deliver);
				this.#breakLater(connection, () => end.parked.length > 0);
			} else if (link.loss > 0 && this.#dice.chance(link.loss)) this.#break(connection, 1);
			else
				end.node.run(() => {
					if (!end.isClosed) what();
				});
		};
		if (end.parked.length > 0) {
			end.parked.push(deliver);
			return;
		}
		const atMs = Math.max(end.lastAtMs, this.#world.nowMs + this.#dice.between(0.1, 2) + link.slowMs);
		end.lastAtMs = atMs;
		this.#world.at(atMs - this.#world.nowMs, deliver);
	}

	/** Nobody answers its pings: both ends find out in the end. */
	#breakLater(connection: Connection, isStill: () => boolean): void {
		this.#world.at(this.#dice.between(BREAKS_AFTER_MS, 2 * BREAKS_AFTER_MS), () => {
			if (isStill()) this.#break(connection, 0);
		});
	}

	#break(connection: Connection, afterMs: number): void {
		if (connection.isBroken) return;
		connection.isBroken = true;
		this.forget(connection);
		for (const end of [connection.client, connection.server]) {
			this.#world.at(afterMs + this.#dice.between(0, 5), () =>
				end.node.run(() => {
					if (end.isClosed) return;
					end.isClosed = true;
					end.onBreak('the connection broke');
				}),
			);
		}
	}

	forget(connection: Connection): void {
		this.#connections.delete(connection);
	}

	/** Both ways, or one. */
	block(from: string, to: string, isBlocked: boolean): void {
		const link = this.link(from, to);
		if (link.blocked === isBlocked) return;
		link.blocked = isBlocked;
		if (isBlocked) return;
		for (const connection of [...this.#connections]) {
			const [client, server] = connection.hosts;
			const end =
				client === from && server === to
					? connection.server
					: client === to && server === from
						? connection.client
						: null;
			// In their order, and before what is sent from now on.
			for (const deliver of end?.parked.splice(0) ?? []) this.#world.at(0, deliver);
			if (end !== null) end.lastAtMs = Math.max(end.lastAtMs, this.#world.nowMs);
		}
	}

	/** Every connection of a process that is gone; after a power cut only silence tells. */
	dropAll(node: SimNode, how: { isSilent: boolean }): void {
		for (const connection of [...this.#connections]) {
			if (connection.client.node !== node && connection.server.node !== node) continue;
			this.#break(connection, how.isSilent ? this.#dice.between(BREAKS_AFTER_MS, 2 * BREAKS_AFTER_MS) : 1);
		}
	}

	/** A process that was stopped answers no pings. */
	dropIfStill(node: SimNode): void {
		for (const connection of [...this.#connections]) {
			if (connection.client.node !== node && connection.server.node !== node) continue;
			this.#breakLater(connection, () => node.state === 'paused');
		}
	}

	/** One connection that just breaks. */
	breakOne(dice: Dice): void {
		const connection = dice.pick([...this.#connections]);
		if (connection !== undefined) this.#break(connection, 0);
	}

	heal(): void {
		for (const [key, link] of this.#links) {
			const [from = '', to = ''] = key.split(' ');
			this.block(from, to, false);
			Object.assign(link, { slowMs: 0, loss: 0, twice: 0 });
		}
	}

	/** Whether this request comes once more, and when. */
	again(from: string, to: string, what: () => void): void {
		if (!this.#dice.chance(this.link(from, to).twice)) return;
		this.#world.at(this.#dice.between(1, 60_000), what);
	}
}
