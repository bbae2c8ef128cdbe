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

describe('enrolment', () => {
	const own = { ...NEEDED, GRPC_HOST: '127.0.0.1' };
	const all = { ENROL_ADDRESS: 'orchestrator:9092', ENROL_TOKEN_FILE: '/token', TLS_CA_FILE: '/ca.crt' };

	test('is off by default, and whole or a mistake', () => {
		expect(readConfig(own).enrol).toBeNull();
		expect(readConfig({ ...own, ...all }).enrol).toEqual({
			address: 'orchestrator:9092',
			tokenFile: '/token',
			caFile: '/ca.crt',
		});
		expect(() => readConfig({ ...own, ...all, TLS_CA_FILE: '' })).toThrow('TLS_CA_FILE is not set');
		expect(() => readConfig({ ...own, ...all, ENROL_TOKEN_FILE: '' })).toThrow('ENROL_TOKEN_FILE is not set');
		for (const address of ['orchestrator', 'https://orchestrator:1', 'user@orchestrator:1', 'orchestrator:1/x']) {
			expect(() => readConfig({ ...own, ...all, ENROL_ADDRESS: address })).toThrow('must be host:port');
		}
	});
});

test('a zone stands in the environment or in a file, not in both', () => {
	const own = { ...NEEDED, GRPC_HOST: '127.0.0.1' };
	expect(() => readConfig({ ...own, ZONE: 'a', ZONE_FILE: '/zone' })).toThrow('ZONE and ZONE_FILE are both set');
	expect(readConfig({ ...own, ZONE_FILE: '/zone' })).toMatchObject({ zone: '', zoneFile: '/zone' });
});
