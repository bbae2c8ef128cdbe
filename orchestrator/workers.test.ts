import { expect, test, vi } from 'vitest';
import { newSigningKey, rawPublicKey } from '../core/crypto/sign.ts';
import { DistroError } from '../core/errors.ts';
import type { WorkerId } from '../core/ids.ts';
import { systemClock } from '../platform/clock.ts';
import { MemoryMetadata, MemoryMetadataStore } from './store-memory.ts';
import { WorkerRegistry } from './workers.ts';

const worker = (digit: string, name: string) => ({
	workerId: digit.repeat(32) as WorkerId,
	name,
	address: `127.0.0.1:${digit}`,
	zone: '',
	receiptKey: rawPublicKey(newSigningKey()),
});

test('a name goes to the worker with a new volume, once the one that had it is gone', async () => {
	const metadata = new MemoryMetadata();
	const store = new MemoryMetadataStore(metadata);
	const registry = new WorkerRegistry({ store, clock: systemClock });
	const before = worker('1', 'worker-3');
	const after = worker('2', 'worker-3');
	await registry.register(before);
	const heartbeat = registry.heartbeat(before.workerId);
	await expect(registry.register(after)).rejects.toMatchObject({ kind: 'exists' });
	heartbeat.closed();
	await registry.register(after);
	registry.heartbeat(after.workerId);
	expect([registry.name(after.workerId), registry.name(before.workerId)]).toEqual(['worker-3', 'worker-3.11111111']);
	// And back again only when that one is gone in its turn.
	await expect(registry.register(before)).rejects.toMatchObject({ kind: 'exists' });

	const restarted = new WorkerRegistry({ store, clock: systemClock });
	await restarted.load();
	expect(restarted.name(before.workerId)).toBe('worker-3.11111111');
	expect(restarted.ref(before.workerId)).toEqual({ workerId: before.workerId, address: before.address });
});

test('a full disk keeps strangers out, and not who is known', async () => {
	const store = new MemoryMetadataStore(new MemoryMetadata());
	const registry = new WorkerRegistry({ store, clock: systemClock });
	const known = worker('1', 'worker-1');
	await registry.register(known);
	vi.spyOn(store, 'saveWorker').mockRejectedValue(new DistroError('exhausted', 'the disk is full'));
	await registry.register({ ...known, address: '127.0.0.1:99' });
	expect(registry.ref(known.workerId)?.address).toBe('127.0.0.1:99');
	await expect(registry.register(worker('2', 'worker-2'))).rejects.toMatchObject({ kind: 'exhausted' });
	vi.restoreAllMocks();
});
