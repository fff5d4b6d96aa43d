import { until_aborted } from "../errors.ts";

/** Lets only some of what is asked for be under way at a time. */
export class Turns {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  /**
   * Does `work` when its turn comes. The turn lasts until the work is done, also where an abort has come before.
   * @throws VitMsnError ABORTED where the signal fires before the turn comes.
   */
  async take<T>(signal: AbortSignal | undefined, what: string, work: () => Promise<T>): Promise<T> {
    const turn = this.#next();
    try {
      await until_aborted(turn, signal, what);
    } catch (error) {
      void turn.then(() => this.#end());
      throw error;
    }
    try {
      return await work();
    } finally {
      this.#end();
    }
  }

  async #next(): Promise<void> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  #end(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free++;
    else next();
  }
}
