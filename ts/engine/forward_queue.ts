import { until_aborted } from "../errors.ts";

/** Max forwards of one model under way: while one runs, the next waits on the device. */
const MAX_UNDER_WAY = 2;

/** A forward's place in the queue. Calling either method again has no effect. */
export interface Turn {
  /** Call when all its ops are recorded: the next forward may start. */
  recorded(): void;
  /** Call when its results have arrived or it has failed. */
  end(): void;
}

/**
 * The queue of forwards on an asynchronous device. Each is recorded as a whole before the next, in the order of the
 * calls, and only a few are under way. So each is one submission, and they share the memory of one forward.
 */
export class ForwardQueue {
  readonly #waiting: ((turn: Turn) => void)[] = [];
  #recording = false;
  #under_way = 0;

  /** Resolves when it is this caller's turn. @throws VitMsnError ABORTED once the signal has fired. */
  async take(signal: AbortSignal | undefined): Promise<Turn> {
    const turn = new Promise<Turn>((resolve) => this.#waiting.push(resolve));
    this.#start_next();
    try {
      return await until_aborted(turn, signal, "forward");
    } catch (error) {
      void turn.then((late) => late.end());
      throw error;
    }
  }

  #start_next(): void {
    if (this.#recording || this.#under_way === MAX_UNDER_WAY) return;
    const start = this.#waiting.shift();
    if (start === undefined) return;
    this.#recording = true;
    this.#under_way += 1;
    start(this.#turn());
  }

  #turn(): Turn {
    const recorded = once(() => {
      this.#recording = false;
      this.#start_next();
    });
    const end = once(() => {
      this.#under_way -= 1;
      recorded();
      this.#start_next();
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
