import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { readComposeFile } from './compose-file.ts';

const services = readComposeFile({});
const processes = services.filter(({ oneShot }) => !oneShot);

describe('compose.yaml', () => {
	it('has the authority, six workers, and then the orchestrator', () => {
		const workers = ['worker-1', 'worker-2', 'worker-3', 'worker-4', 'worker-5', 'worker-6'];
		expect(services.map(({ name }) => name)).toEqual(['init', ...workers, 'orchestrator']);
	});

	it.each(services)('gives $name no more rights than it needs', (service) => {
		expect(service).toMatchObject({
			user: '1000:1000',
			readOnly: true,
			capDrop: ['ALL'],
			securityOpt: ['no-new-privileges:true'],
		});
	});

	it('publishes one port, on loopback: the API is open', () => {
		expect(services.flatMap(({ ports }) => ports)).toEqual(['127.0.0.1:8080:8080']);
		expect(services.find(({ name }) => name === 'orchestrator')?.environment.AUTH).toBe('off');
	});

	it('lets each process see its own volume only', () => {
		const volumes = processes.map(({ mounts }) => [...mounts]);
		expect(volumes.every((mounts) => mounts.length === 1 && mounts[0]?.[0] === '/data')).toBe(true);
		expect(new Set(volumes.map((mounts) => mounts[0]?.[1])).size).toBe(processes.length);
	});

	it('has init mount every volume where the image has a folder that it may write', () => {
		const dockerfile = readFileSync(resolve(import.meta.dirname, '../Dockerfile'), 'utf8');
		const init = services.find(({ name }) => name === 'init');
		for (const { mounts } of processes) {
			for (const volume of mounts.values()) expect(init?.mounts.get(`/cluster/${volume}`)).toBe(volume);
		}
		for (const path of init?.mounts.keys() ?? []) expect(dockerfile).toMatch(new RegExp(`\\s${path}[\\s;]`));
	});

	it('gives the master key to the orchestrator alone', () => {
		const given = readComposeFile({ MASTER_KEY: 'k' }).filter(({ environment }) =>
			Object.values(environment).includes('k'),
		);
		expect(given.map(({ name }) => name)).toEqual(['orchestrator']);
	});
});
