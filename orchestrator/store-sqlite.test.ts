import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describeMetadataStore } from './store.contract.ts';
import { openSqliteStore } from './store-sqlite.ts';

describeMetadataStore('sqlite', async () => {
	const folder = await mkdtemp(join(tmpdir(), 'distro-metadata-'));
	const path = join(folder, 'metadata.db');
	let store = await openSqliteStore({ path });
	return {
		store,
		reopen: async () => {
			await store.close();
			store = await openSqliteStore({ path });
			return store;
		},
		dispose: async () => {
			await store.close();
			await rm(folder, { recursive: true });
		},
	};
});
