/** What a call's own answer says when it was refused, as the errors that every adapter gives. */

import { DistroError } from '../core/errors.ts';
import type { ObjectId, ShardId, UploadId } from '../core/ids.ts';
import {
	alreadyCommitted,
	generationDropped,
	generationNeeded,
	keysChanged,
	keyTaken,
	leaseLost,
	nameTaken,
	neverNamed,
	notOpen,
	objectTaken,
	otherReceiptKey,
	segmentGone,
	stillPlaced,
	workerForgotten,
	workerTaken,
} from './store-rules.ts';

export interface AnswerError {
	/** SQLSTATE; PT409 for our own refusals. */
	readonly code: string;
	/** For PT409 a word of the migrations. */
	readonly message: string;
	readonly detail: string;
}

/** What the call was about, for the sentence. */
export interface Subject {
	readonly uploadId?: UploadId;
	readonly objectId?: ObjectId;
	readonly name?: string;
}

/** A refusal that still lacks its subject: the store knows it. */
export class Refusal extends DistroError {
	readonly word: string;
	readonly detail: string;

	constructor(word: string, detail: string) {
		super('internal', `the metadata database refused: ${word}`);
		this.word = word;
		this.detail = detail;
	}
}

export function answerError({ code, message, detail }: AnswerError): DistroError {
	if (code === 'PT409') return new Refusal(message, detail);
	if (/^53/.test(code)) return new DistroError('exhausted', `the metadata database is full (${code}): make room`);
	return new DistroError('internal', `the metadata database failed with ${code}: ${message}`);
}

export function refusalError({ word, detail }: { word: string; detail: string }, subject: Subject): DistroError {
	const { uploadId = '' as UploadId, objectId = '' as ObjectId, name = '' } = subject;
	switch (word) {
		case 'not_open':
			return notOpen(uploadId);
		case 'already_committed':
			return alreadyCommitted(uploadId);
		case 'never_named':
			return neverNamed(detail as ShardId);
		case 'key_taken':
			return keyTaken();
		case 'object_taken':
			return objectTaken(objectId);
		case 'worker_taken':
			return workerTaken();
		case 'segment_gone':
			return segmentGone();
		case 'other_receipt_key':
			return otherReceiptKey(name);
		case 'name_taken':
			return nameTaken(name);
		case 'still_placed':
			return stillPlaced(detail);
		case 'worker_forgotten':
			return workerForgotten();
		case 'lease_lost':
			return leaseLost(detail);
		case 'generation_dropped':
			return generationDropped(Number(detail));
		case 'generation_needed':
			return generationNeeded(Number(detail));
		case 'keys_changed':
			return keysChanged();
		default:
			return new DistroError('internal', `the metadata database refused: ${word} ${detail}`);
	}
}
