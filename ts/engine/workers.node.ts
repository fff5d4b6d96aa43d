import { Worker } from "node:worker_threads";
import type { ThreadMessage } from "./thread.ts";
import type { ThreadWorker } from "./workers_types.ts";

/** Starts a thread; `listener` hears what it says, and that it was lost where it ends by itself. */
export function start_worker(listener: (message: ThreadMessage) => void): ThreadWorker {
  const worker = new Worker(new URL("./thread.node.js", import.meta.url), { name: "vit-msn" });
  worker.on("message", listener);
  worker.on("error", (error) => listener({ status: "lost", reason: String(error) }));
  worker.on("exit", () => listener({ status: "lost", reason: "it was ended" }));
  return {
    post: (start) => worker.postMessage(start),
    unref: () => worker.unref(),
    terminate: async () => {
      await worker.terminate();
    },
  };
}
