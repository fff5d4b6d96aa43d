import type { RawImage } from "../../index.ts";
import type { Row } from "../batch/rows.ts";
import { compute_each } from "../batch/run_batches.ts";
import type { LaneNumber } from "./lanes.ts";
import type { ServedTask } from "./served_task.ts";

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

/**
 * Computes images of several requests together: those that arrive while all engines are busy, or within a short wait. The
 * two lanes get the same share of each batch, as long as both have images.
 */
export class Batcher {
  readonly #task: ServedTask;
  readonly #options: BatcherOptions;
  readonly #lanes: readonly [Waiting[], Waiting[]] = [[], []];
  /** The lane whose turn it is. */
  #next: LaneNumber = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Batches that are being computed, each by an engine. */
  #computing = 0;

  constructor(task: ServedTask, options: BatcherOptions) {
    this.#task = task;
    this.#options = options;
  }

  /** @param signal removes the image from the queue, unless it is already being computed. */
  async submit(image: RawImage, lane: LaneNumber, signal: AbortSignal): Promise<Computed> {
    signal.throwIfAborted();
    let leave = () => {};
    const computed = new Promise<Computed>((resolve, reject) => {
      const queue = this.#lanes[lane];
      const waiting = { image, resolve, reject };
      leave = () => {
        const place = queue.indexOf(waiting);
        if (place >= 0) queue.splice(place, 1);
        reject(signal.reason);
      };
      signal.addEventListener("abort", leave);
      queue.push(waiting);
    });
    this.#begin_soon();
    // The signal outlives its request, and would retain the image.
    return computed.finally(() => signal.removeEventListener("abort", leave));
  }

  get #waiting(): number {
    return this.#lanes[0].length + this.#lanes[1].length;
  }

  get #idle_engines(): number {
    return this.#task.engines - this.#computing;
  }

  #begin_soon(): void {
    if (this.#idle_engines === 0 || this.#waiting === 0) return;
    if (this.#waiting >= this.#options.max_batch || this.#computing > 0) this.#begin();
    else this.#timer ??= setTimeout(() => this.#begin(), this.#options.max_wait_ms);
  }

  #begin(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    while (this.#idle_engines > 0 && this.#waiting > 0) {
      const batch = this.#take(Math.ceil(this.#waiting / this.#idle_engines));
      this.#computing++;
      void this.#compute(batch).finally(() => {
        this.#computing--;
        // Images that arrived meanwhile have waited long enough.
        this.#begin();
      });
    }
  }

  /** The next images, from the lanes in turn. */
  #take(count: number): Waiting[] {
    const batch: Waiting[] = [];
    while (batch.length < Math.min(count, this.#options.max_batch) && this.#waiting > 0) {
      const next = this.#lanes[this.#next].shift();
      if (next !== undefined) batch.push(next);
      this.#next = this.#next === 0 ? 1 : 0;
    }
    return batch;
  }

  async #compute(batch: readonly Waiting[]): Promise<void> {
    const started = performance.now();
    try {
      // No request may stop a batch that it shares with others.
      const never = new AbortController().signal;
      const images = batch.map(({ image }) => image);
      const rows = await compute_each(images, this.#task, never);
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
