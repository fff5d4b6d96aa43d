import type { RawImage } from "../../index.ts";
import type { Row } from "../batch/rows.ts";
import { type Computation, compute_each } from "../batch/run_batches.ts";

export interface BatcherOptions {
  /** The largest number of images computed together. */
  max_batch: number;
  /** How long an image waits for others while nothing is being computed. */
  max_wait_ms: number;
  /** Called after each batch. */
  on_batch(size: number, seconds: number): void;
}

export type Computed = Omit<Row, "image">;

interface Waiting {
  image: RawImage;
  resolve(row: Computed): void;
  reject(reason: unknown): void;
}

/** Computes images of several requests together: those that arrive during a batch, or within a short wait. */
export class Batcher {
  readonly #computation: Computation;
  readonly #options: BatcherOptions;
  readonly #queue: Waiting[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #is_computing = false;

  constructor(computation: Computation, options: BatcherOptions) {
    this.#computation = computation;
    this.#options = options;
  }

  /** @param signal removes the image from the queue, unless it is already being computed. */
  async submit(image: RawImage, signal: AbortSignal): Promise<Computed> {
    signal.throwIfAborted();
    let leave = () => {};
    const computed = new Promise<Computed>((resolve, reject) => {
      const waiting = { image, resolve, reject };
      leave = () => {
        const place = this.#queue.indexOf(waiting);
        if (place >= 0) this.#queue.splice(place, 1);
        reject(signal.reason);
      };
      signal.addEventListener("abort", leave);
      this.#queue.push(waiting);
    });
    this.#begin_soon();
    // The signal outlives its request, and would retain the image.
    return computed.finally(() => signal.removeEventListener("abort", leave));
  }

  #begin_soon(): void {
    if (this.#is_computing || this.#queue.length === 0) return;
    if (this.#queue.length >= this.#options.max_batch) this.#begin();
    else this.#timer ??= setTimeout(() => this.#begin(), this.#options.max_wait_ms);
  }

  #begin(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#is_computing || this.#queue.length === 0) return;
    this.#is_computing = true;
    void this.#compute(this.#queue.splice(0, this.#options.max_batch)).finally(() => {
      this.#is_computing = false;
      // Images that arrived meanwhile have waited long enough.
      this.#begin();
    });
  }

  async #compute(batch: readonly Waiting[]): Promise<void> {
    const started = performance.now();
    try {
      // No request may stop a batch that it shares with others.
      const never = new AbortController().signal;
      const images = batch.map(({ image }) => image);
      const rows = await compute_each(images, this.#computation, never);
      rows.forEach((row, i) => {
        if ("error" in row) batch[i]?.reject(row.error);
        else batch[i]?.resolve(row);
      });
      this.#options.on_batch(batch.length, (performance.now() - started) / 1000);
    } catch (error) {
      for (const { reject } of batch) reject(error);
    }
  }
}
