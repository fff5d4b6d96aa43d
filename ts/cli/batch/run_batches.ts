import type { RawImage, VitMsnError } from "../../index.ts";
import { is_picture_error } from "./errors.ts";
import type { Reached } from "./journal.ts";
import { prefetch } from "./prefetch.ts";
import type { KeptRow, Row } from "./rows.ts";
import type { Selected } from "./selection.ts";

/** What is computed of pictures. */
export interface Computation {
  /** One row for each picture, without its name. */
  compute(images: RawImage[], signal: AbortSignal): Promise<Omit<Row, "image">[]>;
}

/** A row, one that an earlier run made, or what was wrong. */
export type Outcome = { row: Row } | { kept: KeptRow } | { image: string; error: VitMsnError };

/** Where outcomes go, in the order of the pictures. */
export interface Sink {
  /** @param reached the point behind these. */
  write(outcomes: readonly Outcome[], reached: Reached): Promise<void>;
}

export interface BatchOptions {
  batch_size: number;
  /** Whether the first picture that fails ends the run. */
  stop_on_error: boolean;
  signal: AbortSignal;
}

/** Decoded pictures that wait hold this much at most, and one more batch is decoded while one is computed. */
const MAX_WAITING_BYTES = 256 * 1024 * 1024;
const MIN_PREFETCH = 8;

type Decoded = Selected & ({ image: RawImage } | { error: VitMsnError } | { kept: Uint8Array });

/** Decodes pictures while earlier ones are computed, batch by batch. */
export async function run_batches(
  pictures: AsyncIterable<Selected>,
  computation: Computation,
  sink: Sink,
  options: BatchOptions,
): Promise<void> {
  const { batch_size, signal } = options;
  const decoded = prefetch(pictures, (picture) => decode(picture, signal), {
    limit: Math.max(MIN_PREFETCH, 2 * batch_size),
    weight: (picture) => ("image" in picture ? picture.image.data.byteLength : 0),
    max_weight: MAX_WAITING_BYTES,
  });
  for await (const batch of in_batches(decoded, batch_size)) {
    const outcomes = await compute_batch(batch, computation, signal);
    const failed = options.stop_on_error ? outcomes.findIndex((outcome) => "error" in outcome) : -1;
    const kept = failed < 0 ? outcomes : outcomes.slice(0, failed);
    const last = batch[kept.length - 1];
    if (last !== undefined) await sink.write(kept, last.reached);
    const failure = outcomes[failed];
    if (failure !== undefined && "error" in failure) throw failure.error;
  }
}

async function decode(picture: Selected, signal: AbortSignal): Promise<Decoded> {
  const { kept } = picture;
  if (kept !== undefined) return { ...picture, kept };
  try {
    return { ...picture, image: await picture.read(signal) };
  } catch (error) {
    if (is_picture_error(error)) return { ...picture, error };
    throw error;
  }
}

async function* in_batches<T>(items: AsyncIterable<T>, size: number): AsyncGenerator<T[]> {
  let batch: T[] = [];
  for await (const item of items) {
    batch.push(item);
    if (batch.length < size) continue;
    yield batch;
    batch = [];
  }
  if (batch.length > 0) yield batch;
}

async function compute_batch(
  batch: readonly Decoded[],
  computation: Computation,
  signal: AbortSignal,
): Promise<Outcome[]> {
  const images = batch.flatMap((picture) => ("image" in picture ? [picture.image] : []));
  const rows = await compute_each(images, computation, signal);
  return batch.map((picture) => {
    if (picture.kept !== undefined) return { kept: { image: picture.name, bytes: picture.kept } };
    if ("error" in picture) return { image: picture.name, error: picture.error };
    const row = rows.shift() as Computed;
    return "error" in row
      ? { image: picture.name, error: row.error }
      : { row: { ...row, image: picture.name } };
  });
}

type Computed = Omit<Row, "image"> | { error: VitMsnError };

/** Where a batch fails because of its pictures, each is computed alone, so that the others don't fail with the bad one. */
export async function compute_each(
  images: RawImage[],
  computation: Computation,
  signal: AbortSignal,
): Promise<Computed[]> {
  if (images.length === 0) return [];
  try {
    return await computation.compute(images, signal);
  } catch (error) {
    if (!is_picture_error(error)) throw error;
    if (images.length === 1) return [{ error }];
  }
  const rows: Computed[] = [];
  for (const image of images) rows.push(...(await compute_each([image], computation, signal)));
  return rows;
}
