import { describeShardStore } from './store.contract.ts';
import { MemoryShardStore, MemoryVolume } from './store-memory.ts';

describeShardStore('memory', async ({ clock, roomBytes, trashKeepMs }) => {
	const volume = new MemoryVolume();
	const reserveBytes = 65_536;
	const options = { volume, clock, capacityBytes: roomBytes + reserveBytes, reserveBytes, trashKeepMs };
	let store = new MemoryShardStore(options);
	return {
		store,
		reopen: async () => {
			await store.close();
			store = new MemoryShardStore(options);
			return store;
		},
		nowMs: () => clock.nowMs(),
		setOnline: (online) => {
			volume.online = online;
		},
		trashed: () => [...volume.trash.keys()],
		temporary: () => volume.temporary.size,
		dispose: () => store.close(),
	};
});
