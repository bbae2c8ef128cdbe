import { afterAll, beforeAll } from 'vitest';
import { startSupabase, type TestSupabase } from '../test/support/supabase.ts';
import { describeMetadataStore } from './store.contract.ts';
import { openSupabaseStore } from './store-supabase.ts';

let supabase: TestSupabase;
beforeAll(async () => {
	supabase = await startSupabase();
});
afterAll(() => supabase?.remove());

describeMetadataStore('supabase', async () => {
	await supabase.clear();
	const open = () => openSupabaseStore({ url: supabase.url, key: () => supabase.key });
	let store = await open();
	return {
		store,
		reopen: async () => {
			await store.close();
			store = await open();
			return store;
		},
		dispose: () => store.close(),
	};
});

