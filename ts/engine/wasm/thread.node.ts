// The program of a worker in Node, Deno and Bun.
import { parentPort } from "node:worker_threads";
import { run_thread, type ThreadStart } from "./thread.ts";

parentPort?.once("message", (start: ThreadStart) => {
  run_thread(start, (message) => parentPort?.postMessage(message));
});
