/** The background jobs of a cluster: names for leases, rows and the API. */

/** What each does, in the words of the API. Scrub runs on the workers; they hear by their heartbeats what is wanted. */
export const JOBS = {
	'expire-intents': 'gives up uploads whose client is gone',
	trash: 'removes deleted objects for good when their time in the trash is over',
	deletions: 'deletes shards that nothing needs any more',
	repair: 'rebuilds shards that are missing, damaged, or on lost workers',
	drain: 'moves shards off draining workers',
	rebalance: 'mends violations of the zone rule and evens out what workers hold',
	reencode: 'encodes objects anew whose redundancy no longer suits the cluster or the policy',
	audit: 'makes workers prove that they have a shard',
	rewrap: 'wraps the data keys of old objects by the newest generation of the cluster key',
	'renew-trailers': 'when asked: writes shards anew whose trailers have a data key wrapped by an older generation',
	watch: 'keeps the record of each worker: uptime, losses, audits',
	reconcile: 'compares what workers have with what the metadata knows: deletes what is unknown, finds what is gone',
	snapshot: 'writes the metadata as an object onto the workers',
	scrub: 'workers read all their shards again',
} as const;
export type JobName = keyof typeof JOBS;
