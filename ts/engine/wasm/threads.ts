import { start_worker, thread } from "#workers";
import type { Lost } from "../workers_types.ts";
import type { ThreadMessage, ThreadStart } from "./thread.ts";

/**
 * Starts threads for an engine: workers that each have an instance on its memory and wait for tasks there.
 *
 * @param starts for each thread its start, or the port at which it gets it.
 * @param report hears that all are ready, or why one isn't; after that, why one ended without having been terminated.
 * @returns what terminates them.
 */
export type StartThreads = (
  starts: readonly (ThreadStart | MessagePort)[],
  report: (message: ThreadMessage) => void,
) => () => Promise<void>;

/** Workers of the calling thread. */
export const start_threads: StartThreads = (starts, report) => {
  let members: Member[] = [];
  const terminate = async () => {
    await Promise.all(members.map((member) => member.terminate()));
  };
  const join = async () => {
    try {
      members = starts.map(() => new Member());
      // One after another: wasm-bindgen's set-up of a thread traps if several run at the same time.
      for (const [i, start] of starts.entries()) await members[i]?.join(start);
      report({ status: "ready" });
      for (const member of members) member.listen(report);
    } catch (error) {
      await terminate();
      report({ status: "lost", reason: (error as Error).message });
    }
  };
  void join();
  return terminate;
};

/** One worker. */
class Member {
  readonly #worker = start_worker<ThreadStart | MessagePort, ThreadMessage>(thread, (message) =>
    this.#hear(message),
  );
  #lost: Lost | undefined;
  #listener: ((message: ThreadMessage) => void) | undefined;

  /** Resolves when the worker has started to work; rejects with the reason if it can't. */
  async join(start: ThreadStart | MessagePort): Promise<void> {
    const message = await new Promise<ThreadMessage>((resolve) => {
      this.listen(resolve);
      this.#worker.post(start, "close" in start ? [start] : []);
    });
    if (message.status === "lost") throw new Error(message.reason);
    this.#worker.unref(); // from now on, it doesn't keep the process alive
  }

  /** From now on, messages are passed to `listener`, and first the worker's loss if it has been lost already. */
  listen(listener: (message: ThreadMessage) => void): void {
    this.#listener = listener;
    if (this.#lost) listener(this.#lost);
  }

  terminate(): Promise<void> {
    this.#listener = undefined; // its end is an expected one
    return this.#worker.terminate();
  }

  #hear(message: ThreadMessage): void {
    if (message.status === "lost") this.#lost = message;
    this.#listener?.(message);
  }
}
