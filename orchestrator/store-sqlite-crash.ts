/**
 * Test helper: a process that writes objects without end and prints each id once it was acknowledged, until it is killed.
 *
 *     node orchestrator/store-sqlite-crash.ts <database> <seed>
 */

import { writeSync } from 'node:fs';
import type { WorkerId } from '../core/ids.ts';
import { begin, Fixtures } from './store.fixtures.ts';
import { openSqliteStore } from './store-sqlite.ts';

const [path = '', seed = ''] = process.argv.slice(2);
const CONCURRENCY = 16;

const store = await openSqliteStore({ path });
const make = new Fixtures(seed);
const workers = Array.from({ length: 6 }, () => make.id<WorkerId>());

await Promise.all(
	Array.from({ length: CONCURRENCY }, async () => {
		for (;;) {
			const upload = make.upload(workers, { segments: 3, missing: [5] });
			await begin(store, upload);
			await store.commit(upload.commit);
			writeSync(1, `${upload.objectId}\n`);
		}
	}),
);
