/** Routes of the cluster itself: what operators look at and steer. All of them need the scope `admin`. */

import { DistroError } from '../../core/errors.ts';
import { type ClusterAdmin, type ClusterKeysAdmin, DUTY_CHANGES } from '../cluster.types.ts';
import { answerJson, type Exchange, type Handler, type Route, single, wholeNumber } from './exchange.ts';

/** Shards beyond k that must be left when nobody says otherwise. */
const RESERVE_DEFAULT = 1;
const RESERVE_MAX = 24;

export function clusterRoutes(cluster: ClusterAdmin, keys: ClusterKeysAdmin): Route[] {
	const scope = 'admin';
	const get = (path: string, handler: Handler): Route => ({ method: 'GET', path, scope, handler });
	const post = (path: string, handler: Handler): Route => ({ method: 'POST', path, scope, handler });
	return [
		get('/cluster', async ({ response }) => answerJson(response, 200, await cluster.view())),
		get('/cluster/redundancy', async ({ response }) => answerJson(response, 200, await cluster.redundancy())),
		get('/cluster/can-stop', async ({ request, response }) => {
			const query = request.query as Record<string, string | string[]>;
			const names = (single(query.workers) ?? '').split(',').filter((name) => name !== '');
			if (names.length === 0) throw new DistroError('invalid', 'say which: ?workers=worker-1,worker-2');
			const bounds = { name: 'reserve', fallback: RESERVE_DEFAULT, min: 0, max: RESERVE_MAX };
			answerJson(response, 200, await cluster.canStop(names, wholeNumber(single(query.reserve), bounds)));
		}),
		...DUTY_CHANGES.map((change) =>
			post(`/cluster/workers/:name/${change}`, async (exchange) => {
				const name = nameOf(exchange);
				await cluster.changeDuty(name, change);
				const worker = (await cluster.view()).workers.find((other) => other.name === name);
				answerJson(exchange.response, 200, worker ?? { name, state: 'forgotten' });
			}),
		),
		get('/cluster/keys', async ({ response }) => answerJson(response, 200, await keys.view())),
		post('/cluster/keys/rotate', async ({ response }) => answerJson(response, 200, await keys.rotate())),
		{
			method: 'DELETE',
			path: '/cluster/keys/:generation',
			scope,
			handler: async ({ request, response }) => {
				const { generation } = request.params as { generation: string };
				const bounds = { name: 'generation', fallback: 0, min: 1, max: 0xffff_ffff };
				answerJson(response, 200, await keys.drop(wholeNumber(generation, bounds)));
			},
		},
		get('/cluster/snapshots', async ({ response }) =>
			answerJson(response, 200, { snapshots: await cluster.snapshots() }),
		),
		get('/cluster/jobs', async ({ response }) => answerJson(response, 200, { jobs: await cluster.jobs() })),
		...(['pause', 'resume', 'run'] as const).map((what) =>
			post(`/cluster/jobs/:name/${what}`, async (exchange) => {
				const name = nameOf(exchange);
				await cluster.askJob(name, what);
				const job = (await cluster.jobs()).find((other) => other.name === name);
				answerJson(exchange.response, 200, job ?? { name });
			}),
		),
	];
}

function nameOf({ request }: Exchange): string {
	return (request.params as { name: string }).name;
}
