import { throw_if_aborted, until_aborted } from "../errors.ts";

/** Max time in ms for which the CPU engine blocks this thread's event loop (timers, input, aborts). */
const SLICE_MS = 30;
/**
 * Max steps that an engine on another thread or device may lag behind: it never idles, but stops soon after an abort.
 */
const AHEAD = 2;

/** Pauses between the steps of a long computation, for aborts, the page's events, and engines that lag behind. */
export class Pacer {
  readonly #signal: AbortSignal | undefined;
  readonly #what: string;
  readonly #under_way: Promise<void>[] = [];
  #last = performance.now();

  constructor(signal: AbortSignal | undefined, what: string) {
    this.#signal = signal;
    this.#what = what;
    throw_if_aborted(signal, what);
  }

  /**
   * Call between steps.
   * @param ready resolves when the previous step is done, like Engine.caught_up; omit it for steps done on this thread.
   * @throws VitMsnError ABORTED once the signal has fired; otherwise the error of an earlier step's `ready`.
   */
  async step(ready?: Promise<void>): Promise<void> {
    if (ready !== undefined) {
      ready.catch(() => {}); // reported when it is awaited below
      this.#under_way.push(ready);
    }
    if (performance.now() - this.#last > SLICE_MS) {
      await next_task();
      this.#last = performance.now();
    }
    await this.#until_left(AHEAD);
    throw_if_aborted(this.#signal, this.#what);
  }

  /** Call after the last step: resolves when all are done. */
  finish(): Promise<void> {
    return this.#until_left(0);
  }

  async #until_left(count: number): Promise<void> {
    while (this.#under_way.length > count) {
      await until_aborted(this.#under_way.shift() as Promise<void>, this.#signal, this.#what);
    }
  }
}

/** Resolves in a new task (not a microtask), without the 4 ms by which browsers delay nested timers. */
export function next_task(): Promise<void> {
  if (typeof setImmediate === "function") return new Promise((resolve) => setImmediate(resolve));
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
