import type { ThreadMessage } from "./thread.ts";
import type { ThreadWorker } from "./workers_types.ts";

/** Starts a thread; `listener` hears what it says, and that it was lost where it ends by itself. */
export function start_worker(listener: (message: ThreadMessage) => void): ThreadWorker {
  const worker = new Worker(new URL("./thread.web.js", import.meta.url), { type: "module", name: "vit-msn" });
  worker.onmessage = ({ data }: MessageEvent<ThreadMessage>) => listener(data);
  worker.onerror = ({ message }) =>
    listener({ status: "lost", reason: message ?? "its script can't be loaded" });
  return {
    post: (start) => worker.postMessage(start),
    unref: () => {}, // pages and workers end without asking
    terminate: async () => worker.terminate(),
  };
}
