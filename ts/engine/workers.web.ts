import type { ThreadMessage, ThreadStart } from "./thread.ts";
import type { ThreadWorker } from "./workers_types.ts";

/** Starts a thread; `on_end` is told why it ended by itself. */
export function start_worker(
  start: ThreadStart,
  on_message: (message: ThreadMessage) => void,
  on_end: (reason: string) => void,
): ThreadWorker {
  const worker = new Worker(new URL("./thread.web.js", import.meta.url), { type: "module", name: "vit-msn" });
  worker.onmessage = ({ data }: MessageEvent<ThreadMessage>) => on_message(data);
  worker.onerror = (event) => on_end(event.message ?? "its script can't be loaded");
  worker.postMessage(start);
  return {
    unref: () => {}, // pages and workers end without asking
    terminate: async () => worker.terminate(),
  };
}
