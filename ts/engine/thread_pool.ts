import { start_worker } from "#workers";
import type { ThreadStart } from "./thread.ts";
import type { ThreadWorker } from "./workers_types.ts";

/** The workers that help an engine: each has an instance on the engine's memory and waits there for tasks. */
export class ThreadPool {
  readonly #workers: ThreadWorker[];

  private constructor(workers: ThreadWorker[]) {
    this.#workers = workers;
  }

  /**
   * Starts `count` workers; all or none.
   * @param on_lost is told, at any later time, why a worker is gone that wasn't terminated here.
   * @throws Error with the reason why one didn't start.
   */
  static async start(
    count: number,
    start: ThreadStart,
    on_lost: (reason: string) => void,
  ): Promise<ThreadPool> {
    const workers: ThreadWorker[] = [];
    const pool = new ThreadPool(workers);
    let lost = (reason: string) => on_lost(reason);
    const ready = Array.from(
      { length: count },
      () =>
        new Promise<void>((resolve, reject) => {
          const fail = (reason: string) => {
            reject(new Error(reason));
            lost(reason);
          };
          workers.push(
            start_worker(
              start,
              (message) => (message.status === "ready" ? resolve() : fail(message.reason)),
              fail,
            ),
          );
        }),
    );
    try {
      await Promise.all(ready);
    } catch (error) {
      lost = () => {};
      await Promise.allSettled(ready);
      await pool.dispose();
      throw error;
    }
    for (const worker of workers) worker.unref();
    return pool;
  }

  async dispose(): Promise<void> {
    await Promise.all(this.#workers.splice(0).map((worker) => worker.terminate()));
  }
}
