/**
 * The thread that owns the database. `node:sqlite` blocks while it syncs, so it does that here.
 *
 * Drains its inbox; answers the reads of it from committed data; then runs the writes as one transaction and answers
 * them. While one transaction syncs the next one gathers in the inbox: that is all there is to the group commit's timing.
 */

import { deserialize, serialize } from 'node:v8';
import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { type Answer, answerReads, answerWrites, type Call, isRead, plainError } from './store-sqlite-batch.ts';
import { openMetadataDatabase } from './store-sqlite-schema.ts';
import { CachedSql } from './store-sqlite-sql.ts';

/** From the store: serialized calls, or the wish to close after them. */
export type ToThread = Uint8Array<ArrayBuffer> | 'close';
/** To the store: once how opening went, then serialized answers. */
export type FromThread =
	| Uint8Array<ArrayBuffer>
	| { readonly opened: true }
	| { readonly failed: ReturnType<typeof plainError> };

function serve(port: MessagePort, path: string): void {
	const db = openMetadataDatabase(path);
	const sql = new CachedSql(db);
	const answer = (answers: Answer[]) => {
		if (answers.length === 0) return;
		const bytes = serialize(answers) as Buffer<ArrayBuffer>;
		port.postMessage(bytes, [bytes.buffer]);
	};
	port.on('message', (first: ToThread) => {
		const calls: Call[] = [];
		let closing = false;
		let next: ToThread | undefined = first;
		while (next !== undefined) {
			if (next === 'close') closing = true;
			else calls.push(...(deserialize(next) as Call[]));
			next = receiveMessageOnPort(port)?.message;
		}
		answer(answerReads(sql, calls.filter(isRead)));
		answer(
			answerWrites(
				sql,
				calls.filter((call) => !isRead(call)),
			),
		);
		if (!closing) return;
		db.close();
		port.close();
	});
	port.postMessage({ opened: true } satisfies FromThread);
}

if (parentPort !== null) {
	try {
		serve(parentPort, (workerData as { path: string }).path);
	} catch (thrown) {
		parentPort.postMessage({ failed: plainError(thrown) } satisfies FromThread);
	}
}
