import create_glue from "../generated/glue.js";
import type { Lost } from "../workers_types.ts";

/** The data that starts a thread of the engine: the engine's module and its shared memory. */
export interface ThreadStart {
  module: WebAssembly.Module;
  memory: WebAssembly.Memory;
}

/** A thread's messages: that it starts to work, or why it can't. */
export type ThreadMessage = { status: "ready" } | Lost;

/** Bytes of a thread's stack, a multiple of the page size; kernels allocate their buffers elsewhere. */
const STACK_SIZE = 4 << 16;

/**
 * Runs a worker: it joins the engine and blocks inside until it is dismissed or terminated.
 *
 * @param patience milliseconds to block without work; then it waits in the event loop for more. Default: no limit.
 */
export async function run_thread(
  { module, memory }: ThreadStart,
  post: (message: ThreadMessage) => void,
  patience?: number,
): Promise<void> {
  const glue = create_glue();
  try {
    glue.initSync({ module, memory, thread_stack_size: STACK_SIZE });
    post({ status: "ready" });
    for (let epoch = glue.work(patience); epoch !== undefined; epoch = glue.work(patience)) {
      const values = new Int32Array(memory.buffer, glue.epoch_address(), 1);
      // Without waitAsync (Firefox before 145) it looks again after a turn of the event loop.
      await (Atomics.waitAsync?.(values, 0, epoch | 0).value ??
        new Promise((resolve) => setTimeout(resolve)));
    }
  } catch (error) {
    post({ status: "lost", reason: glue.last_panic() ?? String(error) });
    glue.mark_worker_lost();
  }
}
