/** GET /openapi.json: the API as OpenAPI 3.1. A test holds its paths and methods against the routes. */

const problem = {
	description: 'What went wrong, and what to do (RFC 9457)',
	content: { 'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } } },
};
const json = (schema: string, description: string) => ({
	description,
	content: { 'application/json': { schema: { $ref: `#/components/schemas/${schema}` } } },
});
const bytes = { description: 'The bytes', content: { '*/*': { schema: { type: 'string', format: 'binary' } } } };
const id = { name: 'id', in: 'path', required: true, schema: { type: 'string', pattern: '^[0-9a-f]{32}$' } };
const query = (name: string, schema: object) => ({ name, in: 'query', schema });
const header = (name: string) => ({ name, in: 'header', schema: { type: 'string' } });
const uploadHeaders = [header('Idempotency-Key'), header('Repr-Digest'), header('Want-Repr-Digest')];
const readHeaders = [header('Range'), header('If-Range'), header('If-Match'), header('If-None-Match')];
const created = { '201': json('Object', 'The object is durable'), default: problem };
const read = (summary: string) => ({
	summary,
	parameters: [id, ...readHeaders],
	responses: { '200': bytes, '206': bytes, '304': { description: 'Not modified' }, default: problem },
});

const named = { name: 'name', in: 'path', required: true, schema: { type: 'string' } };
const worker = (summary: string) => ({
	post: { summary, parameters: [named], responses: { '200': json('Worker', 'As it is now'), default: problem } },
});
const job = (summary: string) => ({
	post: { summary, parameters: [named], responses: { '200': json('Job', 'As it is now'), default: problem } },
});

export const openApi = {
	openapi: '3.1.0',
	info: { title: 'Distro', version: '0.1.0' },
	security: [{ apiKey: [] }],
	paths: {
		'/upload': {
			post: {
				summary: 'Store the one file of a form',
				parameters: uploadHeaders,
				requestBody: {
					required: true,
					content: {
						'multipart/form-data': {
							schema: {
								type: 'object',
								required: ['file'],
								properties: { file: { type: 'string', format: 'binary' } },
							},
						},
					},
				},
				responses: created,
			},
		},
		'/download/{id}': { get: read('Read an object as a file'), head: read('Its headers only') },
		'/objects': {
			post: {
				summary: 'Store the body, with a length or chunked',
				parameters: [query('name', { type: 'string', maxLength: 1024 }), ...uploadHeaders],
				requestBody: { content: { '*/*': { schema: { type: 'string', format: 'binary' } } } },
				responses: created,
			},
			get: {
				summary: 'List objects, newest first',
				parameters: [
					query('limit', { type: 'integer', minimum: 1, maximum: 1000, default: 100 }),
					query('cursor', { type: 'string' }),
				],
				responses: { '200': json('ObjectPage', 'One page'), default: problem },
			},
		},
		'/objects/{id}': {
			get: read('Read an object'),
			head: read('Its headers only'),
			delete: {
				summary: 'Delete an object: into the trash, from which it can be had back until it is freed',
				parameters: [id],
				responses: {
					'204': {
						description: 'Deleted',
						headers: {
							'Distro-Freed-At': {
								description: 'When it is gone for good',
								schema: { type: 'string', format: 'date-time' },
							},
						},
					},
					default: problem,
				},
			},
		},
		'/objects/{id}/undelete': {
			post: {
				summary: 'Take it out of the trash again; one that is not deleted is answered as well',
				parameters: [id],
				responses: { '200': json('Object', 'It is there'), default: problem },
			},
		},
		'/trash': {
			get: {
				summary: 'Deleted objects that can be had back, what stays longest first',
				parameters: [
					query('limit', { type: 'integer', minimum: 1, maximum: 1000, default: 100 }),
					query('cursor', { type: 'string' }),
				],
				responses: { '200': json('TrashPage', 'One page'), default: problem },
			},
		},
		'/trash/{id}': {
			delete: {
				summary: 'Remove an object that is in the trash for good, now',
				parameters: [id],
				responses: { '204': { description: 'Gone' }, default: problem },
			},
		},
		'/deletions': {
			get: {
				summary: 'The log of deletions, oldest first: a hash chain',
				parameters: [
					query('limit', { type: 'integer', minimum: 1, maximum: 1000, default: 100 }),
					query('after', { type: 'integer', minimum: 0, default: 0 }),
				],
				responses: { '200': json('Deletions', 'Entries from number after + 1 on'), default: problem },
			},
		},
		'/deletions/verify': {
			get: {
				summary: 'Whether an entry of that log was edited, removed or moved',
				responses: { '200': json('DeletionsVerdict', 'The answer'), default: problem },
			},
		},
		'/objects/{id}/explain': {
			get: {
				summary: 'Where its shards are, why this (n, k), and how healthy it is',
				parameters: [
					id,
					query('from_segment', { type: 'integer', minimum: 0, default: 0 }),
					query('limit', { type: 'integer', minimum: 1, maximum: 100, default: 20 }),
				],
				responses: { '200': json('Explanation', 'Segment by segment'), default: problem },
			},
		},
		'/cluster': {
			get: { summary: 'Workers, queues, redundancy', responses: { '200': json('Cluster', 'Now'), default: problem } },
		},
		'/cluster/redundancy': {
			get: {
				summary: 'How whole the data is at this moment: objects by health and by spare shards',
				responses: { '200': json('Redundancy', 'Now'), default: problem },
			},
		},
		'/cluster/can-stop': {
			get: {
				summary: 'Whether these workers may all be stopped now, and what stands in the way',
				parameters: [
					query('workers', { type: 'string', description: 'Names, separated by commas' }),
					query('reserve', { type: 'integer', minimum: 0, maximum: 24, default: 1 }),
				],
				responses: { '200': json('StopAnswer', 'The answer'), default: problem },
			},
		},
		'/cluster/workers/{name}/cordon': worker('No new shards on it'),
		'/cluster/workers/{name}/uncordon': worker('New shards on it again'),
		'/cluster/workers/{name}/drain': worker('Move everything off it, copied before it is let go'),
		'/cluster/workers/{name}/cancel-drain': worker('Stop that, and use it again'),
		'/cluster/workers/{name}/forget': worker('Remove one that is gone for good and has no shards any more'),
		'/cluster/keys': {
			get: {
				summary: 'Master keys and generations of the cluster key, what needs each, and whether it may go',
				responses: { '200': json('Keys', 'Now, without any key'), default: problem },
			},
		},
		'/cluster/keys/rotate': {
			post: {
				summary:
					'A new generation of the cluster key, for what is stored from now on; older objects follow in the background',
				responses: { '200': json('Keys', 'As they are now'), default: problem },
			},
		},
		'/cluster/keys/{generation}': {
			delete: {
				summary: 'Drop a generation that nothing needs any more; 409 says what still does',
				parameters: [{ name: 'generation', in: 'path', required: true, schema: { type: 'integer', minimum: 1 } }],
				responses: { '200': json('Keys', 'As they are now'), default: problem },
			},
		},
		'/cluster/snapshots': {
			get: {
				summary: 'Snapshots of the metadata on the workers, newest first',
				responses: { '200': json('Snapshots', 'All that are kept'), default: problem },
			},
		},
		'/cluster/jobs': {
			get: { summary: 'Background jobs', responses: { '200': json('Jobs', 'All of them'), default: problem } },
		},
		'/cluster/jobs/{name}/pause': job('Begin no new step'),
		'/cluster/jobs/{name}/resume': job('Go on'),
		'/cluster/jobs/{name}/run': job('Look for work now, paused or not'),
		'/healthz': {
			get: { summary: 'The process lives', security: [], responses: { '200': json('Status', 'It does') } },
		},
		'/readyz': {
			get: {
				summary: 'It can serve',
				security: [],
				responses: { '200': json('Status', 'It can'), '503': json('Status', 'Why not') },
			},
		},
		'/identity': {
			get: {
				summary: 'Who this process is, and which certificates and keys it has loaded (fingerprints and ids)',
				security: [],
				responses: { '200': json('Identity', 'As it is now') },
			},
		},
		'/metrics': { get: { summary: 'Prometheus metrics', responses: { '200': { description: 'Text' } } } },
		'/openapi.json': { get: { summary: 'This', security: [], responses: { '200': { description: 'OpenAPI 3.1' } } } },
	},
	components: {
		securitySchemes: { apiKey: { type: 'http', scheme: 'bearer' } },
		schemas: {
			Problem: {
				type: 'object',
				required: ['type', 'title', 'status', 'detail'],
				properties: {
					type: { type: 'string' },
					title: { type: 'string' },
					status: { type: 'integer' },
					detail: { type: 'string' },
					instance: { type: 'string' },
				},
			},
			Object: {
				type: 'object',
				required: ['object_id', 'size', 'created_at', 'etag'],
				properties: {
					object_id: { type: 'string' },
					size: { type: 'integer' },
					created_at: { type: 'string', format: 'date-time' },
					name: { type: ['string', 'null'] },
					content_type: { type: ['string', 'null'] },
					etag: { type: 'string' },
				},
			},
			ObjectPage: {
				type: 'object',
				required: ['objects', 'next'],
				properties: {
					objects: { type: 'array', items: { $ref: '#/components/schemas/Object' } },
					next: { type: ['string', 'null'] },
				},
			},
			TrashPage: {
				type: 'object',
				required: ['objects', 'next'],
				properties: {
					objects: {
						type: 'array',
						items: {
							allOf: [
								{ $ref: '#/components/schemas/Object' },
								{
									type: 'object',
									required: ['deleted_at', 'freed_at'],
									properties: {
										deleted_at: { type: 'string', format: 'date-time' },
										freed_at: { type: 'string', format: 'date-time' },
									},
								},
							],
						},
					},
					next: { type: ['string', 'null'] },
				},
			},
			Deletions: {
				type: 'object',
				required: ['entries', 'next'],
				properties: {
					entries: {
						type: 'array',
						items: {
							type: 'object',
							required: ['number', 'object_id', 'action', 'at', 'by', 'hash'],
							properties: {
								number: { type: 'integer' },
								object_id: { type: 'string' },
								action: { type: 'string', enum: ['trashed', 'undeleted', 'purged'] },
								at: { type: 'string', format: 'date-time' },
								by: { type: 'string', description: 'An API key id, or empty' },
								hash: { type: 'string' },
							},
						},
					},
					next: { type: ['integer', 'null'], description: '`after` of the next page' },
				},
			},
			DeletionsVerdict: {
				type: 'object',
				required: ['entries', 'head', 'intact', 'first_bad'],
				properties: {
					entries: { type: 'integer' },
					head: { type: 'string', description: 'The last hash' },
					intact: { type: 'boolean' },
					first_bad: { type: ['integer', 'null'], description: 'The first entry that is not what it was' },
				},
			},
			Explanation: { type: 'object' },
			Cluster: { type: 'object' },
			Worker: {
				type: 'object',
				required: ['name', 'state'],
				properties: {
					name: { type: 'string' },
					state: {
						type: 'string',
						enum: ['ready', 'suspect', 'lost', 'cordoned', 'draining', 'forgotten'],
					},
					duty: { type: 'string', enum: ['active', 'cordoned', 'draining'] },
					shards_placed: { type: 'integer' },
				},
			},
			Redundancy: {
				type: 'object',
				properties: {
					objects: { type: 'integer' },
					healthy: { type: 'integer' },
					degraded: { type: 'integer' },
					at_risk: { type: 'integer' },
					unrecoverable: { type: 'integer' },
					inline: { type: 'integer' },
					by_spare: { type: 'object', additionalProperties: { type: 'integer' } },
					failure_tolerance: { type: ['integer', 'null'] },
					bytes_at_risk: { type: 'integer' },
					oldest_verification: { type: ['string', 'null'], format: 'date-time' },
				},
			},
			StopAnswer: {
				type: 'object',
				required: ['can_stop', 'because', 'objects', 'segments'],
				properties: {
					can_stop: { type: 'boolean' },
					because: { type: 'string' },
					objects: { type: 'array', items: { type: 'string' } },
					segments: { type: 'integer' },
				},
			},
			Keys: {
				type: 'object',
				required: ['revision', 'master_keys', 'generations'],
				properties: {
					revision: { type: 'integer' },
					master_keys: {
						type: 'array',
						items: {
							type: 'object',
							properties: {
								id: { type: 'string' },
								given: { type: 'boolean' },
								primary: { type: 'boolean' },
								needed_by_generations: { type: 'array', items: { type: 'integer' } },
								needed_by_volumes: { type: 'array', items: { type: 'string' } },
								may_drop: { type: 'boolean' },
								because: { type: 'string' },
							},
						},
					},
					generations: {
						type: 'array',
						items: {
							type: 'object',
							properties: {
								generation: { type: 'integer' },
								master_key_id: { type: 'string' },
								created_at: { type: 'string', format: 'date-time' },
								objects: { type: 'integer' },
								shards: { type: 'integer' },
								counted_all: { type: 'boolean' },
								may_drop: { type: 'boolean' },
								because: { type: 'string' },
							},
						},
					},
				},
			},
			Job: {
				type: 'object',
				required: ['name', 'what', 'state', 'updated_at', 'progress'],
				properties: {
					name: { type: 'string' },
					what: { type: 'string' },
					state: { type: 'string', enum: ['running', 'idle', 'stuck', 'paused'] },
					updated_at: { type: ['string', 'null'], format: 'date-time' },
					progress: { type: 'object' },
				},
			},
			Jobs: {
				type: 'object',
				required: ['jobs'],
				properties: { jobs: { type: 'array', items: { $ref: '#/components/schemas/Job' } } },
			},
			Identity: {
				type: 'object',
				required: ['role', 'id', 'name', 'certificate', 'ca', 'issuer', 'master_keys'],
				properties: {
					role: { type: 'string' },
					id: { type: 'string' },
					name: { type: 'string' },
					certificate: { $ref: '#/components/schemas/Certificate' },
					ca: { type: 'array', items: { type: 'string' } },
					issuer: { oneOf: [{ $ref: '#/components/schemas/Certificate' }, { type: 'null' }] },
					master_keys: { type: 'array', items: { type: 'string' } },
				},
			},
			Certificate: {
				type: 'object',
				required: ['fingerprint', 'not_after', 'chain'],
				properties: {
					fingerprint: { type: 'string' },
					not_after: { type: 'string', format: 'date-time' },
					chain: { type: 'array', items: { type: 'string' } },
				},
			},
			Snapshots: {
				type: 'object',
				required: ['snapshots'],
				properties: {
					snapshots: {
						type: 'array',
						items: {
							type: 'object',
							properties: {
								object_id: { type: 'string' },
								created_at: { type: 'string', format: 'date-time' },
								objects: { type: 'integer', description: 'That it tells of' },
								size: { type: 'integer', description: 'Bytes' },
								shards: { type: 'integer' },
								shards_healthy: { type: 'integer', description: 'That can be read now' },
								copies: { type: 'integer', description: 'Of its worst segment; one is enough' },
							},
						},
					},
				},
			},
			Status: {
				type: 'object',
				properties: { status: { type: 'string' }, reasons: { type: 'array', items: { type: 'string' } } },
			},
		},
	},
} as const;
