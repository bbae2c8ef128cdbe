/**
 * The metadata store as an orchestrator reaches it over a network: calls arrive late and in their order, and when it can't
 * be reached a call fails, before or after it had its effect. What it holds survives everything.
 */

import { DistroError } from '../../core/errors.ts';
import type { MetadataStore } from '../../orchestrator/store.ts';
import type { Dice } from './dice.ts';
import type { SimNode, World } from './world.ts';

export interface StoreFaults {
	/** Chance that a call fails; half of those had their effect. */
	loss: number;
	slowMs: number;
}

export type StoreCall = { readonly method: keyof MetadataStore; readonly args: readonly unknown[] };

export function remoteStore(o: {
	world: World;
	node: SimNode;
	inner: MetadataStore;
	dice: Dice;
	faults: StoreFaults;
	/** After each call that had its effect. */
	onDone: (call: StoreCall) => void;
}): MetadataStore {
	const { world, node, inner, dice, faults, onDone } = o;
	let arrivesAtMs = 0;
	const ask = (method: keyof MetadataStore, args: readonly unknown[]) =>
		new Promise((resolve, reject) => {
			const isLost = dice.chance(faults.loss);
			const hasEffect = !isLost || dice.chance(0.5);
			const answer = (tell: () => void) => world.at(dice.between(0.1, 2), () => node.run(tell));
			const fail = () => answer(() => reject(new DistroError('unavailable', 'the metadata store does not answer')));
			arrivesAtMs = Math.max(arrivesAtMs, world.nowMs + dice.between(0.1, 1) + faults.slowMs);
			world.at(arrivesAtMs - world.nowMs, () => {
				if (!hasEffect) {
					fail();
					return;
				}
				const call = inner[method] as (...args: unknown[]) => Promise<unknown>;
				call.apply(inner, [...args]).then(
					(result) => {
						onDone({ method, args });
						if (isLost) fail();
						else answer(() => resolve(result));
					},
					(error) => (isLost ? fail() : answer(() => reject(error))),
				);
			});
		});
	return new Proxy({} as MetadataStore, {
		get: (_, method) =>
			// Whoever awaits the store itself asks for this.
			typeof method === 'symbol' || method === 'then'
				? undefined
				: (...args: unknown[]) => ask(method as keyof MetadataStore, args),
	});
}
