import { Worker } from "node:worker_threads";
import type { Lost, StartedWorker } from "./workers_types.ts";

// As in workers.web.ts.

/** A thread of the CPU engine. */
export const thread = () =>
  new Worker(new URL("./thread.node.js", import.meta.url), { name: "vit-msn-thread" });

/** A whole engine. */
export const engine_worker = () =>
  new Worker(new URL("./engine_worker.node.js", import.meta.url), { name: "vit-msn-engine" });

/** Starts a program in a Worker; `listener` gets its messages, and the reason if it ends by itself. */
export function start_worker<Request, Reply>(
  program: () => Worker,
  listener: (message: Reply | Lost) => void,
): StartedWorker<Request> {
  const worker = program();
  worker.on("message", listener);
  worker.on("error", (error) => listener({ status: "lost", reason: String(error) }));
  worker.on("exit", () => listener({ status: "lost", reason: "it was ended" }));
  return {
    post: (request, transfer) => worker.postMessage(request, transfer as ArrayBuffer[]),
    ref: () => worker.ref(),
    unref: () => worker.unref(),
    terminate: async () => {
      await worker.terminate();
    },
  };
}
