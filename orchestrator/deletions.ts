/** The log of deletions, for people: its entries, and whether the chain is intact. */

import {
	type DeletionEntry,
	type DeletionHead,
	follows,
	headAfter,
	NO_DELETIONS,
} from '../core/crypto/deletion-log.ts';
import type { MetadataStore } from './store.ts';

const PAGE = 1_000;

export interface DeletionsVerdict extends DeletionHead {
	/** The first entry that is not what the chain says, or is not there; null: the whole chain is intact. */
	readonly firstBad: number | null;
}

export interface Deletions {
	entries(options: { limit: number; after: number }): Promise<readonly DeletionEntry[]>;
	/** Walks the whole log. Who asks while another walk runs gets that one's answer. */
	verify(): Promise<DeletionsVerdict>;
}

export class DeletionLog implements Deletions {
	readonly #store: Pick<MetadataStore, 'deletionLog' | 'deletionHead'>;
	#running: Promise<DeletionsVerdict> | null = null;

	constructor(store: Pick<MetadataStore, 'deletionLog' | 'deletionHead'>) {
		this.#store = store;
	}

	entries(options: { limit: number; after: number }): Promise<readonly DeletionEntry[]> {
		return this.#store.deletionLog(options);
	}

	verify(): Promise<DeletionsVerdict> {
		this.#running ??= this.#verify().finally(() => {
			this.#running = null;
		});
		return this.#running;
	}

	async #verify(): Promise<DeletionsVerdict> {
		// First: entries that are added meanwhile come after it.
		const kept = await this.#store.deletionHead();
		let head = NO_DELETIONS;
		while (head.entries < kept.entries) {
			const page = await this.#store.deletionLog({ limit: PAGE, after: head.entries });
			if (page.length === 0) break;
			for (const entry of page) {
				if (head.entries === kept.entries) break;
				if (!follows(head, entry)) return { ...kept, firstBad: head.entries + 1 };
				head = headAfter(entry);
			}
		}
		if (head.entries < kept.entries) return { ...kept, firstBad: head.entries + 1 };
		if (!head.hash.equals(kept.hash)) return { ...kept, firstBad: Math.max(1, head.entries) };
		return { ...kept, firstBad: null };
	}
}
