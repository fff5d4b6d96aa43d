import type { ThreadStart } from "./thread.ts";

/** A thread of the engine, seen from the one that started it. */
export interface ThreadWorker {
  /** Hands it the engine. */
  post(start: ThreadStart): void;
  /** Lets the process end although the thread is there. */
  unref(): void;
  /** Ends the thread, wherever it is. */
  terminate(): Promise<void>;
}
