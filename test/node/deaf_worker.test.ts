import { describe, expect, test, vi } from "vitest";
import { start_worker_engine } from "../../ts/engine/worker/worker_engine.ts";

/** A Worker that starts, answers nothing else, and ignores its end. */
const worker = vi.hoisted(() => {
  const posted: unknown[] = [];
  let hear = (_reply: unknown) => {};
  let terminated = 0;
  return {
    posted,
    terminations: () => terminated,
    start: (listener: (reply: unknown) => void) => {
      hear = listener;
      return {
        post: (request: object) => {
          posted.push(request);
          if (typeof request !== "object" || !("start" in request)) return;
          const value = { device: "wasm", engine_info: { level: "simd128" }, ops: [] };
          hear({ question: 0, value, memory: { handles: 0, bytes: 0, reserved: 0 } });
        },
        ref: () => {},
        unref: () => {},
        terminate: async () => {
          terminated++;
        },
      };
    },
  };
});

vi.mock("#workers", () => ({
  engine_worker: undefined,
  thread: undefined,
  start_worker: (_: string, listener: (reply: unknown) => void) => worker.start(listener),
}));

describe("a Worker that doesn't react to its end", () => {
  test("is terminated once its grace is over, and the engine is disposed", async () => {
    vi.useFakeTimers();
    try {
      const { engine } = await start_worker_engine({ device: "wasm" });
      const disposed = engine.dispose();
      expect(worker.posted.at(-1)).toBe("end");
      // Its threads may still end by themselves.
      await vi.advanceTimersByTimeAsync(100);
      expect(worker.terminations()).toBe(0);
      await vi.advanceTimersByTimeAsync(1000);
      await disposed;
      expect(worker.terminations()).toBe(1);
      expect(() => engine.memory()).toThrow(expect.objectContaining({ code: "DISPOSED" }));
    } finally {
      vi.useRealTimers();
    }
  });
});
