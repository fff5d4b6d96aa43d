import { throw_if_aborted } from "../errors.ts";

/** Longest time in ms that a CPU forward keeps the event loop from timers, input and abort events. */
const SLICE_MS = 30;

/** Lets a long computation on this thread be aborted, and the page breathe, between its steps. */
export class Pacer {
  readonly #signal: AbortSignal | undefined;
  readonly #what: string;
  #last = performance.now();

  constructor(signal: AbortSignal | undefined, what: string) {
    this.#signal = signal;
    this.#what = what;
    throw_if_aborted(signal, what);
  }

  /** Call between steps. @throws VitMsnError ABORTED once the signal has fired. */
  async step(): Promise<void> {
    if (performance.now() - this.#last > SLICE_MS) {
      await next_task();
      this.#last = performance.now();
    }
    throw_if_aborted(this.#signal, this.#what);
  }
}

/** Resolves in a new task (not a microtask), without the 4 ms that nested timers are held back in browsers. */
function next_task(): Promise<void> {
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
