import { describeMetadataStore } from './store.contract.ts';
import { MemoryMetadata, MemoryMetadataStore } from './store-memory.ts';

describeMetadataStore('memory', async () => {
	const data = new MemoryMetadata();
	let store = new MemoryMetadataStore(data);
	return {
		store,
		reopen: async () => {
			await store.close();
			store = new MemoryMetadataStore(data);
			return store;
		},
		dispose: () => store.close(),
	};
});
