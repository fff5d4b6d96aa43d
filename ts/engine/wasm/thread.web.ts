// The program of a worker in browsers.
import { run_thread, type ThreadMessage, type ThreadStart } from "./thread.ts";

const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<ThreadStart | MessagePort>) => void) | null;
  postMessage(message: ThreadMessage): void;
};
/**
 * Milliseconds. Longer than the pauses between the ops of a forward pass. A Worker that blocks forever would hold up service
 * workers in Firefox: their clients.claim() waits until each of the page's Workers has answered, and so does every fetch.
 */
const PATIENCE = 100;

const run = (start: ThreadStart) => run_thread(start, (message) => scope.postMessage(message), PATIENCE);

scope.onmessage = ({ data }) => {
  if (!(data instanceof MessagePort)) return run(data);
  data.onmessage = ({ data }) => run(data);
  data.onmessageerror = () =>
    scope.postMessage({ status: "lost", reason: "it can't share the engine's memory" });
};
