/** Peers that hold up a transfer: noticed by the socket's own timer, which knows whether bytes really move. */

import type { ServerResponse } from 'node:http';
import { IDLE_TRANSFER_MS } from '../../core/limits.ts';

/** Looks that make one verdict: where bytes wait to be sent node is late by one. */
const LOOKS = 3;

/**
 * Calls `cut` once no byte has moved for `idleMs` (or a third more) while it was the client's turn, until the returned
 * function is called. After `cut` it looks no more.
 */
export function watchIdle(
	response: ServerResponse,
	options: { waitsForClient: () => boolean; cut: () => void; idleMs?: number },
): () => void {
	const { socket } = response;
	if (socket === null) return () => {};
	const everyMs = (options.idleMs ?? IDLE_TRANSFER_MS) / LOOKS;
	let looks = 0;
	let lookedAtMs = 0;
	let movedBytes = -1;
	const onTimeout = () => {
		const nowMs = performance.now();
		const moved = socket.bytesRead + socket.bytesWritten;
		// Bytes that leave node's buffers change no counter, but put the next look off.
		const still = moved === movedBytes && nowMs - lookedAtMs < 1.5 * everyMs;
		lookedAtMs = nowMs;
		movedBytes = moved;
		if (!options.waitsForClient()) looks = 0;
		else looks = still ? looks + 1 : 1;
		if (looks === LOOKS) options.cut();
		// The timer does not start again by itself while nothing moves.
		else socket.setTimeout(everyMs);
	};
	// On the response and not on the socket: without a listener here node cuts the connection by itself.
	response.on('timeout', onTimeout);
	socket.setTimeout(everyMs);
	return () => {
		response.off('timeout', onTimeout);
		socket.setTimeout(0);
	};
}
