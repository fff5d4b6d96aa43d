// The program of a worker in browsers.
import { run_thread, type ThreadMessage, type ThreadStart } from "./thread.ts";

const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<ThreadStart>) => void) | null;
  postMessage(message: ThreadMessage): void;
};
/**
 * Milliseconds. Longer than the pauses between the ops of a forward pass. A Worker that blocks forever would hold up service
 * workers in Firefox: their clients.claim() waits until each of the page's Workers has answered, and so does every fetch.
 */
const PATIENCE = 100;

scope.onmessage = ({ data }) => run_thread(data, (message) => scope.postMessage(message), PATIENCE);
