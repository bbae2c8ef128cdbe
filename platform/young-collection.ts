/**
 * Frees Buffers while they are young.
 *
 * Node makes a fresh Buffer for each chunk of a request body, of an HTTP/2 stream and of a cipher's output; no option
 * avoids it. V8 counts them against the limit of the old generation, which is small here, and so answered every 15 MB or so
 * with a full collection of the heap, though hardly one outlives its callback: that was a third of the orchestrator's CPU
 * time in an upload (docs/decisions/0005-node-flags.md). A young collection costs a third of a millisecond and frees them
 * just as well, but V8 starts one by the size of objects in its own heap, of which these Buffers have little. So whoever
 * makes Buffers on the byte path says how many bytes, and a young collection is asked for in time (docs/performance.md).
 *
 * Does nothing in a process without --expose-gc.
 */

/** Well under the room that --heap-growing-percent leaves; each costs about the same, whatever the amount. */
const EVERY_BYTES = 8 * 1024 * 1024;

const collect = (globalThis as { gc?: (options: { type: 'minor'; execution: 'sync' }) => void }).gc;
let youngBytes = 0;

/** `bytes` of fresh Buffers were made and will not be needed for long. */
export function madeYoungBuffers(bytes: number): void {
	youngBytes += bytes;
	if (youngBytes < EVERY_BYTES) return;
	youngBytes = 0;
	collect?.({ type: 'minor', execution: 'sync' });
}
