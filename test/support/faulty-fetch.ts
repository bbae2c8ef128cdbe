/** A `fetch` to be broken: answers that get lost, requests that never leave, and a look between the two. */

export interface FaultyFetch {
	readonly fetch: typeof globalThis.fetch;
	/** The next `count` requests take effect, and their answers are lost. */
	loseAnswers(count: number): void;
	/** The next `count` requests don't get through. */
	loseRequests(count: number): void;
	/** Called with each answer that is no success, before the caller sees it. */
	onFailure: ((response: Response) => Promise<void>) | null;
	/** Requests that got through since the last call of this. */
	takeCount(): number;
}

export function faultyFetch(): FaultyFetch {
	let answersToLose = 0;
	let requestsToLose = 0;
	let count = 0;
	const faulty: FaultyFetch = {
		fetch: async (input, init) => {
			if (requestsToLose > 0) {
				requestsToLose--;
				throw new TypeError('fetch failed', { cause: Object.assign(new Error(), { code: 'ECONNREFUSED' }) });
			}
			count++;
			const response = await fetch(input, init);
			if (answersToLose > 0) {
				answersToLose--;
				await response.arrayBuffer();
				throw new TypeError('fetch failed', { cause: Object.assign(new Error(), { code: 'UND_ERR_SOCKET' }) });
			}
			if (!response.ok) await faulty.onFailure?.(response.clone());
			return response;
		},
		loseAnswers: (some) => {
			answersToLose = some;
		},
		loseRequests: (some) => {
			requestsToLose = some;
		},
		onFailure: null,
		takeCount: () => {
			const taken = count;
			count = 0;
			return taken;
		},
	};
	return faulty;
}
