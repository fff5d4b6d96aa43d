import type { ThreadStart } from "./thread.ts";
import { type StartThreads, start_threads as start_here } from "./threads.ts";

let start_threads = start_here;

/** From now on, `start` starts the threads of engines here. By default, they are Workers of the calling thread. */
export function start_threads_with(start: StartThreads): void {
  start_threads = start;
}

/** An engine's threads, as the engine sees them. It doesn't reference the engine, which can be garbage-collected. */
export class ThreadPool {
  readonly #epoch: Int32Array;
  readonly #dismiss: () => void;
  readonly #terminate: () => Promise<void>;

  private constructor(epoch: Int32Array, dismiss: () => void, terminate: () => Promise<void>) {
    this.#epoch = epoch;
    this.#dismiss = dismiss;
    this.#terminate = terminate;
  }

  /**
   * Starts `count` threads; all or none.
   * @param epoch_address where the memory has the value by whose changes threads wait in their event loop.
   * @param dismiss makes all threads stop.
   * @param on_lost is called with the reason when a thread ends without having been terminated here.
   * @throws Error with the reason if one doesn't start.
   */
  static start(
    count: number,
    start: ThreadStart,
    epoch_address: number,
    dismiss: () => void,
    on_lost: (reason: string) => void,
  ): Promise<ThreadPool> {
    return new Promise((resolve, reject) => {
      let lose = (reason: string) => reject(new Error(reason));
      const starts = new Array<ThreadStart>(count).fill(start);
      const terminate = start_threads(starts, (message) => {
        if (message.status === "ready") {
          lose = on_lost;
          const epoch = new Int32Array(start.memory.buffer, epoch_address, 1);
          resolve(new ThreadPool(epoch, dismiss, terminate));
        } else lose(message.reason);
      });
    });
  }

  /** Call before work: calls back threads that have been idle for so long that they wait in their event loop. */
  wake(): void {
    Atomics.notify(this.#epoch, 0);
  }

  async dispose(): Promise<void> {
    try {
      this.#dismiss(); // Deno can't end a thread that waits inside WebAssembly
    } catch {
      // after a trap the instance can't dismiss them: terminate them instead
    }
    await this.#terminate();
  }
}
