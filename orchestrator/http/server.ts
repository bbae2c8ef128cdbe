/**
 * The HTTP API: fastify routes on top of `Objects`. It knows HTTP only; bytes go past fastify's own streams (body.ts,
 * download.ts). Every error is application/problem+json that says what to do.
 */

import type { IncomingMessage, ServerResponse } from 'node:http';
import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import { asDistroError } from '../../core/errors.ts';
import { PAGE_DEFAULT, PAGE_MAX } from '../../core/limits.ts';
import type { ClusterAdmin, ClusterKeysAdmin } from '../cluster.types.ts';
import type { Deletions } from '../deletions.ts';
import type { ObjectInfo, Objects, UploadOptions } from '../objects.types.ts';
import { type Authenticator, type Caller, requireScope } from './auth.ts';
import { announcedSize, endAfterBody, receiveMultipart, receiveRaw, skipRaw } from './body.ts';
import { clusterRoutes } from './cluster.ts';
import { sendObject } from './download.ts';
import { noteAnswering, refusalOfFramework, refuseConnection } from './early-errors.ts';
import {
	answerJson,
	type Exchange,
	type Handler,
	infoJson,
	objectIdOf,
	type Route,
	single,
	wholeNumber,
} from './exchange.ts';
import { bodyType, checkContentType, checkName, objectHeaders, parseReprDigest, wantsSha256 } from './headers.ts';
import { fingerprintOf, idempotencyKeyOf } from './idempotency.ts';
import { openApi } from './openapi.ts';
import { HttpRefusal, problemOf, renderProblem } from './problem.ts';
import { trashRoutes } from './trash.ts';

export interface HttpServerDeps {
	readonly objects: Objects;
	readonly deletions: Deletions;
	readonly cluster: ClusterAdmin;
	readonly clusterKeys: ClusterKeysAdmin;
	/** null: open to whoever reaches it. */
	readonly auth: Authenticator | null;
	readonly ready: () => Promise<{ ok: boolean; reasons: string[] }>;
	/** Who this process is, and which certificates and keys it has loaded; no secret. */
	readonly identity: () => object;
	readonly metrics: {
		readonly contentType: string;
		render(): Promise<string>;
		observeRequest(request: { method: string; route: string; status: number; seconds: number }): void;
	};
	readonly log: {
		error(fields: object, text: string): void;
		warn(fields: object, text: string): void;
		debug(fields: object, text: string): void;
	};
	readonly limits: { readonly maxObjectBytes: number };
}

/** A reason of one's own: without, each abort makes a DOMException with its stack. */
const CLIENT_GONE = 'the client has left';
const OPEN: Caller = { owner: '', scope: 'admin' };
const EXPLAIN_DEFAULT = 20;
const EXPLAIN_MAX = 100;

/** The caller listens and closes. */
export function createHttpServer(deps: HttpServerDeps): FastifyInstance {
	let count = 0;
	const refuse = (error: unknown, request: FastifyRequest, reply: FastifyReply) => {
		reply.hijack();
		noteAnswering(request.raw, reply.raw);
		const refusal = error instanceof HttpRefusal ? null : refusalOfFramework(error as Error);
		answerProblem(deps, { raw: request.raw, response: reply.raw, id: request.id }, refusal ?? error);
	};
	const app = fastify({
		logger: false,
		genReqId: () => `r${(count++).toString(36)}`,
		exposeHeadRoutes: false,
		// Transfers have their own idle rule; a long one is not a slow one.
		requestTimeout: 0,
		keepAliveTimeout: 72_000,
		forceCloseConnections: 'idle',
		routerOptions: { maxParamLength: 200 },
		http: { headersTimeout: 60_000, noDelay: true },
		// What comes on a kept connection while we stop is served, and told that it is the last.
		return503OnClosing: false,
		clientErrorHandler: refuseConnection,
		frameworkErrors: (error, request, reply) => refuse(error, request, reply),
	});
	app.server.on('checkExpectation', (raw: IncomingMessage, response: ServerResponse) => {
		noteAnswering(raw, response);
		const error = new HttpRefusal(417, 'the only Expect that is met here is 100-continue');
		answerProblem(deps, { raw, response, id: 'expect' }, error);
	});
	// Bodies are read by the handlers, whatever their type.
	app.removeAllContentTypeParsers();
	app.addContentTypeParser('*', (_request, _payload, done) => done(null));

	const table = withHead(routesOf(deps));
	for (const route of table) {
		app.route({
			method: route.method,
			url: route.path,
			handler: async (request, reply) => run(deps, { request, reply, route }),
		});
	}
	app.setNotFoundHandler((request, reply) => {
		const allowed = table.filter(({ path }) => matchesPath(path, request.url)).map(({ method }) => method);
		const error =
			allowed.length > 0
				? new HttpRefusal(405, `${request.method} is not for this path: use ${allowed.join(' or ')}`, {
						allow: allowed.join(', '),
					})
				: new HttpRefusal(404, 'there is nothing at this path: GET /openapi.json lists what there is');
		refuse(error, request, reply);
	});
	app.setErrorHandler(refuse);
	return app;
}

/** Whatever answers GET answers HEAD (RFC 9110 §9.1); node leaves the body out. */
function withHead(routes: readonly Route[]): Route[] {
	const has = (path: string) => routes.some((route) => route.path === path && route.method === 'HEAD');
	return routes.flatMap((route): Route[] =>
		route.method === 'GET' && !has(route.path) ? [route, { ...route, method: 'HEAD' }] : [route],
	);
}

async function run(
	deps: HttpServerDeps,
	o: { request: FastifyRequest; reply: FastifyReply; route: Route },
): Promise<void> {
	const { request, reply, route } = o;
	reply.hijack();
	const { raw } = request;
	const response = reply.raw;
	noteAnswering(raw, response);
	const startedAt = process.hrtime.bigint();
	response.once('close', () => {
		const seconds = Number(process.hrtime.bigint() - startedAt) / 1e9;
		deps.metrics.observeRequest({ method: route.method, route: route.path, status: response.statusCode, seconds });
	});
	try {
		let caller = OPEN;
		if (deps.auth !== null && route.scope !== null) {
			caller = await deps.auth.check(raw);
			requireScope(caller, route.scope);
		}
		await route.handler({ request, raw, response, caller });
	} catch (error) {
		answerProblem(deps, { raw, response, id: request.id }, error);
	}
}

function answerProblem(
	deps: HttpServerDeps,
	exchange: { raw: IncomingMessage; response: ServerResponse; id: string },
	error: unknown,
): void {
	const { raw, response, id } = exchange;
	const problem = problemOf(error);
	const fields = { request: id, method: raw.method, path: raw.url?.split('?')[0], status: problem.status };
	if (problem.status >= 500 && problem.status !== 503 && problem.status !== 507) {
		deps.log.error({ ...fields, err: asDistroError(error) }, 'request failed');
	} else if (problem.status === 503 && (error as Error).cause !== undefined) {
		deps.log.warn({ ...fields, err: asDistroError(error) }, 'request failed for now');
	} else deps.log.debug({ ...fields, detail: problem.detail }, 'request refused');
	if (response.headersSent || response.destroyed) {
		response.destroy();
		return;
	}
	const { headers, body } = renderProblem(problem, id);
	// The rest of a body nobody wants would be read as the next request.
	if (!raw.complete) headers.connection = 'close';
	response.writeHead(problem.status, headers);
	if (raw.method !== 'HEAD') response.write(body);
	endAfterBody(raw, response);
}

function routesOf(deps: HttpServerDeps): Route[] {
	const { objects, limits } = deps;
	const { maxObjectBytes } = limits;

	const optionsFor = (
		{ raw, caller }: Exchange,
		part: { name: string | null; contentType: string | null; sizeHintBytes: number | null },
	): UploadOptions => {
		const expectedSha256 = parseReprDigest(single(raw.headers['repr-digest']));
		const key = idempotencyKeyOf(single(raw.headers['idempotency-key']));
		const options = {
			...part,
			expectedSha256,
			wantSha256: expectedSha256 !== null || wantsSha256(single(raw.headers['want-repr-digest'])),
		};
		const idempotency = key === null ? null : { owner: caller.owner, key, fingerprint: fingerprintOf(raw, options) };
		return { ...options, idempotency };
	};

	const created = (response: ServerResponse, info: ObjectInfo) => {
		const { etag = '', 'repr-digest': digest } = objectHeaders(info);
		const headers = {
			etag,
			location: `/objects/${info.objectId}`,
			...(digest === undefined ? {} : { 'repr-digest': digest }),
		};
		answerJson(response, 201, infoJson(info), headers);
	};

	const upload: Handler = async (exchange) => {
		const { raw, response } = exchange;
		const type = raw.headers['content-type'] ?? '';
		if (!/^multipart\/form-data\s*(;|$)/i.test(type)) {
			throw new HttpRefusal(
				415,
				'POST /upload takes multipart/form-data with one part "file"; raw bytes go to POST /objects',
			);
		}
		const sizeHintBytes = announcedSize(raw, maxObjectBytes);
		const info = await receiveMultipart(
			{ request: raw, response },
			{
				maxBytes: maxObjectBytes,
				begin: ({ name, contentType }) =>
					objects.beginUpload(
						optionsFor(exchange, {
							name: checkName(name),
							contentType: checkContentType(contentType ?? undefined),
							sizeHintBytes,
						}),
						closeSignal(response),
					),
			},
		);
		created(response, info);
	};

	const put: Handler = async (exchange) => {
		const { raw, response, request } = exchange;
		const type = bodyType(raw.headers['content-type']);
		if (type !== null && /^multipart\//i.test(type)) {
			throw new HttpRefusal(415, 'POST /objects takes the bytes themselves; a form goes to POST /upload');
		}
		const sizeHintBytes = announcedSize(raw, maxObjectBytes);
		const name = checkName(single((request.query as Record<string, string | string[]>).name) ?? null);
		const begun = await objects.beginUpload(
			optionsFor(exchange, { name, contentType: type, sizeHintBytes }),
			closeSignal(response),
		);
		if ('done' in begun) {
			await skipRaw({ request: raw, response }, maxObjectBytes);
			created(response, begun.done);
			return;
		}
		created(response, await receiveRaw({ request: raw, response }, begun.upload, maxObjectBytes));
	};

	const get =
		(attachment: boolean): Handler =>
		async ({ request, raw, response }) => {
			const download = await objects.open(objectIdOf(request));
			const onBroken = (error: unknown) =>
				deps.log.error({ request: request.id, err: asDistroError(error) }, 'a download broke after its first byte');
			await sendObject({ request: raw, response }, { download, attachment, onBroken });
		};

	return [
		{ method: 'POST', path: '/upload', scope: 'write', handler: upload },
		{ method: 'GET', path: '/download/:id', scope: 'read', handler: get(true) },
		{ method: 'HEAD', path: '/download/:id', scope: 'read', handler: get(true) },
		{ method: 'POST', path: '/objects', scope: 'write', handler: put },
		{ method: 'GET', path: '/objects/:id', scope: 'read', handler: get(false) },
		{ method: 'HEAD', path: '/objects/:id', scope: 'read', handler: get(false) },
		{
			method: 'GET',
			path: '/objects',
			scope: 'read',
			handler: async ({ request, response }) => {
				const query = request.query as Record<string, string | string[]>;
				const limit = wholeNumber(single(query.limit), {
					name: 'limit',
					fallback: PAGE_DEFAULT,
					min: 1,
					max: PAGE_MAX,
				});
				const page = await objects.list({ limit, cursor: single(query.cursor) || null });
				answerJson(response, 200, { objects: page.objects.map(infoJson), next: page.next });
			},
		},
		{
			method: 'GET',
			path: '/objects/:id/explain',
			scope: 'read',
			handler: async ({ request, response }) => {
				const query = request.query as Record<string, string | string[]>;
				const fromSegment = wholeNumber(single(query.from_segment), {
					name: 'from_segment',
					fallback: 0,
					min: 0,
					max: 0xffff_ffff,
				});
				const limit = wholeNumber(single(query.limit), {
					name: 'limit',
					fallback: EXPLAIN_DEFAULT,
					min: 1,
					max: EXPLAIN_MAX,
				});
				answerJson(response, 200, await objects.explain(objectIdOf(request), { fromSegment, limit }));
			},
		},
		...trashRoutes(objects, deps.deletions),
		...clusterRoutes(deps.cluster, deps.clusterKeys),
		{
			method: 'GET',
			path: '/healthz',
			scope: null,
			handler: async ({ response }) => answerJson(response, 200, { status: 'ok' }),
		},
		{
			method: 'GET',
			path: '/readyz',
			scope: null,
			handler: async ({ response }) => {
				const { ok, reasons } = await deps.ready();
				answerJson(response, ok ? 200 : 503, { status: ok ? 'ok' : 'not ready', reasons });
			},
		},
		{
			method: 'GET',
			path: '/identity',
			scope: null,
			handler: async ({ response }) => answerJson(response, 200, deps.identity()),
		},
		{
			method: 'GET',
			path: '/metrics',
			scope: 'read',
			handler: async ({ response }) => {
				const body = await deps.metrics.render();
				response.writeHead(200, { 'content-type': deps.metrics.contentType }).end(body);
			},
		},
		{
			method: 'GET',
			path: '/openapi.json',
			scope: null,
			handler: async ({ response }) => answerJson(response, 200, openApi),
		},
	];
}

/** Aborted when the client is gone. */
function closeSignal(response: ServerResponse): AbortSignal {
	const gone = new AbortController();
	response.once('close', () => gone.abort(CLIENT_GONE));
	if (response.destroyed) gone.abort(CLIENT_GONE);
	return gone.signal;
}

function matchesPath(pattern: string, url: string): boolean {
	const path = url.split('?')[0] ?? '';
	const wanted = pattern.split('/');
	const parts = path.split('/');
	return wanted.length === parts.length && wanted.every((part, i) => part.startsWith(':') || part === parts[i]);
}
