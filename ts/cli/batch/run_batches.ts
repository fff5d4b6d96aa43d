import type { RawImage, VitMsnError } from "../../index.ts";
import { is_image_error } from "./errors.ts";
import type { Reached } from "./journal.ts";
import { prefetch } from "./prefetch.ts";
import type { Row, StoredRow } from "./rows.ts";
import type { Selected } from "./selection.ts";

/** What is computed for images. */
export interface Computation {
  /** One row for each image, without its name. */
  compute(images: RawImage[], signal: AbortSignal): Promise<Omit<Row, "image">[]>;
}

/** A computed row, a row stored by an earlier run, or an error. */
export type Outcome = { row: Row } | { stored: StoredRow } | { image: string; error: VitMsnError };

/** Receives outcomes in the order of the images. */
export interface Sink {
  /** @param reached the point after these outcomes. */
  write(outcomes: readonly Outcome[], reached: Reached): Promise<void>;
}

export interface BatchOptions {
  batch_size: number;
  /** Whether the first image that fails ends the run. */
  stop_on_error: boolean;
  signal: AbortSignal;
}

/** The most memory for decoded images that wait. */
const MAX_WAITING_BYTES = 256 * 1024 * 1024;
const MIN_PREFETCH = 8;

type Decoded = Selected & ({ image: RawImage } | { error: VitMsnError } | { stored: Uint8Array });

/** Decodes images while earlier ones are computed, batch by batch. */
export async function run_batches(
  selected: AsyncIterable<Selected>,
  computation: Computation,
  sink: Sink,
  options: BatchOptions,
): Promise<void> {
  const { batch_size, signal } = options;
  const decoded = prefetch(selected, (item) => decode(item, signal), {
    limit: Math.max(MIN_PREFETCH, 2 * batch_size),
    weight: (item) => ("image" in item ? item.image.data.byteLength : 0),
    max_weight: MAX_WAITING_BYTES,
  });
  for await (const batch of in_batches(decoded, batch_size)) {
    const outcomes = await compute_batch(batch, computation, signal);
    const failed = options.stop_on_error ? outcomes.findIndex((outcome) => "error" in outcome) : -1;
    const written = failed < 0 ? outcomes : outcomes.slice(0, failed);
    const last = batch[written.length - 1];
    if (last !== undefined) await sink.write(written, last.reached);
    const failure = outcomes[failed];
    if (failure !== undefined && "error" in failure) throw failure.error;
  }
}

async function decode(item: Selected, signal: AbortSignal): Promise<Decoded> {
  const { stored } = item;
  if (stored !== undefined) return { ...item, stored };
  try {
    return { ...item, image: await item.read(signal) };
  } catch (error) {
    if (is_image_error(error)) return { ...item, error };
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
  const images = batch.flatMap((item) => ("image" in item ? [item.image] : []));
  const rows = await compute_each(images, computation, signal);
  return batch.map((item) => {
    const image = item.name;
    if (item.stored !== undefined) return { stored: { image, bytes: item.stored } };
    if ("error" in item) return { image, error: item.error };
    const row = rows.shift() as Computed;
    return "error" in row ? { image, error: row.error } : { row: { ...row, image } };
  });
}

type Computed = Omit<Row, "image"> | { error: VitMsnError };

/** If a batch fails because of one of its images, each is computed alone, so that the others don't fail with it. */
export async function compute_each(
  images: RawImage[],
  computation: Computation,
  signal: AbortSignal,
): Promise<Computed[]> {
  if (images.length === 0) return [];
  try {
    return await computation.compute(images, signal);
  } catch (error) {
    if (!is_image_error(error)) throw error;
    if (images.length === 1) return [{ error }];
  }
  const rows: Computed[] = [];
  for (const image of images) rows.push(...(await compute_each([image], computation, signal)));
  return rows;
}
