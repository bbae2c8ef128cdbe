import { expect, test } from 'vitest';
import { freePort } from './ports.ts';

// Fourteen are drawn for one cluster before any of them is listened on: two were the same once in 250 starts.
test('no port is given out twice', async () => {
	const ports = await Promise.all(Array.from({ length: 1_500 }, () => freePort()));
	expect(new Set(ports).size).toBe(ports.length);
});
