/**
 * The byte-carrying methods of distro.v1.ShardService on the gRPC wire: HTTP/2, length-prefixed protobuf messages.
 *
 * grpc-js copies each message twice into fresh Buffers, and garbage collection of Buffers is the largest single cost of
 * a transfer. Here a message's payload goes from and to the caller's own memory. The wire format is plain gRPC, so any
 * gRPC client or server can be the other end (platform/shard-transport.test.ts meets grpc-js). Each message carries
 * exactly one length-delimited field with a number below 16, which is all that PutRequest and GetResponse are.
 */

import { DistroError } from '../core/errors.ts';

export const PUT_PATH = '/distro.v1.ShardService/Put';
export const GET_PATH = '/distro.v1.ShardService/Get';
export const DELETE_PATH = '/distro.v1.ShardService/Delete';
export const STAT_PATH = '/distro.v1.ShardService/Stat';
export const LIST_PATH = '/distro.v1.ShardService/List';
export const TRAILERS_PATH = '/distro.v1.ShardService/Trailers';
export const AUDIT_PATH = '/distro.v1.ShardService/Audit';
export const WRITE_KEYS_PATH = '/distro.v1.ShardService/WriteKeys';
export const READ_KEYS_PATH = '/distro.v1.ShardService/ReadKeys';

export const PUT_FIELD = { header: 1, cell: 2, trailer: 3 } as const;
export const GET_FIELD = { leaves: 1, data: 2 } as const;

/** Flow-control windows of both ends: a stream may have this much under way before its reader looks at it. */
export const STREAM_WINDOW_BYTES = 256 * 1024;
export const CONNECTION_WINDOW_BYTES = 1024 * 1024;
/** Of node:http2, in MB, for one connection: its default of 10 refuses streams under load. */
export const SESSION_MEMORY_MB = 256;

const FRAME_BYTES = 5;
const LENGTH_DELIMITED = 2;

/** The gRPC frame and protobuf tag that go before a payload of `bytes` bytes in field `field`. */
export function partPrefix(field: number, bytes: number): Buffer {
	const lengthBytes = varintBytes(bytes);
	const prefix = Buffer.allocUnsafe(FRAME_BYTES + 1 + lengthBytes);
	prefix[0] = 0;
	prefix.writeUInt32BE(1 + lengthBytes + bytes, 1);
	prefix[FRAME_BYTES] = (field << 3) | LENGTH_DELIMITED;
	let rest = bytes;
	for (let at = FRAME_BYTES + 1; at < prefix.length; at++) {
		prefix[at] = at === prefix.length - 1 ? rest : (rest & 0x7f) | 0x80;
		rest >>>= 7;
	}
	return prefix;
}

/** A whole message as one gRPC frame. */
export function frame(message: Uint8Array): Buffer {
	const out = Buffer.allocUnsafe(FRAME_BYTES + message.length);
	out[0] = 0;
	out.writeUInt32BE(message.length, 1);
	out.set(message, FRAME_BYTES);
	return out;
}

function varintBytes(value: number): number {
	let bytes = 1;
	for (let rest = value >>> 7; rest > 0; rest >>>= 7) bytes++;
	return bytes;
}

export interface PartEvents {
	/** Bytes of the streamed field; a view that is valid only during the call. */
	bytes(chunk: Buffer): void;
	/** A whole part of another field; the Buffer is the receiver's. */
	part(field: number, payload: Buffer): void;
}

/** Cuts a stream of one-field messages into parts without copying the streamed field. Throws `invalid`. */
export class PartReader {
	readonly #streamedField: number;
	readonly #maxPartBytes: number;
	readonly #events: PartEvents;
	readonly #prefix = Buffer.alloc(FRAME_BYTES + 6);
	#prefixBytes = 0;
	#field = 0;
	#rest = 0;
	#collected: Buffer | null = null;
	#inPayload = false;

	constructor(options: { streamedField: number; maxPartBytes: number; events: PartEvents }) {
		this.#streamedField = options.streamedField;
		this.#maxPartBytes = options.maxPartBytes;
		this.#events = options.events;
	}

	push(chunk: Buffer): void {
		let at = 0;
		while (at < chunk.length) {
			if (this.#inPayload) {
				const take = Math.min(this.#rest, chunk.length - at);
				const piece = chunk.subarray(at, at + take);
				at += take;
				this.#rest -= take;
				if (this.#collected === null) this.#events.bytes(piece);
				else piece.copy(this.#collected, this.#collected.length - this.#rest - take);
				this.#endIfWhole();
			} else {
				if (this.#prefixBytes === this.#prefix.length) throw malformed('a field length of more than 32 bits');
				this.#prefix[this.#prefixBytes++] = chunk[at++] as number;
				this.#parsePrefix();
			}
		}
	}

	/** No message is half-way. */
	get atBoundary(): boolean {
		return !this.#inPayload && this.#prefixBytes === 0;
	}

	#parsePrefix(): void {
		const have = this.#prefixBytes;
		if (have <= FRAME_BYTES + 1) {
			if (have === 1 && this.#prefix[0] !== 0) throw malformed('compressed messages are not supported');
			if (have === FRAME_BYTES && this.#prefix.readUInt32BE(1) === 0) throw malformed('an empty message');
			return;
		}
		const last = this.#prefix[have - 1] as number;
		if ((last & 0x80) !== 0) return;
		const tag = this.#prefix[FRAME_BYTES] as number;
		if ((tag & 7) !== LENGTH_DELIMITED || (tag & 0x80) !== 0) throw malformed('an unexpected field');
		let payloadBytes = 0;
		for (let i = have - 1; i > FRAME_BYTES; i--)
			payloadBytes = payloadBytes * 128 + ((this.#prefix[i] as number) & 0x7f);
		if (this.#prefix.readUInt32BE(1) !== have - FRAME_BYTES + payloadBytes) {
			throw malformed('a message with other than one field');
		}
		this.#field = tag >>> 3;
		if (this.#field !== this.#streamedField) {
			if (payloadBytes > this.#maxPartBytes) throw malformed(`a part of ${payloadBytes} bytes`);
			this.#collected = Buffer.alloc(payloadBytes);
		} else this.#collected = null;
		this.#rest = payloadBytes;
		this.#inPayload = true;
		this.#prefixBytes = 0;
		this.#endIfWhole();
	}

	#endIfWhole(): void {
		if (this.#rest > 0) return;
		this.#inPayload = false;
		const payload = this.#collected;
		this.#collected = null;
		if (payload !== null) this.#events.part(this.#field, payload);
	}
}

/** Collects one whole gRPC message (unary calls). Throws `invalid`. */
export class MessageReader {
	readonly #maxBytes: number;
	readonly #chunks: Buffer[] = [];
	#bytes = 0;

	constructor(maxBytes: number) {
		this.#maxBytes = maxBytes;
	}

	push(chunk: Buffer): void {
		this.#bytes += chunk.length;
		if (this.#bytes > this.#maxBytes + FRAME_BYTES) throw malformed(`a message of over ${this.#maxBytes} bytes`);
		this.#chunks.push(chunk);
	}

	/** The message, or null when none came. */
	message(): Buffer | null {
		if (this.#bytes === 0) return null;
		const all = this.#chunks.length === 1 ? (this.#chunks[0] as Buffer) : Buffer.concat(this.#chunks);
		if (all.length < FRAME_BYTES || all[0] !== 0 || all.readUInt32BE(1) !== all.length - FRAME_BYTES) {
			throw malformed('not one whole message');
		}
		return all.subarray(FRAME_BYTES);
	}
}

function malformed(what: string): DistroError {
	return new DistroError('invalid', `malformed gRPC stream: ${what}`);
}
