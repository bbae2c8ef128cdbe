/** Certificates for tests: a development authority in a temporary folder, and TLS sources for whoever asks. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openAuthority } from '../../hack/authority.ts';
import { type PeerRole, TlsSource } from '../../platform/tls.ts';

export interface TestAuthority {
	readonly folder: string;
	/** The folder that holds this process's certificate. */
	issue(role: PeerRole, id: string): Promise<string>;
	tls(role: PeerRole, id: string): Promise<TlsSource>;
	remove(): void;
}

export async function testAuthority(): Promise<TestAuthority> {
	const folder = mkdtempSync(join(tmpdir(), 'distro-authority-'));
	const authority = await openAuthority(folder);
	const issue = async (role: PeerRole, id: string) => {
		const target = join(folder, `${role}-${id}`);
		await authority.issue(target, { role, id, hosts: ['localhost', '127.0.0.1'] });
		return target;
	};
	return {
		folder,
		issue,
		tls: async (role, id) => new TlsSource(await issue(role, id)),
		remove: () => rmSync(folder, { recursive: true, force: true }),
	};
}
