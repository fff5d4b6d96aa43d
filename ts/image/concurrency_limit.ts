import { until_aborted } from "../errors.ts";

/** Runs a limited number of tasks at a time; the others wait in order. */
export class ConcurrencyLimit {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  /**
   * Runs `work` when a place is free, and holds the place until the work is done, also after an abort.
   * @throws VitMsnError ABORTED where the signal fires before a place is free.
   */
  async run<T>(signal: AbortSignal | undefined, what: string, work: () => Promise<T>): Promise<T> {
    const place = this.#place();
    try {
      await until_aborted(place, signal, what);
    } catch (error) {
      void place.then(() => this.#release());
      throw error;
    }
    try {
      return await work();
    } finally {
      this.#release();
    }
  }

  async #place(): Promise<void> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  #release(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free++;
    else next();
  }
}
