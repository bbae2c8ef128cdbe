/** Objects out: headers, ranges, conditions, and bytes with back-pressure. A failure after the status line cuts the connection. */

import type { IncomingMessage, ServerResponse } from 'node:http';
import type { ByteSink } from '../../core/ports.ts';
import type { Download } from '../objects.types.ts';
import { contentDisposition, matchesEtag, objectHeaders, parseRange, rangeStillValid } from './headers.ts';
import { watchIdle } from './idle.ts';
import { HttpRefusal } from './problem.ts';

/** Answers a GET or HEAD. Resolves when the answer is out; rejects only before the status line. */
export async function sendObject(
	exchange: { request: IncomingMessage; response: ServerResponse },
	options: { download: Download; attachment: boolean; onBroken: (error: unknown) => void },
): Promise<void> {
	const { request, response } = exchange;
	const { download } = options;
	const { info } = download;
	const headers = objectHeaders(info);
	if (options.attachment) headers['content-disposition'] = contentDisposition(info.name);
	const ifMatch = request.headers['if-match'];
	if (ifMatch !== undefined && !matchesEtag(ifMatch, info.etag, { weak: false })) {
		throw new HttpRefusal(412, 'the object is not the one that If-Match names');
	}
	const ifNoneMatch = request.headers['if-none-match'];
	if (ifNoneMatch !== undefined && matchesEtag(ifNoneMatch, info.etag, { weak: true })) {
		const { etag = '', 'last-modified': modified = '' } = headers;
		response.writeHead(304, { etag, 'last-modified': modified }).end();
		return;
	}
	const asked = rangeStillValid(request.headers['if-range'] as string | undefined, info.etag)
		? request.headers.range
		: undefined;
	const range = request.method === 'GET' ? parseRange(asked, info.sizeBytes) : null;
	const { offset, length } = range ?? { offset: 0, length: info.sizeBytes };
	if (range !== null) headers['content-range'] = `bytes ${offset}-${offset + length - 1}/${info.sizeBytes}`;
	headers['content-length'] = String(length);
	const status = range === null ? 200 : 206;
	if (request.method === 'HEAD') {
		response.writeHead(status, headers).end();
		return;
	}
	await sendBytes(exchange, { ...options, status, headers, offset, length });
}

async function sendBytes(
	{ response }: { request: IncomingMessage; response: ServerResponse },
	o: {
		download: Download;
		status: number;
		headers: Record<string, string>;
		offset: number;
		length: number;
		onBroken: (error: unknown) => void;
	},
): Promise<void> {
	const gone = new AbortController();
	const onClose = () => gone.abort('the reader has left');
	let rest = o.length;
	let started = false;
	const sink: ByteSink = {
		write: (chunk) => {
			if (gone.signal.aborted) return true;
			// The headers wait for the first bytes, so that what fails before them is a clean answer.
			if (!started) response.writeHead(o.status, o.headers);
			started = true;
			rest -= chunk.length;
			// The last bytes go out with the end, in one write for what is one chunk.
			if (rest > 0) return response.write(chunk);
			response.end(chunk);
			return true;
		},
		drained: () => {},
	};
	response.on('close', onClose);
	// It may have left while the object was looked up, and will not close again.
	if (response.destroyed) onClose();
	response.on('drain', () => sink.drained());
	// A reader that takes nothing for too long loses the memory that is kept for it; to the very end, or it would keep the
	// last bytes for ever. What comes after the end sets the timer anew.
	watchIdle(response, { waitsForClient: () => response.writableLength > 0, cut: () => response.destroy() });
	try {
		await o.download.read({ offset: o.offset, length: o.length, sink, signal: gone.signal });
		if (!started) response.writeHead(o.status, o.headers).end();
	} catch (error) {
		if (!started) throw error;
		// Too late for a status: a cut connection is the only honest end.
		response.destroy();
		if (!gone.signal.aborted) o.onBroken(error);
	} finally {
		response.off('close', onClose);
	}
}
