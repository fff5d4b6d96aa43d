import { until_aborted } from "../errors.ts";

/** A forward pass's place in the queue. Calling either method again has no effect. */
export interface Turn {
  /** Call when all its ops are recorded: the next forward pass may start. */
  recorded(): void;
  /** Call when its results have arrived or it has failed. */
  end(): void;
}

/**
 * The queue of an engine's forwards. Each is recorded as a whole before the next, in the order of the calls, and only two
 * are under way: while one runs, the next waits on its device or in its Worker. So the first answer arrives after one
 * forward, not after all, they share the memory of one forward pass, and on a GPU each is one submission.
 */
export class ForwardQueue {
  /** Whether the last forward pass is recorded, and whether the last two have ended. */
  #recorded: Promise<void> | undefined;
  #ended: Promise<void> | undefined;
  #ended_before: Promise<void> | undefined;

  /** Resolves when it is this caller's turn. @throws VitMsnError ABORTED once the signal has fired. */
  async take(signal: AbortSignal | undefined): Promise<Turn> {
    const turn = Promise.all([this.#recorded, this.#ended_before]);
    let [recorded, ended] = [() => {}, () => {}];
    this.#ended_before = this.#ended;
    this.#recorded = new Promise<void>((resolve) => {
      recorded = resolve;
    });
    this.#ended = new Promise<void>((resolve) => {
      ended = resolve;
    });
    const end = () => {
      recorded();
      ended();
    };
    try {
      await until_aborted(turn, signal, "forward");
      return { recorded, end };
    } catch (error) {
      void turn.then(end);
      throw error;
    }
  }
}
