/**
 * A Kubernetes API server in this process, for tests: real HTTP on a free port, objects in memory (objects.ts), and faults
 * on demand. What it does not have: validation by schema, other controllers than the garbage collector, aggregation.
 *
 * For crash tests every accepted write is counted. `onWrite` hears of each before its answer is sent, and may have the
 * connection cut instead: what a process sees that was killed just after its write.
 */

import { readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { RESOURCES, type Resource } from '../../../operator/kube/resources.ts';
import type { Json, JsonObject } from './fields.ts';
import { ApiFailure, FakeObjects, isBuiltIn, metadataOf, type ObjectsOptions, type Place } from './objects.ts';
import { FakeWatches, type Selected, selects } from './watches.ts';

export type Verb = 'get' | 'list' | 'watch' | 'create' | 'update' | 'patch' | 'delete';

export interface ApiRequest {
	readonly verb: Verb;
	readonly resource: Resource;
	readonly namespace?: string;
	readonly name?: string;
	readonly subresource?: string;
}

export interface ApiWrite extends ApiRequest {
	/** From 1, in the order in which they were done. */
	readonly n: number;
	readonly manager: string;
	/** False: the object was so already, and its version stays. */
	readonly changed: boolean;
}

export type Fault =
	| { readonly do: 'answer'; readonly status: number; readonly reason?: string; readonly retryAfterSeconds?: number }
	/** No answer ever comes. */
	| { readonly do: 'hang' }
	/** It goes on, or its answer is sent, only then. */
	| { readonly do: 'hold'; readonly until: Promise<void> }
	/** The connection is cut. */
	| { readonly do: 'cut' };

/** A fault, and whether it comes before the request is looked at or after it was done. */
export type Trouble = Fault & { readonly after?: boolean };

export interface FakeApiOptions extends ObjectsOptions {
	/** Groups that this cluster does not know. */
	readonly absent?: readonly string[];
	/** RBAC: `resource` is the plural, with a slash and the subresource where there is one. */
	readonly allows?: (rule: {
		readonly verb: Verb;
		readonly group: string;
		readonly resource: string;
		readonly namespace?: string;
		readonly name?: string;
	}) => boolean;
	/** Speaks TLS with this folder's tls.crt and tls.key, as they are when it comes up. */
	readonly tlsFolder?: string;
	/** Without it dependents stay until `collectGarbage`. Default true. */
	readonly garbageCollector?: boolean;
}

interface Call extends ApiRequest {
	readonly query: URLSearchParams;
	readonly body: Json;
	readonly contentType: string;
	readonly manager: string;
}

const BODY_MAX_BYTES = 4 * 1024 * 1024;
const STATUS_REASONS: Readonly<Record<number, string>> = {
	400: 'BadRequest',
	401: 'Unauthorized',
	403: 'Forbidden',
	404: 'NotFound',
	409: 'Conflict',
	410: 'Expired',
	422: 'Invalid',
	429: 'TooManyRequests',
	500: 'InternalError',
	503: 'ServiceUnavailable',
	504: 'Timeout',
};
const DISCOVERY = Symbol('discovery');

export class FakeApi {
	readonly objects: FakeObjects;
	readonly watches: FakeWatches;
	/** All that were accepted. */
	readonly writes: ApiWrite[] = [];
	/** All that came, also those that failed. */
	readonly requests: ApiRequest[] = [];
	/** Bearer tokens that are accepted; while it is empty, everyone is. */
	readonly tokens = new Set<string>();
	/** Asked before each request. */
	trouble: (request: ApiRequest) => Trouble | null = () => null;
	/** After each accepted write, before its answer. 'cut': there will be none. */
	onWrite: (write: ApiWrite) => 'cut' | undefined = () => undefined;
	readonly #o: FakeApiOptions;
	readonly #resources: readonly Resource[];
	readonly #hanging = new Set<ServerResponse>();
	#server: Server | null = null;
	#port = 0;
	#collecting = false;
	#busy = 0;

	private constructor(options: FakeApiOptions) {
		this.#o = options;
		this.#resources = RESOURCES.filter(({ group }) => !options.absent?.includes(group));
		this.objects = new FakeObjects(options);
		this.watches = new FakeWatches(this.objects);
		this.objects.onEvent(() => this.#collectSoon());
	}

	static async start(options: FakeApiOptions = {}): Promise<FakeApi> {
		const api = new FakeApi(options);
		await api.up();
		return api;
	}

	get url(): string {
		return `${this.#o.tlsFolder === undefined ? 'http' : 'https'}://127.0.0.1:${this.#port}`;
	}

	/** Requests that are being answered; those that hang and watches are not counted. */
	get busy(): number {
		return this.#busy;
	}

	kubeconfig(user: { readonly token?: string; readonly tokenFile?: string; readonly caFile?: string } = {}): string {
		const trust =
			user.caFile === undefined ? { 'insecure-skip-tls-verify': true } : { 'certificate-authority': user.caFile };
		const credentials =
			user.tokenFile === undefined
				? { token: user.token }
				: { 'auth-provider': { name: 'tokenFile', config: { tokenFile: user.tokenFile } } };
		return JSON.stringify({
			apiVersion: 'v1',
			kind: 'Config',
			clusters: [{ name: 'fake', cluster: { server: this.url, ...trust } }],
			users: [{ name: 'operator', user: credentials }],
			contexts: [{ name: 'fake', context: { cluster: 'fake', user: 'operator', namespace: 'default' } }],
			'current-context': 'fake',
		});
	}

	/** After `down`: the same port, the same objects. */
	async up(): Promise<void> {
		const { tlsFolder } = this.#o;
		const serve = (request: IncomingMessage, response: ServerResponse) => void this.#serve(request, response);
		const read = (name: string) => readFileSync(join(tlsFolder ?? '', name));
		const server =
			tlsFolder === undefined
				? createServer(serve)
				: createTlsServer({ cert: read('tls.crt'), key: read('tls.key') }, serve);
		// As real ones: longer than any pause of a test.
		server.keepAliveTimeout = 60_000;
		await new Promise<void>((resolve, reject) => {
			server.once('error', reject);
			server.listen(this.#port, '127.0.0.1', resolve);
		});
		this.#port = (server.address() as AddressInfo).port;
		this.#server = server;
	}

	/** Cuts every connection. */
	async down(): Promise<void> {
		const server = this.#server;
		this.#server = null;
		this.watches.cut();
		this.#hanging.clear();
		server?.closeAllConnections();
		await new Promise<void>((resolve) => (server === null ? resolve() : server.close(() => resolve())));
	}

	/** The next `times` requests that match have this trouble. */
	fail(match: Partial<ApiRequest>, trouble: Trouble, times = 1): void {
		const before = this.trouble;
		let left = times;
		this.trouble = (request) => {
			const hit =
				left > 0 && Object.entries(match).every(([name, value]) => request[name as keyof ApiRequest] === value);
			if (!hit) return before(request);
			left--;
			return trouble;
		};
	}

	/** As another client would: with the rules of the API, but without HTTP and uncounted. */
	put(resource: Resource, body: JsonObject, manager = 'test'): JsonObject {
		const { name, namespace } = metadataOf(body) as { name: string; namespace?: string };
		const place = { resource, name, namespace };
		const { status, ...main } = structuredClone(body);
		const write = { manager };
		let object =
			this.objects.find(place) === null
				? this.objects.create(place, main, write)
				: this.objects.patch(place, main, { ...write, kind: 'merge' });
		if (status !== undefined) {
			object = this.objects.patch(place, { status }, { ...write, kind: 'merge', subresource: 'status' });
		}
		return structuredClone(object);
	}

	collectGarbage(): void {
		while (this.objects.collect());
	}

	#collectSoon(): void {
		if (this.#o.garbageCollector === false || this.#collecting) return;
		this.#collecting = true;
		setImmediate(() => {
			this.#collecting = false;
			this.collectGarbage();
		});
	}

	async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
		this.#busy++;
		try {
			this.#authenticate(request);
			const call = await this.#read(request);
			if (call === 'ok') return answer(response, 200, 'ok');
			if (DISCOVERY in call) return answer(response, 200, call[DISCOVERY]);
			this.requests.push(call);
			const trouble = this.trouble(call);
			if (trouble !== null && trouble.after !== true) {
				if (trouble.do !== 'hold') return this.#make(trouble, response);
				await this.#held(trouble.until);
			}
			this.#authorize(call.verb, call);
			if (call.verb === 'watch') return this.watches.open(request, response, selected(call));
			const { status, body, cut } = this.#do(call);
			const late = trouble?.after === true ? trouble : null;
			if (late?.do === 'hold') await this.#held(late.until);
			if (cut) response.destroy();
			else if (late !== null && late.do !== 'hold') this.#make(late, response);
			else answer(response, status, body);
		} catch (error) {
			if (!(error instanceof ApiFailure)) throw error;
			answer(response, error.code, statusOf(error.code, error.reason, error.message));
		} finally {
			this.#busy--;
		}
	}

	async #held(until: Promise<void>): Promise<void> {
		this.#busy--;
		await until;
		this.#busy++;
	}

	#make(fault: Exclude<Fault, { readonly do: 'hold' }>, response: ServerResponse): void {
		if (fault.do === 'hang') this.#hanging.add(response);
		else if (fault.do === 'cut') response.destroy();
		else {
			if (fault.retryAfterSeconds !== undefined) response.setHeader('Retry-After', fault.retryAfterSeconds);
			answer(response, fault.status, statusOf(fault.status, fault.reason ?? '', 'injected by the test'));
		}
	}

	#do(call: Call): { readonly status: number; readonly body: Json; readonly cut: boolean } {
		if (call.verb === 'list') return { status: 200, body: this.#list(call), cut: false };
		if (call.verb === 'get') {
			const object = this.objects.get(placeOf(call));
			return { status: 200, body: call.subresource === 'scale' ? scaleOf(object) : object, cut: false };
		}
		const before = this.objects.version;
		const { status, body } = this.#write(call);
		const { verb, resource, namespace, name, subresource, manager } = call;
		const write = {
			n: this.writes.length + 1,
			verb,
			resource,
			manager,
			...(namespace === undefined ? {} : { namespace }),
			...(name === undefined ? {} : { name }),
			...(subresource === undefined ? {} : { subresource }),
			changed: this.objects.version !== before,
		};
		this.writes.push(write);
		return { status, body, cut: this.onWrite(write) === 'cut' };
	}

	#write(call: Call): { readonly status: number; readonly body: Json } {
		const { body, manager, subresource } = call;
		const write = { manager, subresource };
		if (call.verb === 'create') {
			const metadata = metadataOf(body as JsonObject);
			const name = String(metadata.name ?? `${metadata.generateName}${this.objects.version}`);
			return { status: 201, body: this.objects.create({ ...placeOf(call), name }, body as JsonObject, write) };
		}
		const place = placeOf(call);
		if (call.verb === 'delete') {
			const options = (body ?? {}) as { preconditions?: { uid?: string; resourceVersion?: string } } & JsonObject;
			const left = this.objects.delete(place, {
				...options.preconditions,
				propagation: options.propagationPolicy as string | undefined,
				graceSeconds: options.gracePeriodSeconds as number | undefined,
			});
			return { status: 200, body: left ?? { kind: 'Status', apiVersion: 'v1', status: 'Success' } };
		}
		if (call.verb === 'update') return { status: 200, body: this.objects.replace(place, body as JsonObject, write) };
		switch (call.contentType) {
			case 'application/apply-patch+yaml': {
				if (!call.query.has('fieldManager')) throw new ApiFailure(400, 'BadRequest', 'fieldManager is required');
				const isNew = this.objects.find(place) === null;
				if (isNew) this.#authorize('create', call);
				const force = call.query.get('force') === 'true';
				return { status: isNew ? 201 : 200, body: this.objects.apply(place, body as JsonObject, { ...write, force }) };
			}
			case 'application/merge-patch+json': {
				const object = this.objects.patch(place, body, { ...write, kind: 'merge' });
				return { status: 200, body: subresource === 'scale' ? scaleOf(object) : object };
			}
			case 'application/json-patch+json':
				return { status: 200, body: this.objects.patch(place, body, { ...write, kind: 'json' }) };
		}
		throw new ApiFailure(415, 'UnsupportedMediaType', `${call.contentType} is not known here`);
	}

	#list(call: Call): JsonObject {
		const { resource, query } = call;
		const all = this.objects.list(resource, call.namespace).filter(selects(selected(call)));
		const limit = Number(query.get('limit') ?? 0);
		const token = query.get('continue');
		const [version = this.objects.version, start = 0] = token === null ? [] : (JSON.parse(atob(token)) as number[]);
		// This one keeps no old state: pages are of one moment or there are none.
		if (version !== this.objects.version) throw new ApiFailure(410, 'Expired', 'The continue token is too old.');
		const end = limit > 0 ? start + limit : all.length;
		const builtIn = isBuiltIn(resource);
		return {
			apiVersion: resource.group === '' ? resource.version : `${resource.group}/${resource.version}`,
			kind: `${resource.kind}List`,
			metadata: {
				resourceVersion: String(version),
				...(end < all.length ? { continue: btoa(JSON.stringify([version, end])) } : {}),
			},
			// As real ones: items of their own kinds come without.
			items: all.slice(start, end).map((object) => {
				const { apiVersion: _, kind: __, ...rest } = object;
				return builtIn ? rest : object;
			}),
		};
	}

	#authenticate(request: IncomingMessage): void {
		if (this.tokens.size === 0) return;
		const [scheme, token = ''] = (request.headers.authorization ?? '').split(' ');
		if (scheme !== 'Bearer' || !this.tokens.has(token)) throw new ApiFailure(401, 'Unauthorized', 'Unauthorized');
	}

	#authorize(verb: Verb, call: ApiRequest): void {
		const { resource, subresource, namespace, name } = call;
		// Nobody in this project may.
		const listsSecrets = resource.kind === 'Secret' && (verb === 'list' || verb === 'watch');
		const path = subresource === undefined ? resource.plural : `${resource.plural}/${subresource}`;
		const rule = { verb, group: resource.group, resource: path, namespace, name };
		if (listsSecrets || this.#o.allows?.(rule) === false) {
			throw new ApiFailure(403, 'Forbidden', `cannot ${verb} resource "${path}" in API group "${resource.group}"`);
		}
	}

	async #read(request: IncomingMessage): Promise<Call | 'ok' | { [DISCOVERY]: Json }> {
		const url = new URL(request.url ?? '/', this.url);
		if (['/readyz', '/livez', '/version'].includes(url.pathname)) return 'ok';
		const steps = url.pathname.split('/').slice(1).map(decodeURIComponent);
		const [group = '', version = ''] = steps.shift() === 'api' ? ['', steps.shift()] : steps.splice(0, 2);
		const kinds = this.#resources.filter((resource) => resource.group === group && resource.version === version);
		if (steps.length === 0 && kinds.length > 0) {
			return {
				[DISCOVERY]: { kind: 'APIResourceList', resources: kinds.map(({ plural, kind }) => ({ name: plural, kind })) },
			};
		}
		const namespace = steps[0] === 'namespaces' ? steps.splice(0, 2)[1] : undefined;
		const [plural, name, subresource] = steps;
		const resource = kinds.find((kind) => kind.plural === plural);
		// Not a Status: nobody is there who could make one.
		if (resource === undefined) throw new NotServed();
		const text = await readBody(request);
		const agent = request.headers['user-agent']?.split('/')[0] ?? 'unknown';
		return {
			verb: verbOf(request.method ?? 'GET', name, url.searchParams),
			resource,
			...(namespace === undefined ? {} : { namespace }),
			...(name === undefined ? {} : { name }),
			...(subresource === undefined ? {} : { subresource }),
			query: url.searchParams,
			body: text === '' ? null : (JSON.parse(text) as Json),
			contentType: request.headers['content-type'] ?? '',
			manager: url.searchParams.get('fieldManager') ?? agent,
		};
	}
}

class NotServed extends ApiFailure {
	constructor() {
		super(404, '', '404 page not found');
	}
}

function answer(response: ServerResponse, status: number, body: Json): void {
	const isText = typeof body === 'string';
	response.writeHead(status, { 'Content-Type': isText ? 'text/plain' : 'application/json' });
	response.end(isText ? body : JSON.stringify(body));
}

function statusOf(code: number, reason: string, message: string): Json {
	if (code === 404 && reason === '') return message;
	return {
		kind: 'Status',
		apiVersion: 'v1',
		status: 'Failure',
		code,
		reason: reason === '' ? (STATUS_REASONS[code] ?? 'Unknown') : reason,
		message,
	};
}

function verbOf(method: string, name: string | undefined, query: URLSearchParams): Verb {
	switch (method) {
		case 'POST':
			return 'create';
		case 'PUT':
			return 'update';
		case 'PATCH':
			return 'patch';
		case 'DELETE':
			return 'delete';
	}
	if (name !== undefined) return 'get';
	return query.get('watch') === 'true' ? 'watch' : 'list';
}

function placeOf(call: ApiRequest): Place {
	return { resource: call.resource, namespace: call.namespace, name: call.name ?? '' };
}

function selected(call: Call): Selected {
	const { resource, namespace, query } = call;
	return { resource, namespace, query };
}

function scaleOf(object: JsonObject): JsonObject {
	const { name = '', namespace = '', uid = '', resourceVersion = '' } = metadataOf(object);
	const { replicas = 0 } = (object.spec ?? {}) as JsonObject;
	return {
		apiVersion: 'autoscaling/v1',
		kind: 'Scale',
		metadata: { name, namespace, uid, resourceVersion },
		spec: { replicas },
	};
}

async function readBody(request: IncomingMessage): Promise<string> {
	const chunks: Buffer[] = [];
	let bytes = 0;
	for await (const chunk of request) {
		chunks.push(chunk as Buffer);
		bytes += (chunk as Buffer).length;
		if (bytes > BODY_MAX_BYTES) throw new ApiFailure(413, 'RequestEntityTooLarge', 'the request is too large');
	}
	return Buffer.concat(chunks).toString('utf8');
}
