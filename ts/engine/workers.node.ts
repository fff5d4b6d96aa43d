import { Worker } from "node:worker_threads";
import type { ThreadMessage, ThreadStart } from "./wasm/thread.ts";
import type { EngineReply, EngineRequest } from "./worker/engine_worker.ts";
import type { Lost, StartedWorker } from "./workers_types.ts";

/** Starts a thread; `listener` hears what it says, and that it was lost where it ends by itself. */
export function start_thread(listener: (message: ThreadMessage) => void): StartedWorker<ThreadStart> {
  return wrap(new Worker(new URL("./thread.node.js", import.meta.url), { name: "vit-msn" }), listener);
}

/** Starts the Worker of an engine; `listener` as a thread's. */
export function start_engine_worker(
  listener: (message: EngineReply | Lost) => void,
): StartedWorker<EngineRequest> {
  return wrap(new Worker(new URL("./engine_worker.node.js", import.meta.url), { name: "vit-msn" }), listener);
}

function wrap<Request, Reply>(
  worker: Worker,
  listener: (message: Reply | Lost) => void,
): StartedWorker<Request> {
  worker.on("message", listener);
  worker.on("error", (error) => listener({ status: "lost", reason: String(error) }));
  worker.on("exit", () => listener({ status: "lost", reason: "it was ended" }));
  return {
    post: (request, transfer) => worker.postMessage(request, transfer),
    ref: () => worker.ref(),
    unref: () => worker.unref(),
    terminate: async () => {
      await worker.terminate();
    },
  };
}
