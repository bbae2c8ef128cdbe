/** The open watches of the fake API server, and what can go wrong with them. */

import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Resource } from '../../../operator/kube/resources.ts';
import type { Json, JsonObject } from './fields.ts';
import { type FakeObjects, metadataOf, type ObjectEvent } from './objects.ts';
import { fieldSelector, labelSelector, type Matches } from './selectors.ts';

export interface Selected {
	readonly resource: Resource;
	readonly namespace?: string | undefined;
	readonly query: URLSearchParams;
}

interface Watch {
	readonly selected: Selected;
	readonly matches: Matches;
	readonly response: ServerResponse;
	/** Open, but nothing goes through any more, as when the machine behind it is gone. */
	frozen: boolean;
}

const MS = 1_000;

export class FakeWatches {
	readonly #objects: FakeObjects;
	readonly #open = new Set<Watch>();
	/** How often an event is sent: 0 loses it, 2 sends it twice. */
	copies: (event: ObjectEvent) => number = () => 1;

	constructor(objects: FakeObjects) {
		this.#objects = objects;
		objects.onEvent((event) => {
			for (const watch of this.#open) this.#send(watch, event, this.copies(event));
		});
	}

	/** Of all kinds, or of one; frozen ones too. */
	count(resource?: Resource): number {
		return [...this.#open].filter((watch) => resource === undefined || watch.selected.resource === resource).length;
	}

	open(request: IncomingMessage, response: ServerResponse, selected: Selected): void {
		response.writeHead(200, { 'Content-Type': 'application/json' });
		response.flushHeaders();
		const { query } = selected;
		const missed = this.#objects.eventsAfter(Number(query.get('resourceVersion') ?? 0));
		if (missed === null) {
			response.end(
				line('ERROR', { kind: 'Status', code: 410, reason: 'Expired', message: 'too old resource version' }),
			);
			return;
		}
		const watch = { selected, matches: selects(selected), response, frozen: false };
		this.#open.add(watch);
		for (const event of missed) this.#send(watch, event, 1);
		const end = () => {
			this.#open.delete(watch);
			response.end();
		};
		const timer = setTimeout(end, Number(query.get('timeoutSeconds') ?? 1800) * MS).unref();
		request.socket.once('close', () => {
			clearTimeout(timer);
			this.#open.delete(watch);
		});
		response.once('close', () => this.#open.delete(watch));
	}

	/** To all that asked for them: so far nothing is missing. */
	bookmark(): void {
		const resourceVersion = String(this.#objects.version);
		for (const { selected, response, frozen } of this.#open) {
			if (frozen || selected.query.get('allowWatchBookmarks') !== 'true') continue;
			const { kind, version, group } = selected.resource;
			const apiVersion = group === '' ? version : `${group}/${version}`;
			response.write(line('BOOKMARK', { kind, apiVersion, metadata: { resourceVersion } }));
		}
	}

	/** The server ends them, as after their timeout. */
	end(): void {
		for (const { response } of this.#open) response.end();
		this.#open.clear();
	}

	cut(): void {
		for (const { response } of this.#open) response.destroy();
		this.#open.clear();
	}

	/** Those that are open now; later ones are well. */
	freeze(): void {
		for (const watch of this.#open) watch.frozen = true;
	}

	/** Any line, to all. */
	say(text: string): void {
		for (const { response } of this.#open) response.write(text);
	}

	#send(watch: Watch, event: ObjectEvent, copies: number): void {
		const { selected, matches, response, frozen } = watch;
		if (frozen || selected.resource !== event.resource) return;
		if (selected.namespace !== undefined && metadataOf(event.object).namespace !== selected.namespace) return;
		const was = event.before !== null && matches(event.before);
		const is = !event.deleted && matches(event.object);
		if (!was && !is) return;
		const text = line(is ? (was ? 'MODIFIED' : 'ADDED') : 'DELETED', event.object);
		for (let n = 0; n < copies; n++) response.write(text);
	}
}

export function selects({ query }: Selected): Matches {
	const labels = labelSelector(query.get('labelSelector'));
	const fields = fieldSelector(query.get('fieldSelector'));
	return (object: JsonObject) => labels(object) && fields(object);
}

function line(type: string, object: Json): string {
	return `${JSON.stringify({ type, object })}\n`;
}
