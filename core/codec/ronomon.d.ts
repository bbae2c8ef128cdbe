declare module '@ronomon/reed-solomon' {
	export type Context = { readonly __context: true };
	export function create(k: number, m: number): Context;
	export function encode(
		context: Context,
		sources: number,
		targets: number,
		buffer: Buffer,
		bufferOffset: number,
		bufferSize: number,
		parity: Buffer,
		parityOffset: number,
		paritySize: number,
		end: (error?: Error | null) => void,
	): void;
}
