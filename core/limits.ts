/** Every limit of Distro in one place, with its reason. Sizes are bytes, times milliseconds. */

const KiB = 1024;
const MiB = 1024 * KiB;

/** GCM tag at the end of each cell. */
export const TAG_BYTES = 16;

/** Cells of objects whose plaintext is at most SMALL_OBJECT_BYTES: 64 KiB of plaintext still fit into one. */
export const SMALL_CELL_BYTES = 68 * KiB;
/** Cells of all others: 64 MiB is one segment of 253 cells. Multiples of 4 KiB, so that O_DIRECT stays possible. */
export const LARGE_CELL_BYTES = 260 * KiB;
export const SMALL_OBJECT_BYTES = 512 * KiB;
export const CELL_SIZES = [SMALL_CELL_BYTES, LARGE_CELL_BYTES] as const;

/** Cells in a segment: bounds the files' number and what one lost worker set can hurt. */
export const SEGMENT_CELLS = 256;

/** Limits of the coding library (@ronomon/reed-solomon 6). */
export const CODEC_MAX_K = 24;
export const CODEC_MAX_M = 6;
/** The library wants lengths in multiples of this. */
export const CODEC_ALIGN_BYTES = 8;

/** The largest k that the policy picks by itself; more costs connections without saving much space. */
export const POLICY_MAX_K = 8;

/** Objects up to this live in the metadata (default of INLINE_MAX). */
export const INLINE_MAX_BYTES = 4 * KiB;
/** INLINE_MAX itself may be at most this: metadata rows must stay small. */
export const INLINE_LIMIT_BYTES = 64 * KiB;

/** Trailers start on a multiple of this in a shard file. */
export const TRAILER_ALIGN_BYTES = 4 * KiB;
/** Shards in one answer of a worker's list: some 300 KiB. */
export const SHARD_LIST_MAX = 10_000;
/** Trailers that can be asked for at once. */
export const TRAILERS_MAX = 1_000;
/** Read at the same time for that. */
export const TRAILERS_AT_ONCE = 8;
/** After this many bytes of trailers an answer ends: with those that are read at the same time it stays under a MiB. */
export const TRAILERS_BYTES = 256 * KiB;
/** A trailer has at most 256 leaves and some records. */
export const TRAILER_MAX_BYTES = 64 * KiB;

/** Object names and content types are metadata, and metadata rows must stay small. */
export const NAME_MAX_BYTES = 1024;
export const CONTENT_TYPE_MAX_BYTES = 255;

/** The largest object: 2^32 segments would fit the format, this is what JSON numbers and 64-bit rows carry safely. */
export const OBJECT_MAX_BYTES = Number.MAX_SAFE_INTEGER;

/** Pages of lists. */
export const PAGE_DEFAULT = 100;
export const PAGE_MAX = 1000;

/** Row slots that an upload holds: one fills while others are on their way. */
export const UPLOAD_ROW_SLOTS = 2;
/** Row slots that a download holds. */
export const DOWNLOAD_ROW_SLOTS = 2;

/** A wait for memory longer than this is answered 503 with Retry-After. */
export const BUDGET_WAIT_MS = 30_000;
/** A peer that moves no byte for this long loses its reservation. */
export const IDLE_TRANSFER_MS = 30_000;
/**
 * The same between processes, where a peer that is gone shows by its unanswered pings: a row of 2 MiB takes a slow client
 * minutes to send or to take, and its orchestrator knows how slow it may be.
 */
export const STREAM_IDLE_MS = 15 * 60_000;
/** An upload's intent: after this without renewal its leftovers are collected. */
export const INTENT_TTL_MS = 120_000;
export const INTENT_RENEW_MS = 30_000;
/** After a renewal that the metadata store was not there for. */
export const INTENT_RENEW_AGAIN_MS = 5_000;

/** A worker that has not accepted a put after this is replaced, or left out. */
export const PUT_ACCEPT_MS = 1_000;
/**
 * A worker that is this much behind the quorum, with a row or with its receipt, is left out. Where the quorum itself
 * took longer (a loaded machine), the rest get as long again.
 */
export const PUT_STRAGGLER_MS = 2_000;
/**
 * A worker that has not taken a put or a row after this is given up though there is no quorum without it, and one that
 * has not sent its receipt after twice as long (a disk may be slow to sync): nobody waits for ever.
 */
export const PUT_STALL_MS = 30_000;
/** Other workers that may take over one shard of one segment. */
export const PUT_REPLACEMENTS = 2;
/** A put as a whole: after this the worker refuses to keep it. A segment of 64 MiB at 3 KB/s takes as long. */
export const PUT_DEADLINE_MS = 6 * 60 * 60_000;
/** The put of a rebuilt shard, which waits for no client; its intent lasts as long. */
export const REPAIR_DEADLINE_MS = 10 * 60_000;

/** Until latencies are known a read asks one more worker after this; later after p95 of its class. */
export const HEDGE_DEFAULT_MS = 250;
export const HEDGE_MIN_MS = 20;
export const HEDGE_MAX_MS = 1_000;
/** A get that moves no byte for this long is given up and another shard is used. */
export const GET_STALL_MS = 10_000;

export const HEARTBEAT_MS = 1_000;
/** Without heartbeat for this long a worker is `suspect`; a closed stream makes it so at once. */
export const SUSPECT_AFTER_MS = 5_000;
/** And after this it is `lost`, and repair may begin. */
export const LOST_AFTER_MS = 10 * 60_000;

/** Moved or rebuilt shards under way at once, by default. */
export const MEND_LANES = 4;
/** Percent of its time that each of them works while people's transfers run, by default. */
export const MEND_SHARE_PERCENT = 25;
/** Of the memory budget, the part for moved and rebuilt shards; at least two rows of the widest code. */
export const MEND_BUDGET_PART = 1 / 6;
export const MEND_BUDGET_MIN_BYTES = 7 * MiB;

/** Each worker reads all it has again in this time (SCRUB_PERIOD): rot that nobody looks for gathers until k are not left. */
export const SCRUB_PERIOD_MS = 14 * 24 * 60 * 60_000;
/** And reads no faster for it than this many bytes a second (SCRUB_RATE): a tenth of what a slow disk does. */
export const SCRUB_RATE_BYTES = 16 * MiB;
/** Audits of each worker (AUDITS_PER_HOUR): one cell a minute costs nobody anything, and finds a worker that lost 1 % within two hours. */
export const AUDITS_PER_HOUR = 60;
/** An audit that is not answered after this says nothing but that. */
export const AUDIT_DEADLINE_MS = 10_000;

/** Each worker's shards are compared with the metadata this often (RECONCILE_PERIOD). */
export const RECONCILE_PERIOD_MS = 7 * 24 * 60 * 60_000;
/** Percent of a worker's shards that this may remove (RECONCILE_LIMIT): more is no waste, but the wrong metadata. */
export const RECONCILE_LIMIT_PERCENT = 2;
/** What was written later is left alone, whatever the metadata say: longer than any upload's intent and any clock's error. */
export const RECONCILE_AGE_MS = 24 * 60 * 60_000;

/** Bytes that a worker keeps free for trailers and its own records. */
export const DISK_RESERVE_BYTES = 64 * MiB;

/**
 * Default of the orchestrator’s MEMORY_BUDGET: bytes of objects in flight. Sixteen large transfers at 4+2 beside the part
 * for repair; the process stays under 256 MiB with it (docs/performance.md).
 */
export const MEMORY_BUDGET_BYTES = 60 * MiB;
export const MEMORY_BUDGET_MIN_BYTES = 16 * MiB;

/** The metadata are written onto the workers this often (SNAPSHOT_PERIOD): what is inline, and younger, is lost with them. */
export const SNAPSHOT_PERIOD_MS = 60 * 60_000;

/** Deleted objects can be had back for this long (TRASH_PERIOD). */
export const TRASH_PERIOD_MS = 7 * 24 * 60 * 60_000;

/** Idempotency keys are kept this long. */
export const IDEMPOTENCY_TTL_MS = 24 * 60 * 60_000;
