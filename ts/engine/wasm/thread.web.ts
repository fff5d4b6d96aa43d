// The program of a worker in browsers.
import { run_thread, type ThreadMessage, type ThreadStart } from "./thread.ts";

const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<ThreadStart>) => void) | null;
  postMessage(message: ThreadMessage): void;
};
scope.onmessage = ({ data }) => run_thread(data, (message) => scope.postMessage(message));
