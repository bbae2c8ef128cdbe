/** Metrics of one process (prom-client), and the small HTTP server of processes without one of their own. */

import { createServer, type Server } from 'node:http';
import { collectDefaultMetrics, Registry } from 'prom-client';

export type ReadyCheck = () => Promise<{ ok: boolean; reasons: string[] }>;

export function createRegistry(labels: { role: string; name: string }): Registry {
	const registry = new Registry();
	registry.setDefaultLabels(labels);
	collectDefaultMetrics({ register: registry });
	return registry;
}

/**
 * /metrics, /healthz (the process lives, whatever its peers do), /readyz (it can serve) and /identity (who it is, and which
 * certificates it has loaded; no secret). The caller listens.
 */
export function createMetricsServer(options: {
	registry: Registry;
	ready: ReadyCheck;
	identity: () => object;
}): Server {
	const { registry, ready, identity } = options;
	return createServer(async (request, response) => {
		const answer = (status: number, type: string, body: string) => {
			response.writeHead(status, { 'content-type': type }).end(body);
		};
		try {
			if (request.url === '/metrics') answer(200, registry.contentType, await registry.metrics());
			else if (request.url === '/healthz') answer(200, 'application/json', '{"status":"ok"}');
			else if (request.url === '/identity') answer(200, 'application/json', JSON.stringify(identity()));
			else if (request.url === '/readyz') {
				const { ok, reasons } = await ready();
				answer(ok ? 200 : 503, 'application/json', JSON.stringify({ status: ok ? 'ok' : 'not ready', reasons }));
			} else answer(404, 'text/plain', 'try /metrics, /healthz, /readyz or /identity\n');
		} catch {
			answer(500, 'text/plain', 'internal\n');
		}
	});
}
