// The program of an engine's Worker in browsers.

import type { ThreadMessage } from "../wasm/thread.ts";
import { start_threads_with } from "../wasm/thread_pool.ts";
import { type StartThreads, start_threads } from "../wasm/threads.ts";
import { serve_engine } from "./engine_worker.ts";
import type { EngineReply, EngineRequest } from "./protocol.ts";

const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<EngineRequest>) => void) | null;
  postMessage(reply: EngineReply, transfer: (ArrayBuffer | MessagePort)[]): void;
};

let hear_of_threads: ((message: ThreadMessage) => void) | undefined;

/**
 * Has the page start the threads. In Firefox a Worker that starts another may wait forever in the constructor while a
 * debugger listens, be it the developer tools or a test's driver: both Workers then wait on one condition variable, of
 * which only one waiter is notified. The engine's memory doesn't pass through the page, whose garbage collector would
 * hold on to it.
 */
const have_threads_started: StartThreads = (starts, report) => {
  const channels = starts.map(() => new MessageChannel());
  try {
    for (const [i, { port1 }] of channels.entries()) port1.postMessage(starts[i]);
  } catch {
    return start_threads(starts, report); // WebKit shares memory with no port, only with a Worker
  }
  hear_of_threads = (message) => {
    for (const { port1 } of channels) port1.close();
    report(message);
  };
  const threads = channels.map(({ port2 }) => port2);
  scope.postMessage({ threads }, threads);
  return async () => {}; // the page terminates them with this Worker
};

start_threads_with(have_threads_started);
const serve = serve_engine(
  (reply, transfer) => scope.postMessage(reply, transfer),
  (message) => hear_of_threads?.(message),
);
scope.onmessage = ({ data }) => serve(data);
