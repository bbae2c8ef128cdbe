/** The checker of the scenarios must see what it is there for: orchestrators that lie in every way it knows. */

import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { History, type Write } from '../support/history.ts';

/** What one orchestrator shows. */
class Shown {
	readonly objects = new Map<string, string>();
	/** Where the list differs. */
	list: string[] | null = null;
	server: Server;
	http = '';

	constructor() {
		this.server = createServer((request, response) => {
			const { pathname, searchParams } = new URL(request.url ?? '/', this.http);
			const ids = this.list ?? [...this.objects.keys()];
			const from = Number(searchParams.get('cursor') ?? 0);
			const limit = Number(searchParams.get('limit'));
			if (pathname === '/cluster') response.end(JSON.stringify({ objects: ids.length }));
			else if (pathname === '/objects') {
				const objects = ids.slice(from, from + limit).map((object_id) => ({ object_id }));
				const next = from + limit < ids.length ? String(from + limit) : null;
				response.end(JSON.stringify({ objects, next }));
			} else {
				const body = this.objects.get(pathname.slice('/objects/'.length));
				response.statusCode = body === undefined ? 404 : 200;
				response.end(body ?? 'none');
			}
		});
	}

	async listen(): Promise<void> {
		await new Promise<void>((done) => this.server.listen(0, '127.0.0.1', done));
		this.http = `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
	}
}

let history: History;
let shown: [Shown, Shown];

beforeEach(async () => {
	history = new History();
	shown = [new Shown(), new Shown()];
	for (const one of shown) await one.listen();
	// More than a page of sound objects.
	for (let i = 0; i < 120; i++) history.stored(write(`sound ${i}`), show(`id-${i}`, `sound ${i}`));
});
afterEach(() => {
	for (const { server } of shown) server.close();
});

function write(text: string, key: string | null = null): Write {
	return history.begin(Buffer.from(text), key);
}

function show(id: string, text: string, by: readonly Shown[] = shown): string {
	for (const { objects } of by) objects.set(id, text);
	return id;
}

const verdict = () => history.check(shown.map(({ http }) => http));
const violations = async () => (await verdict()).violations.join('\n');

test('all is well: stored, deleted, lost and there, lost and not there', async () => {
	const deleted = write('deleted');
	history.stored(deleted, 'gone');
	deleted.deletion = 'done';
	for (const text of ['lost and there', 'lost']) write(text).outcome = 'lost';
	show('x', 'lost and there');
	const { readBack, ...rest } = await verdict();
	expect(rest).toMatchObject({ violations: [], stored: 121, deleted: 1, lostAnswers: 2, lostAndThere: 1 });
	expect([readBack, rest.listed]).toEqual([242, [121, 121]]);
});

test('an acknowledged object that is nowhere, or changed, or at one orchestrator only', async () => {
	for (const { objects } of shown) objects.delete('id-7');
	show('id-8', 'other bytes');
	shown[1].objects.delete('id-119');
	const said = await violations();
	expect(said).toContain('id-7 (7 bytes) was acknowledged and is not there');
	expect(said).toContain('id-8 (7 bytes) is not what was stored');
	expect(said).toContain('orchestrators disagree on id-119');
	expect(said).toContain('lists other objects than');
});

test('objects that nobody wrote, that are half there, or there twice', async () => {
	const lost = write('sent twice', 'key');
	lost.outcome = 'lost';
	show('a', 'sent twice');
	show('b', 'sent twice');
	write('whole').outcome = 'lost';
	show('c', 'who');
	history.stored(write('once'), show('d', 'once'));
	show('e', 'once');
	const said = await violations();
	expect(said).toContain('one write is there twice');
	for (const id of ['c', 'e']) expect(said).toContain(`${id} is there, and no write without an answer has its bytes`);
	expect(said.split('\n')).toHaveLength(3);
});

test('a deleted object that is there, one that is listed and not there, one key with two objects', async () => {
	const deleted = write('deleted');
	history.stored(deleted, show('d', 'deleted'));
	deleted.deletion = 'done';
	for (const one of shown) one.list = [...one.objects.keys(), 'ghost'];
	const twice = write('twice', 'key');
	history.stored(twice, show('e', 'twice'));
	history.stored(twice, show('f', 'twice'));
	const said = await violations();
	expect(said).toContain('d was deleted, and is there');
	expect(said).toContain('ghost is listed and not there');
	expect(said).toContain('one key gave two objects: e and f');
});
