import type { RawImage, VitMsnError } from "../../index.ts";
import { decoding_bytes, MemoryBudget } from "../memory_budget.ts";
import { is_image_error } from "./errors.ts";
import type { Reached } from "./journal.ts";
import { prefetch } from "./prefetch.ts";
import type { Row, StoredRow } from "./rows.ts";
import type { Selected } from "./selection.ts";

/** What is computed for images. */
export interface Computation {
  /** Makes an image small, as soon as it is decoded. */
  prepare(image: RawImage, signal: AbortSignal): Promise<RawImage>;
  /** One row for each prepared image, without its name. */
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

/** The most memory for images that are being decoded and prepared. */
const MAX_DECODING_BYTES = 256 * 1024 * 1024;
/** For formats whose size only their decoder reads. */
const ASSUMED_PIXELS = 8_000_000;
/** The most memory for prepared images that wait, and for those of a batch. */
const MAX_PREPARED_BYTES = 64 * 1024 * 1024;
/** Images whose files are in memory at a time, to be decoded. */
const MAX_RUNNING = 8;

type Prepared = Selected & ({ image: RawImage } | { error: VitMsnError } | { stored: Uint8Array });

/** Decodes and prepares images while earlier ones are computed, batch by batch. */
export async function run_batches(
  selected: AsyncIterable<Selected>,
  computation: Computation,
  sink: Sink,
  options: BatchOptions,
): Promise<void> {
  const { batch_size, signal } = options;
  const budget = new MemoryBudget(MAX_DECODING_BYTES);
  const prepared = prefetch(selected, (item) => prepare(item, computation, budget, signal), {
    limit: Math.max(MAX_RUNNING, 2 * batch_size),
    max_running: MAX_RUNNING,
    weight: bytes_of,
    max_weight: MAX_PREPARED_BYTES,
  });
  for await (const batch of in_batches(prepared, batch_size)) {
    const outcomes = await compute_batch(batch, computation, signal);
    const failed = options.stop_on_error ? outcomes.findIndex((outcome) => "error" in outcome) : -1;
    const written = failed < 0 ? outcomes : outcomes.slice(0, failed);
    const last = batch[written.length - 1];
    if (last !== undefined) await sink.write(written, last.reached);
    const failure = outcomes[failed];
    if (failure !== undefined && "error" in failure) throw failure.error;
  }
}

function bytes_of(item: Prepared): number {
  return "image" in item ? item.image.data.byteLength : 0;
}

async function prepare(
  item: Selected,
  computation: Computation,
  budget: MemoryBudget,
  signal: AbortSignal,
): Promise<Prepared> {
  const { stored } = item;
  if (stored !== undefined) return { ...item, stored };
  let release: (() => void) | undefined;
  try {
    const image = await item.read({
      signal,
      admit: async (header) => {
        release?.(); // of an attempt that failed
        release = await budget.take(decoding_bytes(header, ASSUMED_PIXELS), signal);
      },
    });
    return { ...item, image: await computation.prepare(image, signal) };
  } catch (error) {
    if (is_image_error(error)) return { ...item, error };
    throw error;
  } finally {
    release?.();
  }
}

/** Batches of up to `size` items, fewer where images are large. */
async function* in_batches(items: AsyncIterable<Prepared>, size: number): AsyncGenerator<Prepared[]> {
  let batch: Prepared[] = [];
  let bytes = 0;
  for await (const item of items) {
    batch.push(item);
    bytes += bytes_of(item);
    if (batch.length < size && bytes < MAX_PREPARED_BYTES) continue;
    yield batch;
    batch = [];
    bytes = 0;
  }
  if (batch.length > 0) yield batch;
}

async function compute_batch(
  batch: readonly Prepared[],
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
  computation: Pick<Computation, "compute">,
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
