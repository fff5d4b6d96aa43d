import type { Lost, StartedWorker } from "./workers_types.ts";

// Each program is spelled in full, since bundlers look for exactly this expression, and exported for itself, so that none is
// bundled with a reference to itself: Turbopack would never end. Names differ, since webpack merges chunks of one name.

/** A thread of the CPU engine. */
export const thread = () =>
  new Worker(new URL("./thread.web.js", import.meta.url), { type: "module", name: "vit-msn-thread" });

/** A whole engine. */
export const engine_worker = () =>
  new Worker(new URL("./engine_worker.web.js", import.meta.url), { type: "module", name: "vit-msn-engine" });

/** Starts a program in a Worker; `listener` gets its messages, and the reason if it ends by itself. */
export function start_worker<Request, Reply>(
  program: () => Worker,
  listener: (message: Reply | Lost) => void,
): StartedWorker<Request> {
  const worker = program();
  worker.onmessage = ({ data }: MessageEvent<Reply>) => listener(data);
  worker.onerror = ({ message }) =>
    listener({ status: "lost", reason: message ?? "its script can't be loaded" });
  return {
    post: (request, transfer = []) => worker.postMessage(request, transfer),
    ref: () => {},
    unref: () => {}, // Workers keep no page alive
    terminate: async () => worker.terminate(),
  };
}
