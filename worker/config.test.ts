import { describe, expect, test } from 'vitest';
import { readConfig } from './config.ts';

const NEEDED = { DATA_DIR: '/data', NAME: 'worker-1', TLS_DIR: '/data/tls', ORCHESTRATORS: 'orchestrator:9090' };

describe("a worker's address", () => {
	test('is needed when it listens on every address, which is the default', () => {
		expect(() => readConfig(NEEDED)).toThrow(/ADVERTISE is not set/);
		expect(readConfig({ ...NEEDED, ADVERTISE: 'worker-1:9090' }).advertise).toBe('worker-1:9090');
	});

	test('is the one that it listens on otherwise', () => {
		expect(readConfig({ ...NEEDED, GRPC_HOST: '127.0.0.1' }).advertise).toBeNull();
	});
});
