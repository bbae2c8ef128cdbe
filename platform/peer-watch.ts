/**
 * Whether the other end of an HTTP/2 session still lives: a peer that vanished without closing (power, network, a stopped
 * process) shows only by its silence. A stream may be still for long without harm, since its own client may be slow; so
 * life is asked of the session and not of its streams.
 */

import type { Http2Session } from 'node:http2';

const PING_MS = 10_000;

/** Calls `onSilent` once a ping has not been answered before the next is due. Returns what stops the pings. */
export function watchPeer(session: Http2Session, options: { onSilent: () => void; pingMs?: number }): () => void {
	let unanswered = false;
	const timer = setInterval(() => {
		if (session.connecting || session.destroyed) return;
		if (unanswered) {
			clearInterval(timer);
			options.onSilent();
			return;
		}
		unanswered = true;
		session.ping((error) => {
			if (error === null) unanswered = false;
		});
	}, options.pingMs ?? PING_MS);
	timer.unref();
	return () => clearInterval(timer);
}
