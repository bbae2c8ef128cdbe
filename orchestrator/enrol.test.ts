/** The desk that gives certificates away: what it asks for first, and that nobody can keep it busy. */

import { beforeEach, expect, test } from 'vitest';
import { newSigningKey, rawPublicKey, signEnrolment } from '../core/crypto/sign.ts';
import { DistroError } from '../core/errors.ts';
import type { WorkerId } from '../core/ids.ts';
import { ManualClock } from '../test/support/clock.ts';
import { jwksOf, RULES, tokenSigner } from '../test/support/tokens.ts';
import { type EnrolDeps, EnrolDesk } from './enrol.ts';
import { parseKeys, parseRules } from './service-account.ts';
import { MemoryMetadata, MemoryMetadataStore } from './store-memory.ts';
import { WorkerRegistry } from './workers.ts';

const signer = tokenSigner('key-1', 'ES256');
const account = { rules: parseRules(JSON.stringify(RULES)), keys: parseKeys(jwksOf([signer])) };
const receiptKey = newSigningKey();
const workerId = 'a'.repeat(32) as WorkerId;
const POD = 'demo-worker-3';
const enrolment = signEnrolment({ workerId, publicKey: Buffer.from('a public key') }, receiptKey);
const registered = { name: POD, address: 'a:1', zone: '', receiptKey: rawPublicKey(receiptKey) };

let clock: ManualClock;
let registry: WorkerRegistry;
let issued: Parameters<EnrolDeps['issuer']['issue']>[0][];
let outcomes: string[];
let complaints: object[];
let desk: EnrolDesk;
const token = (pod = POD) => signer.token(pod, { nowMs: clock.nowMs() });

function open(change: Partial<EnrolDeps> = {}): EnrolDesk {
	return new EnrolDesk({
		accounts: async () => account,
		workers: registry,
		issuer: {
			issue: async (worker) => {
				issued.push(worker);
				return { chain: 'a chain', notAfterMs: 0 };
			},
		},
		clock,
		onOutcome: (outcome) => outcomes.push(outcome),
		log: { info: () => {}, warn: (fields) => complaints.push(fields) },
		...change,
	});
}

beforeEach(() => {
	clock = new ManualClock();
	registry = new WorkerRegistry({ store: new MemoryMetadataStore(new MemoryMetadata()), clock });
	issued = [];
	outcomes = [];
	complaints = [];
	desk = open();
});

test('a pod gets one in its own name, with the names that the settings say', async () => {
	expect(await desk.enrol(token(), enrolment)).toBe('a chain');
	expect(issued).toEqual([
		{
			workerId,
			name: POD,
			publicKey: enrolment.publicKey,
			hosts: RULES.domains.map((domain) => `${POD}.${domain}`),
		},
	]);
	expect(outcomes).toEqual(['issued']);
});

test('no certificate without a good token and the signature of the receipt key', async () => {
	const other = rawPublicKey(newSigningKey());
	const changed = [
		{ ...enrolment, workerId: 'b'.repeat(32) as WorkerId },
		{ ...enrolment, publicKey: Buffer.from('another public key') },
		{ ...enrolment, receiptKey: other },
		{ ...enrolment, signature: Buffer.alloc(64) },
	];
	for (const wrong of changed) {
		await expect(desk.enrol(token(), wrong)).rejects.toMatchObject({ kind: 'denied' });
	}
	await expect(desk.enrol('no token', enrolment)).rejects.toMatchObject({ kind: 'denied' });
	await expect(desk.enrol(token('demo-orchestrator-0'), enrolment)).rejects.toMatchObject({ kind: 'denied' });
	expect(issued).toEqual([]);
	expect(outcomes).toEqual(Array(6).fill('denied'));
});

test('an id that is registered is given to its own pod with its own key only', async () => {
	await registry.register({ ...registered, workerId });
	expect(await desk.enrol(token(), enrolment)).toBe('a chain');
	await expect(desk.enrol(token('demo-worker-4'), enrolment)).rejects.toMatchObject({
		kind: 'denied',
		message: expect.stringContaining(`is ${POD}, and not demo-worker-4`),
	});
	const thief = signEnrolment({ workerId, publicKey: Buffer.from('x') }, newSigningKey());
	await expect(desk.enrol(token(), thief)).rejects.toMatchObject({
		kind: 'denied',
		message: expect.stringContaining('another receipt key'),
	});
	expect(issued).toHaveLength(1);
});

test('a new volume is a new worker of the same name; the volume of before may come back to its pod, and to no other', async () => {
	await registry.register({ ...registered, workerId });
	const newKey = newSigningKey();
	const after = 'b'.repeat(32) as WorkerId;
	await desk.enrol(token(), signEnrolment({ workerId: after, publicKey: Buffer.from('x') }, newKey));
	await registry.register({ ...registered, workerId: after, receiptKey: rawPublicKey(newKey) });
	expect(registry.name(workerId)).toBe(`${POD}~aaaaaaaa`);
	expect(await desk.enrol(token(), enrolment)).toBe('a chain');
	await expect(desk.enrol(token('demo-worker-4'), enrolment)).rejects.toMatchObject({ kind: 'denied' });
});

test('what another orchestrator has registered counts as well', async () => {
	const metadata = new MemoryMetadata();
	const here = new WorkerRegistry({ store: new MemoryMetadataStore(metadata), clock });
	const there = new WorkerRegistry({ store: new MemoryMetadataStore(metadata), clock });
	await there.register({ ...registered, workerId });
	await expect(open({ workers: here }).enrol(token('demo-worker-4'), enrolment)).rejects.toMatchObject({
		kind: 'denied',
	});
});

test('one pod gets so many in a minute, and the others are not held up by it', async () => {
	for (let i = 0; i < 20; i++) await desk.enrol(token(), enrolment);
	await expect(desk.enrol(token(), enrolment)).rejects.toMatchObject({ kind: 'unavailable', retryAfterMs: 2_000 });
	const other = signEnrolment({ workerId: 'b'.repeat(32) as WorkerId, publicKey: Buffer.from('x') }, newSigningKey());
	await desk.enrol(token('demo-worker-4'), other);
	clock.advance(60_000);
	await desk.enrol(token(), enrolment);
	expect(issued).toHaveLength(22);
});

test('so many at once, and room again after each, whatever became of it', async () => {
	const { promise, reject } = Promise.withResolvers<never>();
	desk = open({ accounts: () => promise });
	const running = Array.from({ length: 8 }, () => desk.enrol(token(), enrolment));
	await expect(desk.enrol(token(), enrolment)).rejects.toMatchObject({ kind: 'unavailable' });
	reject(new DistroError('unavailable', 'no keys'));
	expect((await Promise.allSettled(running)).map(({ status }) => status)).toEqual(Array(8).fill('rejected'));
	await expect(desk.enrol(token(), enrolment)).rejects.toThrow('no keys');
	// Nine were refused within one second.
	expect(complaints).toHaveLength(1);
});
