import { Worker } from "node:worker_threads";
import type { ThreadMessage, ThreadStart } from "./thread.ts";
import type { ThreadWorker } from "./workers_types.ts";

/** Starts a thread; `on_end` is told why it ended by itself. */
export function start_worker(
  start: ThreadStart,
  on_message: (message: ThreadMessage) => void,
  on_end: (reason: string) => void,
): ThreadWorker {
  const worker = new Worker(new URL("./thread.node.js", import.meta.url), { name: "vit-msn" });
  worker.on("message", on_message);
  worker.on("error", (error) => on_end(String(error)));
  worker.on("exit", () => on_end("it was ended"));
  worker.postMessage(start);
  return {
    unref: () => worker.unref(),
    terminate: async () => {
      worker.removeAllListeners();
      await worker.terminate();
    },
  };
}
