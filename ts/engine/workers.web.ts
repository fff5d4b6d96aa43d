import type { Lost, StartedWorker, WorkerProgram } from "./workers_types.ts";

/** In full, since bundlers look for exactly this expression. Names differ, since webpack merges chunks of one name. */
const PROGRAMS: Readonly<Record<WorkerProgram, () => Worker>> = {
  thread: () =>
    new Worker(new URL("./thread.web.js", import.meta.url), { type: "module", name: "vit-msn-thread" }),
  engine_worker: () =>
    new Worker(new URL("./engine_worker.web.js", import.meta.url), {
      type: "module",
      name: "vit-msn-engine",
    }),
};

/** Starts a program in a Worker; `listener` gets its messages, and the reason if it ends by itself. */
export function start_worker<Request, Reply>(
  program: WorkerProgram,
  listener: (message: Reply | Lost) => void,
): StartedWorker<Request> {
  const worker = PROGRAMS[program]();
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
