import { start_worker } from "#workers";
import type { ThreadMessage, ThreadStart } from "./thread.ts";

/** An engine's worker threads: each has an instance on the engine's memory, and waits for tasks there. */
export class ThreadPool {
  readonly #members: Member[];
  readonly #epoch: Int32Array;
  readonly #dismiss: () => void;

  private constructor(members: Member[], epoch: Int32Array, dismiss: () => void) {
    this.#members = members;
    this.#epoch = epoch;
    this.#dismiss = dismiss;
  }

  /**
   * Starts `count` workers; all or none.
   * @param epoch_address where the memory has the value by whose changes workers wait in their event loop.
   * @param dismiss makes all workers stop.
   * @param on_lost is called with the reason when a worker ends without having been terminated here.
   * @throws Error with the reason if one doesn't start.
   */
  static async start(
    count: number,
    start: ThreadStart,
    epoch_address: number,
    dismiss: () => void,
    on_lost: (reason: string) => void,
  ): Promise<ThreadPool> {
    const pool = new ThreadPool(
      Array.from({ length: count }, () => new Member()),
      new Int32Array(start.memory.buffer, epoch_address, 1),
      dismiss,
    );
    try {
      // One after another: wasm-bindgen's set-up of a thread traps if several run at the same time.
      for (const member of pool.#members) await member.join(start);
    } catch (error) {
      await pool.dispose();
      throw error;
    }
    for (const member of pool.#members) member.listen(on_lost);
    return pool;
  }

  /** Call before work: calls back workers that have been idle for so long that they wait in their event loop. */
  wake(): void {
    Atomics.notify(this.#epoch, 0);
  }

  async dispose(): Promise<void> {
    for (const member of this.#members) member.leave();
    try {
      this.#dismiss(); // Deno can't end a thread that waits inside WebAssembly
    } catch {
      // after a trap the instance can't dismiss them: terminate them instead
    }
    await Promise.all(this.#members.map((member) => member.terminate()));
  }
}

/** One worker. */
class Member {
  readonly #worker = start_worker<ThreadStart, ThreadMessage>("thread", (message) => this.#hear(message));
  #lost: string | undefined;
  #listener: ((message: ThreadMessage) => void) | undefined;

  /** Resolves when the worker has started to work; rejects with the reason if it can't. */
  join(start: ThreadStart): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#listener = (message) => {
        if (message.status === "ready") resolve();
        else reject(new Error(message.reason));
      };
      if (this.#lost === undefined) this.#worker.post(start);
      else reject(new Error(this.#lost));
    });
  }

  /** Stops the worker from keeping the process alive, and reports its loss from now on. */
  listen(on_lost: (reason: string) => void): void {
    this.#worker.unref();
    this.#listener = (message) => {
      if (message.status === "lost") on_lost(message.reason);
    };
    if (this.#lost !== undefined) on_lost(this.#lost);
  }

  /** Makes the worker's end an expected one. */
  leave(): void {
    this.#listener = undefined;
  }

  terminate(): Promise<void> {
    return this.#worker.terminate();
  }

  #hear(message: ThreadMessage): void {
    if (message.status === "lost") this.#lost ??= message.reason;
    this.#listener?.(message);
  }
}
