import { until_aborted } from "../errors.ts";

/** Forwards of one model whose results aren't there yet: one runs, the next waits for it on the device. */
const MOST_UNDER_WAY = 2;

/** One forward's. Both may be called again, and in vain. */
export interface Turn {
  /** All of it is on its way: the next may follow. */
  recorded(): void;
  /** Its results are there, or it failed. */
  end(): void;
}

/**
 * The order of forwards on a device that works by itself. They are handed over one after the other, each whole, in the order
 * in which they were asked for, and few at a time: so each is one submission, and all of them share one forward's memory.
 */
export class Turns {
  readonly #waiting: ((turn: Turn) => void)[] = [];
  #recording = false;
  #under_way = 0;

  /** Resolves when it is this caller's turn. @throws VitMsnError ABORTED once the signal has fired. */
  async take(signal: AbortSignal | undefined): Promise<Turn> {
    const turn = new Promise<Turn>((resolve) => this.#waiting.push(resolve));
    this.#go_on();
    try {
      return await until_aborted(turn, signal, "forward");
    } catch (error) {
      void turn.then((late) => late.end());
      throw error;
    }
  }

  #go_on(): void {
    if (this.#recording || this.#under_way === MOST_UNDER_WAY) return;
    const start = this.#waiting.shift();
    if (start === undefined) return;
    this.#recording = true;
    this.#under_way += 1;
    start(this.#turn());
  }

  #turn(): Turn {
    const recorded = once(() => {
      this.#recording = false;
      this.#go_on();
    });
    const end = once(() => {
      this.#under_way -= 1;
      recorded();
      this.#go_on();
    });
    return { recorded, end };
  }
}

function once(action: () => void): () => void {
  let is_done = false;
  return () => {
    if (is_done) return;
    is_done = true;
    action();
  };
}
