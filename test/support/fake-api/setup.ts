/** A fake API server, a client for it, and a clock that is moved by hand; all closed after the test. */

import { onTestFinished } from 'vitest';
import { Access } from '../../../operator/kube/access.ts';
import { KubeClient } from '../../../operator/kube/client.ts';
import { ManualClock } from '../clock.ts';
import { FakeApi, type FakeApiOptions } from './server.ts';

export interface FakeKube {
	readonly api: FakeApi;
	readonly access: Access;
	readonly client: KubeClient;
	readonly clock: ManualClock;
}

export async function fakeKube(options: FakeApiOptions = {}): Promise<FakeKube> {
	const api = await FakeApi.start(options);
	const clock = new ManualClock();
	const access = Access.fromText(api.kubeconfig(), clock);
	onTestFinished(async () => {
		access.close();
		await api.down();
	});
	return { api, access, client: new KubeClient({ access, clock }), clock };
}
