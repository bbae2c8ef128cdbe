/** Error kinds and gRPC status codes, both ways, in one place. The kind itself crosses as metadata, since codes are coarser. */

import { type Metadata, Metadata as MetadataClass, type ServiceError, status } from '@grpc/grpc-js';
import { DistroError, type ErrorKind, isErrorKind } from '../core/errors.ts';

export const KIND_METADATA_KEY = 'distro-error-kind';

const STATUS_OF: Record<ErrorKind, number> = {
	invalid: status.INVALID_ARGUMENT,
	denied: status.PERMISSION_DENIED,
	expired: status.FAILED_PRECONDITION,
	not_found: status.NOT_FOUND,
	exists: status.ALREADY_EXISTS,
	conflict: status.ABORTED,
	exhausted: status.RESOURCE_EXHAUSTED,
	unavailable: status.UNAVAILABLE,
	timeout: status.DEADLINE_EXCEEDED,
	canceled: status.CANCELLED,
	corrupt: status.DATA_LOSS,
	unrecoverable: status.DATA_LOSS,
	unsupported: status.UNIMPLEMENTED,
	internal: status.INTERNAL,
};

const KIND_OF = new Map<number, ErrorKind>(
	(Object.entries(STATUS_OF) as [ErrorKind, number][]).toReversed().map(([kind, code]) => [code, kind]),
);

export function grpcStatusOf(kind: ErrorKind): number {
	return STATUS_OF[kind];
}

/** A status from the wire. The kind is believed when it is one that this release knows. */
export function errorFromStatus(from: { code: number; message: string; kind: string | undefined }): DistroError {
	const kind =
		from.kind !== undefined && isErrorKind(from.kind) ? from.kind : (KIND_OF.get(from.code) ?? 'unavailable');
	return new DistroError(kind, from.message === '' ? `gRPC status ${from.code}` : from.message);
}

export function errorFromServiceError(error: ServiceError): DistroError {
	const kind = (error.metadata as Metadata | undefined)?.get(KIND_METADATA_KEY)[0]?.toString();
	return errorFromStatus({ code: error.code, message: error.details, kind });
}

/** What a grpc-js server answers: kind and text, never the cause. */
export function toServiceError(error: DistroError): Partial<ServiceError> {
	const metadata = new MetadataClass();
	metadata.set(KIND_METADATA_KEY, error.kind);
	return { name: 'DistroError', message: error.message, code: STATUS_OF[error.kind], details: error.message, metadata };
}
