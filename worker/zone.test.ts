/** The zone's file, as a downward-API volume has it, on a clock that is moved by hand. */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ManualClock } from '../test/support/clock.ts';
import { Zone } from './zone.ts';

const LOOK_MS = 2_000;
let dataDir: string;
let file: string;
let clock: ManualClock;
let changes: string[];

beforeEach(() => {
	dataDir = mkdtempSync(join(tmpdir(), 'distro-zone-'));
	file = join(dataDir, 'label');
	clock = new ManualClock();
	changes = [];
});
afterEach(() => rmSync(dataDir, { recursive: true }));

const open = (folder = dataDir) => new Zone({ file, dataDir: folder, clock, onChange: (zone) => changes.push(zone) });

test('it is waited for while the file is missing or empty', async () => {
	const zone = open();
	const known = zone.start();
	expect(zone.zone).toBeNull();
	writeFileSync(file, '\n');
	clock.advance(LOOK_MS);
	expect(zone.zone).toBeNull();
	writeFileSync(file, 'zone-a\n');
	clock.advance(LOOK_MS);
	await known;
	expect(zone.zone).toBe('zone-a');
	expect(changes).toEqual([]);
});

test('what was said last is kept on the volume, and what the file says goes before it', async () => {
	writeFileSync(file, 'zone-a');
	await open().start();
	rmSync(file);
	const without = open();
	await without.start();
	expect(without.zone).toBe('zone-a');
	writeFileSync(file, 'zone-b');
	const moved = open();
	await moved.start();
	expect(moved.zone).toBe('zone-b');
	expect(readFileSync(join(dataDir, 'zone'), 'utf8')).toBe('zone-b\n');
});

test('a change is told, once; a label that goes is not one', async () => {
	writeFileSync(file, 'zone-a');
	const zone = open();
	await zone.start();
	writeFileSync(file, '');
	clock.advance(LOOK_MS);
	writeFileSync(file, 'zone-b');
	clock.advance(3 * LOOK_MS);
	expect([zone.zone, changes]).toEqual(['zone-b', ['zone-b']]);
	zone.stop();
	writeFileSync(file, 'zone-c');
	clock.advance(LOOK_MS);
	expect(changes).toEqual(['zone-b']);
});

test('a volume that is away does not hold it up', async () => {
	writeFileSync(file, 'zone-a');
	const zone = open(join(dataDir, 'nowhere'));
	await zone.start();
	expect(zone.zone).toBe('zone-a');
});
